//! Endpoints that follow others are what would be built from nothing, and a change costs the services that it concerns.

use std::{collections::HashMap, sync::Arc, time::Instant};

use carrick_mesh::{EndpointInput, Snapshot, SnapshotInput, Views};
use serde_json::json;

use crate::{
    timing::large,
    world::{ShortPod, World},
};

/// Numbers that look random, the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("small")
    }
}

/// What did not change is the same value, as in a store of objects.
pub fn keep<T: PartialEq>(before: &[Arc<T>], now: &mut [Arc<T>]) {
    for object in now {
        if let Some(known) = before.iter().find(|known| *known == object) {
            *object = known.clone();
        }
    }
}

fn pod(dice: &mut Dice, name: &str) -> ShortPod {
    let app = ["a", "b", "c"][dice.below(3)];
    ShortPod {
        pod: name.to_owned(),
        // Few, so that pods take over each other's.
        ip: format!("10.244.0.{}", dice.below(9) + 1),
        labels: [("app".to_owned(), app.to_owned()), ("v".to_owned(), dice.below(2).to_string())].into(),
        sidecar: Some(dice.below(4) > 0),
        account: Some(["one", "two"][dice.below(2)].to_owned()),
        not_ready: dice.below(4) == 0,
        ports: [("named".to_owned(), 9000 + u16::try_from(dice.below(2)).expect("small"))].into(),
        node: ["n1", "n2", ""][dice.below(3)].to_owned(),
    }
}

fn world(dice: &mut Dice) -> World {
    let mut world: World = serde_json::from_value(json!({
        "pods": [{"pod": "fixed.x", "ip": "10.244.1.1", "labels": {"app": "a", "v": "1"}},
                 {"pod": "edge.y", "ip": "10.244.1.2", "labels": {"istio": "edge"}}],
        "services": [
            {"service": "a.x", "vip": "10.96.0.1", "ports": ["http:80->8080"], "selector": {"app": "a"}},
            {"service": "b.x", "vip": "10.96.0.2", "ports": ["80", "tcp-db:81->named"], "selector": {"app": "b"}},
            {"service": "c.x", "ports": ["http:80", "82"], "selector": {"app": "c"}},
            {"service": "b.y", "vip": "10.96.0.4", "ports": ["http:80"], "selector": {"app": "b"}},
        ],
        "remotes": [{"cluster": "far", "pods": [], "services": [
            {"service": "a.x", "vip": "10.97.0.1", "ports": ["http:80->8080"], "selector": {"app": "a"}},
            {"service": "only.y", "vip": "10.97.0.2", "ports": ["http:80"], "selector": {"app": "b"}}]}],
        "objects": [
            {"kind": "ServiceEntry", "metadata": {"name": "chosen", "namespace": "x"}, "spec": {
                "hosts": ["chosen.example.org"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                "resolution": "STATIC", "workloadSelector": {"labels": {"app": "a"}}}},
            {"kind": "DestinationRule", "metadata": {"name": "b", "namespace": "x"}, "spec": {
                "host": "b", "subsets": [{"name": "v1", "labels": {"v": "1"}}]}},
            {"kind": "PeerAuthentication", "metadata": {"name": "off", "namespace": "x"}, "spec": {
                "selector": {"matchLabels": {"app": "b"}}, "mtls": {"mode": "DISABLE"}}},
            {"kind": "Gateway", "metadata": {"name": "edge", "namespace": "y"}, "spec": {"selector": {"istio": "edge"},
                "servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]}},
            {"kind": "VirtualService", "metadata": {"name": "edge", "namespace": "y"}, "spec": {"hosts": ["*"], "gateways": ["edge"],
                "http": [{"route": [{"destination": {"host": "b.x.svc.cluster.local", "port": {"number": 80}}}]}]}},
        ],
    }))
    .expect("a world");
    for name in ["p1.x", "p2.x", "p3.x", "p4.y"] {
        world.pods.push(pod(dice, name));
    }
    world
}

/// One thing that happens.
fn happen(dice: &mut Dice, world: &mut World) {
    let name = ["p1.x", "p2.x", "p3.x", "p4.y", "p5.y"][dice.below(5)];
    let entry = |o: &serde_json::Value| o["kind"] == "WorkloadEntry" || o["kind"] == "Node";
    match dice.below(8) {
        0 => world.pods.retain(|p| p.pod != name),
        1..=4 => {
            let new = pod(dice, name);
            match world.pods.iter_mut().find(|p| p.pod == name) {
                Some(old) => *old = new,
                None => world.pods.push(new),
            }
        }
        5 => {
            let pods = &mut world.remotes[0].pods;
            if dice.below(3) == 0 { pods.clear() } else { pods.push(pod(dice, &format!("r{}.x", pods.len()))) }
        }
        6 => {
            world.objects.retain(|o| !entry(o) || dice.below(2) == 0);
            let (ip, app) = (dice.below(9) + 1, ["a", "b"][dice.below(2)]);
            world
                .objects
                .push(json!({"kind": "WorkloadEntry", "metadata": {"name": format!("e{ip}"), "namespace": "x"},
                "spec": {"address": format!("10.244.0.{ip}"), "labels": {"app": app}, "serviceAccount": "one"}}));
        }
        _ => {
            world.objects.retain(|o| o["kind"] != "Node");
            let zone = dice.below(3).to_string();
            world.objects.push(json!({"kind": "Node", "metadata": {"name": "n1", "labels": {
                "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": zone}}}));
        }
    }
}

fn stable(before: &EndpointInput, mut now: EndpointInput, late: bool) -> EndpointInput {
    keep(&before.pods, &mut now.pods);
    keep(&before.endpoint_slices, &mut now.endpoint_slices);
    keep(&before.workload_entries, &mut now.workload_entries);
    keep(&before.nodes, &mut now.nodes);
    for (was, is) in before.remotes.iter().zip(&mut now.remotes) {
        keep(&was.pods, &mut is.pods);
        keep(&was.endpoint_slices, &mut is.endpoint_slices);
    }
    if late {
        // Slices come later than pods.
        now.endpoint_slices = before.endpoint_slices.clone();
    }
    now
}

#[test]
fn what_follows_is_what_would_be_built() {
    for seed in 1..=4 {
        let mut dice = Dice(seed * 7919);
        let mut world = world(&mut dice);
        let first = world.input();
        let (mut snapshot, _) = Snapshot::build(&first);
        let mut views = Views::new(snapshot.clone());
        let mut input = first.endpoints.clone();
        let (mut followed, mut changed) = (0, 0);
        for step in 0..40 {
            happen(&mut dice, &mut world);
            let late = dice.below(4) == 0;
            input = stable(&input, world.input().endpoints, late);
            if dice.below(5) == 0 {
                input.pods.reverse();
            }
            let next = snapshot.with_endpoints(&input);
            if let Some(services) = next.endpoints().changed_since(snapshot.endpoints()) {
                followed += 1;
                changed += services.len();
            }
            snapshot = next;
            let (fresh, _) = Snapshot::build(&SnapshotInput { endpoints: input.clone(), ..first.clone() });
            for service in fresh.services() {
                let of = |s: &Snapshot| {
                    s.endpoints().of_service(&service.id).map(|(p, e)| (p.clone(), e.clone())).collect::<Vec<_>>()
                };
                assert_eq!(of(&snapshot), of(&fresh), "seed {seed}, step {step}: {}", service.hostname);
            }
            // Not every round asks for everybody.
            if dice.below(3) == 0 {
                continue;
            }
            views.update(snapshot.clone());
            let mut again = Views::new(fresh);
            for proxy in ["fixed.x", "fixed.x !dns", "edge.y !router"] {
                let proxy = world.proxy(proxy);
                assert!(views.of(&proxy) == again.of(&proxy), "seed {seed}, step {step}: {}", proxy.id);
            }
        }
        assert!(followed > 20 && changed > 15, "most steps are followed: {followed}, {changed}");
    }
}

#[test]
fn a_change_costs_the_services_it_concerns() {
    for services in [100, 400] {
        let mut world = large(services);
        let input = world.input();
        let (snapshot, _) = Snapshot::build(&input);
        let mut views = Views::new(snapshot.clone());
        let proxy = world.proxy("s0-1.n0");
        let before = views.sidecar(&proxy);
        let lists = |s: &Snapshot| -> HashMap<_, _> {
            s.services().iter().map(|v| (v.id.clone(), s.endpoints().of(&v.id, "http").as_ptr().addr())).collect()
        };
        let mut twin = world.pods[7].clone();
        (twin.pod, twin.ip) = ("s7-2.n7".to_owned(), "10.245.0.9".to_owned());
        world.pods.push(twin);
        let more = stable(&input.endpoints, world.input().endpoints, false);
        let mut placed = more.clone();
        placed.nodes.push(Arc::default());
        let start = Instant::now();
        drop(snapshot.with_endpoints(&placed));
        let anew = start.elapsed();
        let start = Instant::now();
        let next = snapshot.with_endpoints(&more);
        let joined = start.elapsed();
        views.update(next.clone());
        let after = views.sidecar(&proxy);
        println!(
            "{services} services: followed {joined:?}, with one view {:?}; from nothing {anew:?}",
            start.elapsed()
        );
        let changed = next.endpoints().changed_since(snapshot.endpoints()).expect("it follows");
        assert_eq!(changed.len(), 1, "{changed:?}");
        let (was, is) = (lists(&snapshot), lists(&next));
        let others = was.iter().filter(|(id, at)| is.get(*id) != Some(at)).count();
        assert_eq!(others, 1, "lists of endpoints that were made anew");
        let moved = before.loads.iter().zip(after.loads.iter()).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!(moved, 2, "the service has two ports");
    }
}
