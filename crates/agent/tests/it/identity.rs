//! Obtaining and renewing the certificate.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use carrick_agent::config::EngineKind;
use carrick_agent::identity::IdentityKeeper;
use carrick_agent::metrics::AgentMetrics;
use carrick_agent::secrets::SecretStore;
use carrick_base::{SpiffeId, TrustDomain};
use carrick_runtime::clock::TestClock;
use carrick_runtime::drain;

use crate::lab::{Plane, Proof, TOKEN, until, workload};

struct Kept {
    plane: Plane,
    store: Arc<SecretStore>,
    clock: TestClock,
    metrics: Arc<AgentMetrics>,
    _trigger: drain::DrainTrigger,
}

async fn keep(plane: Plane) -> Kept {
    let config = plane.config(EngineKind::Native);
    let store = SecretStore::new(config.control_plane.root_file.clone());
    let clock = TestClock::new(SystemTime::now());
    let metrics = Arc::new(AgentMetrics::default());
    let (trigger, drain) = drain::channel();
    let keeper = IdentityKeeper::new(&config, Arc::clone(&store), Arc::new(clock.clone()), Arc::clone(&metrics));
    tokio::spawn(keeper.run(drain));
    Kept { plane, store, clock, metrics, _trigger: trigger }
}

impl Kept {
    fn serial(&self) -> Option<String> {
        self.store.identity().map(|i| i.serial.clone())
    }

    async fn first(&self) -> String {
        until("a certificate", async || self.serial().is_some()).await;
        self.serial().unwrap()
    }

    /// Lets time pass until the certificate is another one.
    async fn renewed(&self, from: &str) -> String {
        until("a new certificate", async || {
            if self.clock.sleepers() > 0 {
                self.clock.advance(Duration::from_secs(60));
            }
            self.serial().as_deref() != Some(from)
        })
        .await;
        self.serial().unwrap()
    }

    fn asked(&self) -> Vec<Proof> {
        self.plane.ca.asked.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn renewed_at_half_life_with_a_new_key() {
    let kept = keep(Plane::start().await).await;
    let first = kept.first().await;
    let key = kept.store.identity().unwrap().key.clone();
    until("a sleeping keeper", async || kept.clock.sleepers() > 0).await;
    kept.clock.advance(Duration::from_secs(29 * 60));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(kept.asked().len(), 1, "not before half of its life");
    kept.clock.advance(Duration::from_secs(2 * 60));
    until("a new certificate", async || kept.serial().as_deref() != Some(&first)).await;
    assert!(kept.store.identity().unwrap().key != key, "a new key each time");
    assert_eq!(kept.asked(), [Proof::Token(TOKEN.into()), Proof::Token(TOKEN.into())]);
    assert_eq!(kept.metrics.certificates.load(Relaxed), 2);
    assert_eq!(kept.store.identity().unwrap().spiffe, Some(workload()));
    assert_eq!(kept.store.roots(), kept.plane.ca.authority.roots());
}

#[tokio::test]
async fn a_rejected_token_is_replaced_by_the_certificate() {
    let kept = keep(Plane::start().await).await;
    let first = kept.first().await;
    *kept.plane.ca.accepts_tokens.lock().unwrap() = false;
    let second = kept.renewed(&first).await;
    assert_eq!(kept.asked().last(), Some(&Proof::Certificate(workload())));
    // No token at all: the certificate alone.
    std::fs::remove_file(kept.plane.folder.path().join("token")).unwrap();
    let before = kept.asked().len();
    kept.renewed(&second).await;
    assert!(kept.asked()[before..].iter().all(|p| *p == Proof::Certificate(workload())));
}

#[tokio::test]
async fn the_token_is_read_anew_and_failures_are_retried() {
    let plane = Plane::start().await;
    let token = plane.folder.path().join("token");
    std::fs::write(&token, "stale").unwrap();
    let kept = keep(plane).await;
    until("a refusal", async || kept.metrics.certificate_failures.load(Relaxed) > 0).await;
    assert_eq!(kept.serial(), None);
    std::fs::write(&token, TOKEN).unwrap();
    until("a certificate", async || {
        kept.clock.advance(Duration::from_secs(5));
        kept.serial().is_some()
    })
    .await;
    assert_eq!(kept.asked().first(), Some(&Proof::Token("stale".into())));
}

#[tokio::test]
async fn another_ones_certificate_is_not_used() {
    let plane = Plane::start().await;
    *plane.ca.names.lock().unwrap() = SpiffeId::istio(&TrustDomain::default(), "basic", "admin");
    let kept = keep(plane).await;
    until("a failure", async || kept.metrics.certificate_failures.load(Relaxed) > 0).await;
    assert_eq!(kept.serial(), None);
}

#[tokio::test]
async fn an_authority_with_other_roots_gets_no_token() {
    let (ours, theirs) = (Plane::start().await, Plane::start().await);
    std::fs::copy(theirs.folder.path().join("root.pem"), ours.folder.path().join("root.pem")).unwrap();
    let kept = keep(ours).await;
    until("a failure", async || kept.metrics.certificate_failures.load(Relaxed) > 0).await;
    assert_eq!((kept.serial(), kept.asked().len()), (None, 0));
}

#[tokio::test]
async fn an_authority_that_is_away_is_waited_for() {
    let mut plane = Plane::start().await;
    plane.stop().await;
    let mut kept = keep(plane).await;
    until("a failure", async || kept.metrics.certificate_failures.load(Relaxed) > 0).await;
    kept.plane.listen().await;
    until("a certificate", async || {
        kept.clock.advance(Duration::from_secs(5));
        kept.serial().is_some()
    })
    .await;
    let shown = kept.metrics.render(SystemTime::now());
    assert!(shown.contains("istio_agent_cert_expiry_seconds{resource_name=\"default\"} 3"), "{shown}");
}
