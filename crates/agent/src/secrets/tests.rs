//! What the store publishes, and when.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use carrick_base::{SpiffeId, TrustDomain};
use carrick_pki::{Authority, CaOptions, Subject};

use super::*;

fn folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("carrick-secrets-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn authority(folder: &std::path::Path, name: &str) -> Authority {
    Authority::load_or_create(&folder.join(name), CaOptions::default(), SystemTime::now()).unwrap()
}

#[test]
fn roots_are_those_of_file_and_authority() {
    let folder = folder();
    let (old, new) = (authority(&folder, "old"), authority(&folder, "new"));
    let file = folder.join("root.pem");
    let store = SecretStore::new(file.clone());
    assert!(store.roots().is_empty());
    assert!(store.subscribe().borrow().by_name.is_empty(), "no roots is no secret");

    std::fs::write(&file, old.roots().to_pem()).unwrap();
    store.reload();
    assert_eq!(store.roots(), *old.roots());

    let id = Subject::Workload(SpiffeId::istio(&TrustDomain::default(), "a", "b"));
    let identity = new.issue(&id, None, SystemTime::now()).unwrap();
    store.set_identity(Arc::new(identity), new.roots().clone());
    let now = store.subscribe().borrow().clone();
    assert_eq!(now.trust("ROOTCA").unwrap().roots().len(), 2);
    assert_eq!(now.identity("default").unwrap().spiffe.as_ref().unwrap().namespace(), Some("a"));

    // A broken file changes nothing.
    std::fs::write(&file, "junk").unwrap();
    store.reload();
    assert_eq!(store.roots().roots().len(), 2);
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn files_are_followed_and_half_written_ones_ignored() {
    let folder = folder();
    let ca = authority(&folder, "ca");
    let store = SecretStore::new(folder.join("none"));
    let (cert, key) = (folder.join("c.pem"), folder.join("k.pem"));
    let name = format!("file-cert:{}~{}", cert.display(), key.display());
    store.want([name.as_str(), "kubernetes://other"]);
    store.reload();
    assert!(store.subscribe().borrow().identity(&name).is_none());

    let write = |dns: &str| {
        let subject = Subject::Server { dns: vec![dns.to_owned()], ips: vec![] };
        let identity = ca.issue(&subject, None, SystemTime::now()).unwrap();
        std::fs::write(&cert, identity.chain_pem()).unwrap();
        std::fs::write(&key, identity.key.to_pem()).unwrap();
        identity.serial
    };
    let serial = |store: &SecretStore| store.subscribe().borrow().identity(&name).map(|i| i.serial.clone());
    let first = write("one.example");
    store.reload();
    assert_eq!(serial(&store), Some(first.clone()));

    let mut changes = store.subscribe();
    changes.borrow_and_update();
    store.reload();
    assert!(!changes.has_changed().unwrap(), "nothing new, nothing published");

    // A new key beside the old certificate: not a pair, the old one stays.
    let old_cert = std::fs::read(&cert).unwrap();
    let second = write("two.example");
    let new_cert = std::fs::read(&cert).unwrap();
    std::fs::write(&cert, old_cert).unwrap();
    store.reload();
    assert_eq!(serial(&store), Some(first));
    std::fs::write(&cert, new_cert).unwrap();
    store.reload();
    assert_eq!(serial(&store), Some(second));
    let _ = std::fs::remove_dir_all(folder);
}
