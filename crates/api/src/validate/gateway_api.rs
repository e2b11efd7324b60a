//! Rules of the Gateway API's kinds, those that their CRDs carry beside types.
//!
//! Invariant: a default counts as given: an absent kind is `Service` in a backend, an absent path type `PathPrefix`.

mod limits;

use std::collections::BTreeSet;

use super::{Findings, Node, names};

pub(super) fn check(kind: &str, object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    match kind {
        "Gateway" => {
            listeners(&spec.field("listeners"), kind, findings);
            limits::gateway(&spec, findings);
        }
        "ListenerSet" => listeners(&spec.field("listeners"), kind, findings),
        "HTTPRoute" | "GRPCRoute" | "TLSRoute" | "TCPRoute" | "UDPRoute" => route(kind, &spec, findings),
        "BackendTLSPolicy" => backend_tls(&spec, findings),
        "ReferenceGrant" => limits::grant(&spec, findings),
        "GatewayClass" => limits::class(&spec, findings),
        _ => {}
    }
}

fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && !name.is_empty() && name.split('.').all(names::is_dns_label)
}

/// A host with an optional `*.` before it; no address.
fn hostname(host: &Node<'_>, findings: &mut Findings) {
    let text = host.text();
    let body = text.strip_prefix("*.").unwrap_or(text);
    if !is_subdomain(body) || names::is_ip(text) {
        findings.error(&host.path, format!("{text:?} is not a host name, optionally with a leading \"*.\""));
    }
}

fn port(port: &Node<'_>, findings: &mut Findings) {
    if port.is_set() {
        findings.port_number(port);
    }
}

fn listeners(list: &Node<'_>, kind: &str, findings: &mut Findings) {
    if list.is_empty() && kind == "ListenerSet" {
        findings.error(&list.path, "must have at least 1 item");
    }
    if list.len() > 64 {
        findings.error(&list.path, format!("must have at most 64 items, not {}", list.len()));
    }
    let (mut seen, mut bound) = (BTreeSet::new(), BTreeSet::new());
    for listener in list.items() {
        let (name, protocol, host) = (listener.field("name"), listener.field("protocol"), listener.field("hostname"));
        if !is_subdomain(name.text()) {
            findings.error(&name.path, format!("invalid listener name {:?}", name.text()));
        }
        if !seen.insert(name.text()) {
            findings.error(&name.path, "Listener name must be unique within the Gateway");
        }
        let number = listener.field("port");
        port(&number, findings);
        if number.is_set() && !bound.insert((number.number(), protocol.text(), host.is_set().then(|| host.text()))) {
            findings
                .error(&listener.path, "Combination of port, protocol and hostname must be unique for each listener");
        }
        if !host.text().is_empty() {
            hostname(&host, findings);
            if matches!(protocol.text(), "TCP" | "UDP") {
                findings.error(&host.path, "hostname must not be specified for protocols ['TCP', 'UDP']");
            }
        }
        listener_tls(&listener.field("tls"), protocol.text(), findings);
    }
}

fn listener_tls(tls: &Node<'_>, protocol: &str, findings: &mut Findings) {
    let mode = tls.field("mode").text();
    match protocol {
        "HTTP" | "TCP" | "UDP" if tls.is_set() => {
            findings.error(&tls.path, "tls must not be specified for protocols ['HTTP', 'TCP', 'UDP']");
        }
        "HTTPS" if !matches!(mode, "" | "Terminate") => {
            findings.error(&tls.path.field("mode"), "tls mode must be Terminate for protocol HTTPS");
        }
        "TLS" if !tls.is_set() => {
            findings.error(&tls.path.field("mode"), "tls mode must be set for protocol TLS");
        }
        _ => {}
    }
    let terminates = tls.is_set() && matches!(mode, "" | "Terminate");
    if terminates && tls.field("certificateRefs").is_empty() && tls.field("options").is_empty() {
        findings.error(&tls.path, "certificateRefs or options must be specified when mode is Terminate");
    }
}

fn route(kind: &str, spec: &Node<'_>, findings: &mut Findings) {
    let mut parents = BTreeSet::new();
    for parent in spec.field("parentRefs").items() {
        let part = |field: &str| parent.field(field).text();
        let of_gateway =
            |text: &'static str, given: &str| if given.is_empty() { text.to_owned() } else { given.to_owned() };
        let key = (
            of_gateway("gateway.networking.k8s.io", part("group")),
            of_gateway("Gateway", part("kind")),
            part("name").to_owned(),
            part("namespace").to_owned(),
            part("sectionName").to_owned(),
            parent.field("port").number(),
        );
        if !parents.insert(key) {
            findings.error(
                &parent.path,
                "sectionName or port must be unique when parentRefs includes 2 or more references to the same parent",
            );
        }
        port(&parent.field("port"), findings);
    }
    for host in spec.field("hostnames").items() {
        hostname(&host, findings);
    }
    let rules = spec.field("rules");
    if rules.len() > 16 {
        findings.error(&rules.path, format!("must have at most 16 items, not {}", rules.len()));
    }
    let mut seen = BTreeSet::new();
    for rule in rules.items() {
        let name = rule.field("name");
        if !name.text().is_empty() && !seen.insert(name.text()) {
            findings.error(&name.path, "Rule name must be unique within the route");
        }
        for backend in rule.field("backendRefs").items() {
            self::backend(&backend, findings);
            filters(&backend.field("filters"), findings);
            limits::prefix_changes(&backend.field("filters"), &rule.field("matches"), findings);
        }
        filters(&rule.field("filters"), findings);
        limits::prefix_changes(&rule.field("filters"), &rule.field("matches"), findings);
        limits::rule(&rule, findings);
        if kind == "HTTPRoute" {
            http_rule(&rule, findings);
        }
        for wanted in rule.field("matches").items() {
            let method = wanted.field("method");
            if kind == "GRPCRoute" && method.is_set() && method.set_among(&["service", "method"]).is_empty() {
                findings.error(&method.path, "One or both of 'service' or 'method' must be specified");
            }
            if kind == "GRPCRoute" {
                limits::call(&method, findings);
            }
            for field in ["headers", "queryParams"] {
                unique_names(&wanted.field(field), findings);
                limits::pairs(&wanted.field(field), findings);
            }
        }
    }
}

/// A list keyed by name.
fn unique_names(list: &Node<'_>, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for entry in list.items() {
        let name = entry.field("name");
        if !seen.insert(name.text().to_owned()) {
            findings.error(&name.path, format!("Duplicate value: {:?}", name.text()));
        }
    }
}

fn backend(backend: &Node<'_>, findings: &mut Findings) {
    let kind = backend.field("kind").text();
    let of_service = backend.field("group").text().is_empty() && matches!(kind, "" | "Service");
    if of_service && !backend.field("port").is_set() {
        findings.error(&backend.path.field("port"), "Must have port for Service reference");
    }
    port(&backend.field("port"), findings);
    let weight = backend.field("weight");
    if !(0..=1_000_000).contains(&weight.number()) {
        findings.error(&weight.path, "weight must be between 0 and 1000000");
    }
}

/// Filters: the field that the type names is there, and no other.
fn filters(list: &Node<'_>, findings: &mut Findings) {
    const FIELDS: [(&str, &str); 8] = [
        ("RequestHeaderModifier", "requestHeaderModifier"),
        ("ResponseHeaderModifier", "responseHeaderModifier"),
        ("RequestMirror", "requestMirror"),
        ("RequestRedirect", "requestRedirect"),
        ("URLRewrite", "urlRewrite"),
        ("ExtensionRef", "extensionRef"),
        ("CORS", "cors"),
        ("ExternalAuth", "externalAuth"),
    ];
    let mut seen = BTreeSet::new();
    for filter in list.items() {
        let kind = filter.field("type").text();
        for (name, field) in FIELDS {
            let set = filter.field(field).is_set();
            if set && name != kind {
                findings.error(
                    &filter.path.field(field),
                    format!("filter.{field} must be nil if the filter.type is not {name}"),
                );
            } else if !set && name == kind {
                findings.error(&filter.path, format!("filter.{field} must be specified for {name} filter.type"));
            }
        }
        if !matches!(kind, "RequestMirror" | "ExtensionRef" | "ExternalAuth") && !seen.insert(kind) {
            findings.error(&filter.path, format!("{kind} filter cannot be repeated"));
        }
        limits::filter(&filter, findings);
        let mirror = filter.field("requestMirror");
        if mirror.set_among(&["percent", "fraction"]).len() > 1 {
            findings.error(&mirror.path, "Only one of percent or fraction may be specified in HTTPRequestMirrorFilter");
        }
        for (outer, inner) in [("requestMirror", "backendRef"), ("externalAuth", "backendRef")] {
            let target = filter.field(outer).field(inner);
            if target.is_set() {
                backend(&target, findings);
            }
        }
        for outer in ["requestRedirect", "urlRewrite"] {
            path_change(&filter.field(outer).field("path"), findings);
        }
    }
    if seen.contains("RequestRedirect") && seen.contains("URLRewrite") {
        findings.error(&list.path, "May specify either a redirect or a rewrite, but not both");
    }
}

fn path_change(path: &Node<'_>, findings: &mut Findings) {
    for (kind, field) in [("ReplaceFullPath", "replaceFullPath"), ("ReplacePrefixMatch", "replacePrefixMatch")] {
        let set = path.field(field).is_set();
        let named = path.field("type").text() == kind;
        if path.is_set() && named && !set {
            findings.error(&path.path, format!("{field} must be specified when type is set to '{kind}'"));
        } else if set && !named {
            findings.error(&path.path, format!("type must be '{kind}' when {field} is set"));
        }
    }
}

fn http_rule(rule: &Node<'_>, findings: &mut Findings) {
    for wanted in rule.field("matches").items() {
        let path = wanted.field("path");
        let value = path.field("value");
        if path.field("type").text() != "RegularExpression" && value.is_set() {
            self::path(&value, findings);
        }
    }
    let answers = rule.field("filters").items().iter().any(|f| f.field("type").text() == "RequestRedirect");
    if answers && !rule.field("backendRefs").is_empty() {
        findings.error(
            &rule.path.field("backendRefs"),
            "RequestRedirect filter must not be used together with backendRefs",
        );
    }
    let timeouts = rule.field("timeouts");
    let (whole, once) = (timeouts.field("request").duration(), timeouts.field("backendRequest").duration());
    if let (Some(whole), Some(once)) = (whole, once)
        && !whole.get().is_zero()
        && once > whole
    {
        findings.error(&timeouts.path, "backendRequest timeout cannot be longer than request timeout");
    }
}

fn path(value: &Node<'_>, findings: &mut Findings) {
    let text = value.text();
    let bad = ["//", "/./", "/../", "%2f", "%2F", "#"].into_iter().find(|part| text.contains(part));
    if !text.starts_with('/') {
        findings.error(
            &value.path,
            "value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']",
        );
    } else if let Some(part) = bad {
        findings.error(&value.path, format!("must not contain '{part}' when type one of ['Exact', 'PathPrefix']"));
    } else if text.ends_with("/..") || text.ends_with("/.") {
        findings.error(&value.path, "must not end with '/.' or '/..' when type one of ['Exact', 'PathPrefix']");
    }
}

fn backend_tls(spec: &Node<'_>, findings: &mut Findings) {
    limits::targets(&spec.field("targetRefs"), findings);
    let validation = spec.field("validation");
    let by_reference = !validation.field("caCertificateRefs").is_empty();
    let well_known = !validation.field("wellKnownCACertificates").text().is_empty();
    if by_reference == well_known {
        let what = if by_reference { "must not contain both" } else { "must specify either" };
        findings.error(&validation.path, format!("{what} CACertificateRefs and WellKnownCACertificates"));
    }
    let host = validation.field("hostname");
    if host.is_set() && (!is_subdomain(host.text()) || names::is_ip(host.text())) {
        findings.error(&host.path, format!("{:?} is not a host name", host.text()));
    }
    for name in validation.field("subjectAltNames").items() {
        let kind = name.field("type").text();
        for (wanted, field) in [("Hostname", "hostname"), ("URI", "uri")] {
            let set = !name.field(field).text().is_empty();
            if set != (kind == wanted) {
                let what = if set { "must not contain" } else { "must contain" };
                findings.error(&name.path, format!("SubjectAltName element {what} {field} when type is {kind}"));
            }
        }
    }
}
