//! Annotations of Prometheus, pointed at the agent, who shows the application's metrics beside the proxy's.
//!
//! Invariant: where the application asks not to be scraped, or the mesh not to merge, nothing changes; a port of the proxy's own is
//! refused, since it would show itself for ever. Source: spec §16.8.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The variable in which the agent is told where the application's metrics are.
pub(crate) const VARIABLE: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";

/// Ports of proxy and agent, and what they are.
const RESERVED: &[(u16, &str)] = &[
    (15000, "Envoy admin"),
    (15001, "outbound traffic capture"),
    (15004, "pilot debug"),
    (15006, "inbound traffic capture"),
    (15008, "HBONE tunnel"),
    (15020, "agent status and merged metrics"),
    (15021, "health"),
    (15053, "DNS proxy"),
    (15090, "the proxy's own metrics, which are merged already"),
];

/// Prometheus takes every character of a name that it does not know for an underscore.
fn is(annotation: &str, name: &str) -> bool {
    annotation.len() == name.len()
        && annotation.chars().zip(name.chars()).all(|(a, n)| (if a.is_ascii_alphanumeric() { a } else { '_' }) == n)
}

const SCRAPE: &str = "prometheus_io_scrape";
const PORT: &str = "prometheus_io_port";
const PATH: &str = "prometheus_io_path";
const TARGETS: &str = "prometheus_istio_io_scrape_targets";
const SECURE_PORT: &str = "prometheus_istio_io_secure_port";

fn find<'a>(annotations: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    annotations.iter().find(|(key, _)| is(key, name)).map(|(_, value)| value.as_str())
}

/// Go's spellings of a boolean.
pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Points the annotations at the agent. Returns what the agent is to be told, if there is something.
///
/// # Errors
/// A port that is none, or the proxy's own.
pub(crate) fn merge(
    annotations: &mut BTreeMap<String, String>,
    mesh: &Value,
    agent: i64,
) -> Result<Option<String>, String> {
    let scraped = find(annotations, SCRAPE).and_then(boolean).unwrap_or(true);
    let own = annotations.get("prometheus.istio.io/merge-metrics").and_then(|value| boolean(value));
    let merged = own.unwrap_or_else(|| mesh.get("enablePrometheusMerge").and_then(Value::as_bool).unwrap_or(true));
    let agent = agent.to_string();
    if !scraped || !merged || find(annotations, PORT) == Some(agent.as_str()) {
        return Ok(None);
    }
    let given = |name: &str| find(annotations, name).unwrap_or_default().to_owned();
    let (scrape, mut path, mut port) = (given(SCRAPE), given(PATH), given(PORT));
    // Targets that cannot be read count as none.
    let targets = find(annotations, TARGETS).and_then(targets).unwrap_or_default();
    match targets.first() {
        Some((first_port, first_path)) => {
            (port, path) = (first_port.clone(), first_path.clone());
            for (port, _) in &targets {
                check("scrape targets", port, &agent)?;
            }
        }
        None if !port.is_empty() => check("scrape configuration", &port, &agent)?,
        None => {}
    }
    let told = (!(scrape.is_empty() && path.is_empty() && port.is_empty())).then(|| {
        let mut told = Map::new();
        for (field, value) in [("scrape", scrape), ("path", path), ("port", port)] {
            told.insert(field.to_owned(), value.into());
        }
        if !targets.is_empty() {
            let list = targets.iter().map(|(port, path)| json!({ "port": port, "path": path })).collect();
            told.insert("targets".to_owned(), Value::Array(list));
        }
        Value::Object(told).to_string()
    });
    clear(annotations);
    for (name, value) in [("port", agent.as_str()), ("path", "/stats/prometheus"), ("scrape", "true")] {
        annotations.insert(format!("prometheus.io/{name}"), value.to_owned());
    }
    Ok(told)
}

/// Removes the annotations of an earlier injection.
pub(crate) fn clear(annotations: &mut BTreeMap<String, String>) {
    annotations.retain(|key, _| ![SCRAPE, PORT, PATH, TARGETS].iter().any(|name| is(key, name)));
}

/// Whether an earlier injection pointed the annotations at the agent.
pub(crate) fn points_at(annotations: &BTreeMap<String, String>, agent: i64) -> bool {
    find(annotations, PORT) == Some(agent.to_string().as_str())
}

/// Tells Prometheus the port of metrics over mutual TLS, where the proxy has one and the pod does not tell it itself.
pub(crate) fn secure_port(annotations: &mut BTreeMap<String, String>, proxy: &Value) {
    if find(annotations, SECURE_PORT).is_some() {
        return;
    }
    let env = proxy.get("env").and_then(Value::as_array).into_iter().flatten();
    let port = env
        .filter(|entry| entry.get("name") == Some(&"ENVOY_SECURE_MERGED_METRICS_PORT".into()))
        .filter_map(|entry| entry.get("value")?.as_str())
        .find(|port| !port.is_empty() && *port != "0");
    if let Some(port) = port {
        annotations.insert("prometheus.istio.io/secure-port".to_owned(), port.to_owned());
    }
}

fn check(what: &str, port: &str, agent: &str) -> Result<(), String> {
    let wrong = |reason: String| Err(format!("invalid prometheus {what}: {reason}"));
    let number = match port.parse::<u16>() {
        Ok(number) if number > 0 => number,
        _ => return wrong(format!("invalid port {port:?}")),
    };
    if number.to_string() == agent {
        return wrong(format!("port {port} conflicts with agent port"));
    }
    match RESERVED.iter().find(|(reserved, _)| *reserved == number) {
        Some((_, reason)) => wrong(format!("port {port} is reserved for Istio ({reason}) and cannot be scraped")),
        None => Ok(()),
    }
}

/// `port:path,…`; a path that is not given is `/metrics`.
fn targets(text: &str) -> Option<Vec<(String, String)>> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (port, path) = entry.split_once(':').unwrap_or((entry, ""));
            let path = if path.trim().is_empty() { "/metrics" } else { path.trim() };
            (!port.trim().is_empty()).then(|| (port.trim().to_owned(), path.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(given: &[(&str, &str)], mesh: Value) -> Result<(Option<String>, BTreeMap<String, String>), String> {
        let mut annotations = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let told = merge(&mut annotations, &mesh, 15020)?;
        Ok((told, annotations))
    }

    #[test]
    fn annotations_are_pointed_at_the_agent_and_the_agent_is_told() {
        let (told, after) = merged(&[("prometheus.io/port", "80"), ("prometheus-io/path", "/m")], json!({})).unwrap();
        assert_eq!(told.as_deref(), Some(r#"{"scrape":"","path":"/m","port":"80"}"#));
        assert_eq!(after.len(), 3);
        assert_eq!(after["prometheus.io/path"], "/stats/prometheus");
        let (told, after) = merged(&[], json!({})).unwrap();
        assert_eq!((told, after.len()), (None, 3));
        let (told, _) = merged(&[("prometheus.istio.io/scrape-targets", "80, 81:/x")], json!({})).unwrap();
        assert!(told.unwrap().contains(r#""targets":[{"port":"80","path":"/metrics"},{"port":"81","path":"/x"}]"#));
    }

    #[test]
    fn who_does_not_want_it_is_left_alone() {
        for (given, mesh) in [
            (("prometheus.io/scrape", "false"), json!({})),
            (("prometheus.istio.io/merge-metrics", "false"), json!({})),
            (("prometheus.io/port", "15020"), json!({})),
            (("a", "b"), json!({"enablePrometheusMerge": false})),
        ] {
            let (told, after) = merged(&[given], mesh).unwrap();
            assert_eq!((told, after.len()), (None, 1), "{given:?}");
        }
    }

    #[test]
    fn ports_of_the_proxy_are_refused() {
        assert!(merged(&[("prometheus.io/port", "15090")], json!({})).unwrap_err().contains("reserved"));
        assert!(merged(&[("prometheus.io/port", "http")], json!({})).unwrap_err().contains("invalid port"));
    }
}
