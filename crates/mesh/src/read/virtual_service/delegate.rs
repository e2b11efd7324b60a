//! Delegation: a root's rule gives way to the rules of another VirtualService, each narrowed to what the root matches (semantics §10.8).
//!
//! Invariant: a delegate never gets a request that its root's match does not let through; a pair of matches that contradict each other
//! gives no rule. One level only.

use std::collections::{BTreeMap, HashMap};

use carrick_api::istio::virtual_service::{HttpMatch, HttpRoute, StringMatch, VirtualServiceSpec};
use carrick_base::{Diagnostic, HostPattern, NamespacedName, Severity};

use super::super::{export_to, finding};
use crate::{Settings, codes, model::Origin};

/// The spec with full names, as the object's own namespace completes them.
pub(super) fn resolved(from: &carrick_api::VirtualService, settings: &Settings) -> VirtualServiceSpec {
    let namespace = &from.metadata.namespace;
    let full = |host: &mut String| {
        *host = HostPattern::resolve(host, namespace, &settings.domain_suffix).to_string();
    };
    // Gateways are completed here too: a delegate's are those of its own namespace.
    let place = |gateway: &mut String| {
        if !gateway.contains(['/', '.']) && *gateway != "mesh" {
            *gateway = format!("{namespace}/{gateway}");
        } else if let Some(name) = gateway.strip_prefix("./") {
            *gateway = format!("{namespace}/{name}");
        }
    };
    let mut spec = from.spec.clone();
    spec.hosts.iter_mut().for_each(full);
    spec.gateways.iter_mut().for_each(place);
    for route in &mut spec.http {
        let destinations = route.route.iter_mut().filter_map(|d| d.destination.as_mut());
        let mirrors = route.mirrors.iter_mut().filter_map(|m| m.destination.as_mut());
        destinations.chain(mirrors).chain(route.mirror.as_mut()).for_each(|d| full(&mut d.host));
        route.matches.iter_mut().flat_map(|m| m.gateways.iter_mut()).for_each(place);
        if let Some(delegate) = route.delegate.as_mut().filter(|d| d.namespace.is_empty()) {
            delegate.namespace.clone_from(namespace);
        }
    }
    let tls = spec.tls.iter_mut().flat_map(|r| r.route.iter_mut());
    let tcp = spec.tcp.iter_mut().flat_map(|r| r.route.iter_mut());
    tls.chain(tcp).filter_map(|d| d.destination.as_mut()).for_each(|d| full(&mut d.host));
    spec.tls.iter_mut().flat_map(|r| r.matches.iter_mut()).flat_map(|m| m.gateways.iter_mut()).for_each(place);
    spec.tcp.iter_mut().flat_map(|r| r.matches.iter_mut()).flat_map(|m| m.gateways.iter_mut()).for_each(place);
    spec
}

/// A root with its delegates' rules in place of its delegating ones.
pub(super) fn merged(
    origin: &Origin,
    root: &VirtualServiceSpec,
    delegates: &HashMap<NamespacedName, &(Origin, VirtualServiceSpec)>,
    settings: &Settings,
    found: &mut Vec<Diagnostic>,
) -> VirtualServiceSpec {
    let mut out = VirtualServiceSpec { http: Vec::new(), ..root.clone() };
    for (index, route) in root.http.iter().enumerate() {
        let Some(to) = &route.delegate else {
            out.http.push(route.clone());
            continue;
        };
        let mut report = |message: String| {
            let field = format!("spec.http[{index}].delegate");
            found.push(finding(origin, codes::UNRESOLVED, Severity::Error, &field, message));
        };
        let name = NamespacedName::new(&to.namespace, &to.name);
        let Some((of, delegate)) = delegates.get(&name) else {
            report(format!("there is no VirtualService {name} without hosts; the rule has no effect"));
            continue;
        };
        let tokens = delegate.export_to.iter().map(String::as_str);
        if !export_to(tokens, &settings.virtual_service_export_to, of.namespace()).allows(origin.namespace()) {
            report(format!("VirtualService {name} is not exported to this namespace; the rule has no effect"));
            continue;
        }
        for (at, rule) in delegate.http.iter().enumerate() {
            if rule.delegate.is_some() {
                report(format!("rule {at} of {name} delegates in turn, which is one level too many"));
                continue;
            }
            match rule_of(route, rule) {
                Some(rule) => out.http.push(rule),
                None => report(format!("rule {at} of {name} matches nothing that this rule does; it has no effect")),
            }
        }
    }
    out
}

fn rule_of(root: &HttpRoute, delegate: &HttpRoute) -> Option<HttpRoute> {
    let mut out = delegate.clone();
    out.matches = matches(&root.matches, &delegate.matches)?;
    out.name = joined(&root.name, &delegate.name);
    out.rewrite = out.rewrite.or_else(|| root.rewrite.clone());
    out.timeout = out.timeout.or(root.timeout);
    out.retries = out.retries.or_else(|| root.retries.clone());
    out.fault = out.fault.or_else(|| root.fault.clone());
    if out.mirror.is_none() && out.mirrors.is_empty() {
        out.mirror.clone_from(&root.mirror);
        out.mirrors.clone_from(&root.mirrors);
    }
    out.mirror_percent = out.mirror_percent.or(root.mirror_percent);
    out.mirror_percentage = out.mirror_percentage.or(root.mirror_percentage);
    out.cors_policy = out.cors_policy.or_else(|| root.cors_policy.clone());
    out.headers = out.headers.or_else(|| root.headers.clone());
    if out.route.is_empty() && out.redirect.is_none() && out.direct_response.is_none() {
        out.direct_response.clone_from(&root.direct_response);
    }
    Some(out)
}

fn joined(root: &str, own: &str) -> String {
    match (root.is_empty(), own.is_empty()) {
        (_, true) => root.to_owned(),
        (true, _) => own.to_owned(),
        _ => format!("{root}-{own}"),
    }
}

/// Every pair that does not contradict; `None` when one of the delegate's finds no partner.
fn matches(root: &[HttpMatch], own: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() {
        return Some(own.to_vec());
    }
    if own.is_empty() {
        return Some(root.to_vec());
    }
    let mut out = Vec::new();
    for leaf in own {
        let before = out.len();
        out.extend(root.iter().filter(|r| !contradict(r, leaf)).map(|r| both(r, leaf)));
        if out.len() == before {
            return None;
        }
    }
    Some(out)
}

fn both(root: &HttpMatch, leaf: &HttpMatch) -> HttpMatch {
    let text = |root: &str, own: &str| if own.is_empty() { root.to_owned() } else { own.to_owned() };
    HttpMatch {
        name: joined(&root.name, &leaf.name),
        uri: leaf.uri.clone().or_else(|| root.uri.clone()),
        scheme: leaf.scheme.clone().or_else(|| root.scheme.clone()),
        method: leaf.method.clone().or_else(|| root.method.clone()),
        authority: leaf.authority.clone().or_else(|| root.authority.clone()),
        headers: union(&root.headers, &leaf.headers),
        without_headers: union(&root.without_headers, &leaf.without_headers),
        query_params: union(&root.query_params, &leaf.query_params),
        ignore_uri_case: root.ignore_uri_case || leaf.ignore_uri_case,
        port: if leaf.port == 0 { root.port } else { leaf.port },
        source_labels: union(&root.source_labels, &leaf.source_labels),
        source_namespace: text(&root.source_namespace, &leaf.source_namespace),
        gateways: if leaf.gateways.is_empty() { root.gateways.clone() } else { leaf.gateways.clone() },
        stat_prefix: text(&root.stat_prefix, &leaf.stat_prefix),
    }
}

fn union<V: Clone>(root: &BTreeMap<String, V>, own: &BTreeMap<String, V>) -> BTreeMap<String, V> {
    let mut all = root.clone();
    all.extend(own.iter().map(|(key, value)| (key.clone(), value.clone())));
    all
}

fn contradict(root: &HttpMatch, leaf: &HttpMatch) -> bool {
    let texts = [
        (&root.uri, &leaf.uri),
        (&root.scheme, &leaf.scheme),
        (&root.method, &leaf.method),
        (&root.authority, &leaf.authority),
    ];
    let maps = [
        (&root.headers, &leaf.headers),
        (&root.without_headers, &leaf.without_headers),
        (&root.query_params, &leaf.query_params),
    ];
    let differ = |root: &str, own: &str| !root.is_empty() && !own.is_empty() && root != own;
    texts.into_iter().any(|(r, l)| matches!((r, l), (Some(r), Some(l)) if !within(r, l)))
        || maps.into_iter().any(|(r, l)| l.iter().any(|(key, l)| r.get(key).is_some_and(|r| !within(r, l))))
        || (root.uri.is_some() && leaf.uri.is_some() && root.ignore_uri_case != leaf.ignore_uri_case)
        || (root.port != 0 && leaf.port != 0 && root.port != leaf.port)
        || differ(&root.source_namespace, &leaf.source_namespace)
        || leaf.source_labels.iter().any(|(key, own)| root.source_labels.get(key).is_some_and(|r| r != own))
        || (!root.gateways.is_empty() && leaf.gateways.iter().any(|g| !root.gateways.contains(g)))
}

/// Whether everything that `leaf` matches is surely matched by `root`. Patterns are never compared.
fn within(root: &StringMatch, leaf: &StringMatch) -> bool {
    if root.regex.is_some() || leaf.regex.is_some() {
        return false;
    }
    match (&root.exact, &root.prefix, &leaf.exact, &leaf.prefix) {
        (Some(root), _, Some(leaf), _) => root == leaf,
        (None, Some(root), Some(leaf), _) | (None, Some(root), None, Some(leaf)) => leaf.starts_with(root.as_str()),
        // The root only asks for presence, and so may the leaf.
        (None, None, _, _) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(exact: Option<&str>, prefix: Option<&str>, regex: Option<&str>) -> StringMatch {
        StringMatch { exact: exact.map(Into::into), prefix: prefix.map(Into::into), regex: regex.map(Into::into) }
    }

    #[test]
    fn a_delegate_may_only_narrow() {
        for (root, leaf, fits) in [
            (uri(None, Some("/a"), None), uri(None, Some("/a/b"), None), true),
            (uri(None, Some("/a/b"), None), uri(None, Some("/a"), None), false),
            (uri(None, Some("/a"), None), uri(Some("/a/x"), None, None), true),
            (uri(Some("/a"), None, None), uri(Some("/a"), None, None), true),
            (uri(Some("/a"), None, None), uri(Some("/b"), None, None), false),
            (uri(Some("/a"), None, None), uri(None, Some("/a"), None), false),
            (uri(None, Some("/"), None), uri(None, None, Some("/a.*")), false),
        ] {
            assert_eq!(within(&root, &leaf), fits, "{root:?} {leaf:?}");
        }
    }

    #[test]
    fn every_match_of_the_delegate_needs_a_partner() {
        let of = |prefix: &str| HttpMatch { uri: Some(uri(None, Some(prefix), None)), ..HttpMatch::default() };
        let root = [of("/a"), of("/b")];
        let got = matches(&root, &[of("/a/x"), of("/b/y")]).expect("both fit");
        assert_eq!(got, [of("/a/x"), of("/b/y")]);
        assert_eq!(matches(&root, &[of("/a/x"), of("/c")]), None);
        assert_eq!(matches(&root, &[]), Some(root.to_vec()));
        let port = HttpMatch { port: 80, ..HttpMatch::default() };
        assert_eq!(matches(&[port], &[HttpMatch { port: 81, ..HttpMatch::default() }]), None);
    }
}
