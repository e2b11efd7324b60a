//! The engine, native, Envoy or none, as the rest of the agent sees it: ready or not, counted, drained.
//!
//! Invariant: nothing outside of this file asks which of them it is, but start-up, which chooses.

use std::sync::Arc;
use std::time::Duration;

use crate::config::DrainConfig;
use crate::envoy::EnvoyEngine;
use crate::library::Library;
use crate::native::NativeEngine;

/// The engine, whichever it is.
#[derive(Clone, Debug)]
pub(crate) enum EngineHandle {
    Native(Arc<NativeEngine>),
    Envoy(Arc<EnvoyEngine>),
    Library(Arc<Library>),
}

impl EngineHandle {
    pub async fn not_ready(&self) -> Vec<String> {
        match self {
            Self::Native(native) => native.readiness.missing().into_iter().map(str::to_owned).collect(),
            Self::Envoy(envoy) => envoy.not_ready().await,
            Self::Library(library) => library.not_ready(),
        }
    }

    pub async fn prometheus(&self) -> Vec<u8> {
        match self {
            Self::Native(native) => native.engine.stats().prometheus().into_bytes(),
            Self::Envoy(envoy) => envoy.prometheus().await,
            // It has its own metrics, and tells them itself.
            Self::Library(_) => Vec::new(),
        }
    }

    pub async fn start_drain(&self) {
        match self {
            Self::Native(native) => {
                native.readiness.update(|state| state.draining = true);
                let native = Arc::clone(native);
                tokio::spawn(async move { native.engine.drain(Duration::from_secs(45)).await });
            }
            Self::Envoy(envoy) => envoy.start_drain().await,
            // Its connections are the application's.
            Self::Library(_) => {}
        }
    }

    pub async fn drain(&self, config: &DrainConfig) {
        match self {
            Self::Native(native) => native.drain(config).await,
            Self::Envoy(envoy) => envoy.drain(config).await,
            Self::Library(_) => {}
        }
    }
}
