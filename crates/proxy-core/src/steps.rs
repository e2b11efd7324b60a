//! The smaller filters' decisions: faults, CORS, local rate limits.
//!
//! Invariant: as Envoy 1.40. Randomness and time are arguments; the one thing that is kept is what is left in a bucket.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};

use crate::model::steps::{Abort, Bucket, CorsPolicy, Fault, FaultKind, LocalRateLimit, TokenBucket};
use crate::request::RequestHead;

const ALLOW_PRIVATE: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const REQUEST_PRIVATE: HeaderName = HeaderName::from_static("access-control-request-private-network");

fn drawn(random: &mut dyn FnMut() -> u64, share: u32) -> bool {
    share >= 1_000_000 || (share > 0 && random() % 1_000_000 < u64::from(share))
}

fn header<T: std::str::FromStr>(request: &RequestHead<'_>, name: &str) -> Option<T> {
    request.headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

impl Fault {
    /// Whether it is about a request to this cluster.
    #[must_use]
    pub fn applies(&self, request: &RequestHead<'_>, cluster: &str) -> bool {
        let node = || request.headers.get("x-envoy-downstream-service-node").and_then(|v| v.to_str().ok());
        (self.upstream_cluster.is_empty() || *self.upstream_cluster == *cluster)
            && self.headers.iter().all(|m| m.matches(request))
            && (self.downstream_nodes.is_empty()
                || node().is_some_and(|node| self.downstream_nodes.iter().any(|n| **n == *node)))
    }

    /// How long to wait first.
    pub fn delay(&self, request: &RequestHead<'_>, random: &mut dyn FnMut() -> u64) -> Option<Duration> {
        let (kind, share) = self.delay.as_ref()?;
        let (delay, share) = match kind {
            FaultKind::Fixed(delay) => (*delay, *share),
            FaultKind::Header => {
                let millis = header(request, "x-envoy-fault-delay-request")?;
                (Duration::from_millis(millis), told(request, "x-envoy-fault-delay-request-percentage", *share))
            }
        };
        (drawn(random, share) && !delay.is_zero()).then_some(delay)
    }

    /// How to answer instead of going on.
    pub fn abort(&self, request: &RequestHead<'_>, random: &mut dyn FnMut() -> u64) -> Option<Abort> {
        let (kind, share) = self.abort.as_ref()?;
        let (abort, share) = match kind {
            FaultKind::Fixed(abort) => (*abort, *share),
            FaultKind::Header => {
                let http = header::<u16>(request, "x-envoy-fault-abort-request")
                    .filter(|s| (200..600).contains(s))
                    .and_then(|s| http::StatusCode::from_u16(s).ok())
                    .map(Abort::Http);
                let abort = http.or_else(|| header(request, "x-envoy-fault-abort-grpc-request").map(Abort::Grpc))?;
                (abort, told(request, "x-envoy-fault-abort-request-percentage", *share))
            }
        };
        drawn(random, share).then_some(abort)
    }
}

/// A percentage that a header asks for, at most the configured share.
fn told(request: &RequestHead<'_>, name: &str, most: u32) -> u32 {
    header::<u32>(request, name).map_or(most, |percent| percent.saturating_mul(10_000).min(most))
}

/// What CORS makes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cors {
    /// It is none of its business.
    None,
    /// Its response gets these headers.
    Respond(HeaderMap),
    /// It is a preflight, answered with 200 and these headers.
    Preflight(HeaderMap),
}

impl CorsPolicy {
    /// Decides about a request.
    pub fn decide(&self, request: &RequestHead<'_>, random: &mut dyn FnMut() -> u64) -> Cors {
        let Some(origin) = request.headers.get(ORIGIN).filter(|o| !o.is_empty()) else { return Cors::None };
        if !drawn(random, self.enabled) {
            return Cors::None;
        }
        let allowed = self.origins.iter().any(|m| m.matches(origin.as_bytes()));
        let asks = request.headers.get(ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|m| !m.is_empty());
        let preflight = request.method == "OPTIONS" && asks;
        if !allowed && (!preflight || self.forward_not_matching) {
            return Cors::None;
        }
        let mut headers = HeaderMap::new();
        if allowed {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        }
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = self.expose.as_ref().filter(|_| allowed) {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
        if !preflight {
            return Cors::Respond(headers);
        }
        // Where anything is allowed, the answer says back what was asked for.
        let answer = |allowed: &HeaderValue, asked: HeaderName| match allowed.as_bytes() {
            b"*" => request.headers.get(asked).cloned().unwrap_or(HeaderValue::from_static("")),
            _ => allowed.clone(),
        };
        if let Some(methods) = &self.methods {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, answer(methods, ACCESS_CONTROL_REQUEST_METHOD));
        }
        if let Some(allowed) = &self.headers {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, answer(allowed, ACCESS_CONTROL_REQUEST_HEADERS));
        }
        if let Some(age) = &self.max_age {
            headers.insert(ACCESS_CONTROL_MAX_AGE, age.clone());
        }
        if self.private_network && request.headers.get(REQUEST_PRIVATE).is_some_and(|v| v == "true") {
            headers.insert(ALLOW_PRIVATE, HeaderValue::from_static("true"));
        }
        Cors::Preflight(headers)
    }
}

/// What a local rate limit makes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Not counted.
    Off,
    /// Within the limit.
    Ok,
    /// Over the limit, let through.
    NotEnforced,
    /// Over the limit, refused.
    Limited,
}

impl Bucket {
    /// Takes a token; false if there is none. `now` is a time since any fixed moment.
    pub fn take(&self, settings: &TokenBucket, now: Duration) -> bool {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (mut tokens, mut filled) = state.unwrap_or((settings.max, now));
        let nanos = settings.interval.as_nanos().max(1);
        let times = now.saturating_sub(filled).as_nanos().checked_div(nanos).unwrap_or(0);
        if times > 0 {
            let times32 = u32::try_from(times).unwrap_or(u32::MAX);
            tokens = tokens.saturating_add(settings.fill.saturating_mul(times32)).min(settings.max);
            filled = filled.saturating_add(settings.interval.saturating_mul(times32));
        }
        let taken = tokens > 0;
        *state = Some((tokens.saturating_sub(1), filled));
        taken
    }
}

impl LocalRateLimit {
    /// Counts a request.
    pub fn decide(&self, now: Duration, random: &mut dyn FnMut() -> u64) -> Rate {
        let Some(bucket) = &self.bucket else { return Rate::Off };
        if !drawn(random, self.enabled) {
            return Rate::Off;
        }
        if self.state.take(bucket, now) {
            Rate::Ok
        } else if drawn(random, self.enforced) {
            Rate::Limited
        } else {
            Rate::NotEnforced
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_by_the_clock() {
        let settings = TokenBucket { max: 2, fill: 1, interval: Duration::from_secs(10) };
        let bucket = Bucket::default();
        let at = |s| Duration::from_secs(s);
        let taken: Vec<bool> = [0, 0, 0, 9, 10, 10, 35, 35, 35].map(|s| bucket.take(&settings, at(s))).into();
        assert_eq!(taken, [true, true, false, false, true, false, true, true, false]);
    }
}
