//! RequestAuthentication objects (semantics §13.2, §13.7).
//!
//! Invariant: a rule whose keys are not to be had stays, with keys that verify nothing: its tokens are refused, not ignored.

use std::{collections::BTreeMap, sync::Arc};

use carrick_api::{RequestAuthentication, istio::request_authentication::JwtRule as Written};
use carrick_base::{Diagnostic, FieldPath, Severity};
use serde_json::Value;

use super::{is_header_name, origin, targets};
use crate::{
    codes,
    model::{
        Origin,
        jwt::{JwtPolicy, JwtRule, KeySource},
    },
};

/// Key sets that were fetched.
pub type FetchedKeys = BTreeMap<KeySource, Arc<str>>;

/// A public key whose private half was thrown away: nothing it is asked to verify passes.
pub const NO_KEYS: &str = concat!(
    r#"{"keys":[{"kty":"RSA","use":"sig","alg":"RS256","kid":"carrick-no-keys","e":"AQAB","n":""#,
    "4Dltdb_-ehK0Oj_goy7I0TLF3hFcqDCwPbFvpSYMNPWDxa-tdeA4qPLgzo8rbCi86Yuy-OG0XT-Bwnwd1kkFOBEork65HsFJBkHa0wxwzucFmt7JZoU0k2rb",
    "llhm0kj2-z1p-1v2R0vIJEXbuYbrkVvaFzY6W_jp-szDWSaKwyHzKtHXEKctEGIjR88eGM0Chxdszbzrr_gTbwHoHEk_ZPSbMvP8dLV_Cob6hZcRvGiJ_JY4",
    "uLQs8ZBMoq8sh2Z12p3pXWxIj1kgJivxNkoU8kpvcoc4i0qDsx7NlRkG3KRWb4SZslDsOTxFTYaar8mndvCAzYwGPOGNlGMwlwYreQ",
    r#""}]}"#
);

/// Claims that are always lists written with spaces.
const SPACE_DELIMITED: [&str; 2] = ["permission", "scope"];

pub(crate) fn read(from: &RequestAuthentication, keys: &FetchedKeys, found: &mut Vec<Diagnostic>) -> JwtPolicy {
    let origin = origin("RequestAuthentication", &from.metadata);
    let spec = &from.spec;
    let path = FieldPath::new("spec.jwtRules");
    let rules = spec.jwt_rules.iter().enumerate();
    let rules = rules.map(|(i, written)| Arc::new(rule(written, &origin, &path.index(i), keys, found))).collect();
    JwtPolicy {
        selector: spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default(),
        gateways: targets(spec.target_ref.iter().chain(&spec.target_refs)),
        rules,
        origin,
    }
}

/// One rule of an object.
pub(crate) fn rule(
    from: &Written,
    origin: &Origin,
    path: &FieldPath,
    keys: &FetchedKeys,
    found: &mut Vec<Diagnostic>,
) -> JwtRule {
    let mut tell = |field: FieldPath, severity: Severity, message: String| {
        let code = if severity == Severity::Warning { codes::KEYS_MISSING } else { codes::UNREADABLE };
        found.push(Diagnostic { code, severity, object: origin.object(), field, message });
    };
    let jwks = match KeySource::of(&from.issuer, &from.jwks_uri, &from.jwks) {
        None => loadable(&from.jwks).unwrap_or_else(|| {
            tell(path.field("jwks"), Severity::Error, "is no key set; tokens of this issuer are refused".to_owned());
            NO_KEYS.into()
        }),
        Some(source) => match keys.get(&source).and_then(|k| loadable(k)) {
            Some(keys) => keys,
            None => {
                let message = match &source {
                    KeySource::Uri(uri) => format!("no keys from {uri} so far; tokens of this issuer are refused"),
                    KeySource::Issuer(issuer) => {
                        format!("no keys by discovery at {issuer} so far; tokens of this issuer are refused")
                    }
                };
                tell(path.field("jwksUri"), Severity::Warning, message);
                NO_KEYS.into()
            }
        },
    };
    let texts = |all: &[String]| all.iter().filter(|t| !t.is_empty()).map(|t| t.as_str().into()).collect();
    let mut header = |field: FieldPath, name: &str| {
        let good = is_header_name(name);
        if !good {
            tell(field, Severity::Error, format!("{name:?} is no header name; it is left out"));
        }
        good
    };
    let mut from_headers = Vec::new();
    for (i, h) in from.from_headers.iter().enumerate() {
        if header(path.field("fromHeaders").index(i), &h.name) {
            from_headers.push((h.name.as_str().into(), h.prefix.as_str().into()));
        }
    }
    let mut claim_headers = Vec::new();
    for (i, c) in from.output_claim_to_headers.iter().enumerate() {
        if header(path.field("outputClaimToHeaders").index(i), &c.header) && !c.claim.is_empty() {
            claim_headers.push((c.header.as_str().into(), c.claim.as_str().into()));
        }
    }
    let payload = from.output_payload_to_header.as_str();
    let payload_ok = payload.is_empty() || header(path.field("outputPayloadToHeader"), payload);
    let mut space_delimited: Vec<Arc<str>> = SPACE_DELIMITED.iter().map(|c| Arc::from(*c)).collect();
    space_delimited.extend(from.space_delimited_claims.iter().filter(|c| !c.is_empty()).map(|c| Arc::from(c.as_str())));
    space_delimited.sort();
    space_delimited.dedup();
    JwtRule {
        issuer: from.issuer.as_str().into(),
        audiences: texts(&from.audiences),
        jwks,
        from_headers,
        from_params: texts(&from.from_params),
        from_cookies: texts(&from.from_cookies),
        forward: from.forward_original_token,
        payload_header: if payload_ok { payload.into() } else { "".into() },
        claim_headers,
        space_delimited,
    }
}

/// Whether a text is a JSON object with a list of keys.
pub fn is_key_set(text: &str) -> bool {
    keys_of(text).is_some()
}

fn keys_of(text: &str) -> Option<Vec<Value>> {
    match serde_json::from_str::<Value>(text).ok()?.get_mut("keys")? {
        Value::Array(keys) => Some(std::mem::take(keys)),
        _ => None,
    }
}

/// The key set, such that it can be loaded whatever its keys are worth. Envoy refuses a whole listener for a set without one good
/// key, and leaves out bad keys beside a good one; so a set whose goodness is not plain gets one more key, that verifies nothing.
fn loadable(text: &str) -> Option<Arc<str>> {
    let mut keys = keys_of(text)?;
    keys.retain(Value::is_object);
    if !keys.iter().any(is_plainly_good) {
        keys.extend(keys_of(NO_KEYS).into_iter().flatten());
    }
    Some(serde_json::json!({ "keys": keys }).to_string().into())
}

/// An RSA key of at least 1024 bits whose parts are base64url.
fn is_plainly_good(key: &Value) -> bool {
    const LEAST: usize = 170;
    let part = |name: &str| key.get(name).and_then(Value::as_str).unwrap_or_default();
    let encoded =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let usable =
        |name: &str, good: &[&str]| key.get(name).is_none_or(|v| v.as_str().is_some_and(|v| good.contains(&v)));
    part("kty") == "RSA"
        && encoded(part("n"))
        && part("n").len() >= LEAST
        && part("n").len() % 4 != 1
        && part("e") == "AQAB"
        && usable("alg", &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
        && usable("use", &["sig"])
        && key.get("kid").is_none_or(Value::is_string)
        && key.get("key_ops").is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_always_holds_a_key_that_can_be_loaded() {
        let good = keys_of(NO_KEYS).expect("keys");
        assert!(is_plainly_good(&good[0]));
        let count = |text: &str| loadable(text).and_then(|t| keys_of(&t)).map(|k| k.len());
        assert_eq!(count(NO_KEYS), Some(1), "a good one is left as it is");
        assert_eq!(count(r#"{"keys":[]}"#), Some(1));
        assert_eq!(count(r#"{"keys":[7,{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#), Some(2));
        for broken in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[],"x":1e400}"#, "nonsense"] {
            assert_eq!(count(broken), None, "{broken}");
        }
    }
}
