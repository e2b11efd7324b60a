//! Counts and durations of requests, as Prometheus text.
//!
//! Invariant: label values come from the catalog and from fixed words, so the number of series is bounded whatever
//! clients send.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Requests answered.
pub const REQUESTS_TOTAL: &str = "apiserver_request_total";
/// Seconds until an answer's head was ready.
pub const REQUEST_SECONDS: &str = "apiserver_request_duration_seconds";
/// Watches open now.
pub const WATCHES: &str = "apiserver_watches";
/// Last revision given out.
pub const REVISION: &str = "apiserver_storage_revision";
/// Objects stored.
pub const OBJECTS: &str = "apiserver_storage_objects";

const BOUNDS: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    verb: &'static str,
    resource: String,
    code: u16,
}

#[derive(Debug, Default, Clone)]
struct Durations {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    seconds: f64,
}

#[derive(Default)]
struct State {
    requests: BTreeMap<Series, u64>,
    durations: BTreeMap<(&'static str, String), Durations>,
}

/// The counters of one server.
#[derive(Default)]
pub struct Metrics {
    state: Mutex<State>,
}

impl Metrics {
    /// Notes one answered request; `resource` must be one that is served, or empty.
    pub fn record(&self, verb: &'static str, resource: &str, code: u16, took: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let series = Series { verb, resource: resource.to_owned(), code };
        let count = state.requests.entry(series).or_default();
        *count = count.saturating_add(1);
        let durations = state.durations.entry((verb, resource.to_owned())).or_default();
        let seconds = took.as_secs_f64();
        durations.count = durations.count.saturating_add(1);
        durations.seconds += seconds;
        for (bucket, bound) in durations.buckets.iter_mut().zip(BOUNDS) {
            if seconds <= bound {
                *bucket = bucket.saturating_add(1);
            }
        }
    }

    /// Prometheus text of the counters and of the `gauges` given.
    pub fn text(&self, gauges: &[(&str, u64)]) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = String::new();
        // Writing to a String does not fail.
        let mut line = |text: std::fmt::Arguments<'_>| {
            let _infallible = out.write_fmt(format_args!("{text}\n"));
        };
        line(format_args!("# TYPE {REQUESTS_TOTAL} counter"));
        for (series, count) in &state.requests {
            let Series { verb, resource, code } = series;
            line(format_args!("{REQUESTS_TOTAL}{{verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"}} {count}"));
        }
        line(format_args!("# TYPE {REQUEST_SECONDS} histogram"));
        for ((verb, resource), durations) in &state.durations {
            let labels = format!("verb=\"{verb}\",resource=\"{resource}\"");
            for (bound, count) in BOUNDS.iter().zip(durations.buckets) {
                line(format_args!("{REQUEST_SECONDS}_bucket{{{labels},le=\"{bound}\"}} {count}"));
            }
            let Durations { count, seconds, .. } = durations;
            line(format_args!("{REQUEST_SECONDS}_bucket{{{labels},le=\"+Inf\"}} {count}"));
            line(format_args!("{REQUEST_SECONDS}_sum{{{labels}}} {seconds}"));
            line(format_args!("{REQUEST_SECONDS}_count{{{labels}}} {count}"));
        }
        for (name, value) in gauges {
            line(format_args!("# TYPE {name} gauge"));
            line(format_args!("{name} {value}"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_counts() {
        let metrics = Metrics::default();
        metrics.record("get", "pods", 200, Duration::from_millis(2));
        metrics.record("get", "pods", 200, Duration::from_secs(20));
        let text = metrics.text(&[(REVISION, 7)]);
        assert!(text.contains("apiserver_request_total{verb=\"get\",resource=\"pods\",code=\"200\"} 2\n"), "{text}");
        assert!(text.contains("le=\"0.005\"} 1\n") && text.contains("le=\"+Inf\"} 2\n"), "{text}");
        assert!(text.ends_with("apiserver_storage_revision 7\n"), "{text}");
    }
}
