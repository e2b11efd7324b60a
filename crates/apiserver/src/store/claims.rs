//! What only one object of a kind may have: cluster IPs and node ports, of Services.
//!
//! Invariant: what an object is stored with is what it holds; a write takes what the object did not hold before, and gives back
//! what it no longer holds.
//! What it leaves to others: who may have what (`controllers::addresses`), and that no two get it (`storage`).

use crate::storage::Claims;
use serde_json::Value;
use std::fmt;
use std::net::Ipv4Addr;

/// Something that only one Service may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// A cluster IP.
    Ip(Ipv4Addr),
    /// A node port.
    NodePort(u16),
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "cluster-ip-{ip}"),
            Self::NodePort(port) => write!(f, "node-port-{port}"),
        }
    }
}

/// What a stored Service has, in order.
pub fn held(service: &Value) -> Vec<Claim> {
    let spec = service.get("spec");
    let text = |value: &Value| value.as_str().and_then(|text| text.parse().ok()).map(Claim::Ip);
    let one = spec.and_then(|s| s.get("clusterIP")).and_then(text);
    let many = spec.and_then(|s| s.get("clusterIPs")).and_then(Value::as_array).into_iter().flatten().filter_map(text);
    let ports = spec.and_then(|s| s.get("ports")).and_then(Value::as_array).into_iter().flatten();
    let node_ports = ports.filter_map(|port| u16::try_from(port.get("nodePort")?.as_u64()?).ok());
    let mut claims: Vec<Claim> =
        one.into_iter().chain(many).chain(node_ports.filter(|p| *p != 0).map(Claim::NodePort)).collect();
    claims.sort_unstable();
    claims.dedup();
    claims
}

/// What a write takes and gives back.
pub(super) fn changed(resource: &str, old: Option<&Value>, new: Option<&Value>) -> Claims {
    if resource != "services" {
        return Claims::default();
    }
    let (old, new) = (old.map(held).unwrap_or_default(), new.map(held).unwrap_or_default());
    let without = |of: &[Claim], others: &[Claim]| {
        of.iter().filter(|claim| others.binary_search(claim).is_err()).map(Claim::to_string).collect()
    };
    Claims { taken: without(&new, &old), freed: without(&old, &new) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_write_takes_what_is_new_and_gives_back_what_is_left_out() {
        let service = |ip: &str, ports: &[u16]| {
            let ports: Vec<Value> = ports.iter().map(|port| json!({"nodePort": port})).collect();
            json!({"spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": ports}})
        };
        let (old, new) = (service("10.96.1.1", &[30_001, 30_002, 0]), service("10.96.1.1", &[30_002, 30_003, 30_003]));
        let shown = |old: Option<&Value>, new: Option<&Value>| {
            let Claims { taken, freed } = changed("services", old, new);
            (taken.join(" "), freed.join(" "))
        };
        let all = "cluster-ip-10.96.1.1 node-port-30001 node-port-30002".to_owned();
        assert_eq!(shown(None, Some(&old)), (all.clone(), String::new()));
        assert_eq!(shown(Some(&old), Some(&new)), ("node-port-30003".into(), "node-port-30001".into()));
        assert_eq!(shown(Some(&old), None), (String::new(), all));
        assert_eq!(shown(None, Some(&service("None", &[]))), Default::default());
        assert_eq!(changed("configmaps", None, Some(&old)), Claims::default());
    }
}
