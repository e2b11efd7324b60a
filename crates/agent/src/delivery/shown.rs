//! The agent's own page: metrics of each consumer, and whether all have what they are to have.
//!
//! Invariant: only what the board says is shown; nothing here changes anything.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use carrick_runtime::admin::{Response, Router};
use carrick_runtime::clock::SharedClock;
use carrick_xds::delivery::Verdict;
use http::StatusCode;

use super::report::{Board, Entry, used};
use crate::metrics::AgentMetrics;
use crate::names;

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The page's paths.
pub(super) fn router(board: &Arc<Board>, metrics: &Arc<AgentMetrics>, clock: &SharedClock) -> Router {
    let mut router = Router::new();
    let (shown, own, time) = (Arc::clone(board), Arc::clone(metrics), Arc::clone(clock));
    router.get("/metrics", move |_| {
        let now = time.now();
        let text = own.render(now) + &render(&shown, now);
        async move { Response::typed(StatusCode::OK, PROMETHEUS, text) }
    });
    let shown = Arc::clone(board);
    router.get("/healthz/ready", move |_| {
        let missing: Vec<String> =
            shown.all().into_iter().filter(|(_, e)| !is(&e.report.delivered)).map(|(name, _)| name).collect();
        async move {
            match missing.is_empty() {
                true => Response::text(StatusCode::OK, "ready\n"),
                false => {
                    Response::text(StatusCode::SERVICE_UNAVAILABLE, format!("not delivered: {}\n", missing.join(", ")))
                }
            }
        }
    });
    router
}

fn is(verdict: &Option<Verdict>) -> bool {
    verdict.as_ref().is_some_and(|v| v.status == "True")
}

/// Prometheus text.
fn render(board: &Board, now: SystemTime) -> String {
    let all = board.all();
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, value: &dyn Fn(&Entry) -> Option<f64>| {
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for (consumer, entry) in &all {
            if let Some(value) = value(entry) {
                let _ = writeln!(out, "{name}{{consumer=\"{consumer}\",secret=\"{}\"}} {value}", entry.report.secret);
            }
        }
    };
    let flag = |yes: bool| f64::from(u8::from(yes));
    #[allow(clippy::cast_precision_loss)]
    let count = |n: u64| n as f64;
    family(names::DELIVERED, "gauge", &|e| Some(flag(is(&e.report.delivered))));
    family(names::SERVED, "gauge", &|e| e.report.served.as_ref().map(|_| flag(is(&e.report.served))));
    family(names::DELIVERIES, "counter", &|e| Some(count(e.deliveries)));
    family(names::RELOAD_FAILURES, "counter", &|e| Some(count(e.reload_failures)));
    family(names::DELIVERED_EXPIRY, "gauge", &|e| {
        Some(e.life?.1.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
    });
    family(names::LIFE_USED, "gauge", &|e| e.life.map(|(from, to)| f64::from(used(now, from, to)) / 100.0));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_consumer_has_its_lines() {
        let text = "certificates: [{secret: a, files: [{content: ca, path: /x}]}]";
        let board = Board::new("vm", &super::super::parse(text).unwrap().certificates);
        let end = UNIX_EPOCH + Duration::from_secs(200);
        board.note("a", |e| {
            e.life = Some((UNIX_EPOCH + Duration::from_secs(100), end));
            e.deliveries = 3;
        });
        let text = render(&board, UNIX_EPOCH + Duration::from_secs(175));
        for line in [
            "carrick_agent_delivered{consumer=\"a\",secret=\"a\"} 0",
            "carrick_agent_deliveries_total{consumer=\"a\",secret=\"a\"} 3",
            "carrick_agent_delivered_certificate_expiry_timestamp_seconds{consumer=\"a\",secret=\"a\"} 200",
            "carrick_agent_delivered_certificate_life_used_ratio{consumer=\"a\",secret=\"a\"} 0.75",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("carrick_agent_served{"), "nothing is said of what is not looked at");
    }
}
