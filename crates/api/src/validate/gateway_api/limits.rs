//! What single fields of the Gateway API's kinds may hold: numbers, durations, words and how many of them.
//!
//! Invariant: each rule is one of the published CRDs' (v1.6, experimental channel); a default counts as given.

use std::collections::BTreeSet;

use super::{Findings, Node, hostname, is_subdomain, names};

/// The name of a header as HTTP has it, or of a query parameter.
fn is_token(text: &str) -> bool {
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.len() <= 256 && text.bytes().all(sign)
}

/// `1h30m`, `500ms`: up to four whole numbers of up to five digits, each with its unit.
fn is_duration(text: &str) -> bool {
    let mut rest = text;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let after = rest.get(digits..).unwrap_or_default();
        let unit = ["ms", "h", "m", "s"].into_iter().find(|unit| after.starts_with(unit));
        let Some(unit) = unit.filter(|_| (1..=5).contains(&digits)) else { return false };
        rest = after.get(unit.len()..).unwrap_or_default();
        if rest.is_empty() {
            return true;
        }
    }
    false
}

fn duration(value: &Node<'_>, findings: &mut Findings) {
    if value.is_set() && !is_duration(value.text()) {
        findings.error(
            &value.path,
            format!("{:?} is not a duration, such as 10s, 1h30m or 500ms in whole numbers", value.text()),
        );
    }
}

fn range(value: &Node<'_>, least: i128, most: i128, findings: &mut Findings) {
    if value.is_set() && !(least..=most).contains(&value.number()) {
        findings.error(&value.path, format!("{} must be between {least} and {most}", value.number()));
    }
}

fn at_most(list: &Node<'_>, most: usize, findings: &mut Findings) {
    if list.len() > most {
        findings.error(&list.path, format!("must have at most {most} items, not {}", list.len()));
    }
}

/// Addresses, names of classes, ports of certificates of clients.
pub(super) fn gateway(spec: &Node<'_>, findings: &mut Findings) {
    let class = spec.field("gatewayClassName");
    if class.is_set() && class.text().is_empty() {
        findings.error(&class.path, "should be at least 1 chars long");
    }
    let mut seen = BTreeSet::new();
    let addresses = spec.field("addresses");
    at_most(&addresses, 16, findings);
    for address in addresses.items() {
        let value = address.field("value");
        let kind = address.field("type").text();
        let by_address = matches!(kind, "" | "IPAddress");
        if value.text().is_empty() {
            continue;
        }
        if by_address && !names::is_ip(value.text()) {
            findings.error(&value.path, format!("{:?} is not a valid IP", value.text()));
        } else if kind == "Hostname" {
            hostname(&value, findings);
        }
        if !seen.insert((by_address, value.text())) {
            let what = if by_address { "IPAddress" } else { kind };
            findings.error(&value.path, format!("{what} values must be unique"));
        }
    }
    let mut ports = BTreeSet::new();
    for entry in spec.field("tls").field("frontend").field("perPort").items() {
        let port = entry.field("port");
        range(&port, 1, 65535, findings);
        if !ports.insert(port.number()) {
            findings.error(&port.path, "Port for TLS configuration must be unique within the Gateway");
        }
    }
}

/// A grant names somebody and something.
pub(super) fn grant(spec: &Node<'_>, findings: &mut Findings) {
    for field in ["from", "to"] {
        let list = spec.field(field);
        if list.is_set() && list.is_empty() {
            findings.error(&list.path, "must have at least 1 item");
        }
        at_most(&list, 16, findings);
    }
    for from in spec.field("from").items() {
        let namespace = from.field("namespace");
        if !names::is_dns_label(namespace.text()) {
            findings.error(&namespace.path, format!("invalid namespace {:?}", namespace.text()));
        }
    }
}

/// A controller is a domain and a path.
pub(super) fn class(spec: &Node<'_>, findings: &mut Findings) {
    let name = spec.field("controllerName");
    let good = name.text().split_once('/').is_some_and(|(domain, path)| is_subdomain(domain) && !path.is_empty());
    if name.is_set() && !good {
        findings
            .error(&name.path, format!("{:?} is not a domain and a path, such as example.net/gateways", name.text()));
    }
}

/// Targets of a policy.
pub(super) fn targets(list: &Node<'_>, findings: &mut Findings) {
    if list.is_set() && list.is_empty() {
        findings.error(&list.path, "must have at least 1 item");
    }
    at_most(list, 16, findings);
    let mut seen = BTreeSet::new();
    for target in list.items() {
        let part = |field: &str| target.field(field).text();
        if !seen.insert((part("group"), part("kind"), part("name"), part("sectionName"))) {
            findings.error(
                &target.path,
                "sectionName must be unique when targetRefs includes 2 or more references to the same target",
            );
        }
    }
}

/// Lists, times, retries and persistence of a rule.
pub(super) fn rule(rule: &Node<'_>, findings: &mut Findings) {
    for (field, most) in [("matches", 64), ("filters", 16), ("backendRefs", 16)] {
        at_most(&rule.field(field), most, findings);
    }
    for field in ["request", "backendRequest"] {
        duration(&rule.field("timeouts").field(field), findings);
    }
    let retry = rule.field("retry");
    duration(&retry.field("backoff"), findings);
    for code in retry.field("codes").items() {
        range(&code, 400, 599, findings);
    }
    let session = rule.field("sessionPersistence");
    duration(&session.field("absoluteTimeout"), findings);
    let cookie = session.field("cookieConfig");
    if cookie.is_set() && session.field("type").text() == "Header" {
        findings.error(&cookie.path, "cookieConfig can only be set with type Cookie");
    }
    if cookie.field("lifetimeType").text() == "Permanent" && !session.field("absoluteTimeout").is_set() {
        findings.error(&session.path, "AbsoluteTimeout must be specified when cookie lifetimeType is Permanent");
    }
    if session.field("sessionName").text().len() > 128 {
        findings.error(&session.path.field("sessionName"), "may not be more than 128 bytes");
    }
}

/// A prefix can only be replaced where one was matched.
pub(super) fn prefix_changes(filters: &Node<'_>, matches: &Node<'_>, findings: &mut Findings) {
    let list = matches.items();
    // No match is a match on the prefix `/`.
    let by_prefix = match list.as_slice() {
        [] => true,
        [one] => matches!(one.field("path").field("type").text(), "" | "PathPrefix"),
        _ => false,
    };
    for filter in filters.items() {
        for (kind, field) in [("RequestRedirect", "requestRedirect"), ("URLRewrite", "urlRewrite")] {
            let path = filter.field(field).field("path");
            if !by_prefix && path.field("replacePrefixMatch").is_set() {
                findings.error(
                    &path.path,
                    format!("When using {kind} filter with path.replacePrefixMatch, exactly one PathPrefix match must be specified"),
                );
            }
        }
    }
}

/// The service and the method of a gRPC call.
pub(super) fn call(method: &Node<'_>, findings: &mut Findings) {
    if method.field("type").text() == "RegularExpression" {
        return;
    }
    let is_name = |text: &str| {
        let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        first && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let service = method.field("service");
    let text = service.text();
    if service.is_set() && !text.strip_prefix('.').unwrap_or(text).split('.').all(is_name) {
        findings.error(&service.path, format!("service must only contain valid characters, not {text:?}"));
    }
    let name = method.field("method");
    if name.is_set() && !is_name(name.text()) {
        findings.error(&name.path, format!("method must only contain valid characters, not {:?}", name.text()));
    }
}

/// Names and values that are matched or written.
pub(super) fn pairs(list: &Node<'_>, findings: &mut Findings) {
    at_most(list, 16, findings);
    for entry in list.items() {
        let (name, value) = (entry.field("name"), entry.field("value"));
        if !is_token(name.text()) {
            findings.error(&name.path, format!("{:?} is not a valid name", name.text()));
        }
        if value.is_set() && !(1..=4096).contains(&value.text().len()) {
            findings.error(&value.path, "must be between 1 and 4096 characters long");
        }
    }
}

/// What one filter says.
pub(super) fn filter(filter: &Node<'_>, findings: &mut Findings) {
    for field in ["requestHeaderModifier", "responseHeaderModifier"] {
        let change = filter.field(field);
        for list in ["set", "add"] {
            pairs(&change.field(list), findings);
        }
        at_most(&change.field("remove"), 16, findings);
    }
    let redirect = filter.field("requestRedirect");
    let code = redirect.field("statusCode");
    if code.is_set() && ![301, 302, 303, 307, 308].contains(&code.number()) {
        findings.error(&code.path, format!("unsupported value {}: one of 301, 302, 303, 307, 308", code.number()));
    }
    range(&redirect.field("port"), 1, 65535, findings);
    for host in [redirect.field("hostname"), filter.field("urlRewrite").field("hostname")] {
        if host.is_set() && (!is_subdomain(host.text()) || names::is_ip(host.text())) {
            findings.error(&host.path, format!("{:?} is not a host name", host.text()));
        }
    }
    let mirror = filter.field("requestMirror");
    range(&mirror.field("percent"), 0, 100, findings);
    let fraction = mirror.field("fraction");
    let (above, below) = (fraction.field("numerator"), fraction.field("denominator"));
    range(&above, 0, i32::MAX.into(), findings);
    range(&below, 1, i32::MAX.into(), findings);
    let whole = if below.is_set() { below.number() } else { 100 };
    if above.number() > whole {
        findings.error(&fraction.path, "numerator must be less than or equal to denominator");
    }
    cors(&filter.field("cors"), findings);
    authorizer(&filter.field("externalAuth"), findings);
}

fn cors(cors: &Node<'_>, findings: &mut Findings) {
    range(&cors.field("maxAge"), 1, i32::MAX.into(), findings);
    let lists = [("allowOrigins", "AllowOrigins"), ("allowMethods", "AllowMethods"), ("allowHeaders", "AllowHeaders")];
    for (field, what) in lists {
        let list = cors.field(field);
        at_most(&list, if field == "allowMethods" { 9 } else { 64 }, findings);
        if list.len() > 1 && list.texts().contains(&"*") {
            findings.error(&list.path, format!("{what} cannot contain '*' alongside other values"));
        }
    }
    for origin in cors.field("allowOrigins").items() {
        let text = origin.text();
        let good =
            text == "*" || text.split_once("://").is_some_and(|(scheme, host)| !scheme.is_empty() && !host.is_empty());
        if !good || text.contains([' ', ',']) {
            findings.error(&origin.path, format!("{text:?} is not an origin, such as https://*.example.com"));
        }
    }
    for field in ["allowHeaders", "exposeHeaders"] {
        for name in cors.field(field).items().iter().filter(|name| !is_token(name.text())) {
            findings.error(&name.path, format!("{:?} is not a valid name", name.text()));
        }
    }
}

fn authorizer(filter: &Node<'_>, findings: &mut Findings) {
    if !filter.is_set() {
        return;
    }
    for (protocol, field) in [("GRPC", "grpc"), ("HTTP", "http")] {
        let (chosen, set) = (filter.field("protocol").text() == protocol, filter.field(field).is_set());
        if chosen && !set {
            findings.error(&filter.path, format!("{field} must be specified when protocol is set to '{protocol}'"));
        } else if set && !chosen {
            findings.error(&filter.path.field(field), format!("protocol must be '{protocol}' when {field} is set"));
        }
    }
    range(&filter.field("forwardBody").field("maxSize"), 1, 1 << 16, findings);
}
