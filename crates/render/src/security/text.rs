//! Matchers of texts and of metadata.
//!
//! Invariant: an expression is made of escaped text only, so that a value can never mean more than itself.

use carrick_mesh::model::authz::Text;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    ListMatcher, ListStringMatcher, MetadataMatcher, OrMatcher, RegexMatcher, StringMatcher, ValueMatcher,
    list_matcher,
    metadata_matcher::{PathSegment, path_segment::Segment},
    string_matcher::MatchPattern,
    value_matcher,
};

/// Where verified tokens leave their payload.
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
/// Under this key.
pub const JWT_PAYLOAD: &str = "payload";
/// Something rather than nothing.
const SOMETHING: &str = ".+";

/// A text as written.
pub fn matcher(text: &Text) -> StringMatcher {
    pattern(match text {
        Text::Exact(text) => MatchPattern::Exact(text.to_string()),
        Text::Prefix(text) => MatchPattern::Prefix(text.to_string()),
        Text::Suffix(text) => MatchPattern::Suffix(text.to_string()),
        Text::Present => expression(SOMETHING),
    })
}

/// A text in any case.
pub fn any_case(text: &Text) -> StringMatcher {
    let ignore_case = *text != Text::Present;
    StringMatcher { ignore_case, ..matcher(text) }
}

/// A list of header names.
pub fn header_names(names: &[Text]) -> Option<ListStringMatcher> {
    (!names.is_empty()).then(|| ListStringMatcher { patterns: names.iter().map(any_case).collect() })
}

/// The identity of a peer, written without its scheme.
pub fn principal(text: &Text) -> StringMatcher {
    const SCHEME: &str = "spiffe://";
    match text {
        Text::Exact(text) => pattern(MatchPattern::Exact(format!("{SCHEME}{text}"))),
        Text::Prefix(text) => pattern(MatchPattern::Prefix(format!("{SCHEME}{text}"))),
        Text::Suffix(text) => regex(&format!("{SCHEME}.*{}", escaped(text))),
        Text::Present => regex(SOMETHING),
    }
}

/// An identity of a trust domain.
pub fn trust_domain(text: &Text) -> StringMatcher {
    match text {
        Text::Exact(text) => pattern(MatchPattern::Prefix(format!("spiffe://{text}/"))),
        Text::Prefix(text) => regex(&format!("spiffe://{}[^/]*/.*", escaped(text))),
        Text::Suffix(text) => regex(&format!("spiffe://[^/]*{}/.*", escaped(text))),
        Text::Present => regex("spiffe://[^/]+/.*"),
    }
}

/// An identity of a namespace, in which `*` stands for any text.
pub fn namespace(name: &str) -> StringMatcher {
    let name: Vec<_> = name.split('*').map(escaped).collect();
    regex(&format!(".*/ns/{}/.*", name.join(".*")))
}

/// An identity of a service account.
pub fn account(namespace: &str, name: &str) -> StringMatcher {
    regex(&format!("spiffe://.+/ns/{}/(.+/|)sa/{}(/.+)?", escaped(namespace), escaped(name)))
}

fn pattern(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

fn expression(regex: &str) -> MatchPattern {
    MatchPattern::SafeRegex(RegexMatcher { regex: regex.to_owned(), ..RegexMatcher::default() })
}

fn regex(text: &str) -> StringMatcher {
    pattern(expression(text))
}

/// A text as part of an expression.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A claim of a verified token that is a text or a list of texts.
pub fn claim(path: &[&str], text: &Text) -> MetadataMatcher {
    let one = || text_value(text);
    let list = value_matcher::MatchPattern::ListMatch(Box::new(ListMatcher {
        match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(one()))),
    }));
    let either = OrMatcher { value_matchers: vec![one(), value(list)] };
    payload(path, value(value_matcher::MatchPattern::OrMatch(either)))
}

/// A claim of a verified token that is a text.
pub fn text_claim(name: &str, text: &Text) -> MetadataMatcher {
    payload(&[name], text_value(text))
}

/// What a filter left behind, as a text or as an element of a list.
pub fn metadata(filter: &str, key: &str, text: &Text, element: bool) -> MetadataMatcher {
    let one = text_value(text);
    let list = |one| {
        value(value_matcher::MatchPattern::ListMatch(Box::new(ListMatcher {
            match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(one))),
        })))
    };
    at(filter, &[key], if element { list(one) } else { one })
}

fn payload(path: &[&str], value: ValueMatcher) -> MetadataMatcher {
    let path: Vec<_> = std::iter::once(JWT_PAYLOAD).chain(path.iter().copied()).collect();
    at(JWT_FILTER, &path, value)
}

fn at(filter: &str, path: &[&str], value: ValueMatcher) -> MetadataMatcher {
    let segment = |key: &&str| PathSegment { segment: Some(Segment::Key((*key).to_owned())) };
    MetadataMatcher {
        filter: filter.to_owned(),
        path: path.iter().map(segment).collect(),
        value: Some(value),
        ..MetadataMatcher::default()
    }
}

fn text_value(text: &Text) -> ValueMatcher {
    value(value_matcher::MatchPattern::StringMatch(matcher(text)))
}

fn value(pattern: value_matcher::MatchPattern) -> ValueMatcher {
    ValueMatcher { match_pattern: Some(pattern) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_no_expressions() {
        assert_eq!(namespace("a.b*c"), regex(r".*/ns/a\.b.*c/.*"));
        assert_eq!(account("n", "a|b"), regex(r"spiffe://.+/ns/n/(.+/|)sa/a\|b(/.+)?"));
        assert_eq!(principal(&Text::Suffix("/sa/x.y".into())), regex(r"spiffe://.*/sa/x\.y"));
    }
}
