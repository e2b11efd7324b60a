//! The roles and bindings that every cluster has.
//!
//! Invariant: anonymous users may learn only that the server lives and which version it is; authenticated ones may also
//! discover the API and ask about themselves. `view`, `edit` and `admin` are made of others by labels, as elsewhere, so that anybody
//! may add to them; Istio's kinds are part of them, since here they are not added by anybody later.

use super::aggregate::aggregated;
use serde_json::{Value, json};

const ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
const BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";
const API_GROUP: &str = "rbac.authorization.k8s.io";

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];
const ALL: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const ISTIO_GROUPS: [&str; 5] = [
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "authentication.istio.io",
];

/// What `view` may read; secrets are not among it.
const VIEWABLE: [&str; 10] = [
    "configmaps",
    "endpoints",
    "persistentvolumeclaims",
    "persistentvolumeclaims/status",
    "pods",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "serviceaccounts",
    "services",
    "services/status",
];
/// What others write and everybody may read.
const TOLD: [&str; 8] = [
    "bindings",
    "limitranges",
    "namespaces/status",
    "pods/log",
    "pods/status",
    "replicationcontrollers/status",
    "resourcequotas",
    "resourcequotas/status",
];
/// What `view` may read of applications.
const APPLICATIONS: [&str; 12] = [
    "controllerrevisions",
    "daemonsets",
    "daemonsets/status",
    "deployments",
    "deployments/scale",
    "deployments/status",
    "replicasets",
    "replicasets/scale",
    "replicasets/status",
    "statefulsets",
    "statefulsets/scale",
    "statefulsets/status",
];
/// What `edit` may write of them.
const RUN: [&str; 8] = [
    "daemonsets",
    "deployments",
    "deployments/rollback",
    "deployments/scale",
    "replicasets",
    "replicasets/scale",
    "statefulsets",
    "statefulsets/scale",
];
/// The group in which some of these once were, to read and to write; nothing of it is served any more.
const EXTENSIONS: [&str; 12] = [
    "daemonsets",
    "daemonsets/status",
    "deployments",
    "deployments/scale",
    "deployments/status",
    "ingresses",
    "ingresses/status",
    "networkpolicies",
    "replicasets",
    "replicasets/scale",
    "replicasets/status",
    "replicationcontrollers/scale",
];
const EXTENSIONS_RUN: [&str; 9] = [
    "daemonsets",
    "deployments",
    "deployments/rollback",
    "deployments/scale",
    "ingresses",
    "networkpolicies",
    "replicasets",
    "replicasets/scale",
    "replicationcontrollers/scale",
];
/// Work that ends.
const WORK: [&str; 4] = ["cronjobs", "cronjobs/status", "jobs", "jobs/status"];
/// Ways into pods; who reads alone has none of them. `pods/exec` and `pods/attach` are not among them: a process that is run as a pod has the
/// machine's files, and whoever may start another beside it, or type into it, is as good as root there.
const INTO_PODS: [&str; 4] = ["pods/portforward", "pods/proxy", "secrets", "services/proxy"];
/// What `edit` may also write.
const EDITABLE: [&str; 8] = [
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "secrets",
    "serviceaccounts",
    "services",
    "services/proxy",
];

/// Roles that are made of others, each of the one before it too.
const AGGREGATED: [&str; 3] = ["view", "edit", "admin"];
/// Which of them is part of which.
const BELOW: [(&str, &str); 2] = [("view", "edit"), ("edit", "admin")];

/// The label of roles that are part of another.
fn label(whole: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{whole}")
}

/// The default roles and bindings, to be created where missing: resource and object.
pub fn default_objects() -> Vec<(&'static str, Value)> {
    let mut objects = Vec::new();
    let mut all: Vec<Value> = roles()
        .into_iter()
        .map(|(name, rules)| {
            let mut role = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": meta(name), "rules": rules,
            });
            for whole in AGGREGATED {
                if let (true, Some(map)) = (name == whole, role.as_object_mut()) {
                    let labels = json!({ label(whole): "true" });
                    map.insert("aggregationRule".into(), json!({ "clusterRoleSelectors": [{ "matchLabels": labels }] }));
                }
                let joins = name.strip_prefix("system:aggregate-to-") == Some(whole) || BELOW.contains(&(name, whole));
                let labels = role.pointer_mut("/metadata/labels").and_then(Value::as_object_mut);
                if let (true, Some(labels)) = (joins, labels) {
                    labels.insert(label(whole), json!("true"));
                }
            }
            role
        })
        .collect();
    // Each is made of the one before, so that nobody waits for the loop that makes them.
    for name in AGGREGATED {
        let rules = all.iter().find(|r| r.pointer("/metadata/name").and_then(Value::as_str) == Some(name));
        let rules = rules.and_then(|role| aggregated(role, &all));
        let role = all.iter_mut().find(|r| r.pointer("/metadata/name").and_then(Value::as_str) == Some(name));
        if let (Some(rules), Some(map)) = (rules, role.and_then(Value::as_object_mut)) {
            map.insert("rules".into(), rules);
        }
    }
    objects.extend(all.into_iter().map(|role| (ROLES, role)));
    for (name, groups) in [
        ("cluster-admin", &["system:masters"][..]),
        ("system:discovery", &["system:authenticated"]),
        ("system:basic-user", &["system:authenticated"]),
        ("system:public-info-viewer", &["system:authenticated", "system:unauthenticated"]),
        ("system:service-account-issuer-discovery", &["system:serviceaccounts"]),
    ] {
        let subjects: Vec<Value> =
            groups.iter().map(|g| json!({ "apiGroup": API_GROUP, "kind": "Group", "name": g })).collect();
        let reference = json!({ "apiGroup": API_GROUP, "kind": "ClusterRole", "name": name });
        objects.push((
            BINDINGS,
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": meta(name),
                "roleRef": reference,
                "subjects": subjects,
            }),
        ));
    }
    objects
}

fn meta(name: &str) -> Value {
    json!({
        "name": name,
        "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
        "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" },
    })
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "apiGroups": groups, "resources": resources, "verbs": verbs })
}

fn paths(paths: &[&str]) -> Value {
    json!({ "nonResourceURLs": paths, "verbs": ["get"] })
}

fn roles() -> Vec<(&'static str, Vec<Value>)> {
    let view = vec![
        rule(&[""], &VIEWABLE, &READ),
        rule(&[""], &TOLD, &READ),
        rule(&[""], &["namespaces"], &READ),
        rule(&["", "events.k8s.io"], &["events"], &READ),
        rule(&["discovery.k8s.io"], &["endpointslices"], &READ),
        rule(&["apps"], &APPLICATIONS, &READ),
        rule(&["autoscaling"], &["horizontalpodautoscalers", "horizontalpodautoscalers/status"], &READ),
        rule(&["batch"], &WORK, &READ),
        rule(&["extensions"], &EXTENSIONS, &READ),
        rule(&["policy"], &["poddisruptionbudgets", "poddisruptionbudgets/status"], &READ),
        rule(&["networking.k8s.io"], &["ingresses", "ingresses/status", "networkpolicies"], &READ),
        rule(&["resource.k8s.io"], &["resourceclaims", "resourceclaims/status", "resourceclaimtemplates"], &READ),
        rule(&ISTIO_GROUPS, &["*"], &READ),
    ];
    let edit = vec![
        rule(&[""], &INTO_PODS, &READ),
        rule(&[""], &["serviceaccounts"], &["impersonate"]),
        rule(&[""], &["pods", "pods/portforward", "pods/proxy"], &WRITE),
        rule(&[""], &["pods/eviction"], &["create"]),
        rule(&[""], &EDITABLE, &WRITE),
        rule(&[""], &["serviceaccounts/token"], &["create"]),
        rule(&["", "events.k8s.io"], &["events"], &WRITE),
        rule(&["apps"], &RUN, &WRITE),
        rule(&["autoscaling"], &["horizontalpodautoscalers"], &WRITE),
        rule(&["batch"], &["cronjobs", "jobs"], &WRITE),
        rule(&["extensions"], &EXTENSIONS_RUN, &WRITE),
        rule(&["policy"], &["poddisruptionbudgets"], &WRITE),
        rule(&["networking.k8s.io"], &["ingresses", "networkpolicies"], &WRITE),
        rule(&["coordination.k8s.io"], &["leases"], &ALL),
        rule(&["resource.k8s.io"], &["resourceclaims", "resourceclaimtemplates"], &WRITE),
        rule(&ISTIO_GROUPS, &["*"], &WRITE),
    ];
    let admin = vec![
        rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
        rule(&[API_GROUP], &["rolebindings", "roles"], &ALL),
    ];
    vec![
        ("cluster-admin", vec![rule(&["*"], &["*"], &["*"]), json!({ "nonResourceURLs": ["*"], "verbs": ["*"] })]),
        ("admin", Vec::new()),
        ("edit", Vec::new()),
        ("view", Vec::new()),
        ("system:aggregate-to-admin", admin),
        ("system:aggregate-to-edit", edit),
        ("system:aggregate-to-view", view),
        (
            "system:discovery",
            vec![paths(&[
                "/api",
                "/api/*",
                "/apis",
                "/apis/*",
                "/healthz",
                "/livez",
                "/openapi",
                "/openapi/*",
                "/readyz",
                "/version",
                "/version/",
            ])],
        ),
        (
            "system:basic-user",
            vec![
                rule(&["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], &["create"]),
                rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
            ],
        ),
        ("system:public-info-viewer", vec![paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"])]),
        (
            "system:service-account-issuer-discovery",
            vec![paths(&[
                "/.well-known/openid-configuration",
                "/.well-known/openid-configuration/",
                "/openid/v1/jwks",
                "/openid/v1/jwks/",
            ])],
        ),
        (
            "system:auth-delegator",
            vec![
                rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
                rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
            ],
        ),
    ]
}
