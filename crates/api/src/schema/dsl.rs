//! The schemas of Istio's kinds and the Gateway API's, from the text files in `schemas/`.
//!
//! The text says one definition after the other:
//!
//! ```text
//! object Name            # description
//!   field type           # description
//!   field! type          required
//! enum Name = A B C      numbers count up from 0; `A=3` sets one
//! choice Name = A B C    names only, as Kubernetes' kinds have them
//! ```
//!
//! A type is `string bool int32 uint32 int64 uint64 double duration time any`, a definition's name, `[]type`,
//! `map[string]type` or `map[port]type`.
//!
//! Invariant: the files are part of the program; a mistake in them is found by the test that parses them all, and at run
//! time yields a type that accepts anything rather than a panic.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::{Definitions, EnumType, Field, IntRange, Keys, ListMerge, ObjectType, Type};

const FILES: [&str; 8] = [
    include_str!("../../schemas/shared.txt"),
    include_str!("../../schemas/networking.txt"),
    include_str!("../../schemas/virtual_service.txt"),
    include_str!("../../schemas/security.txt"),
    include_str!("../../schemas/telemetry.txt"),
    include_str!("../../schemas/legacy.txt"),
    include_str!("../../schemas/gateway_api.txt"),
    include_str!("../../schemas/cert_manager.txt"),
];

/// Prefix of the definitions' names, as OpenAPI shows them.
pub(crate) const PREFIX: &str = "io.istio.api.";

/// All definitions of Istio's kinds, without metadata.
pub(crate) fn istio_definitions() -> &'static Definitions {
    static PARSED: OnceLock<Definitions> = OnceLock::new();
    PARSED.get_or_init(|| {
        let mut all = Definitions::new();
        for file in FILES {
            let (definitions, _problems) = parse(file);
            all.extend(definitions);
        }
        all
    })
}

fn parse(text: &str) -> (Definitions, Vec<String>) {
    let mut definitions = Definitions::new();
    let mut problems = Vec::new();
    let mut current: Option<(Arc<str>, ObjectType)> = None;
    for (number, raw) in text.lines().enumerate() {
        let (line, description) = match raw.split_once('#') {
            Some((line, description)) => {
                (line.trim_end(), Some(description.trim()).filter(|d| !d.is_empty()).map(Arc::from))
            }
            None => (raw.trim_end(), None),
        };
        if line.trim().is_empty() {
            continue;
        }
        let mut problem = |what: &str| problems.push(format!("line {}: {what}: {raw}", number + 1));
        if line.starts_with(' ') {
            let Some((_, object)) = current.as_mut() else {
                problem("field outside an object");
                continue;
            };
            let mut words = line.split_whitespace();
            let (Some(name), Some(ty), None) = (words.next(), words.next(), words.next()) else {
                problem("expected `name type`");
                continue;
            };
            let (name, required) = match name.strip_suffix('!') {
                Some(name) => (name, true),
                None => (name, false),
            };
            if required {
                object.required.push(name.into());
            }
            if object.fields.insert(name.into(), Field { description, ty: type_of(ty) }).is_some() {
                problem("field given twice");
            }
            continue;
        }
        if let Some((name, object)) = current.take() {
            definitions.insert(name, Type::Object(object));
        }
        if let Some(name) = line.strip_prefix("object ") {
            let name: Arc<str> = format!("{PREFIX}{}", name.trim()).into();
            current = Some((
                name,
                ObjectType {
                    description,
                    fields: BTreeMap::new(),
                    required: Vec::new(),
                    enforce_required: true,
                    open: false,
                    whole: false,
                },
            ));
        } else if let Some((name, values)) = line.strip_prefix("enum ").and_then(|rest| rest.split_once('=')) {
            let name: Arc<str> = format!("{PREFIX}{}", name.trim()).into();
            definitions.insert(name, Type::Enum(enum_of(values)));
        } else if let Some((name, values)) = line.strip_prefix("choice ").and_then(|rest| rest.split_once('=')) {
            let name: Arc<str> = format!("{PREFIX}{}", name.trim()).into();
            let values = values.split_whitespace().map(|value| (Arc::from(value), None)).collect();
            definitions.insert(name, Type::Enum(EnumType { values }));
        } else {
            problem("expected `object`, `enum` or `choice`");
        }
    }
    if let Some((name, object)) = current.take() {
        definitions.insert(name, Type::Object(object));
    }
    (definitions, problems)
}

fn enum_of(values: &str) -> EnumType {
    let mut next = 0i64;
    let mut parsed = Vec::new();
    for word in values.split_whitespace() {
        let (name, number) = match word.split_once('=') {
            Some((name, number)) => (name, number.parse().unwrap_or(next)),
            None => (word, next),
        };
        parsed.push((Arc::from(name), Some(number)));
        next = number.saturating_add(1);
    }
    EnumType { values: parsed }
}

fn type_of(word: &str) -> Type {
    if let Some(items) = word.strip_prefix("[]") {
        return Type::List { items: Box::new(type_of(items)), merge: ListMerge::Atomic };
    }
    if let Some(values) = word.strip_prefix("map[string]") {
        return Type::Map { keys: Keys::Text, values: Box::new(type_of(values)) };
    }
    if let Some(values) = word.strip_prefix("map[port]") {
        return Type::Map { keys: Keys::Number, values: Box::new(type_of(values)) };
    }
    match word {
        "string" => Type::String,
        "bool" => Type::Bool,
        "int32" => Type::Int(IntRange::INT32),
        "uint32" => Type::Int(IntRange::UINT32),
        "int64" => Type::Int(IntRange::INT64),
        "uint64" => Type::Int(IntRange::UINT64),
        "double" => Type::Number,
        "duration" => Type::Duration,
        "time" => Type::Time,
        "intorstring" => Type::IntOrString,
        "any" => Type::Any,
        name => Type::Ref(format!("{PREFIX}{name}").into()),
    }
}

impl IntRange {
    pub(crate) const INT32: Self =
        Self { min: i32::MIN as i64, max: i32::MAX as i128, as_text: false, format: "int32" };
    pub(crate) const UINT32: Self = Self { min: 0, max: u32::MAX as i128, as_text: false, format: "int64" };
    pub(crate) const INT64: Self = Self { min: i64::MIN, max: i64::MAX as i128, as_text: true, format: "int64" };
    pub(crate) const UINT64: Self = Self { min: 0, max: u64::MAX as i128, as_text: true, format: "int64" };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_parses_and_every_name_is_defined() {
        let mut all = Definitions::new();
        for file in FILES {
            let (definitions, problems) = parse(file);
            assert_eq!(problems, Vec::<String>::new());
            for (name, ty) in definitions {
                assert!(all.insert(name.clone(), ty).is_none(), "{name} is defined twice");
            }
        }
        for (name, ty) in &all {
            check_references(name, ty, &all);
        }
        assert!(all.len() > 100, "only {} definitions", all.len());
    }

    fn check_references(place: &str, ty: &Type, all: &Definitions) {
        match ty {
            Type::Ref(name) => assert!(all.contains_key(name), "{place} refers to {name}, which is not defined"),
            Type::List { items, .. } => check_references(place, items, all),
            Type::Map { values, .. } => check_references(place, values, all),
            Type::Object(object) => {
                object.fields.iter().for_each(|(name, f)| check_references(&format!("{place}.{name}"), &f.ty, all))
            }
            _ => {}
        }
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let (_, problems) = parse("  stray string\nobject A\n  x string\n  x bool\n  y\nfoo\n");
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems.iter().any(|p| p.starts_with("line 4: field given twice")), "{problems:?}");
    }
}
