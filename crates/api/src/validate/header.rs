//! Names and values of HTTP headers, where objects match, set or remove them.
//!
//! Invariant: what a proxy would refuse (its header values are formats with `%…%` in them) is refused here.

use carrick_base::FieldPath;

use super::{Findings, Node};

const PSEUDO: [&str; 5] = [":method", ":scheme", ":authority", ":path", ":status"];
const CLAIMS: &str = "@request.auth.claims";

/// A token of RFC 7230.
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// `@request.auth.claims.x` or `@request.auth.claims[x]`.
pub(super) fn is_claim(name: &str) -> bool {
    let Some(prefix) = name.get(..CLAIMS.len()).filter(|prefix| prefix.eq_ignore_ascii_case(CLAIMS)) else {
        return false;
    };
    let rest = name.get(prefix.len()..).unwrap_or_default();
    (rest.starts_with('.') && rest.len() > 1) || (rest.starts_with('[') && rest.ends_with(']') && rest.len() > 2)
}

/// A header that is matched on.
pub(super) fn matched(name: &str, path: &FieldPath, findings: &mut Findings) {
    if name.is_empty() {
        findings.error(path, "header name cannot be empty");
    } else if !is_claim(name) && !PSEUDO.contains(&name) && !is_token(name) {
        findings.error(path, format!("header name {name:?} is not a valid header name"));
    }
}

/// A header in a CORS answer.
pub(super) fn cors(name: &str, path: &FieldPath, findings: &mut Findings) {
    if name.is_empty() {
        findings.error(path, "header name cannot be empty");
    } else if name != "*" && !is_token(name) {
        findings.error(path, format!("header name {name:?} is not a valid header name"));
    }
}

/// Letters, digits, dashes and underscores.
pub(super) fn is_strict(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Whether the header is another name of the request's authority.
pub(super) fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

fn changed(name: &str, authority_may: bool, path: &FieldPath, findings: &mut Findings) {
    if name.is_empty() {
        findings.error(path, "header name cannot be empty");
    } else if authority_may && is_authority(name) {
    } else if name.eq_ignore_ascii_case("host") {
        findings.error(path, format!("invalid header {name:?}: cannot set Host header"));
    } else if name.starts_with(':') {
        findings.error(path, format!("invalid header {name:?}: header cannot have \":\" prefix"));
    }
}

/// `headers` of a route or destination: what is set, added and removed on both ways.
pub(super) fn operations(headers: &Node<'_>, findings: &mut Findings) {
    for (way, authority_may) in [("request", true), ("response", false)] {
        let way = headers.field(way);
        for operation in ["set", "add"] {
            for (name, value) in way.field(operation).entries() {
                changed(name, authority_may, &value.path, findings);
                if let Err(message) = format(value.text()) {
                    findings.error(&value.path, format!("header value configuration: {message}"));
                }
            }
        }
        for name in way.field("remove").items() {
            changed(name.text(), false, &name.path, findings);
        }
    }
}

/// Judges a header value as the format that proxies read it as: `%%` is a percent sign, `%NAME%` and `%NAME(arguments)%`
/// are replaced.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn format(value: &str) -> Result<(), String> {
    if value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
        return Err(format!("value {value:?} has control characters"));
    }
    let mut rest = value;
    while let Some(start) = rest.find('%') {
        let body = rest.get(start + 1..).unwrap_or_default();
        if body.is_empty() {
            return Err("un-escaped % at the end".to_owned());
        }
        if let Some(next) = body.strip_prefix('%') {
            rest = next;
            continue;
        }
        let open = |what: &str| format!("un-terminated variable expression in {value:?}{what}");
        let end = body.find(['%', '(']).ok_or_else(|| open(""))?;
        let (_, tail) = body.split_at(end);
        rest = match tail.strip_prefix('(') {
            None => tail.get(1..).unwrap_or_default(),
            Some(arguments) => {
                let after = after_arguments(arguments).ok_or_else(|| open(": expecting ')'"))?;
                let after = after.trim_start_matches(' ');
                after.strip_prefix('%').ok_or_else(|| open(": expecting '%'"))?
            }
        };
    }
    Ok(())
}

/// What follows the closing parenthesis; arguments are a JSON array of strings, or anything up to the parenthesis.
fn after_arguments(arguments: &str) -> Option<&str> {
    let trimmed = arguments.trim_start_matches(' ');
    if trimmed.starts_with('[') {
        let mut reader = serde_json::Deserializer::from_str(trimmed).into_iter::<Vec<String>>();
        return match reader.next() {
            Some(Ok(_)) => trimmed.get(reader.byte_offset()..)?.trim_start_matches(' ').strip_prefix(')'),
            _ => None,
        };
    }
    let mut characters = trimmed.char_indices();
    while let Some((index, c)) = characters.next() {
        match c {
            '\\' => {
                characters.next()?;
            }
            ')' => return trimmed.get(index + 1..),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for good in [
            "",
            "x",
            "100%%",
            "%HOSTNAME%",
            "a %DOWNSTREAM_REMOTE_ADDRESS% b",
            "%REQ(x-a)%",
            "%REQ(x?y):10%",
            "%PER_REQUEST_STATE([\"a\", \"b\"])%",
            "%START_TIME(%s)%",
        ] {
            // A `%` inside arguments belongs to them; a length after them does not exist in header formats.
            assert_eq!(format(good).is_ok(), good != "%REQ(x?y):10%", "{good}: {:?}", format(good));
        }
        for bad in ["%", "abc%", "%A", "abc%123", "%START_TIME%%", "%REQ(x%", "%REQ([x])%", "a\u{1}b", "%REQ(a) b%"] {
            assert!(format(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn claims() {
        for good in ["@request.auth.claims.sub", "@request.auth.claims[a][b]", "@Request.Auth.Claims.x"] {
            assert!(is_claim(good), "{good}");
        }
        for bad in
            ["@request.auth.claims", "@request.auth.claims.", "@request.auth.claims[]", "x", "@request.auth.claimsx"]
        {
            assert!(!is_claim(bad), "{bad}");
        }
    }
}
