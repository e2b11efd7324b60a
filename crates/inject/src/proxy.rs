//! The `istio-proxy` container as the pod's object shows it.
//!
//! Invariant: it says only what is true of a pod that `carrick run` starts: the ports that are open, the user it runs as,
//! the probe that decides readiness, and the environment that is set. No image is pulled and no limits are enforced, so
//! none are claimed. Source: spec §16.4.

use serde_json::{Value, json};

use crate::PROXY_UID;

/// The container's name.
pub const CONTAINER_NAME: &str = "istio-proxy";

/// What the container depends on.
#[derive(Debug, Clone, Copy)]
pub struct ProxyFacts<'a> {
    /// The pod's only container, for others to connect to.
    pub gateway: bool,
    pub namespace: &'a str,
    /// DNS suffix of the cluster.
    pub domain_suffix: &'a str,
    /// What is shown as image, e.g. `carrick-proxy:0.1.0` or `envoy:1.40.0`.
    pub image: &'a str,
    /// Address of the control plane, host and port.
    pub ca_address: &'a str,
    pub trust_domain: &'a str,
    pub cluster_id: &'a str,
    pub mesh_id: &'a str,
    /// Name of the deployment or of what else owns the pod; the pod's own name when nothing does.
    pub workload_name: &'a str,
    /// `kubernetes://apis/…` of the owner.
    pub owner: &'a str,
    /// Containers of the application.
    pub containers: &'a [String],
    /// Declared ports: name (may be empty) and number.
    pub ports: &'a [(String, u16)],
    /// Value of the annotation `proxy.istio.io/config` as JSON, if any.
    pub proxy_config: Option<&'a Value>,
    /// `REDIRECT`, `TPROXY` or `NONE`.
    pub interception: &'a str,
}

/// The entry of `spec.containers`.
pub fn container(facts: &ProxyFacts<'_>) -> Value {
    let args = json!([
        "proxy",
        if facts.gateway { "router" } else { "sidecar" },
        "--domain",
        format!("$(POD_NAMESPACE).svc.{}", facts.domain_suffix),
        "--proxyLogLevel=warning",
        "--proxyComponentLogLevel=misc:error",
        "--log_output_level=default:info",
    ]);
    let mut ports = if facts.gateway { declared(facts) } else { Vec::new() };
    ports.push(json!({ "name": "http-envoy-prom", "containerPort": 15090, "protocol": "TCP" }));
    let mut security = json!({
        "allowPrivilegeEscalation": false,
        "privileged": false,
        "runAsGroup": PROXY_UID,
        "runAsNonRoot": true,
        "runAsUser": PROXY_UID,
    });
    if facts.interception == "TPROXY" {
        security["capabilities"] = json!({ "add": ["NET_ADMIN"] });
    }
    json!({
        "name": CONTAINER_NAME,
        "image": facts.image,
        "args": args,
        "env": environment(facts),
        "ports": ports,
        "readinessProbe": {
            "httpGet": { "path": "/healthz/ready", "port": 15021, "scheme": "HTTP" },
            "periodSeconds": 15,
            "timeoutSeconds": 3,
            "failureThreshold": 4,
            "successThreshold": 1,
        },
        "securityContext": security,
    })
}

/// The declared ports, as a container's.
fn declared(facts: &ProxyFacts<'_>) -> Vec<Value> {
    let port = |(name, port): &(String, u16)| match name.as_str() {
        "" => json!({ "containerPort": port, "protocol": "TCP" }),
        name => json!({ "name": name, "containerPort": port, "protocol": "TCP" }),
    };
    facts.ports.iter().map(port).collect()
}

fn environment(facts: &ProxyFacts<'_>) -> Value {
    let plain = |name: &str, value: &str| json!({ "name": name, "value": value });
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": path } } });
    let proxy_config = facts.proxy_config.cloned().unwrap_or_else(|| json!({}));
    let mut env = vec![
        plain("PILOT_CERT_PROVIDER", "istiod"),
        plain("CA_ADDR", facts.ca_address),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("HOST_IP", "status.hostIP"),
        plain("PROXY_CONFIG", &proxy_config.to_string()),
        plain("ISTIO_META_POD_PORTS", &Value::from(declared(facts)).to_string()),
        plain("ISTIO_META_APP_CONTAINERS", &facts.containers.join(",")),
        plain("ISTIO_META_CLUSTER_ID", facts.cluster_id),
        field("ISTIO_META_NODE_NAME", "spec.nodeName"),
        plain("ISTIO_META_INTERCEPTION_MODE", facts.interception),
        plain("ISTIO_META_WORKLOAD_NAME", facts.workload_name),
    ];
    if !facts.owner.is_empty() {
        env.push(plain("ISTIO_META_OWNER", facts.owner));
    }
    if !facts.mesh_id.is_empty() {
        env.push(plain("ISTIO_META_MESH_ID", facts.mesh_id));
    }
    env.push(plain("TRUST_DOMAIN", facts.trust_domain));
    for (name, value) in proxy_config.get("proxyMetadata").and_then(Value::as_object).into_iter().flatten() {
        env.push(plain(name, value.as_str().unwrap_or_default()));
    }
    Value::Array(env)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_a_valid_pod_container() {
        let config = json!({ "proxyMetadata": { "ISTIO_META_X": "1" } });
        let facts = ProxyFacts {
            gateway: false,
            namespace: "shop",
            domain_suffix: "cluster.local",
            image: "carrick-proxy:test",
            ca_address: "istiod.istio-system.svc:15012",
            trust_domain: "cluster.local",
            cluster_id: "Kubernetes",
            mesh_id: "cluster.local",
            workload_name: "web",
            owner: "kubernetes://apis/apps/v1/namespaces/shop/deployments/web",
            containers: &["web".to_owned()],
            ports: &[("http".to_owned(), 8080), (String::new(), 9090)],
            proxy_config: Some(&config),
            interception: "REDIRECT",
        };
        let container = container(&facts);
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" }, "spec": { "containers": [container] } });
        let schema = carrick_api::kinds::registry().by_kind("", "Pod").unwrap().schema("v1");
        assert_eq!(schema.check(&pod), []);
        let env = pod.pointer("/spec/containers/0/env").and_then(Value::as_array).unwrap();
        let value = |name: &str| env.iter().find(|e| e["name"] == name).map(|e| e["value"].clone());
        assert_eq!(
            value("ISTIO_META_POD_PORTS"),
            Some(
                r#"[{"name":"http","containerPort":8080,"protocol":"TCP"},{"containerPort":9090,"protocol":"TCP"}]"#
                    .into()
            )
        );
        assert_eq!(value("ISTIO_META_X"), Some("1".into()));
    }
}
