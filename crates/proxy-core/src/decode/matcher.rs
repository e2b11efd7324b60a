//! Matchers of text, headers, queries, cookies.
//!
//! Invariant: regexes are anchored and bounded in size.

use envoy_types::pb::envoy::config::route::v3 as rds;
use envoy_types::pb::envoy::r#type::matcher::v3 as pb;

use super::bad::{At, Bad, each, only};
use crate::model::matcher::{
    CookieMatcher, HeaderCondition, HeaderMatcher, MatchKey, MetadataMatcher, QueryCondition, QueryMatcher,
    RegexRewrite, StringMatcher, Text, ValueMatcher,
};

/// Compiled size of one regex, bytes.
const REGEX_SIZE: usize = 1 << 20;

fn engine(matcher: &pb::RegexMatcher) -> Result<&str, Bad> {
    only!(matcher, pb::RegexMatcher { regex } refuse { engine_type });
    if matcher.regex.is_empty() {
        return Err(Bad::field("regex", "empty"));
    }
    Ok(&matcher.regex)
}

/// A regex over the whole input.
pub fn regex(matcher: &pb::RegexMatcher) -> Result<regex::bytes::Regex, Bad> {
    let text = format!("^(?:{})$", engine(matcher)?);
    let built = regex::bytes::RegexBuilder::new(&text).size_limit(REGEX_SIZE).build();
    built.map_err(|e| Bad::field("regex", e))
}

/// A regex rewrite.
pub fn rewrite(value: &pb::RegexMatchAndSubstitute) -> Result<RegexRewrite, Bad> {
    let pattern = value.pattern.as_ref().ok_or_else(|| Bad::field("pattern", "missing"))?;
    let pattern = engine(pattern).at("pattern")?;
    let built = regex::RegexBuilder::new(pattern).size_limit(REGEX_SIZE).build();
    let pattern = built.map_err(|e| Bad::field("pattern.regex", e))?;
    let substitution = substitution(&value.substitution, pattern.captures_len()).at("substitution")?;
    Ok(RegexRewrite { pattern, substitution })
}

/// RE2's `\1` and `\\` into `${1}` and `\`; `$` is literal there.
fn substitution(text: &str, groups: usize) -> Result<Box<str>, Bad> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(digit) if digit.is_ascii_digit() => {
                    let group = digit.to_digit(10).and_then(|d| usize::try_from(d).ok()).unwrap_or(usize::MAX);
                    if group >= groups {
                        return Err(Bad::new(format_args!("no group {digit}")));
                    }
                    out.push_str(&format!("${{{digit}}}"));
                }
                _ => return Err(Bad::new("bad escape")),
            },
            c => out.push(c),
        }
    }
    Ok(out.into())
}

fn text(value: &str, ignore_case: bool) -> Text {
    let value = if ignore_case { value.to_ascii_lowercase() } else { value.to_owned() };
    Text { value: value.into(), ignore_case }
}

/// `StringMatcher`.
pub fn string(matcher: &pb::StringMatcher) -> Result<StringMatcher, Bad> {
    use pb::string_matcher::MatchPattern as P;
    let make = |value: &str| text(value, matcher.ignore_case);
    let nonempty = |field: &str, value: &str| {
        if value.is_empty() { Err(Bad::field(field, "empty")) } else { Ok(make(value)) }
    };
    Ok(match &matcher.match_pattern {
        Some(P::Exact(value)) => StringMatcher::Exact(make(value)),
        Some(P::Prefix(value)) => StringMatcher::Prefix(nonempty("prefix", value)?),
        Some(P::Suffix(value)) => StringMatcher::Suffix(nonempty("suffix", value)?),
        Some(P::Contains(value)) => StringMatcher::Contains(nonempty("contains", value)?),
        Some(P::SafeRegex(value)) => StringMatcher::Regex(regex(value).at("safe_regex")?),
        Some(P::Custom(_)) => return Err(Bad::unsupported("custom")),
        None => return Err(Bad::new("empty string matcher")),
    })
}

/// The key of a header matcher.
pub fn key(name: &str) -> Result<MatchKey, Bad> {
    let lower = name.to_ascii_lowercase();
    Ok(match lower.as_str() {
        ":method" => MatchKey::Method,
        ":path" => MatchKey::Path,
        ":authority" | "host" => MatchKey::Authority,
        ":scheme" => MatchKey::Scheme,
        ":status" => MatchKey::Status,
        name => MatchKey::Name(super::headers::name(name)?),
    })
}

/// `HeaderMatcher`.
pub fn header(matcher: &rds::HeaderMatcher) -> Result<HeaderMatcher, Bad> {
    use rds::header_matcher::HeaderMatchSpecifier as S;
    let plain = |value: &str| text(value, false);
    let condition = match &matcher.header_match_specifier {
        None => HeaderCondition::Present(true),
        Some(S::PresentMatch(wanted)) => HeaderCondition::Present(*wanted),
        Some(S::StringMatch(m)) => HeaderCondition::Text(string(m).at("string_match")?),
        Some(S::ExactMatch(value)) => HeaderCondition::Text(StringMatcher::Exact(plain(value))),
        Some(S::PrefixMatch(value)) => HeaderCondition::Text(StringMatcher::Prefix(plain(value))),
        Some(S::SuffixMatch(value)) => HeaderCondition::Text(StringMatcher::Suffix(plain(value))),
        Some(S::ContainsMatch(value)) => HeaderCondition::Text(StringMatcher::Contains(plain(value))),
        Some(S::SafeRegexMatch(m)) => HeaderCondition::Text(StringMatcher::Regex(regex(m).at("safe_regex_match")?)),
        Some(S::RangeMatch(range)) => HeaderCondition::Range { start: range.start, end: range.end },
    };
    Ok(HeaderMatcher {
        key: key(&matcher.name).at("name")?,
        condition,
        invert: matcher.invert_match,
        missing_as_empty: matcher.treat_missing_header_as_empty,
    })
}

/// `QueryParameterMatcher`.
pub fn query(matcher: &rds::QueryParameterMatcher) -> Result<QueryMatcher, Bad> {
    use rds::query_parameter_matcher::QueryParameterMatchSpecifier as S;
    let value = match &matcher.query_parameter_match_specifier {
        None => QueryCondition::Present(true),
        Some(S::PresentMatch(wanted)) => QueryCondition::Present(*wanted),
        Some(S::StringMatch(m)) => QueryCondition::Text(string(m).at("string_match")?),
    };
    if matcher.name.is_empty() {
        return Err(Bad::field("name", "empty"));
    }
    Ok(QueryMatcher { name: matcher.name.as_str().into(), value })
}

/// `CookieMatcher`.
pub fn cookie(matcher: &rds::CookieMatcher) -> Result<CookieMatcher, Bad> {
    let value = matcher.string_match.as_ref().ok_or_else(|| Bad::field("string_match", "missing"))?;
    Ok(CookieMatcher {
        name: matcher.name.as_str().into(),
        value: string(value).at("string_match")?,
        invert: matcher.invert_match,
    })
}

/// Deepest nesting of value matchers.
const MAX_DEPTH: usize = 8;

/// `MetadataMatcher`.
pub fn metadata(matcher: &pb::MetadataMatcher) -> Result<MetadataMatcher, Bad> {
    use pb::metadata_matcher::path_segment::Segment;
    if matcher.path.is_empty() {
        return Err(Bad::field("path", "empty"));
    }
    Ok(MetadataMatcher {
        namespace: matcher.filter.as_str().into(),
        path: each("path", &matcher.path, |segment| match &segment.segment {
            Some(Segment::Key(key)) if !key.is_empty() => Ok(key.as_str().into()),
            _ => Err(Bad::field("key", "empty")),
        })?,
        value: match &matcher.value {
            Some(matcher) => value(matcher, 0).at("value")?,
            None => return Err(Bad::field("value", "missing")),
        },
        invert: matcher.invert,
    })
}

/// `ValueMatcher`.
pub fn value(matcher: &pb::ValueMatcher, depth: usize) -> Result<ValueMatcher, Bad> {
    use pb::{double_matcher, list_matcher, value_matcher::MatchPattern as P};
    if depth > MAX_DEPTH {
        return Err(Bad::new("nested too deeply"));
    }
    let below = depth.saturating_add(1);
    Ok(match &matcher.match_pattern {
        Some(P::NullMatch(_)) => ValueMatcher::Null,
        Some(P::DoubleMatch(double)) => match &double.match_pattern {
            Some(double_matcher::MatchPattern::Range(range)) => {
                ValueMatcher::Range { start: range.start, end: range.end }
            }
            Some(double_matcher::MatchPattern::Exact(number)) => ValueMatcher::Number(*number),
            None => return Err(Bad::field("double_match", "empty")),
        },
        Some(P::StringMatch(text)) => ValueMatcher::Text(string(text).at("string_match")?),
        Some(P::BoolMatch(wanted)) => ValueMatcher::Bool(*wanted),
        Some(P::PresentMatch(wanted)) => ValueMatcher::Present(*wanted),
        Some(P::ListMatch(list)) => match &list.match_pattern {
            Some(list_matcher::MatchPattern::OneOf(one)) => {
                ValueMatcher::OneOf(Box::new(value(one, below).at("list_match.one_of")?))
            }
            None => return Err(Bad::field("list_match", "empty")),
        },
        Some(P::OrMatch(any)) => {
            ValueMatcher::Or(each("or_match.value_matchers", &any.value_matchers, |m| value(m, below))?)
        }
        None => return Err(Bad::new("empty value matcher")),
    })
}
