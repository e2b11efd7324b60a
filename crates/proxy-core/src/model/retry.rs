//! Retry policy of a route, parsed. Deciding is in `crate::retry`.
//!
//! Invariant: unknown `retry_on` tokens were rejected; back-off has `base ≤ max`.

use std::time::Duration;

use super::matcher::HeaderMatcher;

/// A retry policy.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Retries after the first attempt.
    pub num_retries: u32,
    /// Limit of one attempt; `None` = the route's timeout.
    pub per_try_timeout: Option<Duration>,
    /// Avoid hosts tried before (`previous_hosts`).
    pub avoid_previous_hosts: bool,
    /// How often to choose again when a host is refused by a predicate; at least 1.
    pub host_selection_attempts: u32,
    /// Statuses for `retriable-status-codes`.
    pub status_codes: Vec<u16>,
    /// Response headers for `retriable-headers`.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Only requests with one of these are retried; empty = all.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// First back-off step. Default 25 ms.
    pub backoff_base: Duration,
    /// Longest back-off. Default 10 × base.
    pub backoff_max: Duration,
    /// An attempt that is silent for so long is given up.
    pub per_try_idle_timeout: Option<Duration>,
    /// Avoid priorities tried before; forgotten every so many attempts (`previous_priorities`).
    pub previous_priorities: Option<u32>,
    /// Wait as a response's headers ask.
    pub rate_limited: Option<RateLimitedBackOff>,
}

/// `rate_limited_retry_back_off`.
#[derive(Debug, Clone)]
pub struct RateLimitedBackOff {
    /// Headers in order; the first with a good value counts.
    pub headers: Vec<(http::HeaderName, ResetFormat)>,
    /// A longer wait is not honoured. Default 300 s.
    pub max: Duration,
}

/// What a reset header holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetFormat {
    /// Seconds from now.
    Seconds,
    /// Seconds since 1970.
    UnixTimestamp,
}

/// `retry_on` and `retry_grpc_on` tokens as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn(pub u32);

impl RetryOn {
    /// `5xx`
    pub const FIVE_XX: Self = Self(1);
    /// `gateway-error`
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    /// `reset`
    pub const RESET: Self = Self(1 << 2);
    /// `reset-before-request`
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    /// `connect-failure`
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    /// `retriable-4xx`
    pub const RETRIABLE_4XX: Self = Self(1 << 5);
    /// `refused-stream`
    pub const REFUSED_STREAM: Self = Self(1 << 6);
    /// `retriable-status-codes`
    pub const RETRIABLE_STATUS_CODES: Self = Self(1 << 7);
    /// `retriable-headers`
    pub const RETRIABLE_HEADERS: Self = Self(1 << 8);
    /// `envoy-ratelimited`
    pub const ENVOY_RATELIMITED: Self = Self(1 << 9);
    /// `http3-post-connect-failure`: accepted, never happens.
    pub const HTTP3_POST_CONNECT: Self = Self(1 << 10);
    /// gRPC `cancelled`
    pub const GRPC_CANCELLED: Self = Self(1 << 11);
    /// gRPC `deadline-exceeded`
    pub const GRPC_DEADLINE: Self = Self(1 << 12);
    /// gRPC `internal`
    pub const GRPC_INTERNAL: Self = Self(1 << 13);
    /// gRPC `resource-exhausted`
    pub const GRPC_EXHAUSTED: Self = Self(1 << 14);
    /// gRPC `unavailable`
    pub const GRPC_UNAVAILABLE: Self = Self(1 << 15);

    /// Whether any of `other` is in it.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set of one token.
    #[must_use]
    pub fn token(token: &str) -> Option<Self> {
        Some(match token {
            "5xx" => Self::FIVE_XX,
            "gateway-error" => Self::GATEWAY_ERROR,
            "reset" => Self::RESET,
            "reset-before-request" => Self::RESET_BEFORE_REQUEST,
            "connect-failure" => Self::CONNECT_FAILURE,
            "retriable-4xx" => Self::RETRIABLE_4XX,
            "refused-stream" => Self::REFUSED_STREAM,
            "retriable-status-codes" => Self::RETRIABLE_STATUS_CODES,
            "retriable-headers" => Self::RETRIABLE_HEADERS,
            "envoy-ratelimited" => Self::ENVOY_RATELIMITED,
            "http3-post-connect-failure" => Self::HTTP3_POST_CONNECT,
            "cancelled" => Self::GRPC_CANCELLED,
            "deadline-exceeded" => Self::GRPC_DEADLINE,
            "internal" => Self::GRPC_INTERNAL,
            "resource-exhausted" => Self::GRPC_EXHAUSTED,
            "unavailable" => Self::GRPC_UNAVAILABLE,
            _ => return None,
        })
    }
}
