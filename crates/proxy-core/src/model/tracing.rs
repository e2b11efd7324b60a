//! Tracing of a connection manager: which requests, what is told of them, to whom.
//!
//! Invariant: shares are in ten-thousandths; expressions and formats are parsed. Without a tracer requests are only marked.

use std::sync::Arc;

use http::HeaderName;

use super::Name;
use super::collector::Collector;
use super::format::{Format, MetadataKind};

/// `HttpConnectionManager.Tracing`.
#[derive(Debug)]
pub struct Tracing {
    /// Share of requests with `x-client-trace-id`.
    pub client: u32,
    /// Share of all requests.
    pub random: u32,
    /// Share of those that the other two chose.
    pub overall: u32,
    /// Longest path in a span.
    pub max_path: usize,
    /// More attributes.
    pub tags: Vec<CustomTag>,
    /// Each attempt has a span of its own.
    pub spawn_upstream: bool,
    /// Name of spans instead of the usual one.
    pub operation: Option<Format>,
    /// Name of attempts' spans.
    pub upstream_operation: Option<Format>,
    /// The request id decides, and is marked; else every request is traced.
    pub by_request_id: bool,
    /// The id is marked with the decision.
    pub pack: bool,
    /// Nothing is told to the upstream.
    pub no_propagation: bool,
    /// Who gets the spans.
    pub tracer: Option<Arc<Tracer>>,
}

/// `OpenTelemetryConfig`.
#[derive(Debug)]
pub struct Tracer {
    /// Where spans go.
    pub collector: Arc<Collector>,
    /// `service.name`.
    pub service_name: Name,
}

/// A tag.
#[derive(Debug, Clone)]
pub struct CustomTag {
    /// Its name.
    pub name: Name,
    /// Its value.
    pub value: TagValue,
}

/// Where a tag's value comes from.
#[derive(Debug, Clone)]
pub enum TagValue {
    /// Always this.
    Literal(Name),
    /// A variable of the environment, or this; left out if empty.
    Environment(Name, Name),
    /// A request header, or this; left out if empty.
    Header(HeaderName, Name),
    /// Metadata, or this; left out if empty.
    Metadata(MetadataKind, Vec<Name>, Name),
    /// A format; left out if empty.
    Format(Format),
}

/// What a route changes.
#[derive(Debug, Clone, Default)]
pub struct RouteTracing {
    /// Shares instead of the connection manager's: client, random, overall.
    pub shares: Option<[u32; 3]>,
    /// More tags.
    pub tags: Vec<CustomTag>,
    /// Names the operation, and whether that is told to the next proxy.
    pub decorator: Option<(Name, bool)>,
}
