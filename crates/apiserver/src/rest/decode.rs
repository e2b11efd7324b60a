//! Request bodies → objects, and objects against their schema.
//!
//! Invariant: a body is bounded before it is buffered; what is unknown to the schema is refused, told or dropped as the
//! client's `fieldValidation` says, and never stored.
//! What it leaves to others: meaning (admission).

mod go;

use crate::catalog::Resource;
use crate::error::{ApiError, ApiResult, Cause};
use bytes::Bytes;
use carrick_api::schema::Reason;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::fmt;

/// Largest request body, bytes; as Kubernetes'.
pub const BODY_LIMIT: usize = 3 << 20;
/// Findings told to a client at most.
const FINDINGS: usize = 64;

/// How strict decoding is (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Unknown and duplicate fields are errors.
    Strict,
    /// They are told in warnings and dropped.
    Warn,
    /// They are dropped.
    Ignore,
}

impl Strictness {
    /// From the query parameter.
    ///
    /// # Errors
    /// `BadRequest` for other words.
    pub fn parse(text: Option<&str>) -> ApiResult<Self> {
        match text {
            None | Some("Warn") => Ok(Self::Warn),
            Some("Strict") => Ok(Self::Strict),
            Some("Ignore") => Ok(Self::Ignore),
            Some(other) => Err(ApiError::BadRequest(format!(
                "invalid fieldValidation value {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }
}

/// Content type without parameters.
pub fn content_type(headers: &HeaderMap) -> &str {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    text.split(';').next().unwrap_or("").trim()
}

/// Reads a whole body of bounded size.
///
/// # Errors
/// `TooLarge`, or `BadRequest` when the client breaks off.
pub async fn read<B>(body: B) -> ApiResult<Bytes>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::TooLarge(format!("Request entity too large: limit is {BODY_LIMIT}")))
        }
        Err(_) => Err(ApiError::BadRequest("the request body could not be read".into())),
    }
}

/// A decoded document and its duplicate fields.
#[derive(Debug)]
pub struct Document {
    /// The value; of duplicates the last.
    pub value: Value,
    /// Paths of fields that came twice.
    pub duplicates: Vec<String>,
}

/// Decodes JSON, or YAML where the content type says so.
///
/// # Errors
/// `BadRequest` for text that is no such thing, `UnsupportedMediaType` for other forms.
pub fn document(content_type: &str, bytes: &[u8]) -> ApiResult<Document> {
    match content_type {
        "" | "application/json" | "*/*" => json(bytes),
        "application/vnd.kubernetes.protobuf" => {
            Ok(Document { value: super::protobuf::decode(bytes)?, duplicates: Vec::new() })
        }
        "application/yaml" | "text/yaml" | "application/x-yaml" => yaml(bytes),
        _ => {
            let all = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
            Err(ApiError::UnsupportedMediaType(all.into()))
        }
    }
}

/// Decodes a document that is to be an object of `kind`; an empty `kind` is one of Kubernetes' custom ones.
///
/// # Errors
/// As `document`, in the words that Kubernetes has for what is no object at all.
pub fn object(content_type: &str, bytes: &[u8], kind: &str) -> ApiResult<Document> {
    let no_object = |why: &str| {
        let shown = if bytes.first() == Some(&b'{') {
            String::from_utf8_lossy(bytes).into_owned()
        } else {
            bytes.iter().map(|b| format!("{b:02x}")).collect()
        };
        let shown: String = shown.chars().take(1024).collect();
        ApiError::BadRequest(format!("the object provided is unrecognized (must be of type {kind}): {why} ({shown})"))
    };
    match document(content_type, bytes) {
        Ok(document) if document.value.is_object() || document.value.is_null() => Ok(document),
        Ok(document) => Err(no_object(&format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            go_name(&document.value)
        ))),
        Err(ApiError::BadRequest(why)) if !kind.is_empty() && why.starts_with("couldn't get") => Err(no_object(&why)),
        Err(error) => Err(error),
    }
}

/// What Go calls the JSON type of a value.
pub fn go_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What Go's reader says of bytes that are no JSON.
fn go_error(error: &serde_json::Error, bytes: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let line = bytes.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let letter = line.get(error.column().saturating_sub(1)).copied().map(char::from);
    match letter {
        Some(letter) if error.is_syntax() && error.to_string().starts_with("expected value") => {
            format!("invalid character {letter:?} looking for beginning of value")
        }
        _ => error.to_string(),
    }
}

/// One JSON document.
///
/// # Errors
/// `BadRequest`.
pub fn json(bytes: &[u8]) -> ApiResult<Document> {
    let watch = Duplicates::default();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value =
        Strict { watch: &watch }.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value)).map_err(
            |e| ApiError::BadRequest(format!("couldn't get version/kind; json parse error: {}", go_error(&e, bytes))),
        )?;
    Ok(Document { value, duplicates: watch.found.into_inner() })
}

/// One YAML document.
///
/// # Errors
/// `BadRequest`, also for duplicate keys.
pub fn yaml(bytes: &[u8]) -> ApiResult<Document> {
    let text = std::str::from_utf8(bytes).map_err(|_| ApiError::BadRequest("the body is not UTF-8".into()))?;
    let value: Value =
        serde_saphyr::from_str(text).map_err(|e| ApiError::BadRequest(format!("yaml parse error: {e}")))?;
    Ok(Document { value, duplicates: Vec::new() })
}

#[derive(Default)]
struct Duplicates {
    path: RefCell<Vec<String>>,
    found: RefCell<Vec<String>>,
}

/// Deserializes a `Value` and notes duplicate keys.
#[derive(Clone, Copy)]
struct Strict<'a> {
    watch: &'a Duplicates,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Number::from_f64(v).map_or(Value::Null, Value::Number))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Deserialize::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            self.watch.path.borrow_mut().push(format!("[{}]", list.len()));
            let item = seq.next_element_seed(self)?;
            self.watch.path.borrow_mut().pop();
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            self.watch.path.borrow_mut().push(format!(".{key}"));
            if map.contains_key(&key) && self.watch.found.borrow().len() < FINDINGS {
                let path = self.watch.path.borrow().concat();
                self.watch.found.borrow_mut().push(path.trim_start_matches('.').to_owned());
            }
            let value = access.next_value_seed(self)?;
            self.watch.path.borrow_mut().pop();
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// What is wrong with an object's fields, sorted by how it is told.
pub struct Findings {
    /// `unknown field "a.b"`, `duplicate field "c"`.
    pub strict: Vec<String>,
    /// Wrong types and values.
    pub wrong: Vec<Cause>,
}

/// Compares with the schema and drops what it does not know.
pub fn inspect(resource: &Resource, version: &str, object: &mut Value, duplicates: &[String]) -> Findings {
    let schema = resource.schema(version);
    let mut findings = Findings { strict: Vec::new(), wrong: Vec::new() };
    let mut unknown = false;
    for error in schema.check(object).into_iter().take(FINDINGS) {
        if error.is_unknown() {
            unknown = true;
            findings.strict.push(error.message());
        } else {
            let mut message = error.message();
            if let (true, Reason::Invalid { value, message: why }) = (resource.is_custom(), &error.reason) {
                let format = if why.contains("RFC 3339") { "date-time" } else { "byte" };
                message = format!("Invalid value: {value}: {} in body must be of type {format}: {value}", error.path);
            }
            let message = message.replace("of type integer or string", "of type integer,string");
            let reason = if resource.is_custom() { "FieldValueTypeInvalid" } else { error.cause() };
            findings.wrong.push(Cause { reason, message, field: error.path });
        }
    }
    findings.strict.extend(duplicates.iter().take(FINDINGS).map(|path| format!("duplicate field {path:?}")));
    if unknown {
        schema.prune(object);
    }
    if !resource.is_custom() {
        schema.canonical(object);
    }
    findings
}

/// `inspect`, and the error or the warnings that follow for a whole object in a request.
///
/// # Errors
/// `BadRequest` as Kubernetes' decoder words it, `Invalid` for wrong values in custom kinds.
pub fn check(
    resource: &Resource,
    version: &str,
    object: &mut Value,
    duplicates: &[String],
    strictness: Strictness,
) -> ApiResult<Vec<String>> {
    let findings = inspect(resource, version, object, duplicates);
    refuse_wrong(resource, version, object, findings.wrong)?;
    match strictness {
        Strictness::Strict if !findings.strict.is_empty() => Err(ApiError::BadRequest(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {}",
            findings.strict.join(", "),
            kind = resource.kind,
        ))),
        Strictness::Warn => Ok(findings.strict),
        _ => Ok(Vec::new()),
    }
}

/// What Kubernetes' reader says of the first value that it cannot read.
pub fn unread(resource: &Resource, version: &str, object: &Value, cause: &Cause) -> String {
    go::unread(resource.schema(version), object, cause)
}

/// The error for wrong types and values, if there are any.
///
/// # Errors
/// `Invalid` for custom kinds, `BadRequest` for Kubernetes' own.
pub fn refuse_wrong(resource: &Resource, version: &str, object: &Value, wrong: Vec<Cause>) -> ApiResult<()> {
    if wrong.is_empty() {
        return Ok(());
    }
    if resource.is_custom() {
        let mut wrong = wrong;
        if let Some(definition) = resource.definition() {
            wrong.extend(definition.besides(version, object, &wrong));
        }
        return Err(ApiError::invalid(&resource.group, &resource.kind, crate::store::name_of(object), wrong));
    }
    // Kubernetes' reader stops at the first thing that it cannot read, and names Go's types.
    let first = wrong.first().map(|cause| go::unread(resource.schema(version), object, cause)).unwrap_or_default();
    Err(ApiError::BadRequest(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {first}",
        kind = resource.kind,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_named() {
        let document = json(br#"{"a":{"b":1,"b":2},"l":[{"x":1},{"x":1,"x":3}],"a":{"c":4}}"#).unwrap();
        assert_eq!(document.duplicates, ["a.b", "l[1].x", "a"]);
        assert_eq!(document.value, serde_json::json!({"a": {"c": 4}, "l": [{"x": 1}, {"x": 3}]}));
    }

    #[test]
    fn hostile_text_is_refused_and_does_not_panic() {
        let deep = "[".repeat(100_000);
        for text in ["", "{", "nul", "{\"a\":1}x", "\u{0}", "{\"a\":1e999}", deep.as_str()] {
            assert!(json(text.as_bytes()).is_err(), "{}", text.get(..8.min(text.len())).unwrap());
        }
        assert!(json(b"\xff\xfe").is_err());
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        // Either refused or small: an alias bomb must not fill the memory.
        if let Ok(document) = yaml(bomb.as_bytes()) {
            assert!(document.value.to_string().len() < 4 << 20);
        }
        assert!(yaml(b"a: [").is_err());
    }

    #[test]
    fn types() {
        assert!(document("application/yaml", b"a: 1").is_ok());
        assert!(document("application/cbor", b"").is_err());
    }
}
