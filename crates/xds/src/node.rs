//! The node a proxy says it is: Istio's four-part id and the metadata beside it (spec §20.1).
//!
//! Invariant: an id has exactly four parts and a known type, and printing it gives the text it was parsed from. What a
//! node says of itself is a claim; whoever serves it must compare it with the verified peer.

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// What kind of proxy a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeType {
    /// Beside a workload.
    Sidecar,
    /// A gateway.
    Router,
    /// A waypoint.
    Waypoint,
    /// A node proxy.
    Ztunnel,
    /// An agent gateway.
    AgentGateway,
}

impl NodeType {
    /// The word in the node id.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
            Self::Waypoint => "waypoint",
            Self::Ztunnel => "ztunnel",
            Self::AgentGateway => "agentgateway",
        }
    }
}

/// Why a node id is refused. The fault is the client's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeIdError {
    /// Not four parts separated by `~`.
    #[error("node id {0:?} does not have four parts separated by '~'")]
    Parts(String),
    /// The first part is no proxy type.
    #[error("node id {0:?} has an unknown type")]
    Type(String),
    /// The second part is no IP address.
    #[error("node id {0:?} has no IP address as its second part")]
    Ip(String),
    /// The third part is not `name.namespace`.
    #[error("node id {0:?} does not name a workload and its namespace as its third part")]
    Name(String),
}

/// `<type>~<ip>~<name>.<namespace>~<namespace>.svc.<domain>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeId {
    /// What kind of proxy.
    pub node_type: NodeType,
    /// The workload's first address.
    pub ip: IpAddr,
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The DNS domain of the workload, `<namespace>.svc.<domain>`.
    pub dns_domain: String,
}

impl NodeId {
    /// The id of a sidecar.
    pub fn sidecar(ip: IpAddr, name: &str, namespace: &str, domain: &str) -> Self {
        Self::of(NodeType::Sidecar, ip, name, namespace, domain)
    }

    /// The id of a proxy of any type.
    pub fn of(node_type: NodeType, ip: IpAddr, name: &str, namespace: &str, domain: &str) -> Self {
        Self {
            node_type,
            ip,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            dns_domain: format!("{namespace}.svc.{domain}"),
        }
    }

    /// `name.namespace`, as tables show it.
    pub fn workload(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let mut parts = text.split('~');
        let (Some(kind), Some(ip), Some(id), Some(domain), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NodeIdError::Parts(text.to_owned()));
        };
        let node_type = match kind {
            "sidecar" => NodeType::Sidecar,
            "router" => NodeType::Router,
            "waypoint" => NodeType::Waypoint,
            "ztunnel" => NodeType::Ztunnel,
            "agentgateway" => NodeType::AgentGateway,
            _ => return Err(NodeIdError::Type(text.to_owned())),
        };
        let ip = ip.parse().map_err(|_| NodeIdError::Ip(text.to_owned()))?;
        // Pod names may hold dots, namespaces may not.
        let (name, namespace) = id.rsplit_once('.').ok_or_else(|| NodeIdError::Name(text.to_owned()))?;
        if name.is_empty() || namespace.is_empty() {
            return Err(NodeIdError::Name(text.to_owned()));
        }
        Ok(Self {
            node_type,
            ip,
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            dns_domain: domain.to_owned(),
        })
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}~{}~{}.{}~{}", self.node_type.as_str(), self.ip, self.name, self.namespace, self.dns_domain)
    }
}

/// A text value of the node's metadata.
pub fn metadata_text<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}

/// A map of texts in the node's metadata (`LABELS`, `ANNOTATIONS`); values that are not text are left out.
pub fn metadata_map(node: &Node, key: &str) -> Option<BTreeMap<String, String>> {
    match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        Kind::StructValue(map) => Some(
            map.fields
                .iter()
                .filter_map(|(k, v)| match v.kind.as_ref()? {
                    Kind::StringValue(text) => Some((k.clone(), text.clone())),
                    _ => None,
                })
                .collect(),
        ),
        _ => None,
    }
}

/// The addresses of a node: metadata `INSTANCE_IPS` (comma separated) when present, else the id's.
pub fn instance_ips(node: &Node, id: &NodeId) -> Vec<IpAddr> {
    let named: Vec<IpAddr> = metadata_text(node, "INSTANCE_IPS")
        .map(|text| text.split(',').filter_map(|ip| ip.trim().parse().ok()).collect())
        .unwrap_or_default();
    if named.is_empty() { vec![id.ip] } else { named }
}

/// A protobuf text value.
pub fn text(value: impl Into<String>) -> Value {
    Value { kind: Some(Kind::StringValue(value.into())) }
}

/// A protobuf list of texts.
pub fn list<I: IntoIterator<Item = S>, S: Into<String>>(values: I) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values: values.into_iter().map(text).collect() })) }
}

/// A protobuf struct of texts.
pub fn map<'a>(values: impl IntoIterator<Item = (&'a String, &'a String)>) -> Value {
    let fields = values.into_iter().map(|(k, v)| (k.clone(), text(v.as_str()))).collect();
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip() {
        for id in [
            "sidecar~10.244.0.7~sleep-1.default~default.svc.cluster.local",
            "router~fd00::1~gw.with.dots.istio-system~istio-system.svc.example.org",
        ] {
            assert_eq!(id.parse::<NodeId>().map(|n| n.to_string()).as_deref(), Ok(id));
        }
        let id: NodeId = "router~fd00::1~gw.with.dots.ns~ns.svc.x".parse().expect("valid");
        assert_eq!((id.name.as_str(), id.namespace.as_str()), ("gw.with.dots", "ns"));
    }

    #[test]
    fn wrong_ids_are_refused() {
        for id in [
            "",
            "sidecar~1.2.3.4~a.b",
            "sidecar~1.2.3.4~a.b~c~d",
            "car~1.2.3.4~a.b~c",
            "sidecar~x~a.b~c",
            "sidecar~1.2.3.4~ab~c",
            "sidecar~1.2.3.4~a.~c",
        ] {
            assert!(id.parse::<NodeId>().is_err(), "{id}");
        }
    }
}
