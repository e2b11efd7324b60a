//! The roles and bindings that every cluster has.
//!
//! Invariant: anonymous users may learn only that the server lives and which version it is; authenticated ones may also
//! discover the API and ask about themselves. Istio's kinds are part of `view`, `edit` and `admin`, since here they are
//! not added by anybody later.

use serde_json::{Value, json};

const ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
const BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";
const API_GROUP: &str = "rbac.authorization.k8s.io";

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];
const ISTIO_GROUPS: [&str; 5] = [
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "authentication.istio.io",
];

/// What `view` may read; secrets are not among it.
const VIEWABLE: [&str; 11] = [
    "configmaps",
    "endpoints",
    "events",
    "namespaces",
    "namespaces/status",
    "pods",
    "pods/log",
    "pods/status",
    "serviceaccounts",
    "services",
    "services/status",
];
/// What `view` may read of applications.
const APPLICATIONS: [&str; 11] = [
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
const RUN: [&str; 7] = [
    "daemonsets",
    "deployments",
    "deployments/scale",
    "replicasets",
    "replicasets/scale",
    "statefulsets",
    "statefulsets/scale",
];
/// Work that ends.
const WORK: [&str; 4] = ["cronjobs", "cronjobs/status", "jobs", "jobs/status"];
/// Ways into pods; who reads alone has none of them. `pods/exec` and `pods/attach` are not among them: a process that is run as a pod has the
/// machine's files, and whoever may start another beside it, or type into it, is as good as root there.
const INTO_PODS: [&str; 1] = ["pods/portforward"];
/// What `view` may read of what is kept and not acted on.
const KEPT: [&str; 7] = [
    "limitranges",
    "persistentvolumeclaims",
    "persistentvolumeclaims/status",
    "replicationcontrollers",
    "replicationcontrollers/status",
    "resourcequotas",
    "resourcequotas/status",
];
/// What `edit` may also write.
const EDITABLE: [&str; 6] = ["configmaps", "endpoints", "pods", "secrets", "serviceaccounts", "services"];

/// The default roles and bindings, to be created where missing: resource and object.
pub fn default_objects() -> Vec<(&'static str, Value)> {
    let mut objects = Vec::new();
    for (name, rules) in roles() {
        objects.push((ROLES, json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": meta(name), "rules": rules })));
    }
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
        rule(&["apps"], &APPLICATIONS, &READ),
        rule(&["batch"], &WORK, &READ),
        rule(&["autoscaling"], &["horizontalpodautoscalers", "horizontalpodautoscalers/status"], &READ),
        rule(&["policy"], &["poddisruptionbudgets", "poddisruptionbudgets/status"], &READ),
        rule(&["networking.k8s.io"], &["ingresses", "ingresses/status", "networkpolicies"], &READ),
        rule(&[""], &KEPT, &READ),
        rule(&["apps"], &["controllerrevisions"], &READ),
        rule(&["discovery.k8s.io"], &["endpointslices"], &READ),
        rule(&["events.k8s.io"], &["events"], &READ),
        rule(&ISTIO_GROUPS, &["*"], &READ),
    ];
    let mut edit = view.clone();
    edit.push(rule(&[""], &EDITABLE, &WRITE));
    edit.push(rule(&[""], &INTO_PODS, &[&READ[..], &WRITE[..]].concat()));
    edit.push(rule(&["apps"], &RUN, &WRITE));
    edit.push(rule(&["batch"], &["cronjobs", "jobs"], &WRITE));
    edit.push(rule(&["autoscaling"], &["horizontalpodautoscalers"], &WRITE));
    edit.push(rule(&["policy"], &["poddisruptionbudgets"], &WRITE));
    edit.push(rule(&["networking.k8s.io"], &["ingresses", "networkpolicies"], &WRITE));
    edit.push(rule(&[""], &["persistentvolumeclaims", "replicationcontrollers"], &WRITE));
    edit.push(rule(&[""], &["pods/eviction"], &["create"]));
    edit.push(rule(&[""], &["secrets"], &READ));
    edit.push(rule(&[""], &["serviceaccounts"], &["impersonate"]));
    edit.push(rule(&[""], &["serviceaccounts/token"], &["create"]));
    edit.push(rule(&["coordination.k8s.io"], &["leases"], &[&READ[..], &WRITE[..]].concat()));
    edit.push(rule(&ISTIO_GROUPS, &["*"], &WRITE));
    let mut admin = edit.clone();
    admin.push(rule(&[API_GROUP], &["roles", "rolebindings"], &[&READ[..], &WRITE[..]].concat()));
    admin.push(rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]));
    vec![
        ("cluster-admin", vec![rule(&["*"], &["*"], &["*"]), json!({ "nonResourceURLs": ["*"], "verbs": ["*"] })]),
        ("admin", admin),
        ("edit", edit),
        ("view", view),
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
