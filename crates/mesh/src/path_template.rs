//! Templates of request paths: `{*}` for exactly one segment, `{**}` for any number (semantics §12.7).
//!
//! Invariant: what is valid here, Envoy's `uri_template` takes; one that it does not take would cost the whole listener.

/// Whether a path with operators is a template.
pub fn is_valid(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let mut ended = false;
    rest.split('/').all(|segment| match segment {
        "{**}" => !std::mem::replace(&mut ended, true),
        "{*}" => !ended,
        literal => literal.bytes().all(is_literal),
    })
}

/// `pchar` of RFC 3986, of which `*` is taken by the operators.
fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;=:@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::is_valid;

    #[test]
    fn operators_fill_segments_and_the_long_one_is_last() {
        for path in ["/{*}", "/{**}", "/a/{*}/b/{**}", "/a/{**}/b", "/a/{**}/", "/a.b/{*}"] {
            assert!(is_valid(path), "{path}");
        }
        for path in ["{*}", "/a{*}", "/a/{*}b", "/{**}/{*}", "/{**}/{**}", "/{a}/{*}", "/*/{*}", "/ /{*}", "/{***}"] {
            assert!(!is_valid(path), "{path}");
        }
    }
}
