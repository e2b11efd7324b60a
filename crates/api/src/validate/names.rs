//! Forms of names: DNS labels, host names with wildcards, label keys and values.
//!
//! Invariant: the same texts are accepted as by Istio's validation, with the reason in words when not.

use std::net::IpAddr;

/// A DNS label as Kubernetes wants it: lower case letters, digits and inner dashes, at most 63.
pub(super) fn is_dns_label(text: &str) -> bool {
    is_label(text) && !text.bytes().any(|b| b.is_ascii_uppercase())
}

/// A label of a host name: letters, digits and inner dashes, at most 63.
pub(super) fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
}

/// The first label of a host may be `*`, `*label` or `*-label`.
fn is_wildcard_label(text: &str) -> bool {
    match text.strip_prefix('*') {
        None => is_label(text),
        Some("") => true,
        Some(rest) => is_label(rest.strip_prefix('-').unwrap_or(rest)),
    }
}

/// A host name, optionally with a wildcard in its first label.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn wildcard_domain(host: &str) -> Result<(), String> {
    domain(host, is_wildcard_label)
}

/// A host name without wildcards.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn plain_domain(host: &str) -> Result<(), String> {
    domain(host, is_label)
}

/// A complete host name: no wildcard, and not a number alone.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn fqdn(host: &str) -> Result<(), String> {
    plain_domain(host)?;
    if !host.is_empty() && host.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("domain name {host:?} invalid (top level domain {host:?} cannot be all-numeric)"));
    }
    Ok(())
}

/// An IP address.
pub(super) fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// An IP address, or a block of them as `address/bits`.
pub(super) fn is_subnet(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return is_ip(text) };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let plain = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    plain && bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

/// The path of a unix socket, without `unix://`: absolute, or abstract with a leading `@`.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn unix_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("unix address must not be empty".to_owned());
    }
    if !path.starts_with('@') && (!path.starts_with('/') || path.ends_with('/')) {
        return Err(format!("{path} is not an absolute path to a file"));
    }
    Ok(())
}

/// A wildcard that is more than the first label: `*foo.com`, `*-foo.com`.
pub(super) fn is_partial_wildcard(host: &str) -> bool {
    host.contains('*') && host != "*" && !host.starts_with("*.")
}

fn domain(host: &str, first_label: fn(&str) -> bool) -> Result<(), String> {
    if host.is_empty() {
        return Err("empty domain name not allowed".to_owned());
    }
    if host.len() > 255 {
        return Err(format!("domain name {host:?} too long (max 255)"));
    }
    let invalid = |label: &str| Err(format!("domain name {host:?} invalid (label {label:?} invalid)"));
    // A trailing dot is how a resolver marks a complete name.
    let body = host.strip_suffix('.').unwrap_or(host);
    let mut labels = body.split('.');
    let first = labels.next().unwrap_or_default();
    if !first_label(first) {
        return invalid(first);
    }
    let mut last = None;
    for label in labels {
        if !is_label(label) {
            return invalid(label);
        }
        last = Some(label);
    }
    match last {
        Some(top) if top.bytes().all(|b| b.is_ascii_digit()) => {
            Err(format!("domain name {host:?} invalid (top level domain {top:?} cannot be all-numeric)"))
        }
        _ => Ok(()),
    }
}

/// A label value: at most 63 letters, digits, `-`, `_`, `.`, with letters or digits at the ends; or empty.
pub fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    bytes.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

/// A label key: a name like a value but not empty, with an optional `domain/` before it.
pub fn is_label_key(text: &str) -> bool {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let prefix_fits = prefix.is_none_or(|p| p.len() <= 253 && !p.is_empty() && p.split('.').all(is_dns_label));
    prefix_fits && !name.is_empty() && is_label_value(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in [
            "a",
            "reviews",
            "*",
            "*.a",
            "*.ns.svc.cluster.local",
            "*-a.b",
            "*a.b",
            "a.b.",
            "A.b",
            "1.a",
            "xn--bcher-kva.example",
        ] {
            assert_eq!(wildcard_domain(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "a..b",
            ".a",
            "a.*",
            "a.*.b",
            "**",
            "*.*",
            "a_b",
            "-a",
            "a-.b",
            "1.2.3.4",
            "a b",
            "bücher.example",
            "https://a",
            "a:80",
            "a/b",
            "*.",
        ] {
            let found = wildcard_domain(bad);
            // `*.` is the wildcard with a trailing dot.
            assert_eq!(found.is_ok(), bad == "*.", "{bad}: {found:?}");
        }
        assert!(wildcard_domain(&"a".repeat(64)).is_err());
        assert!(wildcard_domain(&["a"; 150].join(".")).is_err());
        assert!(plain_domain("*.a").is_err());
    }

    #[test]
    fn label_keys_and_values() {
        for good in ["a", "a.b/c", "app.kubernetes.io/name", "A_b-c.d"] {
            assert!(is_label_key(good), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "-a", "a-", "Ä", "A.B/c"] {
            assert!(!is_label_key(bad), "{bad}");
        }
        assert!(
            is_label_value("")
                && is_label_value("v1.2_3-x")
                && !is_label_value("-")
                && !is_label_value(&"a".repeat(64))
        );
    }
}
