//! Identities that somebody else keeps: at a socket that answers SDS (another agent plays SPIRE's), and in files.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use carrick_agent::metrics::AgentMetrics;
use carrick_agent::outside::Outside;
use carrick_agent::secrets::SecretStore;
use carrick_agent::workload_api;
use carrick_base::{SpiffeId, TrustDomain};
use carrick_pki::{Authority, CaOptions, CaSet, Identity, SetTexts, Subject};
use carrick_runtime::drain;

use crate::lab::Folder;

const LIMIT: Duration = Duration::from_secs(20);

fn authority() -> Authority {
    let texts = SetTexts::self_signed(&CaOptions::default(), "", SystemTime::now()).unwrap();
    Authority::new(CaSet::check(&texts, SystemTime::now()).unwrap(), CaOptions::default())
}

fn issue(authority: &Authority) -> Identity {
    let id = SpiffeId::istio(&TrustDomain::default(), "shop", "web");
    authority.issue(&Subject::Workload(id), None, SystemTime::now()).unwrap()
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < LIMIT, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A store whose root file has another authority's roots: those of the control plane.
fn store(folder: &Path, control_plane: &Authority) -> Arc<SecretStore> {
    let file = folder.join("root.pem");
    std::fs::write(&file, control_plane.roots().to_pem()).unwrap();
    let store = SecretStore::new(file);
    store.set_outside();
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agents_socket_is_used_and_followed() {
    let (folder, spire, ours) = (Folder::new(), authority(), authority());
    let socket = folder.path().join("socket");
    assert_eq!(Outside::find(Some(&socket), None), None, "nobody is there");

    let theirs = SecretStore::new(folder.path().join("nothing.pem"));
    let first = issue(&spire);
    theirs.set_identity(Arc::new(first.clone()), spire.roots());
    let listener = workload_api::bind(&socket).unwrap().unwrap();
    let (serving, drained) = drain::channel();
    tokio::spawn(workload_api::serve(listener, Arc::clone(&theirs), TrustDomain::default(), drained));

    let outside = Outside::find(Some(&socket), None).unwrap();
    assert_eq!(outside, Outside::Socket(socket));
    let store = store(folder.path(), &ours);
    let (_trigger, end) = drain::channel();
    tokio::spawn(outside.run(Arc::clone(&store), Arc::new(AgentMetrics::default()), end));
    let serial = || store.identity().map(|identity| identity.serial.clone());
    until("the first", || serial().as_ref() == Some(&first.serial)).await;
    // Peers are verified with its roots alone, the control plane with those of the root file, which does not know this identity.
    assert_eq!((store.roots(), store.authority_roots()), (spire.roots(), ours.roots()));
    assert!(store.shown_to_authority().is_none());

    let second = issue(&spire);
    theirs.set_identity(Arc::new(second.clone()), spire.roots());
    until("the second", || serial().as_ref() == Some(&second.serial)).await;
    // It goes away: what was told stays.
    serving.drain(Duration::from_millis(100)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(serial().as_ref(), Some(&second.serial));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_used_and_half_of_a_pair_is_not() {
    let (folder, authority) = (Folder::new(), authority());
    let credentials = folder.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    let write = |name: &str, text: &str| std::fs::write(credentials.join(name), text).unwrap();
    let first = issue(&authority);
    write("cert-chain.pem", &first.chain_pem());
    write("key.pem", &first.key.to_pem());
    assert_eq!(Outside::find(None, Some(&credentials)), None, "not all of them");
    write("root-cert.pem", &authority.roots().to_pem());
    let outside = Outside::find(None, Some(&credentials)).unwrap();
    let store = store(folder.path(), &authority);
    let (_trigger, end) = drain::channel();
    tokio::spawn(outside.run(Arc::clone(&store), Arc::new(AgentMetrics::default()), end));
    let serial = || store.identity().map(|identity| identity.serial.clone());
    until("the first", || serial().as_ref() == Some(&first.serial)).await;
    assert!(store.shown_to_authority().is_some(), "the control plane knows its root");

    let second = issue(&authority);
    write("key.pem", &second.key.to_pem());
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(serial().as_ref(), Some(&first.serial), "the key is another certificate's");
    write("cert-chain.pem", &second.chain_pem());
    until("the second", || serial().as_ref() == Some(&second.serial)).await;
}
