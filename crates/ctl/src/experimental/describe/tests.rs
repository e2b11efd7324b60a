//! One pod with everything around it, and one outside of the mesh.

use serde_json::json;

use super::*;

fn web() -> Value {
    json!({"metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web", "version": "v1"}},
        "spec": {"containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running"}})
}

fn dump() -> Dump {
    let tls = json!({"typed_config": {"require_client_certificate": true,
        "common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": "default"}]}}});
    let rbac = json!({"typed_config": {"@type": "x.RBAC", "rules": {"policies": {"ns[shop]-policy[p]-rule[0]": {}}}}});
    let listener = json!({"name": "virtualInbound", "filter_chains": [
        {"name": "a", "filter_chain_match": {"destination_port": 8080}, "transport_socket": tls, "filters": [rbac]}]});
    let body = json!({"configs": [{"@type": "x.ListenersConfigDump",
        "dynamic_listeners": [{"active_state": {"listener": listener}}]}]});
    Dump::parse(&serde_json::to_vec(&body).unwrap(), None).unwrap()
}

fn objects() -> Objects {
    let meta = |name: &str| json!({"name": name, "namespace": "shop"});
    Objects {
        services: vec![json!({"metadata": meta("web"), "spec": {"selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}})],
        peer_authentications: vec![json!({"metadata": meta("default"), "spec": {"mtls": {"mode": "STRICT"}}})],
        destination_rules: vec![json!({"metadata": meta("web"), "spec": {"host": "web",
            "subsets": [{"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}}],
            "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}})],
        virtual_services: vec![json!({"metadata": meta("web"), "spec": {"hosts": ["web"], "http": [
            {"match": [{"uri": {"prefix": "/a"}}], "route": [{"destination": {"host": "web", "subset": "v1"}, "weight": 30},
                {"destination": {"host": "other"}, "weight": 70}]}]}})],
        gateways: Vec::new(),
    }
}

#[test]
fn a_pod_and_what_concerns_it() {
    let (pod_object, objects, dump) = (web(), objects(), dump());
    let subject =
        Subject { pod: &pod_object, objects: &objects, dump: Some(&dump), namespace: "shop", root: "istio-system" };
    assert_eq!(
        pod(&subject),
        "Pod: web
   Pod Ports: 8080 (app)
--------------------
Service: web
   Port: http 80/HTTP targets pod port 8080
DestinationRule: web for \"web\"
   Matching subsets: v1
      (Non-matching subsets v2)
   Traffic Policy TLS Mode: ISTIO_MUTUAL
VirtualService: web
   Route to host \"web\" with weight 30%
   Match: /a*
RBAC policies: ns[shop]-policy[p]-rule[0]
Pod is STRICT and clients are ISTIO_MUTUAL
--------------------
Effective PeerAuthentication:
   Workload mTLS mode: STRICT
Applied PeerAuthentication:
   default.shop
Enforced by the proxy:
   8080: STRICT
Skipping Gateway information (no ingress gateway pods)
"
    );
}

#[test]
fn clients_that_cannot_talk_are_told() {
    let (pod_object, mut objects, dump) = (web(), objects(), dump());
    objects.destination_rules[0]["spec"]["trafficPolicy"]["tls"]["mode"] = "DISABLE".into();
    let subject =
        Subject { pod: &pod_object, objects: &objects, dump: Some(&dump), namespace: "default", root: "istio-system" };
    let text = pod(&subject);
    assert!(text.starts_with("Pod: web.shop\n"), "{text}");
    assert!(
        text.contains("WARNING TLS Conflict on web.shop port 80 (pod enforces STRICT, clients speak DISABLE)"),
        "{text}"
    );
}

#[test]
fn a_pod_outside_of_the_mesh() {
    let (pod_object, objects) = (web(), objects());
    let subject = Subject { pod: &pod_object, objects: &objects, dump: None, namespace: "shop", root: "istio-system" };
    assert!(pod(&subject).ends_with("WARNING: web is not part of mesh; no Istio sidecar\n"));
}
