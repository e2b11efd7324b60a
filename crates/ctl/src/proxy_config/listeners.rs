//! `proxy-config listeners`: one row a filter chain.
//!
//! Invariant: the words of MATCH and DESTINATION are `istioctl`'s, since people search for them.

use serde_json::Value;

use super::dump::{Dump, list, number, text};
use crate::table::Table;

/// Which listeners, and how wide.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The address it is bound to.
    pub address: Option<String>,
    /// The port it is bound to.
    pub port: Option<u32>,
    /// `HTTP`, `TCP` or `HTTP+TCP`.
    pub kind: Option<String>,
    /// A row per filter chain with match and destination, instead of a row per listener.
    pub verbose: bool,
}

/// The listeners of a dump that pass the filter, by address and port.
pub fn select<'a>(dump: &'a Dump, filter: &Filter) -> Vec<&'a Value> {
    let mut found = dump.resources("ListenersConfigDump", &["dynamic_listeners"], &["active_state", "listener"]);
    found.extend(dump.resources("ListenersConfigDump", &["static_listeners"], &["listener"]));
    found.retain(|listener| {
        filter.address.as_deref().is_none_or(|a| a.eq_ignore_ascii_case(&address(listener)))
            && filter.port.is_none_or(|p| u64::from(p) == port(listener))
            && filter.kind.as_deref().is_none_or(|k| k.eq_ignore_ascii_case(kind(listener)))
    });
    found.sort_by_key(|listener| (address(listener), port(listener)));
    found
}

/// The table of listeners.
pub fn table(found: &[&Value], filter: &Filter) -> Table {
    if !filter.verbose {
        let mut table = Table::new(1, ["ADDRESSES", "PORT", "TYPE"]);
        for listener in found {
            table.row([address(listener), port(listener).to_string(), kind(listener).to_owned()]);
        }
        return table;
    }
    let mut table = Table::new(1, ["ADDRESSES", "PORT", "MATCH", "DESTINATION"]);
    for listener in found {
        let mut rows: Vec<(String, String)> = chains(listener).map(|c| (matching(c), destination(c))).collect();
        rows.sort_by(|a, b| b.1.cmp(&a.1));
        for (matching, destination) in rows {
            table.row([address(listener), port(listener).to_string(), matching, destination]);
        }
    }
    table
}

fn address(listener: &Value) -> String {
    match listener.pointer("/address/socket_address") {
        Some(socket) => text(socket, &["address"]).to_owned(),
        None => text(listener, &["address", "pipe", "path"]).to_owned(),
    }
}

fn port(listener: &Value) -> u64 {
    number(listener, &["address", "socket_address", "port_value"]).unwrap_or(0)
}

fn chains(listener: &Value) -> impl Iterator<Item = &Value> {
    list(listener, &["filter_chains"]).iter().chain(listener.get("default_filter_chain"))
}

fn filters<'a>(chain: &'a Value, message: &str) -> Option<&'a Value> {
    list(chain, &["filters"])
        .iter()
        .filter_map(|filter| filter.get("typed_config"))
        .find(|config| text(config, &["@type"]).ends_with(message))
}

fn kind(listener: &Value) -> &'static str {
    let http = chains(listener).any(|c| filters(c, ".HttpConnectionManager").is_some());
    let tcp = chains(listener).any(|c| filters(c, ".TcpProxy").is_some());
    match (http, tcp) {
        (true, true) => "HTTP+TCP",
        (true, false) => "HTTP",
        (false, true) => "TCP",
        (false, false) => "UNKNOWN",
    }
}

/// ALPN lists with a name of their own in `istioctl`.
const NAMED_ALPN: &[(&[&str], &str)] = &[
    (&["http/1.0", "http/1.1", "h2c", "istio-http/1.0", "istio-http/1.1", "istio-h2"], "App: HTTP TLS"),
    (&["istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"], "App: Istio HTTP Plain"),
    (&["istio-peer-exchange", "istio"], "App: TCP TLS"),
    (&["http/1.0", "http/1.1", "h2c"], "App: HTTP"),
];

fn matching(chain: &Value) -> String {
    let Some(wanted) = chain.get("filter_chain_match") else { return "ALL".to_owned() };
    let strings = |field: &str| list(wanted, &[field]).iter().filter_map(Value::as_str).collect::<Vec<_>>();
    let mut parts = Vec::new();
    let names = strings("server_names");
    if !names.is_empty() {
        parts.push(format!("SNI: {}", names.join(",")));
    }
    let transport = text(wanted, &["transport_protocol"]);
    if !transport.is_empty() {
        parts.push(format!("Trans: {transport}"));
    }
    let alpn = strings("application_protocols");
    if !alpn.is_empty() {
        match NAMED_ALPN.iter().find(|(list, _)| *list == alpn.as_slice()) {
            Some((_, name)) => parts.push((*name).to_owned()),
            None => parts.push(format!("App: {}", alpn.join(","))),
        }
    }
    let port = number(wanted, &["destination_port"]).map(|p| format!(":{p}")).unwrap_or_default();
    let ranges: Vec<String> = list(wanted, &["prefix_ranges"])
        .iter()
        .map(|range| {
            format!("{}/{}{port}", text(range, &["address_prefix"]), number(range, &["prefix_len"]).unwrap_or(0))
        })
        .collect();
    if !ranges.is_empty() {
        parts.push(format!("Addr: {}", ranges.join(",")));
    } else if !port.is_empty() {
        parts.push(format!("Addr: *{port}"));
    }
    if parts.is_empty() { "ALL".to_owned() } else { parts.join("; ") }
}

fn destination(chain: &Value) -> String {
    if let Some(http) = filters(chain, ".HttpConnectionManager") {
        let rds = text(http, &["rds", "route_config_name"]);
        if !rds.is_empty() {
            return format!("Route: {rds}");
        }
        let hosts = list(http, &["route_config", "virtual_hosts"]);
        let only_route = || match hosts {
            [host] => match list(host, &["routes"]) {
                [route] => Some(text(route, &["route", "cluster"])),
                _ => None,
            },
            _ => None,
        };
        if let Some(cluster) = only_route().filter(|c| !c.is_empty()) {
            return cluster_text(cluster);
        }
        let mut paths: Vec<String> =
            hosts.iter().flat_map(|host| list(host, &["routes"])).map(super::routes::path_match).collect();
        paths.dedup();
        return format!("Inline Route: {}", paths.join(", "));
    }
    if let Some(tcp) = filters(chain, ".TcpProxy") {
        let cluster = text(tcp, &["cluster"]);
        if !cluster.is_empty() {
            return cluster_text(cluster);
        }
        let weighted: Vec<&str> =
            list(tcp, &["weighted_clusters", "clusters"]).iter().map(|c| text(c, &["name"])).collect();
        return format!("Clusters: {}", weighted.join(","));
    }
    "Non-HTTP/Non-TCP".to_owned()
}

/// Clusters that stand for no service are shown by their bare name.
fn cluster_text(name: &str) -> String {
    if name.contains('|') { format!("Cluster: {name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dump() -> Dump {
        let tcp = |cluster: &str| {
            json!({"name": "tcp", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", "cluster": cluster}})
        };
        let http = |config: Value| {
            let mut typed = json!({"@type":
                "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"});
            typed.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
            json!({"name": "http", "typed_config": typed})
        };
        let listener = |name: &str, port: u32, chains: Value| {
            json!({"name": name, "active_state": {"listener": {
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": name,
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}}, "filter_chains": chains}}})
        };
        let body = json!({"configs": [{
        "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
        "dynamic_listeners": [
            listener("virtualInbound", 15006, json!([
                {"filter_chain_match": {"transport_protocol": "tls"}, "filters": [tcp("InboundPassthroughCluster")]},
                {"filter_chain_match": {"destination_port": 8080, "transport_protocol": "tls",
                    "application_protocols": ["istio-peer-exchange", "istio"]}, "filters": [tcp("inbound|8080||")]},
                {"filter_chain_match": {"destination_port": 8080, "transport_protocol": "raw_buffer"},
                    "filters": [http(json!({"route_config": {"virtual_hosts": [{"routes": [
                        {"match": {"prefix": "/"}, "route": {"cluster": "inbound|8080||"}}]}]}}))]},
            ])),
            listener("0.0.0.0_80", 80, json!([{"filters": [http(json!({"rds": {"route_config_name": "80"}}))]}])),
        ]}]});
        Dump::parse(&serde_json::to_vec(&body).unwrap(), None).unwrap()
    }

    #[test]
    fn chains_read_as_in_istioctl() {
        let filter = Filter { verbose: true, ..Default::default() };
        let dump = dump();
        let shown = table(&select(&dump, &filter), &filter).to_string();
        assert_eq!(
            shown,
            "ADDRESSES PORT  MATCH                                  DESTINATION\n\
             0.0.0.0   80    ALL                                    Route: 80\n\
             0.0.0.0   15006 Trans: tls                             InboundPassthroughCluster\n\
             0.0.0.0   15006 Trans: tls; App: TCP TLS; Addr: *:8080 Cluster: inbound|8080||\n\
             0.0.0.0   15006 Trans: raw_buffer; Addr: *:8080        Cluster: inbound|8080||\n"
        );
    }

    #[test]
    fn filters_and_types() {
        let dump = dump();
        let inbound = Filter { port: Some(15006), address: Some("0.0.0.0".into()), ..Default::default() };
        let found = select(&dump, &inbound);
        assert_eq!(found.len(), 1);
        assert_eq!(table(&found, &inbound).to_string(), "ADDRESSES PORT  TYPE\n0.0.0.0   15006 HTTP+TCP\n");
        let http = Filter { kind: Some("http".into()), ..Default::default() };
        assert_eq!(select(&dump, &http).len(), 1);
    }
}
