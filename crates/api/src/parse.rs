//! Manifests as text → JSON values.
//!
//! Invariant: text that two readers could understand differently is refused: duplicate keys, more than one value per
//! document, text after the end. Booleans and octal numbers are read as Kubernetes' YAML library reads them. What the
//! values mean is the schema's business.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The largest manifest that is read, in bytes. Kubernetes refuses objects above 1.5 MiB, and a file may hold several.
pub const MAX_BYTES: usize = 16 << 20;

/// How deep values may nest.
pub const MAX_DEPTH: usize = 128;

/// Why a manifest cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text is larger than [`MAX_BYTES`].
    #[error("manifest of {0} bytes is larger than the limit of {MAX_BYTES}")]
    TooLarge(usize),
    /// The text is not UTF-8.
    #[error("manifest is not valid UTF-8 (byte {0})")]
    NotText(usize),
    /// A syntax error, a duplicate key, or a value that YAML and JSON do not share.
    #[error("line {line}, column {column}: {message}")]
    Syntax { line: u64, column: u64, message: String },
    /// A syntax error whose place is not known.
    #[error("{0}")]
    Unplaced(String),
    /// A document that is not an object with fields.
    #[error("document {document}: expected an object, found {found}")]
    NotAnObject { document: usize, found: &'static str },
    /// An object without its type.
    #[error("document {document}: Object '{field}' is missing")]
    Untyped { document: usize, field: &'static str },
}

/// Reads all documents of a YAML or JSON text. Empty documents are skipped.
///
/// # Errors
/// [`ParseError`] of the first document that cannot be read, with line and column.
pub fn documents(text: &[u8]) -> Result<Vec<Value>, ParseError> {
    if text.len() > MAX_BYTES {
        return Err(ParseError::TooLarge(text.len()));
    }
    let text = std::str::from_utf8(text).map_err(|error| ParseError::NotText(error.valid_up_to()))?;
    // A byte order mark would become part of the first key.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with(['{', '['])
        && let Ok(values) = json_documents(text)
    {
        return Ok(values);
    }
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        strict_booleans: false,
        with_snippet: false,
    };
    let values = serde_saphyr::from_multiple_with_options::<Strict>(text, options);
    let values = values.map_err(|error| syntax(&error))?;
    Ok(values.into_iter().map(|Strict(value)| value).filter(|value| !value.is_null()).collect())
}

/// Reads all objects of a text: every document must have `apiVersion` and `kind`; the items of a `List` are returned one
/// by one.
///
/// # Errors
/// As [`documents`], and when a document is not an object or has no type.
pub fn objects(text: &[u8]) -> Result<Vec<Value>, ParseError> {
    let mut objects = Vec::new();
    for (index, document) in documents(text)?.into_iter().enumerate() {
        flatten(document, index.saturating_add(1), &mut objects)?;
    }
    Ok(objects)
}

fn flatten(document: Value, number: usize, objects: &mut Vec<Value>) -> Result<(), ParseError> {
    let Value::Object(mut map) = document else {
        return Err(ParseError::NotAnObject { document: number, found: json_type(&document) });
    };
    for field in ["apiVersion", "kind"] {
        if map.get(field).and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err(ParseError::Untyped { document: number, field });
        }
    }
    let is_list = map.get("kind").and_then(Value::as_str).is_some_and(|kind| kind == "List");
    if !is_list {
        objects.push(Value::Object(map));
        return Ok(());
    }
    match map.remove("items") {
        Some(Value::Array(items)) => items.into_iter().try_for_each(|item| flatten(item, number, objects)),
        None | Some(Value::Null) => Ok(()),
        Some(other) => Err(ParseError::NotAnObject { document: number, found: json_type(&other) }),
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn syntax(error: &serde_saphyr::Error) -> ParseError {
    let message = plain(&error.to_string());
    // The place is a part of the type; without it, the message is kept as it is.
    match error.location() {
        Some(location) => ParseError::Syntax { line: location.line(), column: location.column(), message },
        None => ParseError::Unplaced(message),
    }
}

/// The reader's message without what it says to programmers and without the place, which is told beside it.
fn plain(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let line = line.rsplit_once(" at line ").map_or(line, |(message, _)| message);
    match line.strip_prefix("duplicate mapping key: ") {
        Some(rest) => format!("key {:?} already set in map", rest.split(", set ").next().unwrap_or_default()),
        None => line.to_owned(),
    }
}

fn json_documents(text: &str) -> Result<Vec<Value>, serde_json::Error> {
    let documents = serde_json::Deserializer::from_str(text).into_iter::<Strict>();
    documents.map(|document| document.map(|Strict(value)| value)).collect()
}

/// A value whose maps have no key twice.
struct Strict(Value);

impl<'de> de::Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        StrictSeed { depth: 0 }.deserialize(deserializer).map(Strict)
    }
}

#[derive(Clone, Copy)]
struct StrictSeed {
    depth: usize,
}

impl StrictSeed {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for StrictSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictSeed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        Err(E::custom(format!("number {value} is out of range")))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Value, E> {
        Err(E::custom(format!("number {value} is out of range")))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("JSON has no infinities and no NaN"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let below = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element_seed(below)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let below = self.deeper()?;
        let mut fields = Map::new();
        // Keys that are numbers or booleans in YAML are text in JSON, as `portLevelMtls: {8080: …}` needs.
        while let Some(key) = map.next_key_seed(below)? {
            let key = match key {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => flag.to_string(),
                _ => return Err(de::Error::custom("a key must be text or a number")),
            };
            if fields.contains_key(&key) {
                return Err(de::Error::custom(format!("key {key:?} already set in map")));
            }
            let value = map.next_value_seed(below)?;
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn one(text: &str) -> Value {
        let mut all = documents(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0)
    }

    fn error(text: &str) -> String {
        match documents(text.as_bytes()) {
            Ok(values) => panic!("{text:?} was read as {values:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn scalars_are_read_as_kubernetes_reads_them() {
        for (text, value) in [
            ("a: 1", json!({"a": 1})),
            ("a: 0644", json!({"a": 420})),
            ("a: 0o644", json!({"a": 420})),
            ("a: 0x10", json!({"a": 16})),
            ("a: 1.5", json!({"a": 1.5})),
            ("a: yes", json!({"a": true})),
            ("a: off", json!({"a": false})),
            ("a: \"yes\"", json!({"a": "yes"})),
            ("a: ~", json!({"a": null})),
            ("a:", json!({"a": null})),
            ("a: null", json!({"a": null})),
            ("a: 10s", json!({"a": "10s"})),
            ("a: 1.2.3", json!({"a": "1.2.3"})),
            ("a: -5", json!({"a": -5})),
            ("a: |\n  x\n  y\n", json!({"a": "x\ny\n"})),
            ("8080: x", json!({"8080": "x"})),
            ("portLevelMtls: {8080: {mode: DISABLE}}", json!({"portLevelMtls": {"8080": {"mode": "DISABLE"}}})),
            ("a: &x {b: 1}\nc: *x", json!({"a": {"b": 1}, "c": {"b": 1}})),
            ("ü: \"grüß 日本\"", json!({"ü": "grüß 日本"})),
            ("{\"a\": [1, {\"b\": null}]}", json!({"a": [1, {"b": null}]})),
            ("a: 2024-01-01", json!({"a": "2024-01-01"})),
            ("a: 18446744073709551615", json!({"a": u64::MAX})),
            ("\u{feff}a: 1", json!({"a": 1})),
        ] {
            assert_eq!(one(text), value, "{text:?}");
        }
    }

    #[test]
    fn documents_are_separated_and_empty_ones_skipped() {
        let all = documents(b"---\na: 1\n---\n---\n# nothing\n---\nb: 2\n...\n").unwrap();
        assert_eq!(all, [json!({"a": 1}), json!({"b": 2})]);
        assert_eq!(documents(b"").unwrap(), Vec::<Value>::new());
        assert_eq!(documents(b"{\"a\":1}\n{\"b\":2}").unwrap().len(), 2);
    }

    #[test]
    fn errors_have_a_place() {
        for (text, place) in [
            ("a: 1\na: 2\n", "line 2, column 1: key \"a\" already set in map"),
            ("a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4"),
            ("a: [1\nb: 2\n", "line "),
            ("a: b: c\n", "line 1"),
            ("a: {\"x\": 1, \"x\": 2}", "line 1"),
            ("{\"a\": 1, \"a\": 2}", "line 1"),
            ("a: .inf", "line 1"),
        ] {
            let error = error(text);
            assert!(error.starts_with(place), "{text:?}: {error}");
        }
        assert!(error("? {b: 1}\n: c").contains("a key must be text or a number"));
        assert!(error("1: a\n\"1\": b\n").contains("already set"), "a number and the same text are one key");
        assert_eq!(documents(&[b'a', b':', 0xff]), Err(ParseError::NotText(2)));
        assert!(matches!(documents(&vec![b' '; MAX_BYTES + 1]), Err(ParseError::TooLarge(_))));
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        assert!(documents(deep.as_bytes()).is_err());
    }

    #[test]
    fn objects_need_a_type_and_lists_are_opened() {
        let list = b"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: A}\n- {apiVersion: v1, kind: B}\n";
        let kinds: Vec<_> = objects(list).unwrap().iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["A", "B"]);
        assert_eq!(objects(b"kind: A").unwrap_err().to_string(), "document 1: Object 'apiVersion' is missing");
        assert_eq!(objects(b"apiVersion: v1").unwrap_err().to_string(), "document 1: Object 'kind' is missing");
        assert_eq!(objects(b"- a").unwrap_err().to_string(), "document 1: expected an object, found a list");
    }
}
