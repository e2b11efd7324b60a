//! Istio's onboarding files, read (spec §11.9): cluster.env, mesh.yaml, hosts. They are written by `x workload entry configure`, ours or Istio's.
//!
//! Invariant: a variable counts as Istio's agent reads it; what names the control plane is resolved by the folder's own `hosts`, so that the
//! machine's file of that name is left alone.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, ensure};
use carrick_pod::machine::Machine;
use serde_json::{Map, Value};

use super::read;

/// The name of Istio's control plane.
const SERVER: &str = "istiod.istio-system.svc";

/// A machine as the folder describes it, over what it was before.
pub(super) fn read_folder(folder: &Path, before: Machine) -> Result<Machine> {
    let env = variables(&read(&folder.join("cluster.env"))?).context("cluster.env")?;
    let mesh = folder.join("mesh.yaml");
    let mesh: Value =
        if mesh.exists() { serde_saphyr::from_str(&read(&mesh)?).context("mesh.yaml")? } else { Value::Null };
    let hosts = folder.join("hosts");
    let hosts = if hosts.exists() { read(&hosts)? } else { String::new() };
    let mut config = mesh.get("defaultConfig").and_then(Value::as_object).cloned().unwrap_or_default();
    describe(&env, &mut config, &hosts, before)
}

fn describe(
    env: &BTreeMap<String, String>,
    config: &mut Map<String, Value>,
    hosts: &str,
    mut machine: Machine,
) -> Result<Machine> {
    let text = |keys: &[&str]| keys.iter().find_map(|key| env.get(*key).filter(|v| !v.is_empty())).cloned();
    machine.namespace = text(&["POD_NAMESPACE", "ISTIO_NAMESPACE"]).context("cluster.env names no POD_NAMESPACE")?;
    machine.service_account = text(&["SERVICE_ACCOUNT"]).unwrap_or_else(|| "default".into());
    machine.group = text(&["ISTIO_META_AUTO_REGISTER_GROUP"]).unwrap_or_default();
    let service = || text(&["ISTIO_SERVICE"])?.split_once('.').map(|(name, _)| name.to_owned());
    machine.name = text(&["POD_NAME", "ISTIO_META_WORKLOAD_NAME"]).or_else(service).unwrap_or_else(|| "machine".into());
    machine.trust_domain = text(&["TRUST_DOMAIN"]).unwrap_or_else(|| "cluster.local".into());
    machine.cluster = text(&["ISTIO_META_CLUSTER_ID"]).unwrap_or_else(|| "Kubernetes".into());
    machine.network = text(&["ISTIO_META_NETWORK"]).unwrap_or_default();
    if let Some(ip) = text(&["ISTIO_SVC_IP"]) {
        machine.ip = Some(ip.parse().with_context(|| format!("ISTIO_SVC_IP {ip:?} is no address"))?);
    }
    if let Some(labels) = text(&["ISTIO_METAJSON_LABELS"]) {
        machine.labels = serde_json::from_str(&labels).context("ISTIO_METAJSON_LABELS")?;
    }
    for (label, key) in [
        ("service.istio.io/canonical-name", "CANONICAL_SERVICE"),
        ("service.istio.io/canonical-revision", "CANONICAL_REVISION"),
    ] {
        if let Some(value) = text(&[key]) {
            machine.labels.entry(label.to_owned()).or_insert(value);
        }
    }
    machine.captured.names = text(&["ISTIO_META_DNS_CAPTURE"]).is_some_and(|value| value == "true");
    inbound(env, &mut machine)?;
    machine.probe = config.remove("readinessProbe").unwrap_or_default();
    let told = config.get("discoveryAddress").and_then(Value::as_str).map(str::to_owned);
    let address = text(&["CA_ADDR"]).or(told).unwrap_or_else(|| format!("{SERVER}:15012"));
    let (host, port) = address.rsplit_once(':').with_context(|| format!("{address:?} is no host:port"))?;
    machine.server_name = host.to_owned();
    machine.server = resolved(hosts, host).map_or(address.clone(), |ip| format!("{ip}:{port}"));
    config.remove("discoveryAddress");
    machine.proxy_config = Value::Object(std::mem::take(config));
    Ok(machine)
}

/// Ports of the workload, or all of them.
fn inbound(env: &BTreeMap<String, String>, machine: &mut Machine) -> Result<()> {
    let ports = |key: &str| -> Result<Vec<u16>> {
        let text = env.get(key).map_or("", String::as_str);
        let all = text.split(',').map(str::trim).filter(|port| !port.is_empty());
        all.map(|port| port.parse().with_context(|| format!("{key}: {port:?} is no port"))).collect()
    };
    if let Some(text) = env.get("ISTIO_INBOUND_PORTS") {
        machine.captured.all_inbound = text == "*";
        if !machine.captured.all_inbound {
            machine.ports =
                ports("ISTIO_INBOUND_PORTS")?.into_iter().map(|port| (format!("port-{port}"), port)).collect();
        }
    }
    machine.captured.exclude_inbound.extend(ports("ISTIO_LOCAL_EXCLUDE_PORTS")?);
    Ok(())
}

/// `KEY='value'` lines, as a shell reads them.
fn variables(text: &str) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (key, value) = line.split_once('=').with_context(|| format!("{line:?} is not KEY=VALUE"))?;
        let quoted = |quote| value.strip_prefix(quote).and_then(|inner| inner.strip_suffix(quote));
        let value = match quoted('\'') {
            Some(inner) => inner.replace(r"'\''", "'"),
            None => quoted('"').unwrap_or(value).to_owned(),
        };
        ensure!(!key.is_empty() && !key.contains(char::is_whitespace), "{line:?} is not KEY=VALUE");
        all.insert(key.to_owned(), value);
    }
    Ok(all)
}

/// The address of a name in a text like `/etc/hosts`.
fn resolved(hosts: &str, name: &str) -> Option<std::net::IpAddr> {
    hosts.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let ip = words.next()?.parse().ok()?;
        words.any(|word| word == name).then_some(ip)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ENV: &str = "CANONICAL_REVISION='latest'\nCANONICAL_SERVICE='ledger'\nISTIO_INBOUND_PORTS='8080,8082'\n\
        ISTIO_LOCAL_EXCLUDE_PORTS='22,15090'\nISTIO_METAJSON_LABELS='{\"app\":\"ledger\"}'\nISTIO_META_DNS_CAPTURE='true'\n\
        ISTIO_META_AUTO_REGISTER_GROUP='ledger'\nISTIO_META_CLUSTER_ID='Kubernetes'\nISTIO_META_WORKLOAD_NAME='ledger'\n\
        ISTIO_SVC_IP='192.0.2.7'\nPOD_NAMESPACE='gopay'\nSERVICE_ACCOUNT='books'\nTRUST_DOMAIN='cluster.local'\n";

    #[test]
    fn istios_files_describe_a_machine() {
        let mut config = json!({"discoveryAddress": "istiod.istio-system.svc:15012", "readinessProbe": {"tcpSocket": {"port": 8080}}, "concurrency": 1});
        let config = config.as_object_mut().unwrap();
        let env = variables(ENV).unwrap();
        let read = describe(&env, config, "192.0.2.1 istiod.istio-system.svc\n", Machine::default()).unwrap();
        assert_eq!(
            (read.namespace.as_str(), read.service_account.as_str(), read.group.as_str()),
            ("gopay", "books", "ledger")
        );
        assert_eq!((read.server.as_str(), read.server_name.as_str()), ("192.0.2.1:15012", "istiod.istio-system.svc"));
        assert_eq!(read.ip.map(|ip| ip.to_string()).as_deref(), Some("192.0.2.7"));
        assert_eq!(read.ports.values().copied().collect::<Vec<_>>(), [8080, 8082]);
        assert_eq!(read.labels["app"], "ledger");
        assert_eq!(read.labels["service.istio.io/canonical-name"], "ledger");
        assert_eq!(
            (&read.probe, &read.proxy_config),
            (&json!({"tcpSocket": {"port": 8080}}), &json!({"concurrency": 1}))
        );
        assert!(read.captured.names && !read.captured.all_inbound);
        let all = variables("POD_NAMESPACE=a\nISTIO_INBOUND_PORTS='*'\n").unwrap();
        let read = describe(&all, &mut Map::new(), "", Machine::default()).unwrap();
        assert!(read.captured.all_inbound && read.captured.exclude_inbound.contains(&22), "ssh stays as it is");
        assert_eq!(read.server, "istiod.istio-system.svc:15012");
        assert!(describe(&BTreeMap::new(), &mut Map::new(), "", Machine::default()).is_err());
        assert_eq!(variables(r"A='it'\''s'").unwrap()["A"], "it's");
        assert!(variables("nonsense").is_err());
    }
}
