//! The state-of-the-world session, rule by rule.

use crate::set;
use carrick_xds::TypeUrl::{self, Cluster, Endpoint, Listener, Route};
use carrick_xds::server::SotwSession;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::rpc::Status;

fn ask(type_url: &TypeUrl, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url.as_str().into(),
        resource_names: names.iter().map(|s| s.to_string()).collect(),
        response_nonce: nonce.into(),
        ..Default::default()
    }
}

fn nack(type_url: &TypeUrl, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        error_detail: Some(Status { code: 3, message: "no".into(), details: vec![] }),
        ..ask(type_url, names, nonce)
    }
}

/// `CDS 12` for a response with bodies 1 and 2.
fn shown(responses: &[DiscoveryResponse]) -> Vec<String> {
    responses
        .iter()
        .map(|r| {
            let bodies: String = r
                .resources
                .iter()
                .filter(|r| r.value.len() == 1)
                .flat_map(|r| &r.value)
                .map(|b| b.to_string())
                .collect();
            format!("{} {bodies}", TypeUrl::parse(&r.type_url).short())
        })
        .collect()
}

fn step(session: &mut SotwSession, request: DiscoveryRequest) -> Vec<DiscoveryResponse> {
    session.on_request(&request).expect("valid request")
}

#[test]
fn everything_of_a_type_is_sent_on_any_change() {
    let mut s = SotwSession::new(1);
    assert!(step(&mut s, ask(&Cluster, &[], "")).is_empty(), "nothing is known yet");
    let out = s.on_push(set(1, &[(Cluster, "a", 1), (Cluster, "b", 2), (Listener, "l", 1)]));
    assert_eq!(shown(&out), ["CDS 12"]);
    assert_eq!(out[0].version_info, "v/1");
    assert!(s.on_push(set(2, &[(Cluster, "a", 3)])).is_empty(), "one at a time");
    assert!(step(&mut s, ask(&Cluster, &[], "stale")).is_empty());
    let out = step(&mut s, ask(&Cluster, &[], &out[0].nonce));
    assert_eq!(shown(&out), ["CDS 3"]);
    assert!(step(&mut s, ask(&Cluster, &[], &out[0].nonce)).is_empty());
    assert_eq!((s.status().target, s.status().acknowledged), (2, 2));
    assert!(s.on_push(set(3, &[(Cluster, "a", 3), (Listener, "l", 1)])).is_empty(), "nothing of it concerns the peer");
    assert_eq!(s.status().acknowledged, 3);
}

#[test]
fn names_are_replaced_and_an_empty_list_ends_the_subscription() {
    let mut s = SotwSession::new(1);
    s.on_push(set(1, &[(Endpoint, "a", 1), (Endpoint, "b", 2)]));
    let out = step(&mut s, ask(&Endpoint, &["a"], ""));
    assert_eq!(shown(&out), ["EDS 1"]);
    let out = step(&mut s, ask(&Endpoint, &["a", "b"], &out[0].nonce));
    assert_eq!(shown(&out), ["EDS 12"]);
    assert!(step(&mut s, ask(&Endpoint, &["b"], &out[0].nonce)).is_empty(), "fewer names need no response");
    assert!(s.on_push(set(2, &[(Endpoint, "a", 7), (Endpoint, "b", 2)])).is_empty());
    assert!(step(&mut s, ask(&Endpoint, &[], &out[0].nonce)).is_empty());
    assert!(s.on_push(set(3, &[(Endpoint, "b", 3)])).is_empty());
    // A wildcard type that was given names is no wildcard again.
    let out = step(&mut s, ask(&Listener, &["l"], ""));
    assert_eq!(shown(&out), ["LDS "]);
    assert!(step(&mut s, ask(&Listener, &[], &out[0].nonce)).is_empty());
    assert!(s.on_push(set(4, &[(Listener, "l", 1)])).is_empty());
}

#[test]
fn a_refused_version_waits_for_a_change() {
    let mut s = SotwSession::new(1);
    s.on_push(set(1, &[(Route, "r", 1)]));
    let out = step(&mut s, ask(&Route, &["r"], ""));
    assert!(step(&mut s, nack(&Route, &["r"], &out[0].nonce)).is_empty());
    let status = &s.status().types[&Route];
    assert_eq!(status.nack.as_ref().map(|n| (n.message.as_str(), &*n.version)), Some(("no", "v/1")));
    assert!(s.on_push(set(2, &[(Route, "r", 1), (Cluster, "c", 1)])).is_empty());
    let out = s.on_push(set(3, &[(Route, "r", 2)]));
    assert_eq!(shown(&out), ["RDS 2"]);
    step(&mut s, ask(&Route, &["r"], &out[0].nonce));
    assert_eq!(s.status().types[&Route].nack, None);
}

#[test]
fn what_is_left_of_a_refused_response_is_sent_again() {
    let mut s = SotwSession::new(1);
    s.on_push(set(1, &[(Route, "bad", 9), (Route, "good", 1)]));
    let out = step(&mut s, ask(&Route, &["bad", "good"], ""));
    assert_eq!(shown(&out), ["RDS 91"]);
    // Given up before the response arrived, which is then refused as a whole.
    assert!(step(&mut s, ask(&Route, &["good"], "")).is_empty());
    assert_eq!(shown(&step(&mut s, nack(&Route, &["good"], &out[0].nonce))), ["RDS 1"]);
}

#[test]
fn a_reconnecting_peer_with_an_old_nonce_is_new() {
    let mut s = SotwSession::new(2);
    s.on_push(set(1, &[(Cluster, "a", 1)]));
    assert_eq!(shown(&step(&mut s, ask(&Cluster, &[], "1-17"))), ["CDS 1"]);
}
