//! Text, header and query matchers.
//!
//! Invariant: regexes are anchored over the whole input (Envoy matches fully) and size-limited; ASCII-case-insensitive patterns
//! are stored lower case. Evaluation is in `crate::matching`.

use http::HeaderName;
use regex::bytes::Regex;

use super::Name;

/// `StringMatcher`.
#[derive(Debug, Clone)]
pub enum StringMatcher {
    /// Equal.
    Exact(Text),
    /// Starts with.
    Prefix(Text),
    /// Ends with.
    Suffix(Text),
    /// Contains.
    Contains(Text),
    /// Matches whole.
    Regex(Regex),
}

/// Text and whether case matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Lower case if `ignore_case`.
    pub value: Box<str>,
    /// ASCII case does not matter.
    pub ignore_case: bool,
}

/// A header name in a matcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MatchKey {
    /// `:method`
    Method,
    /// `:path`
    Path,
    /// `:authority` (also written `host`)
    Authority,
    /// `:scheme`
    Scheme,
    /// `:status`: only meaningful on responses.
    Status,
    /// A header.
    Name(HeaderName),
}

/// `HeaderMatcher`.
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    /// Which header. Several values are joined by `,` before matching, as in Envoy.
    pub key: MatchKey,
    /// How.
    pub condition: HeaderCondition,
    /// The opposite.
    pub invert: bool,
    /// A missing header is the empty text.
    pub missing_as_empty: bool,
}

/// Condition on a header.
#[derive(Debug, Clone)]
pub enum HeaderCondition {
    /// Present (true) or absent (false).
    Present(bool),
    /// Text.
    Text(StringMatcher),
    /// A decimal integer in `start..end`.
    Range {
        /// First.
        start: i64,
        /// One past the last.
        end: i64,
    },
}

/// `QueryParameterMatcher`.
#[derive(Debug, Clone)]
pub struct QueryMatcher {
    /// Parameter name; its first occurrence counts.
    pub name: Name,
    /// `None` = present is enough.
    pub value: QueryCondition,
}

/// Condition on a query parameter.
#[derive(Debug, Clone)]
pub enum QueryCondition {
    /// Present (true) or absent (false).
    Present(bool),
    /// Text.
    Text(StringMatcher),
}

/// `CookieMatcher`.
#[derive(Debug, Clone)]
pub struct CookieMatcher {
    /// Cookie name.
    pub name: Name,
    /// Value.
    pub value: StringMatcher,
    /// The opposite.
    pub invert: bool,
}

/// Regex rewrite: matches are replaced by the substitution.
#[derive(Debug, Clone)]
pub struct RegexRewrite {
    /// Not anchored: every match is replaced.
    pub pattern: regex::Regex,
    /// In the regex crate's syntax (`${1}`), translated from RE2's `\1`.
    pub substitution: Box<str>,
}

/// `MetadataMatcher`: a value below a namespace of metadata.
#[derive(Debug, Clone)]
pub struct MetadataMatcher {
    /// Namespace (`filter`).
    pub namespace: Name,
    /// Keys, at least one.
    pub path: Vec<Name>,
    /// What the value must be.
    pub value: ValueMatcher,
    /// The opposite.
    pub invert: bool,
}

/// `ValueMatcher`. A missing value matches nothing.
#[derive(Debug, Clone)]
pub enum ValueMatcher {
    /// null.
    Null,
    /// A number.
    Number(f64),
    /// A number in `start..end`.
    Range {
        /// First.
        start: f64,
        /// The first beyond.
        end: f64,
    },
    /// A text.
    Text(StringMatcher),
    /// A truth value.
    Bool(bool),
    /// There is one. With `false` nothing matches.
    Present(bool),
    /// A list, one of whose values matches.
    OneOf(Box<ValueMatcher>),
    /// Any of these.
    Or(Vec<ValueMatcher>),
}
