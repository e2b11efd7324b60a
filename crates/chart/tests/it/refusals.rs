//! What API servers of Kubernetes 1.30 to 1.36 refuse, tried on everything that an installation is made of: a server that refuses an
//! object of ours should be a test that fails here.
//!
//! Invariant: rules of the servers' validation alone, not of taste. What rules may cost is a server's own estimate, and here a rougher one
//! of the same kind.

use std::collections::BTreeSet;

use carrick_chart::{Chart, Release, installation};
use serde_json::{Map, Value, json};

/// Groups and versions that are served from 1.30 to 1.36, with their kinds.
const SERVED: [(&str, &[&str]); 9] = [
    ("v1", &["ServiceAccount", "ConfigMap", "Service", "ResourceQuota"]),
    ("apps/v1", &["Deployment", "DaemonSet"]),
    ("autoscaling/v2", &["HorizontalPodAutoscaler"]),
    ("policy/v1", &["PodDisruptionBudget"]),
    ("networking.k8s.io/v1", &["NetworkPolicy"]),
    ("rbac.authorization.k8s.io/v1", &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
    ("admissionregistration.k8s.io/v1", &["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"]),
    ("apiextensions.k8s.io/v1", &["CustomResourceDefinition"]),
    ("coordination.k8s.io/v1", &["Lease"]),
];
/// The bytes that a request may have, and so a value of unbounded length.
const REQUEST: u64 = 3 << 20;
/// What one rule may cost, and all of a definition.
const RULE_COST: u64 = 10_000_000;
const ALL_COST: u64 = 100_000_000;

/// Every object of every chart, with nothing and with everything switched on.
fn everything() -> Vec<Value> {
    let full = json!({
        "profile": "demo", "revision": "canary", "components": {"cni": {"enabled": true}},
        "values": {"revisionTags": ["prod"], "sidecarInjectorWebhook": {"enableNamespacesByDefault": true}},
    });
    let mut all: Vec<Value> = Vec::new();
    for spec in [json!({}), full] {
        all.extend(installation(&spec).unwrap().pieces.iter().flat_map(|piece| piece.objects().unwrap()));
    }
    for (chart, values) in [
        ("gateway", json!({"kind": "DaemonSet", "networkGateway": "n1", "podDisruptionBudget": {"minAvailable": 1}})),
        ("cni", json!({"global": {"resourceQuotas": {"enabled": true}}})),
    ] {
        let release = Release { name: "istio-x", namespace: "edge" };
        all.extend(Chart::named(chart).unwrap().render(&release, &values).unwrap());
    }
    all
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn map<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value.pointer(pointer).and_then(Value::as_object).into_iter().flatten()
}

/// A name of DNS (RFC 1123): lower case, at most this long.
fn is_dns(name: &str, longest: usize) -> bool {
    let fine = |part: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = part.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    name.len() <= longest && name.split('.').all(fine)
}

/// The value of a label, or the name in its key.
fn is_label(value: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns(prefix, 253) && is_label(name),
        None => is_label(key),
    }
}

/// Everything wrong with labels and annotations, wherever there are some.
fn metadata(value: &Value, at: &str, wrong: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let at = format!("{at}.{name}");
                let selects = matches!(name.as_str(), "labels" | "matchLabels" | "annotations");
                for (key, value) in field.as_object().into_iter().flatten().filter(|_| selects) {
                    let good = match (name.as_str(), value.as_str()) {
                        (_, None) => false,
                        ("annotations", Some(_)) => true,
                        (_, Some(value)) => value.is_empty() || is_label(value),
                    };
                    if !is_key(key) || !good {
                        wrong.push(format!("{at}: {key}={value}"));
                    }
                }
                metadata(field, &at, wrong);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| metadata(item, at, wrong)),
        _ => {}
    }
}

/// Nulls: a server drops them from some objects and refuses them in others.
fn nulls(value: &Value, at: &str, wrong: &mut Vec<String>) {
    match value {
        Value::Null => wrong.push(format!("{at} is null")),
        Value::Object(fields) => fields.iter().for_each(|(name, field)| nulls(field, &format!("{at}.{name}"), wrong)),
        Value::Array(items) => items.iter().for_each(|item| nulls(item, at, wrong)),
        _ => {}
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>, wrong: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    wrong.extend(names.filter(|name| !seen.insert(*name)).map(|name| format!("{what} {name:?} is there twice")));
}

fn pod(template: &Value, wrong: &mut Vec<String>) {
    let volumes: BTreeSet<&str> = list(template, "/spec/volumes").iter().map(|v| text(v, "/name")).collect();
    let containers = || list(template, "/spec/containers").iter().chain(list(template, "/spec/initContainers"));
    unique("container", containers().map(|c| text(c, "/name")), wrong);
    unique("volume", list(template, "/spec/volumes").iter().map(|v| text(v, "/name")), wrong);
    for container in containers() {
        let name = text(container, "/name");
        if !is_dns(name, 63) || text(container, "/image").is_empty() {
            wrong.push(format!("container {name:?}"));
        }
        unique("mount", list(container, "/volumeMounts").iter().map(|m| text(m, "/mountPath")), wrong);
        unique("port", list(container, "/ports").iter().map(|p| text(p, "/name")), wrong);
        for port in list(container, "/ports") {
            let name = text(port, "/name");
            let letters = name.bytes().any(|b| b.is_ascii_lowercase());
            if name.len() > 15 || !letters || !is_dns(name, 15) || name.contains("--") {
                wrong.push(format!("port {name:?}"));
            }
        }
        for mount in list(container, "/volumeMounts") {
            if !volumes.contains(text(mount, "/name")) {
                wrong.push(format!("{name}: no volume {}", mount["name"]));
            }
        }
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let Some(probe) = container.get(probe) else { continue };
            let handlers = ["httpGet", "exec", "tcpSocket", "grpc"].iter().filter(|h| probe.get(**h).is_some());
            if handlers.count() != 1 {
                wrong.push(format!("{name}: {probe} does not ask one thing"));
            }
        }
        for env in list(container, "/env") {
            if env.get("value").is_some_and(|value| !value.is_string()) {
                wrong.push(format!("{name}: {env} is no text"));
            }
        }
        for (_, amounts) in map(container, "/resources") {
            for (what, amount) in amounts.as_object().into_iter().flatten() {
                let amount = amount.as_str().unwrap_or_default();
                let digits = amount.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                let unit = &amount[digits.len()..];
                let known = ["", "m", "k", "M", "G", "Ki", "Mi", "Gi"].contains(&unit);
                if digits.parse::<f64>().is_err() || !known {
                    wrong.push(format!("{name}: {what}={amount:?}"));
                }
            }
        }
        let security = container.get("securityContext").cloned().unwrap_or_default();
        let capable = list(&security, "/capabilities/add").iter().any(|c| *c == "CAP_SYS_ADMIN" || *c == "SYS_ADMIN");
        if security["allowPrivilegeEscalation"] == false && (security["privileged"] == true || capable) {
            wrong.push(format!("{name}: privileges that may not be had"));
        }
    }
}

/// What a server refuses of an object that is no definition of a kind.
fn refused(object: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
    let version = text(object, "/apiVersion");
    if !SERVED.iter().any(|(served, kinds)| *served == version && kinds.contains(&kind)) {
        wrong.push(format!("{version} {kind} is not served everywhere"));
    }
    let longest = if matches!(kind, "Service") { 63 } else { 253 };
    if !is_dns(name, longest) || (kind == "Service" && name.contains('.')) {
        wrong.push(format!("name {name:?}"));
    }
    metadata(object, kind, &mut wrong);
    nulls(object, kind, &mut wrong);
    let bytes: usize = map(object, "/metadata/annotations").map(|(k, v)| k.len() + v.to_string().len()).sum();
    if bytes > 256 << 10 || object.to_string().len() > 1 << 20 {
        wrong.push("it is too large".to_owned());
    }
    match kind {
        "Deployment" | "DaemonSet" => {
            let template = &object["spec"]["template"];
            pod(template, &mut wrong);
            for (key, value) in map(object, "/spec/selector/matchLabels") {
                if template["metadata"]["labels"][key] != *value {
                    wrong.push(format!("selector {key}={value} is not in the template"));
                }
            }
            if kind == "DaemonSet" && object.pointer("/spec/replicas").is_some() {
                wrong.push("a DaemonSet has no replicas".to_owned());
            }
        }
        "ClusterRole" | "Role" => {
            for rule in list(object, "/rules") {
                if list(rule, "/verbs").is_empty()
                    || list(rule, "/resources").is_empty()
                    || rule.get("apiGroups").is_none()
                {
                    wrong.push(format!("rule {rule}"));
                }
                // Names say nothing where there is none yet.
                let lists =
                    list(rule, "/verbs").iter().any(|verb| ["create", "list", "watch"].iter().any(|v| verb == v));
                if lists && !list(rule, "/resourceNames").is_empty() {
                    wrong.push(format!("rule {rule} names what cannot be named"));
                }
            }
        }
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => {
            unique("webhook", list(object, "/webhooks").iter().map(|w| text(w, "/name")), &mut wrong);
            for webhook in list(object, "/webhooks") {
                let name = text(webhook, "/name");
                let client = &webhook["clientConfig"];
                let one_place = client.get("url").is_some() != client.get("service").is_some();
                let silent = ["None", "NoneOnDryRun"].contains(&text(webhook, "/sideEffects"));
                let versions = list(webhook, "/admissionReviewVersions").iter().any(|v| v == "v1");
                let seconds = webhook.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(10);
                if !is_dns(name, 253)
                    || name.split('.').count() < 3
                    || !one_place
                    || !silent
                    || !versions
                    || seconds > 30
                {
                    wrong.push(format!("webhook {webhook}"));
                }
                for selector in ["namespaceSelector", "objectSelector"] {
                    for expression in list(webhook, &format!("/{selector}/matchExpressions")) {
                        let values = list(expression, "/values");
                        let wants = matches!(text(expression, "/operator"), "In" | "NotIn");
                        if wants == values.is_empty() || !is_key(text(expression, "/key")) {
                            wrong.push(format!("{name}: {expression}"));
                        }
                    }
                }
            }
        }
        "Service" => {
            unique("port", list(object, "/spec/ports").iter().map(|p| text(p, "/name")), &mut wrong);
            for port in list(object, "/spec/ports") {
                let fine = port["port"].as_u64().is_some_and(|port| (1..=65535).contains(&port));
                if !fine || !is_dns(text(port, "/name"), 63) {
                    wrong.push(format!("port {port}"));
                }
            }
        }
        _ => {}
    }
    wrong
}

/// What may stand in a junctor of a structural schema: conditions, and no description of the value.
const IN_JUNCTORS: [&str; 19] = [
    "properties",
    "items",
    "required",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "enum",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "multipleOf",
];

/// A schema's description of a value, and what its rules cost at most. `count` is how many such values there may be; `None` where a list
/// above has no bound: then as many as a request has room for.
struct Judge {
    wrong: Vec<String>,
    cost: u64,
}

impl Judge {
    fn schema(&mut self, schema: &Value, at: &str, count: Option<u64>) {
        let empty = Map::new();
        let fields = schema.as_object().unwrap_or(&empty);
        for junctor in ["allOf", "anyOf", "oneOf"] {
            for part in list(schema, &format!("/{junctor}")) {
                self.junctor(part, schema, &format!("{at}.{junctor}"));
            }
        }
        if let Some(part) = fields.get("not") {
            self.junctor(part, schema, &format!("{at}.not"));
        }
        if fields.get("x-kubernetes-list-type").is_some_and(|kind| kind == "map") {
            let keys = list(schema, "/x-kubernetes-list-map-keys");
            let required = list(schema, "/items/required");
            for key in keys {
                let property = &schema["items"]["properties"][key.as_str().unwrap_or_default()];
                if property.is_null() || !(required.contains(key) || property.get("default").is_some()) {
                    self.wrong.push(format!("{at}: key {key} may be missing"));
                }
            }
            if keys.is_empty() {
                self.wrong.push(format!("{at}: a list by keys without keys"));
            }
        }
        if let Some(default) = fields.get("default") {
            let kind = text(schema, "/type");
            let fits = match kind {
                "string" => default.is_string(),
                "integer" => default.is_i64(),
                "number" => default.is_number(),
                "boolean" => default.is_boolean(),
                "array" => default.is_array(),
                _ => default.is_object(),
            };
            if !fits && fields.get("nullable") != Some(&Value::Bool(true)) {
                self.wrong.push(format!("{at}: default {default} is no {kind}"));
            }
        }
        for rule in list(schema, "/x-kubernetes-validations") {
            self.rule(rule, schema, at, count);
        }
        for (name, property) in map(schema, "/properties") {
            self.schema(property, &format!("{at}.{name}"), count);
        }
        let bound = |name: &str| Some(count?.saturating_mul(fields.get(name)?.as_u64()?));
        if let Some(items) = fields.get("items") {
            self.schema(items, &format!("{at}[]"), bound("maxItems"));
        }
        if let Some(values) = fields.get("additionalProperties").filter(|values| values.is_object()) {
            self.schema(values, &format!("{at}{{}}"), bound("maxProperties"));
        }
    }

    fn junctor(&mut self, part: &Value, whole: &Value, at: &str) {
        let free = whole.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
        for (name, _) in map(part, "") {
            if !(IN_JUNCTORS.contains(&name.as_str()) || free && name == "type") {
                self.wrong.push(format!("{at}: {name} describes"));
            }
        }
        for (name, property) in map(part, "/properties") {
            match whole.pointer(&format!("/properties/{}", name.replace('~', "~0").replace('/', "~1"))) {
                Some(known) => self.junctor(property, known, &format!("{at}.{name}")),
                None => self.wrong.push(format!("{at}: {name} is described nowhere")),
            }
        }
        for junctor in ["allOf", "anyOf", "oneOf"] {
            list(part, &format!("/{junctor}"))
                .iter()
                .for_each(|part| self.junctor(part, whole, &format!("{at}.{junctor}")));
        }
        if let Some(part) = part.get("not") {
            self.junctor(part, whole, &format!("{at}.not"));
        }
    }

    /// A rule's own length stands for its steps; one that goes through a list goes through all that the list may have.
    fn rule(&mut self, rule: &Value, schema: &Value, at: &str, count: Option<u64>) {
        let count = count.unwrap_or(REQUEST / (least(schema) + 1));
        let expression = text(rule, "/rule");
        let steps =
            u64::try_from(expression.matches(['.', '(', '&', '|', '=', '<', '>', '?']).count()).unwrap() / 3 + 2;
        let loops = ["all(", "exists(", "exists_one(", "map(", "filter("];
        let loops: usize = loops.iter().map(|l| expression.matches(l).count()).sum();
        let largest = largest(schema, expression);
        let looped = (0..loops.min(3)).fold(1u64, |cost, _| cost.saturating_mul(largest));
        let cost = steps.saturating_mul(looped).saturating_mul(count);
        if cost > RULE_COST {
            self.wrong.push(format!("{at}: {expression} may cost {cost}: {count} times {looped}"));
        }
        self.cost = self.cost.saturating_add(cost);
    }
}

/// The fewest bytes that a value is written with.
fn least(schema: &Value) -> u64 {
    match text(schema, "/type") {
        "boolean" => 4,
        "integer" | "number" => 1,
        "object" => {
            let required = list(schema, "/required").iter().filter_map(Value::as_str);
            let field = |name: &str| name.len() as u64 + 4 + least(&schema["properties"][name]);
            2 + required.map(field).sum::<u64>()
        }
        _ => 2,
    }
}

/// The most elements that a list of a value may have, of those that a rule names.
fn largest(schema: &Value, rule: &str) -> u64 {
    let own = ["maxItems", "maxProperties"].iter().find_map(|name| schema.get(name)?.as_u64());
    let is_list = schema.get("items").is_some() || schema.get("additionalProperties").is_some_and(Value::is_object);
    let own = if is_list { own.unwrap_or(REQUEST / 3) } else { 1 };
    let named = map(schema, "/properties").filter(|(name, _)| rule.contains(name.as_str()));
    own.max(named.map(|(_, property)| largest(property, rule)).max().unwrap_or(1))
}

#[test]
fn objects_are_those_that_servers_take() {
    for object in everything().iter().filter(|object| object["kind"] != "CustomResourceDefinition") {
        let wrong = refused(object);
        assert!(wrong.is_empty(), "{} {}: {wrong:#?}", object["kind"], object["metadata"]["name"]);
    }
}

#[test]
fn definitions_are_structural_and_their_rules_affordable() {
    let (mut short, mut judged) = (BTreeSet::new(), 0);
    for object in everything().iter().filter(|object| object["kind"] == "CustomResourceDefinition") {
        let name = text(object, "/metadata/name").to_owned();
        let mut judge = Judge { wrong: Vec::new(), cost: 0 };
        metadata(&object["metadata"], "metadata", &mut judge.wrong);
        for version in list(object, "/spec/versions") {
            judge.cost = 0;
            judge.schema(&version["schema"]["openAPIV3Schema"], text(version, "/name"), Some(1));
            if judge.cost > ALL_COST {
                judge.wrong.push(format!("all rules of {} may cost {}", version["name"], judge.cost));
            }
            for column in list(version, "/additionalPrinterColumns") {
                let known = ["string", "date", "integer", "number", "boolean"].contains(&text(column, "/type"));
                if !known || !text(column, "/jsonPath").starts_with('.') {
                    judge.wrong.push(format!("column {column}"));
                }
            }
            judged += 1;
        }
        assert!(judge.wrong.is_empty(), "{name}: {:#?}", judge.wrong);
        short.extend(list(object, "/spec/names/shortNames").iter().map(|n| format!("{n} {name}")));
    }
    assert!(judged >= 30, "{judged}");
    let names: BTreeSet<&str> = short.iter().filter_map(|n| n.split(' ').next()).collect();
    assert_eq!(names.len(), short.len(), "short names are one kind's each: {short:?}");
}

/// Pods of the control plane are admitted where nothing but the strictest of the standards is.
#[test]
fn the_control_plane_is_restricted() {
    let objects = everything();
    let deployments =
        objects.iter().filter(|o| o["kind"] == "Deployment" && text(o, "/metadata/name").starts_with("istiod"));
    let mut tried = 0;
    for deployment in deployments {
        let spec = &deployment["spec"]["template"]["spec"];
        assert!(
            spec.get("hostNetwork").is_none() && list(spec, "/volumes").iter().all(|v| v.get("hostPath").is_none())
        );
        for container in list(spec, "/containers") {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["runAsNonRoot"], true);
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
            tried += 1;
        }
    }
    assert_eq!(tried, 2);
}
