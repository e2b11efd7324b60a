//! The certificate of port 15012: signed by the mesh's own authority, renewed at half of its life and whenever the
//! authority's signing set or roots change.
//!
//! Invariant: there is always a valid one; new connections get the newest, open ones keep theirs. Whoever is quarantined, or revoked by a
//! list that came with the authority, gets no new connection.

use arc_swap::ArcSwap;
use carrick_pki::ca::{Authority, CaError, Subject};
use carrick_pki::tls::{ClientAuth, PeerPolicy, SanMatch, TlsError, TlsOptions, server_config};
use carrick_pki::trust::TrustError;
use carrick_pki::{Identity, Quarantine, TrustBundle};
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
    /// The revocation lists cannot be used.
    #[error(transparent)]
    Lists(#[from] TrustError),
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
    identity: ArcSwap<Identity>,
    refused: watch::Receiver<Arc<Quarantine>>,
    refuses: ArcSwap<Refuses>,
}

/// The signing set that signed it, and the roots that clients are verified with.
type MadeOf = (String, TrustBundle);

/// Who gets no connection: those of the quarantine, and of the lists (PEM) that came with the authority.
type Refuses = (Arc<Quarantine>, Option<String>);

impl ServerCert {
    pub(crate) fn issue(
        authority: Arc<Authority>,
        subject: Subject,
        trust_domains: Vec<String>,
        ttl: Duration,
        refused: watch::Receiver<Arc<Quarantine>>,
    ) -> Result<Arc<Self>, ServerCertError> {
        let (made_of, refuses) = (of(&authority), refuses(&authority, &refused));
        let (identity, renew_at) = make(&authority, &subject, ttl)?;
        let config = configured(&identity, &authority, &trust_domains, &refuses)?;
        Ok(Arc::new(Self {
            authority,
            subject,
            trust_domains,
            ttl,
            config: ArcSwap::from(config),
            renew_at: ArcSwap::from_pointee(renew_at),
            made_of: ArcSwap::from_pointee(made_of),
            identity: ArcSwap::from_pointee(identity),
            refused,
            refuses: ArcSwap::from_pointee(refuses),
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
        let mut refused = self.refused.clone();
        loop {
            // Wall-clock time can jump: look again at least every ten minutes.
            let wait = self.renew_at.load().duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = drain.graceful() => return,
                () = tokio::time::sleep(wait.min(Duration::from_secs(600))) => {}
                Ok(()) = published.changed() => {}
                Ok(()) = refused.changed() => {}
            }
            match self.renew() {
                Ok(renewed) => {
                    backoff.reset();
                    if renewed {
                        info!("server certificate renewed");
                    }
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

impl ServerCert {
    /// Does what is due. Gives whether there is another certificate.
    fn renew(&self) -> Result<bool, ServerCertError> {
        let (made_of, refuses) = (of(&self.authority), refuses(&self.authority, &self.refused));
        let is_due = SystemTime::now() >= **self.renew_at.load() || made_of != **self.made_of.load();
        if !is_due && refuses == **self.refuses.load() {
            return Ok(false);
        }
        if is_due {
            let (identity, renew_at) = make(&self.authority, &self.subject, self.ttl)?;
            self.identity.store(Arc::new(identity));
            self.renew_at.store(Arc::new(renew_at));
        }
        self.config.store(configured(&self.identity.load(), &self.authority, &self.trust_domains, &refuses)?);
        self.made_of.store(Arc::new(made_of));
        self.refuses.store(Arc::new(refuses));
        Ok(is_due)
    }
}

/// Read before signing: if it changes meanwhile, another is made.
fn of(authority: &Authority) -> MadeOf {
    (authority.set().id().to_owned(), authority.roots())
}

fn refuses(authority: &Authority, refused: &watch::Receiver<Arc<Quarantine>>) -> Refuses {
    (refused.borrow().clone(), authority.set().crl().map(str::to_owned))
}

fn make(authority: &Authority, subject: &Subject, ttl: Duration) -> Result<(Identity, SystemTime), ServerCertError> {
    let now = SystemTime::now();
    let identity = authority.issue(subject, Some(ttl), now)?;
    let life = identity.not_after.duration_since(now).unwrap_or_default();
    Ok((identity, now + life / 2))
}

fn configured(
    identity: &Identity,
    authority: &Authority,
    trust_domains: &[String],
    (quarantine, lists): &Refuses,
) -> Result<Arc<ServerConfig>, ServerCertError> {
    let sans = trust_domains.iter().map(|domain| SanMatch::Prefix(format!("spiffe://{domain}/"))).collect();
    let mut roots = authority.roots();
    if let Some(lists) = lists {
        roots = roots.with_revocations(lists.as_bytes())?;
    }
    let mut policy = PeerPolicy::new(roots, sans);
    policy.quarantine = Arc::clone(quarantine);
    Ok(server_config(identity, ClientAuth::Optional(policy), &[b"h2"], &TlsOptions::default())?)
}
