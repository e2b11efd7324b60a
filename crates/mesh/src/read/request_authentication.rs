//! RequestAuthentication objects (semantics §13.2, §13.7).
//!
//! Invariant: a rule whose keys are not to be had stays, with keys that verify nothing: its tokens are refused, not ignored.

use std::{collections::BTreeMap, sync::Arc};

use carrick_api::{RequestAuthentication, istio::request_authentication::JwtRule as Written};
use carrick_base::{Diagnostic, FieldPath, Severity};

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
        None if is_key_set(&from.jwks) => from.jwks.trim().into(),
        None => {
            tell(path.field("jwks"), Severity::Error, "is no key set; tokens of this issuer are refused".to_owned());
            NO_KEYS.into()
        }
        Some(source) => match keys.get(&source).filter(|k| is_key_set(k)) {
            Some(keys) => keys.clone(),
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
    let parsed = serde_json::from_str::<serde_json::Value>(text).ok();
    parsed.and_then(|v| v.get("keys").map(serde_json::Value::is_array)).unwrap_or(false)
}
