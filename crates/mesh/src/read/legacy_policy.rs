//! `Policy` and `MeshPolicy` of `authentication.istio.io/v1alpha1` (semantics §14).
//!
//! Invariant: what is written there is said in today's words: a mode, rules for tokens, and a rule that denies requests without a token. A
//! condition that cannot be said makes the token needed more often, never less.

use std::sync::Arc;

use carrick_api::{
    LegacyPolicy,
    istio::{
        legacy_policy::{LegacyJwt, LegacyMtlsMode, PathMatch, TriggerRule},
        request_authentication::{JwtHeader, JwtRule as NewRule},
    },
};
use carrick_base::{Diagnostic, FieldPath, Severity};

use super::{finding, origin, request_authentication};
use crate::{
    codes,
    model::{
        MtlsMode, Origin,
        authz::{Attribute, AuthzRule, Term, Text, Value},
        legacy::{Legacy, LegacyPort, LegacyTarget},
    },
};

pub(crate) fn read(
    kind: &'static str,
    from: &LegacyPolicy,
    keys: &request_authentication::FetchedKeys,
    found: &mut Vec<Diagnostic>,
) -> Legacy {
    let origin = origin(kind, &from.metadata);
    let spec = &from.spec;
    let peer_path = FieldPath::new("spec.peers");
    for (i, peer) in spec.peers.iter().enumerate() {
        if peer.jwt.is_some() {
            let message = "tokens of peers are not looked at; use origins";
            let field = peer_path.index(i).field("jwt");
            found.push(finding(&origin, codes::UNSUPPORTED, Severity::Warning, field.as_str(), message));
        }
    }
    // A peer method without content is taken for `mtls`: the other choice would be plaintext.
    let mtls =
        spec.peers.iter().find(|p| p.mtls.is_some() || p.jwt.is_none()).map(|p| p.mtls.clone().unwrap_or_default());
    let mode = match mtls {
        None => MtlsMode::Disable,
        Some(mtls) if mtls.allow_tls || mtls.mode == LegacyMtlsMode::Permissive || spec.peer_is_optional => {
            MtlsMode::Permissive
        }
        Some(_) => MtlsMode::Strict,
    };
    let path = FieldPath::new("spec.origins");
    let tokens: Vec<_> = spec.origins.iter().filter_map(|o| o.jwt.as_ref()).collect();
    let rules = tokens.iter().enumerate().map(|(i, jwt)| {
        let at = path.index(i).field("jwt");
        Arc::new(request_authentication::rule(&today(jwt), &origin, &at, keys, found))
    });
    let jwt: Vec<_> = rules.collect();
    let demand = (!tokens.is_empty() && !spec.origin_is_optional).then(|| demand(&tokens, &origin, found));
    let targets = spec.targets.iter().map(|target| LegacyTarget {
        service: target.name.as_str().into(),
        ports: target
            .ports
            .iter()
            .map(|p| match u16::try_from(p.number).ok().filter(|n| *n > 0) {
                Some(number) => LegacyPort::Number(number),
                None => LegacyPort::Name(p.name.as_str().into()),
            })
            .collect(),
    });
    Legacy { targets: targets.collect(), mode, jwt, demand, origin }
}

fn today(from: &LegacyJwt) -> NewRule {
    NewRule {
        issuer: from.issuer.clone(),
        audiences: from.audiences.clone(),
        jwks_uri: from.jwks_uri.clone(),
        jwks: from.jwks.clone(),
        from_headers: from
            .jwt_headers
            .iter()
            .map(|name| JwtHeader { name: name.clone(), ..JwtHeader::default() })
            .collect(),
        from_params: from.jwt_params.clone(),
        forward_original_token: true,
        ..NewRule::default()
    }
}

/// What is denied without a token: everything, or what a trigger of any origin says.
fn demand(tokens: &[&LegacyJwt], origin: &Origin, found: &mut Vec<Diagnostic>) -> AuthzRule {
    let anybody = Value::Subject { issuer: Text::Present, subject: Text::Present };
    let nobody = Term { attribute: Attribute::RequestPrincipal, any: Vec::new(), none: vec![anybody] };
    let always = tokens.iter().any(|t| t.trigger_rules.is_empty());
    let triggers = tokens.iter().filter(|_| !always).flat_map(|t| &t.trigger_rules);
    AuthzRule {
        index: 0,
        from: vec![vec![nobody]],
        to: triggers.map(|t| trigger(t, origin, found)).collect(),
        when: Vec::new(),
    }
}

fn trigger(from: &TriggerRule, origin: &Origin, found: &mut Vec<Diagnostic>) -> Vec<Term> {
    let included: Vec<_> = from.included_paths.iter().map(text).collect();
    let excluded: Vec<_> = from.excluded_paths.iter().map(text).collect();
    if included.iter().chain(&excluded).any(Option::is_none) {
        let message = "paths by regular expression are not read; the token is needed where they would excuse from it";
        found.push(finding(origin, codes::UNSUPPORTED, Severity::Warning, "spec.origins", message));
    }
    let any = if included.iter().all(Option::is_some) { included.into_iter().flatten().collect() } else { Vec::new() };
    let none: Vec<_> = excluded.into_iter().flatten().collect();
    if any.is_empty() && none.is_empty() {
        return Vec::new();
    }
    vec![Term { attribute: Attribute::Path, any, none }]
}

fn text(from: &PathMatch) -> Option<Value> {
    let some = |text: &str, form: fn(Arc<str>) -> Text| if text.is_empty() { Text::Present } else { form(text.into()) };
    let text = if let Some(exact) = &from.exact {
        Text::Exact(exact.as_str().into())
    } else if let Some(prefix) = &from.prefix {
        some(prefix, Text::Prefix)
    } else {
        some(from.suffix.as_ref()?, Text::Suffix)
    };
    Some(Value::Text(text))
}
