//! `proxy-config clusters`: one row a cluster, its name taken apart.
//!
//! Invariant: clusters named `direction|port|subset|host` are services; any other name is shown as it is.

use serde_json::Value;

use super::dump::{Dump, istio_config, text};
use crate::table::Table;

/// Which clusters.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Part of the service's full name.
    pub fqdn: Option<String>,
    /// The service port.
    pub port: Option<u32>,
    /// `inbound` or `outbound`.
    pub direction: Option<String>,
    /// The subset's name.
    pub subset: Option<String>,
}

/// A cluster name taken apart.
struct Name<'a> {
    direction: &'a str,
    port: Option<u32>,
    subset: &'a str,
    fqdn: &'a str,
    service: bool,
}

fn name(cluster: &Value) -> Name<'_> {
    let whole = text(cluster, &["name"]);
    let parts: Vec<&str> = whole.split('|').collect();
    match parts.as_slice() {
        [direction, port, subset, fqdn] => Name { direction, port: port.parse().ok(), subset, fqdn, service: true },
        _ => Name { direction: "", port: None, subset: "", fqdn: whole, service: false },
    }
}

/// The clusters of a dump that pass the filter, in `istioctl`'s order.
pub fn select<'a>(dump: &'a Dump, filter: &Filter) -> Vec<&'a Value> {
    let mut found = dump.resources("ClustersConfigDump", &["dynamic_active_clusters", "static_clusters"], &["cluster"]);
    found.retain(|cluster| {
        let name = name(cluster);
        filter.fqdn.as_deref().is_none_or(|f| name.fqdn.contains(f))
            && filter.port.is_none_or(|p| name.port == Some(p))
            && filter.direction.as_deref().is_none_or(|d| name.direction.eq_ignore_ascii_case(d))
            && filter.subset.as_deref().is_none_or(|s| name.subset == s)
    });
    found.sort_by(|a, b| {
        let key = |c| {
            let n = name(c);
            (n.direction.to_owned(), n.fqdn.to_owned(), n.port, n.subset.to_owned())
        };
        key(a).cmp(&key(b))
    });
    found
}

/// The table of clusters.
pub fn table(found: &[&Value]) -> Table {
    let mut table = Table::new(5, ["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"]);
    for cluster in found {
        let name = name(cluster);
        let or_dash = |s: &str| if s.is_empty() { "-".to_owned() } else { s.to_owned() };
        let rule = istio_config(cluster, "destination-rule").unwrap_or_default();
        if name.service {
            table.row([
                name.fqdn.to_owned(),
                name.port.map_or_else(|| "-".to_owned(), |p| p.to_string()),
                or_dash(name.subset),
                name.direction.to_owned(),
                kind(cluster),
                rule,
            ]);
        } else {
            table.row([name.fqdn.to_owned(), "-".into(), "-".into(), "-".into(), kind(cluster), rule]);
        }
    }
    table
}

/// The discovery type; a cluster that names none is STATIC, protobuf's zero value.
fn kind(cluster: &Value) -> String {
    match text(cluster, &["type"]) {
        "" => match text(cluster, &["cluster_type", "name"]) {
            "" => "STATIC".to_owned(),
            custom => custom.to_owned(),
        },
        kind => kind.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_taken_apart() {
        let cluster = |name: &str, kind: Option<&str>, config: Option<&str>| {
            let mut c = json!({"name": name});
            if let Some(kind) = kind {
                c["type"] = kind.into();
            }
            if let Some(path) = config {
                c["metadata"] = json!({"filter_metadata": {"istio": {"config": path}}});
            }
            json!({"cluster": c})
        };
        let body = json!({"configs": [{"@type": "x/envoy.admin.v3.ClustersConfigDump",
            "static_clusters": [cluster("xds-grpc", None, None)],
            "dynamic_active_clusters": [
                cluster("outbound|8080||b.ns.svc.cluster.local", Some("EDS"),
                    Some("/apis/networking.istio.io/v1/namespaces/ns/destination-rule/dr")),
                cluster("outbound|8080|v1|a.ns.svc.cluster.local", Some("EDS"), None),
                cluster("inbound|8080||", Some("ORIGINAL_DST"), None)]}]});
        let dump = Dump::parse(&serde_json::to_vec(&body).unwrap(), None).unwrap();
        let rows: Vec<String> = table(&select(&dump, &Filter::default()))
            .to_string()
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            rows,
            [
                "SERVICE FQDN PORT SUBSET DIRECTION TYPE DESTINATION RULE",
                "xds-grpc - - - STATIC",
                "8080 - inbound ORIGINAL_DST",
                "a.ns.svc.cluster.local 8080 v1 outbound EDS",
                "b.ns.svc.cluster.local 8080 - outbound EDS dr.ns",
            ]
        );
        let some = Filter { fqdn: Some("a.ns".into()), port: Some(8080), ..Default::default() };
        assert_eq!(select(&dump, &some).len(), 1);
    }
}
