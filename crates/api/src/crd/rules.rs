//! `schemas/rules.txt`, read: what is asked of values at a place of a schema.
//!
//! Invariant: the file is part of the program; a test finds lines that cannot be read and places that do not exist.

use std::collections::BTreeMap;
use std::sync::OnceLock;

const FILE: &str = include_str!("../../schemas/rules.txt");

/// One thing asked.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rule {
    Between {
        what: Measure,
        min: Option<i64>,
        max: Option<i64>,
    },
    Pattern(String),
    Format(String),
    Null,
    /// A duration that may be zero.
    AnyLength,
    /// The field that tells items apart.
    Key(String),
    /// At most one of the fields.
    Choice(Vec<String>),
    Expression {
        rule: String,
        message: String,
    },
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Measure {
    Items,
    Length,
    Properties,
    Value,
}

impl Measure {
    /// JSON Schema's keyword; `bound` is `min` or `max`.
    pub(super) fn keyword(self, bound: &str) -> String {
        match self {
            Self::Items => format!("{bound}Items"),
            Self::Length => format!("{bound}Length"),
            Self::Properties => format!("{bound}Properties"),
            Self::Value => format!("{bound}imum"),
        }
    }
}

/// What is asked at a place.
pub(super) fn rules(place: &str) -> &'static [Rule] {
    static PARSED: OnceLock<BTreeMap<&'static str, Vec<Rule>>> = OnceLock::new();
    PARSED.get_or_init(|| parse().0).get(place).map_or(&[], Vec::as_slice)
}

fn parse() -> (BTreeMap<&'static str, Vec<Rule>>, Vec<&'static str>) {
    let mut all: BTreeMap<&str, Vec<Rule>> = BTreeMap::new();
    let mut unread = Vec::new();
    for line in FILE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.split_once(' ').and_then(|(place, rest)| Some((place, rule(rest)?))) {
            Some((place, rule)) => all.entry(place).or_default().push(rule),
            None => unread.push(line),
        }
    }
    (all, unread)
}

fn rule(text: &str) -> Option<Rule> {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    let between = |what| {
        let (min, max) = rest.split_once("..")?;
        let bound = |text: &str| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
        Some(Rule::Between { what, min: bound(min)?, max: bound(max)? })
    };
    let fields = || rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    match word {
        "items" => between(Measure::Items),
        "length" => between(Measure::Length),
        "properties" => between(Measure::Properties),
        "range" => between(Measure::Value),
        "pattern" => Some(Rule::Pattern(rest.to_owned())),
        "format" => Some(Rule::Format(rest.to_owned())),
        "null" => Some(Rule::Null),
        "any-length" => Some(Rule::AnyLength),
        "key" => Some(Rule::Key(rest.to_owned())),
        "choice" => Some(Rule::Choice(fields())),
        "single" => {
            let counts: Vec<String> = fields().iter().map(|field| format!("(has(self.{field}) ? 1 : 0)")).collect();
            Some(Rule::Expression {
                rule: format!("{} <= 1", counts.join(" + ")),
                message: format!("at most one of {}", fields().join(", ")),
            })
        }
        "cel" => {
            // CEL writes its own bars in pairs: a single one is ours.
            let (rule, message) = rest.rsplit_once(" | ")?;
            Some(Rule::Expression { rule: rule.to_owned(), message: message.to_owned() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{ISTIO_PREFIX, Type, istio_definitions};

    #[test]
    fn every_line_is_read_and_every_place_exists() {
        let (all, unread) = parse();
        assert_eq!(unread, Vec::<&str>::new());
        for place in all.keys() {
            let plain = place.trim_start_matches('=').trim_end_matches("[]").trim_end_matches("{}");
            let (definition, field) = plain.split_once('.').unwrap_or((plain, ""));
            let Some(Type::Object(object)) = istio_definitions().get(format!("{ISTIO_PREFIX}{definition}").as_str())
            else {
                panic!("{place}: no such definition");
            };
            assert!(field.is_empty() || object.fields.contains_key(field), "{place}: no such field");
            for rule in &all[place] {
                let named = match rule {
                    Rule::Choice(fields) => fields.clone(),
                    _ => Vec::new(),
                };
                assert!(named.iter().all(|name| object.fields.contains_key(name.as_str())), "{place}: {named:?}");
            }
        }
    }
}
