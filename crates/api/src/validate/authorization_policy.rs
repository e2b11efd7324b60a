//! Rules of `AuthorizationPolicy` (spec §12, §28).
//!
//! Invariant: a policy that would mean something else than it says (a rule without content, a value that matches nothing)
//! is refused rather than enforced.

use super::{Findings, Node, attachment, names};

const LIST_FIELDS: [&str; 14] = [
    "principals",
    "notPrincipals",
    "requestPrincipals",
    "notRequestPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
    "ipBlocks",
    "notIpBlocks",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
];

const OPERATION_FIELDS: [&str; 8] =
    ["hosts", "notHosts", "ports", "notPorts", "methods", "notMethods", "paths", "notPaths"];

/// What an external authorizer is asked before: it runs before peers and tokens are known.
const NOT_IN_CUSTOM: &[&str] = LIST_FIELDS.split_at(10).0;

/// Sources that a TCP connection has too.
const TCP_SOURCES: [&str; 10] = [
    "principals",
    "notPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "ipBlocks",
    "notIpBlocks",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
];

pub(super) fn check(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    attachment::policy(&spec, findings);
    let action = spec.field("action").choice(&["ALLOW", "DENY", "AUDIT", "CUSTOM"]);
    let rules = spec.field("rules");
    let provider = spec.field("provider");
    if matches!(action, "CUSTOM" | "DENY") && rules.is_empty() {
        findings.error(
            &rules.path,
            format!("{action} action without `rules` is meaningless as it will never be triggered, add an empty rule `{{}}` if you want it be triggered for every request"),
        );
    }
    if action == "CUSTOM" && provider.field("name").text().is_empty() {
        findings.error(&provider.path.field("name"), "`provider.name` must not be empty");
    }
    if action != "CUSTOM" && provider.is_set() {
        findings.error(&provider.path, format!("`provider` must not be with non CUSTOM action, found {action}"));
    }
    if rules.len() > 512 {
        findings.error(&rules.path, format!("must have at most 512 items, not {}", rules.len()));
    }
    for rule in rules.items() {
        self::rule(&rule, action, findings);
    }
}

fn rule(rule: &Node<'_>, action: &str, findings: &mut Findings) {
    let (mut sources, mut operations) = (Vec::new(), Vec::new());
    for (field, inner, found) in [("from", "source", &mut sources), ("to", "operation", &mut operations)] {
        let list = rule.field(field);
        if list.is_set() && list.is_empty() {
            findings.error(&list.path, format!("`{field}` must not be empty"));
        }
        for entry in list.items() {
            let content = entry.field(inner);
            if content.is_set() {
                found.push(content);
            } else {
                findings.error(&content.path, format!("`{field}.{inner}` must not be nil"));
            }
        }
    }
    for source in &sources {
        self::source(source, action, findings);
    }
    for operation in &operations {
        self::operation(operation, findings);
    }
    for condition in rule.field("when").items() {
        self::condition(&condition, action, findings);
    }
    let any = |list: &[Node<'_>], fields: &[&'static str]| list.iter().any(|node| !node.set_among(fields).is_empty());
    let only_http = (!sources.is_empty() && operations.is_empty() && !any(&sources, &TCP_SOURCES))
        || (!operations.is_empty() && !any(&operations, &["ports", "notPorts"]));
    if action == "DENY" && only_http {
        findings.warning(
            &rule.path,
            "configured AuthorizationPolicy will deny all traffic to TCP ports under its scope due to the use of only HTTP attributes in a DENY rule; it is recommended to explicitly specify the port",
        );
    }
}

fn source(source: &Node<'_>, action: &str, findings: &mut Findings) {
    let filled = |fields: &[&'static str]| fields.iter().any(|field| !source.field(field).is_empty());
    if !filled(&LIST_FIELDS) {
        findings.error(&source.path, "`from.source` must not be empty");
    }
    if filled(&["serviceAccounts", "notServiceAccounts"])
        && filled(&["principals", "notPrincipals", "namespaces", "notNamespaces"])
    {
        findings.error(&source.path, "cannot set serviceAccounts with namespaces or principals");
    }
    for field in LIST_FIELDS {
        let list = source.field(field);
        if action == "CUSTOM" && NOT_IN_CUSTOM.contains(&field) && !list.is_empty() {
            findings.error(&list.path, format!("from.{field} is currently not supported with CUSTOM action"));
        }
        match field {
            "ipBlocks" | "notIpBlocks" | "remoteIpBlocks" | "notRemoteIpBlocks" => addresses(&list, findings),
            "serviceAccounts" | "notServiceAccounts" => service_accounts(&list, findings),
            "trustDomains" | "notTrustDomains" => trust_domains(&list, false, findings),
            _ => not_empty(&list, findings),
        }
    }
}

fn operation(operation: &Node<'_>, findings: &mut Findings) {
    if OPERATION_FIELDS.iter().all(|field| operation.field(field).is_empty()) {
        findings.error(&operation.path, "`to.operation` must not be empty");
    }
    for field in OPERATION_FIELDS {
        let list = operation.field(field);
        match field {
            "ports" | "notPorts" => ports(&list, findings),
            _ => not_empty(&list, findings),
        }
        if matches!(field, "paths" | "notPaths") {
            for path in list.items() {
                if let Err(message) = template(path.text()) {
                    findings.error(&path.path, message);
                }
            }
        }
    }
}

fn not_empty(list: &Node<'_>, findings: &mut Findings) {
    for value in list.items().iter().filter(|value| value.text().is_empty()) {
        findings.error(&value.path, "empty value not allowed");
    }
}

fn addresses(list: &Node<'_>, findings: &mut Findings) {
    for value in list.items() {
        let text = value.text();
        if text.contains('/') && !names::is_subnet(text) {
            findings.error(&value.path, format!("bad CIDR range ({text})"));
        } else if !names::is_subnet(text) {
            findings.error(&value.path, format!("bad IP address ({text})"));
        }
    }
}

fn ports(list: &Node<'_>, findings: &mut Findings) {
    for value in list.items() {
        let text = value.text();
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !plain || text.parse::<u32>().map_or(true, |port| port > 65535) {
            findings.error(&value.path, format!("bad port ({text})"));
        }
    }
}

fn service_accounts(list: &Node<'_>, findings: &mut Findings) {
    if list.len() > 16 {
        findings.error(&list.path, "may not have more than 16 values");
    }
    for value in list.items() {
        let text = value.text();
        let parts: Vec<&str> = text.split('/').collect();
        if text.is_empty() {
            findings.error(&value.path, "empty value not allowed");
        } else if text.contains('*') {
            findings.error(&value.path, "wildcard not allowed");
        } else if parts.len() > 2 || parts.iter().any(|part| part.is_empty()) {
            findings.error(
                &value.path,
                format!("expected format 'serviceAccount' or 'namespace/serviceAccount', found {text:?}"),
            );
        } else if text.len() > 320 {
            findings.error(&value.path, "value cannot exceed 320 characters");
        }
    }
}

/// Trust domains may have a wildcard at one end. `slash`: whether a `/` is let be.
fn trust_domains(list: &Node<'_>, slash: bool, findings: &mut Findings) {
    for value in list.items() {
        let text = value.text();
        let stars = text.matches('*').count();
        if text.is_empty() {
            findings.error(&value.path, "empty value not allowed");
        } else if stars > 1 {
            findings.error(&value.path, format!("at most one wildcard is allowed, found {text:?}"));
        } else if stars == 1 && !text.starts_with('*') && !text.ends_with('*') {
            findings.error(&value.path, format!("wildcard is only allowed at the start or end, found {text:?}"));
        } else if !slash && text.contains('/') {
            findings.error(&value.path, format!("trust domain must not contain '/', found {text:?}"));
        }
    }
}

/// A path with `{*}` for one segment and `{**}` for the rest; other braces mean nothing.
fn template(path: &str) -> Result<(), String> {
    let is_template = path.contains("{*}") || path.contains("{**}");
    let mut rest_taken = false;
    for segment in path.trim_matches('/').split('/') {
        match segment {
            "{*}" | "{**}" if rest_taken => {
                return Err(format!("invalid or unsupported path {path}: {{**}} is not the last operator"));
            }
            "{*}" => {}
            "{**}" => rest_taken = true,
            _ if segment.contains(['{', '}']) => {
                return Err(format!(
                    "invalid or unsupported path {path}: contains '{{' or '}}' beyond a supported path template"
                ));
            }
            _ if is_template && !is_literal(segment) => {
                return Err(format!(
                    "invalid or unsupported path {path}: contains segment {segment} with invalid string literal"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Characters of a path segment (RFC 3986), at least one, without a wildcard.
fn is_literal(segment: &str) -> bool {
    !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&b))
}

fn condition(condition: &Node<'_>, action: &str, findings: &mut Findings) {
    let key_node = condition.field("key");
    let key = key_node.text();
    if key.is_empty() {
        findings.error(&key_node.path, "`key` must not be empty");
        return;
    }
    let unknown_yet = ["source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"];
    if action == "CUSTOM" && (unknown_yet.contains(&key) || key.starts_with("request.auth.")) {
        findings.error(&key_node.path, format!("{key} is currently not supported with CUSTOM action"));
    }
    let lists = [condition.field("values"), condition.field("notValues")];
    if lists.iter().all(Node::is_empty) {
        findings.error(&condition.path, format!("at least one of `values` or `notValues` must be set for key {key}"));
        return;
    }
    match key {
        "source.ip" | "remote.ip" | "destination.ip" => lists.iter().for_each(|list| addresses(list, findings)),
        "destination.port" => lists.iter().for_each(|list| ports(list, findings)),
        "source.serviceAccount" => lists.iter().for_each(|list| service_accounts(list, findings)),
        "source.trustDomain" => lists.iter().for_each(|list| trust_domains(list, true, findings)),
        _ => {
            lists.iter().for_each(|list| not_empty(list, findings));
            attribute(&key_node, findings);
        }
    }
}

/// Keys whose values may be any texts.
fn attribute(node: &Node<'_>, findings: &mut Findings) {
    let key = node.text();
    let with_name = ["request.headers", "request.auth.claims", "experimental.envoy.filters."];
    let plain = [
        "source.namespace",
        "source.principal",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "connection.sni",
    ];
    if with_name.iter().any(|prefix| key.starts_with(prefix)) {
        let open = key.find('[').unwrap_or(0);
        if !key.ends_with(']') || open == 0 || open + 2 >= key.len() {
            findings.error(&node.path, format!("bad key ({key}): should have format a[b]"));
        }
    } else if key == "destination.namespace" {
        findings.error(&node.path, format!("attribute {key} is replaced by the metadata.namespace"));
    } else if key.starts_with("destination.labels") {
        findings.error(&node.path, format!("attribute {key} is replaced by the workload selector"));
    } else if matches!(key, "destination.name" | "destination.user") {
        findings.error(&node.path, format!("deprecated attribute {key}: only supported in v1alpha1"));
    } else if !plain.contains(&key) {
        findings.error(&node.path, format!("unknown attribute: {key}"));
    }
}

#[cfg(test)]
mod tests {
    use super::template;

    #[test]
    fn templates() {
        for good in
            ["/a", "/a*", "*", "*/b", "/a/{*}", "/a/{*}/b", "/{**}", "/a/{*}/b/{**}", "/{**}/b", "/a/{**}/", "/a b"]
        {
            assert_eq!(template(good), Ok(()), "{good}");
        }
        for bad in ["/a/{*}b", "/{a}", "/a{", "/{**}/{*}", "/{**}/{**}", "/{*}/b*", "/{*}/b c", "/{***}", "/{*}//b"] {
            assert!(template(bad).is_err(), "{bad}");
        }
    }
}
