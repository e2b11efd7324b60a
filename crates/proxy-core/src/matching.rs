//! Evaluation of text, header, query and cookie matchers, and of subject alternative names.
//!
//! Invariant: as Envoy's: a missing header never matches, inverted or not, unless it is told to count as empty or presence is asked.

use std::borrow::Cow;

use crate::model::matcher::{
    CookieMatcher, HeaderCondition, HeaderMatcher, MatchKey, MetadataMatcher, QueryCondition, QueryMatcher,
    StringMatcher, Text, ValueMatcher,
};
use crate::model::metadata::{Metadata, Value};
use crate::model::tls::{PeerSan, SanKind, SanMatcher, Validation};
use crate::request::RequestHead;

impl Text {
    fn equal(&self, input: &[u8]) -> bool {
        let value = self.value.as_bytes();
        if self.ignore_case { value.eq_ignore_ascii_case(input) } else { value == input }
    }

    fn starts(&self, input: &[u8]) -> bool {
        input.get(..self.value.len()).is_some_and(|head| self.equal(head))
    }

    fn ends(&self, input: &[u8]) -> bool {
        input.len().checked_sub(self.value.len()).and_then(|at| input.get(at..)).is_some_and(|tail| self.equal(tail))
    }

    fn within(&self, input: &[u8]) -> bool {
        self.value.is_empty() || input.windows(self.value.len()).any(|w| self.equal(w))
    }
}

impl StringMatcher {
    /// Whether the text matches.
    #[must_use]
    pub fn matches(&self, input: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.equal(input),
            Self::Prefix(text) => text.starts(input),
            Self::Suffix(text) => text.ends(input),
            Self::Contains(text) => text.within(input),
            Self::Regex(regex) => regex.is_match(input),
        }
    }
}

impl HeaderMatcher {
    /// Whether a request matches. Each of several values counts for itself, as with Envoy 1.40: one that matches is enough, and the
    /// inverted condition wants that none does.
    #[must_use]
    pub fn matches(&self, request: &RequestHead<'_>) -> bool {
        match &self.key {
            MatchKey::Name(name) => self.decide_each(request.headers, name),
            key => self.decide(request.with_header(key, |value| self.text(value))),
        }
    }

    /// Whether headers (of a response, say) match; `status` stands for `:status`.
    #[must_use]
    pub fn matches_response(&self, status: u16, headers: &http::HeaderMap) -> bool {
        match &self.key {
            MatchKey::Status => self.decide(Some(self.text(status.to_string().as_bytes()))),
            MatchKey::Name(name) => self.decide_each(headers, name),
            _ => self.decide(None),
        }
    }

    fn decide_each(&self, headers: &http::HeaderMap, name: &http::HeaderName) -> bool {
        let mut values = headers.get_all(name).iter().peekable();
        let there = values.peek().is_some();
        self.decide(there.then(|| values.any(|value| self.text(value.as_bytes()))))
    }

    /// By whether a value matched; `None` where there is none.
    fn decide(&self, matched: Option<bool>) -> bool {
        if let HeaderCondition::Present(wanted) = self.condition {
            return ((matched.is_some() || self.missing_as_empty) == wanted) != self.invert;
        }
        match matched {
            Some(matched) => matched != self.invert,
            None if self.missing_as_empty => self.text(b"") != self.invert,
            None => false,
        }
    }

    fn text(&self, value: &[u8]) -> bool {
        match &self.condition {
            HeaderCondition::Present(wanted) => *wanted,
            HeaderCondition::Text(matcher) => matcher.matches(value),
            HeaderCondition::Range { start, end } => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.trim().parse::<i64>().ok())
                .is_some_and(|number| (*start..*end).contains(&number)),
        }
    }
}

/// Parameters of a query in order, percent-decoded.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|p| !p.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode(key), percent_decode(value))
    })
}

/// Percent-decodes; invalid escapes stay, invalid UTF-8 is replaced.
#[must_use]
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let decoded = match tail {
            [high, low, ..] if first == b'%' => hex_byte(*high, *low),
            _ => None,
        };
        match decoded {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// The byte of two hexadecimal digits.
#[must_use]
pub fn hex_byte(high: u8, low: u8) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some((digit(high)? << 4) | digit(low)?)
}

impl QueryMatcher {
    /// Whether a query matches.
    #[must_use]
    pub fn matches(&self, query: Option<&str>) -> bool {
        let value =
            query.into_iter().flat_map(query_pairs).find(|(key, _)| **key == *self.name).map(|(_, value)| value);
        match (&self.value, value) {
            (QueryCondition::Present(wanted), found) => found.is_some() == *wanted,
            (QueryCondition::Text(matcher), Some(found)) => matcher.matches(found.as_bytes()),
            (QueryCondition::Text(_), None) => false,
        }
    }
}

impl CookieMatcher {
    /// Whether a request's cookies match. A missing cookie matches only an inverted matcher.
    #[must_use]
    pub fn matches(&self, request: &RequestHead<'_>) -> bool {
        match cookie(request, &self.name) {
            Some(value) => self.value.matches(value.as_bytes()) != self.invert,
            None => self.invert,
        }
    }
}

impl MetadataMatcher {
    /// Whether metadata matches; `None` is no metadata at all.
    #[must_use]
    pub fn matches(&self, metadata: Option<&Metadata>) -> bool {
        self.value.matches(metadata.and_then(|m| m.at(&self.namespace, &self.path))) != self.invert
    }
}

impl ValueMatcher {
    /// Whether a value, or its absence, matches.
    #[must_use]
    pub fn matches(&self, value: Option<&Value>) -> bool {
        match (self, value) {
            // As Envoy's: `false` never matches.
            (Self::Present(wanted), value) => *wanted && value.is_some(),
            (Self::Or(any), value) => any.iter().any(|m| m.matches(value)),
            (Self::Null, Some(Value::Null)) => true,
            (Self::Number(wanted), Some(Value::Number(number))) => wanted == number,
            (Self::Range { start, end }, Some(Value::Number(number))) => (*start..*end).contains(number),
            (Self::Text(matcher), Some(Value::Text(text))) => matcher.matches(text.as_bytes()),
            (Self::Bool(wanted), Some(Value::Bool(value))) => wanted == value,
            (Self::OneOf(one), Some(Value::List(list))) => list.iter().any(|v| one.matches(Some(v))),
            _ => false,
        }
    }
}

/// A cookie's value, unquoted.
#[must_use]
pub fn cookie<'a>(request: &RequestHead<'a>, name: &str) -> Option<&'a str> {
    let headers = request.headers.get_all(http::header::COOKIE);
    headers.into_iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then(|| value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value))
    })
}

impl Validation {
    /// Whether one of the peer's names is accepted. The chain must have been verified against `trust` before.
    #[must_use]
    pub fn accepts(&self, sans: &[PeerSan<'_>]) -> bool {
        self.sans.is_empty() || self.sans.iter().any(|matcher| sans.iter().any(|san| matcher.matches(san)))
    }
}

impl SanMatcher {
    /// Whether one name matches.
    #[must_use]
    pub fn matches(&self, san: &PeerSan<'_>) -> bool {
        match (self.kind, san) {
            (SanKind::Any | SanKind::Email, PeerSan::Email(text))
            | (SanKind::Any | SanKind::Uri, PeerSan::Uri(text)) => self.matcher.matches(text.as_bytes()),
            (SanKind::Any | SanKind::Dns, PeerSan::Dns(name)) => self.dns(name),
            (SanKind::Any | SanKind::Ip, PeerSan::Ip(ip)) => self.matcher.matches(ip.to_string().as_bytes()),
            _ => false,
        }
    }

    /// An exact pattern also accepts a certificate's wildcard name that covers it by one label.
    fn dns(&self, name: &str) -> bool {
        if let (StringMatcher::Exact(text), Some(suffix)) = (&self.matcher, name.strip_prefix('*')) {
            let covered = text.value.find('.').and_then(|dot| text.value.get(dot..));
            return text.equal(name.as_bytes())
                || covered.is_some_and(|have| suffix.len() > 1 && have.eq_ignore_ascii_case(suffix));
        }
        self.matcher.matches(name.as_bytes())
    }
}
