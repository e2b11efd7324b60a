//! `proxy-config endpoints`: the hosts a proxy balances over, with the health it sees.
//!
//! Invariant: the state is the proxy's live one (`/clusters`), not what it was sent.

use serde_json::{Value, json};

use super::dump::{Dump, list, number, text};
use crate::table::Table;

/// Which endpoints.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The host's address.
    pub address: Option<String>,
    /// The host's port.
    pub port: Option<u32>,
    /// The cluster's whole name.
    pub cluster: Option<String>,
    /// `healthy`, `unhealthy` …
    pub status: Option<String>,
}

/// One host of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    address: String,
    port: Option<u64>,
    cluster: String,
    status: String,
    outlier_ok: bool,
}

impl Host {
    fn shown(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.address),
            None => format!("unix://{}", self.address),
        }
    }
}

/// The hosts of a dump that pass the filter, by address and port.
pub fn select(dump: &Dump, filter: &Filter) -> Vec<Host> {
    let mut found: Vec<Host> = dump
        .cluster_statuses()
        .iter()
        .flat_map(|cluster| list(cluster, &["host_statuses"]).iter().map(move |host| read(cluster, host)))
        .filter(|host| {
            filter.address.as_deref().is_none_or(|a| a == host.address)
                && filter.port.is_none_or(|p| host.port == Some(u64::from(p)))
                && filter.cluster.as_deref().is_none_or(|c| c == host.cluster)
                && filter.status.as_deref().is_none_or(|s| s.eq_ignore_ascii_case(&host.status))
        })
        .collect();
    found.sort();
    found
}

fn read(cluster: &Value, host: &Value) -> Host {
    let socket = host.pointer("/address/socket_address");
    let health = text(host, &["health_status", "eds_health_status"]);
    Host {
        address: socket.map_or_else(|| text(host, &["address", "pipe", "path"]), |s| text(s, &["address"])).to_owned(),
        port: socket.map(|s| number(s, &["port_value"]).unwrap_or(0)),
        cluster: text(cluster, &["name"]).to_owned(),
        status: if health.is_empty() { "UNKNOWN" } else { health }.to_owned(),
        outlier_ok: !host.pointer("/health_status/failed_outlier_check").and_then(Value::as_bool).unwrap_or(false),
    }
}

/// The table of endpoints.
pub fn table(found: &[Host]) -> Table {
    let mut table = Table::new(5, ["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"]);
    for host in found {
        let outlier = if host.outlier_ok { "OK" } else { "FAILED" };
        table.row([host.shown(), host.status.clone(), outlier.to_owned(), host.cluster.clone()]);
    }
    table
}

/// The same for programs.
pub fn json(found: &[Host]) -> Value {
    found
        .iter()
        .map(|h| {
            json!({"endpoint": h.shown(), "status": h.status, "outlierCheck": if h.outlier_ok { "OK" } else { "FAILED" },
                "cluster": h.cluster})
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_hosts_with_their_health() {
        let clusters = json!({"cluster_statuses": [{"name": "outbound|80||a", "host_statuses": [
            {"address": {"socket_address": {"address": "10.244.0.3", "port_value": 8080}},
             "health_status": {"eds_health_status": "HEALTHY"}},
            {"address": {"socket_address": {"address": "10.244.0.2", "port_value": 8080}},
             "health_status": {"eds_health_status": "HEALTHY", "failed_outlier_check": true}}]},
            {"name": "agent", "host_statuses": [{"address": {"pipe": {"path": "/run/a.sock"}}}]}]});
        let dump = Dump::parse(br#"{"configs":[]}"#, Some(&serde_json::to_vec(&clusters).unwrap())).unwrap();
        let shown = table(&select(&dump, &Filter::default())).to_string();
        assert_eq!(
            shown,
            "ENDPOINT               STATUS      OUTLIER CHECK     CLUSTER\n\
             unix:///run/a.sock     UNKNOWN     OK                agent\n\
             10.244.0.2:8080        HEALTHY     FAILED            outbound|80||a\n\
             10.244.0.3:8080        HEALTHY     OK                outbound|80||a\n"
        );
        let one = Filter { address: Some("10.244.0.3".into()), port: Some(8080), ..Default::default() };
        assert_eq!(select(&dump, &one).len(), 1);
    }
}
