//! PeerAuthentications, AuthorizationPolicies and RequestAuthentications.

use serde_json::{Map, Value, json};

use super::{Dice, object};
use crate::differential::world;

const SECURITY: &str = "security.istio.io/v1";

pub fn peer_authentications(dice: &mut Dice) -> Vec<Value> {
    let mut all = Vec::new();
    let modes = ["STRICT", "PERMISSIVE", "DISABLE", "UNSET"];
    if dice.once_in(3) {
        let spec = json!({"mtls": {"mode": dice.one(&modes)}});
        all.push(object(SECURITY, "PeerAuthentication", "istio-system", "mesh", spec));
    }
    if dice.once_in(2) {
        let spec = json!({"mtls": {"mode": dice.one(&modes)}});
        all.push(object(SECURITY, "PeerAuthentication", "app", "default", spec));
    }
    if dice.once_in(2) {
        let mut spec = json!({"selector": {"matchLabels": {"app": "server"}}});
        if !dice.once_in(4) {
            spec["mtls"] = json!({"mode": dice.one(&modes)});
        }
        if dice.once_in(2) {
            let port = dice.one(&["8080", "8081", "8090"]);
            spec["portLevelMtls"] = json!({port: {"mode": dice.one(&modes)}});
        }
        all.push(object(SECURITY, "PeerAuthentication", "app", "server", spec));
    }
    all
}

pub fn authorization_policies(dice: &mut Dice) -> Vec<Value> {
    let count = dice.below(3) + 1;
    (0..count).map(|i| authorization_policy(dice, i)).collect()
}

fn authorization_policy(dice: &mut Dice, number: usize) -> Value {
    let mut spec = Map::new();
    let namespace = match dice.below(8) {
        0 => "istio-system",
        1 => {
            spec.insert("selector".to_owned(), json!({"matchLabels": {"istio": "ingressgateway"}}));
            "istio-system"
        }
        2 => "app",
        _ => {
            spec.insert("selector".to_owned(), json!({"matchLabels": {"app": "server"}}));
            "app"
        }
    };
    if !dice.once_in(3) {
        spec.insert("action".to_owned(), json!(dice.one(&["ALLOW", "ALLOW", "DENY", "DENY", "AUDIT"])));
    }
    if !dice.once_in(8) {
        let count = dice.below(2) + 1;
        let rules: Vec<Value> = (0..count).map(|_| rule(dice)).collect();
        spec.insert("rules".to_owned(), json!(rules));
    }
    let mut policy =
        object(SECURITY, "AuthorizationPolicy", namespace, &format!("policy-{number}"), Value::Object(spec));
    if dice.once_in(12) {
        policy["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    }
    policy
}

fn rule(dice: &mut Dice) -> Value {
    let mut rule = Map::new();
    if dice.once_in(2) {
        let count = dice.below(2) + 1;
        let all: Vec<Value> = (0..count).map(|_| json!({"source": source(dice)})).collect();
        rule.insert("from".to_owned(), json!(all));
    }
    if !dice.once_in(3) {
        let count = dice.below(2) + 1;
        let all: Vec<Value> = (0..count).map(|_| json!({"operation": operation(dice)})).collect();
        rule.insert("to".to_owned(), json!(all));
    }
    if dice.once_in(3) {
        let count = dice.below(2) + 1;
        let all: Vec<Value> = (0..count).map(|_| condition(dice)).collect();
        rule.insert("when".to_owned(), json!(all));
    }
    Value::Object(rule)
}

const PRINCIPALS: [&str; 7] = [
    "cluster.local/ns/web/sa/client",
    "cluster.local/ns/web/*",
    "*/sa/client",
    "*",
    "cluster.local/ns/app/sa/server",
    "partner.example/ns/web/sa/client",
    "cluster.local/ns/istio-system/sa/gateway",
];
const REQUEST_PRINCIPALS: [&str; 5] =
    ["*", "https://issuer.example/alice", "https://issuer.example/*", "*/alice", "https://other.example/bob"];
const NAMESPACES: [&str; 5] = ["web", "app", "w*", "*eb", "istio-system"];

fn blocks(dice: &mut Dice) -> Vec<String> {
    let all = [
        world::at(world::CLIENT),
        world::at(world::OUTSIDE),
        format!("{}0/24", world::HOME),
        format!("{}0/28", world::HOME),
        "10.0.0.0/8".to_owned(),
        "192.0.2.7".to_owned(),
        "0.0.0.0/0".to_owned(),
    ];
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    dice.some(&all, 2)
}

fn source(dice: &mut Dice) -> Value {
    let mut source = Map::new();
    let count = dice.below(2) + 1;
    for _ in 0..count {
        let (field, values) = match dice.below(5) {
            0 => ("principals", dice.some(&PRINCIPALS, 2)),
            1 => ("requestPrincipals", dice.some(&REQUEST_PRINCIPALS, 2)),
            2 => ("namespaces", dice.some(&NAMESPACES, 2)),
            3 => ("ipBlocks", blocks(dice)),
            _ => ("remoteIpBlocks", blocks(dice)),
        };
        source.insert(maybe_not(dice, field), json!(values));
    }
    Value::Object(source)
}

pub const PATHS: [&str; 14] = [
    "/admin",
    "/admin*",
    "*/x",
    "*",
    "/",
    "/api/v1/*",
    "/Admin",
    "/a/b/c",
    "/api/{*}/users",
    "/api/{**}",
    "*.html",
    "/a/{*}/c",
    "/admin/",
    "/a b",
];
const HOSTS: [&str; 8] = [
    "server.app",
    "server.app.svc.cluster.local",
    "*.example.com",
    "SERVER.app",
    "server.app:8080",
    "*",
    "server*",
    "shop.example.com",
];

fn operation(dice: &mut Dice) -> Value {
    let mut operation = Map::new();
    let count = dice.below(2) + 1;
    for _ in 0..count {
        let (field, values) = match dice.below(6) {
            0 => ("hosts", dice.some(&HOSTS, 2)),
            1 => ("ports", dice.some(&["8080", "8081", "8090", "8443"], 2)),
            2 => ("methods", dice.some(&["GET", "POST", "G*", "*T", "*", "get"], 2)),
            _ => ("paths", dice.some(&PATHS, 2)),
        };
        operation.insert(maybe_not(dice, field), json!(values));
    }
    Value::Object(operation)
}

fn maybe_not(dice: &mut Dice, field: &str) -> String {
    if !dice.once_in(3) {
        return field.to_owned();
    }
    let (first, rest) = field.split_at(1);
    format!("not{}{rest}", first.to_ascii_uppercase())
}

fn condition(dice: &mut Dice) -> Value {
    let (key, values) = match dice.below(14) {
        0 | 1 => ("request.headers[x-a]", dice.some(&["one", "on*", "*e", "*", "two"], 2)),
        2 => ("request.headers[X-A]", dice.some(&["one", "ONE"], 2)),
        3 => ("source.ip", blocks(dice)),
        4 => ("remote.ip", blocks(dice)),
        5 => ("source.namespace", dice.some(&NAMESPACES, 2)),
        6 => ("source.principal", dice.some(&PRINCIPALS, 2)),
        7 => ("request.auth.principal", dice.some(&REQUEST_PRINCIPALS, 2)),
        8 => ("request.auth.audiences", dice.some(&["books", "film*", "*"], 2)),
        9 => ("request.auth.presenter", dice.some(&["app-1", "*"], 2)),
        10 => ("request.auth.claims[groups]", dice.some(&["staff", "st*", "*", "admins"], 2)),
        11 => ("request.auth.claims[realm][roles]", dice.some(&["one", "*", "two"], 2)),
        12 => ("destination.port", dice.some(&["8080", "8081", "8090"], 2)),
        _ => ("connection.sni", dice.some(&["server.app", "*.example.com", "*", "outbound_*"], 2)),
    };
    let mut condition = json!({"key": key});
    match dice.below(4) {
        0 => condition["notValues"] = json!(values),
        1 => {
            condition["values"] = json!(values);
            let (again, _) = (values.len(), ());
            condition["notValues"] = json!([if again > 1 { "other" } else { "none" }]);
            if key.ends_with("ip") {
                condition["notValues"] = json!(["198.51.100.0/24"]);
            } else if key.ends_with("port") {
                condition["notValues"] = json!(["9"]);
            }
        }
        _ => condition["values"] = json!(values),
    }
    condition
}

pub fn request_authentications(dice: &mut Dice) -> Vec<Value> {
    let count = if dice.once_in(4) { 2 } else { 1 };
    (0..count)
        .map(|i| {
            let rules: Vec<Value> = match dice.below(4) {
                0 => vec![jwt_rule(dice, false), jwt_rule(dice, true)],
                1 => vec![jwt_rule(dice, true)],
                _ => vec![jwt_rule(dice, false)],
            };
            let (namespace, selector) = match dice.below(5) {
                0 => ("istio-system", json!({"matchLabels": {"istio": "ingressgateway"}})),
                1 => ("app", json!(null)),
                _ => ("app", json!({"matchLabels": {"app": "server"}})),
            };
            let mut spec = json!({"jwtRules": rules});
            if !selector.is_null() {
                spec["selector"] = selector;
            }
            object(SECURITY, "RequestAuthentication", namespace, &format!("tokens-{i}"), spec)
        })
        .collect()
}

fn jwt_rule(dice: &mut Dice, other: bool) -> Value {
    let mut rule = match other {
        false => json!({"issuer": "https://issuer.example", "jwks": "$JWKS"}),
        true => json!({"issuer": "https://other.example", "jwks": "$OTHER"}),
    };
    if dice.once_in(4) {
        rule["audiences"] = json!(dice.some(&["books", "films"], 2));
    }
    if dice.once_in(4) {
        let prefix = dice.one(&["", "Token ", "Bearer "]);
        let mut place = json!({"name": dice.one(&["x-token", "authorization", "X-Token"])});
        if !prefix.is_empty() {
            place["prefix"] = json!(prefix);
        }
        rule["fromHeaders"] = json!([place]);
    }
    if dice.once_in(5) {
        rule["fromParams"] = json!(dice.some(&["token", "access_token"], 2));
    }
    if dice.once_in(5) {
        rule["fromCookies"] = json!(["session"]);
    }
    if dice.once_in(3) {
        rule["forwardOriginalToken"] = json!(true);
    }
    if dice.once_in(4) {
        rule["outputPayloadToHeader"] = json!("x-payload");
    }
    if dice.once_in(3) {
        let claim = dice.one(&["sub", "groups", "realm.roles", "level", "vip", "missing"]);
        rule["outputClaimToHeaders"] = json!([{"header": "x-claim", "claim": claim}]);
    }
    rule
}
