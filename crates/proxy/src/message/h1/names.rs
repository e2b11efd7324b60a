//! Names of fields, as they come and as they go.
//!
//! Invariant: inside, names are lower case. A connection knows the names of its last message again without making them anew, and its
//! longest value. As they were written names are kept only where that is asked for.

use bytes::Bytes;
use carrick_proxy_core::model::hcm::HeaderCase;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use std::sync::Arc;

/// The names of a connection's last message, in their order.
#[derive(Debug, Default)]
pub struct Names {
    names: Vec<HeaderName>,
    /// A long value of an earlier message, in memory of its own: what a mesh peer says of itself, most of the time.
    long: Option<HeaderValue>,
}

/// Lengths of values that are worth remembering, bytes.
const LONG: std::ops::Range<usize> = 256..8 * 1024;

/// Longest name that is remembered, bytes.
const MOST: usize = 64;
/// Names remembered.
const REMEMBERED: usize = 40;

impl Names {
    /// How many the last message had.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// A message has ended with so many.
    pub fn truncate(&mut self, len: usize) {
        self.names.truncate(len);
    }

    /// The name at a place of a message; `None` if it is none.
    pub fn get(&mut self, at: usize, text: &[u8]) -> Option<HeaderName> {
        if let Some(known) = self.names.get(at)
            && (known.as_str().as_bytes() == text || known.as_str().as_bytes().eq_ignore_ascii_case(text))
        {
            return Some(known.clone());
        }
        let name = HeaderName::from_bytes(text).ok()?;
        if text.len() <= MOST {
            let known = self.names.len();
            match self.names.get_mut(at) {
                Some(place) => *place = name.clone(),
                None if at == known && at < REMEMBERED => self.names.push(name.clone()),
                None => {}
            }
        }
        Some(name)
    }

    /// A value, a slice of `of` if it is not known; `None` if it is none.
    pub fn value(&mut self, of: &Bytes, value: &[u8]) -> Option<HeaderValue> {
        let is_long = LONG.contains(&value.len());
        if is_long
            && let Some(known) = &self.long
            && known.as_bytes() == value
        {
            return Some(known.clone());
        }
        let made = HeaderValue::from_maybe_shared(of.slice_ref(value)).ok()?;
        if is_long {
            self.long = HeaderValue::from_bytes(value).ok();
        }
        Some(made)
    }
}

/// Names as they were written, in the order of the message; travels with it among its extensions.
#[derive(Debug, Clone, Default)]
pub struct Written(Arc<Vec<(HeaderName, Bytes)>>);

impl Written {
    /// With these.
    pub fn new(names: Vec<(HeaderName, Bytes)>) -> Self {
        Written(Arc::new(names))
    }

    fn of(&self, name: &HeaderName, nth: usize) -> Option<&[u8]> {
        let mut all = self.0.iter().filter(|(known, _)| known == name).map(|(_, text)| &**text);
        let first = all.next()?;
        Some(if nth == 0 { first } else { all.nth(nth.saturating_sub(1)).unwrap_or(first) })
    }
}

/// Writes fields in one way of writing names.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    case: HeaderCase,
    written: Option<&'a Written>,
}

impl<'a> Case<'a> {
    /// As configured, for a message with these extensions.
    pub fn new(case: HeaderCase, extensions: &'a http::Extensions) -> Self {
        let written = if case == HeaderCase::Preserve { extensions.get() } else { None };
        Case { case, written }
    }

    /// Appends a name that the message itself may not have.
    pub fn name(self, out: &mut Vec<u8>, name: &HeaderName, nth: usize) {
        let text = name.as_str().as_bytes();
        if let Some(written) = self.written.and_then(|w| w.of(name, nth)) {
            out.extend_from_slice(written);
        } else if self.case == HeaderCase::ProperWords {
            let mut first = true;
            out.extend(text.iter().map(|b| {
                let upper = std::mem::replace(&mut first, !b.is_ascii_alphanumeric());
                if upper { b.to_ascii_uppercase() } else { *b }
            }));
        } else {
            out.extend_from_slice(text);
        }
    }

    /// Appends a field with its line end.
    pub fn field(self, out: &mut Vec<u8>, name: &HeaderName, nth: usize, value: &[u8]) {
        self.name(out, name, nth);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }

    /// All fields in the order in which they are written.
    pub fn all<'h>(self, headers: &'h HeaderMap) -> impl Iterator<Item = (Named<'h>, &'h [u8])> + use<'h> {
        let ordered = self.written.is_some();
        let mut last: Option<&'h HeaderName> = None;
        let mut count = 0_usize;
        // The map has fields of one name together.
        headers.iter().map(move |(name, value)| {
            if ordered {
                count = if last == Some(name) { count.saturating_add(1) } else { 0 };
                last = Some(name);
            }
            (Named { name, nth: count }, value.as_bytes())
        })
    }
}

/// A field's name, and which of that name it is, where that counts.
#[derive(Debug, Clone, Copy)]
pub struct Named<'h> {
    /// The name.
    pub name: &'h HeaderName,
    /// So many of this name come before.
    pub nth: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_asked() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-a", "1"), ("content-type", "t"), ("x-a", "2")] {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        let text = |case, extensions: &http::Extensions| {
            let mut out = Vec::new();
            let case = Case::new(case, extensions);
            case.all(&headers).for_each(|(named, value)| case.field(&mut out, named.name, named.nth, value));
            String::from_utf8(out).unwrap()
        };
        let mut kept = http::Extensions::new();
        let name = HeaderName::from_static("x-a");
        kept.insert(Written::new(vec![(name.clone(), "X-A".into()), (name, "x-A".into())]));
        assert_eq!(text(HeaderCase::Lower, &kept), "x-a: 1\r\nx-a: 2\r\ncontent-type: t\r\n");
        assert_eq!(text(HeaderCase::ProperWords, &kept), "X-A: 1\r\nX-A: 2\r\nContent-Type: t\r\n");
        assert_eq!(text(HeaderCase::Preserve, &kept), "X-A: 1\r\nx-A: 2\r\ncontent-type: t\r\n");
    }

    #[test]
    fn a_long_value_is_known_again_and_holds_no_message() {
        let mut names = Names::default();
        let (long, other) = ("a".repeat(300), "b".repeat(300));
        for value in [&*long, &*long, &*other, &*long, "short"] {
            let message = Bytes::from(format!("x: {value}\r\n"));
            let got = names.value(&message, &message[3..3 + value.len()]).unwrap();
            assert_eq!(got, value);
            drop(got);
            assert!(message.is_unique(), "{}", value.len());
        }
        let bad = Bytes::from([b"a".repeat(300), b"\0".to_vec()].concat());
        assert!(names.value(&bad, &bad).is_none());
    }

    #[test]
    fn a_name_is_known_again_whatever_its_case() {
        let mut names = Names::default();
        for text in [&b"X-Mine"[..], b"x-mine", b"x-other"] {
            assert_eq!(names.get(0, text).unwrap().as_str().as_bytes(), text.to_ascii_lowercase());
        }
        assert_eq!(names.get(7, b"x-far").unwrap().as_str(), "x-far");
        assert!(names.get(0, b"x y").is_none());
    }
}
