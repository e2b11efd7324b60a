//! The `continue` token of chunked lists: where the next page starts, and at which revision.
//!
//! Invariant: a token that we did not make is refused; it holds nothing secret.

use crate::error::{ApiError, ApiResult};
use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::{NO_PAD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// A place in a list.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// Revision of the whole list.
    pub revision: u64,
    /// Namespace of the last item given.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How many items come after it, if that was counted.
    pub left: Option<u64>,
}

/// Makes a token.
pub fn encode(revision: u64, namespace: &str, name: &str, left: Option<u64>) -> String {
    let mut token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": [namespace, name]});
    if let (Some(left), Some(map)) = (left, token.as_object_mut()) {
        map.insert("left".into(), left.into());
    }
    URL_SAFE_NO_PAD.encode(token.to_string())
}

/// Reads a token.
///
/// # Errors
/// `BadRequest`.
pub fn decode(token: &str) -> ApiResult<Place> {
    let place = || {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let value: Value = serde_json::from_slice(&bytes).ok()?;
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let revision = value.get("rv").and_then(Value::as_u64).filter(|r| *r > 0)?;
        let left = value.get("left").and_then(Value::as_u64);
        Some(Place { revision, namespace: text("/start/0")?, name: text("/start/1")?, left })
    };
    place().ok_or_else(|| {
        // Kubernetes tells the first letter that is wrong, if it is the first.
        let go = GeneralPurpose::new(&URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));
        let bytes = go.decode(token).unwrap_or_default();
        let first = bytes.first().filter(|b| **b != b'{').map(|b| char::from(*b));
        let why = first.map_or(String::new(), |c| format!(": invalid character {c:?} looking for beginning of value"));
        ApiError::BadRequest(format!("invalid continue token: continue key is not valid{why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens() {
        let place = decode(&encode(7, "a", "b", Some(3))).unwrap();
        assert_eq!(place, Place { revision: 7, namespace: "a".into(), name: "b".into(), left: Some(3) });
        assert_eq!(decode(&encode(7, "a", "b", None)).unwrap().left, None);
        for wrong in ["", "x", "e30", &encode(0, "a", "b", None)] {
            assert!(decode(wrong).is_err(), "{wrong}");
        }
    }
}
