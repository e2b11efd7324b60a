//! `carrick bench informer`: a reflector of the Rust client library that tells on its output what it sees.
//!
//! Invariant: one JSON line for each event, in the order of the library: `{"event": "put"|"gone"|"list"|"error", …}`. It judges
//! nothing; `e2e/informers/run.py` does.

use std::{io::Write as _, path::PathBuf};

use anyhow::Result;
use clap::Args;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    runtime::{reflector, watcher, watcher::Event},
};
use serde_json::{Value, json};

use crate::cluster;

/// What is watched, and how.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The API.
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// The namespace whose `ConfigMaps` are watched.
    #[arg(long, default_value = "default", value_name = "NAMESPACE")]
    namespace: String,
    /// Have the first list streamed (`sendInitialEvents`).
    #[arg(long)]
    streaming: bool,
}

/// Runs until it is killed.
///
/// # Errors
/// When there is no such API.
pub async fn run(options: &Options) -> Result<u8> {
    let client = cluster::client(&options.kubeconfig).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, &options.namespace);
    let config = watcher::Config::default();
    let config = if options.streaming { config.streaming_lists() } else { config };
    let (store, writer) = reflector::store();
    let mut events = std::pin::pin!(reflector::reflector(writer, watcher::watcher(maps, config)));
    while let Some(event) = events.next().await {
        let object = |event: &str, map: &ConfigMap| {
            let number = map.data.as_ref().and_then(|d| d.get("n"));
            json!({"event": event, "name": map.name_any(), "n": number, "rv": map.resource_version()})
        };
        tell(&match event {
            Ok(Event::Init) => json!({"event": "list"}),
            Ok(Event::InitDone) => json!({"event": "listed", "count": store.len()}),
            Ok(Event::InitApply(map) | Event::Apply(map)) => object("put", &map),
            Ok(Event::Delete(map)) => object("gone", &map),
            Err(error) => json!({"event": "error", "error": error.to_string()}),
        })?;
    }
    Ok(0)
}

fn tell(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
