//! `Secret`, reduced to what TLS reads of it.
//!
//! Invariant: values are never shown: neither `Debug` nor any error holds them. Keys that no TLS setting reads are dropped at once, and
//! so is everything in a service account's token.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::Deserializer;

use crate::object::Meta;
use crate::scalar::{nullable, nullable_map};

/// Keys that TLS reads, of both forms (generic and `kubernetes.io/tls`).
const KEYS: [&str; 9] = ["tls.crt", "tls.key", "ca.crt", "ca.crl", "tls.ocsp-staple", "cert", "key", "cacert", "crl"];
const TOKEN: &str = "kubernetes.io/service-account-token";

/// A secret.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Secret {
    pub metadata: Meta,
    pub type_: String,
    /// By key, decoded. Only the keys that TLS reads.
    pub data: BTreeMap<String, Arc<[u8]>>,
    /// Keys of which the value is no base64.
    pub broken: Vec<String>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&str> = self.data.keys().map(String::as_str).collect();
        f.debug_struct("Secret")
            .field("metadata", &self.metadata)
            .field("type", &self.type_)
            .field("keys", &keys)
            .finish()
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct Wire {
            #[serde(deserialize_with = "nullable")]
            metadata: Meta,
            #[serde(rename = "type", deserialize_with = "nullable")]
            type_: String,
            #[serde(deserialize_with = "nullable_map")]
            data: BTreeMap<String, String>,
            #[serde(deserialize_with = "nullable_map")]
            string_data: BTreeMap<String, String>,
        }
        let mut wire = Wire::deserialize(deserializer)?;
        // `kubectl` keeps what was applied in an annotation, values and all.
        wire.metadata.annotations.clear();
        let mut out = Self { metadata: wire.metadata, type_: wire.type_, ..Self::default() };
        if out.type_ == TOKEN {
            return Ok(out);
        }
        for (key, text) in wire.data.into_iter().filter(|(key, _)| KEYS.contains(&key.as_str())) {
            match decode_base64(&text) {
                Some(bytes) => {
                    out.data.insert(key, bytes.into());
                }
                None => out.broken.push(key),
            }
        }
        for (key, text) in wire.string_data.into_iter().filter(|(key, _)| KEYS.contains(&key.as_str())) {
            out.data.insert(key, text.into_bytes().into());
        }
        Ok(out)
    }
}

/// Standard base64 (RFC 4648 §4) with or without padding; line ends are skipped, as YAML folds long values.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    let mut padded = false;
    for byte in text.bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padded = true;
                continue;
            }
            b'\n' | b'\r' => continue,
            _ => return None,
        };
        if padded {
            return None;
        }
        bits = (bits << 6) | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from((bits >> held) & 0xff).ok()?);
            bits &= (1 << held) - 1;
        }
    }
    (held < 6).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::from_value;
    use serde_json::json;

    #[test]
    fn base64_as_in_the_rfc() {
        for (text, want) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob"), ("Zm9v\nYmE=", "fooba")]
        {
            assert_eq!(decode_base64(text).as_deref(), Some(want.as_bytes()), "{text}");
        }
        for bad in ["Z", "Zg=g", "Zm 9v", "Zm9_", "Zm9vY"] {
            assert_eq!(decode_base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn values_are_never_shown_and_only_what_tls_reads_is_kept() {
        let secret: Secret = from_value(&json!({
            "metadata": {"name": "s", "namespace": "n", "annotations": {"last": "c2VjcmV0"}},
            "type": "Opaque", "data": {"tls.key": "c2VjcmV0", "password": "c2VjcmV0", "ca.crt": "?"},
        }))
        .expect("a secret");
        assert_eq!(secret.data.keys().collect::<Vec<_>>(), ["tls.key"]);
        assert_eq!(secret.broken, ["ca.crt"]);
        let shown = format!("{secret:?}");
        assert!(!shown.contains("c2VjcmV0") && !shown.contains("secret\"") && !shown.contains("115, 101"), "{shown}");
        let token: Secret = from_value(&json!({"type": TOKEN, "data": {"ca.crt": "Zm9v"}})).expect("a secret");
        assert!(token.data.is_empty());
    }
}
