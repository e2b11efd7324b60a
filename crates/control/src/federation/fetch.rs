//! Reading a bundle endpoint (SPIFFE Federation §5).
//!
//! Invariant: by https_web the server's name is verified by the roots of the web, and by those that MeshConfig adds; by https_spiffe the
//! server shows exactly the identity that was written down, verified by the roots of its own trust domain that are known. A redirect of
//! https_spiffe is not followed: another server would have another identity.

use std::sync::Arc;
use std::time::Duration;

use carrick_pki::TrustBundle;
use carrick_pki::spiffe_bundle::SpiffeBundle;
use carrick_pki::tls::{PeerPolicy, SanMatch, ServerAuth, TlsOptions, client_config};

use super::wanted::Endpoint;
use crate::keys::{self, KeyOptions};
use crate::renderer::Renderer;

/// What was read.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    pub(super) roots: TrustBundle,
    pub(super) sequence: Option<u64>,
    pub(super) refresh: Option<Duration>,
}

pub(super) struct Fetcher {
    renderer: Arc<Renderer>,
}

impl Fetcher {
    pub(super) fn new(renderer: Arc<Renderer>) -> Self {
        Self { renderer }
    }

    /// One bundle. `roots` are those of the domain that are known, `web` those of web servers besides the system's. Cancel safe.
    pub(super) async fn fetch(
        &self,
        endpoint: &Endpoint,
        roots: TrustBundle,
        web: &[String],
    ) -> Result<Fetched, String> {
        let options = KeyOptions { roots: web.to_vec(), ..KeyOptions::default() };
        let fetcher = keys::Fetcher::new(&options, self.renderer.clone());
        let body = match &endpoint.id {
            None => fetcher.get(endpoint.address()).await?,
            Some(id) => {
                let policy = PeerPolicy::new(roots, vec![SanMatch::Exact(id.to_string())]);
                let none: &[&[u8]] = &[];
                let tls = client_config(None, ServerAuth::Spiffe(policy), none, &TlsOptions::default());
                fetcher.get_with(endpoint.address(), tls.map_err(|e| e.to_string())?).await?
            }
        };
        let SpiffeBundle { roots, sequence, refresh } = SpiffeBundle::parse(&body).map_err(|e| e.to_string())?;
        Ok(Fetched { roots, sequence, refresh })
    }
}
