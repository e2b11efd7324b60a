//! Policies as Envoy's RBAC rules.
//!
//! Invariant: a rule is any of its permissions together with any of its principals, so that each alternative of a rule carries the
//! conditions of its side; a policy without a rule is there, and matches nothing.

use carrick_mesh::model::authz::{Action, Attribute, AuthzPolicy, AuthzRule, Cidr, Term, Text, Value};
use envoy_types::pb::envoy::{
    config::{
        core::v3::CidrRange,
        rbac::v3::{Permission, Principal, SourcedMetadata, permission, principal, rbac},
        route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    },
    extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig,
    r#type::matcher::v3::{MetadataMatcher, PathMatcher, path_matcher},
};

use super::{
    text,
    wire::{Policy, Rbac},
};
use crate::wire as words;

/// What the rules are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Requests.
    Http,
    /// Connections.
    Tcp,
}

/// The id of a rule.
pub fn name(policy: &AuthzPolicy, rule: usize) -> String {
    let name = &policy.origin.name;
    format!("ns[{}]-policy[{}]-rule[{rule}]", name.namespace, name.name)
}

/// The id of a rule that an external authorizer is asked for; its filter looks for the beginning.
pub fn custom_name(policy: &AuthzPolicy, rule: usize) -> String {
    format!("{}-{}", super::ext_authz::RULE_PREFIX, name(policy, rule))
}

/// The id of a rule that denies because no authorizer can be asked.
pub fn refused_name(policy: &AuthzPolicy, rule: usize) -> String {
    format!("{}-deny-due-to-bad-CUSTOM-action", name(policy, rule))
}

/// The rules of policies of one action.
pub fn rules<'a>(
    policies: impl Iterator<Item = &'a AuthzPolicy>,
    action: Action,
    kind: Kind,
    name: fn(&AuthzPolicy, usize) -> String,
) -> Rbac {
    let action_code = match action {
        Action::Allow => rbac::Action::Allow,
        Action::Deny | Action::Custom => rbac::Action::Deny,
        Action::Audit => rbac::Action::Log,
    };
    let mut out = Rbac { action: action_code.into(), ..Rbac::default() };
    for policy in policies {
        let mut some = false;
        for rule in &policy.rules {
            let rule = match kind {
                Kind::Http => Some(rule.clone()),
                Kind::Tcp => rule.for_tcp(action),
            };
            if let Some(rule) = rule {
                out.policies.insert(name(policy, rule.index), one(&rule));
                some = true;
            }
        }
        if !some {
            out.policies.insert(name(policy, 0), never());
        }
    }
    out
}

fn never() -> Policy {
    Policy {
        permissions: vec![permission(permission::Rule::NotRule(Box::new(any_permission())))],
        principals: vec![principal(principal::Identifier::NotId(Box::new(any_principal())))],
    }
}

fn one(rule: &AuthzRule) -> Policy {
    let of_peer = |t: &&Term| t.attribute.is_source() || matches!(t.attribute, Attribute::Header(_));
    let peer_conditions: Vec<_> = rule.when.iter().filter(of_peer).collect();
    let other_conditions: Vec<_> = rule.when.iter().filter(|t| !of_peer(t)).collect();
    let anything = [Vec::new()];
    let from = if rule.from.is_empty() { &anything[..] } else { &rule.from };
    let to = if rule.to.is_empty() { &anything[..] } else { &rule.to };
    Policy {
        permissions: to
            .iter()
            .map(|terms| all_permissions(terms.iter().chain(other_conditions.iter().copied())))
            .collect(),
        principals: from
            .iter()
            .map(|terms| all_principals(terms.iter().chain(peer_conditions.iter().copied())))
            .collect(),
    }
}

fn permission(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn any_permission() -> Permission {
    permission(permission::Rule::Any(true))
}

fn all_permissions<'a>(terms: impl Iterator<Item = &'a Term>) -> Permission {
    use permission::{Rule, Set};
    let or = |values: &[Value], attribute: &Attribute| {
        let rules = values.iter().filter_map(|v| permission_of(attribute, v)).collect();
        permission(Rule::OrRules(Set { rules }))
    };
    let mut rules = Vec::new();
    for term in terms {
        if !term.any.is_empty() {
            rules.push(or(&term.any, &term.attribute));
        }
        if !term.none.is_empty() {
            rules.push(permission(Rule::NotRule(Box::new(or(&term.none, &term.attribute)))));
        }
    }
    if rules.is_empty() {
        rules.push(any_permission());
    }
    permission(Rule::AndRules(Set { rules }))
}

fn permission_of(attribute: &Attribute, value: &Value) -> Option<Permission> {
    use permission::Rule;
    let rule = match (attribute, value) {
        (Attribute::Host, Value::Text(text)) => Rule::Header(header(":authority", text, true)),
        (Attribute::Method, Value::Text(text)) => Rule::Header(header(":method", text, false)),
        (Attribute::Path, Value::Text(text)) => {
            Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(text::matcher(text))) })
        }
        (Attribute::Path, Value::Template(template)) => {
            let path_template = template.replace("{**}", "**").replace("{*}", "*");
            let config = words::any(&UriTemplateMatchConfig { path_template });
            Rule::UriTemplate(words::extension("uri-template", config))
        }
        (Attribute::DestinationIp, Value::Network(range)) => Rule::DestinationIp(cidr(range)),
        (Attribute::DestinationPort, Value::Port(port)) => Rule::DestinationPort(u32::from(*port)),
        (Attribute::Sni, Value::Text(text)) => Rule::RequestedServerName(text::matcher(text)),
        (Attribute::FilterMetadata { filter, key }, Value::Text(text)) => {
            Rule::SourcedMetadata(dynamic(text::metadata(filter, key, text, false)))
        }
        (Attribute::FilterMetadata { filter, key }, Value::Element(text)) => {
            Rule::SourcedMetadata(dynamic(text::metadata(filter, key, text, true)))
        }
        _ => return None,
    };
    Some(permission(rule))
}

fn principal(identifier: principal::Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn any_principal() -> Principal {
    principal(principal::Identifier::Any(true))
}

fn all_principals<'a>(terms: impl Iterator<Item = &'a Term>) -> Principal {
    use principal::{Identifier, Set};
    let or = |values: &[Value], attribute: &Attribute| {
        let ids = values.iter().filter_map(|v| principal_of(attribute, v)).collect();
        principal(Identifier::OrIds(Set { ids }))
    };
    let mut ids = Vec::new();
    for term in terms {
        if !term.any.is_empty() {
            ids.push(or(&term.any, &term.attribute));
        }
        if !term.none.is_empty() {
            ids.push(principal(Identifier::NotId(Box::new(or(&term.none, &term.attribute)))));
        }
    }
    if ids.is_empty() {
        ids.push(any_principal());
    }
    principal(Identifier::AndIds(Set { ids }))
}

fn principal_of(attribute: &Attribute, value: &Value) -> Option<Principal> {
    use principal::{Authenticated, Identifier};
    let peer = |name| Identifier::Authenticated(Authenticated { principal_name: Some(name) });
    let claim = |path: &[&str], text: &Text| Identifier::SourcedMetadata(dynamic(text::claim(path, text)));
    let identifier = match (attribute, value) {
        (Attribute::SourcePrincipal, Value::Text(text)) => peer(text::principal(text)),
        (Attribute::SourceTrustDomain, Value::Text(text)) => peer(text::trust_domain(text)),
        (Attribute::SourceNamespace, Value::Namespace(name)) => peer(text::namespace(name)),
        (Attribute::SourceAccount, Value::Account { namespace, name }) => peer(text::account(namespace, name)),
        (Attribute::SourceIp, Value::Network(range)) => Identifier::DirectRemoteIp(cidr(range)),
        (Attribute::RemoteIp, Value::Network(range)) => Identifier::RemoteIp(cidr(range)),
        (Attribute::RequestPrincipal, Value::Subject { issuer, subject }) => {
            let part = |name, text| principal(Identifier::SourcedMetadata(dynamic(text::text_claim(name, text))));
            Identifier::AndIds(principal::Set { ids: vec![part("iss", issuer), part("sub", subject)] })
        }
        (Attribute::Audiences, Value::Text(text)) => claim(&["aud"], text),
        (Attribute::Presenter, Value::Text(text)) => claim(&["azp"], text),
        (Attribute::Claim(path), Value::Text(text)) => claim(&path.iter().map(|p| &**p).collect::<Vec<_>>(), text),
        (Attribute::Header(name), Value::Text(text)) => Identifier::Header(header(name, text, false)),
        _ => return None,
    };
    Some(principal(identifier))
}

fn header(name: &str, text: &Text, any_case: bool) -> HeaderMatcher {
    let specifier = match text {
        Text::Present => HeaderMatchSpecifier::PresentMatch(true),
        text if any_case => HeaderMatchSpecifier::StringMatch(text::any_case(text)),
        text => HeaderMatchSpecifier::StringMatch(text::matcher(text)),
    };
    HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(specifier), ..HeaderMatcher::default() }
}

fn dynamic(matcher: MetadataMatcher) -> SourcedMetadata {
    SourcedMetadata { metadata_matcher: Some(matcher), ..SourcedMetadata::default() }
}

fn cidr(range: &Cidr) -> CidrRange {
    CidrRange { address_prefix: range.ip.to_string(), prefix_len: words::number(u32::from(range.length)) }
}
