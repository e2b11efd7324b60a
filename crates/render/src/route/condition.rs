//! What a request must be, in Envoy's words (semantics §10.4).
//!
//! Invariant: a missing header or parameter meets no test but an inverted one.

use carrick_mesh::view::route::{ClaimTest, Condition, HeaderTest, PathTest, TextTest};
use envoy_types::pb::envoy::{
    config::route::v3::{
        HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier,
        query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
    },
    r#type::matcher::v3::{
        ListMatcher, MetadataMatcher, OrMatcher, RegexMatcher, StringMatcher, ValueMatcher,
        list_matcher::MatchPattern as ListPattern,
        metadata_matcher::{PathSegment, path_segment::Segment},
        string_matcher::MatchPattern as StringPattern,
        value_matcher::MatchPattern as ValuePattern,
    },
};

use crate::wire;

/// Whose metadata holds a token's claims, and under which key.
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
const JWT_PAYLOAD: &str = "payload";

/// A route's match.
pub fn route_match(from: &Condition) -> RouteMatch {
    RouteMatch {
        path_specifier: Some(match &from.path {
            PathTest::Any => PathSpecifier::Prefix("/".to_owned()),
            PathTest::Exact(path) => PathSpecifier::Path(path.to_string()),
            PathTest::Prefix(path) => PathSpecifier::Prefix(path.to_string()),
            PathTest::Regex(regex) => PathSpecifier::SafeRegex(self::regex(regex)),
        }),
        case_sensitive: from.ignore_case.then(|| wire::flag(false)).flatten(),
        headers: from.headers.iter().map(header).collect(),
        query_parameters: from.query.iter().map(|(name, test)| query(name, test)).collect(),
        dynamic_metadata: from.claims.iter().map(claim).collect(),
        ..RouteMatch::default()
    }
}

/// A pattern that the whole text must match.
pub fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.to_owned(), ..RegexMatcher::default() }
}

/// A test of a text that is there; `None` where presence is all that is asked.
pub fn text(test: &TextTest) -> Option<StringMatcher> {
    let pattern = match test {
        TextTest::Present => return None,
        TextTest::Exact(text) => StringPattern::Exact(text.to_string()),
        TextTest::Prefix(text) => StringPattern::Prefix(text.to_string()),
        TextTest::Regex(text) => StringPattern::SafeRegex(regex(text)),
    };
    Some(StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() })
}

fn header(from: &HeaderTest) -> HeaderMatcher {
    let matcher = text(&from.test);
    HeaderMatcher {
        name: from.name.to_string(),
        invert_match: from.inverted,
        // Envoy lets an inverted test of a value fail on a missing header, unless it counts as empty.
        treat_missing_header_as_empty: from.inverted && matcher.is_some(),
        header_match_specifier: Some(match matcher {
            Some(matcher) => HeaderMatchSpecifier::StringMatch(matcher),
            None => HeaderMatchSpecifier::PresentMatch(true),
        }),
    }
}

fn query(name: &str, test: &TextTest) -> QueryParameterMatcher {
    QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(match text(test) {
            Some(matcher) => QueryParameterMatchSpecifier::StringMatch(matcher),
            None => QueryParameterMatchSpecifier::PresentMatch(true),
        }),
    }
}

/// A claim is a text or a list of texts.
fn claim(from: &ClaimTest) -> MetadataMatcher {
    let segment = |key: &str| PathSegment { segment: Some(Segment::Key(key.to_owned())) };
    let value = |pattern| ValueMatcher { match_pattern: Some(pattern) };
    let test = match text(&from.test) {
        None => value(ValuePattern::PresentMatch(true)),
        Some(matcher) => {
            let one = value(ValuePattern::StringMatch(matcher));
            let list = ListMatcher { match_pattern: Some(ListPattern::OneOf(Box::new(one.clone()))) };
            let list = value(ValuePattern::ListMatch(Box::new(list)));
            value(ValuePattern::OrMatch(OrMatcher { value_matchers: vec![one, list] }))
        }
    };
    MetadataMatcher {
        filter: JWT_FILTER.to_owned(),
        path: std::iter::once(segment(JWT_PAYLOAD)).chain(from.path.iter().map(|key| segment(key))).collect(),
        value: Some(test),
        invert: from.inverted,
    }
}
