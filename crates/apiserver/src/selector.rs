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
    Above(String, i64),
    Below(String, i64),
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
        Self::of(resource, None, labels, fields)
    }

    /// As `parse`; `custom` are the fields that the definition of a custom kind lets one select by.
    ///
    /// # Errors
    /// `BadRequest`.
    pub fn of(
        resource: &str,
        custom: Option<&[String]>,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> ApiResult<Self> {
        Ok(Self {
            labels: LabelSelector::parse(labels.unwrap_or(""))?,
            fields: FieldSelector::parse(resource, custom, fields.unwrap_or(""))?,
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

fn bad(why: impl std::fmt::Display) -> ApiError {
    ApiError::BadRequest(format!("unable to parse requirement: {why}"))
}

fn number(label: Option<&str>) -> Option<i64> {
    label?.parse().ok()
}

impl LabelSelector {
    /// `a=b,c!=d,e in (x,y),f notin (z),g,!h`.
    ///
    /// # Errors
    /// `BadRequest`.
    pub fn parse(text: &str) -> ApiResult<Self> {
        Reader { words: words(text), next: 0 }.all().map(Self)
    }

    fn matches(&self, object: &Value) -> bool {
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
        let get = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => get(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Requirement::NotIn(key, values) => get(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Requirement::Exists(key) => get(key).is_some(),
            Requirement::Absent(key) => get(key).is_none(),
            Requirement::Above(key, bound) => number(get(key)).is_some_and(|n| n > *bound),
            Requirement::Below(key, bound) => number(get(key)).is_some_and(|n| n < *bound),
        })
    }
}

/// The words of a selector: names, operators, brackets and commas.
fn words(text: &str) -> Vec<&str> {
    const SIGNS: [char; 8] = ['=', '!', '(', ')', ',', '>', '<', ' '];
    let is_blank = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    let (mut words, mut rest) = (Vec::new(), text);
    loop {
        rest = rest.trim_start_matches(is_blank);
        let Some(first) = rest.chars().next() else { return words };
        let length = if SIGNS.contains(&first) {
            if ["==", "!="].iter().any(|sign| rest.starts_with(sign)) { 2 } else { 1 }
        } else {
            rest.find(|c: char| SIGNS.contains(&c) || is_blank(c)).unwrap_or(rest.len())
        };
        let (word, left) = rest.split_at(length);
        words.push(word);
        rest = left;
    }
}

/// Reads requirements as Kubernetes' parser does, and complains in its words.
struct Reader<'a> {
    words: Vec<&'a str>,
    next: usize,
}

impl<'a> Reader<'a> {
    fn look(&self) -> &'a str {
        self.words.get(self.next).copied().unwrap_or("")
    }

    fn take(&mut self) -> &'a str {
        let word = self.look();
        self.next = self.next.saturating_add(1);
        word
    }

    fn is_name(word: &str) -> bool {
        !word.is_empty() && !word.starts_with(['=', '!', '(', ')', ',', '>', '<'])
    }

    fn all(&mut self) -> ApiResult<Vec<Requirement>> {
        let mut requirements = Vec::new();
        if self.words.is_empty() {
            return Ok(requirements);
        }
        loop {
            let word = self.look();
            if !(word == "!" || Self::is_name(word)) {
                let why = format!("found '{word}', expected: !, identifier, or 'end of string'");
                return Err(ApiError::BadRequest(why));
            }
            requirements.push(self.requirement()?);
            match self.take() {
                "" => return Ok(requirements),
                "," if self.look() == "!" || Self::is_name(self.look()) => {}
                "," => {
                    let why = format!("found '{}', expected: identifier after ','", self.look());
                    return Err(ApiError::BadRequest(why));
                }
                other => {
                    return Err(ApiError::BadRequest(format!("found '{other}', expected: ',' or 'end of string'")));
                }
            }
        }
    }

    fn requirement(&mut self) -> ApiResult<Requirement> {
        let absent = self.look() == "!";
        if absent {
            self.next = self.next.saturating_add(1);
        }
        let name = self.take();
        if !Self::is_name(name) {
            return Err(bad(format!("found '{name}', expected: identifier")));
        }
        let key = key(name)?;
        if absent {
            return Ok(Requirement::Absent(key));
        }
        if matches!(self.look(), "" | ",") {
            return Ok(Requirement::Exists(key));
        }
        match self.take() {
            operator @ ("=" | "==" | "!=") => {
                let text = self.exact()?;
                let values = vec![value(&key, 0, text)?];
                Ok(if operator == "!=" { Requirement::NotIn(key, values) } else { Requirement::In(key, values) })
            }
            operator @ ("in" | "notin") => {
                let mut values = Vec::new();
                for (index, text) in self.set()?.into_iter().enumerate() {
                    values.push(value(&key, index, text)?);
                }
                Ok(if operator == "in" { Requirement::In(key, values) } else { Requirement::NotIn(key, values) })
            }
            operator @ (">" | "<" | "gt" | "lt") => {
                let text = self.exact()?;
                let bound = text.parse::<i64>().map_err(|_| {
                    bad(format!(
                        "values[0]: Invalid value: {text:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                    ))
                })?;
                let above = matches!(operator, ">" | "gt");
                Ok(if above { Requirement::Above(key, bound) } else { Requirement::Below(key, bound) })
            }
            other => Err(bad(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt"))),
        }
    }

    /// One value, which may be empty.
    fn exact(&mut self) -> ApiResult<&'a str> {
        match self.look() {
            "" | "," => Ok(""),
            word if Self::is_name(word) => Ok(self.take()),
            other => Err(bad(format!("found '{other}', expected: identifier"))),
        }
    }

    /// `(a,b,)`: what is between the commas, be it nothing.
    fn set(&mut self) -> ApiResult<Vec<&'a str>> {
        let open = self.take();
        if open != "(" {
            return Err(bad(format!("found '{open}' expected: '('")));
        }
        let mut values = Vec::new();
        let mut last = "";
        loop {
            match self.take() {
                ")" => {
                    values.push(last);
                    return Ok(values);
                }
                "," => values.push(std::mem::take(&mut last)),
                word if Self::is_name(word) && last.is_empty() => last = word,
                other => return Err(bad(format!("found '{other}', expected: ',', or identifier"))),
            }
        }
    }
}

fn key(text: &str) -> ApiResult<String> {
    if carrick_api::validate::is_label_key(text) {
        return Ok(text.to_owned());
    }
    let why = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    Err(bad(format!("key: Invalid value: {text:?}: {why}")))
}

fn value(key: &str, index: usize, text: &str) -> ApiResult<String> {
    if carrick_api::validate::is_label_value(text) {
        return Ok(text.to_owned());
    }
    let why = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
    Err(bad(format!("values[{index}][{key}]: Invalid value: {text:?}: {why}")))
}

impl FieldSelector {
    /// `metadata.name=x,status.phase!=Running`.
    ///
    /// # Errors
    /// `BadRequest`, also for fields that cannot be selected by.
    fn parse(resource: &str, custom: Option<&[String]>, text: &str) -> ApiResult<Self> {
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
            let defined = custom.is_some_and(|fields| fields.iter().any(|f| f == field));
            if !matches!(field, "metadata.name" | "metadata.namespace") && !own.contains(&field) && !defined {
                if custom.is_none() && own.is_empty() && resource != "namespaces" {
                    let only = "\"metadata.name\", \"metadata.namespace\"";
                    return Err(ApiError::BadRequest(format!("{field:?} is not a known field selector: only {only}")));
                }
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
        let select = |text: &str| FieldSelector::parse("pods", None, text).map(|s| s.matches(&pod));
        assert!(select("metadata.name=p,status.phase!=Failed,spec.nodeName==m").unwrap());
        assert!(!select("metadata.namespace=x").unwrap());
        assert!(select("spec.hostNetwork=false").unwrap());
        assert!(select("spec.nope=1").is_err());
        assert!(select("metadata.name").is_err());
        let custom = ["spec.color".to_owned()];
        let select = |text: &str| FieldSelector::parse("things.example.com", Some(&custom), text);
        assert!(select("spec.color=red").unwrap().matches(&json!({"spec": {"color": "red"}})));
        assert_eq!(select("spec.size=1").unwrap_err().to_string(), "field label not supported: spec.size");
    }
}
