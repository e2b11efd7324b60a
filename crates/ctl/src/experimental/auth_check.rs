//! `carrick experimental auth check`: one row for each filter chain that takes calls, one for each cluster that makes
//! them, with the certificate and what is checked.
//!
//! Invariant: columns, names and the `Checked n/m` lines are those people know from the mesh's early days; the facts
//! are today's proxies'.

use serde_json::Value;

use super::chains::{self, Chain};
use crate::{
    proxy_config::dump::{Dump, list, text},
    table::Table,
};

/// Spaces between columns.
const GAP: usize = 5;
const DOMAIN: &str = ".svc.cluster.local";

/// What rows are sorted by.
type Order = (String, String, String, u64);

/// Both tables.
pub fn show(dump: &Dump, address: &str, all: bool) -> String {
    let (shown, table) = listeners(dump, address, all);
    let total = chains::listeners(dump).max(shown);
    let (clusters_shown, clusters_total, clusters) = clusters(dump, all);
    format!(
        "Checked {shown}/{total} listeners with node IP {address}.\n{table}\n\
         Checked {clusters_shown}/{clusters_total} outbound clusters.\n{clusters}"
    )
}

fn listeners(dump: &Dump, address: &str, all: bool) -> (usize, Table) {
    let mut table = match all {
        false => Table::new(GAP, ["LISTENER", "CERTIFICATE", "mTLS (MODE)", "JWT (ISSUERS)", "RBAC (RULES)"]),
        true => Table::new(
            GAP,
            ["LISTENER", "HTTP ROUTE", "SNI", "ALPN", "CERTIFICATE", "mTLS (MODE)", "JWT (ISSUERS)", "RBAC (RULES)"],
        ),
    };
    let mut found: Vec<(String, Vec<Chain>)> =
        chains::inbound(dump).into_iter().map(|(port, chains)| (format!("{address}_{port}"), chains)).collect();
    let others = chains::others(dump).into_iter().filter(|((own, _), _)| all || own == address);
    found.extend(others.map(|((own, port), chains)| (format!("{own}_{port}"), chains)));
    let shown = found.len();
    for (name, chains) in found {
        let mode = chains::mode(&chains);
        let many = chains.len() > 1;
        for (at, chain) in chains.iter().enumerate() {
            let name = if many { format!("{name}[{at}]") } else { name.clone() };
            let mut cells = vec![name];
            if all {
                cells.extend([or_none(&chain.route), joined(&chain.sni), joined(&chain.alpn)]);
            }
            cells.push(chain.certificate.clone().unwrap_or_else(|| "none".into()));
            cells.push(format!("{} ({mode})", yes(chain.client_certificate)));
            cells.push(format!("{} ({})", yes(!chain.issuers.is_empty()), joined(&chain.issuers)));
            let rules: Vec<String> = chain.rules.iter().map(|(_, name)| name.clone()).collect();
            cells.push(format!("{} ({})", yes(!rules.is_empty()), joined(&rules)));
            table.row(cells);
        }
    }
    (shown, table)
}

fn clusters(dump: &Dump, all: bool) -> (usize, usize, Table) {
    let mut table = match all {
        false => Table::new(GAP, ["HOST:PORT", "CERTIFICATE", "VALIDATE PEER CERTIFICATE"]),
        true => Table::new(GAP, ["HOST:PORT", "SNI", "ALPN", "CERTIFICATE", "VALIDATE PEER CERTIFICATE"]),
    };
    let mut found = dump.resources("ClustersConfigDump", &["dynamic_active_clusters"], &["cluster"]);
    found.extend(dump.resources("ClustersConfigDump", &["static_clusters"], &["cluster"]));
    let total = found.len();
    let mut rows: Vec<(Order, Vec<String>)> = Vec::new();
    for cluster in found {
        let mut parts = text(cluster, &["name"]).split('|');
        let (Some("outbound"), Some(port), Some(""), Some(host)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let context = tls_context(cluster);
        let certificate = context.map_or_else(|| "none".to_owned(), chains::certificate);
        let names = context.map(accepted).unwrap_or_default();
        let mut cells = vec![format!("{}:{port}", host.strip_suffix(DOMAIN).unwrap_or(host))];
        if all {
            let alpn = context.map(|c| list(c, &["common_tls_context", "alpn_protocols"]));
            let alpn: Vec<String> = alpn.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
            cells.extend([or_none(context.map_or("", |c| text(c, &["sni"]))), joined(&alpn)]);
        }
        cells.extend([certificate, joined(&names)]);
        let short = host.strip_suffix(DOMAIN);
        let (name, namespace) = short.and_then(|short| short.split_once('.')).unwrap_or((host, ""));
        let domain = if short.is_some() { DOMAIN } else { "~" };
        rows.push(((domain.into(), namespace.into(), name.into(), port.parse().unwrap_or(0)), cells));
    }
    rows.sort();
    let shown = rows.len();
    for (_, cells) in rows {
        table.row(cells);
    }
    (shown, total, table)
}

/// The TLS that a cluster makes towards members of the mesh, or whoever it is for.
pub fn tls_context(cluster: &Value) -> Option<&Value> {
    let with_tls = |socket: &'_ Value| socket.pointer("/typed_config/common_tls_context").is_some();
    let own = cluster.get("transport_socket").filter(|socket| with_tls(socket));
    let matched = || {
        list(cluster, &["transport_socket_matches"])
            .iter()
            .filter_map(|one| one.get("transport_socket"))
            .find(|socket| with_tls(socket))
    };
    own.or_else(matched)?.get("typed_config")
}

/// The names that the other side's certificate may have.
fn accepted(context: &Value) -> Vec<String> {
    let common = &context["common_tls_context"];
    let validation = common
        .pointer("/combined_validation_context/default_validation_context")
        .or_else(|| common.get("validation_context"))
        .unwrap_or(&Value::Null);
    list(validation, &["match_typed_subject_alt_names"])
        .iter()
        .filter_map(|name| {
            let (how, value) = name.get("matcher")?.as_object()?.iter().next()?;
            let value = value.as_str()?;
            Some(match how.as_str() {
                "prefix" => format!("{value}*"),
                "suffix" => format!("*{value}"),
                _ => value.to_owned(),
            })
        })
        .collect()
}

fn yes(it: bool) -> &'static str {
    if it { "yes" } else { "no" }
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none".into() } else { text.to_owned() }
}

fn joined(texts: &[String]) -> String {
    or_none(&texts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tls(required: bool) -> Value {
        json!({"name": "envoy.transport_sockets.tls", "typed_config": {"require_client_certificate": required, "sni": "outbound_.80",
            "common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": "default"}],
                "combined_validation_context": {"default_validation_context": {"match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": "spiffe://cluster.local/ns/b/sa/a"}}]}}}}})
    }

    #[test]
    fn the_two_tables() {
        let chain = |port: u64, socket: Option<Value>| {
            let mut chain = json!({"name": "x", "filter_chain_match": {"destination_port": port}, "filters": []});
            if let Some(socket) = socket {
                chain["transport_socket"] = socket;
            }
            chain
        };
        let mut jwt = chain(9000, Some(tls(true)));
        jwt["filters"] = json!([{"typed_config": {"@type": "x.HttpConnectionManager", "http_filters": [
            {"typed_config": {"@type": "x.JwtAuthentication", "providers": {"origins-0": {"issuer": "me@example.com"}}}},
            {"typed_config": {"@type": "x.http.rbac.v3.RBAC", "rules": {"action": "DENY", "policies": {"ns[a]-policy[b]-rule[0]": {}}}}}]}}]);
        let listener =
            json!({"name": "virtualInbound", "filter_chains": [chain(8080, None), jwt, chain(8080, Some(tls(true)))]});
        let outbound = json!({"name": "virtualOutbound"});
        let cluster = |name: &str, socket: Option<Value>| {
            let mut cluster = json!({"name": name});
            if let Some(socket) = socket {
                cluster["transport_socket_matches"] = json!([{"transport_socket": socket}]);
            }
            json!({"cluster": cluster})
        };
        let body = json!({"configs": [
            {"@type": "x.ListenersConfigDump", "dynamic_listeners": [
                {"active_state": {"listener": outbound}}, {"active_state": {"listener": listener}}]},
            {"@type": "x.ClustersConfigDump", "dynamic_active_clusters": [
                cluster("inbound|8080||", None), cluster("outbound|80|v1|a.b.svc.cluster.local", None),
                cluster("outbound|80||a.b.svc.cluster.local", Some(tls(false))),
                cluster("outbound|443||kubernetes.default.svc.cluster.local", None)]}]});
        let dump = Dump::parse(&serde_json::to_vec(&body).unwrap(), None).unwrap();
        let lines: Vec<String> = show(&dump, "10.0.0.2", false)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "Checked 2/2 listeners with node IP 10.0.0.2.",
                "LISTENER CERTIFICATE mTLS (MODE) JWT (ISSUERS) RBAC (RULES)",
                "10.0.0.2_8080[0] default yes (PERMISSIVE) no (none) no (none)",
                "10.0.0.2_8080[1] none no (PERMISSIVE) no (none) no (none)",
                "10.0.0.2_9000 default yes (STRICT) yes (me@example.com) yes (ns[a]-policy[b]-rule[0])",
                "",
                "Checked 2/4 outbound clusters.",
                "HOST:PORT CERTIFICATE VALIDATE PEER CERTIFICATE",
                "a.b:80 default spiffe://cluster.local/ns/b/sa/a",
                "kubernetes.default:443 none none",
            ]
        );
        assert!(show(&dump, "10.0.0.2", true).contains("HTTP ROUTE"));
    }
}
