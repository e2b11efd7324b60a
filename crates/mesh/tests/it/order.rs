//! Equal objects give equal views, whatever order they came in.

use carrick_mesh::{Snapshot, Views};
use serde_json::json;

use crate::world::World;

fn world() -> World {
    serde_json::from_value(json!({
        "pods": [
            {"pod": "a.x", "ip": "10.244.0.1", "labels": {"app": "a"}},
            {"pod": "b.x", "ip": "10.244.0.2", "labels": {"app": "b"}, "account": "b"},
            {"pod": "c.y", "ip": "10.244.0.3", "labels": {"app": "b"}, "sidecar": false},
        ],
        "services": [
            {"service": "a.x", "vip": "10.96.0.1", "ports": ["http:80->8080"], "selector": {"app": "a"}},
            {"service": "b.x", "vip": "10.96.0.2", "ports": ["80", "tcp-db:81"], "selector": {"app": "b"}},
            {"service": "b.y", "ports": ["http:80", "82"], "selector": {"app": "b"}},
        ],
        "objects": [
            {"kind": "PeerAuthentication", "metadata": {"name": "p", "namespace": "x"}, "spec": {"mtls": {"mode": "STRICT"}}},
            {"kind": "PeerAuthentication", "metadata": {"name": "o", "namespace": "x"}, "spec": {"mtls": {"mode": "DISABLE"}}},
            {"kind": "DestinationRule", "metadata": {"name": "r", "namespace": "x"},
             "spec": {"host": "b", "trafficPolicy": {"tls": {"mode": "DISABLE"}}}},
            {"kind": "DestinationRule", "metadata": {"name": "q", "namespace": "x"},
             "spec": {"host": "b", "subsets": [{"name": "v1", "labels": {"v": "1"}}]}},
        ],
    }))
    .expect("a world")
}

#[test]
fn order_does_not_matter() {
    let world = world();
    let mut reversed = world.clone();
    reversed.pods.reverse();
    reversed.services.reverse();
    reversed.objects.reverse();
    let (one, found_one) = Snapshot::build(&world.input());
    let (other, found_other) = Snapshot::build(&reversed.input());
    assert_eq!(found_one, found_other);
    assert!(!found_one.is_empty(), "two policies of one level were reported");
    for pod in ["a.x", "b.x", "c.y"] {
        let proxy = world.proxy(pod);
        assert_eq!(Views::new(one.clone()).sidecar(&proxy), Views::new(other.clone()).sidecar(&proxy), "{pod}");
    }
}

#[test]
fn other_endpoints_alone_keep_the_client_side() {
    let mut world = world();
    world.objects.clear();
    let (snapshot, _) = Snapshot::build(&world.input());
    let proxy = world.proxy("a.x");
    let mut views = Views::new(snapshot.clone());
    let before = views.sidecar(&proxy);

    // A second pod of the same identity changes endpoints only.
    let mut twin = world.pods[1].clone();
    twin.pod = "b2.x".to_owned();
    twin.ip = "10.244.0.9".to_owned();
    world.pods.push(twin);
    let more = snapshot.with_endpoints(&world.endpoints());
    views.update(more.clone());
    let after = views.sidecar(&proxy);
    assert!(std::sync::Arc::ptr_eq(&before.outbound, &after.outbound));
    assert!(before.loads != after.loads);
    assert!(after == Views::new(more).sidecar(&proxy), "what is remembered is what would come out again");

    // A pod of another identity changes whom clients accept.
    world.pods[1].account = Some("other".to_owned());
    let renamed = snapshot.with_endpoints(&world.endpoints());
    views.update(renamed.clone());
    let renamed_view = views.sidecar(&proxy);
    assert!(after.outbound != renamed_view.outbound);
    assert!(renamed_view == Views::new(renamed).sidecar(&proxy));
}
