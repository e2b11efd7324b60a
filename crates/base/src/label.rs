//! Labels and the selectors over them, in Kubernetes' grammar (`a=b,c!=d,e in (f,g),!h`).
//!
//! Invariant: a `Selector` is a conjunction; an empty one selects everything. Istio's `matchLabels` is the
//! special case of equalities.

use std::{collections::BTreeMap, fmt};

/// Labels of an object, sorted by key.
pub type Labels = BTreeMap<String, String>;

/// Why a selector text cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse requirement {requirement:?}: {reason}")]
pub struct SelectorError {
    requirement: String,
    reason: &'static str,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Requirement {
    /// The label is present and has one of the values.
    In(String, Vec<String>),
    /// The label is absent or has none of the values.
    NotIn(String, Vec<String>),
    /// The label is present.
    Exists(String),
    /// The label is absent.
    NotExists(String),
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Self::Exists(key) => labels.contains_key(key),
            Self::NotExists(key) => !labels.contains_key(key),
        }
    }
}

/// A conjunction of requirements.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selector(Vec<Requirement>);

impl Selector {
    /// A selector of equalities: Istio's and Services' `matchLabels`.
    pub fn equalities(labels: &Labels) -> Self {
        Self(labels.iter().map(|(k, v)| Requirement::In(k.clone(), vec![v.clone()])).collect())
    }

    /// A selector from requirements already parsed.
    pub fn new(requirements: Vec<Requirement>) -> Self {
        Self(requirements)
    }

    /// Reads the text form that `kubectl -l` takes.
    ///
    /// # Errors
    /// [`SelectorError`] naming the requirement that cannot be read.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        split_top_level(text)
            .into_iter()
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(parse_requirement)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether the labels satisfy every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|r| r.matches(labels))
    }

    /// Whether there is no requirement, so that everything is selected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Splits at commas that are not inside parentheses.
fn split_top_level(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_requirement(part: &str) -> Result<Requirement, SelectorError> {
    let fail = |reason| SelectorError { requirement: part.to_owned(), reason };
    let key_of = |k: &str| {
        let k = k.trim();
        let ok = !k.is_empty() && k.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/'));
        if ok { Ok(k.to_owned()) } else { Err(fail("invalid label key")) }
    };
    let value_of = |v: &str| {
        let v = v.trim();
        let ok = v.len() <= 63 && v.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
        if ok { Ok(v.to_owned()) } else { Err(fail("invalid label value")) }
    };
    if let Some(key) = part.strip_prefix('!') {
        return Ok(Requirement::NotExists(key_of(key)?));
    }
    if let Some(open) = part.find('(') {
        let head = part[..open].trim_end();
        let body = part[open + 1..].strip_suffix(')').ok_or_else(|| fail("missing ')'"))?;
        let values = body.split(',').map(value_of).collect::<Result<Vec<_>, _>>()?;
        return match head.rsplit_once(char::is_whitespace) {
            Some((key, "in")) => Ok(Requirement::In(key_of(key)?, values)),
            Some((key, "notin")) => Ok(Requirement::NotIn(key_of(key)?, values)),
            _ => Err(fail("expected 'in' or 'notin' before '('")),
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(key_of(key)?, vec![value_of(value)?]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(key_of(key)?, vec![value_of(value)?]));
    }
    Ok(Requirement::Exists(key_of(part)?))
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match requirement {
                Requirement::In(k, v) if v.len() == 1 => write!(f, "{k}={}", v.concat())?,
                Requirement::NotIn(k, v) if v.len() == 1 => write!(f, "{k}!={}", v.concat())?,
                Requirement::In(k, v) => write!(f, "{k} in ({})", v.join(","))?,
                Requirement::NotIn(k, v) => write!(f, "{k} notin ({})", v.join(","))?,
                Requirement::Exists(k) => f.write_str(k)?,
                Requirement::NotExists(k) => write!(f, "!{k}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        text.split(',').filter_map(|p| p.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn selectors_select() {
        let cases = [
            ("", "a=b", true),
            ("a=b", "a=b,c=d", true),
            ("a==b", "a=b", true),
            ("a!=b", "a=b", false),
            ("a!=b", "c=d", true),
            ("a", "a=", true),
            ("!a", "a=b", false),
            ("a in (b, c),d", "a=c,d=1", true),
            ("a notin (b,c)", "a=c", false),
            ("app.kubernetes.io/name=x", "app.kubernetes.io/name=x", true),
        ];
        for (selector, on, want) in cases {
            assert_eq!(Selector::parse(selector).unwrap().matches(&labels(on)), want, "{selector:?} on {on:?}");
        }
    }

    #[test]
    fn unreadable_selectors_say_which_part() {
        for bad in ["a in (b", "a within (b)", "=b", "a=b c", "a b"] {
            let error = Selector::parse(bad).unwrap_err().to_string();
            assert!(error.contains("requirement"), "{bad}: {error}");
        }
    }

    #[test]
    fn text_form_round_trips() {
        for text in ["a=b,c!=d,e in (f,g),!h,i", "x notin (y,z)"] {
            assert_eq!(Selector::parse(text).unwrap().to_string(), text);
        }
    }
}
