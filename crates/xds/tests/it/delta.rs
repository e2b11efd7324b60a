//! The delta session, rule by rule.

use crate::{resource, set};
use carrick_xds::TypeUrl::{self, Cluster, Endpoint, Listener, Route};
use carrick_xds::server::{DeltaResponse, DeltaSession, ProtocolError};
use carrick_xds::{Resource, ResourceSet};
use envoy_types::pb::envoy::config::cluster::v3::{Cluster as EnvoyCluster, cluster::EdsClusterConfig};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc::Status;
use envoy_types::util::pack_any;

fn ask(type_url: &TypeUrl, subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.as_str().into(),
        resource_names_subscribe: subscribe.iter().map(|s| s.to_string()).collect(),
        resource_names_unsubscribe: unsubscribe.iter().map(|s| s.to_string()).collect(),
        ..Default::default()
    }
}

fn with_versions(mut request: DeltaDiscoveryRequest, held: &[Resource]) -> DeltaDiscoveryRequest {
    request.initial_resource_versions = held.iter().map(|r| (r.name.to_string(), r.version.to_string())).collect();
    request
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..Default::default()
    }
}

fn nack(response: &DeltaDiscoveryResponse, message: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        error_detail: Some(Status { code: 3, message: message.into(), details: vec![] }),
        ..ack(response)
    }
}

/// Responses as text: `CDS +a +b -c`.
fn shown(responses: &[DeltaDiscoveryResponse]) -> Vec<String> {
    responses
        .iter()
        .map(|r| {
            let mut text = TypeUrl::parse(&r.type_url).short().to_owned();
            let mut up: Vec<&str> = r.resources.iter().map(|r| r.name.as_str()).collect();
            up.sort_unstable();
            up.iter().for_each(|name| text += &format!(" +{name}"));
            r.removed_resources.iter().for_each(|name| text += &format!(" -{name}"));
            text
        })
        .collect()
}

fn step(session: &mut DeltaSession, request: DeltaDiscoveryRequest) -> Vec<DeltaDiscoveryResponse> {
    messages(session.on_request(&request).expect("valid request"))
}

fn push(session: &mut DeltaSession, set: ResourceSet) -> Vec<DeltaDiscoveryResponse> {
    messages(session.on_push(set))
}

fn messages(responses: Vec<DeltaResponse>) -> Vec<DeltaDiscoveryResponse> {
    responses.iter().map(DeltaResponse::message).collect()
}

#[test]
fn nothing_is_answered_before_the_first_set() {
    let mut s = DeltaSession::new(1);
    assert!(step(&mut s, ask(&Cluster, &[], &[])).is_empty());
    assert!(step(&mut s, ask(&Endpoint, &["a"], &[])).is_empty());
    assert_eq!(shown(&push(&mut s, set(1, &[(Cluster, "c", 1)]))), ["CDS +c", "EDS -a"]);
}

#[test]
fn an_empty_wildcard_is_answered() {
    let mut s = DeltaSession::new(1);
    push(&mut s, set(1, &[]));
    assert_eq!(shown(&step(&mut s, ask(&Listener, &[], &[]))), ["LDS"]);
    assert_eq!(shown(&step(&mut s, ask(&Cluster, &["*"], &[]))), ["CDS"]);
    assert!(step(&mut s, ask(&Route, &[], &[])).is_empty(), "no names: no interest");
}

#[test]
fn only_what_changed_is_sent_and_types_come_in_order() {
    let mut s = DeltaSession::new(1);
    push(
        &mut s,
        set(1, &[(Cluster, "a", 1), (Cluster, "b", 1), (Listener, "l", 1), (Route, "r", 1), (Endpoint, "a", 1)]),
    );
    for (request, expected) in [
        (ask(&Listener, &[], &[]), "LDS +l"),
        (ask(&Route, &["r"], &[]), "RDS +r"),
        (ask(&Cluster, &[], &[]), "CDS +a +b"),
        (ask(&Endpoint, &["a"], &[]), "EDS +a"),
    ] {
        let out = step(&mut s, request);
        assert_eq!(shown(&out), [expected]);
        assert!(step(&mut s, ack(&out[0])).is_empty());
    }
    assert_eq!(s.status().acknowledged, 1);
    let out = push(
        &mut s,
        set(2, &[(Cluster, "a", 2), (Cluster, "b", 1), (Listener, "l", 2), (Route, "r", 2), (Endpoint, "a", 2)]),
    );
    assert_eq!(shown(&out), ["CDS +a", "EDS +a", "LDS +l", "RDS +r"]);
    assert_eq!((s.status().target, s.status().acknowledged), (2, 1));
    out.iter().for_each(|r| assert!(step(&mut s, ack(r)).is_empty()));
    assert_eq!(s.status().acknowledged, 2);
    // The same content at a later generation: nothing to send, and acknowledged at once.
    assert!(
        push(
            &mut s,
            set(3, &[(Cluster, "a", 2), (Cluster, "b", 1), (Listener, "l", 2), (Route, "r", 2), (Endpoint, "a", 2)])
        )
        .is_empty()
    );
    assert_eq!(s.status().acknowledged, 3);
}

#[test]
fn one_push_at_a_time_and_the_waiting_ones_merge() {
    let mut s = DeltaSession::new(1);
    push(&mut s, set(1, &[(Cluster, "a", 1)]));
    let first = step(&mut s, ask(&Cluster, &[], &[]));
    assert!(push(&mut s, set(2, &[(Cluster, "a", 2), (Cluster, "b", 2)])).is_empty());
    assert!(push(&mut s, set(3, &[(Cluster, "b", 3)])).is_empty());
    let mut old = ack(&first[0]);
    old.response_nonce = "1-999".into();
    assert!(step(&mut s, old).is_empty(), "an unknown nonce acknowledges nothing");
    let second = step(&mut s, ack(&first[0]));
    assert_eq!(shown(&second), ["CDS +b -a"]);
    assert!(step(&mut s, ack(&first[0])).is_empty(), "a repeated ACK changes nothing");
    assert_eq!(s.status().acknowledged, 1);
    assert!(step(&mut s, ack(&second[0])).is_empty());
    assert_eq!(s.status().acknowledged, 3);
}

#[test]
fn a_reconnecting_peer_gets_the_difference() {
    let held = [resource(&Cluster, "same", 1), resource(&Cluster, "changed", 1), resource(&Cluster, "gone", 1)];
    let now = set(7, &[(Cluster, "same", 1), (Cluster, "changed", 2), (Cluster, "new", 1)]);
    let mut s = DeltaSession::new(1);
    push(&mut s, now.clone());
    assert_eq!(shown(&step(&mut s, with_versions(ask(&Cluster, &[], &[]), &held))), ["CDS +changed +new -gone"]);

    let mut s = DeltaSession::new(2);
    push(&mut s, now);
    let current = [resource(&Cluster, "same", 1), resource(&Cluster, "changed", 2), resource(&Cluster, "new", 1)];
    assert!(step(&mut s, with_versions(ask(&Cluster, &[], &[]), &current)).is_empty());
    assert_eq!(s.status().acknowledged, 7);
    let held = [resource(&Endpoint, "e", 1), resource(&Endpoint, "unwanted", 1)];
    assert_eq!(shown(&step(&mut s, with_versions(ask(&Endpoint, &["e"], &[]), &held))), ["EDS -e"]);
}

#[test]
fn names_come_and_go() {
    let mut s = DeltaSession::new(1);
    push(&mut s, set(1, &[(Endpoint, "a", 1), (Endpoint, "b", 1)]));
    let out = step(&mut s, ask(&Endpoint, &["a", "none"], &[]));
    assert_eq!(shown(&out), ["EDS +a -none"]);
    assert!(step(&mut s, ask(&Endpoint, &["b"], &["a"])).is_empty(), "waits for the answer");
    let out = step(&mut s, ack(&out[0]));
    assert_eq!(shown(&out), ["EDS +b"]);
    step(&mut s, ack(&out[0]));
    // "none" comes into being, "a" changes but is not wanted.
    let out = push(&mut s, set(2, &[(Endpoint, "a", 2), (Endpoint, "b", 1), (Endpoint, "none", 1)]));
    assert_eq!(shown(&out), ["EDS +none"]);
    step(&mut s, ack(&out[0]));
    // Asked for again: the peer has dropped it.
    let out = step(&mut s, ask(&Endpoint, &["b"], &[]));
    assert_eq!(shown(&out), ["EDS +b"]);
    step(&mut s, ack(&out[0]));
    assert!(step(&mut s, ask(&Endpoint, &[], &["a", "b", "none"])).is_empty());
    assert!(push(&mut s, set(3, &[])).is_empty());
    assert_eq!(s.status().acknowledged, 3);
}

#[test]
fn wildcard_and_names_together() {
    let mut s = DeltaSession::new(1);
    push(&mut s, set(1, &[(Listener, "a", 1), (Listener, "b", 1)]));
    let out = step(&mut s, ask(&Listener, &["*", "x"], &[]));
    assert_eq!(shown(&out), ["LDS +a +b -x"]);
    step(&mut s, ack(&out[0]));
    // A name given up under a wildcard is told again, since the peer dropped it.
    let out = step(&mut s, ask(&Listener, &["a"], &[]));
    step(&mut s, ack(&out[0]));
    let out = step(&mut s, ask(&Listener, &[], &["a"]));
    assert_eq!(shown(&out), ["LDS +a"]);
    step(&mut s, ack(&out[0]));
    // The wildcard given up: only names are left.
    assert!(step(&mut s, ask(&Listener, &[], &["*"])).is_empty());
    let out = push(&mut s, set(2, &[(Listener, "a", 2), (Listener, "x", 1)]));
    assert_eq!(shown(&out), ["LDS +x"]);
}

#[test]
fn a_refused_resource_is_isolated_and_told_with_its_reason() {
    let mut s = DeltaSession::new(1);
    let names = ["a", "b", "c", "d", "bad"];
    let all: Vec<_> = names.iter().map(|n| (Cluster, *n, 1)).collect();
    push(&mut s, set(1, &all));
    let mut out = step(&mut s, ask(&Cluster, &[], &[]));
    let mut accepted = Vec::new();
    let mut rounds = 0;
    while let Some(response) = out.pop() {
        assert!(out.is_empty(), "one at a time");
        rounds += 1;
        out = if response.resources.iter().any(|r| r.name == "bad") {
            step(&mut s, nack(&response, "bad: field x"))
        } else {
            accepted.extend(response.resources.iter().map(|r| r.name.clone()));
            step(&mut s, ack(&response))
        };
    }
    accepted.sort();
    assert_eq!(accepted, ["a", "b", "c", "d"]);
    assert!(rounds <= 8, "{rounds}");
    let status = &s.status().types[&Cluster];
    assert_eq!(status.nack.as_ref().map(|n| n.message.as_str()), Some("bad: field x"));
    assert_eq!(s.status().acknowledged, 1);
    // Not sent again while it does not change, neither by itself nor with others.
    let out = push(
        &mut s,
        set(2, &[(Cluster, "a", 2), (Cluster, "b", 1), (Cluster, "c", 1), (Cluster, "d", 1), (Cluster, "bad", 1)]),
    );
    assert_eq!(shown(&out), ["CDS +a"]);
    assert!(step(&mut s, ack(&out[0])).is_empty());
    assert!(s.status().types[&Cluster].nack.is_some());
    let out = push(
        &mut s,
        set(3, &[(Cluster, "a", 2), (Cluster, "b", 1), (Cluster, "c", 1), (Cluster, "d", 1), (Cluster, "bad", 2)]),
    );
    assert_eq!(shown(&out), ["CDS +bad"]);
    assert!(step(&mut s, ack(&out[0])).is_empty());
    assert_eq!(s.status().types[&Cluster].nack, None);
}

fn cluster(name: &str, timeout: i64) -> Resource {
    Resource::new(
        name,
        pack_any(EnvoyCluster {
            name: name.into(),
            connect_timeout: Some(envoy_types::pb::google::protobuf::Duration { seconds: timeout, nanos: 0 }),
            eds_cluster_config: Some(EdsClusterConfig::default()),
            ..Default::default()
        }),
    )
}

#[test]
fn endpoints_follow_a_changed_cluster() {
    let at = |generation, a, b| {
        ResourceSet::from_resources(
            generation,
            "v",
            [
                (Cluster, cluster("a", a)),
                (Cluster, cluster("b", b)),
                (Endpoint, resource(&Endpoint, "a", 1)),
                (Endpoint, resource(&Endpoint, "b", 1)),
            ],
        )
    };
    let mut s = DeltaSession::new(1);
    push(&mut s, at(1, 1, 1));
    let out = step(&mut s, ask(&Cluster, &[], &[]));
    step(&mut s, ack(&out[0]));
    let out = step(&mut s, ask(&Endpoint, &["a", "b"], &[]));
    step(&mut s, ack(&out[0]));
    let out = push(&mut s, at(2, 2, 1));
    assert_eq!(shown(&out), ["CDS +a", "EDS +a"]);
    out.iter().for_each(|r| assert!(step(&mut s, ack(r)).is_empty()));
    assert_eq!(s.status().acknowledged, 2);
}

#[test]
fn endpoints_are_owed_until_they_are_asked_for() {
    let set = |generation, timeout| {
        let resources = [(Cluster, cluster("a", timeout)), (Endpoint, resource(&Endpoint, "a", 1))];
        ResourceSet::from_resources(generation, "v", resources)
    };
    let held = [resource(&Endpoint, "a", 1)];
    // Reconnected: the cluster changed meanwhile, the endpoints did not.
    let mut s = DeltaSession::new(1);
    push(&mut s, set(2, 2));
    assert_eq!(shown(&step(&mut s, with_versions(ask(&Cluster, &[], &[]), &[cluster("a", 1)]))), ["CDS +a"]);
    assert_eq!(shown(&step(&mut s, with_versions(ask(&Endpoint, &["a"], &[]), &held))), ["EDS +a"]);
    // Reconnected while it warms what an earlier stream sent: it asks for endpoints only.
    let mut s = DeltaSession::new(2);
    push(&mut s, set(2, 2));
    assert_eq!(shown(&step(&mut s, with_versions(ask(&Endpoint, &["a"], &[]), &held))), ["EDS +a"]);
    // Reconnected, nothing changed.
    let mut s = DeltaSession::new(3);
    push(&mut s, set(2, 2));
    assert!(step(&mut s, with_versions(ask(&Cluster, &[], &[]), &[cluster("a", 2)])).is_empty());
    assert!(step(&mut s, with_versions(ask(&Endpoint, &["a"], &[]), &held)).is_empty());
}

#[test]
fn clusters_go_after_what_refers_to_them() {
    let mut s = DeltaSession::new(1);
    push(&mut s, set(1, &[(Cluster, "old", 1), (Endpoint, "old", 1), (Listener, "l", 1)]));
    for request in [ask(&Cluster, &[], &[]), ask(&Endpoint, &["old"], &[]), ask(&Listener, &[], &[])] {
        let out = step(&mut s, request);
        step(&mut s, ack(&out[0]));
    }
    let out = push(&mut s, set(2, &[(Cluster, "new", 1), (Listener, "l", 2)]));
    assert_eq!(shown(&out), ["CDS +new", "LDS +l"]);
    assert!(step(&mut s, ack(&out[0])).is_empty());
    assert_eq!(s.status().acknowledged, 1, "the old cluster is still there");
    let out = step(&mut s, ack(&out[1]));
    assert_eq!(shown(&out), ["CDS -old", "EDS -old"]);
    out.iter().for_each(|r| assert!(step(&mut s, ack(r)).is_empty()));
    assert_eq!(s.status().acknowledged, 2);
}

#[test]
fn a_removal_does_not_wait_for_a_response_that_never_comes() {
    let mut s = DeltaSession::new(1);
    push(&mut s, set(1, &[(Cluster, "old", 1), (Route, "a", 1), (Route, "b", 1)]));
    let clusters = step(&mut s, ask(&Cluster, &[], &[]));
    step(&mut s, ack(&clusters[0]));
    let routes = step(&mut s, ask(&Route, &["a", "b"], &[]));
    assert!(push(&mut s, set(2, &[(Route, "a", 1), (Route, "b", 1)])).is_empty());
    step(&mut s, ask(&Route, &[], &["b"]));
    // Refused: "a" and "b" would be tried alone, but "b" is not wanted any more.
    let out = step(&mut s, nack(&routes[0], "no"));
    assert_eq!(shown(&out), ["RDS +a"]);
    assert_eq!(shown(&step(&mut s, nack(&out[0], "no"))), ["CDS -old"]);
}

#[test]
fn going_back_to_an_earlier_set_is_a_change() {
    let (one, two) = (set(1, &[(Cluster, "a", 1)]), set(2, &[(Cluster, "a", 2)]));
    let mut s = DeltaSession::new(1);
    push(&mut s, one.clone());
    let out = step(&mut s, ask(&Cluster, &[], &[]));
    step(&mut s, ack(&out[0]));
    let out = push(&mut s, two);
    step(&mut s, ack(&out[0]));
    assert_eq!(shown(&push(&mut s, one.at(3, "v/3"))), ["CDS +a"]);
}

#[test]
fn abuse_ends_the_stream() {
    let mut s = DeltaSession::new(1);
    assert_eq!(s.on_request(&DeltaDiscoveryRequest::default()).err(), Some(ProtocolError::NoType));
    let refused = (0..100).find_map(|i| s.on_request(&ask(&TypeUrl::parse(&format!("x/{i}")), &[], &[])).err());
    assert!(matches!(refused, Some(ProtocolError::TooManyTypes(_))));
}

#[test]
fn an_answer_that_does_not_come_holds_newer_changes_up_for_a_while_only() {
    let mut s = DeltaSession::new(1);
    push(&mut s, set(1, &[(Cluster, "c", 1), (Listener, "l", 1)]));
    let first = step(&mut s, ask(&Cluster, &[], &[]));
    let listeners = step(&mut s, ask(&Listener, &[], &[]));
    step(&mut s, ack(&listeners[0]));
    // Warming: the clusters are not answered, and a change of them has to wait. Nothing else does.
    assert_eq!(shown(&push(&mut s, set(2, &[(Cluster, "c", 2), (Listener, "l", 2)]))), ["LDS +l"]);
    let unanswered = s.unanswered();
    assert!(unanswered.contains(&first[0].nonce.as_str().into()), "{unanswered:?}");
    let second = messages(s.give_up(&[first[0].nonce.as_str().into()]));
    assert_eq!(shown(&second), ["CDS +c"]);
    assert_eq!(s.status().acknowledged, 0, "nobody knows what the peer has");
    // Given up without anything newer to send: still not acknowledged, until the answer comes after all.
    assert!(s.give_up(&[second[0].nonce.as_str().into()]).is_empty());
    push(&mut s, set(3, &[(Cluster, "c", 2), (Listener, "l", 2)]));
    assert!(s.status().types[&Cluster].generation < 2);
    step(&mut s, ack(&second[0]));
    assert_eq!(s.status().types[&Cluster].generation, 3);
}

#[test]
fn secrets_are_sent_by_name_when_they_come_change_and_go() {
    let secret = TypeUrl::Secret;
    let mut s = DeltaSession::new(1);
    push(&mut s, set(1, &[(secret.clone(), "kubernetes://a", 1), (secret.clone(), "kubernetes://b", 1)]));
    assert!(step(&mut s, ask(&secret, &[], &[])).is_empty(), "never all of them");
    let given = step(&mut s, ask(&secret, &["kubernetes://a", "kubernetes://none"], &[]));
    assert_eq!(shown(&given), ["SDS +kubernetes://a -kubernetes://none"]);
    step(&mut s, ack(&given[0]));
    let other = set(2, &[(secret.clone(), "kubernetes://a", 1), (secret.clone(), "kubernetes://b", 2)]);
    assert!(push(&mut s, other).is_empty(), "not asked for");
    let change = [(secret.clone(), "kubernetes://a", 2), (secret.clone(), "kubernetes://none", 1)];
    assert_eq!(shown(&push(&mut s, set(3, &change))), ["SDS +kubernetes://a +kubernetes://none"]);
}
