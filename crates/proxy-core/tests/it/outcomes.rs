//! Retries, time limits, circuits, outliers.

use std::time::Duration;

use carrick_proxy_core::circuit::CircuitCounts;
use carrick_proxy_core::model::cluster::{CircuitLimits, OutlierDetection, RetryBudget};
use carrick_proxy_core::model::retry::RetryPolicy;
use carrick_proxy_core::outlier::{Outcome, OutlierState};
use carrick_proxy_core::retry::{Reset, RetryDecision, RetryState};
use carrick_proxy_core::timeouts::{Timeouts, grpc_timeout, timeouts};
use envoy_types::pb::envoy::config::route::v3 as pb;
use http::HeaderMap;

use crate::message::{
    Request, Store, chain, cluster, http, listener, manager, number, prefix, rds_source, route, seconds, table,
    virtual_host,
};

const DEFAULT: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";

fn policy(on: &str, change: impl FnOnce(&mut pb::RetryPolicy)) -> RetryPolicy {
    let mut message = pb::RetryPolicy { retry_on: on.to_owned(), num_retries: number(2), ..Default::default() };
    change(&mut message);
    let mut one = route(prefix("/"), "r");
    if let Some(pb::route::Action::Route(action)) = &mut one.action {
        action.retry_policy = Some(message);
    }
    let table = crate::routes::build(table("t", vec![virtual_host("v", &["*"], vec![one])]));
    RetryPolicy::clone(table.virtual_hosts[0].routes[0].forward().unwrap().retry.as_ref().unwrap())
}

fn grpc(status: &str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), status.parse().unwrap())])
}

#[test]
fn responses_worth_a_retry() {
    for (on, status, headers, expected) in [
        (DEFAULT, 503, HeaderMap::new(), false),
        (DEFAULT, 200, grpc("14"), true),
        (DEFAULT, 200, grpc("1"), true),
        (DEFAULT, 200, grpc("13"), false),
        ("5xx", 500, HeaderMap::new(), true),
        ("5xx", 404, HeaderMap::new(), false),
        ("gateway-error", 500, HeaderMap::new(), false),
        ("gateway-error", 504, HeaderMap::new(), true),
        ("retriable-4xx", 409, HeaderMap::new(), true),
        ("retriable-status-codes", 429, HeaderMap::new(), true),
        ("retriable-status-codes", 428, HeaderMap::new(), false),
    ] {
        let policy = policy(on, |p| p.retriable_status_codes = vec![429]);
        let request = Request::get("h/");
        let mut state = RetryState::new(Some(&policy), &request.head()).unwrap();
        let decision = state.on_response(status, &headers, true, 0, &|| 0);
        assert_eq!(decision != RetryDecision::No, expected, "{on} {status} {headers:?}");
    }
}

#[test]
fn resets_worth_a_retry() {
    for (on, reset, sent, expected) in [
        (DEFAULT, Reset::ConnectFailure, false, true),
        (DEFAULT, Reset::Refused, true, true),
        (DEFAULT, Reset::Remote, true, false),
        (DEFAULT, Reset::PerTryTimeout, true, false),
        ("reset-before-request", Reset::Remote, false, true),
        ("reset-before-request", Reset::Remote, true, false),
        ("reset", Reset::Remote, true, true),
        ("5xx", Reset::PerTryTimeout, true, true),
        ("gateway-error", Reset::ConnectFailure, false, true),
        ("5xx,reset,connect-failure", Reset::Overflow, false, false),
    ] {
        let policy = policy(on, |_| {});
        let request = Request::get("h/");
        let mut state = RetryState::new(Some(&policy), &request.head()).unwrap();
        assert_eq!(state.on_reset(reset, sent, true, 0) != RetryDecision::No, expected, "{on} {reset:?} {sent}");
    }
}

#[test]
fn retries_end_and_back_off() {
    let policy = policy("5xx", |_| {});
    let request = Request::get("h/");
    let mut state = RetryState::new(Some(&policy), &request.head()).unwrap();
    let none = HeaderMap::new();
    assert_eq!(state.on_response(500, &none, false, 24, &|| 0), RetryDecision::Overflow);
    assert_eq!(state.on_response(500, &none, true, 24, &|| 0), RetryDecision::After(Duration::from_millis(24)));
    assert_eq!(state.on_response(500, &none, true, 74, &|| 0), RetryDecision::After(Duration::from_millis(24)));
    assert_eq!(state.on_response(500, &none, true, 0, &|| 0), RetryDecision::LimitExceeded);
    assert_eq!(state.retries(), 2);
}

#[test]
fn only_some_requests_and_callers_ask() {
    let request = Request::get("h/");
    assert!(RetryState::new(None, &request.head()).is_none());
    let asking = Request::get("h/").with("x-envoy-retry-on", "5xx").with("x-envoy-max-retries", "1");
    let mut state = RetryState::new(None, &asking.head()).unwrap();
    assert!(matches!(state.on_response(500, &HeaderMap::new(), true, 0, &|| 0), RetryDecision::After(_)));
    assert_eq!(state.on_response(500, &HeaderMap::new(), true, 0, &|| 0), RetryDecision::LimitExceeded);
    let picky = policy("5xx", |p| {
        p.retriable_request_headers = vec![pb::HeaderMatcher { name: "x-idempotent".to_owned(), ..Default::default() }]
    });
    assert!(RetryState::new(Some(&picky), &request.head()).is_none());
    assert!(RetryState::new(Some(&picky), &Request::get("h/").with("x-idempotent", "1").head()).is_some());
}

fn limits(change: impl FnOnce(&mut pb::RouteAction), request: &Request) -> Timeouts {
    let mut one = route(prefix("/"), "r");
    if let Some(pb::route::Action::Route(action)) = &mut one.action {
        change(action);
    }
    let mut store = Store::default();
    store.routes(&[table("t", vec![virtual_host("v", &["*"], vec![one])])]).unwrap();
    let filter = http(&manager(rds_source("t")));
    store.listeners(&[listener("l", "0.0.0.0:80", vec![chain("", Default::default(), filter)])]).unwrap();
    let runtime = store.runtime();
    let carrick_proxy_core::model::ChainKind::Http(manager) = &runtime.listeners.by_name["l"].chains[0].kind else {
        panic!("HTTP")
    };
    timeouts(manager, runtime.routes["t"].virtual_hosts[0].routes[0].forward().unwrap(), &request.head())
}

#[test]
fn time_limits() {
    let second = Duration::from_secs(1);
    let plain = Request::get("h/");
    assert_eq!(limits(|_| {}, &plain).global, Some(15 * second));
    assert_eq!(limits(|a| a.timeout = seconds(0), &plain).global, None);
    assert_eq!(limits(|_| {}, &plain).idle, Some(300 * second));
    assert_eq!(limits(|a| a.idle_timeout = seconds(0), &plain).idle, None);
    let grpc = || Request::get("h/").with("content-type", "application/grpc");
    let unlimited = |a: &mut pb::RouteAction| {
        a.max_stream_duration =
            Some(pb::route_action::MaxStreamDuration { grpc_timeout_header_max: seconds(0), ..Default::default() });
    };
    let asked = limits(unlimited, &grpc().with("grpc-timeout", "3S"));
    assert_eq!((asked.global, asked.max_stream), (Some(15 * second), Some(3 * second)));
    assert_eq!(limits(unlimited, &grpc()).max_stream, None);
    #[allow(deprecated)]
    let old = |a: &mut pb::RouteAction| a.max_grpc_timeout = seconds(0);
    assert_eq!(limits(old, &grpc()).global, None);
    assert_eq!(limits(old, &grpc().with("grpc-timeout", "3S")).global, Some(3 * second));
    let capped = |a: &mut pb::RouteAction| {
        a.max_stream_duration =
            Some(pb::route_action::MaxStreamDuration { grpc_timeout_header_max: seconds(2), ..Default::default() });
    };
    assert_eq!(limits(capped, &grpc().with("grpc-timeout", "3S")).max_stream, Some(2 * second));
    let tries = |a: &mut pb::RouteAction| {
        a.retry_policy =
            Some(pb::RetryPolicy { retry_on: "5xx".to_owned(), per_try_timeout: seconds(20), ..Default::default() });
    };
    assert_eq!(limits(tries, &plain).per_try, None, "longer than the whole request");
}

#[test]
fn grpc_timeouts() {
    assert_eq!(grpc_timeout("100m"), Some(Duration::from_millis(100)));
    assert_eq!(grpc_timeout("2H"), Some(Duration::from_secs(7200)));
    for bad in ["", "S", "123456789S", "1", "1x", "-1S", "1.5S", "ä"] {
        assert_eq!(grpc_timeout(bad), None, "{bad}");
    }
}

#[test]
fn circuits() {
    let limits = CircuitLimits { max_requests: 2, max_retries: 1, ..CircuitLimits::default() };
    let counts = CircuitCounts { requests: 1, retries: 1, ..CircuitCounts::default() };
    assert!(limits.request(&counts) && !limits.retry(&counts));
    assert!(!limits.request(&CircuitCounts { requests: 2, ..counts }));
    let budget = CircuitLimits { retry_budget: Some(RetryBudget { percent: 20.0, min_concurrency: 1 }), ..limits };
    assert!(budget.retry(&CircuitCounts { requests: 50, retries: 9, ..counts }));
    assert!(!budget.retry(&CircuitCounts { requests: 50, retries: 10, ..counts }));
}

fn detection(change: impl FnOnce(&mut OutlierDetection)) -> OutlierDetection {
    let mut resource = cluster("c", envoy_types::pb::envoy::config::cluster::v3::cluster::DiscoveryType::Static);
    resource.outlier_detection = Some(Default::default());
    let mut store = Store::default();
    store.clusters(&[resource]).unwrap();
    let mut settings = store.runtime().clusters["c"].outlier.clone().unwrap();
    change(&mut settings);
    settings
}

#[test]
fn five_errors_in_a_row_eject_for_ever_longer() {
    let settings = detection(|_| {});
    let mut state = OutlierState::new();
    let fail = |state: &mut OutlierState<&str>, now| state.record(&settings, &"a", Outcome::Status(500), 10, now, 0);
    for _ in 0..4 {
        assert!(!fail(&mut state, 0));
    }
    assert!(!state.record(&settings, &"a", Outcome::Status(200), 10, 0, 0));
    for _ in 0..4 {
        assert!(!fail(&mut state, 0));
    }
    assert!(fail(&mut state, 1000));
    assert!(state.is_ejected(&"a") && !state.is_ejected(&"b"));
    assert!(!state.sweep(&settings, 10, 30_999, 0));
    assert!(state.sweep(&settings, 10, 31_000, 0));
    assert!(!state.is_ejected(&"a"));
    for _ in 0..5 {
        fail(&mut state, 40_000);
    }
    assert!(state.is_ejected(&"a"));
    state.sweep(&settings, 10, 99_999, 0);
    assert!(state.is_ejected(&"a"), "twice as long the second time");
    state.sweep(&settings, 10, 100_000, 0);
    assert!(!state.is_ejected(&"a"));
}

#[test]
fn no_more_than_the_allowed_share_is_ejected() {
    let settings = detection(|s| s.consecutive_5xx = 1);
    let mut state = OutlierState::new();
    assert!(state.record(&settings, &1, Outcome::Status(500), 10, 0, 0));
    assert!(!state.record(&settings, &2, Outcome::Status(500), 10, 0, 0), "10 % of 10 is one");
    state.retain(|host| *host != 1);
    assert_eq!(state.ejected(), 0);
    assert!(state.record(&settings, &2, Outcome::Status(500), 10, 0, 0));
}

#[test]
fn local_failures_count_apart_when_split() {
    let split = detection(|s| {
        s.split_external_local_origin_errors = true;
        s.consecutive_local_origin_failure = 2;
    });
    let mut state = OutlierState::new();
    assert!(!state.record(&split, &"a", Outcome::LocalFailure, 10, 0, 0));
    assert!(!state.record(&split, &"a", Outcome::ConnectSuccess, 10, 0, 0));
    assert!(!state.record(&split, &"a", Outcome::LocalFailure, 10, 0, 0));
    assert!(state.record(&split, &"a", Outcome::LocalFailure, 10, 0, 0));
    let joined = detection(|s| s.consecutive_5xx = 2);
    let mut state = OutlierState::new();
    assert!(!state.record(&joined, &"a", Outcome::LocalFailure, 10, 0, 0));
    assert!(state.record(&joined, &"a", Outcome::Status(500), 10, 0, 0));
    let never = detection(|s| {
        s.consecutive_5xx = 1;
        s.enforcing_consecutive_5xx = 0;
    });
    assert!(!OutlierState::new().record(&never, &"a", Outcome::Status(500), 10, 0, 0));
}

#[test]
fn a_host_far_below_the_mean_is_ejected_at_the_sweep() {
    let settings = detection(|s| s.consecutive_5xx = u32::MAX);
    let mut state = OutlierState::new();
    for host in 0..10 {
        for i in 0..100 {
            let status = if host == 3 && i % 2 == 0 { 500 } else { 200 };
            state.record(&settings, &host, Outcome::Status(status), 10, 0, 0);
        }
    }
    assert!(state.sweep(&settings, 10, 10_000, 0));
    assert!(state.is_ejected(&3));
    assert_eq!(state.ejected(), 1);
}

#[test]
fn a_response_may_say_when_to_come_back() {
    use pb::retry_policy::{RateLimitedRetryBackOff, ResetHeader};
    let asks = |format| {
        policy("5xx", |p| {
            p.num_retries = number(9);
            p.rate_limited_retry_back_off = Some(RateLimitedRetryBackOff {
                reset_headers: vec![ResetHeader { name: "retry-after".to_owned(), format }],
                max_interval: seconds(60),
            });
        })
    };
    // Format, header, pause: spread upwards by at most half; a default back-off below a second otherwise.
    let cases = [(0, "2", Some(2)), (0, "61", None), (0, "soon", None), (1, "1003", Some(3)), (1, "999", None)];
    for (format, value, pause) in cases {
        let policy = asks(format);
        let request = Request::get("h/");
        let mut state = RetryState::new(Some(&policy), &request.head()).expect("retries");
        let headers = HeaderMap::from_iter([("retry-after".parse().unwrap(), value.parse().unwrap())]);
        let RetryDecision::After(found) = state.on_response(503, &headers, true, 7, &|| 1000) else {
            panic!("{value}")
        };
        match pause {
            Some(seconds) => {
                let least = Duration::from_secs(seconds);
                assert!((least..least * 3 / 2).contains(&found), "{value}: {found:?}");
            }
            None => assert!(found < Duration::from_secs(1), "{value}: {found:?}"),
        }
    }
}

#[test]
fn priorities_tried_count_every_so_many_attempts() {
    use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
    let policy = policy("5xx", |p| {
        p.retry_priority = Some(pb::retry_policy::RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".to_owned(),
            config_type: Some(pb::retry_policy::retry_priority::ConfigType::TypedConfig(crate::message::any(
                &PreviousPrioritiesConfig { update_frequency: 2 },
            ))),
        });
    });
    let request = Request::get("h/");
    let state = RetryState::new(Some(&policy), &request.head()).expect("retries");
    assert_eq!([0, 1, 2, 3, 4].map(|n| state.priorities_tried(n)), [Some(0), Some(0), Some(2), Some(2), Some(4)]);
}

#[test]
fn hosts_that_fail_too_often_are_ejected_by_percentage() {
    let settings = OutlierDetection {
        enforcing_success_rate: 0,
        enforcing_failure_percentage: 100,
        failure_percentage_minimum_hosts: 2,
        failure_percentage_request_volume: 10,
        failure_percentage_threshold: 60,
        consecutive_5xx: 1000,
        max_ejection_percent: 100,
        ..outlier_defaults()
    };
    let mut state = OutlierState::new();
    for i in 0..20 {
        for (host, bad) in [("good", 5), ("poor", 11), ("bad", 12)] {
            state.record(&settings, &host, Outcome::Status(if i < bad { 500 } else { 200 }), 3, 0, 0);
        }
    }
    assert!(state.sweep(&settings, 3, 10_000, 0));
    assert_eq!(["good", "poor", "bad"].map(|h| state.is_ejected(&h)), [false, false, true]);
}

#[test]
fn local_failures_have_a_success_rate_of_their_own() {
    let settings = OutlierDetection {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: 1000,
        enforcing_success_rate: 0,
        enforcing_local_origin_success_rate: 100,
        success_rate_minimum_hosts: 4,
        success_rate_request_volume: 10,
        success_rate_stdev_factor: 1000,
        max_ejection_percent: 100,
        ..outlier_defaults()
    };
    let mut state = OutlierState::new();
    for host in ["a", "b", "c", "d"] {
        for i in 0..10 {
            let fails = host == "d" && i % 2 == 0;
            let outcome = if fails { Outcome::LocalFailure } else { Outcome::ConnectSuccess };
            state.record(&settings, &host, outcome, 4, 0, 0);
        }
    }
    state.sweep(&settings, 4, 10_000, 0);
    assert_eq!(["a", "d"].map(|h| state.is_ejected(&h)), [false, true]);
}

fn outlier_defaults() -> OutlierDetection {
    let mut store = Store::default();
    let mut resource = cluster("c", envoy_types::pb::envoy::config::cluster::v3::cluster::DiscoveryType::Static);
    resource.outlier_detection = Some(Default::default());
    store.clusters(&[resource]).expect("accepted");
    store.runtime().clusters["c"].outlier.clone().expect("on")
}
