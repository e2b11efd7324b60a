//! Access logs: where a record goes, which records, in which form.
//!
//! Invariant: formats are parsed, filters reduced to what the engine can evaluate.

use super::Name;
use super::format::Format;
use super::matcher::HeaderMatcher;

/// One access log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// Where.
    pub sink: LogSink,
    /// How.
    pub format: LogFormat,
    /// Which; `None` = all.
    pub filter: Option<LogFilter>,
}

/// Destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogSink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Appended to a file.
    File(Name),
}

/// Shape of a record.
#[derive(Debug, Clone)]
pub enum LogFormat {
    /// A line of text; the format ends it with its own newline.
    Text(Format),
    /// A JSON object, one line.
    Json(JsonNode),
}

/// A JSON format tree.
#[derive(Debug, Clone)]
pub enum JsonNode {
    /// A string with substitutions; a single operator keeps its type (numbers stay numbers).
    Text(Format),
    /// A number as it is.
    Number(f64),
    /// A truth value as it is.
    Bool(bool),
    /// null
    Null,
    /// An object, in key order.
    Object(Vec<(Name, JsonNode)>),
    /// A list.
    List(Vec<JsonNode>),
}

/// Which records are written.
#[derive(Debug, Clone)]
pub enum LogFilter {
    /// Response code compared.
    Status(Compare, u32),
    /// Duration in milliseconds compared.
    Duration(Compare, u32),
    /// Any of these response flags (empty list: any flag at all).
    Flags(Vec<Name>),
    /// gRPC status one of (or none of, if the second is true).
    Grpc(Vec<i32>, bool),
    /// A request header.
    Header(HeaderMatcher),
    /// All.
    And(Vec<LogFilter>),
    /// Any.
    Or(Vec<LogFilter>),
    /// Not a health check. Always true here: we have no health-check filter.
    NotHealthCheck,
}

/// Comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// =
    Eq,
    /// ≥
    Ge,
    /// ≤
    Le,
    /// ≠
    Ne,
}
