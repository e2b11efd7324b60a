//! Who gets through a handshake, and which alert the others are sent.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carrick_pki::tls::{
    AlpnServerConfig, ClientAuth, PeerPolicy, SanMatch, ServerAuth, TicketKeys, TlsOptions, TlsVersion, TrustDigest,
    VerifiedPeer, client_config, in_time, server_config, with_sessions, with_tickets,
};
use carrick_pki::{Identity, KeyAlgorithm, Quarantine, Subject};
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls::{AlertDescription, Error, ProtocolVersion};

use crate::lab::{Folder, authority, mesh_policy, odd_leaf, shake, spiffe, uri, workload, workload_at};

const NO_ALPN: [&str; 0] = [];
const SNI: &str = "outbound_.8000_.v1_.web.shop.svc.cluster.local";

/// The outcome of a mesh server's look at a client.
fn outcome(client: Option<&Identity>, server: &Identity, policy: PeerPolicy) -> Result<VerifiedPeer, AlertDescription> {
    let server = server_config(server, ClientAuth::Require(policy), &NO_ALPN, &TlsOptions::default()).unwrap();
    // The client's side is not under test here.
    let client = client_config(client, ServerAuth::None, &NO_ALPN, &TlsOptions::default()).unwrap();
    match shake(&client, &server, SNI) {
        Ok((_, s)) => Ok(VerifiedPeer::of_client(&s).expect("a required peer is verified")),
        Err(("server", Error::InvalidCertificate(reason))) => Err(reason.into()),
        Err(("server", Error::NoCertificatesPresented)) => Err(AlertDescription::CertificateRequired),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn clients_by_certificate() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let ca = authority(&folder, KeyAlgorithm::EcdsaP256);
    let stranger = authority(&elsewhere, KeyAlgorithm::EcdsaP256);
    let server = workload(&ca, &spiffe("shop", "web"));
    let id = spiffe("shop", "cart");
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let evil = "spiffe://cluster.local.evil/ns/shop/sa/cart";
    use AlertDescription::{
        CertificateExpired, CertificateRequired, CertificateUnknown, UnknownCA, UnsupportedCertificate,
    };

    let cases: Vec<(&str, Option<Identity>, Option<AlertDescription>)> = vec![
        ("a workload", Some(workload(&ca, &id)), None),
        ("nobody", None, Some(CertificateRequired)),
        ("another CA", Some(workload(&stranger, &id)), Some(UnknownCA)),
        ("not yet valid", Some(workload_at(&ca, &id, now + hour, hour)), Some(CertificateExpired)),
        (
            "trust domain with our prefix",
            Some(odd_leaf(&folder, |p| p.subject_alt_names = vec![uri(evil)])),
            Some(CertificateUnknown),
        ),
        (
            "two URI names",
            Some(odd_leaf(&folder, |p| {
                p.subject_alt_names = vec![uri(id.as_str()), uri("spiffe://cluster.local/ns/x/sa/y")]
            })),
            Some(CertificateUnknown),
        ),
        (
            "a URI that is no SPIFFE ID",
            Some(odd_leaf(&folder, |p| p.subject_alt_names = vec![uri("spiffe://cluster.local/ns//sa/x")])),
            Some(CertificateUnknown),
        ),
        (
            "only a DNS name",
            Some(odd_leaf(&folder, |p| {
                p.subject_alt_names = vec![SanType::DnsName("spiffe.example".try_into().unwrap())]
            })),
            Some(CertificateUnknown),
        ),
        ("no name", Some(odd_leaf(&folder, |_| {})), Some(CertificateUnknown)),
        (
            "for servers only",
            Some(odd_leaf(&folder, |p| {
                p.subject_alt_names = vec![uri(id.as_str())];
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            })),
            Some(UnsupportedCertificate),
        ),
    ];
    for (what, client, alert) in cases {
        let result = outcome(client.as_ref(), &server, mesh_policy(&ca.roots()));
        match (&result, alert) {
            (Ok(peer), None) => assert_eq!(peer.spiffe(), Some(&id), "{what}"),
            (Err(got), Some(want)) => assert_eq!(*got, want, "{what}"),
            _ => panic!("{what}: {result:?}"),
        }
    }
    // Expired: signed by an older authority, since one never signs in the past.
    let old_folder = Folder::new();
    let old = crate::lab::authority_at(&old_folder, KeyAlgorithm::EcdsaP256, now - 48 * hour);
    let expired = workload_at(&old, &id, now - 2 * hour, hour);
    assert_eq!(outcome(Some(&expired), &server, mesh_policy(&old.roots())), Err(CertificateExpired));
    // No roots: nobody.
    let nobody = PeerPolicy::new(carrick_pki::TrustBundle::default(), vec![]);
    assert_eq!(outcome(Some(&workload(&ca, &id)), &server, nobody), Err(UnknownCA));
    // A changed certificate.
    let mut broken = workload(&ca, &id);
    let mut der = broken.chain[0].as_ref().to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    broken = Identity::new(vec![der.into()], broken.key).unwrap();
    let alert = outcome(Some(&broken), &server, mesh_policy(&ca.roots())).unwrap_err();
    assert_eq!(alert, UnknownCA);
}

#[test]
fn what_is_proven_about_a_client() {
    let folder = Folder::new();
    let ca = authority(&folder, KeyAlgorithm::EcdsaP256);
    let client = workload(&ca, &spiffe("shop", "cart"));
    let peer = outcome(Some(&client), &workload(&ca, &spiffe("shop", "web")), mesh_policy(&ca.roots())).unwrap();
    let leaf = folder.write("leaf.pem", &client.chain_pem());
    let (ok, text) = crate::lab::openssl(&["x509", "-noout", "-fingerprint", "-sha256", "-in", leaf.to_str().unwrap()]);
    assert!(ok);
    let judge = text.split_once('=').unwrap().1.trim().replace(':', "").to_lowercase();
    assert_eq!(peer.sha256_hex(), judge);
    assert_eq!((peer.subject(), peer.uris()), ("", &["spiffe://cluster.local/ns/shop/sa/cart".to_owned()][..]));
}

#[test]
fn servers_by_secure_naming() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let ca = authority(&folder, KeyAlgorithm::EcdsaP256);
    let stranger = authority(&elsewhere, KeyAlgorithm::EcdsaP256);
    let roots = || ca.roots();
    let exact = |name: &str| ServerAuth::Spiffe(PeerPolicy::new(roots(), vec![SanMatch::Exact(name.into())]));
    let web = workload(&ca, &spiffe("shop", "web"));
    let dns = ca
        .issue(&Subject::Server { dns: vec!["istiod.istio-system.svc".into()], ips: vec![] }, None, SystemTime::now())
        .unwrap();
    let fake = workload(&stranger, &spiffe("shop", "web"));
    let cases = [
        ("the right one", &web, exact("spiffe://cluster.local/ns/shop/sa/web"), SNI, true),
        ("another workload", &web, exact("spiffe://cluster.local/ns/shop/sa/cart"), SNI, false),
        ("no list", &web, ServerAuth::Spiffe(PeerPolicy::new(roots(), vec![])), SNI, true),
        ("another CA, no list", &fake, ServerAuth::Spiffe(PeerPolicy::new(roots(), vec![])), SNI, false),
        ("DNS certificate as a workload", &dns, ServerAuth::Spiffe(PeerPolicy::new(roots(), vec![])), SNI, false),
        ("DNS certificate by chain", &dns, ServerAuth::Chain(PeerPolicy::new(roots(), vec![])), SNI, true),
        ("the control plane", &dns, ServerAuth::Dns { roots: roots() }, "istiod.istio-system.svc", true),
        ("not its name", &dns, ServerAuth::Dns { roots: roots() }, "example.com", false),
        ("a workload as control plane", &web, ServerAuth::Dns { roots: roots() }, "istiod.istio-system.svc", false),
        ("anything", &fake, ServerAuth::None, SNI, true),
    ];
    for (what, server, auth, sni, accepted) in cases {
        let server = server_config(server, ClientAuth::None, &NO_ALPN, &TlsOptions::default()).unwrap();
        let client = client_config(None, auth.clone(), &NO_ALPN, &TlsOptions::default()).unwrap();
        let result = shake(&client, &server, sni);
        assert_eq!(result.is_ok(), accepted, "{what}: {:?}", result.err());
        if let Ok((c, s)) = result {
            let proven = VerifiedPeer::of_server(&c, &auth);
            assert_eq!(proven.is_some(), !matches!(auth, ServerAuth::None), "{what}");
            assert_eq!(VerifiedPeer::of_client(&s), None, "{what}");
            assert_eq!(s.server_name(), Some(sni), "{what}");
        }
    }
}

#[test]
fn optional_clients_are_still_verified() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let ca = authority(&folder, KeyAlgorithm::EcdsaP256);
    let server = workload(&ca, &spiffe("shop", "web"));
    let auth = ClientAuth::Optional(mesh_policy(&ca.roots()));
    let server = server_config(&server, auth, &NO_ALPN, &TlsOptions::default()).unwrap();
    let client =
        |identity: Option<&Identity>| client_config(identity, ServerAuth::None, &NO_ALPN, &TlsOptions::default());
    let (_, s) = shake(&client(None).unwrap(), &server, SNI).unwrap();
    assert_eq!(VerifiedPeer::of_client(&s), None);
    let ours = workload(&ca, &spiffe("shop", "cart"));
    let (_, s) = shake(&client(Some(&ours)).unwrap(), &server, SNI).unwrap();
    assert!(VerifiedPeer::of_client(&s).is_some());
    let fake = workload(&authority(&elsewhere, KeyAlgorithm::EcdsaP256), &spiffe("shop", "cart"));
    assert!(shake(&client(Some(&fake)).unwrap(), &server, SNI).is_err());
}

#[test]
fn versions_groups_and_protocols() {
    let folder = Folder::new();
    let ca = authority(&folder, KeyAlgorithm::Rsa2048);
    let server = workload(&ca, &spiffe("shop", "web"));
    let only = |version| TlsOptions { min_version: version, max_version: version, ..TlsOptions::default() };
    let http = ["h2", "http/1.1"];
    let config = |options: &TlsOptions| server_config(&server, ClientAuth::None, &http, options).unwrap();
    let ask = |alpn: &[&str], options: &TlsOptions| client_config(None, ServerAuth::None, alpn, options).unwrap();
    let both = TlsOptions::default();

    let (c, _) = shake(&ask(&["http/1.1", "h2"], &both), &config(&both), SNI).unwrap();
    assert_eq!(c.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(c.alpn_protocol(), Some(&b"h2"[..]), "the server's order decides");
    assert_eq!(c.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(c.handshake_kind(), Some(rustls::HandshakeKind::Full));

    let (c, _) = shake(&ask(&http, &only(TlsVersion::V1_2)), &config(&both), SNI).unwrap();
    assert_eq!(c.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    assert!(shake(&ask(&http, &only(TlsVersion::V1_2)), &config(&only(TlsVersion::V1_3)), SNI).is_err());

    // Unknown protocols only: refused by rustls itself, let through without one as Envoy does.
    let client = ask(&["istio-peer-exchange", "istio"], &both);
    assert!(shake(&client, &config(&both), SNI).is_err());
    let lenient = AlpnServerConfig::new(config(&both));
    let chosen = lenient.choose([&b"istio-peer-exchange"[..], b"istio"].into_iter());
    let (c, _) = shake(&client, &chosen, SNI).unwrap();
    assert_eq!(c.alpn_protocol(), None);
    let chosen = lenient.choose([&b"istio"[..], b"http/1.1"].into_iter());
    let (c, _) = shake(&ask(&["istio", "http/1.1"], &both), &chosen, SNI).unwrap();
    assert_eq!(c.alpn_protocol(), Some(&b"http/1.1"[..]));
}

#[test]
fn sessions_are_not_resumed() {
    let folder = Folder::new();
    let ca = authority(&folder, KeyAlgorithm::EcdsaP256);
    let (web, cart) = (workload(&ca, &spiffe("shop", "web")), workload(&ca, &spiffe("shop", "cart")));
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let options = TlsOptions { min_version: version, max_version: version, ..TlsOptions::default() };
        let server = server_config(&web, ClientAuth::Require(mesh_policy(&ca.roots())), &NO_ALPN, &options).unwrap();
        let auth = ServerAuth::Spiffe(mesh_policy(&ca.roots()));
        let client = client_config(Some(&cart), auth, &NO_ALPN, &options).unwrap();
        for _ in 0..3 {
            let (c, _) = shake(&client, &server, SNI).unwrap();
            assert_eq!(c.handshake_kind(), Some(rustls::HandshakeKind::Full), "{version:?}");
        }
    }
}

#[test]
fn sessions_are_resumed_under_the_trust_that_made_them_alone() {
    let folder = Folder::new();
    let ca = authority(&folder, KeyAlgorithm::EcdsaP256);
    let (web, cart) = (workload(&ca, &spiffe("shop", "web")), workload(&ca, &spiffe("shop", "cart")));
    let options = TlsOptions::default();
    let keys = Arc::new(TicketKeys::default());
    let server = |keys: &Arc<TicketKeys>, trust: &str| {
        let auth = ClientAuth::Require(mesh_policy(&ca.roots()));
        let config = server_config(&web, auth, &NO_ALPN, &options).unwrap();
        with_tickets(config, keys, TrustDigest::of([trust.as_bytes()]))
    };
    let auth = || ServerAuth::Spiffe(mesh_policy(&ca.roots()));
    let client = client_config(Some(&cart), auth(), &NO_ALPN, &options).unwrap();
    let sessions = Arc::default();
    let (here, there) = ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
    let kind = |address, server: &Arc<rustls::ServerConfig>| {
        let (c, s) = shake(&with_sessions(&client, &sessions, address), server, SNI).unwrap();
        let peer = VerifiedPeer::of_client(&s).expect("known in either case");
        assert_eq!(peer.spiffe(), Some(&spiffe("shop", "cart")));
        let late = SystemTime::now() + Duration::from_secs(24 * 3600);
        let resumed = c.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        assert!(in_time(&s, SystemTime::now()) && in_time(&c, SystemTime::now()));
        assert_eq!(
            (in_time(&s, late), in_time(&c, late)),
            (!resumed, !resumed),
            "certificates end inside of sessions too"
        );
        resumed
    };
    let now = server(&keys, "roots 1");
    assert!(!kind(here, &now), "nothing is known yet");
    assert!(kind(here, &now));
    assert!(kind(here, &server(&keys, "roots 1")), "the same trust in another worker");
    assert!(!kind(there, &now), "another endpoint");
    assert!(!kind(here, &server(&keys, "roots 2")), "other roots, names, or quarantine");
    assert!(kind(here, &server(&keys, "roots 2")));
    assert!(!kind(here, &server(&Arc::default(), "roots 2")), "another process");
    // A new identity is a new configuration, which remembers nothing.
    let renewed = client_config(Some(&workload(&ca, &spiffe("shop", "cart"))), auth(), &NO_ALPN, &options).unwrap();
    let (c, _) = shake(&with_sessions(&renewed, &sessions, there), &now, SNI).unwrap();
    assert_eq!(c.handshake_kind(), Some(rustls::HandshakeKind::Full), "even where somebody gives it old sessions");
}

#[test]
fn whoever_is_quarantined_or_on_our_own_list_is_refused() {
    let folder = Folder::new();
    let ca = authority(&folder, KeyAlgorithm::default());
    let server = workload(&ca, &spiffe("shop", "server"));
    let (good, bad) = (workload(&ca, &spiffe("shop", "good")), workload(&ca, &spiffe("shop", "bad")));
    let judge = |change: &dyn Fn(&mut PeerPolicy), client: &Identity| {
        let mut policy = PeerPolicy::new(ca.roots().clone(), Vec::new());
        change(&mut policy);
        outcome(Some(client), &server, policy).map(|_| ())
    };
    let by_identity = |policy: &mut PeerPolicy| {
        policy.quarantine = Arc::new(Quarantine::new([spiffe("shop", "bad").to_string()], []));
    };
    let by_serial = |policy: &mut PeerPolicy| policy.quarantine = Arc::new(Quarantine::new([], [bad.serial.clone()]));
    let now = SystemTime::now();
    let list = ca.revocation_list(&[(bad.serial.clone(), now)], 1, now).unwrap().expect("one root");
    let by_list = |policy: &mut PeerPolicy| {
        policy.roots = policy.roots.clone().with_revocations(list.as_bytes()).unwrap();
    };
    for change in [&by_identity as &dyn Fn(&mut PeerPolicy), &by_serial, &by_list] {
        assert_eq!(judge(change, &good), Ok(()));
        assert_eq!(judge(change, &bad), Err(AlertDescription::CertificateRevoked));
    }
    assert!(ca.revocation_list(&[("no number".to_owned(), now)], 2, now).is_err());
}
