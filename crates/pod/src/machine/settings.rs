//! What a machine knows of itself from joining on, and what follows from it: the sidecar's environment, and the rules.
//!
//! Invariant: pure, and complete: a machine that is switched on again needs nothing else but its key and certificate.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use carrick_capture::host::{HostCapture, Owners};
use carrick_capture::sidecar::InboundPorts;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::place::Folder;
use crate::PodError;

/// Where the agent answers questions of names.
const DNS: &str = "127.0.0.1:15053";

/// A machine of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Machine {
    /// What its proxy is called.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// The WorkloadGroup that its WorkloadEntry is made from; empty when it has one already.
    pub group: String,
    /// Its address.
    pub ip: Option<IpAddr>,
    /// Its network; empty for the mesh's own.
    pub network: String,
    /// `region/zone/subzone`; empty when nothing is known.
    pub locality: String,
    /// `host:port` of the control plane.
    pub server: String,
    /// The name in its certificate; empty for Istio's.
    pub server_name: String,
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// What the cluster is called.
    pub cluster: String,
    /// DNS domain of the cluster.
    pub domain: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Ports of its workload by name.
    pub ports: BTreeMap<String, u16>,
    /// How its health is found out, as the WorkloadGroup says; null for not at all.
    pub probe: Value,
    /// Further settings of its proxy, as Istio's `ProxyConfig` has them; null for none.
    pub proxy_config: Value,
    /// `native` or `envoy`.
    pub engine: String,
    /// What is captured.
    pub captured: Captured,
    /// More of the sidecar's environment.
    pub environment: BTreeMap<String, String>,
}

/// What is captured on a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Captured {
    /// Users whose outgoing connections are; with no user and no group everybody's but `except`'s.
    pub users: BTreeSet<u32>,
    /// Groups whose outgoing connections are.
    pub groups: BTreeSet<u32>,
    /// Users whose are not, where all others' are.
    pub except: BTreeSet<u32>,
    /// Every incoming port but those excluded, not only the declared ones.
    pub all_inbound: bool,
    /// Incoming ports left alone where all others are captured.
    pub exclude_inbound: BTreeSet<u16>,
    /// Outgoing ports left alone.
    pub exclude_ports: BTreeSet<u16>,
    /// Outgoing destinations left alone, as ranges.
    pub exclude_ranges: BTreeSet<String>,
    /// Whether names of the mesh are resolved.
    pub names: bool,
    /// User and group of the proxy.
    pub proxy_id: u32,
}

impl Default for Captured {
    fn default() -> Self {
        let rules = HostCapture::default();
        Captured {
            users: BTreeSet::new(),
            groups: BTreeSet::new(),
            except: BTreeSet::from([0]),
            all_inbound: false,
            exclude_inbound: rules.exclude_inbound_ports,
            exclude_ports: BTreeSet::new(),
            exclude_ranges: BTreeSet::new(),
            names: true,
            proxy_id: rules.proxy_id,
        }
    }
}

impl Machine {
    /// The rules, with the machine's name servers (none where names are not captured).
    ///
    /// # Errors
    /// A range that is none; the proxy's own user among the captured.
    pub fn capture(&self, name_servers: BTreeSet<IpAddr>) -> Result<HostCapture, PodError> {
        let captured = &self.captured;
        if captured.users.contains(&captured.proxy_id) || captured.groups.contains(&captured.proxy_id) {
            let id = captured.proxy_id;
            return Err(PodError::Request(format!("user and group {id} are the proxy's own: they cannot be captured")));
        }
        let range = |text: &String| {
            text.parse().map_err(|_| PodError::Request(format!("{text:?} is no address range such as 10.0.0.0/8")))
        };
        let owners = if captured.users.is_empty() && captured.groups.is_empty() {
            Owners::AllBut(captured.except.clone())
        } else {
            Owners::Only { users: captured.users.clone(), groups: captured.groups.clone() }
        };
        Ok(HostCapture {
            owners,
            inbound: if captured.all_inbound {
                InboundPorts::All
            } else {
                InboundPorts::Only(self.ports.values().copied().collect())
            },
            exclude_inbound_ports: captured.exclude_inbound.clone(),
            exclude_outbound_ranges: captured.exclude_ranges.iter().map(range).collect::<Result<_, _>>()?,
            exclude_outbound_ports: captured.exclude_ports.clone(),
            name_servers,
            proxy_id: captured.proxy_id,
            ..HostCapture::default()
        })
    }

    /// Its labels, with what the agent reads from them.
    pub(super) fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        if !self.locality.is_empty() {
            labels.insert("istio-locality".to_owned(), self.locality.replace('/', "."));
        }
        labels
    }

    /// The proxy's settings, with the probe among them where Istio has it.
    fn proxy_config(&self) -> Option<Value> {
        let mut config = self.proxy_config.as_object().cloned().unwrap_or_default();
        if !self.probe.is_null() {
            config.insert("readinessProbe".to_owned(), self.probe.clone());
        }
        (config != Map::new()).then_some(Value::Object(config))
    }
}

/// What the sidecar finds in its environment, and nothing else.
pub(super) fn environment(
    machine: &Machine,
    folder: &Folder,
    envoy: Option<&Path>,
) -> Result<Vec<(String, String)>, PodError> {
    let ip = machine.ip.ok_or_else(|| PodError::Request("the machine's address is not known: join again".into()))?;
    let text = |name: &str| folder.path(name).to_string_lossy().into_owned();
    let mut env: BTreeMap<String, String> = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("POD_NAME", machine.name.clone()),
        ("POD_NAMESPACE", machine.namespace.clone()),
        ("INSTANCE_IP", ip.to_string()),
        ("SERVICE_ACCOUNT", machine.service_account.clone()),
        ("DISCOVERY_ADDRESS", machine.server.clone()),
        ("CA_ADDR", machine.server.clone()),
        ("ISTIOD_SAN", machine.server_name.clone()),
        ("TRUST_DOMAIN", machine.trust_domain.clone()),
        ("CLUSTER_DOMAIN", machine.domain.clone()),
        ("CA_ROOT_CA", text("root-cert.pem")),
        ("XDS_ROOT_CA", text("root-cert.pem")),
        ("POD_LABELS_FILE", text("labels")),
        ("POD_ANNOTATIONS_FILE", text("annotations")),
        ("ISTIO_META_CLUSTER_ID", machine.cluster.clone()),
        ("ISTIO_META_MESH_ID", machine.trust_domain.clone()),
        ("ISTIO_META_WORKLOAD_NAME", if machine.group.is_empty() { &machine.name } else { &machine.group }.clone()),
        ("ISTIO_META_INTERCEPTION_MODE", "REDIRECT".to_owned()),
        ("ISTIO_META_NETWORK", machine.network.clone()),
        ("ISTIO_META_AUTO_REGISTER_GROUP", machine.group.clone()),
        ("CARRICK_ENGINE", machine.engine.clone()),
        ("CARRICK_IDENTITY_DIR", text("identity")),
        ("CARRICK_TOKEN_FILE", text("istio-token")),
        ("CARRICK_STATE_DIR", text("proxy")),
        ("CARRICK_DNS", if machine.captured.names { DNS.to_owned() } else { String::new() }),
        // Nobody but the machine itself has to do with its status ports.
        ("CARRICK_BIND_ADDRESS", "127.0.0.1".to_owned()),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    if let Some(envoy) = envoy {
        env.insert("CARRICK_ENVOY".into(), envoy.to_string_lossy().into_owned());
    }
    if let Some(config) = machine.proxy_config() {
        env.insert("PROXY_CONFIG".into(), config.to_string());
    }
    let ports: Vec<Value> =
        machine.ports.iter().map(|(name, port)| json!({"name": name, "containerPort": port})).collect();
    if !ports.is_empty() {
        env.insert("ISTIO_META_POD_PORTS".into(), Value::from(ports).to_string());
    }
    // What a person sets to look closer.
    let looks = ["CARRICK_LOG", "CARRICK_LOG_JSON", "RUST_BACKTRACE"];
    env.extend(looks.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))));
    env.extend(machine.environment.clone());
    Ok(env.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_captured_is_what_was_named() {
        let machine = Machine { ports: [("http".to_owned(), 8080)].into(), ..Machine::default() };
        let rules = machine.capture(BTreeSet::new()).unwrap();
        assert_eq!(rules.inbound, InboundPorts::Only([8080].into()));
        assert_eq!(rules.owners, Owners::AllBut([0].into()));
        let mut named = machine.clone();
        named.captured.users = [1000].into();
        named.captured.exclude_ranges = ["10.0.0.0/8".to_owned()].into();
        let rules = named.capture(BTreeSet::new()).unwrap();
        assert_eq!(rules.owners, Owners::Only { users: [1000].into(), groups: [].into() });
        assert_eq!(rules.exclude_outbound_ranges.len(), 1);
        named.captured.users.insert(1337);
        assert!(named.capture(BTreeSet::new()).is_err_and(|error| error.to_string().contains("the proxy's own")));
        let mut wrong = machine;
        wrong.captured.exclude_ranges = ["10.0.0.1".to_owned()].into();
        assert!(wrong.capture(BTreeSet::new()).is_err());
    }

    #[test]
    fn settings_survive_their_file() {
        let machine = Machine {
            name: "ledger-1".into(),
            ip: Some("192.0.2.7".parse().unwrap()),
            probe: json!({"tcpSocket": {"port": 1}}),
            ..Machine::default()
        };
        let text = serde_json::to_string(&machine).unwrap();
        assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine);
        assert_eq!(serde_json::from_str::<Machine>("{}").unwrap(), Machine::default());
    }
}
