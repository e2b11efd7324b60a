//! DestinationRules, VirtualServices, Gateways and Sidecars.

use serde_json::{Map, Value, json};

use super::{Dice, object};

const NETWORKING: &str = "networking.istio.io/v1";

pub fn destination_rules(dice: &mut Dice) -> Vec<Value> {
    let mut all = Vec::new();
    let host = dice.one(&["server.app.svc.cluster.local", "server.app.svc.cluster.local", "*.app.svc.cluster.local"]);
    let mut spec = json!({"host": host});
    if dice.once_in(2) {
        let policy = match dice.below(4) {
            0 => json!({"tls": {"mode": "DISABLE"}}),
            1 => json!({"tls": {"mode": "ISTIO_MUTUAL"}}),
            2 => json!({"connectionPool": {"http": {"h2UpgradePolicy": dice.one(&["UPGRADE", "DO_NOT_UPGRADE"])}}}),
            _ => {
                json!({"portLevelSettings": [{"port": {"number": 8080}, "tls": {"mode": dice.one(&["DISABLE", "ISTIO_MUTUAL"])}}]})
            }
        };
        spec["trafficPolicy"] = policy;
    }
    let mut subsets =
        vec![json!({"name": "v1", "labels": {"version": "v1"}}), json!({"name": "v2", "labels": {"version": "v2"}})];
    if dice.once_in(3) {
        subsets[0]["trafficPolicy"] = json!({"tls": {"mode": dice.one(&["DISABLE", "ISTIO_MUTUAL"])}});
    }
    spec["subsets"] = json!(subsets);
    all.push(object(NETWORKING, "DestinationRule", dice.one(&["app", "web"]), "server", spec));
    if dice.once_in(2) {
        let tls = match dice.below(6) {
            0 => json!({"mode": "SIMPLE", "insecureSkipVerify": true}),
            1 => json!({"mode": "SIMPLE", "caCertificates": "/certs/ca.pem", "sni": "plain.app.svc.cluster.local"}),
            2 => {
                json!({"mode": "SIMPLE", "caCertificates": "/certs/ca.pem", "subjectAltNames": [dice.one(&["plain.app.svc.cluster.local", "else.example.com"])]})
            }
            3 => {
                json!({"mode": "MUTUAL", "caCertificates": "/certs/ca.pem", "clientCertificate": "/certs/cert.pem", "privateKey": "/certs/key.pem"})
            }
            4 => json!({"mode": "ISTIO_MUTUAL"}),
            _ => json!({"mode": "DISABLE"}),
        };
        let spec = json!({"host": "plain.app.svc.cluster.local", "trafficPolicy": {"portLevelSettings": [{"port": {"number": 8443}, "tls": tls}]}});
        all.push(object(NETWORKING, "DestinationRule", "app", "plain", spec));
    }
    all
}

/// For `server`, or for `abroad`.
pub fn virtual_service(dice: &mut Dice, of: &str, gateways: &[&str]) -> Value {
    let hosts = match (of, gateways.is_empty()) {
        ("server", true) => {
            let mut hosts = vec!["server.app.svc.cluster.local"];
            if dice.once_in(4) {
                hosts.push("shop.example.com");
            }
            hosts
        }
        ("server", false) => vec![dice.one(&["shop.example.com", "*.example.com", "*"])],
        _ => vec!["api.example.com"],
    };
    let count = dice.below(3) + 1;
    let mut http: Vec<Value> = (0..count).map(|_| http_route(dice, of)).collect();
    if dice.once_in(2) {
        http.push(json!({"route": [{"destination": destination(dice, of)}]}));
    }
    let mut spec = json!({"hosts": hosts, "http": http});
    if !gateways.is_empty() {
        spec["gateways"] = json!(gateways);
    }
    if of == "server" && gateways.is_empty() && dice.once_in(5) {
        spec["tcp"] = json!([{"match": [{"port": 8081}], "route": [{"destination": {"host": "plain.app.svc.cluster.local", "port": {"number": 8080}}}]}]);
    }
    let (namespace, name) =
        if gateways.is_empty() { (dice.one(&["app", "web"]), of) } else { ("istio-system", "edge") };
    object(NETWORKING, "VirtualService", namespace, name, spec)
}

fn destination(dice: &mut Dice, of: &str) -> Value {
    if of == "abroad" && !dice.once_in(4) {
        return json!({"host": "api.example.com", "port": {"number": 80}});
    }
    match dice.below(8) {
        0 | 1 => json!({"host": "server.app.svc.cluster.local", "subset": "v1", "port": {"number": 8080}}),
        2 => json!({"host": "server.app.svc.cluster.local", "subset": "v2", "port": {"number": 8080}}),
        3 => json!({"host": "second.app.svc.cluster.local", "port": {"number": 8080}}),
        4 => json!({"host": "plain.app.svc.cluster.local", "port": {"number": 8080}}),
        5 => json!({"host": "plain.app.svc.cluster.local", "port": {"number": 8443}}),
        6 => json!({"host": "api.example.com", "port": {"number": 80}}),
        _ => {
            json!({"host": dice.one(&["nowhere.app.svc.cluster.local", "server.app.svc.cluster.local"]), "port": {"number": 8080}})
        }
    }
}

fn text_match(dice: &mut Dice, values: &[&str]) -> Value {
    let value = dice.one(values);
    match dice.below(3) {
        0 => json!({"exact": value}),
        1 => json!({"prefix": value}),
        _ => json!({"regex": dice.one(&[".*", "o.e", "/a.*", "(one|two)", "/api/v[0-9]+/users/[^/]+", "[a-z.]+"])}),
    }
}

const PATHS: [&str; 9] = ["/", "/admin", "/admin/", "/api/v1", "/a/b", "/Admin", "/a", "/api/v1/users/7", "/x"];

fn http_match(dice: &mut Dice) -> Value {
    let mut all = Map::new();
    let count = dice.below(2) + 1;
    for _ in 0..count {
        match dice.below(10) {
            0..=3 => {
                all.insert("uri".to_owned(), text_match(dice, &PATHS));
                if dice.once_in(4) {
                    all.insert("ignoreUriCase".to_owned(), json!(true));
                }
            }
            4 => drop(all.insert("method".to_owned(), text_match(dice, &["GET", "POST", "HEAD"]))),
            5 => drop(all.insert(
                "authority".to_owned(),
                text_match(dice, &["server.app", "server.app:8080", "shop.example.com", "s"]),
            )),
            6 => {
                let test = if dice.once_in(4) { json!({}) } else { text_match(dice, &["one", "two", "o"]) };
                all.insert("headers".to_owned(), json!({dice.one(&["x-a", "x-b"]): test}));
            }
            7 => drop(all.insert("withoutHeaders".to_owned(), json!({"x-a": text_match(dice, &["one", "t"])}))),
            8 => drop(all.insert("queryParams".to_owned(), json!({"q": text_match(dice, &["one", "1", ""])}))),
            _ => drop(all.insert("port".to_owned(), json!(dice.one(&[8080, 80])))),
        }
    }
    Value::Object(all)
}

fn header_ops(dice: &mut Dice) -> Value {
    let mut ops = Map::new();
    if dice.once_in(2) {
        let value = dice.one(&["new", "%REQ(x-a)%", "%PROTOCOL%", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "100%%"]);
        ops.insert("set".to_owned(), json!({dice.one(&["x-a", "x-new", "X-New"]): value}));
    }
    if dice.once_in(2) {
        ops.insert("add".to_owned(), json!({dice.one(&["x-a", "x-more"]): "added"}));
    }
    if dice.once_in(3) {
        ops.insert("remove".to_owned(), json!([dice.one(&["x-a", "x-b", "server", "user-agent"])]));
    }
    Value::Object(ops)
}

fn http_route(dice: &mut Dice, of: &str) -> Value {
    let mut route = Map::new();
    if !dice.once_in(6) {
        let count = dice.below(2) + 1;
        route.insert("match".to_owned(), (0..count).map(|_| http_match(dice)).collect());
    }
    match dice.below(8) {
        0 => {
            let mut redirect = Map::new();
            match dice.below(4) {
                0 => drop(redirect.insert("uri".to_owned(), json!("/moved"))),
                1 => drop(redirect.insert("authority".to_owned(), json!("else.example.com"))),
                2 => drop(redirect.insert("scheme".to_owned(), json!("https"))),
                _ => {
                    redirect.insert("uri".to_owned(), json!("/moved?x=1"));
                    redirect.insert("authority".to_owned(), json!("else.example.com:8443"));
                }
            }
            if dice.once_in(3) {
                redirect.insert("redirectCode".to_owned(), json!(dice.one(&[301, 302, 303, 307, 308])));
            }
            if dice.once_in(4) {
                redirect.insert("port".to_owned(), json!(8443));
            }
            route.insert("redirect".to_owned(), Value::Object(redirect));
            return Value::Object(route);
        }
        1 => {
            let answer = json!({"status": dice.one(&[200, 204, 403, 418, 503]), "body": {"string": dice.one(&["no", "", "{\"a\": 1}"])}});
            route.insert("directResponse".to_owned(), answer);
            if dice.once_in(3) {
                route.insert("headers".to_owned(), json!({"response": header_ops(dice)}));
            }
            return Value::Object(route);
        }
        _ => {}
    }
    let mut to = vec![json!({"destination": destination(dice, of)})];
    if dice.once_in(6) {
        to[0]["weight"] = json!(100);
        to.push(json!({"destination": destination(dice, of), "weight": 0}));
    }
    if dice.once_in(5) {
        to[0]["headers"] = json!({"request": header_ops(dice)});
    }
    route.insert("route".to_owned(), json!(to));
    if dice.once_in(3) {
        route.insert("headers".to_owned(), json!({"request": header_ops(dice), "response": header_ops(dice)}));
    }
    if dice.once_in(3) {
        let rewrite = match dice.below(4) {
            0 => json!({"uri": "/new"}),
            1 => json!({"authority": "new.example.com"}),
            2 => json!({"uri": "/", "authority": "new.example.com"}),
            _ => json!({"uriRegexRewrite": {"match": "^/([a-z]+)/(.*)$", "rewrite": "/\\2/\\1"}}),
        };
        route.insert("rewrite".to_owned(), rewrite);
    }
    if dice.once_in(6) {
        let mut fault = json!({"abort": {"httpStatus": dice.one(&[400, 503, 555]), "percentage": {"value": dice.one(&[100.0, 0.0])}}});
        if dice.once_in(3) {
            fault = json!({"abort": {"grpcStatus": "UNAVAILABLE", "percentage": {"value": 100.0}}});
        }
        route.insert("fault".to_owned(), fault);
    }
    if dice.once_in(5) {
        let mut cors = json!({"allowOrigins": [dice.one(&[json!({"exact": "https://a.example"}), json!({"prefix": "https://"}), json!({"regex": ".*"})])],
            "allowMethods": ["GET", "POST"]});
        if dice.once_in(2) {
            cors["allowHeaders"] = json!(["x-a"]);
            cors["exposeHeaders"] = json!(["x-echo"]);
            cors["maxAge"] = json!("24h");
            cors["allowCredentials"] = json!(dice.once_in(2));
        }
        if dice.once_in(3) {
            cors["unmatchedPreflights"] = json!(dice.one(&["FORWARD", "IGNORE"]));
        }
        route.insert("corsPolicy".to_owned(), cors);
    }
    if dice.once_in(6) {
        let retries = json!({"attempts": dice.one(&[0, 1, 2]), "retryOn": dice.one(&["5xx", "503", "gateway-error", "retriable-status-codes,409", "connect-failure"])});
        route.insert("retries".to_owned(), retries);
    }
    if dice.once_in(10) {
        route.insert("mirror".to_owned(), json!({"host": "plain.app.svc.cluster.local", "port": {"number": 8080}}));
    }
    Value::Object(route)
}

pub fn gateway(dice: &mut Dice) -> Vec<Value> {
    let hosts = dice.some(&["shop.example.com", "*.example.com", "*", "istio-system/shop.example.com"], 2);
    let mut servers = vec![];
    if !dice.once_in(4) {
        let mut server = json!({"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": hosts});
        if dice.once_in(6) {
            server["tls"] = json!({"httpsRedirect": true});
        }
        servers.push(server);
    }
    let tls = match dice.below(6) {
        0 => json!({"mode": "MUTUAL", "credentialName": "edge"}),
        1 => json!({"mode": "OPTIONAL_MUTUAL", "credentialName": "edge"}),
        2 => json!({"mode": "PASSTHROUGH"}),
        3 => json!({"mode": "ISTIO_MUTUAL"}),
        _ => json!({"mode": "SIMPLE", "credentialName": "edge"}),
    };
    let hosts = dice.some(&["shop.example.com", "*.example.com", "*"], 2);
    servers.push(json!({"port": {"number": 8443, "name": "https", "protocol": if tls["mode"] == "PASSTHROUGH" { "TLS" } else { "HTTPS" }}, "hosts": hosts, "tls": tls}));
    let mut all = vec![
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "edge", "namespace": "istio-system"}, "type": "Opaque",
            "data": {"tls.crt": "$CHAIN", "tls.key": "$KEY", "ca.crt": "$ROOTS"}}),
        object(
            NETWORKING,
            "Gateway",
            "istio-system",
            "edge",
            json!({"selector": {"istio": "ingressgateway"}, "servers": servers}),
        ),
    ];
    let mut service = virtual_service(dice, "server", &["edge"]);
    if tls["mode"] == "PASSTHROUGH" {
        service["spec"]["tls"] = json!([{"match": [{"sniHosts": service["spec"]["hosts"], "port": 8443}],
            "route": [{"destination": {"host": "plain.app.svc.cluster.local", "port": {"number": 8443}}}]}]);
    }
    all.push(service);
    all
}

pub fn sidecar(dice: &mut Dice) -> Value {
    let hosts = dice.some(&["app/*", "./*", "*/*", "app/server.app.svc.cluster.local", "~/*", "web/*"], 2);
    let mut spec = json!({"egress": [{"hosts": hosts}]});
    if dice.once_in(2) {
        spec["outboundTrafficPolicy"] = json!({"mode": dice.one(&["REGISTRY_ONLY", "ALLOW_ANY"])});
    }
    object(NETWORKING, "Sidecar", "web", "default", spec)
}
