//! The same changes with real sidecars: native proxies, each in a pod of this machine.
//!
//! Invariant: a change counts as arrived when the control plane's own page says that every proxy has acknowledged it; they are asked for
//! on its way, so that what is measured is no less than what they took.

use std::time::Instant;

use anyhow::{Context, Result};
use carrick_pod::Engine;

use super::{Wave, proxy::NAMESPACE};
use crate::{
    demo::mesh::{Mesh, PodSpec},
    process,
};

/// Pods that start at the same time.
const AT_ONCE: usize = 8;

/// Starts so many and waits until all are ready.
///
/// # Errors
/// One does not become ready.
pub(super) async fn start(mesh: &mut Mesh, count: u32) -> Result<()> {
    let names: Vec<String> = (0..count).map(|n| format!("real-{n}")).collect();
    for chunk in names.chunks(AT_ONCE) {
        for name in chunk {
            mesh.spawn(&PodSpec {
                namespace: NAMESPACE.into(),
                name: name.clone(),
                app: name.clone(),
                labels: vec![("sidecar.istio.io/inject".into(), "true".into())],
                ports: Vec::new(),
                engine: Engine::Native,
                more: vec!["--sidecar-env".into(), "PROXY_CONCURRENCY=1".into()],
                command: vec!["sleep".into(), "86400".into()],
            })?;
        }
        for name in chunk {
            mesh.ready(NAMESPACE, name).await?;
        }
    }
    mesh.converged().await
}

/// Applies an object and waits until every proxy has acknowledged it.
///
/// # Errors
/// One does not, or refuses it.
pub(super) async fn wave(mesh: &Mesh, object: &str) -> Result<Wave> {
    let pid = mesh.control_plane().context("the control plane does not run")?;
    let cpu = process::cpu(pid)?;
    let objects = carrick_api::parse::objects(object.as_bytes()).map_err(|e| anyhow::anyhow!("{e}"))?;
    let start = Instant::now();
    for object in &objects {
        crate::apply::one(mesh.client(), object, "default", false).await?;
    }
    mesh.converged().await?;
    let took = start.elapsed();
    tokio::time::sleep(super::BEHIND).await;
    Ok(Wave { took, cpu: process::cpu(pid)?.saturating_sub(cpu), responses: 0, bytes: 0 })
}
