//! JWT authentication.
//!
//! Invariant: a provider that a requirement names exists, and a key set in place has a key that can be used (else the filter is
//! refused, as by Envoy).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3 as pb;

use super::bad::{At, Bad, each, given, only};
use super::basic::{duration, positive};
use super::{filter, headers, matcher, route};
use crate::jws::keys::KeySet;
use crate::jwt::bare_audience;
use crate::model::Name;
use crate::model::jwt::{JwtAuthn, JwtHere, Keys, Provider, Remote, Requirement};

/// Requirements are nested at most so deep.
const DEPTH: usize = 16;

/// The filter.
pub fn jwt_authn(value: &pb::JwtAuthentication) -> Result<JwtAuthn, Bad> {
    only!(value, pb::JwtAuthentication {
        providers, rules, bypass_cors_preflight, requirement_map, strip_failure_response, stat_prefix,
    } refuse { filter_state_rules });
    let mut named: Vec<(&String, &pb::JwtProvider)> = value.providers.iter().collect();
    named.sort_by_key(|(name, _)| *name);
    let mut providers = Vec::with_capacity(named.len());
    for (name, value) in named {
        providers.push(provider(name, value).at(&format!("providers[\"{name}\"]"))?);
    }
    let mut map: Vec<(Name, Arc<Requirement>)> = Vec::new();
    for (name, value) in sorted(&value.requirement_map) {
        let made = requirement(value, &providers, 0).at(&format!("requirement_map[\"{name}\"]"))?;
        map.push((name.as_str().into(), Arc::new(made)));
    }
    let rules = each("rules", &value.rules, |rule| {
        use pb::requirement_rule::RequirementType as R;
        let matching = rule.r#match.as_ref().ok_or_else(|| Bad::field("match", "missing"))?;
        let requirement = match &rule.requirement_type {
            None => None,
            Some(R::Requires(r)) if r.requires_type.is_none() => None,
            Some(R::Requires(r)) => Some(Arc::new(requirement(r, &providers, 0).at("requires")?)),
            Some(R::RequirementName(name)) => {
                let found = map.iter().find(|(n, _)| **n == **name).map(|(_, r)| Arc::clone(r));
                Some(found.ok_or_else(|| Bad::field("requirement_name", "not in requirement_map"))?)
            }
        };
        Ok((route::route_match(matching).at("match")?, requirement))
    })?;
    let prefix = &value.stat_prefix;
    let counter = |name: &str| -> Name { format!("jwt_authn.{prefix}{name}").into() };
    Ok(JwtAuthn {
        providers,
        rules,
        map,
        bypass_cors_preflight: value.bypass_cors_preflight,
        strip_failure_response: value.strip_failure_response,
        counters: [counter("allowed"), counter("denied"), counter("cors_preflight_bypassed")],
    })
}

fn sorted<T>(map: &HashMap<String, T>) -> Vec<(&String, &T)> {
    let mut all: Vec<_> = map.iter().collect();
    all.sort_by_key(|(name, _)| *name);
    all
}

/// What a route says.
pub fn jwt_here(value: &pb::PerRouteConfig) -> Result<JwtHere, Bad> {
    use pb::per_route_config::RequirementSpecifier as R;
    match &value.requirement_specifier {
        Some(R::Disabled(true)) => Ok(JwtHere::Off),
        Some(R::Disabled(false)) => Err(Bad::field("disabled", "must be true")),
        Some(R::RequirementName(name)) if !name.is_empty() => Ok(JwtHere::Named(name.as_str().into())),
        _ => Err(Bad::new("empty")),
    }
}

fn provider(name: &str, value: &pb::JwtProvider) -> Result<Provider, Bad> {
    // Caching verified tokens is an optimisation.
    only!(value, pb::JwtProvider {
        issuer, audiences, subjects, require_expiration, max_lifetime, forward, from_headers, from_params, from_cookies,
        forward_payload_header, pad_forward_payload_header, payload_in_metadata, normalize_payload_in_metadata, header_in_metadata,
        clock_skew_seconds, jwt_cache_config, claim_to_headers, clear_route_cache, jwks_source_specifier,
    } refuse { failed_status_in_metadata });
    let key = |text: &str| -> Option<Name> { (!text.is_empty()).then(|| text.into()) };
    let header = |text: &str| if text.is_empty() { Ok(None) } else { headers::name(text).map(Some) };
    Ok(Provider {
        name: name.into(),
        issuer: value.issuer.as_str().into(),
        audiences: audiences(&value.audiences),
        subjects: given("subjects", &value.subjects, matcher::string)?,
        require_expiration: value.require_expiration,
        max_lifetime: given("max_lifetime", &value.max_lifetime, duration)?,
        forward: value.forward,
        from_headers: each("from_headers", &value.from_headers, |h| {
            Ok((headers::name(&h.name).at("name")?, h.value_prefix.as_str().into()))
        })?,
        from_params: value.from_params.iter().map(|p| p.as_str().into()).collect(),
        from_cookies: value.from_cookies.iter().map(|c| c.as_str().into()).collect(),
        payload_header: header(&value.forward_payload_header).at("forward_payload_header")?,
        payload_header_padded: value.pad_forward_payload_header,
        payload_metadata: key(&value.payload_in_metadata),
        header_metadata: key(&value.header_in_metadata),
        space_delimited: value
            .normalize_payload_in_metadata
            .iter()
            .flat_map(|n| n.space_delimited_claims.iter().map(|c| Name::from(c.as_str())))
            .collect(),
        clock_skew: match value.clock_skew_seconds {
            0 => 60,
            seconds => u64::from(seconds),
        },
        claim_headers: each("claim_to_headers", &value.claim_to_headers, claim_header)?,
        clear_route_cache: value.clear_route_cache,
        keys: keys(value)?,
    })
}

fn audiences(list: &[String]) -> Vec<Box<str>> {
    list.iter().map(|a| bare_audience(a).into()).collect()
}

fn claim_header(value: &pb::JwtClaimToHeader) -> Result<(Vec<Name>, http::HeaderName), Bad> {
    let header = headers::name(&value.header_name).at("header_name")?;
    let path: Vec<Name> = match (value.claim_name.as_str(), value.claim_path.as_slice()) {
        ("", []) => return Err(Bad::field("claim_name", "empty")),
        ("", path) => path.iter().map(|segment| segment.key.as_str().into()).collect(),
        // Dots go into nested claims.
        (name, []) => name.split('.').map(Name::from).collect(),
        _ => return Err(Bad::field("claim_path", "claim_name is set too")),
    };
    Ok((path, header))
}

fn keys(value: &pb::JwtProvider) -> Result<Keys, Bad> {
    use pb::jwt_provider::JwksSourceSpecifier as S;
    match &value.jwks_source_specifier {
        Some(S::LocalJwks(source)) => {
            let text = filter::inline(source).at("local_jwks")?;
            let keys = KeySet::parse(text.as_bytes()).map_err(|e| Bad::field("local_jwks", e.text()))?;
            Ok(Keys::Local(Arc::new(keys)))
        }
        Some(S::RemoteJwks(remote)) => Ok(Keys::Remote(Arc::new(self::remote(remote).at("remote_jwks")?))),
        None => Err(Bad::new("no key set")),
    }
}

fn remote(value: &pb::RemoteJwks) -> Result<Remote, Bad> {
    // Keys are fetched when the first request needs them, and fetched again after a failure by the next one.
    only!(value, pb::RemoteJwks { http_uri, cache_duration, async_fetch } refuse { retry_policy });
    let uri = value.http_uri.as_ref().ok_or_else(|| Bad::field("http_uri", "missing"))?;
    let (cluster, host, path, timeout) = http_uri(uri).at("http_uri")?;
    let cache = positive("cache_duration", &value.cache_duration, Duration::from_secs(600))?;
    Ok(Remote { cluster, host, path, timeout, cache })
}

/// Cluster, host, path with query, time limit.
pub fn http_uri(value: &core::HttpUri) -> Result<(Name, Name, Name, Duration), Bad> {
    let Some(core::http_uri::HttpUpstreamType::Cluster(cluster)) = &value.http_upstream_type else {
        return Err(Bad::field("cluster", "missing"));
    };
    let rest = value.uri.split_once("://").map_or(value.uri.as_str(), |(_, rest)| rest);
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (host, path) = rest.split_at_checked(at).unwrap_or((rest, ""));
    if cluster.is_empty() || host.is_empty() {
        return Err(Bad::new("cluster or host is empty"));
    }
    let timeout = value.timeout.as_ref().ok_or_else(|| Bad::field("timeout", "missing"))?;
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok((cluster.as_str().into(), host.into(), path.into(), duration(timeout).at("timeout")?))
}

fn requirement(value: &pb::JwtRequirement, providers: &[Provider], depth: usize) -> Result<Requirement, Bad> {
    use pb::jwt_requirement::RequiresType as R;
    if depth > DEPTH {
        return Err(Bad::new("nested too deeply"));
    }
    let index = |name: &str| {
        let found = providers.iter().position(|p| *p.name == *name);
        found.ok_or_else(|| Bad::new(format_args!("no provider \"{name}\"")))
    };
    let list = |list: &[pb::JwtRequirement]| {
        each("requirements", list, |r| requirement(r, providers, depth.saturating_add(1)))
    };
    Ok(match &value.requires_type {
        Some(R::ProviderName(name)) => Requirement::Provider(index(name).at("provider_name")?),
        Some(R::ProviderAndAudiences(with)) => Requirement::Audiences(
            index(&with.provider_name).at("provider_and_audiences.provider_name")?,
            audiences(&with.audiences),
        ),
        Some(R::RequiresAny(any)) => Requirement::Any(list(&any.requirements).at("requires_any")?),
        Some(R::RequiresAll(all)) => Requirement::All(list(&all.requirements).at("requires_all")?),
        Some(R::AllowMissingOrFailed(_)) => Requirement::AllowMissingOrFailed,
        Some(R::AllowMissing(_)) => Requirement::AllowMissing,
        Some(R::ExtractOnlyWithoutValidation(_)) => return Err(Bad::unsupported("extract_only_without_validation")),
        None => return Err(Bad::new("empty requirement")),
    })
}
