//! Header mutations.
//!
//! Invariant: no mutation can touch `:`-headers or `host`; values parse as format strings.

use envoy_types::pb::envoy::config::core::v3 as core;
use http::HeaderName;

use super::bad::{At, Bad, each};
use crate::format;
use crate::model::format::Format;
use crate::model::headers::{AppendAction, HeaderAdd, HeaderOps};

/// A header name.
pub fn name(text: &str) -> Result<HeaderName, Bad> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| Bad::new(format_args!("`{text}` is not a header name")))
}

/// A header name that may be changed.
fn mutable(text: &str) -> Result<HeaderName, Bad> {
    if text.starts_with(':') || text.eq_ignore_ascii_case("host") {
        return Err(Bad::new(format_args!("`{text}` may not be modified")));
    }
    name(text)
}

/// A format string.
pub fn format(text: &str) -> Result<Format, Bad> {
    format::parse(text).map_err(Bad::new)
}

/// The mutations of one level; `kind` is `request` or `response`.
pub fn ops(kind: &str, add: &[core::HeaderValueOption], remove: &[String]) -> Result<HeaderOps, Bad> {
    Ok(HeaderOps {
        remove: each(&format!("{kind}_headers_to_remove"), remove, |text| mutable(text))?,
        add: each(&format!("{kind}_headers_to_add"), add, addition)?,
    })
}

fn addition(option: &core::HeaderValueOption) -> Result<HeaderAdd, Bad> {
    use core::header_value_option::HeaderAppendAction as A;
    let header = option.header.as_ref().ok_or_else(|| Bad::field("header", "missing"))?;
    let action = match (&option.append, A::try_from(option.append_action)) {
        (Some(_), Ok(action)) if action != A::AppendIfExistsOrAdd => {
            return Err(Bad::field("append", "append and append_action are both set"));
        }
        (Some(append), _) if !append.value => AppendAction::Overwrite,
        (Some(_), _) | (None, Ok(A::AppendIfExistsOrAdd)) => AppendAction::AppendOrAdd,
        (None, Ok(A::AddIfAbsent)) => AppendAction::AddIfAbsent,
        (None, Ok(A::OverwriteIfExistsOrAdd)) => AppendAction::Overwrite,
        (None, Ok(A::OverwriteIfExists)) => AppendAction::OverwriteIfExists,
        (None, Err(_)) => return Err(Bad::field("append_action", "unknown value")),
    };
    if !header.raw_value.is_empty() {
        return Err(Bad::unsupported("header.raw_value"));
    }
    Ok(HeaderAdd {
        name: mutable(&header.key).at("header.key")?,
        value: format(&header.value).at("header.value")?,
        action,
        keep_empty: option.keep_empty_value,
    })
}
