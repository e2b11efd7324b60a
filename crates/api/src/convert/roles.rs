//! ClusterRbacConfig, ServiceRole and ServiceRoleBinding → one AuthorizationPolicy for each service in force.
//!
//! Invariant: what is made lets in no more than the roles did; a role or binding that cannot be said in the new kind is a
//! problem, and gives nobody anything. Roles are about services, so only services among the files get a policy.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{list, meta, new, text};

const GROUP: &str = "rbac.istio.io/";
const DOMAIN: &str = "svc.cluster.local";

/// The policies, or what is in the way.
pub(super) fn convert(objects: &[Value], problems: &mut Vec<String>) -> Vec<Value> {
    let of = |kind: &'static str| {
        objects.iter().filter(move |o| text(o, "apiVersion").starts_with(GROUP) && text(o, "kind") == kind)
    };
    if of("ClusterRbacConfig").chain(of("RbacConfig")).chain(of("ServiceRole")).chain(of("ServiceRoleBinding")).count()
        == 0
    {
        return Vec::new();
    }
    let Some(config) = of("ClusterRbacConfig").chain(of("RbacConfig")).next() else {
        problems.push("roles are in force nowhere: no ClusterRbacConfig is among the files".to_owned());
        return Vec::new();
    };
    let services: Vec<&Value> = objects.iter().filter(|o| text(o, "kind") == "Service").collect();
    if services.is_empty() && in_force(config, "*", "*").unwrap_or(true) {
        problems.push(format!(
            "{} {}: roles are about services, and no Service is among the files",
            text(config, "kind"),
            meta(config, "name")
        ));
    }
    let mut made = Vec::new();
    for service in services {
        let (name, namespace) = (meta(service, "name"), meta(service, "namespace"));
        let host = format!("{name}.{namespace}.{DOMAIN}");
        match in_force(config, &host, namespace) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(why) => {
                problems.push(format!("{} {}: {why}", text(config, "kind"), meta(config, "name")));
                break;
            }
        }
        let selector = service.pointer("/spec/selector").and_then(Value::as_object).filter(|s| !s.is_empty());
        let Some(selector) = selector else {
            problems.push(format!("the Service {name} in namespace {namespace} has no selector"));
            continue;
        };
        let mut rules = Vec::new();
        for role in of("ServiceRole").filter(|role| meta(role, "namespace") == namespace) {
            for binding in
                of("ServiceRoleBinding").filter(|b| meta(b, "namespace") == namespace && binds(b, meta(role, "name")))
            {
                match granted(role, binding, &host) {
                    Ok(own) => rules.extend(own),
                    Err((which, why)) => {
                        problems.push(format!(
                            "{} {} in namespace {namespace}: {why}",
                            text(which, "kind"),
                            meta(which, "name")
                        ));
                    }
                }
            }
        }
        // Without a rule nobody is let in, as by roles.
        let mut spec = json!({"selector": {"matchLabels": selector}});
        if !rules.is_empty() {
            spec["rules"] = Value::Array(rules);
        }
        made.push(new("security.istio.io/v1", "AuthorizationPolicy", name, namespace, spec));
    }
    problems.dedup();
    made
}

/// Whether roles are in force for a service.
fn in_force(config: &Value, host: &str, namespace: &str) -> Result<bool, String> {
    let named = |field: &str| {
        let part = config.pointer(&format!("/spec/{field}")).unwrap_or(&Value::Null);
        let has = |list_of: &str, wanted: &str| list(part, &[list_of]).iter().any(|v| v.as_str() == Some(wanted));
        has("services", host) || has("namespaces", namespace)
    };
    match config.pointer("/spec/mode").and_then(Value::as_str).unwrap_or("OFF") {
        "OFF" => Ok(false),
        "ON" => Ok(true),
        "ON_WITH_INCLUSION" => Ok(named("inclusion")),
        "ON_WITH_EXCLUSION" => Ok(!named("exclusion")),
        other => Err(format!("the mode {other} is not known")),
    }
}

fn binds(binding: &Value, role: &str) -> bool {
    let spec = binding.get("spec").unwrap_or(&Value::Null);
    let reference = spec.get("roleRef").map_or("", |reference| text(reference, "name"));
    let reference = if reference.is_empty() { text(spec, "role") } else { reference };
    reference == role
}

/// The rules by which a binding's subjects may do what a role says, at one host. The error has the object it is about.
fn granted<'a>(role: &'a Value, binding: &'a Value, host: &str) -> Result<Vec<Value>, (&'a Value, String)> {
    let (of_role, of_binding) = (role.get("spec").unwrap_or(&Value::Null), binding.get("spec").unwrap_or(&Value::Null));
    if text(of_binding, "mode") == "PERMISSIVE" {
        return Err((binding, "its mode is PERMISSIVE: it lets in nobody and is not converted".to_owned()));
    }
    let mut rules = Vec::new();
    for access in list(of_role, &["rules"]) {
        let services = list(access, &["services"]);
        if !services.iter().filter_map(Value::as_str).any(|pattern| meets(pattern, host)) {
            continue;
        }
        let (operation, conditions) = operation(access).map_err(|why| (role, why))?;
        for subject in list(of_binding, &["subjects"]) {
            let (source, more) = source(subject).map_err(|why| (binding, why))?;
            let mut rule = Map::new();
            if !source.is_empty() {
                rule.insert("from".into(), json!([{"source": source}]));
            }
            if !operation.is_empty() {
                rule.insert("to".into(), json!([{"operation": operation}]));
            }
            let when: Vec<Value> = conditions.iter().cloned().chain(more).collect();
            if !when.is_empty() {
                rule.insert("when".into(), Value::Array(when));
            }
            rules.push(Value::Object(rule));
        }
    }
    Ok(rules)
}

/// A name with `*` at one end, or alone.
fn meets(pattern: &str, host: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        _ if pattern == "*" => true,
        (Some(end), _) => host.ends_with(end),
        (None, Some(begin)) => host.starts_with(begin),
        (None, None) => pattern == host,
    }
}

fn operation(access: &Value) -> Result<(BTreeMap<&'static str, Value>, Vec<Value>), String> {
    let mut operation = BTreeMap::new();
    for (field, name) in [
        ("methods", "methods"),
        ("paths", "paths"),
        ("hosts", "hosts"),
        ("ports", "ports"),
        ("notMethods", "notMethods"),
        ("notPaths", "notPaths"),
        ("notHosts", "notHosts"),
        ("notPorts", "notPorts"),
    ] {
        let values: Vec<Value> = list(access, &[field]).iter().map(as_text).collect();
        let everything = values.iter().any(|value| value == "*");
        if !values.is_empty() && !everything {
            operation.insert(name, Value::Array(values));
        } else if everything && field.starts_with("not") {
            return Err(format!("{field} takes everything away"));
        }
    }
    let mut conditions = Vec::new();
    for constraint in list(access, &["constraints"]) {
        let key = text(constraint, "key");
        let known = ["destination.ip", "destination.port"].contains(&key)
            || key.starts_with("request.headers[")
            || key.starts_with("experimental.envoy.filters.");
        if !known {
            return Err(format!("the constraint {key} cannot be said of a policy"));
        }
        conditions.push(json!({"key": key, "values": list(constraint, &["values"])}));
    }
    Ok((operation, conditions))
}

fn as_text(value: &Value) -> Value {
    value.as_str().map_or_else(|| json!(value.to_string()), |text| json!(text))
}

fn source(subject: &Value) -> Result<(BTreeMap<&'static str, Value>, Vec<Value>), String> {
    let (mut source, mut conditions) = (BTreeMap::new(), Vec::new());
    let mut said = false;
    match text(subject, "user") {
        "" => {}
        "*" => said = true,
        user => {
            source.insert("principals", json!([user]));
        }
    }
    if !text(subject, "group").is_empty() {
        conditions.push(json!({"key": "request.auth.claims[groups]", "values": [text(subject, "group")]}));
    }
    for (key, value) in subject.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let value = as_text(value);
        match key.as_str() {
            "source.principal" if source.contains_key("principals") => {
                return Err("user and source.principal are both given".to_owned());
            }
            "source.principal" => drop(source.insert("principals", json!([value]))),
            "source.namespace" => drop(source.insert("namespaces", json!([value]))),
            "source.ip" => drop(source.insert("ipBlocks", json!([value]))),
            "request.auth.principal" => drop(source.insert("requestPrincipals", json!([value]))),
            key if key.starts_with("request.headers[") || key.starts_with("request.auth.") => {
                conditions.push(json!({"key": key, "values": [value]}));
            }
            key => return Err(format!("the property {key} is not known")),
        }
    }
    for field in ["names", "notNames", "groups", "notGroups", "ips", "notIps", "namespaces", "notNamespaces"] {
        if subject.get(field).is_some_and(|value| !value.is_null()) {
            return Err(format!("{field} of a subject is not converted"));
        }
    }
    if source.is_empty() && conditions.is_empty() && !said {
        return Err("a subject that names nobody".to_owned());
    }
    Ok((source, conditions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, name: &str, spec: Value) -> Value {
        let version = if kind == "Service" { "v1" } else { "rbac.istio.io/v1alpha1" };
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
    }

    #[test]
    fn roles_become_policies_of_services() {
        let objects = [
            object("Service", "products", json!({"selector": {"app": "products"}})),
            object("Service", "orders", json!({"selector": {"app": "orders"}})),
            object(
                "ClusterRbacConfig",
                "default",
                json!({"mode": "ON_WITH_INCLUSION", "inclusion": {"namespaces": ["shop"]}}),
            ),
            object(
                "ServiceRole",
                "viewer",
                json!({"rules": [{"services": ["products.*"], "methods": ["GET", "HEAD"], "paths": ["/p*"],
                "constraints": [{"key": "request.headers[version]", "values": ["v1"]}]}]}),
            ),
            object(
                "ServiceRoleBinding",
                "bind",
                json!({"roleRef": {"kind": "ServiceRole", "name": "viewer"}, "subjects": [
                {"user": "cluster.local/ns/default/sa/sleep"}, {"properties": {"source.namespace": "bank"}}]}),
            ),
        ];
        let mut problems = Vec::new();
        let made = convert(&objects, &mut problems);
        assert_eq!(problems, Vec::<String>::new());
        let specs: Vec<_> = made.iter().map(|policy| policy["spec"].clone()).collect();
        let to = json!([{"operation": {"methods": ["GET", "HEAD"], "paths": ["/p*"]}}]);
        let when = json!([{"key": "request.headers[version]", "values": ["v1"]}]);
        assert_eq!(
            specs,
            [
                json!({"selector": {"matchLabels": {"app": "products"}}, "rules": [
                    {"from": [{"source": {"principals": ["cluster.local/ns/default/sa/sleep"]}}], "to": to, "when": when},
                    {"from": [{"source": {"namespaces": ["bank"]}}], "to": to, "when": when}]}),
                json!({"selector": {"matchLabels": {"app": "orders"}}}),
            ]
        );
        for policy in &made {
            assert_eq!(crate::validate::object(policy).len(), 0, "{policy}");
        }
    }

    #[test]
    fn what_cannot_be_said_gives_nobody_anything() {
        let service = object("Service", "web", json!({"selector": {"app": "web"}}));
        let config = |mode: &str| object("ClusterRbacConfig", "default", json!({"mode": mode}));
        let role = |access: Value| object("ServiceRole", "r", json!({"rules": [access]}));
        let bind = |spec: Value| object("ServiceRoleBinding", "b", spec);
        let all = json!({"services": ["*"], "methods": ["*"]});
        let anybody = json!({"role": "r", "subjects": [{"user": "*"}]});
        let rules = |objects: &[Value]| {
            let mut problems = Vec::new();
            let made = convert(objects, &mut problems);
            (made.first().map(|policy| policy["spec"]["rules"].clone()), problems.len())
        };
        let case = |mode: &str, access: &Value, binding: &Value| {
            rules(&[service.clone(), config(mode), role(access.clone()), bind(binding.clone())])
        };
        assert_eq!(case("ON", &all, &anybody), (Some(json!([{}])), 0));
        assert_eq!(case("OFF", &all, &anybody), (None, 0));
        assert_eq!(case("ON_WITH_EXCLUSION", &all, &anybody), (Some(json!([{}])), 0));
        assert_eq!(case("ON_WITH_INCLUSION", &all, &anybody), (None, 0));
        let labels =
            json!({"services": ["*"], "constraints": [{"key": "destination.labels[version]", "values": ["v1"]}]});
        assert_eq!(case("ON", &labels, &anybody), (Some(Value::Null), 1));
        for binding in [
            json!({"role": "r", "mode": "PERMISSIVE", "subjects": [{"user": "*"}]}),
            json!({"role": "r", "subjects": [{}]}),
            json!({"role": "r", "subjects": [{"properties": {"source.colour": "red"}}]}),
            json!({"role": "r", "subjects": [{"user": "a", "notIps": ["1.1.1.1"]}]}),
        ] {
            assert_eq!(case("ON", &all, &binding), (Some(Value::Null), 1), "{binding}");
        }
        assert_eq!(rules(&[service.clone(), role(all.clone())]), (None, 1), "nothing says that roles are in force");
        assert_eq!(rules(&[config("ON"), role(all)]), (None, 1), "no service");
    }
}
