//! The Gateway API's objects as people write them: what they come to, and what is said on them.

use std::sync::Arc;

use carrick_api::from_value;
use carrick_mesh::gateway_api::{GatewayApiInput, Surroundings, Translated, translate};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn take<T: DeserializeOwned>(object: &Value) -> Arc<T> {
    Arc::new(from_value(object).unwrap_or_else(|e| panic!("{e} in {object}")))
}

/// A gateway pod and two services run; `edge` has a certificate.
fn translated(objects: &[Value]) -> Translated {
    let mut input = GatewayApiInput::default();
    for object in objects {
        match object["kind"].as_str().expect("a kind") {
            "GatewayClass" => input.classes.push(take(object)),
            "Gateway" => input.gateways.push(take(object)),
            "ListenerSet" => input.listener_sets.push(take(object)),
            "HTTPRoute" => input.http_routes.push(take(object)),
            "GRPCRoute" => input.grpc_routes.push(take(object)),
            "TLSRoute" => input.tls_routes.push(take(object)),
            "TCPRoute" => input.tcp_routes.push(take(object)),
            "BackendTLSPolicy" => input.backend_tls_policies.push(take(object)),
            "ReferenceGrant" => input.reference_grants.push(take(object)),
            other => panic!("{other}"),
        }
    }
    let service = |name: &str, namespace: &str| {
        take(
            &json!({"metadata": {"name": name, "namespace": namespace}, "spec": {"ports": [{"name": "http", "port": 80}]}}),
        )
    };
    let secret = json!({"metadata": {"name": "cert", "namespace": "edge"}, "type": "kubernetes.io/tls", "stringData": {"tls.crt": "-----BEGIN CERTIFICATE-----", "tls.key": "-----BEGIN PRIVATE KEY-----"}});
    let pod = json!({"metadata": {"name": "gw", "namespace": "edge", "labels": {"gateway.networking.k8s.io/gateway-name": "web"}},
        "status": {"podIP": "10.244.0.9", "conditions": [{"type": "Ready", "status": "True"}]}});
    let roots = |namespace: &str| {
        take(
            &json!({"metadata": {"name": "roots", "namespace": namespace}, "data": {"ca.crt": "-----BEGIN CERTIFICATE-----"}}),
        )
    };
    let parameters = |namespace: &str, name: &str| {
        let labels = json!({"gateway.istio.io/defaults-for-class": "istio"});
        let labels = if namespace == "istio-system" { labels } else { json!({}) };
        take(&json!({"metadata": {"name": name, "namespace": namespace, "labels": labels}, "data": {
            "deployment": format!("spec: {{replicas: {}}}", name.len()), "unread": "x", "service": if name == "all" { "spec: {type: NodePort}" } else { "" },
        }}))
    };
    let namespace = |name: &str| take(&json!({"metadata": {"name": name, "labels": {"team": name}}}));
    translate(
        &input,
        Surroundings {
            namespaces: &[namespace("edge"), namespace("shop"), namespace("bank")],
            services: &[service("cart", "shop"), service("list", "shop"), service("vault", "bank")],
            secrets: &[take(&secret)],
            config_maps: &[
                roots("shop"),
                roots("edge"),
                parameters("edge", "sizes"),
                parameters("istio-system", "all"),
            ],
            pods: &[take(&pod)],
            domain: "cluster.local",
            root: "istio-system",
        },
    )
}

fn gateway(listeners: Value) -> Value {
    json!({"kind": "Gateway", "metadata": {"name": "web", "namespace": "edge", "generation": 3},
        "spec": {"gatewayClassName": "istio", "listeners": listeners}})
}

fn http_listener() -> Value {
    json!({"name": "http", "port": 80, "protocol": "HTTP", "hostname": "*.example.com", "allowedRoutes": {"namespaces": {"from": "All"}}})
}

fn route(spec: Value) -> Value {
    let mut all = json!({"parentRefs": [{"name": "web", "namespace": "edge"}]});
    all.as_object_mut().expect("a map").extend(spec.as_object().expect("a map").clone());
    json!({"kind": "HTTPRoute", "metadata": {"name": "r", "namespace": "shop", "generation": 2}, "spec": all})
}

fn conditions(status: &Value) -> Vec<String> {
    let all = status["conditions"].as_array().expect("conditions");
    all.iter().map(|c| format!("{}={} {}", c["type"], c["status"], c["reason"]).replace('"', "")).collect()
}

fn status(out: &Translated, kind: &str, name: &str) -> Value {
    let found = out.statuses.iter().find(|(r, _)| &*r.kind == kind && r.name.to_string().ends_with(name));
    found.unwrap_or_else(|| panic!("no status of {kind} {name}: {:?}", out.statuses.keys())).1.clone()
}

/// The http rules of the VirtualService of a host.
fn rules(out: &Translated, host: &str) -> Value {
    let found = out.virtual_services.iter().find(|v| v.spec.hosts == [host]);
    serde_json::to_value(&found.unwrap_or_else(|| panic!("nothing for {host}")).spec.http).expect("JSON")
}

#[test]
fn a_gateway_with_a_route() {
    let out = translated(&[
        gateway(json!([http_listener()])),
        route(
            json!({"hostnames": ["a.example.com", "other.org"], "rules": [{"backendRefs": [{"name": "cart", "port": 80}]}]}),
        ),
    ]);
    let server = serde_json::to_value(&out.gateways[0].spec).expect("JSON");
    assert_eq!(server["selector"], json!({"gateway.networking.k8s.io/gateway-name": "web"}));
    assert_eq!(server["servers"][0]["hosts"], json!(["*/*.example.com"]));
    assert_eq!(server["servers"][0]["port"]["number"], 80);
    assert_eq!(out.virtual_services.len(), 1, "other.org is not the listener's");
    assert_eq!(
        rules(&out, "a.example.com")[0]["route"][0]["destination"],
        json!({"host": "cart.shop.svc.cluster.local", "port": {"number": 80}})
    );
    let told = status(&out, "K8sGateway", "web");
    assert_eq!(conditions(&told), ["Accepted=True Accepted", "Programmed=True Programmed"]);
    assert_eq!(told["addresses"], json!([{"type": "IPAddress", "value": "10.244.0.9"}]));
    assert_eq!(told["listeners"][0]["attachedRoutes"], 1);
    assert_eq!(
        conditions(&told["listeners"][0]),
        [
            "Accepted=True Accepted",
            "Conflicted=False NoConflicts",
            "ResolvedRefs=True ResolvedRefs",
            "Programmed=True Programmed"
        ]
    );
    let told = status(&out, "HTTPRoute", "r");
    assert_eq!(conditions(&told["parents"][0]), ["Accepted=True Accepted", "ResolvedRefs=True ResolvedRefs"]);
    assert_eq!(
        told["parents"][0]["parentRef"],
        json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "web", "namespace": "edge"})
    );
}

#[test]
fn the_more_specific_match_goes_first() {
    let path = |kind: &str, value: &str| json!({"path": {"type": kind, "value": value}});
    let rule = |matched: Value| json!({"matches": [matched], "backendRefs": [{"name": "cart", "port": 80}]});
    let mut with_header = path("PathPrefix", "/long");
    with_header["headers"] = json!([{"name": "X-A", "value": "1"}]);
    let out = translated(&[
        gateway(json!([http_listener()])),
        route(json!({"hostnames": ["a.example.com"], "rules": [
            rule(path("PathPrefix", "/")), rule(path("PathPrefix", "/long")), rule(with_header), rule(path("Exact", "/x")), rule(path("PathPrefix", "/longer/")),
        ]})),
    ]);
    let rules = rules(&out, "a.example.com");
    let names: Vec<&str> = rules.as_array().expect("rules").iter().filter_map(|r| r["name"].as_str()).collect();
    assert_eq!(names, ["shop.r.3", "shop.r.4", "shop.r.2", "shop.r.1", "shop.r.0"]);
    let uris: Vec<&Value> = rules[1]["match"].as_array().expect("two").iter().map(|m| &m["uri"]).collect();
    assert_eq!(uris, [&json!({"exact": "/longer"}), &json!({"prefix": "/longer/"})], "whole segments");
}

#[test]
fn rewrites_and_redirects_of_prefixes_keep_segments_apart() {
    let with = |filter: Value| {
        let rule = json!({"matches": [{"path": {"value": "/old"}}], "filters": [filter], "backendRefs": [{"name": "cart", "port": 80}]});
        rules(
            &translated(&[
                gateway(json!([http_listener()])),
                route(json!({"hostnames": ["a.example.com"], "rules": [rule]})),
            ]),
            "a.example.com",
        )
    };
    let rewrite = |to: &str| json!({"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": to}}});
    for (to, own, below) in [("/new", "/new", "/new/"), ("/new/", "/new", "/new/"), ("/", "/", "/"), ("", "/", "/")] {
        let rules = with(rewrite(to));
        assert_eq!(
            (&rules[0]["match"][0]["uri"], &rules[0]["rewrite"]["uri"]),
            (&json!({"exact": "/old"}), &json!(own))
        );
        assert_eq!(
            (&rules[1]["match"][0]["uri"], &rules[1]["rewrite"]["uri"]),
            (&json!({"prefix": "/old/"}), &json!(below))
        );
    }
    let redirect = with(json!({"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "statusCode": 301,
        "path": {"type": "ReplaceFullPath", "replaceFullPath": "/moved"}}}));
    assert_eq!(redirect[0]["redirect"]["uri"], "/moved");
    assert_eq!(redirect[0]["redirect"]["redirectCode"], 301);
    assert!(redirect[0].get("route").is_none());
}

#[test]
fn references_need_a_grant() {
    let cross = route(
        json!({"hostnames": ["a.example.com"], "rules": [{"backendRefs": [{"name": "vault", "namespace": "bank", "port": 80}]}]}),
    );
    let grant = json!({"kind": "ReferenceGrant", "metadata": {"name": "g", "namespace": "bank"},
        "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "shop"}], "to": [{"group": "", "kind": "Service"}]}});
    let out = translated(&[gateway(json!([http_listener()])), cross.clone()]);
    assert_eq!(rules(&out, "a.example.com")[0]["directResponse"]["status"], 500);
    assert_eq!(conditions(&status(&out, "HTTPRoute", "r")["parents"][0])[1], "ResolvedRefs=False RefNotPermitted");
    let out = translated(&[gateway(json!([http_listener()])), cross, grant]);
    assert_eq!(rules(&out, "a.example.com")[0]["route"][0]["destination"]["host"], "vault.bank.svc.cluster.local");
}

#[test]
fn what_does_not_hold_says_why() {
    for (listener, reason) in [
        (json!({"name": "x", "port": 443, "protocol": "HTTPS"}), "ResolvedRefs=False InvalidCertificateRef"),
        (
            json!({"name": "x", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "none"}]}}),
            "ResolvedRefs=False InvalidCertificateRef",
        ),
        (
            json!({"name": "x", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "cert", "namespace": "bank"}]}}),
            "ResolvedRefs=False RefNotPermitted",
        ),
        (json!({"name": "x", "port": 53, "protocol": "UDP"}), "Accepted=False UnsupportedProtocol"),
        (
            json!({"name": "x", "port": 80, "protocol": "HTTP", "allowedRoutes": {"kinds": [{"kind": "TCPRoute"}]}}),
            "ResolvedRefs=False InvalidRouteKinds",
        ),
    ] {
        let out = translated(&[gateway(json!([listener]))]);
        let told = status(&out, "K8sGateway", "web");
        assert!(conditions(&told["listeners"][0]).contains(&reason.to_owned()), "{listener}: {told:#}");
        assert_eq!(conditions(&told)[1], "Programmed=False Invalid");
        assert!(out.gateways.is_empty());
    }
    for (spec, reason) in [
        (
            json!({"parentRefs": [{"name": "web", "namespace": "edge", "sectionName": "none"}]}),
            "Accepted=False NoMatchingParent",
        ),
        (json!({"hostnames": ["other.org"]}), "Accepted=False NoMatchingListenerHostname"),
    ] {
        let out = translated(&[gateway(json!([http_listener()])), route(spec)]);
        assert_eq!(conditions(&status(&out, "HTTPRoute", "r")["parents"][0])[0], reason);
    }
    let own = json!({"name": "http", "port": 80, "protocol": "HTTP"});
    let out = translated(&[gateway(json!([own])), route(json!({}))]);
    assert_eq!(conditions(&status(&out, "HTTPRoute", "r")["parents"][0])[0], "Accepted=False NotAllowedByListeners");
    let twins = json!([{"name": "a", "port": 80, "protocol": "HTTP"}, {"name": "b", "port": 80, "protocol": "HTTP"}]);
    let told = status(&translated(&[gateway(twins)]), "K8sGateway", "web");
    assert!(conditions(&told["listeners"][0]).contains(&"Conflicted=True HostnameConflict".to_owned()), "{told:#}");
}

#[test]
fn tls_ends_or_passes() {
    let ends = json!({"name": "s", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "cert"}]}});
    let passes = json!({"name": "p", "port": 8443, "protocol": "TLS", "tls": {"mode": "Passthrough"}, "allowedRoutes": {"namespaces": {"from": "All"}}});
    let tls = json!({"kind": "TLSRoute", "metadata": {"name": "t", "namespace": "shop"}, "spec": {
        "parentRefs": [{"name": "web", "namespace": "edge", "sectionName": "p"}], "hostnames": ["s.example.com"],
        "rules": [{"backendRefs": [{"name": "cart", "port": 80}]}]}});
    let out = translated(&[gateway(json!([ends, passes])), tls]);
    let tls: Vec<Value> =
        out.gateways.iter().map(|g| serde_json::to_value(&g.spec.servers[0].tls).expect("JSON")).collect();
    assert_eq!((&tls[0]["mode"], &tls[0]["credentialName"]), (&json!("SIMPLE"), &json!("cert")));
    assert_eq!(tls[1]["mode"], "PASSTHROUGH");
    let route = serde_json::to_value(&out.virtual_services[0].spec.tls[0]).expect("JSON");
    assert_eq!(route["match"][0]["sniHosts"], json!(["s.example.com"]));
}

#[test]
fn in_the_mesh_a_service_is_the_parent() {
    let mesh = |namespace: &str| {
        json!({"kind": "GRPCRoute", "metadata": {"name": "m", "namespace": namespace}, "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "cart", "namespace": "shop", "port": 80}],
            "rules": [{"matches": [{"method": {"service": "shop.Cart", "method": "Add"}}], "backendRefs": [{"name": "list", "namespace": "shop", "port": 80}]}]}})
    };
    let out = translated(&[mesh("shop")]);
    let service = &out.virtual_services[0];
    assert_eq!(service.spec.gateways, ["mesh"]);
    assert_eq!(service.spec.hosts, ["cart.shop.svc.cluster.local"]);
    assert!(service.spec.export_to.is_empty());
    let rules = rules(&out, "cart.shop.svc.cluster.local");
    assert_eq!(rules[0]["match"][0]["uri"], json!({"exact": "/shop.Cart/Add"}));
    assert_eq!(rules[0]["match"][0]["port"], 80);
    let out = translated(&[mesh("bank")]);
    assert_eq!(out.virtual_services[0].spec.export_to, ["bank"], "a consumer's route is for its own namespace");
}

#[test]
fn listener_sets_are_asked_for() {
    let set = json!({"kind": "ListenerSet", "metadata": {"name": "more", "namespace": "shop"}, "spec": {
        "parentRef": {"name": "web", "namespace": "edge"}, "listeners": [{"name": "extra", "port": 8080, "protocol": "HTTP"}]}});
    let out = translated(&[gateway(json!([http_listener()])), set.clone()]);
    assert_eq!(conditions(&status(&out, "ListenerSet", "more"))[0], "Accepted=False NotAllowed");
    let mut open = gateway(json!([http_listener()]));
    open["spec"]["allowedListeners"] = json!({"namespaces": {"from": "All"}});
    let out = translated(&[open, set]);
    assert_eq!(conditions(&status(&out, "ListenerSet", "more"))[0], "Accepted=True Accepted");
    assert_eq!(out.gateways.len(), 2);
}

#[test]
fn backends_get_tls() {
    let policy = json!({"kind": "BackendTLSPolicy", "metadata": {"name": "b", "namespace": "shop"}, "spec": {
        "targetRefs": [{"group": "", "kind": "Service", "name": "cart", "sectionName": "http"}],
        "validation": {"hostname": "cart.internal", "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "roots"}]}}});
    let out = translated(&[policy]);
    let rule = serde_json::to_value(&out.destination_rules[0].spec).expect("JSON");
    let tls = &rule["trafficPolicy"]["portLevelSettings"][0]["tls"];
    assert_eq!(
        (&tls["mode"], &tls["sni"], &tls["credentialName"]),
        (&json!("SIMPLE"), &json!("cart.internal"), &json!("configmap://shop/roots"))
    );
    assert_eq!(tls["subjectAltNames"], json!(["cart.internal"]));
}

#[test]
fn clients_are_asked_for_certificates_of_an_authority_that_is_there() {
    let with = |to: Value, mode: &str| {
        let mut all = gateway(json!([
            {"name": "x", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "cert"}]}}, http_listener(),
        ]));
        all["spec"]["tls"] =
            json!({"frontend": {"default": {"validation": {"caCertificateRefs": [to], "mode": mode}}}});
        translated(&[all])
    };
    let map =
        |name: &str, namespace: &str| json!({"group": "", "kind": "ConfigMap", "name": name, "namespace": namespace});
    for (to, reason) in [
        (map("none", "edge"), "InvalidCACertificateRef"),
        (json!({"group": "", "kind": "Service", "name": "cart"}), "InvalidCACertificateKind"),
        (map("roots", "shop"), "RefNotPermitted"),
    ] {
        let out = with(to, "AllowValidOnly");
        let told = status(&out, "K8sGateway", "web");
        let of = conditions(&told["listeners"][0]);
        assert_eq!(
            (&*of[0], &*of[2]),
            ("Accepted=False NoValidCACertificate", &*format!("ResolvedRefs=False {reason}"))
        );
        assert_eq!(conditions(&told["listeners"][1])[3], "Programmed=True Programmed", "plain listeners are untouched");
        assert_eq!(out.gateways.len(), 1, "nobody is served without it");
    }
    let out = with(map("roots", "edge"), "AllowInsecureFallback");
    let tls = serde_json::to_value(&out.gateways[0].spec.servers[0].tls).expect("JSON");
    assert_eq!((&tls["mode"], &tls["insecureSkipVerify"]), (&json!("OPTIONAL_MUTUAL"), &json!(true)));
    assert_eq!(tls["caCertCredentialName"], "configmap://edge/roots");
    let told = conditions(&status(&out, "K8sGateway", "web"));
    assert!(told.contains(&"InsecureFrontendValidationMode=True ConfigurationChanged".to_owned()), "{told:?}");
}

#[test]
fn a_host_belongs_to_the_narrowest_listener() {
    let listener = |name: &str, host: &str| json!({"name": name, "port": 80, "protocol": "HTTP", "hostname": host, "allowedRoutes": {"namespaces": {"from": "All"}}});
    let mut wide = route(
        json!({"hostnames": ["*.example.com", "a.example.com", "*.org"], "rules": [{"backendRefs": [{"name": "cart", "port": 80}]}]}),
    );
    wide["spec"]["parentRefs"][0]["sectionName"] = json!("wide");
    let out = translated(&[gateway(json!([listener("wide", ""), listener("narrow", "*.example.com")])), wide]);
    let of = |section: &str| -> Vec<_> {
        let made = format!("edge/web-{section}-istio-autogenerated-k8s-gateway");
        let all = out.virtual_services.iter().filter(|v| v.spec.gateways == [made.clone()]);
        all.map(|v| (v.spec.hosts[0].clone(), v.spec.http[0].direct_response.as_ref().map(|d| d.status))).collect()
    };
    assert_eq!(of("wide"), [("*.org".to_owned(), None)]);
    assert_eq!(of("narrow"), [("*.example.com".to_owned(), Some(404))], "what is its own is not looked for elsewhere");
}

#[test]
fn policies_tell_the_gateways_that_lead_to_their_service() {
    let policy = |name: &str, section: Option<&str>, roots: &str| {
        json!({"kind": "BackendTLSPolicy", "metadata": {"name": name, "namespace": "shop"}, "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "cart", "sectionName": section}],
            "validation": {"hostname": name, "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": roots}]}}})
    };
    let to_cart =
        route(json!({"hostnames": ["a.example.com"], "rules": [{"backendRefs": [{"name": "cart", "port": 80}]}]}));
    let out = translated(&[
        gateway(json!([http_listener()])),
        to_cart,
        policy("a", None, "roots"),
        policy("b", Some("http"), "roots"),
        policy("c", None, "roots"),
        policy("d", Some("none"), "roots"),
    ]);
    assert_eq!(out.destination_rules.len(), 1, "one rule for a service");
    let traffic = serde_json::to_value(&out.destination_rules[0].spec.traffic_policy).expect("JSON");
    assert_eq!((&traffic["tls"]["sni"], &traffic["portLevelSettings"][0]["tls"]["sni"]), (&json!("a"), &json!("b")));
    for (name, accepted) in
        [("a", "True Accepted"), ("b", "True Accepted"), ("c", "False Conflicted"), ("d", "False TargetNotFound")]
    {
        let told = status(&out, "BackendTLSPolicy", name);
        assert_eq!(told["ancestors"][0]["ancestorRef"]["name"], "web");
        assert_eq!(conditions(&told["ancestors"][0])[0], format!("Accepted={accepted}"));
    }
    let told = status(&translated(&[policy("a", None, "missing")]), "BackendTLSPolicy", "a");
    assert_eq!(
        conditions(&told["ancestors"][0]),
        ["Accepted=False NoValidCACertificate", "ResolvedRefs=False InvalidCACertificateRef"]
    );
}

#[test]
fn a_gateway_that_names_no_service_gets_one() {
    let out = translated(&[gateway(json!([http_listener(), {"name": "x", "port": 53, "protocol": "UDP"}]))]);
    let service = &out.services[0].service;
    assert_eq!(service["metadata"]["name"], "web-istio");
    assert_eq!(service["spec"].get("type"), None, "where it runs decides");
    assert_eq!(service["spec"]["selector"], json!({"gateway.networking.k8s.io/gateway-name": "web"}));
    assert_eq!(service["spec"]["ports"].as_array().map(Vec::len), Some(1), "for the listeners that hold");
    let mut named = gateway(json!([http_listener()]));
    named["spec"]["addresses"] = json!([{"type": "Hostname", "value": "cart.shop"}]);
    assert!(translated(&[named]).services.is_empty());
    let mut own = gateway(json!([http_listener()]));
    own["metadata"]["labels"] = json!({"team": "a", "istio.io/rev": "canary"});
    own["metadata"]["annotations"] = json!({
        "gateway.istio.io/name-override": "edge", "gateway.istio.io/service-account": "robot",
        "networking.istio.io/service-type": "NodePort", "note": "x",
    });
    let out = translated(std::slice::from_ref(&own));
    let made = &out.services[0];
    assert_eq!((made.account.as_deref(), made.revision.as_deref()), (Some("robot"), Some("canary")));
    assert_eq!(
        (&made.service["metadata"]["name"], &made.service["spec"]["type"]),
        (&json!("edge"), &json!("NodePort"))
    );
    assert_eq!(made.service["metadata"]["labels"]["team"], "a");
    own["spec"]["infrastructure"] =
        json!({"labels": {"zone": "b", "gateway.networking.k8s.io/gateway-name": "stolen"}});
    let labels = translated(&[own]).services[0].service["metadata"]["labels"].clone();
    assert_eq!((labels.get("team"), &labels["zone"]), (None, &json!("b")));
    assert_eq!(labels["gateway.networking.k8s.io/gateway-name"], "web");
}

#[test]
fn what_is_not_done_is_told() {
    let rule = json!({"sessionPersistence": {"sessionName": "s"}, "backendRefs": [{"name": "cart", "port": 80}]});
    let out = translated(&[
        gateway(json!([http_listener()])),
        route(json!({"hostnames": ["a.example.com"], "rules": [rule]})),
    ]);
    let told = conditions(&status(&out, "HTTPRoute", "r")["parents"][0]);
    assert_eq!(told[2], "PartiallyInvalid=True UnsupportedValue");
    let mut gateway = gateway(json!([http_listener()]));
    gateway["spec"]["infrastructure"] = json!({"parametersRef": {"group": "", "kind": "ConfigMap", "name": "p"}});
    gateway["spec"]["tls"] = json!({"backend": {"clientCertificateRef": {"name": "none"}}});
    let told = conditions(&status(&translated(&[gateway]), "K8sGateway", "web"));
    assert_eq!(told[0], "Accepted=False InvalidParameters", "there is no such map");
    assert_eq!(told[2], "ResolvedRefs=False InvalidClientCertificateRef");
}

#[test]
fn parameters_of_the_class_come_before_the_gateways_own() {
    let mut own = gateway(json!([http_listener()]));
    let overlays =
        |out: &Translated| -> Vec<Value> { out.services[0].overlays.iter().map(|overlays| json!(overlays)).collect() };
    let of_class = json!({"Deployment": {"spec": {"replicas": 3}}, "Service": {"spec": {"type": "NodePort"}}});
    assert_eq!(overlays(&translated(std::slice::from_ref(&own))), std::slice::from_ref(&of_class));
    let mut with = |to: Value| {
        own["spec"]["infrastructure"] = json!({"parametersRef": to});
        translated(&[own.clone()])
    };
    let out = with(json!({"group": "", "kind": "ConfigMap", "name": "roots"}));
    assert_eq!(overlays(&out), [of_class, json!({})], "nothing that concerns a gateway");
    assert_eq!(conditions(&status(&out, "K8sGateway", "web"))[0], "Accepted=True Accepted");
    for (to, words) in [
        (json!({"group": "", "kind": "ConfigMap", "name": "none"}), "edge/none does not exist"),
        (json!({"group": "", "kind": "Secret", "name": "cert"}), "only ConfigMap"),
        (json!({"group": "", "kind": "ConfigMap", "name": "sizes"}), "edge/sizes, service: expected one object"),
    ] {
        let out = with(to);
        assert!(out.services.is_empty(), "nothing is made");
        let told = &status(&out, "K8sGateway", "web")["conditions"][0];
        assert_eq!((&told["status"], &told["reason"]), (&json!("False"), &json!("InvalidParameters")));
        assert!(told["message"].as_str().unwrap().contains(words), "{told}");
    }
}

#[test]
fn a_gateway_shows_its_certificate_to_backends() {
    let policy = json!({"kind": "BackendTLSPolicy", "metadata": {"name": "b", "namespace": "shop"}, "spec": {
        "targetRefs": [{"group": "", "kind": "Service", "name": "cart"}],
        "validation": {"hostname": "cart", "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "roots"}]}}});
    let mut gateway = gateway(json!([http_listener()]));
    gateway["spec"]["tls"] = json!({"backend": {"clientCertificateRef": {"name": "cert"}}});
    let to_cart = json!({"hostnames": ["a.example.com"], "rules": [{"backendRefs": [{"name": "cart", "port": 80}]}]});
    let out = translated(&[gateway, route(to_cart), policy]);
    let [all, own] = out.destination_rules.as_slice() else { panic!("for everybody, and for the gateway") };
    let tls = |rule: &carrick_api::DestinationRule| {
        serde_json::to_value(&rule.spec.traffic_policy).expect("JSON")["tls"].clone()
    };
    assert_eq!((&*all.metadata.namespace, &tls(all)["mode"]), ("shop", &json!("SIMPLE")));
    assert_eq!(own.metadata.namespace, "edge");
    let selector = own.spec.workload_selector.as_ref().expect("for the gateway's pods");
    assert_eq!(selector.match_labels["gateway.networking.k8s.io/gateway-name"], "web");
    assert_eq!(
        (&tls(own)["mode"], &tls(own)["credentialName"], &tls(own)["caCertificates"]),
        (&json!("MUTUAL"), &json!("cert"), &json!("configmap://shop/roots"))
    );
}
