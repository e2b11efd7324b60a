//! `carrick remote-clusters`: which clusters the control plane on this machine reads.
//!
//! Invariant: the states are the control plane's own; a cluster whose Secret cannot be used shows as refused, with the reason.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    output::{self, Format},
    proxy_status::get,
    table::Table,
};

/// Asks the control plane for its clusters; the second value is what it is called.
///
/// # Errors
/// When it does not answer.
pub async fn fetch(debug_port: u16) -> Result<(Value, String)> {
    let asked = |path: &'static str| async move {
        let (status, body) = get(debug_port, path).await.with_context(|| {
            format!("no control plane answers on 127.0.0.1:{debug_port} (is `carrick up` running?)")
        })?;
        ensure!(status == 200, "the control plane answered with HTTP status {status}");
        serde_json::from_slice::<Value>(&body).context("the control plane's answer is not JSON")
    };
    let name = asked("/version").await?;
    Ok((asked("/debug/clusterz").await?, name["name"].as_str().unwrap_or_default().to_owned()))
}

/// The table, or all of it for machines.
///
/// # Errors
/// When it cannot be written in that form.
pub fn show(clusters: &Value, control_plane: &str, format: Format) -> Result<String> {
    if let Some(text) = output::machine(clusters, format)? {
        return Ok(text);
    }
    let mut table = Table::new(5, ["NAME", "SECRET", "STATUS", "ISTIOD", "REVISION"]);
    let mut reasons = String::new();
    for cluster in clusters.as_array().into_iter().flatten() {
        let text = |field: &str| cluster.get(field).and_then(Value::as_str).unwrap_or_default();
        table.row([text("id"), text("secretName"), text("syncStatus"), control_plane, "default"]);
        if !text("reason").is_empty() {
            reasons += &format!("{}: {}\n", text("id"), text("reason"));
        }
    }
    Ok(format!("{table}{reasons}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn clusters_with_their_states() {
        let clusters = json!([
            {"id": "east", "secretName": "", "syncStatus": "synced"},
            {"id": "west", "secretName": "istio-system/a", "syncStatus": "refused", "reason": "exec is not allowed"},
        ]);
        let told = show(&clusters, "carrick-vm", Format::Short).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(lines[0]), ["NAME", "SECRET", "STATUS", "ISTIOD", "REVISION"]);
        assert_eq!(words(lines[1]), ["east", "synced", "carrick-vm", "default"]);
        assert_eq!(words(lines[2]), ["west", "istio-system/a", "refused", "carrick-vm", "default"]);
        assert_eq!(lines[3], "west: exec is not allowed");
    }
}
