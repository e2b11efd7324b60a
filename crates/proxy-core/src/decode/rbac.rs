//! RBAC filters for HTTP and bytes, and their rules.
//!
//! Invariant: a condition that is not understood refuses the whole filter; none is dropped.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::rbac::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3 as network;
use envoy_types::pb::envoy::extensions::path::r#match::uri_template::v3 as template;
use envoy_types::pb::envoy::r#type::matcher::v3 as matchers;

use super::bad::{At, Bad, decode, each, given, only, type_name};
use super::{basic, matcher};
use crate::model::Name;
use crate::model::matcher::StringMatcher;
use crate::model::rbac::{Action, Condition, Policy, RbacFilter, Rules};
use crate::template::PathTemplate;

/// Conditions are nested at most so deep.
const DEPTH: usize = 32;

/// The HTTP filter.
pub fn http(value: &http::Rbac) -> Result<RbacFilter, Bad> {
    only!(value, http::Rbac {
        rules, rules_stat_prefix, shadow_rules, shadow_rules_stat_prefix,
    } refuse { matcher, shadow_matcher, track_per_rule_stats });
    build("rbac.", &value.rules, &value.shadow_rules, &value.rules_stat_prefix, &value.shadow_rules_stat_prefix)
}

/// The network filter; its counters stand below its own prefix.
pub fn network(value: &network::Rbac) -> Result<RbacFilter, Bad> {
    only!(value, network::Rbac {
        rules, shadow_rules, shadow_rules_stat_prefix, stat_prefix, enforcement_type,
    } refuse { matcher, shadow_matcher, delay_deny });
    // Policies ask nothing that changes while a connection lives, so deciding again would decide the same.
    if network::rbac::EnforcementType::try_from(value.enforcement_type).is_err() {
        return Err(Bad::field("enforcement_type", "unknown value"));
    }
    let scope = format!("{}rbac.", value.stat_prefix);
    build(&scope, &value.rules, &value.shadow_rules, "", &value.shadow_rules_stat_prefix)
}

fn build(
    scope: &str,
    enforced: &Option<pb::Rbac>,
    shadow: &Option<pb::Rbac>,
    prefix: &str,
    shadow_prefix: &str,
) -> Result<RbacFilter, Bad> {
    let key = |prefix: &str, name: &str| -> Name { format!("{prefix}{name}").into() };
    let counter = |prefix: &str, name: &str| -> Name { format!("{scope}{prefix}{name}").into() };
    Ok(RbacFilter {
        rules: given("rules", enforced, rules)?,
        shadow: given("shadow_rules", shadow, rules)?,
        keys: [
            key(prefix, "enforced_effective_policy_id"),
            key(prefix, "enforced_engine_result"),
            key(shadow_prefix, "shadow_effective_policy_id"),
            key(shadow_prefix, "shadow_engine_result"),
        ],
        results: ["allowed".into(), "denied".into()],
        counters: [
            counter(prefix, "allowed"),
            counter(prefix, "denied"),
            counter(shadow_prefix, "shadow_allowed"),
            counter(shadow_prefix, "shadow_denied"),
        ],
    })
}

fn rules(value: &pb::Rbac) -> Result<Rules, Bad> {
    only!(value, pb::Rbac { action, policies } refuse { audit_logging_options });
    let action = match pb::rbac::Action::try_from(value.action) {
        Ok(pb::rbac::Action::Allow) => Action::Allow,
        Ok(pb::rbac::Action::Deny) => Action::Deny,
        Ok(pb::rbac::Action::Log) => Action::Log,
        Err(_) => return Err(Bad::field("action", "unknown value")),
    };
    let mut policies = Vec::with_capacity(value.policies.len());
    for (name, policy) in &value.policies {
        policies.push(one_policy(name, policy).at(&format!("policies[\"{name}\"]"))?);
    }
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Rules { action, policies })
}

fn one_policy(name: &str, value: &pb::Policy) -> Result<Policy, Bad> {
    only!(value, pb::Policy { permissions, principals } refuse { condition, checked_condition, cel_config });
    if value.permissions.is_empty() || value.principals.is_empty() {
        return Err(Bad::new("a policy needs permissions and principals"));
    }
    Ok(Policy {
        name: name.into(),
        permissions: each("permissions", &value.permissions, |p| permission(p, 0))?,
        principals: each("principals", &value.principals, |p| principal(p, 0))?,
    })
}

fn deeper(depth: usize) -> Result<usize, Bad> {
    if depth >= DEPTH { Err(Bad::new("nested too deeply")) } else { Ok(depth.saturating_add(1)) }
}

fn some<T>(list: &[T]) -> Result<&[T], Bad> {
    if list.is_empty() { Err(Bad::new("empty")) } else { Ok(list) }
}

fn any(value: bool) -> Result<Condition, Bad> {
    if value { Ok(Condition::Any) } else { Err(Bad::field("any", "must be true")) }
}

/// Headers and paths are asked for on byte streams too, and are never there (as in Envoy).
fn permission(value: &pb::Permission, depth: usize) -> Result<Condition, Bad> {
    use pb::permission::Rule as R;
    let below = deeper(depth)?;
    let set = |set: &pb::permission::Set| each("rules", some(&set.rules)?, |p| permission(p, below));
    Ok(match value.rule.as_ref().ok_or_else(|| Bad::new("empty permission"))? {
        R::AndRules(all) => Condition::And(set(all).at("and_rules")?),
        R::OrRules(any) => Condition::Or(set(any).at("or_rules")?),
        R::Any(value) => any(*value)?,
        R::Header(header) => Condition::Header(matcher::header(header).at("header")?),
        R::UrlPath(path) => Condition::Path(url_path(path).at("url_path")?),
        R::DestinationIp(range) => Condition::DestinationIp(basic::cidr(range).at("destination_ip")?),
        R::DestinationPort(port) => {
            let port = u32::from(basic::port(*port).at("destination_port")?);
            Condition::DestinationPort(port, port.saturating_add(1))
        }
        R::DestinationPortRange(range) => {
            let bound = |n: i32| u32::try_from(n).map_err(|_| Bad::field("destination_port_range", "out of range"));
            let (start, end) = (bound(range.start)?, bound(range.end)?);
            if start >= end || end > 65536 {
                return Err(Bad::field("destination_port_range", "out of range"));
            }
            Condition::DestinationPort(start, end)
        }
        R::Metadata(m) => Condition::Metadata(matcher::metadata(m).at("metadata")?),
        R::NotRule(rule) => Condition::Not(Box::new(permission(rule, below).at("not_rule")?)),
        R::RequestedServerName(name) => Condition::ServerName(matcher::string(name).at("requested_server_name")?),
        R::UriTemplate(extension) => uri_template(extension).at("uri_template")?,
        R::SourcedMetadata(m) => sourced(m).at("sourced_metadata")?,
        R::Matcher(_) => return Err(Bad::unsupported("matcher")),
    })
}

fn principal(value: &pb::Principal, depth: usize) -> Result<Condition, Bad> {
    use pb::principal::Identifier as I;
    let below = deeper(depth)?;
    let set = |set: &pb::principal::Set| each("ids", some(&set.ids)?, |p| principal(p, below));
    Ok(match value.identifier.as_ref().ok_or_else(|| Bad::new("empty principal"))? {
        I::AndIds(all) => Condition::And(set(all).at("and_ids")?),
        I::OrIds(any) => Condition::Or(set(any).at("or_ids")?),
        I::Any(value) => any(*value)?,
        I::Authenticated(a) => {
            let name = given("principal_name", &a.principal_name, matcher::string).at("authenticated")?;
            Condition::Authenticated(name)
        }
        I::SourceIp(range) => Condition::SourceIp(basic::cidr(range).at("source_ip")?),
        I::DirectRemoteIp(range) => Condition::DirectRemoteIp(basic::cidr(range).at("direct_remote_ip")?),
        I::RemoteIp(range) => Condition::RemoteIp(basic::cidr(range).at("remote_ip")?),
        I::Header(header) => Condition::Header(matcher::header(header).at("header")?),
        I::UrlPath(path) => Condition::Path(url_path(path).at("url_path")?),
        I::Metadata(m) => Condition::Metadata(matcher::metadata(m).at("metadata")?),
        I::FilterState(state) => filter_state(state).at("filter_state")?,
        I::NotId(id) => Condition::Not(Box::new(principal(id, below).at("not_id")?)),
        I::SourcedMetadata(m) => sourced(m).at("sourced_metadata")?,
        I::Custom(_) => return Err(Bad::unsupported("custom")),
    })
}

/// `PathMatcher`.
pub fn url_path(value: &matchers::PathMatcher) -> Result<StringMatcher, Bad> {
    match &value.rule {
        Some(matchers::path_matcher::Rule::Path(path)) => matcher::string(path).at("path"),
        None => Err(Bad::new("empty")),
    }
}

fn filter_state(value: &matchers::FilterStateMatcher) -> Result<Condition, Bad> {
    match &value.matcher {
        Some(matchers::filter_state_matcher::Matcher::StringMatch(text)) => {
            Ok(Condition::FilterState(value.key.as_str().into(), matcher::string(text).at("string_match")?))
        }
        Some(matchers::filter_state_matcher::Matcher::AddressMatch(_)) => Err(Bad::unsupported("address_match")),
        None => Err(Bad::new("empty")),
    }
}

fn sourced(value: &pb::SourcedMetadata) -> Result<Condition, Bad> {
    let inner = value.metadata_matcher.as_ref().ok_or_else(|| Bad::field("metadata_matcher", "missing"))?;
    let inner = matcher::metadata(inner).at("metadata_matcher")?;
    match pb::MetadataSource::try_from(value.metadata_source) {
        Ok(pb::MetadataSource::Dynamic) => Ok(Condition::Metadata(inner)),
        Ok(pb::MetadataSource::Route) => Ok(Condition::RouteMetadata(inner)),
        Err(_) => Err(Bad::field("metadata_source", "unknown value")),
    }
}

fn uri_template(extension: &core::TypedExtensionConfig) -> Result<Condition, Bad> {
    let any = extension.typed_config.as_ref().ok_or_else(|| Bad::field("typed_config", "missing"))?;
    if type_name(any) != "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig" {
        return Err(Bad::field("typed_config", format_args!("unsupported matcher {}", type_name(any))));
    }
    let config: template::UriTemplateMatchConfig = decode(any).at("typed_config")?;
    let template = PathTemplate::parse(&config.path_template);
    template.map(Condition::Template).map_err(|e| Bad::field("typed_config.path_template", e))
}
