//! Path normalisation.
//!
//! Invariant: escaped slashes first, then dot segments and needless escapes (RFC 3986 §6.2.2 as browsers and Envoy do it, `\` counting
//! as `/`), then repeated slashes; the query is never touched. A path that cannot be normalised is refused.

use std::borrow::Cow;

use super::LocalReply;
use crate::matching::hex_byte;
use crate::model::hcm::{EscapedSlashes, PathOptions};

/// The path to route and forward.
///
/// # Errors
/// A [`LocalReply`]: 400 for a path that must be refused, 307 where the unescaped form is to be asked for.
pub fn normalize<'a>(path: &'a str, options: &PathOptions, is_grpc: bool) -> Result<Cow<'a, str>, LocalReply> {
    if path.contains('#') {
        return Err(LocalReply::Status(400, "path_normalization_failed"));
    }
    let (only, query) = match path.split_once('?') {
        Some((only, _)) => (only, path.get(only.len()..).unwrap_or_default()),
        None => (path, ""),
    };
    if !only.starts_with('/') {
        return Ok(Cow::Borrowed(path));
    }
    let mut current = Cow::Borrowed(only);
    let mut redirect = false;
    if options.escaped_slashes != EscapedSlashes::Keep
        && let Some(unescaped) = unescape_slashes(&current)
    {
        match options.escaped_slashes {
            EscapedSlashes::UnescapeAndForward => {}
            EscapedSlashes::UnescapeAndRedirect if !is_grpc => redirect = true,
            _ => return Err(LocalReply::Status(400, "path_normalization_failed")),
        }
        current = Cow::Owned(unescaped);
    }
    if options.normalize && needs_normalizing(&current) {
        let normal = canonical(&current).ok_or(LocalReply::Status(400, "path_normalization_failed"))?;
        current = Cow::Owned(normal);
    }
    if options.merge_slashes && current.contains("//") {
        current = Cow::Owned(merge_slashes(&current));
    }
    if redirect {
        return Err(LocalReply::Redirect(format!("{current}{query}")));
    }
    Ok(match current {
        Cow::Borrowed(same) if same.len() == only.len() => Cow::Borrowed(path),
        changed => Cow::Owned(format!("{changed}{query}")),
    })
}

/// `%2F` → `/`, `%5C` → `\`; `None` if there is neither.
fn unescape_slashes(path: &str) -> Option<String> {
    let upper = path.to_ascii_uppercase();
    if !upper.contains("%2F") && !upper.contains("%5C") {
        return None;
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let (replacement, tail) = match after.split_at_checked(2) {
            Some((code, tail)) if code.eq_ignore_ascii_case("2f") => ('/', tail),
            Some((code, tail)) if code.eq_ignore_ascii_case("5c") => ('\\', tail),
            _ => ('%', after),
        };
        out.push(replacement);
        rest = tail;
    }
    out.push_str(rest);
    Some(out)
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

/// Quick test, so that ordinary paths cost nothing.
fn needs_normalizing(path: &str) -> bool {
    path.bytes().any(|b| matches!(b, b'%' | b'\\') || must_escape(b)) || path.contains("/.")
}

/// Bytes that a URL parser writes as `%XX`.
fn must_escape(byte: u8) -> bool {
    !byte.is_ascii_graphic() || matches!(byte, b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | b'^' | b'|')
}

fn canonical(path: &str) -> Option<String> {
    let mut segments: Vec<String> = Vec::new();
    let mut parts = path.split(['/', '\\']).skip(1).peekable();
    while let Some(raw) = parts.next() {
        let last = parts.peek().is_none();
        let segment = canonical_segment(raw)?;
        match segment.as_str() {
            "." => {
                if last {
                    segments.push(String::new());
                }
            }
            ".." => {
                segments.pop();
                if last {
                    segments.push(String::new());
                }
            }
            _ => segments.push(segment),
        }
    }
    Some(format!("/{}", segments.join("/")))
}

/// Unescapes what never needs escaping, escapes what must be; `None` for `%00`.
fn canonical_segment(raw: &str) -> Option<String> {
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%'
            && let Some((&[high, low], after)) = tail.split_first_chunk::<2>()
            && let Some(decoded) = hex_byte(high, low)
        {
            rest = after;
            match decoded {
                0 => return None,
                b if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') => out.push(char::from(b)),
                _ => out.extend(['%', char::from(high), char::from(low)]),
            }
        } else if byte == 0 {
            return None;
        } else if must_escape(byte) {
            out.push_str(&format!("%{byte:02X}"));
        } else {
            out.push(char::from(byte));
        }
    }
    Some(out)
}
