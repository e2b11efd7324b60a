//! Equal inputs give equal bytes, and what is shared is rendered once.

use std::{sync::Arc, time::Instant};

use carrick_mesh::{Snapshot, Views};
use carrick_render::{Cache, Rendered, resources};
use serde_json::json;

use crate::{
    shared,
    world::{ShortPod, ShortService, World},
};

fn large(services: usize) -> World {
    let mut world = World::default();
    for i in 0..services {
        let namespace = format!("n{}", i % 20);
        world.pods.push(ShortPod {
            pod: format!("s{i}-1.{namespace}"),
            ip: format!("10.244.{}.{}", i / 250, i % 250 + 2),
            labels: [("app".to_owned(), format!("s{i}"))].into(),
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
    world
}

fn versions(rendered: &Rendered) -> Vec<Arc<str>> {
    [&rendered.clusters, &rendered.endpoints, &rendered.listeners, &rendered.routes]
        .iter()
        .flat_map(|all| all.values().map(|r| r.version.clone()))
        .collect()
}

#[test]
fn bytes_are_stable() {
    let mut world = large(30);
    world.mesh = Some(json!({"accessLogFile": "/dev/stdout", "accessLogEncoding": "JSON"}));
    world.objects.push(json!({
        "kind": "DestinationRule", "metadata": {"name": "r", "namespace": "n1"},
        "spec": {"host": "*.n1.svc.cluster.local", "subsets": [{"name": "v1", "labels": {"app": "s1"}}]},
    }));
    let pod = world.pods[0].pod.clone();
    let first = shared::render(&world, &pod);
    for _ in 0..20 {
        assert_eq!(versions(&first), versions(&shared::render(&world, &pod)));
    }
}

#[test]
fn what_is_equal_is_rendered_once() {
    let mut world = large(40);
    let (snapshot, _) = Snapshot::build(&world.input());
    let (mut views, mut cache) = (Views::new(snapshot.clone()), Cache::default());
    let all: Vec<_> = world.pods.iter().map(|p| resources(&views.of(&world.proxy(&p.pod)), &mut cache)).collect();
    let cluster = "outbound|80||s0.n0.svc.cluster.local";
    for rendered in &all {
        assert!(Arc::ptr_eq(&rendered.clusters[cluster], &all[0].clusters[cluster]), "one cluster for all proxies");
    }
    let known = cache.len();
    cache.sweep();
    assert_eq!(cache.len(), known, "all of it was used");

    // One more pod of a known identity: one assignment changes, nothing else.
    let mut twin = world.pods[0].clone();
    twin.pod = "twin.n0".to_owned();
    twin.ip = "10.244.9.9".to_owned();
    world.pods.push(twin);
    views.update(snapshot.with_endpoints(&world.endpoints()));
    let after = resources(&views.of(&world.proxy(&world.pods[1].pod)), &mut cache);
    let before = &all[1];
    assert!(Arc::ptr_eq(&before.routes, &after.routes));
    let changed: Vec<_> = after
        .endpoints
        .iter()
        .filter(|(name, r)| !Arc::ptr_eq(&before.endpoints[*name], r))
        .map(|(n, _)| &**n)
        .collect();
    assert_eq!(changed, ["outbound|80||s0.n0.svc.cluster.local", "outbound|9000||s0.n0.svc.cluster.local"]);

    cache.sweep();
    cache.sweep();
    assert!(cache.is_empty(), "what nobody uses is forgotten");
}

#[test]
fn three_hundred_services_and_proxies() {
    let world = large(300);
    let (snapshot, _) = Snapshot::build(&world.input());
    let (mut views, mut cache) = (Views::new(snapshot), Cache::default());
    let start = Instant::now();
    let mut total = 0;
    for pod in &world.pods {
        let rendered = resources(&views.of(&world.proxy(&pod.pod)), &mut cache);
        total += rendered.clusters.len() + rendered.endpoints.len() + rendered.listeners.len() + rendered.routes.len();
    }
    println!("300 proxies: {total} resources, {} distinct, {:?}", cache.len(), start.elapsed());
    assert!(cache.len() * 50 < total);
}
