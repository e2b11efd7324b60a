//! Tokens: one provider an issuer, and a requirement that refuses bad tokens and lets requests without any pass (semantics §13.5, §13.6).
//!
//! Invariant: keys are always inline, so that a proxy never has to reach a key server; all payloads are left under one key.

use std::sync::Arc;

use carrick_mesh::model::jwt::JwtRule;
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{DataSource, data_source::Specifier},
            route::v3::{RouteMatch, route_match::PathSpecifier},
        },
        extensions::filters::{
            http::jwt_authn::v3::{
                JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement, JwtRequirementAndList, JwtRequirementOrList,
                RequirementRule,
                jwt_provider::{JwksSourceSpecifier, NormalizePayload},
                jwt_requirement::RequiresType,
                requirement_rule::RequirementType,
            },
            network::http_connection_manager::v3::HttpFilter,
        },
    },
    google::protobuf::Empty,
};

use super::{text::JWT_PAYLOAD, wire::JwtAuthentication};
use crate::wire::{any_as, http_filter};

/// The filter; none without rules.
pub fn filter(rules: &[Arc<JwtRule>]) -> Option<HttpFilter> {
    if rules.is_empty() {
        return None;
    }
    let name = |index: usize| format!("origins-{index}");
    let message = JwtAuthentication {
        providers: rules.iter().enumerate().map(|(i, rule)| (name(i), provider(rule))).collect(),
        rules: vec![RequirementRule {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                ..RouteMatch::default()
            }),
            requirement_type: Some(RequirementType::Requires(requirement((0..rules.len()).map(name).collect()))),
        }],
        bypass_cors_preflight: true,
    };
    let config = any_as("envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", &message);
    Some(http_filter("envoy.filters.http.jwt_authn", config))
}

fn provider(rule: &JwtRule) -> JwtProvider {
    let texts = |all: &[Arc<str>]| all.iter().map(ToString::to_string).collect();
    let keys = DataSource { specifier: Some(Specifier::InlineString(rule.jwks.to_string())), ..DataSource::default() };
    JwtProvider {
        issuer: rule.issuer.to_string(),
        audiences: texts(&rule.audiences),
        forward: rule.forward,
        from_headers: rule
            .from_headers
            .iter()
            .map(|(name, prefix)| JwtHeader { name: name.to_string(), value_prefix: prefix.to_string() })
            .collect(),
        from_params: texts(&rule.from_params),
        from_cookies: texts(&rule.from_cookies),
        forward_payload_header: rule.payload_header.to_string(),
        payload_in_metadata: JWT_PAYLOAD.to_owned(),
        // A route may ask for a claim, which is not known before.
        clear_route_cache: true,
        normalize_payload_in_metadata: Some(NormalizePayload { space_delimited_claims: texts(&rule.space_delimited) }),
        claim_to_headers: rule
            .claim_headers
            .iter()
            .map(|(header, claim)| JwtClaimToHeader {
                header_name: header.to_string(),
                claim_name: claim.to_string(),
                ..JwtClaimToHeader::default()
            })
            .collect(),
        jwks_source_specifier: Some(JwksSourceSpecifier::LocalJwks(keys)),
        ..JwtProvider::default()
    }
}

/// One of the providers; or each of those that find a token, so that several tokens can be in one request.
fn requirement(mut names: Vec<String>) -> JwtRequirement {
    let or = |requirements| requires(RequiresType::RequiresAny(JwtRequirementOrList { requirements }));
    let provider = |name: &String| requires(RequiresType::ProviderName(name.clone()));
    let or_none = |name: &String| or(vec![provider(name), requires(RequiresType::AllowMissing(Empty {}))]);
    if names.len() == 1 {
        return names.pop().map(|name| or_none(&name)).unwrap_or_default();
    }
    let each = JwtRequirementAndList { requirements: names.iter().map(or_none).collect() };
    let mut any: Vec<_> = names.iter().map(provider).collect();
    any.push(requires(RequiresType::RequiresAll(each)));
    or(any)
}

fn requires(kind: RequiresType) -> JwtRequirement {
    JwtRequirement { requires_type: Some(kind) }
}
