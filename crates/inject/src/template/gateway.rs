//! The template of a pod that is nothing but a proxy, for others to connect to.
//!
//! Invariant: nothing is captured, and ports below 1024 may be listened on without a capability.

use serde_json::{Map, Value, json};

use super::parts::{self, var};
use super::{Context, fields};

const VOLUMES: parts::Volumes =
    parts::Volumes { credential_socket: true, crl: false, shared: "istio-envoy", written_out: true, bootstrap: true };

pub(super) fn render(context: &Context<'_>) -> Value {
    let values = context.values;
    let mut annotations = Map::new();
    annotations.insert("istio.io/rev".to_owned(), parts::revision(context));
    parts::default_container(context, &mut annotations);
    let security = values.object("gateways.securityContext").cloned().map(Value::Object);
    let low_ports = || json!({ "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "0" }] });
    json!({
        "metadata": {
            "labels": {
                "service.istio.io/canonical-name": context.canonical_name(),
                "service.istio.io/canonical-revision": context.canonical_revision(),
            },
            "annotations": annotations,
        },
        "spec": fields([
            ("securityContext", Some(security.unwrap_or_else(low_ports))),
            ("containers", Some(json!([proxy(context)]))),
            ("volumes", Some(Value::Array(parts::volumes(context, VOLUMES)))),
            ("imagePullSecrets", parts::pull_secrets(context)),
        ]),
    })
}

fn proxy(context: &Context<'_>) -> Value {
    let lifecycle = context.values.object("global.proxy.lifecycle").cloned().map(Value::Object);
    fields([
        ("name", Some(crate::CONTAINER_NAME.into())),
        ("image", Some(parts::proxy_image(context).into())),
        ("ports", Some(json!([{ "containerPort": 15090, "protocol": "TCP", "name": "http-envoy-prom" }]))),
        ("args", Some(Value::Array(parts::proxy_args(context, "router")))),
        ("lifecycle", lifecycle),
        ("securityContext", Some(json!({ "runAsUser": context.uid, "runAsGroup": context.gid }))),
        ("env", Some(Value::Array(environment(context)))),
        ("imagePullPolicy", parts::pull_policy(context)),
        ("readinessProbe", Some(parts::readiness(context, 15021, false))),
        ("volumeMounts", Some(Value::Array(parts::mounts(context, VOLUMES)))),
    ])
}

fn environment(context: &Context<'_>) -> Vec<Value> {
    let mut env = parts::identity(context);
    env.push(parts::limit("ISTIO_CPU_LIMIT", "limits.cpu"));
    env.push(parts::proxy_config(context));
    env.push(parts::pod_ports(context));
    env.push(parts::limit("GOMEMLIMIT", "limits.memory"));
    env.extend(parts::compliance(context));
    env.push(parts::app_containers(context));
    env.push(parts::cluster(context));
    env.push(parts::field("ISTIO_META_NODE_NAME", "spec.nodeName"));
    env.push(var("ISTIO_META_INTERCEPTION_MODE", context.mesh_interception()));
    env.extend(parts::network(context));
    env.extend(parts::workload(context, &context.owner.name));
    env.extend(parts::bootstrap(context));
    env.extend(parts::mesh(context));
    env.extend(parts::metadata(context));
    env
}
