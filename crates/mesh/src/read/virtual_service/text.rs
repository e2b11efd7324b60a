//! Texts of a VirtualService that an engine parses: patterns, header names, header values.
//!
//! Invariant: what is let through is accepted by RE2 and by Envoy's format parser; one bad text in a table would make the whole table
//! unacceptable.

use std::sync::Arc;

/// The longest pattern, as Istio's validation has it.
const MAX_PATTERN: usize = 1024;
/// The highest count in a repetition that RE2 takes.
const MAX_REPEAT: u32 = 1000;
/// Bytes a compiled pattern may take here.
const MAX_COMPILED: usize = 1 << 20;

/// A pattern that both engines take.
///
/// # Errors
/// Why it cannot be used.
pub(super) fn pattern(text: &str) -> Result<Arc<str>, String> {
    if text.is_empty() {
        return Err("an empty pattern".to_owned());
    }
    if text.len() > MAX_PATTERN {
        return Err(format!("a pattern longer than {MAX_PATTERN} bytes"));
    }
    if let Some(what) = ["(?x", "\\<", "\\>", "\\b{", "\\u", "\\U", "(?R"].into_iter().find(|part| text.contains(part))
    {
        return Err(format!("{what:?} is not known to RE2"));
    }
    let counts =
        text.split('{').skip(1).filter_map(|rest| rest.split_once('}')).flat_map(|(inside, _)| inside.split(','));
    if counts.filter_map(|n| n.parse::<u32>().ok()).any(|n| n > MAX_REPEAT) {
        return Err(format!("a repetition of more than {MAX_REPEAT}"));
    }
    match regex::RegexBuilder::new(text).size_limit(MAX_COMPILED).build() {
        Ok(_) => Ok(text.into()),
        Err(error) => {
            // The parser draws a picture; its last line says what is wrong.
            let error = error.to_string();
            Err(format!("{text:?} is no regular expression: {}", error.lines().last().unwrap_or_default()))
        }
    }
}

/// A header's name, lower case.
pub(super) fn header_name(text: &str) -> Result<Arc<str>, String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if text.is_empty() || !text.bytes().all(token) {
        return Err(format!("{text:?} is no header name"));
    }
    Ok(text.to_ascii_lowercase().into())
}

/// A header's value as a format string: `%` stays where it begins a command that Envoy knows, else it is literal.
pub(super) fn header_value(text: &str) -> Result<Arc<str>, String> {
    if text.bytes().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
        return Err("a line end in a header's value".to_owned());
    }
    Ok(if is_format(text) { text.into() } else { text.replace('%', "%%").into() })
}

/// Commands of Envoy's format strings that may stand in a header.
const COMMANDS: &[&str] = &[
    "BYTES_RECEIVED",
    "BYTES_SENT",
    "CONNECTION_ID",
    "CUSTOM_REQUEST_ID",
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS",
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_DIRECT_REMOTE_PORT",
    "DOWNSTREAM_LOCAL_ADDRESS",
    "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_LOCAL_PORT",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_REMOTE_ADDRESS",
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT",
    "DOWNSTREAM_REMOTE_PORT",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_TLS_VERSION",
    "DYNAMIC_METADATA",
    "ENVIRONMENT",
    "FILTER_STATE",
    "HOSTNAME",
    "PROTOCOL",
    "REQ",
    "REQUESTED_SERVER_NAME",
    "RESP",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "RESPONSE_FLAGS",
    "ROUTE_NAME",
    "START_TIME",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_HOST",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_METADATA",
    "UPSTREAM_REMOTE_ADDRESS",
    "VIRTUAL_CLUSTER_NAME",
];
/// Commands that mean nothing without an argument, and those of both kinds.
const WITH_ARGUMENT: &[&str] = &["DYNAMIC_METADATA", "ENVIRONMENT", "FILTER_STATE", "REQ", "RESP", "UPSTREAM_METADATA"];
const EITHER: &[&str] = &["START_TIME", "UPSTREAM_METADATA"];

fn is_format(text: &str) -> bool {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('%') {
        if let Some(after) = after.strip_prefix('%') {
            rest = after;
            continue;
        }
        let end =
            after.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_').unwrap_or(after.len());
        let (command, mut after) = after.split_at(end);
        if !COMMANDS.contains(&command) {
            return false;
        }
        let mut argument = false;
        if let Some(inside) = after.strip_prefix('(') {
            let Some((inside, rest)) = inside.split_once(')') else { return false };
            argument = !inside.is_empty();
            after = rest;
        }
        if argument != WITH_ARGUMENT.contains(&command) && !EITHER.contains(&command) {
            return false;
        }
        if let Some(length) = after.strip_prefix(':') {
            let digits = length.find(|c: char| !c.is_ascii_digit()).unwrap_or(length.len());
            if digits == 0 || digits > 6 {
                return false;
            }
            after = length.get(digits..).unwrap_or_default();
        }
        let Some(next) = after.strip_prefix('%') else { return false };
        rest = next;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_formats_or_literal() {
        for (text, want) in [
            ("plain", "plain"),
            ("100%", "100%%"),
            ("50%% off", "50%% off"),
            ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
            ("a%REQ(x-b):10%c", "a%REQ(x-b):10%c"),
            ("%REQ%", "%%REQ%%"),
            ("%NOT_A_COMMAND%", "%%NOT_A_COMMAND%%"),
            ("%REQ(x", "%%REQ(x"),
            ("%2F", "%%2F"),
        ] {
            assert_eq!(header_value(text).as_deref(), Ok(want), "{text}");
        }
        assert!(header_value("a\r\nb: c").is_err());
    }

    #[test]
    fn patterns_both_engines_take() {
        for good in ["/a.*", "^(?i)x$", "[a-z]{1,3}", r"\d+\.html", "(?P<n>a)"] {
            assert!(pattern(good).is_ok(), "{good}");
        }
        for bad in ["", "(", "a{1001}", r"\<a", "(?x) a", "(?=a)", r"(a)\1", &"a".repeat(1025)] {
            assert!(pattern(bad).is_err(), "{bad}");
        }
    }
}
