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
        ("edge", "front", 5, false),
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
        fn read<T: serde::de::DeserializeOwned>(policy: &Value) -> Arc<T> {
            Arc::new(from_value(policy).expect("an object"))
        }
        match policy["kind"].as_str().expect("a kind") {
            "PeerAuthentication" => input.peer_authentications.push(read(policy)),
            "DestinationRule" => input.destination_rules.push(read(policy)),
            "Gateway" => input.gateways.push(read(policy)),
            "VirtualService" => input.virtual_services.push(read(policy)),
            "RequestAuthentication" => input.request_authentications.push(read(policy)),
            "AuthorizationPolicy" => input.authorization_policies.push(read(policy)),
            other => panic!("{other}"),
        }
    }
    Snapshot::build(&input).0
}

fn ask(bank: &Snapshot, from: &str, to: &str, speaks: Speaks) -> Result<Answer, QuestionError> {
    ask_at(bank, from, to, Call { speaks, ..Call::default() }, 0)
}

fn ask_at(bank: &Snapshot, from: &str, to: &str, call: Call, now: u64) -> Result<Answer, QuestionError> {
    let from = match from.parse() {
        Ok(ip) => Caller::Address(ip),
        Err(_) => {
            let (name, namespace) = from.split_once('.').expect("name.namespace");
            Caller::Pod(NamespacedName::new(namespace, name))
        }
    };
    why(bank, &Question { from, to: to.parse().expect("a target"), call, now })
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

#[test]
fn tokens_expire() {
    let tokens: Value = serde_json::from_str(include_str!("tokens.json")).expect("JSON");
    let issuer = json!({"kind": "RequestAuthentication", "metadata": {"name": "end-users", "namespace": "back"},
        "spec": {"jwtRules": [{"issuer": "https://issuer.example", "jwks": json!({"keys": tokens["keys"]}).to_string()}]}});
    let bank = bank(&[issuer]);
    let token = format!("Bearer {}", tokens["expires_1000000000"].as_str().expect("a token"));
    let at = |now| {
        let call = Call { headers: vec![("authorization".into(), token.clone())], ..Call::default() };
        ask_at(&bank, "teller.front", "vault.back:80", call, now).expect("an answer")
    };
    assert!(at(999_999_999).allowed, "{:#?}", at(999_999_999));
    let late = at(1_000_000_100);
    assert!(late.end.contains("status 401"), "{late:#?}");
}

/// A gateway whose rule sends `/a` on as `/b`, and a vault that takes `/b` from the gateway alone.
fn behind_the_edge() -> Snapshot {
    bank(&[
        strict(),
        json!({"kind": "Gateway", "metadata": {"name": "edge", "namespace": "front"}, "spec": {"selector": {"app": "edge"},
            "servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["bank.example.com"]}]}}),
        json!({"kind": "VirtualService", "metadata": {"name": "edge", "namespace": "front"},
            "spec": {"hosts": ["bank.example.com"], "gateways": ["edge"], "http": [{"match": [{"uri": {"prefix": "/a"}}],
                "rewrite": {"uri": "/b"}, "route": [{"destination": {"host": "vault.back.svc.cluster.local"}}]}]}}),
        json!({"kind": "AuthorizationPolicy", "metadata": {"name": "edge", "namespace": "back"}, "spec": {"rules": [{
            "from": [{"source": {"principals": ["cluster.local/ns/front/sa/edge"]}}], "to": [{"operation": {"paths": ["/b"]}}]}]}}),
    ])
}

#[test]
fn gateways_pass_on() {
    let bank = behind_the_edge();
    let call = |path: &str, host: Option<&str>| Call {
        path: path.into(),
        headers: host.iter().map(|h| ("host".to_owned(), (*h).to_owned())).collect(),
        ..Call::default()
    };
    for (from, to, path, host, allowed, end) in [
        ("edge.front", "bank.example.com:80", "/a", None, true, "back/vault"),
        ("10.9.9.9", "edge.front:80", "/a", Some("bank.example.com"), true, "back/vault"),
        ("audit.front", "edge.front:80", "/a", Some("bank.example.com"), true, "back/vault"),
        ("edge.front", "bank.example.com:80", "/c", None, false, "the gateway with status 404"),
        ("edge.front", "shop.example.com:80", "/a", None, false, "the gateway with status 404"),
        ("edge.front", "bank.example.com:80", "/a/x", None, false, "the server's sidecar with status 403"),
        ("edge.front", "bank.example.com:81", "/a", None, false, "nothing listens there"),
        ("teller.front", "vault.back:80", "/b", None, false, "the server's sidecar with status 403"),
    ] {
        let answer = ask_at(&bank, from, to, call(path, host), 0).expect("an answer");
        assert_eq!(answer.allowed, allowed, "{from} {to}{path}: {answer:#?}");
        assert!(answer.end.contains(end), "{from} {to}{path}: {answer:#?}");
    }
    let answer = ask_at(&bank, "edge.front", "bank.example.com:80", call("/a", None), 0).expect("an answer");
    assert_eq!(because(&answer, "route"), ["VirtualService edge.front"]);
    assert!(answer.steps.iter().any(|s| s.what == "rewritten" && s.value.ends_with("/b")), "{answer:#?}");
}
