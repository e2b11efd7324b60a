//! Legacy policies of authentication, and roles, → PeerAuthentication, RequestAuthentication and AuthorizationPolicy
//! (spec §14.5).
//!
//! Invariant: what is made accepts and refuses the same connections and requests; what cannot be said in the new kinds is
//! a problem, and then nothing is made of that policy. A service's policy needs the service, whose selector and ports it
//! stands for.

mod roles;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What became of some objects.
#[derive(Debug, Default)]
pub struct Converted {
    pub objects: Vec<Value>,
    /// What could not be converted, one sentence each.
    pub problems: Vec<String>,
}

const GROUP: &str = "authentication.istio.io/";

/// Converts the legacy policies and roles among the objects; services among them tell selectors, all others are let be.
/// `root`: the namespace of what is meant for the whole mesh.
pub fn legacy(objects: &[Value], root: &str) -> Converted {
    let mut out = Converted::default();
    // Ports of one service may be spread over several policies, but two objects would not add up.
    let mut services: BTreeMap<(String, String), Value> = BTreeMap::new();
    for object in objects {
        let (version, kind) = (text(object, "apiVersion"), text(object, "kind"));
        if !version.starts_with(GROUP) {
            continue;
        }
        let result = match kind {
            "MeshPolicy" => whole(object, root),
            "Policy" if targets(object).is_empty() => whole(object, meta(object, "namespace")),
            "Policy" => of_services(object, objects, &mut services),
            _ => Err(format!("the kind {kind} is not known")),
        };
        match result {
            Ok(made) => out.objects.extend(made),
            Err(why) => {
                let namespace = meta(object, "namespace");
                let place = if kind == "MeshPolicy" { String::new() } else { format!(" in namespace {namespace}") };
                out.problems.push(format!("{kind} {}{place}: {why}", meta(object, "name")));
            }
        }
    }
    out.objects.extend(services.into_values());
    out.objects.extend(roles::convert(objects, &mut out.problems));
    out
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").map(|metadata| text(metadata, field)).unwrap_or_default()
}

fn list<'a>(value: &'a Value, fields: &[&str]) -> &'a [Value] {
    fields.iter().find_map(|field| value.get(*field)?.as_array()).map(Vec::as_slice).unwrap_or_default()
}

fn targets(object: &Value) -> &[Value] {
    object.get("spec").map(|spec| list(spec, &["targets"])).unwrap_or_default()
}

/// A policy for a namespace or the mesh.
fn whole(object: &Value, namespace: &str) -> Result<Vec<Value>, String> {
    let mode = mode(object)?;
    let peer = new("security.istio.io/v1", "PeerAuthentication", "default", namespace, json!({"mtls": {"mode": mode}}));
    let mut made = vec![peer];
    made.extend(origins(object, meta(object, "name"), namespace, None)?);
    Ok(made)
}

fn new(version: &str, kind: &str, name: &str, namespace: &str, spec: Value) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// The mode that `peers` means: none of them is plain text, the enum's zero value is STRICT.
fn mode(object: &Value) -> Result<&'static str, String> {
    let nothing = Value::Null;
    let spec = object.get("spec").unwrap_or(&nothing);
    let peers = list(spec, &["peers"]);
    if peers.iter().any(|peer| peer.get("jwt").is_some_and(|jwt| !jwt.is_null())) {
        return Err("tokens as peer authentication cannot be converted".to_owned());
    }
    let Some(mtls) = peers.iter().find_map(|peer| peer.get("mtls")) else { return Ok("DISABLE") };
    let flag = |name: &str| mtls.get(name).and_then(Value::as_bool) == Some(true);
    let permissive = matches!(mtls.get("mode"), Some(Value::String(mode)) if mode == "PERMISSIVE")
        || mtls.get("mode").and_then(Value::as_i64) == Some(1);
    let optional = spec.get("peerIsOptional").and_then(Value::as_bool) == Some(true);
    let plain = permissive || optional || flag("allowTls") || flag("allow_tls");
    Ok(if plain { "PERMISSIVE" } else { "STRICT" })
}

/// A policy for services: their own objects, collected by service.
fn of_services(
    object: &Value,
    objects: &[Value],
    made: &mut BTreeMap<(String, String), Value>,
) -> Result<Vec<Value>, String> {
    let mode = mode(object)?;
    let namespace = meta(object, "namespace");
    let policy = meta(object, "name");
    let all = targets(object);
    let mut found = Vec::new();
    for target in all {
        let service = text(target, "name");
        let own = objects.iter().find(|other| {
            text(other, "kind") == "Service" && meta(other, "name") == service && meta(other, "namespace") == namespace
        });
        let own =
            own.ok_or_else(|| format!("the Service {service} is not among the files, and its selector is needed"))?;
        let selector = own.pointer("/spec/selector").filter(|selector| selector.is_object());
        let selector = selector.ok_or_else(|| format!("the Service {service} has no selector"))?;
        found.push((target, own, selector));
    }
    let mut rest = Vec::new();
    let mut changes = Vec::new();
    for (target, own, selector) in found {
        let mut ports = Map::new();
        for port in list(target, &["ports"]) {
            ports.insert(workload_port(own, port)?, json!({"mode": mode}));
        }
        changes.push(((namespace.to_owned(), text(target, "name").to_owned()), selector.clone(), ports));
        let name = if all.len() == 1 { policy.to_owned() } else { format!("{policy}-{}", text(target, "name")) };
        rest.extend(origins(object, &name, namespace, Some(selector))?);
    }
    for (key, selector, ports) in changes {
        let service = key.1.clone();
        let entry = made.entry(key).or_insert_with(|| {
            let spec = json!({"selector": {"matchLabels": selector}});
            new("security.istio.io/v1", "PeerAuthentication", &service, namespace, spec)
        });
        let Some(spec) = entry.get_mut("spec").and_then(Value::as_object_mut) else { continue };
        if ports.is_empty() {
            spec.entry("mtls").or_insert(json!({"mode": mode}));
        } else if let Some(all) = spec.entry("portLevelMtls").or_insert(json!({})).as_object_mut() {
            for (port, mode) in ports {
                all.entry(port).or_insert(mode);
            }
        }
    }
    Ok(rest)
}

/// The port of the workload behind a service's port.
fn workload_port(service: &Value, wanted: &Value) -> Result<String, String> {
    let number = wanted.get("number").and_then(Value::as_i64);
    let name = text(wanted, "name");
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let found = ports.iter().find(|port| match number {
        Some(number) => port.get("port").and_then(Value::as_i64) == Some(number),
        None => text(port, "name") == name,
    });
    let shown = number.map_or_else(|| format!("{name:?}"), |number| number.to_string());
    let port = found.ok_or_else(|| format!("the Service {} has no port {shown}", meta(service, "name")))?;
    match port.get("targetPort") {
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(Value::String(name)) => name.parse::<u16>().map(|port| port.to_string()).map_err(|_| {
            format!(
                "port {shown} of the Service {} leads to a named port, whose number is not known",
                meta(service, "name")
            )
        }),
        _ => port.get("port").map(ToString::to_string).ok_or_else(|| "a service port without a number".to_owned()),
    }
}

/// Tokens: who issues them, and that they are needed.
fn origins(object: &Value, name: &str, namespace: &str, selector: Option<&Value>) -> Result<Vec<Value>, String> {
    let nothing = Value::Null;
    let spec = object.get("spec").unwrap_or(&nothing);
    let all = list(spec, &["origins"]);
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let mut rules = Vec::new();
    let mut operations = Vec::new();
    let mut everywhere = false;
    for origin in all {
        let jwt = origin.get("jwt").filter(|jwt| jwt.is_object()).ok_or("an origin without a jwt")?;
        rules.push(jwt_rule(jwt));
        let triggers = list(jwt, &["triggerRules", "trigger_rules"]);
        everywhere |= triggers.is_empty();
        for trigger in triggers {
            let included = paths(list(trigger, &["includedPaths", "included_paths"]))?;
            let excluded = paths(list(trigger, &["excludedPaths", "excluded_paths"]))?;
            let mut operation = Map::new();
            for (field, paths) in [("paths", included), ("notPaths", excluded)] {
                if !paths.is_empty() {
                    operation.insert(field.to_owned(), json!(paths));
                }
            }
            everywhere |= operation.is_empty();
            operations.push(json!({"operation": operation}));
        }
    }
    let with_selector = |mut spec: Value| {
        if let (Some(selector), Some(map)) = (selector, spec.as_object_mut()) {
            map.insert("selector".to_owned(), json!({"matchLabels": selector}));
        }
        spec
    };
    let version = "security.istio.io/v1";
    let mut made =
        vec![new(version, "RequestAuthentication", name, namespace, with_selector(json!({"jwtRules": rules})))];
    if spec.get("originIsOptional").and_then(Value::as_bool) != Some(true) {
        let mut rule = json!({"from": [{"source": {"notRequestPrincipals": ["*"]}}]});
        if let Some(map) = rule.as_object_mut().filter(|_| !everywhere) {
            map.insert("to".to_owned(), json!(operations));
        }
        let spec = with_selector(json!({"action": "DENY", "rules": [rule]}));
        made.push(new(version, "AuthorizationPolicy", &format!("{name}-require-token"), namespace, spec));
    }
    Ok(made)
}

fn jwt_rule(jwt: &Value) -> Value {
    let mut rule = Map::new();
    for (new, old) in [
        ("issuer", &["issuer"][..]),
        ("audiences", &["audiences"]),
        ("jwksUri", &["jwksUri", "jwks_uri"]),
        ("jwks", &["jwks"]),
        ("fromParams", &["jwtParams", "jwt_params"]),
    ] {
        if let Some(value) = old.iter().find_map(|field| jwt.get(*field)).filter(|value| !value.is_null()) {
            rule.insert(new.to_owned(), value.clone());
        }
    }
    let headers: Vec<Value> =
        list(jwt, &["jwtHeaders", "jwt_headers"]).iter().map(|name| json!({"name": name})).collect();
    if !headers.is_empty() {
        rule.insert("fromHeaders".to_owned(), json!(headers));
    }
    // The old API handed the token on.
    rule.insert("forwardOriginalToken".to_owned(), json!(true));
    Value::Object(rule)
}

/// Path matches as the patterns of an authorization policy.
fn paths(matches: &[Value]) -> Result<Vec<String>, String> {
    matches
        .iter()
        .map(|wanted| {
            let field =
                ["exact", "prefix", "suffix", "regex"].into_iter().find(|field| !text(wanted, field).is_empty());
            match field {
                Some("exact") => Ok(text(wanted, "exact").to_owned()),
                Some("prefix") => Ok(format!("{}*", text(wanted, "prefix"))),
                Some("suffix") => Ok(format!("*{}", text(wanted, "suffix"))),
                Some(_) => {
                    Err(format!("the path expression {:?} cannot be said in the new API", text(wanted, "regex")))
                }
                None => Err("a path match without a path".to_owned()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(kind: &str, name: &str, spec: Value) -> Value {
        json!({"apiVersion": "authentication.istio.io/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": "ns"}, "spec": spec})
    }

    fn service() -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "ns"}, "spec": {
            "selector": {"app": "s"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "admin", "port": 81, "targetPort": "adm"}],
        }})
    }

    #[test]
    fn meshes_and_namespaces() {
        for (spec, mode) in [
            (json!({"peers": [{"mtls": {}}]}), "STRICT"),
            (json!({"peers": [{"mtls": null}]}), "STRICT"),
            (json!({"peers": [{"mtls": {"mode": "PERMISSIVE"}}]}), "PERMISSIVE"),
            (json!({"peers": [{"mtls": {"allowTls": true}}]}), "PERMISSIVE"),
            (json!({"peers": [{"mtls": {}}], "peerIsOptional": true}), "PERMISSIVE"),
            (json!({}), "DISABLE"),
        ] {
            let made = legacy(&[policy("MeshPolicy", "default", spec.clone())], "istio-system");
            assert_eq!(made.problems, Vec::<String>::new());
            let [peer] = made.objects.as_slice() else { panic!("{made:?}") };
            assert_eq!(peer["spec"], json!({"mtls": {"mode": mode}}), "{spec}");
            assert_eq!(peer["metadata"]["namespace"], "istio-system");
            let made = legacy(&[policy("Policy", "default", spec)], "istio-system");
            assert_eq!(made.objects[0]["metadata"]["namespace"], "ns");
        }
    }

    #[test]
    fn services_with_and_without_ports() {
        let ports = policy("Policy", "a", json!({"targets": [{"name": "s", "ports": [{"number": 80}]}]}));
        let whole = policy("Policy", "b", json!({"targets": [{"name": "s"}], "peers": [{"mtls": {}}]}));
        let made = legacy(&[service(), ports, whole], "istio-system");
        assert_eq!(made.problems, Vec::<String>::new());
        assert_eq!(
            made.objects,
            [
                json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "s", "namespace": "ns"}, "spec": {
                "selector": {"matchLabels": {"app": "s"}}, "portLevelMtls": {"8080": {"mode": "DISABLE"}}, "mtls": {"mode": "STRICT"}}})
            ]
        );
    }

    #[test]
    fn tokens() {
        let spec = json!({"targets": [{"name": "s"}], "peers": [{"mtls": {}}], "principalBinding": "USE_ORIGIN", "origins": [{"jwt": {
            "issuer": "i", "jwksUri": "https://k", "jwtHeaders": ["x"], "triggerRules": [{"excludedPaths": [{"exact": "/h"}], "includedPaths": [{"prefix": "/a"}]}]}}]});
        let made = legacy(&[service(), policy("Policy", "p", spec)], "istio-system");
        let kinds: Vec<_> = made.objects.iter().map(|o| o["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["RequestAuthentication", "AuthorizationPolicy", "PeerAuthentication"]);
        assert_eq!(
            made.objects[0]["spec"]["jwtRules"][0],
            json!({"issuer": "i", "jwksUri": "https://k", "fromHeaders": [{"name": "x"}], "forwardOriginalToken": true})
        );
        assert_eq!(
            made.objects[1]["spec"]["rules"][0]["to"],
            json!([{"operation": {"paths": ["/a*"], "notPaths": ["/h"]}}])
        );
        for object in &made.objects {
            assert!(!crate::validate::has_errors(&crate::validate::object(object)), "{object}");
        }
    }

    #[test]
    fn what_cannot_be_said_is_told() {
        let cases = [
            policy("Policy", "a", json!({"targets": [{"name": "other"}]})),
            policy("Policy", "b", json!({"targets": [{"name": "s", "ports": [{"number": 81}]}]})),
            policy("Policy", "c", json!({"targets": [{"name": "s", "ports": [{"number": 9}]}]})),
            policy(
                "Policy",
                "default",
                json!({"origins": [{"jwt": {"issuer": "i", "triggerRules": [{"includedPaths": [{"regex": "x"}]}]}}]}),
            ),
            policy("Policy", "default", json!({"peers": [{"jwt": {"issuer": "i"}}]})),
            json!({"apiVersion": "rbac.istio.io/v1alpha1", "kind": "ServiceRole", "metadata": {"name": "r"}}),
        ];
        for case in cases {
            let made = legacy(&[service(), case.clone()], "istio-system");
            assert_eq!((made.objects.len(), made.problems.len()), (0, 1), "{case}: {made:?}");
        }
    }
}
