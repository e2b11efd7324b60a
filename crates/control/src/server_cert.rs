//! The certificate of port 15012: signed by the mesh's own authority, renewed at half of its life and whenever the
//! authority's signing set or roots change.
//!
//! Invariant: there is always a valid one; new connections get the newest, open ones keep theirs.

use arc_swap::ArcSwap;
use carrick_pki::TrustBundle;
use carrick_pki::ca::{Authority, CaError, Subject};
use carrick_pki::tls::{ClientAuth, PeerPolicy, SanMatch, TlsError, TlsOptions, server_config};
use carrick_runtime::backoff::Backoff;
use carrick_runtime::drain::Drain;
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::roots::Published;

/// Why there is no server certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServerCertError {
    /// It could not be signed.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// It could not be made into a TLS configuration.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The current configuration and how to make the next.
pub(crate) struct ServerCert {
    authority: Arc<Authority>,
    subject: Subject,
    trust_domains: Vec<String>,
    ttl: Duration,
    config: ArcSwap<ServerConfig>,
    renew_at: ArcSwap<SystemTime>,
    made_of: ArcSwap<MadeOf>,
}

/// The signing set that signed it, and the roots that clients are verified with.
type MadeOf = (String, TrustBundle);

impl ServerCert {
    pub(crate) fn issue(
        authority: Arc<Authority>,
        subject: Subject,
        trust_domains: Vec<String>,
        ttl: Duration,
    ) -> Result<Arc<Self>, ServerCertError> {
        let made_of = of(&authority);
        let (config, renew_at) = make(&authority, &subject, &trust_domains, ttl)?;
        Ok(Arc::new(Self {
            authority,
            subject,
            trust_domains,
            ttl,
            config: ArcSwap::from(config),
            renew_at: ArcSwap::from_pointee(renew_at),
            made_of: ArcSwap::from_pointee(made_of),
        }))
    }

    /// For the next connection.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// What it was made of.
    pub(crate) fn made_of(&self) -> MadeOf {
        MadeOf::clone(&self.made_of.load())
    }

    /// Renews until drained; `published` tells when the authority's set or roots change.
    pub(crate) async fn rotate(self: Arc<Self>, mut published: watch::Receiver<Published>, drain: Drain) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            // Wall-clock time can jump: look again at least every ten minutes.
            let wait = self.renew_at.load().duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = drain.graceful() => return,
                () = tokio::time::sleep(wait.min(Duration::from_secs(600))) => {}
                Ok(()) = published.changed() => {}
            }
            let made_of = of(&self.authority);
            if SystemTime::now() < **self.renew_at.load() && made_of == **self.made_of.load() {
                continue;
            }
            match make(&self.authority, &self.subject, &self.trust_domains, self.ttl) {
                Ok((config, renew_at)) => {
                    self.config.store(config);
                    self.renew_at.store(Arc::new(renew_at));
                    self.made_of.store(Arc::new(made_of));
                    backoff.reset();
                    info!("server certificate renewed");
                }
                Err(error) => {
                    warn!(%error, "server certificate; trying again");
                    tokio::select! {
                        () = drain.graceful() => return,
                        () = backoff.wait() => {}
                    }
                }
            }
        }
    }
}

/// Read before signing: if it changes meanwhile, another is made.
fn of(authority: &Authority) -> MadeOf {
    (authority.set().id().to_owned(), authority.roots())
}

fn make(
    authority: &Authority,
    subject: &Subject,
    trust_domains: &[String],
    ttl: Duration,
) -> Result<(Arc<ServerConfig>, SystemTime), ServerCertError> {
    let now = SystemTime::now();
    let identity = authority.issue(subject, Some(ttl), now)?;
    let sans = trust_domains.iter().map(|domain| SanMatch::Prefix(format!("spiffe://{domain}/"))).collect();
    let clients = ClientAuth::Optional(PeerPolicy::new(authority.roots(), sans));
    let config = server_config(&identity, clients, &[b"h2"], &TlsOptions::default())?;
    let life = identity.not_after.duration_since(now).unwrap_or_default();
    Ok((config, now + life / 2))
}
