//! Kubernetes' protobuf request bodies → the JSON they stand for.
//!
//! kubectl's typed commands (`create namespace`, `auth can-i`, `create token`, …) send protobuf and do not fall back.
//! Invariant: only the kinds in the table are read, completely bounded by the body's length; answers are always JSON.
//! Source: the field numbers of the `generated.proto` files of Kubernetes' API.

use crate::error::{ApiError, ApiResult};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::OnceLock;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// First bytes of every such body.
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting of messages.
const DEPTH: usize = 32;

/// The messages; the file's head tells how they are written.
const MESSAGES: &str = include_str!("protobuf/messages.txt");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scalar {
    Text,
    Integer,
    Boolean,
    Bytes,
    Time,
    Raw,
    IntOrString,
    Quantity,
    Texts,
    Message(&'static str),
}

#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    scalar: Scalar,
    repeated: bool,
    map: bool,
    /// Set to zero is not the same as not set.
    keep: bool,
}

type Messages = HashMap<&'static str, HashMap<u64, Field>>;

fn messages() -> &'static Messages {
    static PARSED: OnceLock<Messages> = OnceLock::new();
    PARSED.get_or_init(|| {
        let lines = MESSAGES.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(": "));
        lines.map(|(name, fields)| (name, fields.split("; ").filter_map(field).collect())).collect()
    })
}

fn field(text: &'static str) -> Option<(u64, Field)> {
    let mut words = text.split(' ');
    let (number, name, kind) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    let (keep, kind) = kind.strip_suffix('?').map_or((false, kind), |k| (true, k));
    let (repeated, kind) = kind.strip_prefix("[]").map_or((false, kind), |k| (true, k));
    let inner = kind.strip_prefix('<').and_then(|k| k.strip_suffix('>'));
    let scalar = match inner.unwrap_or(kind) {
        "s" => Scalar::Text,
        "i" => Scalar::Integer,
        "b" => Scalar::Boolean,
        "B" => Scalar::Bytes,
        "T" => Scalar::Time,
        "J" => Scalar::Raw,
        "N" => Scalar::IntOrString,
        "Q" => Scalar::Quantity,
        "X" => Scalar::Texts,
        message => Scalar::Message(message),
    };
    Some((number, Field { name, scalar, repeated, map: inner.is_some(), keep }))
}

/// Decodes a whole body.
///
/// # Errors
/// `UnsupportedMediaType` for kinds that must come as JSON, `BadRequest` for bytes that are no such message.
pub fn decode(body: &[u8]) -> ApiResult<Value> {
    let bad = || ApiError::BadRequest("the body is not a Kubernetes protobuf message".into());
    let unknown = body.strip_prefix(MAGIC).ok_or_else(bad)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for part in parts(unknown) {
        match part.ok_or_else(bad)? {
            (1, Wire::Bytes(meta)) => {
                for part in parts(meta) {
                    match part.ok_or_else(bad)? {
                        (1, Wire::Bytes(text)) => api_version = String::from_utf8_lossy(text).into_owned(),
                        (2, Wire::Bytes(text)) => kind = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("core", &api_version));
    let full = match (kind.as_str(), group) {
        ("DeleteOptions", _) => "meta.DeleteOptions".to_owned(),
        // The subresource takes either; they are the same.
        ("Eviction", "policy") => "policy/v1.Eviction".to_owned(),
        _ => format!("{}/{version}.{kind}", group.split('.').next().unwrap_or_default()),
    };
    let (name, _) = messages()
        .get_key_value(full.as_str())
        .ok_or_else(|| ApiError::UnsupportedMediaType("application/json, application/yaml".into()))?;
    let mut map = message(name, raw, 0).ok_or_else(bad)?;
    map.shift_insert(0, "kind".into(), json!(kind));
    map.shift_insert(1, "apiVersion".into(), json!(api_version));
    Ok(Value::Object(map))
}

enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Skipped,
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Fields in the order they come; `None` once where the bytes are damaged.
fn parts(mut bytes: &[u8]) -> impl Iterator<Item = Option<(u64, Wire<'_>)>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let part = part(&mut bytes);
        if part.is_none() {
            bytes = &[];
        }
        Some(part)
    })
}

fn part<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Wire<'a>)> {
    let tag = varint(bytes)?;
    let wire = match tag & 7 {
        0 => Wire::Number(varint(bytes)?),
        1 => take(bytes, 8).map(|_| Wire::Skipped)?,
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => take(bytes, 4).map(|_| Wire::Skipped)?,
        _ => return None,
    };
    Some((tag >> 3, wire))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Option<Map<String, Value>> {
    if depth > DEPTH {
        return None;
    }
    let fields = messages().get(name)?;
    let mut map = Map::new();
    for part in parts(bytes) {
        let (number, wire) = part?;
        // One that a newer client knows.
        let Some(field) = fields.get(&number) else { continue };
        if field.map {
            let Wire::Bytes(entry) = wire else { return None };
            let (key, value) = entry_of(field.scalar, entry, depth)?;
            let target = map.entry(field.name).or_insert_with(|| json!({}));
            target.as_object_mut()?.insert(key, value);
            continue;
        }
        let value = scalar(field.scalar, wire, depth)?;
        if let (".", Value::Object(inner)) = (field.name, &value) {
            map.extend(inner.clone());
            continue;
        }
        if field.repeated {
            map.entry(field.name).or_insert_with(|| json!([])).as_array_mut()?.push(value);
        } else if field.keep || !is_zero(&value) {
            map.insert(field.name.into(), value);
        }
    }
    Some(map)
}

/// What Go leaves out of JSON.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(_) => false,
    }
}

fn entry_of(kind: Scalar, bytes: &[u8], depth: usize) -> Option<(String, Value)> {
    let (mut key, mut value) = (String::new(), Value::Null);
    for part in parts(bytes) {
        match part? {
            (1, Wire::Bytes(text)) => key = std::str::from_utf8(text).ok()?.to_owned(),
            (2, wire) => value = scalar(kind, wire, depth)?,
            _ => {}
        }
    }
    // An empty value may be left out on the wire.
    Some((key, if value.is_null() { json!("") } else { value }))
}

fn scalar(kind: Scalar, wire: Wire<'_>, depth: usize) -> Option<Value> {
    Some(match (kind, wire) {
        (Scalar::Text, Wire::Bytes(text)) => json!(std::str::from_utf8(text).ok()?),
        // Negative numbers come as two's complement.
        (Scalar::Integer, Wire::Number(number)) => json!(number.cast_signed()),
        (Scalar::Boolean, Wire::Number(number)) => json!(number != 0),
        (Scalar::Bytes, Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        (Scalar::Time, Wire::Bytes(bytes)) => time(bytes)?,
        (Scalar::Raw, Wire::Bytes(bytes)) => {
            let raw = parts(bytes).find_map(|p| match p {
                Some((1, Wire::Bytes(raw))) => Some(raw),
                _ => None,
            });
            serde_json::from_slice(raw?).ok()?
        }
        (Scalar::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Scalar::Quantity, Wire::Bytes(bytes)) => json!(texts(bytes)?.into_iter().next().unwrap_or_default()),
        (Scalar::Texts, Wire::Bytes(bytes)) => json!(texts(bytes)?),
        (Scalar::Message(name), Wire::Bytes(bytes)) => Value::Object(message(name, bytes, depth.saturating_add(1))?),
        _ => return None,
    })
}

/// The texts of a message that has nothing else.
fn texts(bytes: &[u8]) -> Option<Vec<String>> {
    let mut all = Vec::new();
    for part in parts(bytes) {
        if let (1, Wire::Bytes(text)) = part? {
            all.push(std::str::from_utf8(text).ok()?.to_owned());
        }
    }
    Some(all)
}

fn time(bytes: &[u8]) -> Option<Value> {
    let (mut seconds, mut nanos) = (0_i64, 0_i64);
    for part in parts(bytes) {
        match part? {
            (1, Wire::Number(number)) => seconds = number.cast_signed(),
            (2, Wire::Number(number)) => nanos = number.cast_signed(),
            _ => {}
        }
    }
    // The zero time of Go is written as nothing.
    if bytes.is_empty() {
        return Some(Value::Null);
    }
    let total = i128::from(seconds).checked_mul(1_000_000_000)?.checked_add(i128::from(nanos))?;
    let time = OffsetDateTime::from_unix_timestamp_nanos(total).ok()?;
    Some(json!(time.format(&Rfc3339).ok()?))
}

fn int_or_string(bytes: &[u8]) -> Option<Value> {
    let (mut is_text, mut number, mut text) = (false, 0_i64, String::new());
    for part in parts(bytes) {
        match part? {
            (1, Wire::Number(kind)) => is_text = kind == 1,
            (2, Wire::Number(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(value)) => text = std::str::from_utf8(value).ok()?.to_owned(),
            _ => {}
        }
    }
    Some(if is_text { json!(text) } else { json!(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &meta), bytes(2, raw)].concat()
    }

    #[test]
    fn the_table_is_complete() {
        for (name, fields) in messages() {
            assert!(!fields.is_empty(), "{name}");
            for field in fields.values() {
                if let Scalar::Message(part) = field.scalar {
                    assert!(messages().contains_key(part), "{name}.{} is a {part}", field.name);
                }
            }
        }
        let lines = MESSAGES.lines().filter(|l| !l.starts_with('#'));
        let fields: usize = lines.map(|l| l.matches("; ").count() + 1).sum();
        assert_eq!(messages().values().map(HashMap::len).sum::<usize>(), fields);
        for resource in crate::catalog::Catalog::of(carrick_api::kinds::registry()).iter() {
            let ours =
                carrick_api::kinds::registry().find(&resource.group, &resource.plural).is_some_and(|k| !k.custom);
            let group = if resource.group.is_empty() { "core" } else { resource.group.split('.').next().unwrap() };
            for version in resource.versions.iter().filter(|_| ours && resource.kind != "CustomResourceDefinition") {
                let name = format!("{group}/{version}.{}", resource.kind);
                assert!(messages().contains_key(name.as_str()), "{name}");
            }
        }
    }

    #[test]
    fn a_config_map() {
        let labels = [bytes(1, b"app"), bytes(2, b"x")].concat();
        let meta = [bytes(1, b"cm"), bytes(2, b""), bytes(8, b""), bytes(11, &labels)].concat();
        let data = [bytes(1, b"k"), bytes(2, b"v")].concat();
        let binary = [bytes(1, b"b"), bytes(2, &[0, 255])].concat();
        let raw = [bytes(1, &meta), bytes(2, &data), bytes(3, &binary), vec![4 << 3, 0]].concat();
        let sent = body("v1", "ConfigMap", &raw);
        let value = decode(&sent).unwrap();
        assert_eq!(
            value,
            json!({
                "kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "cm", "labels": {"app": "x"}},
                "data": {"k": "v"}, "binaryData": {"b": "AP8="}, "immutable": false,
            })
        );
        for cut in 0..sent.len() {
            let _never_panics = decode(&sent[..cut]);
        }
        for position in 0..sent.len() {
            let mut damaged = sent.clone();
            damaged[position] ^= 0xff;
            let _never_panics = decode(&damaged);
        }
    }

    #[test]
    fn what_lies_in_the_message_around_it_comes_out_there() {
        let get = [bytes(1, b"/ready"), bytes(2, &[vec![8, 0], vec![16, 80], bytes(3, b"")].concat())].concat();
        let probe = [bytes(1, &bytes(2, &get)), vec![2 << 3, 0], vec![3 << 3, 1]].concat();
        let limits = [bytes(1, b"cpu"), bytes(2, &bytes(1, b"100m"))].concat();
        let container = [bytes(1, b"c"), bytes(8, &bytes(1, &limits)), bytes(11, &probe)].concat();
        let volume = [bytes(1, b"v"), bytes(2, &bytes(2, b""))].concat();
        let spec = [bytes(1, &volume), bytes(2, &container), vec![4 << 3, 0]].concat();
        let pod = decode(&body("v1", "Pod", &bytes(2, &spec))).unwrap();
        assert_eq!(
            pod["spec"],
            json!({
                "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}},
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": 80}, "timeoutSeconds": 1}}],
            })
        );
    }

    #[test]
    fn other_kinds_must_be_json() {
        assert_eq!(decode(&body("example.com/v1", "Pod", b"")).unwrap_err().code(), 415);
        assert_eq!(decode(&body("v1", "ObjectMeta", b"")).unwrap_err().code(), 415);
        assert_eq!(decode(b"{}").unwrap_err().code(), 400);
    }
}
