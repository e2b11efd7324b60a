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
    assert_eq!(store.roots(), old.roots());

    let id = Subject::Workload(SpiffeId::istio(&TrustDomain::default(), "a", "b"));
    let identity = new.issue(&id, None, SystemTime::now()).unwrap();
    store.set_identity(Arc::new(identity), new.roots());
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

#[test]
fn secrets_of_the_control_plane_come_go_and_are_refused_by_field() {
    use carrick_xds::Any;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
    use prost::Message as _;

    let folder = folder();
    let ca = authority(&folder, "ca");
    let subject = Subject::Server { dns: vec!["edge.example".to_owned()], ips: vec![] };
    let identity = ca.issue(&subject, None, SystemTime::now()).unwrap();
    let pair = crate::sds::to_envoy("kubernetes://edge", &Secret::Identity(Arc::new(identity.with_ocsp(vec![1, 2]))));
    let any = |secret: &tls::Secret| Any { type_url: String::new(), value: secret.encode_to_vec() };
    let secret = read_remote("kubernetes://edge", &any(&pair)).unwrap();
    let store = SecretStore::new(folder.join("none"));
    store.set_remote([("kubernetes://edge".to_owned(), Some(secret))]);
    let now = store.subscribe().borrow().clone();
    assert_eq!(now.identity("kubernetes://edge").unwrap().ocsp(), Some(&[1, 2][..]));
    let roots = crate::sds::to_envoy("kubernetes://edge-cacert", &Secret::Trust(Arc::new(ca.roots())));
    assert!(
        matches!(read_remote("kubernetes://edge-cacert", &any(&roots)), Ok(Secret::Trust(t)) if t == Arc::new(ca.roots()))
    );

    // Somebody else's name, a key of another certificate, roots with more to say than we would keep: all refused, in words.
    let refused = |name: &str, secret: &tls::Secret| read_remote(name, &any(secret)).unwrap_err().to_string();
    assert!(refused("kubernetes://other", &pair).starts_with("name: "));
    let mut mixed = pair.clone();
    let other = ca.issue(&subject, None, SystemTime::now()).unwrap();
    let other = crate::sds::to_envoy("x", &Secret::Identity(Arc::new(other)));
    if let (Some(tls::secret::Type::TlsCertificate(a)), Some(tls::secret::Type::TlsCertificate(b))) =
        (&mut mixed.r#type, other.r#type)
    {
        a.private_key = b.private_key;
    }
    let text = refused("kubernetes://edge", &mixed);
    assert_eq!(text, "tls_certificate: the private key does not belong to the certificate");
    let mut more = roots.clone();
    if let Some(tls::secret::Type::ValidationContext(context)) = &mut more.r#type {
        context.max_verify_depth = Some(Default::default());
    }
    assert!(refused("kubernetes://edge-cacert", &more).starts_with("validation_context: only trusted_ca and crl"));

    store.set_remote([("kubernetes://edge".to_owned(), None)]);
    assert!(store.subscribe().borrow().identity("kubernetes://edge").is_none(), "gone is gone");
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn roots_that_are_followed_take_the_place_of_the_file_until_it_changes() {
    let folder = folder();
    let (old, new, later) = (authority(&folder, "old"), authority(&folder, "new"), authority(&folder, "later"));
    let file = folder.join("root.pem");
    std::fs::write(&file, old.roots().to_pem()).unwrap();
    let store = SecretStore::new(file.clone());
    store.follow_roots(Some(new.roots()));
    assert_eq!(store.roots(), new.roots(), "a root that was withdrawn does not live on in a file nobody writes");
    let web = Subject::Workload("spiffe://cluster.local/ns/a/sa/b".parse().unwrap());
    let identity = Arc::new(new.issue(&web, None, SystemTime::now()).unwrap());
    store.set_identity(identity, old.roots());
    assert_eq!(store.roots(), new.roots(), "what comes with a certificate is older");
    store.follow_roots(None);
    assert_eq!(store.roots(), new.roots(), "the authority is away");
    std::fs::write(&file, later.roots().to_pem()).unwrap();
    store.reload();
    assert_eq!(store.roots().roots().len(), 2, "news come by the file too");
    assert_eq!(store.newest_roots(), later.roots());
}

#[test]
fn what_is_in_force_is_what_the_engine_acknowledged() {
    let folder = folder();
    let (old, new) = (authority(&folder, "old"), authority(&folder, "new"));
    let store = SecretStore::new(folder.join("none.pem"));
    store.follow_roots(Some(old.roots()));
    assert_eq!(store.in_force().roots, old.roots(), "without streams it is what the store has");
    let trust = |roots: TrustBundle| ("ROOTCA".to_owned(), Secret::Trust(Arc::new(roots)));
    let mut stream = held::Stream::new(Arc::clone(store.held()));
    stream.sent("1", vec![trust(old.roots())]);
    stream.answered("1", true);
    store.follow_roots(Some(new.roots()));
    stream.sent("2", vec![trust(new.roots())]);
    assert_eq!(store.in_force().roots, old.roots(), "sent is not held");
    stream.answered("2", false);
    assert_eq!(store.in_force().roots, old.roots(), "refused is not held");
    stream.sent("3", vec![trust(new.roots())]);
    stream.answered("3", true);
    assert_eq!(store.in_force().roots, new.roots());
    store.follow_roots(Some(old.roots()));
    assert_eq!(store.in_force().roots, new.roots());
    drop(stream);
    assert_eq!(store.in_force().roots, old.roots(), "a stream that is gone holds nothing");
}
