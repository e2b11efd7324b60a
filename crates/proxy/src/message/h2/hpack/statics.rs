//! The fields that are known from the beginning (RFC 7541 appendix A).
//!
//! Invariant: places are counted from 1.

use super::{Field, Name, OVERHEAD};
use http::header::HeaderName;
use std::sync::LazyLock;

/// Names and values in their order.
const ALL: [(&str, &str); COUNT] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// How many there are.
pub const COUNT: usize = 61;
/// Place of the name `:authority`.
pub const AUTHORITY: usize = 1;
/// Place of the name `:method`.
pub const METHOD: usize = 2;
/// Place of the name `:path`.
pub const PATH: usize = 4;
/// Place of the name `:scheme`.
pub const SCHEME: usize = 6;
/// Place of the name `:status`.
pub const STATUS: usize = 8;

struct Known {
    name: Name,
    field: Field,
    size: usize,
}

static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| {
    let known = |(name, value): &(&str, &str)| {
        let size = name.len().saturating_add(value.len()).saturating_add(OVERHEAD);
        let name = Name::new(name.as_bytes());
        Known { field: name.clone().with(value.as_bytes()), name, size }
    };
    ALL.iter().map(known).collect()
});

/// The field at a place, with its size.
pub fn field(place: usize) -> Option<(&'static Field, usize)> {
    KNOWN.get(place.checked_sub(1)?).map(|k| (&k.field, k.size))
}

/// The name at a place, with its length.
pub fn name(place: usize) -> Option<(&'static Name, usize)> {
    let at = place.checked_sub(1)?;
    Some((&KNOWN.get(at)?.name, ALL.get(at)?.0.len()))
}

/// Places of names that are no pseudo-headers.
static PLACES: LazyLock<std::collections::HashMap<HeaderName, usize>> = LazyLock::new(|| {
    let named = ALL.iter().zip(1_usize..).filter(|((name, _), _)| !name.starts_with(':'));
    named.filter_map(|((name, _), at)| Some((HeaderName::from_bytes(name.as_bytes()).ok()?, at))).collect()
});

/// The place of a name.
pub fn place(name: &HeaderName) -> Option<usize> {
    PLACES.get(name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_rfc() {
        assert_eq!(ALL[15], ("accept-encoding", "gzip, deflate"));
        assert_eq!(place(&http::header::WWW_AUTHENTICATE), Some(61));
        assert_eq!(place(&http::header::ACCEPT), Some(19));
        assert_eq!(place(&HeaderName::from_static("x-a")), None);
        assert_eq!(field(8), Some((&Field::Status(http::StatusCode::OK), 42)));
        assert!(field(0).is_none() && field(62).is_none());
        for (at, text) in [(AUTHORITY, ":authority"), (METHOD, ":method"), (PATH, ":path"), (SCHEME, ":scheme")] {
            assert_eq!(name(at), Some((&Name::new(text.as_bytes()), text.len())));
        }
    }
}
