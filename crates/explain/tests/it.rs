//! Questions about a small bank: who reaches whom, why not, and which object is named.

use std::sync::Arc;

use carrick_api::from_value;
use carrick_base::NamespacedName;
use carrick_explain::{Answer, Call, Caller, Question, QuestionError, Speaks, why};
use carrick_mesh::{Snapshot, SnapshotInput};
use serde_json::{Value, json};

fn bank(policies: &[Value]) -> Snapshot {
    let mut input = SnapshotInput::default();
    for (name, namespace, ip, sidecar) in [
        ("teller", "front", 1, true),
        ("audit", "front", 2, false),
        ("vault", "back", 3, true),
        ("legacy", "back", 4, false),
    ] {
        let mut labels = json!({"app": name});
        if sidecar {
            labels["security.istio.io/tlsMode"] = json!("istio");
        }
        let pod = json!({"metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"serviceAccountName": name, "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "podIP": format!("10.244.0.{ip}"), "podIPs": [{"ip": format!("10.244.0.{ip}")}],
                       "conditions": [{"type": "Ready", "status": "True"}]}});
        input.endpoints.pods.push(Arc::new(from_value(&pod).expect("a pod")));
        let service = json!({"metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": format!("10.96.0.{ip}"), "clusterIPs": [format!("10.96.0.{ip}")], "selector": {"app": name},
                     "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}});
        input.services.push(Arc::new(from_value(&service).expect("a service")));
        let slice = json!({"metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [format!("10.244.0.{ip}")], "conditions": {"ready": true},
                           "targetRef": {"kind": "Pod", "name": name, "namespace": namespace}}]});
        input.endpoints.endpoint_slices.push(Arc::new(from_value(&slice).expect("a slice")));
    }
    for policy in policies {
        match policy["kind"].as_str() {
            Some("PeerAuthentication") => {
                input.peer_authentications.push(Arc::new(from_value(policy).expect("a policy")));
            }
            _ => input.destination_rules.push(Arc::new(from_value(policy).expect("a rule"))),
        }
    }
    Snapshot::build(&input).0
}

fn ask(bank: &Snapshot, from: &str, to: &str, speaks: Speaks) -> Result<Answer, QuestionError> {
    let from = match from.parse() {
        Ok(ip) => Caller::Address(ip),
        Err(_) => {
            let (name, namespace) = from.split_once('.').expect("name.namespace");
            Caller::Pod(NamespacedName::new(namespace, name))
        }
    };
    why(bank, &Question { from, to: to.parse().expect("a target"), call: Call { speaks, ..Call::default() } })
}

fn strict() -> Value {
    json!({"kind": "PeerAuthentication", "metadata": {"name": "lock", "namespace": "back"}, "spec": {"mtls": {"mode": "STRICT"}}})
}

fn plain() -> Value {
    json!({"kind": "DestinationRule", "metadata": {"name": "open", "namespace": "front"},
           "spec": {"host": "vault.back.svc.cluster.local", "trafficPolicy": {"tls": {"mode": "DISABLE"}}}})
}

fn because<'a>(answer: &'a Answer, what: &str) -> Vec<&'a str> {
    answer.steps.iter().filter(|s| s.what == what).filter_map(|s| s.because.as_deref()).collect()
}

#[test]
fn who_reaches_whom() {
    for (policies, from, to, speaks, allowed) in [
        (vec![], "teller.front", "vault.back:80", Speaks::Http1, true),
        (vec![], "audit.front", "vault.back:80", Speaks::Http1, true),
        (vec![strict()], "teller.front", "vault.back:80", Speaks::Http1, true),
        (vec![strict()], "audit.front", "vault.back:80", Speaks::Http1, false),
        (vec![strict()], "10.9.9.9", "10.244.0.3:8080", Speaks::Http1, false),
        (vec![strict()], "10.9.9.9", "10.244.0.3:9999", Speaks::Bytes, false),
        (vec![strict(), plain()], "teller.front", "vault.back:80", Speaks::Http1, false),
        (vec![plain()], "teller.front", "vault.back:80", Speaks::Http1, true),
        (vec![strict()], "teller.front", "legacy.back:80", Speaks::Http1, true),
        (vec![strict()], "teller.front", "vault.back.svc.cluster.local:80", Speaks::Http2, true),
    ] {
        let answer = ask(&bank(&policies), from, to, speaks).expect("an answer");
        assert_eq!(answer.allowed, allowed, "{from} to {to} with {policies:?}: {answer:#?}");
    }
}

#[test]
fn names_the_objects_that_decide() {
    let answer = ask(&bank(&[strict(), plain()]), "teller.front", "vault.back:80", Speaks::Http1).expect("an answer");
    assert_eq!(because(&answer, "mutual TLS"), ["PeerAuthentication lock.back"]);
    assert_eq!(because(&answer, "TLS"), ["DestinationRule open.front"]);
    assert!(answer.end.contains("mutual TLS is required"), "{answer:#?}");
}

#[test]
fn what_is_not_known_is_said() {
    let bank = bank(&[]);
    let fails = |from, to| ask(&bank, from, to, Speaks::Http1).expect_err("no answer").to_string();
    assert!(fails("nobody.front", "vault.back:80").contains("no pod front/nobody"));
    assert!(fails("teller.front", "vault:80").contains("host vault names no service"));
    assert!(fails("teller.front", "vault.back:81").contains("has no port 81; it has 80"));
}
