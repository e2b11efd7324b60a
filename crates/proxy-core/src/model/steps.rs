//! The smaller filters: faults, CORS, local rate limits, header mutations.
//!
//! Invariant: fractions are in parts per million. What they decide is in `crate::steps`.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::Name;
use super::headers::HeaderOps;
use super::matcher::{HeaderMatcher, StringMatcher};

/// `HTTPFault`.
#[derive(Debug)]
pub struct Fault {
    /// Wait first.
    pub delay: Option<(FaultKind<Duration>, u32)>,
    /// Then answer.
    pub abort: Option<(FaultKind<Abort>, u32)>,
    /// Body of the answer, instead of the usual text.
    pub body: Option<Bytes>,
    /// Only for requests to this cluster, if not empty.
    pub upstream_cluster: Name,
    /// Only for requests with these headers.
    pub headers: Vec<HeaderMatcher>,
    /// Only for callers that say they are one of these nodes.
    pub downstream_nodes: Vec<Name>,
    /// Most faults at a time.
    pub max_active: Option<u32>,
}

/// Fixed, or told by the request's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind<T> {
    /// This.
    Fixed(T),
    /// `x-envoy-fault-…`.
    Header,
}

/// How a request is aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// HTTP status.
    Http(StatusCode),
    /// gRPC status.
    Grpc(u32),
}

/// `CorsPolicy` of a route.
#[derive(Debug)]
pub struct CorsPolicy {
    /// Origins that may ask.
    pub origins: Vec<StringMatcher>,
    /// `access-control-allow-methods`.
    pub methods: Option<HeaderValue>,
    /// `access-control-allow-headers`.
    pub headers: Option<HeaderValue>,
    /// `access-control-expose-headers`.
    pub expose: Option<HeaderValue>,
    /// `access-control-max-age`.
    pub max_age: Option<HeaderValue>,
    /// `access-control-allow-credentials: true`.
    pub credentials: bool,
    /// Answer private network requests.
    pub private_network: bool,
    /// Share of requests.
    pub enabled: u32,
    /// Preflights of other origins are forwarded instead of answered.
    pub forward_not_matching: bool,
}

/// `LocalRateLimit` without descriptors.
#[derive(Debug)]
pub struct LocalRateLimit {
    /// The bucket; `None` = no limit.
    pub bucket: Option<TokenBucket>,
    /// Share of requests that are counted.
    pub enabled: u32,
    /// Share of requests that are refused when the bucket is empty.
    pub enforced: u32,
    /// Status of a refusal. Default 429.
    pub status: StatusCode,
    /// Headers of requests over the limit that are let through.
    pub request: HeaderOps,
    /// Headers of refusals.
    pub response: HeaderOps,
    /// gRPC requests get RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    pub resource_exhausted: bool,
    /// Names of the counters: enabled, ok, rate_limited, enforced.
    pub counters: [Name; 4],
    /// What is left, shared by all workers.
    pub state: Bucket,
}

/// `TokenBucket`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Most tokens.
    pub max: u32,
    /// Tokens added each time.
    pub fill: u32,
    /// Time between.
    pub interval: Duration,
}

/// What is left in a bucket: tokens, and when it was last filled.
#[derive(Default)]
pub struct Bucket(pub(crate) Mutex<Option<(u32, Duration)>>);

impl fmt::Debug for Bucket {
    /// Always the same: what is left is no part of the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bucket")
    }
}

/// `HeaderMutation`.
#[derive(Debug, Default)]
pub struct HeaderMutations {
    /// Of requests, in order.
    pub request: Vec<HeaderOps>,
    /// Of responses, in order.
    pub response: Vec<HeaderOps>,
}
