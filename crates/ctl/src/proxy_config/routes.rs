//! `proxy-config routes`: one row a route of each virtual host.
//!
//! Invariant: only routes that came by RDS or stand in the static part of the dump are known here; routes
//! inside a listener are shown with the listener.

use serde_json::Value;

use super::dump::{Dump, istio_config, list, text};
use crate::table::Table;

/// Which routes, and how wide.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// The route configuration's name.
    pub name: Option<String>,
    /// A row per route instead of one per configuration.
    pub verbose: bool,
}

/// The route configurations of a dump that pass the filter, by name.
pub fn select<'a>(dump: &'a Dump, filter: &Filter) -> Vec<&'a Value> {
    let mut found =
        dump.resources("RoutesConfigDump", &["dynamic_route_configs", "static_route_configs"], &["route_config"]);
    found.retain(|route| filter.name.as_deref().is_none_or(|n| text(route, &["name"]) == n));
    // Numeric names are ports: in order of their value, before the others.
    found.sort_by_key(|route| {
        let name = text(route, &["name"]);
        (name.parse::<u32>().unwrap_or(u32::MAX), name.to_owned())
    });
    found
}

/// The table of routes.
pub fn table(found: &[&Value], verbose: bool) -> Table {
    if !verbose {
        let mut table = Table::new(5, ["NAME", "VIRTUAL HOSTS"]);
        for route in found {
            table.row([text(route, &["name"]).to_owned(), list(route, &["virtual_hosts"]).len().to_string()]);
        }
        return table;
    }
    let mut table = Table::new(5, ["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"]);
    for config in found {
        for host in list(config, &["virtual_hosts"]) {
            let head = [
                text(config, &["name"]).to_owned(),
                text(host, &["name"]).to_owned(),
                domains(list(host, &["domains"])),
            ];
            let routes = list(host, &["routes"]);
            if routes.is_empty() {
                table.row(head.iter().cloned().chain(["/*".to_owned(), "404".to_owned()]));
            }
            for route in routes {
                let service = istio_config(route, "virtual-service").unwrap_or_default();
                table.row(head.iter().cloned().chain([path_match(route), service]));
            }
        }
    }
    table
}

/// The path a route wants, in short.
pub fn path_match(route: &Value) -> String {
    let wanted = route.get("match").unwrap_or(&Value::Null);
    let (prefix, path) = (text(wanted, &["prefix"]), text(wanted, &["path"]));
    let regex = text(wanted, &["safe_regex", "regex"]);
    let separated = text(wanted, &["path_separated_prefix"]);
    if !path.is_empty() {
        path.to_owned()
    } else if !regex.is_empty() {
        format!("regex {regex}")
    } else if !separated.is_empty() {
        format!("PathPrefix:{separated}")
    } else {
        format!("{prefix}*")
    }
}

/// Shortest first; of three or more only the first is shown.
fn domains(all: &[Value]) -> String {
    let mut names: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
    names.sort_by_key(|name| (name.len(), *name));
    match names.as_slice() {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [one, two] => format!("{one}, {two}"),
        [one, two, rest @ ..] => format!("{one}, {two} + {} more...", rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_for_each_route() {
        let body = json!({"configs": [{"@type": "x/envoy.admin.v3.RoutesConfigDump", "dynamic_route_configs": [
            {"route_config": {"name": "8080", "virtual_hosts": [
                {"name": "a.ns.svc.cluster.local:8080",
                 "domains": ["a.ns.svc.cluster.local", "a", "a.ns", "10.96.0.7"],
                 "routes": [{"match": {"prefix": "/"}}]},
                {"name": "none", "domains": ["none"]}]}}]}]});
        let dump = Dump::parse(&serde_json::to_vec(&body).unwrap(), None).unwrap();
        let found = select(&dump, &Filter::default());
        let shown = table(&found, true).to_string();
        let rows: Vec<&str> = shown.lines().map(str::trim_end).collect();
        assert!(rows[1].starts_with("8080     a.ns.svc.cluster.local:8080     a, a.ns + 2 more...     /*"), "{shown}");
        assert!(rows[2].ends_with("/*        404"), "{shown}");
        assert_eq!(table(&found, false).to_string(), "NAME     VIRTUAL HOSTS\n8080     2\n");
    }
}
