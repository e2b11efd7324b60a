//! A proxy's admin answers (`/config_dump?include_eds`, `/clusters?format=json`), held as JSON.
//!
//! Invariant: nothing is interpreted here but Envoy's outer shape: a list of typed configs.

use anyhow::{Context, Result};
use serde_json::Value;

/// What a proxy answered.
#[derive(Debug, Clone)]
pub struct Dump {
    configs: Vec<Value>,
    clusters: Value,
}

impl Dump {
    /// Reads the two answers.
    ///
    /// # Errors
    /// When they are not JSON or not in Envoy's shape.
    pub fn parse(config_dump: &[u8], clusters: Option<&[u8]>) -> Result<Self> {
        let dump: Value = serde_json::from_slice(config_dump).context("the config dump is not JSON")?;
        let configs = dump.get("configs").and_then(Value::as_array).context("the config dump has no \"configs\"")?;
        let clusters = match clusters {
            Some(bytes) => serde_json::from_slice(bytes).context("the cluster status is not JSON")?,
            None => Value::Null,
        };
        Ok(Self { configs: configs.clone(), clusters })
    }

    /// The config of this message type (its last word), if the dump has it.
    pub fn config(&self, kind: &str) -> Option<&Value> {
        self.configs.iter().find(|c| {
            c.get("@type").and_then(Value::as_str).and_then(|t| t.rsplit('.').next()).is_some_and(|t| t == kind)
        })
    }

    /// The resources found at `list[].path…` of a config, over several lists.
    pub fn resources<'a>(&'a self, kind: &str, lists: &[&str], path: &[&str]) -> Vec<&'a Value> {
        let Some(config) = self.config(kind) else { return Vec::new() };
        lists
            .iter()
            .filter_map(|list| config.get(*list).and_then(Value::as_array))
            .flatten()
            .filter_map(|item| path.iter().try_fold(item, |at, field| at.get(*field)))
            .collect()
    }

    /// The live state of clusters and their hosts.
    pub fn cluster_statuses(&self) -> &[Value] {
        self.clusters.get("cluster_statuses").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

/// The text at a path of fields, empty when there is none.
pub fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    path.iter().try_fold(value, |at, field| at.get(*field)).and_then(Value::as_str).unwrap_or_default()
}

/// The list at a path of fields, empty when there is none.
pub fn list<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    path.iter()
        .try_fold(value, |at, field| at.get(*field))
        .and_then(Value::as_array)
        .map_or(&[], |items| items.as_slice())
}

/// The number at a path of fields.
pub fn number(value: &Value, path: &[&str]) -> Option<u64> {
    path.iter().try_fold(value, |at, field| at.get(*field)).and_then(Value::as_u64)
}

/// The Istio object a resource was made from, as `name.namespace`: what Istio keeps under
/// `metadata.filter_metadata.istio.config` as an API path.
pub fn istio_config(resource: &Value, kind: &str) -> Option<String> {
    let path = text(resource, &["metadata", "filter_metadata", "istio", "config"]);
    let mut parts = path.rsplit('/');
    let (name, found, namespace) = (parts.next()?, parts.next()?, parts.next()?);
    (found == kind).then(|| format!("{name}.{namespace}"))
}

/// Asks a running pod's proxy.
///
/// # Errors
/// When there is no such pod, it has no sidecar, or its admin port does not answer.
pub async fn fetch(
    client: &kube::Client,
    name: &crate::cluster::ProxyName,
    data_dir: &std::path::Path,
    port: u16,
) -> Result<Dump> {
    use kube::ResourceExt;
    let pod = name.pod(client).await?;
    let (pod, namespace) = (pod.name_any(), name.namespace.as_str());
    let here = carrick_pod::is_here(data_dir, namespace, &pod);
    let get = async |path: &str| -> Result<Vec<u8>> {
        let answer = if here {
            carrick_pod::http_get_in_pod(data_dir, namespace, &pod, port, path).await
        } else {
            let forwarded = super::forward::connect(client, namespace, &pod, port).await?;
            carrick_pod::http_get_over(forwarded.stream, &pod, port, path).await
        };
        let answer =
            answer.with_context(|| format!("the proxy of {pod}.{namespace} does not answer on port {port}"))?;
        anyhow::ensure!(answer.status == 200, "{path} of {pod}.{namespace}: HTTP status {}", answer.status);
        Ok(answer.body)
    };
    let (configs, clusters) = (get("/config_dump?include_eds").await?, get("/clusters?format=json").await?);
    Dump::parse(&configs, Some(&clusters))
}
