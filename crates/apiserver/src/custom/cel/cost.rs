//! What calls cost, and how large their results are.
//!
//! Invariant: the numbers are Kubernetes' (and its CEL library's): a tenth for each character that is looked at, a quarter for each of
//! a regular expression, one for whatever does not depend on a size.

use super::judge::{Judge, Known, below};
use super::types::Type;

const CHARACTER: f64 = 0.1;
const EXPRESSION: f64 = 0.25;

/// Least and most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub min: u64,
    pub max: u64,
}

impl Size {
    pub fn exactly(size: u64) -> Self {
        Self { min: size, max: size }
    }

    fn plus(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn or(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// So many times a part, rounded up.
fn share(size: u64, part: f64) -> u64 {
    // Conversions of floats saturate, which is what is wanted here.
    (size as f64 * part).ceil() as u64
}

/// How a function is written.
pub fn written(function: &str) -> &str {
    match function {
        "_?_:_" => "?",
        "_[_]" | "_[?_]" => "[",
        "@in" => " in ",
        "!_" => "!",
        "-_" => "-",
        _ => function.strip_prefix('_').and_then(|f| f.strip_suffix('_')).unwrap_or(function),
    }
}

/// What a call gives; for calls on a value, that is the first argument.
pub fn call<'a>(judge: &Judge<'a>, function: &str, arguments: &[Known<'a>], type_: Type<'a>) -> Known<'a> {
    let sizes: Vec<Size> = arguments.iter().map(|a| judge.size(a)).collect();
    let size = |index: usize| sizes.get(index).copied().unwrap_or(Size { min: 0, max: 0 });
    let cost_of = |index: usize| arguments.get(index).map_or(0, |a| a.cost);
    let before = arguments.iter().fold(0_u64, |sum, a| sum.saturating_add(a.cost));
    let first = arguments.first().map_or(&Type::Dyn, |a| &a.type_);
    let textual = matches!(first, Type::Text | Type::Bytes | Type::Dyn);
    let traversal = |index: usize| share(size(index).max, CHARACTER);
    let regex = |text: usize, pattern: usize| {
        let text = share(size(text).max.saturating_add(1), CHARACTER);
        text.saturating_mul(share(size(pattern).max, EXPRESSION))
    };
    let (own, made): (u64, Option<Size>) = match function {
        // Whichever branch is dearer.
        "_?_:_" => {
            let cost = cost_of(0).saturating_add(cost_of(1).max(cost_of(2)));
            return Known { size: Some(size(1).or(size(2))), ..Known::new(type_, cost) };
        }
        "_&&_" | "_||_" => return Known::new(type_, before),
        "startsWith" | "endsWith" => (traversal(1), None),
        "contains" => (traversal(0).saturating_mul(traversal(1)), None),
        "matches" | "find" | "findAll" => {
            (regex(0, 1), (function != "matches").then(|| Size { min: 0, max: size(0).max }))
        }
        "@in" => {
            (if matches!(arguments.get(1).map(|a| &a.type_), Some(Type::Map(..))) { 1 } else { size(1).max }, None)
        }
        "_==_" | "_!=_" => (share(size(0).max.min(size(1).max), CHARACTER), None),
        "_<_" | "_<=_" | "_>_" | "_>=_" if textual => (share(size(0).max.min(size(1).max), CHARACTER).max(1), None),
        "_+_" if matches!(first, Type::List(_)) => (1, Some(size(0).plus(size(1)))),
        "_+_" if textual => {
            let made = size(0).plus(size(1));
            (share(made.max, CHARACTER).max(1), Some(made))
        }
        "bytes" => (traversal(0), Some(Size { min: size(0).min, max: size(0).max.saturating_mul(4) })),
        "string" if textual => (traversal(0), Some(size(0))),
        "lowerAscii" | "upperAscii" | "substring" | "trim" | "reverse" | "url" | "strings.quote" => {
            (traversal(0), Some(size(0)))
        }
        "replace" => replace(size(0), size(1), size(2)),
        "split" => (share(size(0).max, 2.0 * CHARACTER), Some(Size { min: 0, max: size(0).max })),
        "join" => join(judge, arguments, &sizes),
        "indexOf" | "lastIndexOf" if *first == Type::Text => (traversal(0), None),
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" => (list(judge, arguments, size(0)), None),
        "sets.contains" | "sets.intersects" => (size(0).max.saturating_mul(size(1).max).saturating_add(1), None),
        "sets.equivalent" => (size(0).max.saturating_mul(size(1).max).saturating_mul(2).saturating_add(1), None),
        "isURL" | "ip" | "cidr" | "isIP" | "isCIDR" | "ip.isCanonical" | "quantity" | "isQuantity" | "semver"
        | "isSemver"
            if textual =>
        {
            (traversal(0), None)
        }
        "containsIP" | "containsCIDR" => (traversal(1).min(share(64, CHARACTER)).saturating_add(8), None),
        "validate" => (traversal(1).saturating_mul(10), None),
        "format" => (share(size(0).max, CHARACTER).saturating_add(size(1).max), None),
        _ => (1, None),
    };
    let mut known = Known { size: made, ..Known::new(type_, before.saturating_add(own)) };
    if let ("_[_]", Some(of)) = (function, arguments.first()) {
        known.path = below(of.path.clone(), if matches!(of.type_, Type::Map(..)) { "@values" } else { "@items" });
    }
    known
}

/// The largest there can be: the smallest of what is replaced, each time by the largest.
fn replace(text: Size, what: Size, by: Size) -> (u64, Option<Size>) {
    let max = match what.min {
        0 => text.max.saturating_add(1).saturating_mul(by.max).saturating_add(text.max),
        smallest if by.max <= smallest => text.max,
        smallest => text.max.div_ceil(smallest).saturating_mul(by.max),
    };
    (share(text.max, 2.0 * CHARACTER), Some(Size { min: 0, max }))
}

fn item<'a>(list: &Known<'a>) -> Option<Known<'a>> {
    match &list.type_ {
        Type::List(item) => Some(Known { path: below(list.path.clone(), "@items"), ..Known::new((**item).clone(), 0) }),
        _ => None,
    }
}

fn join<'a>(judge: &Judge<'a>, arguments: &[Known<'a>], sizes: &[Size]) -> (u64, Option<Size>) {
    let count = sizes.first().map_or(0, |s| s.max);
    let each = arguments.first().and_then(item).map_or(u64::MAX, |item| judge.size(&item).max);
    let between = sizes.get(1).map_or(0, |s| s.max.saturating_mul(count.saturating_sub(1)));
    let max = count.saturating_mul(each).saturating_add(between);
    (share(max, CHARACTER), Some(Size { min: 0, max }))
}

fn list<'a>(judge: &Judge<'a>, arguments: &[Known<'a>], size: Size) -> u64 {
    let item = arguments.first().and_then(item);
    let each = item.filter(|i| matches!(i.type_, Type::Text | Type::Bytes));
    let each = each.map_or(0, |item| share(judge.size(&item).max, CHARACTER));
    size.max.saturating_mul(each.saturating_add(1))
}
