//! The little of DER (X.690) that is written and read by hand: containers of keys and certificates.
//!
//! Invariant: lengths are the shortest that say it, and reading never goes beyond its input. What the bytes mean is left to
//! the callers.

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTETS: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const BMP_STRING: u8 = 0x1e;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
/// `[0] EXPLICIT`.
pub(crate) const CONTEXT_0: u8 = 0xa0;
/// `[1] EXPLICIT`.
pub(crate) const CONTEXT_1: u8 = 0xa1;
/// `[0] IMPLICIT` of something primitive.
pub(crate) const IMPLICIT_0: u8 = 0x80;

/// One value.
pub(crate) fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len().saturating_add(6));
    out.push(tag);
    let length = content.len();
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let used: Vec<u8> = bytes.iter().copied().skip_while(|b| *b == 0).collect();
            out.push(0x80 | u8::try_from(used.len()).unwrap_or(0x7f));
            out.extend(used);
        }
    }
    out.extend_from_slice(content);
    out
}

/// A value made of others.
pub(crate) fn of(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    value(tag, &parts.concat())
}

/// A number.
pub(crate) fn number(number: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = number.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
    if bytes.first().is_none_or(|first| first & 0x80 != 0) {
        bytes.insert(0, 0);
    }
    value(INTEGER, &bytes)
}

/// An object identifier; its arcs are known when this is written, so they are small enough.
pub(crate) fn oid(arcs: &[u32]) -> Vec<u8> {
    let mut content = Vec::new();
    let first = match arcs {
        [a, b, ..] => a.saturating_mul(40).saturating_add(*b),
        _ => 0,
    };
    for arc in std::iter::once(first).chain(arcs.iter().skip(2).copied()) {
        let groups = (1..5_u32).rev().filter(|n| arc >> (7 * n) != 0);
        content.extend(groups.map(|n| 0x80 | u8::try_from((arc >> (7 * n)) & 0x7f).unwrap_or(0)));
        content.push(u8::try_from(arc & 0x7f).unwrap_or(0));
    }
    value(OID, &content)
}

pub(crate) fn null() -> Vec<u8> {
    value(0x05, &[])
}

/// The first value's tag and content, and what follows it; `None` when it is not whole.
pub(crate) fn read(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = input.split_first()?;
    let (first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first & 0x7f);
    if first & 0x80 != 0 {
        let (bytes, after) = rest.split_at_checked(length)?;
        if bytes.len() > 4 {
            return None;
        }
        length = bytes.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte));
        rest = after;
    }
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// The first value's content, if it has this tag, and what follows it.
pub(crate) fn expect(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    read(input).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_back() {
        for length in [0_usize, 1, 127, 128, 255, 256, 65_536] {
            let content = vec![7; length];
            let mut bytes = value(OCTETS, &content);
            bytes.push(9);
            assert_eq!(read(&bytes), Some((OCTETS, content.as_slice(), &[9_u8][..])), "{length}");
            assert_eq!(read(&bytes[..length]), None, "{length}");
        }
        assert_eq!(read(&[0x30, 0x85, 1, 1, 1, 1, 1]), None, "a length nobody has");
    }

    #[test]
    fn numbers_and_names() {
        assert_eq!(number(0), [2, 1, 0]);
        assert_eq!(number(128), [2, 2, 0, 128]);
        assert_eq!(number(2048), [2, 2, 8, 0]);
        assert_eq!(oid(&[1, 2, 840, 113_549, 1, 1, 1]), [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1]);
        assert_eq!(oid(&[2, 16, 840, 1]), [6, 4, 0x60, 0x86, 0x48, 1]);
    }
}
