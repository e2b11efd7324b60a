//! The texts of cluster.env and mesh.yaml for one WorkloadGroup.
//!
//! Invariant: pure; keys are sorted, values of cluster.env quoted as a shell wants them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// What is known besides the group.
pub(super) struct Facts {
    /// The mesh's configuration; null where nobody wrote one.
    pub mesh: Value,
    /// What the cluster is called.
    pub cluster: String,
    /// Whether the entry is made when the machine connects.
    pub autoregister: bool,
    /// Whether names are resolved on the machine.
    pub capture_dns: bool,
    /// The machine's address, if it was told.
    pub ip: Option<IpAddr>,
    /// The control plane's name.
    pub server: String,
}

/// The texts, and whom they are for.
#[derive(Debug)]
pub(super) struct Written {
    pub namespace: String,
    pub service_account: String,
    pub cluster_env: String,
    pub mesh_yaml: String,
}

/// Writes them.
pub(super) fn of(group: &Value, facts: &Facts) -> Result<Written> {
    let text = |path: &str| group.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
    let name = text("/metadata/name").context("the WorkloadGroup has no name")?;
    let namespace = text("/metadata/namespace").context("the WorkloadGroup has no namespace: give one with -n")?;
    let account = text("/spec/template/serviceAccount").unwrap_or("default");
    let mut labels = map(group.pointer("/spec/template/labels"));
    labels.extend(map(group.pointer("/spec/metadata/labels")));
    let first = |keys: [&str; 3]| keys.iter().find_map(|key| labels.get(*key)).cloned();
    let service = first(["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]);
    let service = service.unwrap_or_else(|| name.to_owned());
    let revision = first(["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]);
    let revision = revision.unwrap_or_else(|| "latest".to_owned());
    labels.insert("service.istio.io/canonical-name".into(), service.clone());
    labels.insert("service.istio.io/canonical-revision".into(), revision.clone());
    let of_mesh = |path: &str| facts.mesh.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
    let trust_domain = of_mesh("/trustDomain").unwrap_or("cluster.local");
    let network = text("/spec/template/network").unwrap_or_default();

    let mut metadata: BTreeMap<String, String> = [
        ("CANONICAL_REVISION", revision),
        ("CANONICAL_SERVICE", service),
        ("ISTIO_METAJSON_LABELS", serde_json::to_string(&labels)?),
        ("ISTIO_META_CLUSTER_ID", facts.cluster.clone()),
        ("ISTIO_META_MESH_ID", of_mesh("/defaultConfig/meshId").unwrap_or(trust_domain).to_owned()),
        ("ISTIO_META_NETWORK", network.to_owned()),
        ("ISTIO_META_WORKLOAD_NAME", name.to_owned()),
        ("POD_NAMESPACE", namespace.to_owned()),
        ("SERVICE_ACCOUNT", account.to_owned()),
        ("TRUST_DOMAIN", trust_domain.to_owned()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    metadata.extend(map(facts.mesh.pointer("/defaultConfig/proxyMetadata")));
    if facts.autoregister {
        metadata.insert("ISTIO_META_AUTO_REGISTER_GROUP".into(), name.into());
    }
    if facts.capture_dns {
        metadata.insert("ISTIO_META_DNS_CAPTURE".into(), "true".into());
    }

    let address = format!("{}:15012", facts.server);
    let mut config = facts.mesh.pointer("/defaultConfig").and_then(Value::as_object).cloned().unwrap_or_default();
    config.insert("discoveryAddress".into(), json!(address));
    config.insert("proxyMetadata".into(), json!(metadata));
    if let Some(probe) = group.pointer("/spec/probe").filter(|probe| !probe.is_null()) {
        config.insert("readinessProbe".into(), probe.clone());
    }
    let mesh_yaml = serde_saphyr::to_string(&json!({"defaultConfig": Value::Object(sorted(config))}))?;

    let mut env = metadata;
    let ports: Vec<String> = group
        .pointer("/spec/template/ports")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(_, port)| port.to_string())
        .collect();
    for (key, value) in [
        ("CA_ADDR", address),
        ("ISTIO_INBOUND_PORTS", if ports.is_empty() { "*".to_owned() } else { ports.join(",") }),
        ("ISTIO_LOCAL_EXCLUDE_PORTS", "22,15090,15021,15020".to_owned()),
        ("ISTIO_NAMESPACE", namespace.to_owned()),
        ("ISTIO_SERVICE", format!("{name}.{namespace}")),
        ("ISTIO_SERVICE_CIDR", "*".to_owned()),
        ("ISTIO_SVC_IP", facts.ip.map(|ip| ip.to_string()).unwrap_or_default()),
    ] {
        env.insert(key.to_owned(), value);
    }
    if facts.ip.is_none() {
        env.remove("ISTIO_SVC_IP");
    }
    let quoted = |value: &str| value.replace('\'', r"'\''");
    let cluster_env = env.iter().map(|(key, value)| format!("{key}='{}'\n", quoted(value))).collect();
    Ok(Written { namespace: namespace.into(), service_account: account.into(), cluster_env, mesh_yaml })
}

fn sorted(map: Map<String, Value>) -> Map<String, Value> {
    let sorted: BTreeMap<String, Value> = map.into_iter().collect();
    sorted.into_iter().collect()
}

fn map(value: Option<&Value>) -> BTreeMap<String, String> {
    let fields = value.and_then(Value::as_object).into_iter().flatten();
    fields.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            mesh: json!({"trustDomain": "td", "defaultConfig": {"concurrency": 1, "proxyMetadata": {"A": "it's"}}}),
            cluster: "Kubernetes".into(),
            autoregister: true,
            capture_dns: true,
            ip: Some("192.0.2.7".parse().unwrap()),
            server: "istiod.istio-system.svc".into(),
        }
    }

    #[test]
    fn the_files_of_a_group() {
        let group = json!({
            "metadata": {"name": "ledger", "namespace": "gopay"},
            "spec": {
                "metadata": {"labels": {"app": "books", "version": "v3"}},
                "template": {"serviceAccount": "sa", "ports": {"grpc": 8082, "http": 8080}, "network": "dc"},
                "probe": {"httpGet": {"port": 8080}},
            },
        });
        let written = of(&group, &facts()).unwrap();
        let keys: Vec<&str> = written.cluster_env.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        assert_eq!(
            keys,
            [
                "A",
                "CANONICAL_REVISION",
                "CANONICAL_SERVICE",
                "CA_ADDR",
                "ISTIO_INBOUND_PORTS",
                "ISTIO_LOCAL_EXCLUDE_PORTS",
                "ISTIO_METAJSON_LABELS",
                "ISTIO_META_AUTO_REGISTER_GROUP",
                "ISTIO_META_CLUSTER_ID",
                "ISTIO_META_DNS_CAPTURE",
                "ISTIO_META_MESH_ID",
                "ISTIO_META_NETWORK",
                "ISTIO_META_WORKLOAD_NAME",
                "ISTIO_NAMESPACE",
                "ISTIO_SERVICE",
                "ISTIO_SERVICE_CIDR",
                "ISTIO_SVC_IP",
                "POD_NAMESPACE",
                "SERVICE_ACCOUNT",
                "TRUST_DOMAIN",
            ],
            "those of Istio, sorted, and the mesh's own"
        );
        for line in [
            r"A='it'\''s'",
            "CANONICAL_SERVICE='books'",
            "CANONICAL_REVISION='v3'",
            "ISTIO_INBOUND_PORTS='8082,8080'",
            "ISTIO_META_AUTO_REGISTER_GROUP='ledger'",
            "ISTIO_SVC_IP='192.0.2.7'",
            "TRUST_DOMAIN='td'",
            "ISTIO_META_NETWORK='dc'",
            "ISTIO_SERVICE='ledger.gopay'",
            "SERVICE_ACCOUNT='sa'",
            "CA_ADDR='istiod.istio-system.svc:15012'",
        ] {
            assert!(written.cluster_env.lines().any(|l| l == line), "{line} in\n{}", written.cluster_env);
        }
        let mesh: Value = serde_saphyr::from_str(&written.mesh_yaml).unwrap();
        let config = &mesh["defaultConfig"];
        assert_eq!(config["discoveryAddress"], "istiod.istio-system.svc:15012");
        assert_eq!(
            (&config["readinessProbe"], &config["concurrency"]),
            (&json!({"httpGet": {"port": 8080}}), &json!(1))
        );
        assert_eq!(config["proxyMetadata"]["ISTIO_META_DNS_CAPTURE"], "true");
        let bare = json!({"metadata": {"name": "g", "namespace": "n"}, "spec": {"template": {}}});
        let facts = Facts { mesh: Value::Null, autoregister: false, capture_dns: false, ip: None, ..facts() };
        let written = of(&bare, &facts).unwrap();
        assert!(written.cluster_env.contains("ISTIO_INBOUND_PORTS='*'\n") && !written.cluster_env.contains("SVC_IP"));
        assert!(!written.cluster_env.contains("AUTO_REGISTER") && !written.cluster_env.contains("DNS_CAPTURE"));
        assert!(of(&json!({"metadata": {"name": "g"}}), &facts).is_err());
    }
}
