//! Parsing and evaluation of Envoy's substitution format strings.
//!
//! Invariant: parsing refuses operators that evaluation does not know; evaluation never fails, a missing value is empty (headers) or
//! `-` (access logs). Facts come from a [`Values`], which the caller implements over what it holds.

mod parse;
pub mod time;

use std::fmt::Write as _;

pub use parse::{FormatError, parse, parse_header_key};

use crate::model::access_log::JsonNode;
use crate::model::format::{Format, Operator, Part};

/// Source of values for operators.
pub trait Values {
    /// Appends the value of `op` to `out`. False, and nothing appended, if there is none.
    fn write(&self, op: &Operator, out: &mut String) -> bool;
}

impl Format {
    /// A format that is this text.
    #[must_use]
    pub fn literal(text: &str) -> Self {
        Self { parts: vec![Part::Literal(text.into())] }
    }

    /// The text, if it has no operators.
    #[must_use]
    pub fn as_literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the text, `missing` standing for values that are not there.
    pub fn render(&self, values: &dyn Values, missing: &str, out: &mut String) {
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Value { op, max } => {
                    let start = out.len();
                    if !values.write(op, out) {
                        out.push_str(missing);
                    }
                    if let Some(max) = max {
                        truncate(out, start.saturating_add(*max));
                    }
                }
            }
        }
    }

    /// The text with missing values empty, as in headers and filter state.
    #[must_use]
    pub fn text(&self, values: &dyn Values) -> String {
        let mut out = String::new();
        self.render(values, "", &mut out);
        out
    }
}

/// Cuts at the last character border at or before `len`.
fn truncate(text: &mut String, len: usize) {
    if text.len() > len {
        let border = (0..=len).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(border);
    }
}

impl JsonNode {
    /// Appends the node as JSON. A missing value is `null` where the text is one operator, else `-` within the text; with `omit` it is
    /// left out with its key, or empty within the text.
    pub fn render(&self, values: &dyn Values, omit: bool, out: &mut String) {
        if !self.try_render(values, omit, out) {
            out.push_str("null");
        }
    }

    /// False, and nothing appended, where there is nothing to show.
    fn try_render(&self, values: &dyn Values, omit: bool, out: &mut String) -> bool {
        match self {
            Self::Null => return false,
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(number) => {
                let _ = write!(out, "{number}");
            }
            Self::Text(format) => return render_json_text(format, values, omit, out),
            Self::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    item.render(values, omit, out);
                }
                out.push(']');
            }
            Self::Object(entries) => {
                out.push('{');
                let mut first = true;
                for (key, value) in entries {
                    let start = out.len();
                    if !first {
                        out.push(',');
                    }
                    quote(key, out);
                    out.push(':');
                    if value.try_render(values, omit, out) {
                        first = false;
                    } else if omit {
                        out.truncate(start);
                    } else {
                        first = false;
                        out.push_str("null");
                    }
                }
                out.push('}');
            }
        }
        true
    }
}

fn render_json_text(format: &Format, values: &dyn Values, omit: bool, out: &mut String) -> bool {
    let mut text = String::new();
    if let [Part::Value { op, max }] = format.parts.as_slice() {
        if !values.write(op, &mut text) {
            return false;
        }
        if let Some(max) = max {
            truncate(&mut text, *max);
        }
        if op.is_number() && text.parse::<i64>().is_ok() {
            out.push_str(&text);
            return true;
        }
    } else {
        format.render(values, if omit { "" } else { "-" }, &mut text);
    }
    quote(&text, out);
    true
}

impl Operator {
    /// Whether its value is a number (and stays one in JSON).
    #[must_use]
    pub fn is_number(&self) -> bool {
        use crate::model::format::Plain as P;
        matches!(
            self,
            Self::Plain(
                P::ResponseCode
                    | P::BytesReceived
                    | P::BytesSent
                    | P::Duration
                    | P::RequestDuration
                    | P::ResponseDuration
                    | P::ResponseTxDuration
                    | P::UpstreamRequestAttemptCount
                    | P::ConnectionId
                    | P::DownstreamLocalPort
                    | P::DownstreamRemotePort
                    | P::DownstreamDirectRemotePort
                    | P::UpstreamLocalPort
                    | P::UpstreamRemotePort
                    | P::GrpcStatusNumber
            )
        )
    }
}

/// Appends a JSON string.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
