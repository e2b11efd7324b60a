//! Label and field selectors of lists, watches and collection deletes.
//!
//! Invariant: a selector that does not parse is refused, never widened.
//! What it leaves to others: which objects are looked at.

use crate::error::{ApiError, ApiResult};
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// A parsed `labelSelector`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

/// A parsed `fieldSelector`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(String, bool, String)>);

/// Both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selectors {
    /// `labelSelector`.
    pub labels: LabelSelector,
    /// `fieldSelector`.
    pub fields: FieldSelector,
}

/// Fields that Kubernetes lets one select by, besides `metadata.name` and `metadata.namespace`.
const FIELDS: &[(&str, &[&str])] = &[
    (
        "pods",
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
    ),
    (
        "events",
        &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
    ),
    ("secrets", &["type"]),
    ("namespaces", &["status.phase"]),
    ("nodes", &["spec.unschedulable"]),
    ("services", &["spec.clusterIP", "spec.type"]),
];

impl Selectors {
    /// Parses both parameters for `resource`.
    ///
    /// # Errors
    /// `BadRequest`.
    pub fn parse(resource: &str, labels: Option<&str>, fields: Option<&str>) -> ApiResult<Self> {
        Ok(Self {
            labels: LabelSelector::parse(labels.unwrap_or(""))?,
            fields: FieldSelector::parse(resource, fields.unwrap_or(""))?,
        })
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.labels.0.is_empty() && self.fields.0.is_empty()
    }

    /// Whether `object` is selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }
}

fn bad(text: &str, why: &str) -> ApiError {
    ApiError::BadRequest(format!("unable to parse requirement: {why} in {text:?}"))
}

impl LabelSelector {
    /// `a=b,c!=d,e in (x,y),f notin (z),g,!h`.
    ///
    /// # Errors
    /// `BadRequest`.
    pub fn parse(text: &str) -> ApiResult<Self> {
        let mut requirements = Vec::new();
        for part in split(text)? {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            requirements.push(requirement(part)?);
        }
        Ok(Self(requirements))
    }

    fn matches(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
        let get = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => get(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Requirement::NotIn(key, values) => get(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Requirement::Exists(key) => get(key).is_some(),
            Requirement::Absent(key) => get(key).is_none(),
        })
    }
}

/// Splits at commas that are not within parentheses.
fn split(text: &str) -> ApiResult<Vec<&str>> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_u32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth = depth.saturating_add(1),
            ')' => depth = depth.checked_sub(1).ok_or_else(|| bad(text, "unexpected ')'"))?,
            ',' if depth == 0 => {
                parts.push(text.get(start..at).unwrap_or(""));
                start = at.saturating_add(1);
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err(bad(text, "missing ')'"));
    }
    parts.push(text.get(start..).unwrap_or(""));
    Ok(parts)
}

fn key(text: &str, whole: &str) -> ApiResult<String> {
    let text = text.trim();
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if text.is_empty() || text.len() > 317 || !text.chars().all(ok) {
        return Err(bad(whole, "invalid label key"));
    }
    Ok(text.to_owned())
}

fn value(text: &str, whole: &str) -> ApiResult<String> {
    let text = text.trim();
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.len() > 63 || !text.chars().all(ok) {
        return Err(bad(whole, "invalid label value"));
    }
    Ok(text.to_owned())
}

fn requirement(part: &str) -> ApiResult<Requirement> {
    if let Some(rest) = part.strip_prefix('!') {
        return Ok(Requirement::Absent(key(rest, part)?));
    }
    if let Some((left, set)) = part.split_once('(') {
        let set = set.trim().strip_suffix(')').ok_or_else(|| bad(part, "missing ')'"))?;
        let values = set.split(',').map(|v| value(v, part)).collect::<ApiResult<Vec<_>>>()?;
        let mut words = left.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(k), Some("in"), None) => Ok(Requirement::In(key(k, part)?, values)),
            (Some(k), Some("notin"), None) => Ok(Requirement::NotIn(key(k, part)?, values)),
            _ => Err(bad(part, "expected 'in' or 'notin'")),
        };
    }
    if let Some((k, v)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(key(k, part)?, vec![value(v, part)?]));
    }
    if let Some((k, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(key(k, part)?, vec![value(v, part)?]));
    }
    Ok(Requirement::Exists(key(part, part)?))
}

impl FieldSelector {
    /// `metadata.name=x,status.phase!=Running`.
    ///
    /// # Errors
    /// `BadRequest`, also for fields that cannot be selected by.
    pub fn parse(resource: &str, text: &str) -> ApiResult<Self> {
        let mut terms = Vec::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (field, equal, wanted) = if let Some((f, v)) = part.split_once("!=") {
                (f, false, v)
            } else if let Some((f, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (f, true, v)
            } else {
                return Err(ApiError::BadRequest(format!("invalid selector: '{text}'; can't understand '{part}'")));
            };
            let own = FIELDS.iter().find(|(r, _)| *r == resource).map_or(&[][..], |(_, fields)| fields);
            if !matches!(field, "metadata.name" | "metadata.namespace") && !own.contains(&field) {
                return Err(ApiError::BadRequest(format!("field label not supported: {field}")));
            }
            terms.push((format!("/{}", field.replace('.', "/")), equal, wanted.to_owned()));
        }
        Ok(Self(terms))
    }

    /// Selects one name, as a watch of one object does.
    pub fn add_name(&mut self, name: &str) {
        self.0.push(("/metadata/name".into(), true, name.to_owned()));
    }

    fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(pointer, equal, wanted)| {
            let found = match object.pointer(pointer) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Bool(flag)) => flag.to_string(),
                Some(Value::Number(number)) => number.to_string(),
                Some(Value::Object(map)) => map.get("component").and_then(Value::as_str).unwrap_or("").to_owned(),
                _ if pointer == "/spec/unschedulable" || pointer == "/spec/hostNetwork" => "false".to_owned(),
                _ => String::new(),
            };
            (found == *wanted) == *equal
        })
    }
}

/// A selector as text: `a=b,c in (d,e)`.
pub fn selector_text(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.to_owned();
    }
    let labels = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    let mut parts: Vec<String> = labels.filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    let expressions = selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten();
    parts.extend(expressions.filter_map(|expression| {
        let key = expression.get("key")?.as_str()?;
        let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
        let values: Vec<&str> = values.filter_map(Value::as_str).collect();
        Some(match expression.get("operator")?.as_str()? {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        })
    }));
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels() {
        let pod = json!({"metadata": {"labels": {"app": "a", "tier": "web", "x.io/y": ""}}});
        for (selector, expected) in [
            ("", true),
            ("app=a", true),
            ("app==a,tier!=db", true),
            ("app=b", false),
            ("app in (b, a),tier", true),
            ("app notin (a)", false),
            ("missing notin (a)", true),
            ("!missing,x.io/y=", true),
            ("!app", false),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap().matches(&pod), expected, "{selector}");
        }
        for wrong in ["a in b", "a in (b", "a)", "=x", "a b", "a=b c", "(a)", "a in"] {
            assert!(LabelSelector::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeName": "m"}, "status": {"phase": "Running"}});
        let select = |text: &str| FieldSelector::parse("pods", text).map(|s| s.matches(&pod));
        assert!(select("metadata.name=p,status.phase!=Failed,spec.nodeName==m").unwrap());
        assert!(!select("metadata.namespace=x").unwrap());
        assert!(select("spec.hostNetwork=false").unwrap());
        assert!(select("spec.nope=1").is_err());
        assert!(select("metadata.name").is_err());
    }
}
