//! Whether to retry, after how long.
//!
//! Invariant: pure; the caller tells what happened and holds the circuit counters. A request is retried at most `num_retries` times,
//! never after response headers went downstream (the caller's duty), never when the local circuit was full.

use std::time::Duration;

use http::HeaderMap;
use http::header::HeaderName;

use crate::model::retry::{ResetFormat, RetryOn, RetryPolicy};
use crate::request::RequestHead;

const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const RETRIABLE: HeaderName = HeaderName::from_static("x-envoy-retriable-status-codes");
const RATELIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");

/// How an attempt ended without usable response headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// No connection was made (refused, timeout, TLS failure).
    ConnectFailure,
    /// The peer refused the stream (REFUSED_STREAM, GOAWAY before it).
    Refused,
    /// The connection or stream broke.
    Remote,
    /// We ended it: per-try timeout.
    PerTryTimeout,
    /// Circuit limits were reached.
    Overflow,
    /// The upstream broke the protocol.
    ProtocolError,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// Try again after this pause.
    After(Duration),
    /// Not retriable: pass on what there is.
    No,
    /// Retriable, but all retries are used (flag URX).
    LimitExceeded,
    /// Retriable, but the cluster's retry circuit is full (flag UO).
    Overflow,
}

/// The retries of one request.
#[derive(Debug, Clone)]
pub struct RetryState<'a> {
    policy: Option<&'a RetryPolicy>,
    on: RetryOn,
    status_codes: Vec<u16>,
    remaining: u32,
    retries: u32,
}

impl<'a> RetryState<'a> {
    /// The state at the first attempt; `None` if nothing would ever be retried. `internal` requests may ask by `x-envoy-retry-on`,
    /// `x-envoy-retry-grpc-on`, `x-envoy-max-retries`, `x-envoy-retriable-status-codes` (removed from others by request hygiene).
    #[must_use]
    pub fn new(policy: Option<&'a RetryPolicy>, request: &RequestHead<'_>) -> Option<Self> {
        let header = |name: &HeaderName| request.headers.get(name).and_then(|v| v.to_str().ok());
        let mut on = policy.map_or(RetryOn::default(), |p| p.on);
        for name in [&RETRY_ON, &RETRY_GRPC_ON] {
            let tokens = header(name).into_iter().flat_map(|v| v.split(','));
            on = tokens.filter_map(|t| RetryOn::token(t.trim())).fold(on, RetryOn::with);
        }
        if on == RetryOn::default() {
            return None;
        }
        if policy.is_some_and(|p| {
            !p.retriable_request_headers.is_empty() && !p.retriable_request_headers.iter().any(|m| m.matches(request))
        }) {
            return None;
        }
        let mut status_codes = policy.map_or_else(Vec::new, |p| p.status_codes.clone());
        if let Some(codes) = header(&RETRIABLE) {
            status_codes.extend(codes.split(',').filter_map(|c| c.trim().parse::<u16>().ok()));
        }
        let asked = header(&MAX_RETRIES).and_then(|v| v.trim().parse().ok());
        let remaining = asked.unwrap_or_else(|| policy.map_or(1, |p| p.num_retries));
        Some(Self { policy, on, status_codes, remaining, retries: 0 })
    }

    /// Retries made so far.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// Whether to avoid hosts tried before, and how often to choose again.
    #[must_use]
    pub fn reselections(&self) -> u32 {
        self.policy.filter(|p| p.avoid_previous_hosts && self.retries > 0).map_or(0, |p| p.host_selection_attempts)
    }

    /// The limit of an attempt's silence.
    #[must_use]
    pub fn per_try_idle(&self) -> Option<Duration> {
        self.policy.and_then(|p| p.per_try_idle_timeout)
    }

    /// Of the attempts so far, how many of the latest count as tried for `previous_priorities`; `None` without that policy.
    #[must_use]
    pub fn priorities_tried(&self, attempts: usize) -> Option<usize> {
        let frequency = usize::try_from(self.policy?.previous_priorities?).ok()?;
        // What was tried is taken in every `frequency` attempts.
        Some(attempts.checked_div(frequency)?.saturating_mul(frequency))
    }

    /// After response headers. `circuit_open` = the cluster allows one more retry (see [`crate::circuit`]); `unix` = seconds
    /// since 1970, asked only if a header holds a time.
    pub fn on_response(
        &mut self,
        status: u16,
        headers: &HeaderMap,
        circuit_open: bool,
        random: u64,
        unix: &dyn Fn() -> u64,
    ) -> RetryDecision {
        if !self.wants_response(status, headers) {
            return RetryDecision::No;
        }
        match (self.take(circuit_open, random), self.asked_pause(headers, unix)) {
            // Spread a little, so that those who were sent away together do not come back together.
            (RetryDecision::After(_), Some(asked)) => {
                let spread = u64::try_from(asked.as_millis()).unwrap_or(u64::MAX).checked_div(2).unwrap_or(0);
                let more = random.checked_rem(spread.saturating_add(1)).unwrap_or(0);
                RetryDecision::After(asked.saturating_add(Duration::from_millis(more)))
            }
            (decision, _) => decision,
        }
    }

    /// The pause that the response's own headers ask for.
    fn asked_pause(&self, headers: &HeaderMap, unix: &dyn Fn() -> u64) -> Option<Duration> {
        let settings = self.policy?.rate_limited.as_ref()?;
        settings.headers.iter().find_map(|(name, format)| {
            let number: u64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
            let pause = match format {
                ResetFormat::Seconds => Duration::from_secs(number),
                ResetFormat::UnixTimestamp => Duration::from_secs(number.checked_sub(unix())?),
            };
            (pause <= settings.max).then_some(pause)
        })
    }

    /// After a reset. `request_sent` = some bytes of the request may have reached the upstream.
    pub fn on_reset(&mut self, reset: Reset, request_sent: bool, circuit_open: bool, random: u64) -> RetryDecision {
        if self.wants_reset(reset, request_sent) { self.take(circuit_open, random) } else { RetryDecision::No }
    }

    fn wants_response(&self, status: u16, headers: &HeaderMap) -> bool {
        if headers.contains_key(RATELIMITED) {
            return self.on.has(RetryOn::ENVOY_RATELIMITED);
        }
        let by_status = (self.on.has(RetryOn::FIVE_XX) && (500..600).contains(&status))
            || (self.on.has(RetryOn::GATEWAY_ERROR) && (502..505).contains(&status))
            || (self.on.has(RetryOn::RETRIABLE_4XX) && status == 409)
            || (self.on.has(RetryOn::RETRIABLE_STATUS_CODES) && self.status_codes.contains(&status));
        let by_header = self.on.has(RetryOn::RETRIABLE_HEADERS)
            && self.policy.is_some_and(|p| p.retriable_headers.iter().any(|m| m.matches_response(status, headers)));
        by_status || by_header || self.wants_grpc(headers)
    }

    fn wants_grpc(&self, headers: &HeaderMap) -> bool {
        let status = headers.get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<u16>().ok());
        let wanted = match status {
            Some(1) => RetryOn::GRPC_CANCELLED,
            Some(4) => RetryOn::GRPC_DEADLINE,
            Some(8) => RetryOn::GRPC_EXHAUSTED,
            Some(13) => RetryOn::GRPC_INTERNAL,
            Some(14) => RetryOn::GRPC_UNAVAILABLE,
            _ => return false,
        };
        self.on.has(wanted)
    }

    fn wants_reset(&self, reset: Reset, request_sent: bool) -> bool {
        match reset {
            Reset::Overflow => false,
            _ if self.on.has(RetryOn::RESET.with(RetryOn::FIVE_XX).with(RetryOn::GATEWAY_ERROR)) => true,
            _ if self.on.has(RetryOn::RESET_BEFORE_REQUEST) && !request_sent => true,
            Reset::Refused => self.on.has(RetryOn::REFUSED_STREAM),
            Reset::ConnectFailure => self.on.has(RetryOn::CONNECT_FAILURE),
            Reset::Remote | Reset::PerTryTimeout | Reset::ProtocolError => false,
        }
    }

    fn take(&mut self, circuit_open: bool, random: u64) -> RetryDecision {
        let Some(remaining) = self.remaining.checked_sub(1) else { return RetryDecision::LimitExceeded };
        if !circuit_open {
            return RetryDecision::Overflow;
        }
        self.remaining = remaining;
        self.retries = self.retries.saturating_add(1);
        RetryDecision::After(self.pause(random))
    }

    /// Fully jittered exponential back-off: random below base × 2^(retry − 1), at most the longest.
    fn pause(&self, random: u64) -> Duration {
        let (base, longest) = match self.policy {
            Some(policy) => (policy.backoff_base, policy.backoff_max),
            None => (Duration::from_millis(25), Duration::from_millis(250)),
        };
        let factor = 1_u32.checked_shl(self.retries.saturating_sub(1)).unwrap_or(u32::MAX);
        let bound = base.saturating_mul(factor).min(longest).as_millis();
        let pause = u128::from(random).checked_rem(bound).unwrap_or(0);
        Duration::from_millis(u64::try_from(pause).unwrap_or(0))
    }
}
