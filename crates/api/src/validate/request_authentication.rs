//! Rules of `RequestAuthentication` (spec §13, §28).
//!
//! Invariant: keys are read as far as their form goes; whether a token verifies is not known here.

use serde_json::Value;

use super::{Findings, Node, attachment, header};

pub(super) fn check(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    attachment::policy(&spec, findings);
    for rule in spec.field("jwtRules").items() {
        self::rule(&rule, findings);
    }
}

fn rule(rule: &Node<'_>, findings: &mut Findings) {
    let text = |field: &str| rule.field(field).text();
    for field in ["audiences", "fromParams", "fromCookies", "spaceDelimitedClaims"] {
        for value in rule.field(field).items().iter().filter(|value| value.text().is_empty()) {
            findings.error(&value.path, format!("{field} must be non-empty strings"));
        }
    }
    let uri_field = if rule.field("jwks_uri").is_set() { "jwks_uri" } else { "jwksUri" };
    let issuer = rule.field("issuer");
    if issuer.text().is_empty() && text(uri_field).is_empty() {
        findings.error(&rule.path, "issuer or jwksUri must be non-empty string");
    } else if issuer.is_set() && issuer.text().is_empty() {
        findings.error(&issuer.path, "issuer must be a non-empty string when it is given");
    }
    let sources = ["jwksUri", "jwks_uri", "jwks"].iter().filter(|field| !text(field).is_empty()).count();
    if sources > 1 {
        findings.error(&rule.path, "only one of jwks or jwksUri can be set");
    }
    uri(&rule.field(uri_field), findings);
    let jwks = rule.field("jwks");
    if !jwks.text().is_empty() {
        match keys(jwks.text()) {
            Err(message) => findings.error(&jwks.path, format!("jwks parse error: {message}")),
            Ok(private) => {
                for index in private {
                    findings.warning(
                        &jwks.path,
                        format!("jwks key at index {index} contains private key material; only public keys are used for verification"),
                    );
                }
            }
        }
    }
    for location in rule.field("fromHeaders").items() {
        if location.field("name").text().is_empty() {
            findings.error(&location.path.field("name"), "location header name must be non-empty string");
        }
    }
    for output in rule.field("outputClaimToHeaders").items() {
        let (name, claim) = (output.field("header"), output.field("claim"));
        if name.text().is_empty() || claim.text().is_empty() {
            findings.error(&output.path, "outputClaimToHeaders header and claim value must be non-empty string");
        } else if !header::is_strict(name.text()) {
            findings.error(&name.path, format!("header name {} is not a valid header name", name.text()));
        }
    }
    let timeout = rule.field("timeout");
    findings.duration(&timeout.path, timeout.duration());
}

fn uri(node: &Node<'_>, findings: &mut Findings) {
    let text = node.text();
    if text.is_empty() {
        return;
    }
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        findings.error(&node.path, format!("URI scheme {scheme:?} is not supported"));
        return;
    }
    if text.len() > 2048 {
        findings.error(&node.path, "URI may not be longer than 2048 bytes");
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host_port = authority.rsplit('@').next().unwrap_or_default();
    let port = match host_port.rsplit_once(']') {
        Some((_, after)) => after.strip_prefix(':'),
        None => host_port.split_once(':').map(|(_, port)| port),
    };
    let bad_port = port.is_some_and(|port| !port.is_empty() && port.parse::<u16>().is_err());
    if host_port.is_empty() || bad_port || text.bytes().any(|b| b <= b' ' || b == 0x7f) {
        findings.error(&node.path, format!("URI {text:?} cannot be parsed"));
    }
}

/// Judges a key set (or one key) and returns which keys are private.
fn keys(text: &str) -> Result<Vec<usize>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not a JSON object ({error})"))?;
    let list = match value.get("keys") {
        Some(Value::Array(list)) => list.clone(),
        Some(_) => return Err("\"keys\" is not a list".to_owned()),
        None => vec![value],
    };
    let mut private = Vec::new();
    for (index, key) in list.iter().enumerate() {
        let part = |name: &str| key.get(name).and_then(Value::as_str).unwrap_or_default();
        let needed: &[&str] = match part("kty") {
            "RSA" => &["n", "e"],
            "EC" => &["crv", "x", "y"],
            "OKP" => &["crv", "x"],
            "oct" => &["k"],
            other => return Err(format!("key {index} has an invalid key type {other:?}")),
        };
        let numbers = |name: &&&str| **name != "crv";
        if let Some(missing) = needed.iter().find(|name| part(name).is_empty()) {
            return Err(format!("key {index} has no {missing:?}"));
        }
        let encoded = |text: &str| {
            text.trim_end_matches('=')
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'+' | b'/'))
        };
        if let Some(bad) = needed.iter().filter(numbers).find(|name| !encoded(part(name))) {
            return Err(format!("key {index} has a {bad:?} that is not base64"));
        }
        if part("kty") == "oct" || !part("d").is_empty() {
            private.push(index);
        }
    }
    Ok(private)
}
