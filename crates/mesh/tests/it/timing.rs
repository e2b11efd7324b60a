//! How long 300 services and 300 proxies take. Printed, not asserted: the machine is shared.

use std::time::Instant;

use carrick_mesh::{Snapshot, Views};
use serde_json::json;

use crate::world::{ShortPod, ShortService, World};

pub fn large(services: usize) -> World {
    let mut world = World::default();
    for i in 0..services {
        let labels = [("app".to_owned(), format!("s{i}"))].into();
        let namespace = format!("n{}", i % 20);
        world.pods.push(ShortPod {
            pod: format!("s{i}-1.{namespace}"),
            ip: format!("10.244.{}.{}", i / 250, i % 250 + 2),
            labels,
            ..ShortPod::default()
        });
        world.services.push(ShortService {
            service: format!("s{i}.{namespace}"),
            vip: Some(format!("10.96.{}.{}", i / 250, i % 250 + 2)),
            ports: vec!["http:80->8080".to_owned(), "9000".to_owned()],
            selector: [("app".to_owned(), format!("s{i}"))].into(),
            ..ShortService::default()
        });
    }
    let policy = json!({
        "kind": "PeerAuthentication", "metadata": {"name": "d", "namespace": "istio-system"},
        "spec": {"mtls": {"mode": "STRICT"}},
    });
    world.objects.push(policy);
    world
}

#[test]
fn three_hundred_services() {
    let world = large(300);
    let input = world.input();
    let start = Instant::now();
    let (snapshot, _) = Snapshot::build(&input);
    let built = start.elapsed();
    let start = Instant::now();
    let mut views = Views::new(snapshot);
    let mut clusters = 0;
    for pod in &world.pods {
        clusters += views.sidecar(&world.proxy(&pod.pod)).outbound.clusters.len();
    }
    let derived = start.elapsed();
    println!("300 services: snapshot {built:?}, 300 views ({clusters} clusters) {derived:?}");
    assert_eq!(clusters, 300 * 600);
}
