//! `carrick proxy-status`: which proxies are connected, and whether they run the newest configuration.
//!
//! Invariant: what is shown is what the control plane sent and what the proxy acknowledged; a refused
//! configuration shows as ERROR with the proxy's own words in the JSON form.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::{
    output::{self, Format},
    table::Table,
};

/// Resource types in the order of their columns, as `istioctl` names them.
const TYPES: [(&str, &str); 5] = [
    ("CDS", "envoy.config.cluster.v3.Cluster"),
    ("LDS", "envoy.config.listener.v3.Listener"),
    ("EDS", "envoy.config.endpoint.v3.ClusterLoadAssignment"),
    ("RDS", "envoy.config.route.v3.RouteConfiguration"),
    ("SDS", "envoy.extensions.transport_sockets.tls.v3.Secret"),
];

/// Which proxies, and how wide.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// `NAME[.NAMESPACE]`.
    pub proxy: Option<String>,
    /// Only this namespace.
    pub namespace: Option<String>,
    /// A column for each type.
    pub wide: bool,
}

/// Asks the control plane on this machine for the state of its proxies.
///
/// # Errors
/// When it does not answer.
pub async fn fetch(debug_port: u16) -> Result<Value> {
    let (status, body) = get(debug_port, "/debug/syncz")
        .await
        .with_context(|| format!("no control plane answers on 127.0.0.1:{debug_port} (is `carrick up` running?)"))?;
    ensure!(status == 200, "the control plane answered with HTTP status {status}");
    serde_json::from_slice(&body).context("the control plane's answer is not JSON")
}

/// `GET` on a local port.
///
/// # Errors
/// When nothing answers.
pub async fn get(port: u16, path: &str) -> Result<(u16, Bytes)> {
    let connect = tokio::net::TcpStream::connect(("127.0.0.1", port));
    let stream = tokio::time::timeout(Duration::from_secs(5), connect).await.context("no answer in 5 s")??;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = http::Request::get(path).header("host", "127.0.0.1").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    Ok((status, body))
}

/// Whether any proxy passes the filter.
pub fn any(answer: &Value, filter: &Filter) -> bool {
    let mut proxies = answer.get("proxies").and_then(Value::as_array).into_iter().flatten();
    proxies.any(|proxy| wanted(name(proxy), filter))
}

/// Shows the proxies that pass the filter.
///
/// # Errors
/// When the answer is not in the expected shape.
pub fn show(answer: &Value, filter: &Filter, format: Format) -> Result<String> {
    let proxies = answer.get("proxies").and_then(Value::as_array).context("the answer has no \"proxies\"")?;
    let mut found: Vec<&Value> = proxies.iter().filter(|proxy| wanted(name(proxy), filter)).collect();
    found.sort_by_key(|proxy| name(proxy).to_owned());
    if let Some(text) = output::machine(&found.iter().map(|p| (*p).clone()).collect(), format)? {
        return Ok(text);
    }
    let mut table = if filter.wide {
        Table::new(5, ["NAME", "CLUSTER", "CDS", "LDS", "EDS", "RDS", "SDS", "ISTIOD", "VERSION"])
    } else {
        Table::new(5, ["NAME", "CLUSTER", "ISTIOD", "VERSION", "SUBSCRIBED TYPES"])
    };
    for proxy in found {
        let text = |field: &str| proxy.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let states = TYPES.map(|(short, type_name)| (short, state(proxy, type_name)));
        if filter.wide {
            let cells = states.into_iter().map(|(_, state)| state.unwrap_or_else(|| "-".to_owned()));
            let head = [name(proxy).to_owned(), text("cluster")];
            table.row(head.into_iter().chain(cells).chain([text("controlPlane"), text("version")]));
        } else {
            let subscribed: Vec<&str> =
                states.iter().filter(|(_, state)| state.is_some()).map(|(short, _)| *short).collect();
            let types = match subscribed.len() {
                0 => "0".to_owned(),
                n => format!("{n} ({})", subscribed.join(",")),
            };
            table.row([name(proxy).to_owned(), text("cluster"), text("controlPlane"), text("version"), types]);
        }
    }
    Ok(table.to_string())
}

fn name(proxy: &Value) -> &str {
    proxy.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn wanted(name: &str, filter: &Filter) -> bool {
    let namespace = name.split_once('.').map_or("", |(_, namespace)| namespace);
    let named = filter.proxy.as_deref().is_none_or(|proxy| match proxy.contains('.') {
        true => proxy == name,
        false => name.split_once('.').map_or(name, |(name, _)| name) == proxy,
    });
    named && filter.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
}

/// What one type's cell says; `None` when the proxy does not subscribe to it.
fn state(proxy: &Value, type_name: &str) -> Option<String> {
    let state = proxy
        .get("types")?
        .as_array()?
        .iter()
        .find(|t| t.get("type").and_then(Value::as_str).is_some_and(|t| t.ends_with(type_name)))?;
    let flag = |field: &str| state.get(field).and_then(Value::as_str).unwrap_or_default();
    // A proxy that came back with what it had before is sent nothing, and is up to date all the same.
    let count = |field: &str| proxy.get(field).and_then(Value::as_u64);
    let current = count("target").is_some() && count("target") == count("acknowledged");
    Some(match (flag("error"), flag("sentNonce"), flag("ackedNonce")) {
        (error, _, _) if !error.is_empty() => "ERROR".to_owned(),
        (_, "", _) if current => "SYNCED".to_owned(),
        (_, "", _) => "NOT SENT".to_owned(),
        (_, sent, acked) if sent == acked => "SYNCED".to_owned(),
        (_, _, "") => "STALE (Never Acknowledged)".to_owned(),
        _ => "STALE".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer() -> Value {
        json!({"proxies": [
            {"name": "b.shop", "cluster": "Kubernetes", "controlPlane": "carrick-0", "version": "0.1.0", "types": [
                {"type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "sentNonce": "2", "ackedNonce": "2"},
                {"type": "type.googleapis.com/envoy.config.listener.v3.Listener", "sentNonce": "3", "ackedNonce": "2"}]},
            {"name": "a.shop", "cluster": "Kubernetes", "controlPlane": "carrick-0", "version": "0.1.0", "types": [
                {"type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "error": "no"}]},
        ]})
    }

    #[test]
    fn the_two_tables() {
        let short = show(&answer(), &Filter::default(), Format::Short).unwrap();
        let lines: Vec<&str> = short.lines().collect();
        assert_eq!(lines[0], "NAME       CLUSTER        ISTIOD        VERSION     SUBSCRIBED TYPES");
        assert_eq!(lines[2], "b.shop     Kubernetes     carrick-0     0.1.0       2 (CDS,LDS)");
        let wide = show(&answer(), &Filter { wide: true, ..Default::default() }, Format::Short).unwrap();
        let cells: Vec<Vec<&str>> = wide.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(cells[1][..5], ["a.shop", "Kubernetes", "ERROR", "-", "-"]);
        assert_eq!(cells[2][..5], ["b.shop", "Kubernetes", "SYNCED", "STALE", "-"]);
    }

    #[test]
    fn filters() {
        let only = |filter: Filter| show(&answer(), &filter, Format::Json).unwrap().matches("\"name\"").count();
        assert_eq!(only(Filter { proxy: Some("a".into()), ..Default::default() }), 1);
        assert_eq!(only(Filter { proxy: Some("a.other".into()), ..Default::default() }), 0);
        assert_eq!(only(Filter { namespace: Some("shop".into()), ..Default::default() }), 2);
        assert!(any(&answer(), &Filter { proxy: Some("a".into()), ..Default::default() }));
        assert!(!any(&answer(), &Filter { proxy: Some("nosuch".into()), ..Default::default() }));
    }
}
