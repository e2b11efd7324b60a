//! `/debug/keys`: the public keys of token issuers that were fetched.
//!
//! Invariant: what is written is read back the same, so that a question to the mesh is answered with the keys its proxies have.

use carrick_mesh::{FetchedKeys, KeySource};
use serde_json::{Value, json};

pub(super) fn write(keys: &FetchedKeys) -> Value {
    keys.iter()
        .map(|(source, keys)| match source {
            KeySource::Uri(uri) => json!({"uri": &**uri, "keys": &**keys}),
            KeySource::Issuer(issuer) => json!({"issuer": &**issuer, "keys": &**keys}),
        })
        .collect()
}

/// Reads the page; an entry that is not one is left out.
pub(crate) fn read(page: &Value) -> FetchedKeys {
    let entry = |entry: &Value| {
        let text = |field: &str| entry.get(field).and_then(Value::as_str);
        let source = match (text("uri"), text("issuer")) {
            (Some(uri), _) => KeySource::Uri(uri.into()),
            (None, issuer) => KeySource::Issuer(issuer?.into()),
        };
        Some((source, text("keys")?.into()))
    };
    page.as_array().into_iter().flatten().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let keys: FetchedKeys = [
            (KeySource::Uri("https://a/keys".into()), r#"{"keys":[]}"#.into()),
            (KeySource::Issuer("https://b".into()), r#"{"keys":[1]}"#.into()),
        ]
        .into();
        assert_eq!(read(&write(&keys)), keys);
        assert_eq!(read(&json!([{"keys": "x"}, 3])), FetchedKeys::new());
    }
}
