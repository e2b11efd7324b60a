//! Policies for servers that follow others are what would be built from nothing, and a change costs the namespace it is in.

use std::{collections::BTreeSet, sync::Arc};

use carrick_mesh::{Concerned, PolicyInput, Snapshot, Views};
use serde_json::{Value, json};

use crate::{
    endpoints::{Dice, keep},
    timing::large,
    world::World,
};

fn world() -> World {
    serde_json::from_value(json!({
        "pods": [{"pod": "a1.x", "ip": "10.244.1.1", "labels": {"app": "a"}},
                 {"pod": "b1.x", "ip": "10.244.1.2", "labels": {"app": "b"}},
                 {"pod": "c1.y", "ip": "10.244.1.3", "labels": {"app": "a"}},
                 {"pod": "edge.y", "ip": "10.244.1.4", "labels": {"istio": "edge"}},
                 {"pod": "named.z", "ip": "10.244.1.5", "labels": {"app": "n"}}],
        "services": [
            {"service": "a.x", "vip": "10.96.0.1", "ports": ["http:80->8080"], "selector": {"app": "a"}},
            {"service": "b.x", "vip": "10.96.0.2", "ports": ["tcp-db:81->8080"], "selector": {"app": "b"}},
            {"service": "a.y", "ports": ["http:80"], "selector": {"app": "a"}},
        ],
        "objects": [
            // Bare addresses of a workload of another namespace.
            {"kind": "EndpointSlice", "metadata": {"name": "b-bare", "namespace": "x", "labels": {"kubernetes.io/service-name": "b"}},
             "addressType": "IPv4", "ports": [{"name": "tcp-db", "port": 8080, "protocol": "TCP"}],
             "endpoints": [{"addresses": ["10.244.1.3"], "conditions": {"ready": true}}]},
            {"kind": "ServiceEntry", "metadata": {"name": "named", "namespace": "z"}, "spec": {
                "hosts": ["named.example.org"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                "resolution": "DNS", "workloadSelector": {"labels": {"app": "n"}}}},
            {"kind": "WorkloadEntry", "metadata": {"name": "n", "namespace": "z"}, "spec": {
                "address": "n.example.org", "labels": {"app": "n", "security.istio.io/tlsMode": "istio"}, "serviceAccount": "one"}},
            {"kind": "Gateway", "metadata": {"name": "edge", "namespace": "y"}, "spec": {"selector": {"istio": "edge"},
                "servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]}},
            {"kind": "VirtualService", "metadata": {"name": "edge", "namespace": "y"}, "spec": {"hosts": ["*"], "gateways": ["edge"],
                "http": [{"route": [{"destination": {"host": "a.x.svc.cluster.local", "port": {"number": 80}}}]}]}},
        ],
    }))
    .expect("a world")
}

/// Another policy in the place of one, or none.
fn happen(dice: &mut Dice, world: &mut World, step: usize) {
    let kind = ["PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication"][dice.below(3)];
    let namespace = ["x", "y", "z", "istio-system"][dice.below(4)];
    let name = ["one", "two"][dice.below(2)];
    let is = |o: &Value| o["kind"] == kind && o["metadata"]["name"] == name && o["metadata"]["namespace"] == namespace;
    world.objects.retain(|o| !is(o));
    if dice.below(4) == 0 {
        return;
    }
    let selector = match dice.below(3) {
        0 => json!({}),
        1 => json!({"selector": {"matchLabels": {"app": "a"}}}),
        _ => json!({"selector": {"matchLabels": {"app": (["b", "n"][dice.below(2)])}}}),
    };
    let mut spec = match kind {
        "PeerAuthentication" => {
            json!({"mtls": {"mode": (["STRICT", "PERMISSIVE", "DISABLE", "UNSET"][dice.below(4)])}})
        }
        "AuthorizationPolicy" if dice.below(4) == 0 => {
            json!({"action": "CUSTOM", "provider": {"name": "nobody"}, "rules": [{}]})
        }
        "AuthorizationPolicy" => json!({"action": (["ALLOW", "DENY", "AUDIT"][dice.below(3)]),
            "rules": [{"to": [{"operation": {"methods": ["GET"], "ports": [(["80", "none"][dice.below(2)])]}}]}]}),
        _ => {
            json!({"jwtRules": [{"issuer": format!("i{}", dice.below(3)), "jwks": (["{\"keys\":[]}", "none"][dice.below(2)])}]})
        }
    };
    let (Some(spec_map), Value::Object(selector)) = (spec.as_object_mut(), selector) else { return };
    spec_map.extend(selector);
    if kind == "PeerAuthentication" && dice.below(3) == 0 {
        spec_map.insert("portLevelMtls".into(), json!({"8080": {"mode": "DISABLE"}, "99999": {"mode": "STRICT"}}));
    }
    let created = format!("2026-01-01T00:{:02}:00Z", step % 60);
    let metadata = json!({"name": name, "namespace": namespace, "creationTimestamp": created});
    world.objects.push(json!({"kind": kind, "metadata": metadata, "spec": spec}));
}

fn stable(before: &PolicyInput, mut now: PolicyInput) -> PolicyInput {
    keep(&before.peer_authentications, &mut now.peer_authentications);
    keep(&before.authorization_policies, &mut now.authorization_policies);
    keep(&before.request_authentications, &mut now.request_authentications);
    now
}

#[test]
fn what_follows_is_what_would_be_built() {
    let proxies = ["a1.x", "b1.x", "c1.y", "edge.y !router", "named.z"];
    let (mut few, mut changes) = (0, 0);
    for seed in 1..=4 {
        let mut dice = Dice(seed * 104_729);
        let mut world = world();
        if seed == 4 {
            // Policies of the old API stand in where there is none.
            let old = |kind: &str, name: &str, namespace: &str| {
                json!({"apiVersion": "authentication.istio.io/v1alpha1", "kind": kind,
                "metadata": {"name": name, "namespace": namespace}, "spec": {"peers": [{"mtls": {"mode": "STRICT"}}]}})
            };
            world.objects.extend([old("MeshPolicy", "default", ""), old("Policy", "default", "y")]);
        }
        let mut input = world.input();
        let (mut snapshot, _) = Snapshot::build(&input);
        let mut views = Views::new(snapshot.clone());
        let mut last: Vec<_> = proxies.iter().map(|p| views.of(&world.proxy(p))).collect();
        for step in 0..60 {
            happen(&mut dice, &mut world, step);
            let mut policies = stable(&input.policies(), world.input().policies());
            if dice.below(5) == 0 {
                policies.authorization_policies.reverse();
            }
            input.set_policies(policies.clone());
            snapshot = snapshot.with_policies(&policies);
            let (fresh, found) = Snapshot::build(&input);
            assert_eq!(snapshot.diagnostics(), found, "seed {seed}, step {step}");
            // Not every round asks for everybody.
            if dice.below(3) == 0 {
                continue;
            }
            let concerned = views.update(snapshot.clone());
            let mut again = Views::new(fresh);
            for (proxy, last) in proxies.iter().zip(&mut last) {
                let proxy = world.proxy(proxy);
                let now = again.of(&proxy);
                changes += usize::from(*last != now);
                if concerned.is(&proxy) {
                    assert!(views.of(&proxy) == now, "seed {seed}, step {step}: {}", proxy.id);
                } else {
                    few += 1;
                    assert!(*last == now, "seed {seed}, step {step}: {} is concerned", proxy.id);
                }
                *last = now;
            }
        }
    }
    assert!(few > 30 && changes > 100, "not concerned {few} times; {changes} views changed");
}

#[test]
fn a_change_costs_the_namespace_it_is_in() {
    for services in [100, 400] {
        let mut world = large(services);
        let policy = |namespace: String, method: &str| {
            json!({"kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": namespace},
                "spec": {"rules": [{"to": [{"operation": {"methods": [method]}}]}]}})
        };
        world.objects.extend((0..20).map(|n| policy(format!("n{n}"), "GET")));
        let input = world.input();
        let (snapshot, _) = Snapshot::build(&input);
        let mut views = Views::new(snapshot.clone());
        let (here, elsewhere) = (world.proxy("s7-1.n7"), world.proxy("s8-1.n8"));
        let before = (views.sidecar(&here), views.sidecar(&elsewhere));
        let at = world.objects.iter().position(|o| o["metadata"]["namespace"] == "n7").expect("its policy");
        world.objects[at] = policy("n7".to_owned(), "POST");
        let next = snapshot.with_policies(&stable(&input.policies(), world.input().policies()));
        let change = next.policies().changed_since(snapshot.policies()).expect("it follows");
        assert_eq!((change.read, change.hints), (1, false), "policies that were read");
        assert_eq!(views.update(next.clone()), Concerned::Of(BTreeSet::from(["n7".into()])));
        let after = (views.sidecar(&here), views.sidecar(&elsewhere));
        assert!(before.0 != after.0 && before.1 == after.1);
        // Nothing of what is told to clients was made again.
        assert!(Arc::ptr_eq(&before.0.outbound, &after.0.outbound) && Arc::ptr_eq(&before.0.loads, &after.0.loads));
        assert!(Arc::ptr_eq(next.services().first().expect("one"), snapshot.services().first().expect("one")));

        // A mode of one workload is told to the clients of its namespace's services alone.
        world.objects.push(json!({"kind": "PeerAuthentication", "metadata": {"name": "off", "namespace": "n7"},
            "spec": {"selector": {"matchLabels": {"app": "s7"}}, "mtls": {"mode": "DISABLE"}}}));
        let off = next.with_policies(&stable(&input.policies(), world.input().policies()));
        views.update(off);
        let last = views.sidecar(&elsewhere);
        let moved = after.1.loads.iter().zip(last.loads.iter()).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!(moved, 2 * services / 20, "assignments made again: two ports of each service of the namespace");
        assert!(Arc::ptr_eq(&after.1.outbound, &last.outbound));
    }
}
