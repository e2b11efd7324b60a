//! A machine's certificate: the first by a token, all others by its own.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use carrick_agent::config::{EngineKind, JoinConfig};
use carrick_agent::identity::{Folder, IdentityKeeper};
use carrick_agent::metrics::AgentMetrics;
use carrick_agent::secrets::SecretStore;
use carrick_agent::{JoinError, join};
use carrick_pki::KeyAlgorithm;
use carrick_pki::ca::Subject;
use carrick_pki::join::{Invitation, JoinToken, fingerprint};
use carrick_runtime::clock::TestClock;
use carrick_runtime::drain;

use crate::lab::{Plane, Proof, until, workload};

const HOUR: Duration = Duration::from_secs(3600);

/// What a machine is given: a token with the way to the plane, and a root's fingerprint if that is told.
fn given(plane: &Plane, pinned: Option<String>) -> (JoinConfig, Proof) {
    let token = JoinToken::generate().unwrap();
    let proof = Proof::Token(token.expose().to_string());
    let invitation = Invitation { token, fingerprint: pinned, server: Some(plane.address.to_string()) };
    let path = |name: &str| plane.folder.path().join(name);
    std::fs::write(path("join-token"), invitation.to_text().as_bytes()).unwrap();
    let config = JoinConfig {
        token_file: path("join-token"),
        server: Some(plane.address.to_string()),
        server_name: "istiod.istio-system.svc".into(),
        root_file: None,
        fingerprint: None,
        folder: path("machine"),
        algorithm: KeyAlgorithm::EcdsaP256,
    };
    (config, proof)
}

fn root_of(plane: &Plane) -> String {
    fingerprint(&plane.ca.authority.roots().roots()[0])
}

fn asked(plane: &Plane) -> Vec<Proof> {
    plane.ca.asked.lock().unwrap().clone()
}

#[tokio::test]
async fn by_the_fingerprint_of_a_root() {
    let plane = Plane::start().await;
    let (config, proof) = given(&plane, Some(root_of(&plane)));
    let told = join(&config).await.unwrap();
    assert_eq!(told["spiffe"], workload().to_string());
    assert_eq!(asked(&plane), [Proof::Nothing, proof], "nothing is shown before the root is known");
    let (identity, roots) = Folder::new(&config.folder).load().unwrap().unwrap();
    assert_eq!((identity.spiffe, &roots), (Some(workload()), &plane.ca.authority.roots()));
}

#[tokio::test]
async fn nothing_is_shown_to_who_is_not_the_meshs() {
    let (plane, other) = (Plane::start().await, Plane::start().await);
    let (config, _) = given(&plane, Some(root_of(&other)));
    assert!(matches!(join(&config).await, Err(JoinError::Fingerprint { .. })));
    assert_eq!(asked(&plane), [Proof::Nothing]);
    // What is said on the machine counts more than what came with the token.
    let (config, _) = given(&plane, Some(root_of(&plane)));
    let pinned = JoinConfig { fingerprint: Some(root_of(&other)), ..config.clone() };
    assert!(matches!(join(&pinned).await, Err(JoinError::Fingerprint { .. })));
    let filed = JoinConfig { root_file: Some(other.folder.path().join("root.pem")), ..config };
    assert!(matches!(join(&filed).await, Err(JoinError::Fetch(_))));
    let (bare, _) = given(&plane, None);
    assert!(matches!(join(&bare).await, Err(JoinError::Unproven)), "never on first use");
    assert!(asked(&plane).iter().all(|proof| *proof == Proof::Nothing), "{:?}", asked(&plane));
}

#[tokio::test]
async fn a_refused_machine_tries_again_with_the_same_key() {
    let plane = Plane::start().await;
    let (config, proof) = given(&plane, None);
    let config = JoinConfig { root_file: Some(plane.folder.path().join("root.pem")), ..config };
    *plane.ca.accepts_tokens.lock().unwrap() = false;
    let refused = join(&config).await.unwrap_err().to_string();
    assert!(refused.contains("who are you?"), "{refused}");
    let key = Folder::new(&config.folder).joining_key(KeyAlgorithm::EcdsaP256).unwrap();
    *plane.ca.accepts_tokens.lock().unwrap() = true;
    join(&config).await.unwrap();
    let (identity, _) = Folder::new(&config.folder).load().unwrap().unwrap();
    assert!(identity.key == key, "the key that the token was used up for");
    assert_eq!(asked(&plane), [proof.clone(), proof]);
}

/// A keeper of a machine's folder, without any token.
fn keeper(plane: &Plane, clock: &TestClock) -> (Arc<SecretStore>, Arc<AgentMetrics>, drain::DrainTrigger) {
    let mut config = plane.config(EngineKind::Native);
    config.identity.token_file = plane.folder.path().join("no-token");
    config.identity.folder = Some(plane.folder.path().join("machine"));
    config.identity.ttl = Duration::ZERO;
    let store = SecretStore::new(config.control_plane.root_file.clone());
    let metrics = Arc::new(AgentMetrics::default());
    let (trigger, drain) = drain::channel();
    let keeper = IdentityKeeper::new(&config, store.clone(), Arc::new(clock.clone()), metrics.clone());
    tokio::spawn(keeper.run(drain));
    (store, metrics, trigger)
}

#[tokio::test]
async fn a_machine_renews_by_its_own_key_across_restarts() {
    let plane = Plane::start().await;
    let (config, proof) = given(&plane, Some(root_of(&plane)));
    join(&config).await.unwrap();
    let clock = TestClock::new(SystemTime::now());
    let folder = Folder::new(&config.folder);
    let kept = || folder.load().unwrap().unwrap().0.serial;
    let first = kept();

    // Switched on: the kept certificate, and nobody is asked.
    let (store, _, stop) = keeper(&plane, &clock);
    until("the kept certificate", async || store.identity().is_some_and(|i| i.serial == first)).await;
    assert_eq!(asked(&plane), [Proof::Nothing, proof.clone()]);
    until("a sleeping keeper", async || clock.sleepers() > 0).await;
    clock.advance(HOUR * 13);
    until("a renewed certificate", async || store.identity().is_some_and(|i| i.serial != first)).await;
    let second = store.identity().unwrap().serial.clone();
    until("kept too", async || kept() == second).await;
    drop(stop);

    // Switched off and on again: the renewed one, and again nobody is asked.
    let before = asked(&plane).len();
    let (store, _, _stop) = keeper(&plane, &TestClock::new(SystemTime::now()));
    until("the renewed certificate", async || store.identity().is_some_and(|i| i.serial == second)).await;
    assert_eq!(asked(&plane).len(), before);
    let later = &asked(&plane)[2..];
    assert!(!later.is_empty() && later.iter().all(|p| *p == Proof::Certificate(workload())), "{later:?}");
}

#[tokio::test]
async fn a_machine_that_was_off_too_long_joins_again() {
    let plane = Plane::start().await;
    let (config, _) = given(&plane, Some(root_of(&plane)));
    join(&config).await.unwrap();
    let late = SystemTime::now() + HOUR * 25;
    let clock = TestClock::new(late);
    let (store, metrics, _stop) = keeper(&plane, &clock);
    until("a failure", async || metrics.certificate_failures.load(Relaxed) > 0).await;
    assert!(store.identity().is_none(), "a certificate that has ended is not used");
    // Somebody brings a new token: the running agent takes over what was joined with.
    let fresh = plane.ca.authority.issue(&Subject::Workload(workload()), None, late).unwrap();
    Folder::new(&config.folder).save(&fresh, &plane.ca.authority.roots()).unwrap();
    until("the new certificate", async || {
        clock.advance(Duration::from_secs(5));
        store.identity().is_some_and(|i| i.serial == fresh.serial)
    })
    .await;
}
