//! Access logs: where a record goes, which records, in which form.
//!
//! Invariant: formats are parsed, filters reduced to what the engine can evaluate.

use std::sync::Arc;

use http::HeaderName;

use super::Name;
use super::collector::Collector;
use super::expr::Expr;
use super::format::Format;
use super::matcher::HeaderMatcher;

/// One access log.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// Where.
    pub sink: LogSink,
    /// How.
    pub format: LogFormat,
    /// Values that are missing leave nothing, in JSON not even their key.
    pub omit_empty: bool,
    /// Which; `None` = all.
    pub filter: Option<LogFilter>,
}

/// Destination.
#[derive(Debug, Clone)]
pub enum LogSink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Appended to a file.
    File(Name),
    /// Sent to a server.
    Collector(Arc<Collector>),
}

/// Shape of a record.
#[derive(Debug, Clone)]
pub enum LogFormat {
    /// A line of text; the format ends it with its own newline.
    Text(Format),
    /// A JSON object, one line.
    Json(JsonNode),
    /// A record of OpenTelemetry.
    Otlp(Arc<OtlpFormat>),
    /// An entry of Envoy's own service.
    Entry(Arc<EntryFormat>),
}

/// `OpenTelemetryAccessLogConfig`.
#[derive(Debug)]
pub struct OtlpFormat {
    /// `log_name` of the resource.
    pub log_name: Name,
    /// Names of log, zone, cluster and node in the resource.
    pub builtin: bool,
    /// More attributes of the resource.
    pub resource: Vec<(Name, JsonNode)>,
    /// Body.
    pub body: Option<JsonNode>,
    /// Attributes.
    pub attributes: Vec<(Name, JsonNode)>,
}

/// `HttpGrpcAccessLogConfig` and `TcpGrpcAccessLogConfig`.
#[derive(Debug)]
pub struct EntryFormat {
    /// Name of the log.
    pub log_name: Name,
    /// Requests; else connections.
    pub http: bool,
    /// Request headers to tell besides the usual ones.
    pub request_headers: Vec<HeaderName>,
    /// Response headers to tell.
    pub response_headers: Vec<HeaderName>,
    /// Response trailers to tell.
    pub response_trailers: Vec<HeaderName>,
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
    /// An expression.
    Expr(Expr),
    /// A share in parts per million, drawn anew or from the request id.
    Share(u32, bool),
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
