//! The templates of pods that are proxies themselves: gRPC libraries that speak xDS, with an agent beside them or without.
//!
//! Invariant: traffic is not captured and probes are left alone; only the application's environment and mounts change.

use serde_json::{Map, Value, json};

use super::parts::{self, var};
use super::sidecar::parts_of_localhost;
use super::{Context, fields};

const VOLUMES: parts::Volumes =
    parts::Volumes { credential_socket: false, crl: false, shared: "istio-xds", written_out: false, bootstrap: false };
const REWRITE: &str = "sidecar.istio.io/rewriteAppHTTPProbers";

pub(super) fn agent(context: &Context<'_>) -> Result<Value, String> {
    let mut annotations = Map::new();
    annotations.insert("istio.io/rev".to_owned(), parts::revision(context));
    parts::default_container(context, &mut annotations);
    annotations.insert(REWRITE.to_owned(), "false".into());
    let mut containers = vec![proxy(context)?];
    for name in context.containers() {
        containers.push(json!({
            "name": name,
            "env": [
                var("GRPC_XDS_EXPERIMENTAL_SECURITY_SUPPORT", "true"),
                var("GRPC_XDS_BOOTSTRAP", "/etc/istio/proxy/grpc-bootstrap.json"),
            ],
            "volumeMounts": [
                { "name": "istio-data", "mountPath": "/var/lib/istio/data" },
                { "name": "istio-xds", "mountPath": "/etc/istio/proxy" },
                parts::certificates_mount(context),
            ],
        }));
    }
    let mut volumes = parts::volumes(context, VOLUMES);
    volumes.extend(parts::user_entries(context, "sidecar.istio.io/userVolume")?);
    Ok(json!({
        "metadata": {
            "labels": {
                "service.istio.io/canonical-name": context.canonical_name(),
                "service.istio.io/canonical-revision": context.canonical_revision(),
            },
            "annotations": annotations,
        },
        "spec": fields([
            ("containers", Some(Value::Array(containers))),
            ("volumes", Some(Value::Array(volumes))),
            ("imagePullSecrets", parts::pull_secrets(context)),
        ]),
    }))
}

fn proxy(context: &Context<'_>) -> Result<Value, String> {
    let probed = context.annotation("status.sidecar.istio.io/port", "global.proxy.statusPort") != "0";
    let wait = json!(["pilot-agent", "wait", "--url=http://localhost:15020/healthz/ready"]);
    let mut mounts = if probed { parts::mounts(context, VOLUMES) } else { Vec::new() };
    mounts.extend(parts::user_entries(context, "sidecar.istio.io/userVolumeMount")?);
    Ok(fields([
        ("name", Some(crate::CONTAINER_NAME.into())),
        ("image", Some(parts::proxy_image(context).into())),
        ("ports", Some(json!([{ "containerPort": 15020, "protocol": "TCP", "name": "mesh-metrics" }]))),
        ("args", Some(Value::Array(parts::proxy_args(context, "sidecar")))),
        ("lifecycle", Some(json!({ "postStart": { "exec": { "command": wait } } }))),
        ("env", Some(Value::Array(environment(context)))),
        ("imagePullPolicy", parts::pull_policy(context)),
        ("readinessProbe", probed.then(|| parts::readiness(context, 15020, true))),
        ("resources", probed.then(|| parts::resources(context))),
        ("volumeMounts", (!mounts.is_empty()).then_some(Value::Array(mounts))),
    ]))
}

fn environment(context: &Context<'_>) -> Vec<Value> {
    let mut env = vec![var("ISTIO_META_GENERATOR", "grpc"), var("OUTPUT_CERTS", "/var/lib/istio/data")];
    if parts_of_localhost(context) {
        env.push(var("REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION", "true"));
    }
    env.extend(parts::identity(context));
    env.push(parts::proxy_config(context));
    env.push(parts::pod_ports(context));
    env.push(parts::app_containers(context));
    env.push(parts::cluster(context));
    env.push(parts::field("ISTIO_META_NODE_NAME", "spec.nodeName"));
    env.extend(parts::network(context));
    env.extend(parts::workload(context, &context.owner.name));
    env.extend(parts::mesh(context));
    env.extend(parts::metadata(context));
    // The library resolves services by xDS; names need no address.
    env.push(var("ISTIO_META_DNS_CAPTURE", "false"));
    env.push(var("DISABLE_ENVOY", "true"));
    env
}

/// Writes the library's bootstrap file, from what the pod knows of itself.
const BOOTSTRAP: &str = r#"cat > /var/lib/grpc/data/bootstrap.json <<END
{
  "xds_servers": [
    {
      "server_uri": "dns:///istiod.${ISTIO_NAMESPACE}.svc:15010",
      "channel_creds": [{"type": "insecure"}],
      "server_features": ["xds_v3"]
    }
  ],
  "node": {
    "id": "sidecar~${INSTANCE_IP}~${POD_NAME}.${POD_NAMESPACE}~cluster.local",
    "metadata": {"GENERATOR": "grpc"}
  }
}
END"#;

pub(super) fn simple(context: &Context<'_>) -> Value {
    let mount = json!([{ "mountPath": "/var/lib/grpc/data/", "name": "grpc-io-proxyless-bootstrap" }]);
    let containers: Vec<Value> = context
        .all_containers()
        .iter()
        .filter_map(|container| container.get("name"))
        .map(|name| {
            json!({
                "name": name,
                "env": [
                    var("GRPC_XDS_BOOTSTRAP", "/var/lib/grpc/data/bootstrap.json"),
                    var("GRPC_GO_LOG_VERBOSITY_LEVEL", "99"),
                    var("GRPC_GO_LOG_SEVERITY_LEVEL", "info"),
                ],
                "volumeMounts": mount,
            })
        })
        .collect();
    json!({
        "metadata": { "annotations": { REWRITE: "false" } },
        "spec": {
            "initContainers": [{
                "name": "grpc-bootstrap-init",
                "image": "busybox:1.28",
                "volumeMounts": mount,
                "env": [
                    parts::field("INSTANCE_IP", "status.podIP"),
                    parts::field("POD_NAME", "metadata.name"),
                    parts::field("POD_NAMESPACE", "metadata.namespace"),
                    var("ISTIO_NAMESPACE", context.values.text("global.istioNamespace")),
                ],
                "command": ["sh", "-c", BOOTSTRAP],
            }],
            "containers": containers,
            "volumes": [{ "name": "grpc-io-proxyless-bootstrap", "emptyDir": {} }],
        },
    })
}
