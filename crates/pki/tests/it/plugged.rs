//! Signing sets that are brought along: which are taken, what is said of the others, and how one takes over from another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carrick_pki::ca::CaError;
use carrick_pki::{Authority, CaOptions, CaSet, KeyAlgorithm, SetTexts, Subject, TrustBundle, csr};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints,
};

use crate::lab::{Folder, openssl, spiffe};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A certificate that may sign, with its key.
struct Link {
    pem: String,
    key: KeyPair,
    params: CertificateParams,
}

fn params(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * 10).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    change(&mut params);
    params
}

fn root(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Link {
    let (key, params) = (KeyPair::generate().unwrap(), params(name, change));
    Link { pem: params.self_signed(&key).unwrap().pem(), key, params }
}

impl Link {
    fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Link {
        let (key, params) = (KeyPair::generate().unwrap(), params(name, change));
        let issuer = Issuer::from_params(&self.params, &self.key);
        Link { pem: params.signed_by(&key, &issuer).unwrap().pem(), key, params }
    }
}

fn nothing(_: &mut CertificateParams) {}

/// The texts of Istio's Secret.
fn cacerts(signer: &Link, chain: &[&Link], root: &Link) -> BTreeMap<String, Vec<u8>> {
    let chain: String = chain.iter().map(|link| link.pem.as_str()).collect();
    let mut data = BTreeMap::from([
        ("ca-cert.pem".to_owned(), signer.pem.clone().into_bytes()),
        ("ca-key.pem".to_owned(), signer.key.serialize_pem().into_bytes()),
        ("root-cert.pem".to_owned(), root.pem.clone().into_bytes()),
    ]);
    if !chain.is_empty() {
        data.insert("cert-chain.pem".to_owned(), chain.into_bytes());
    }
    data
}

fn check(data: &BTreeMap<String, Vec<u8>>) -> Result<CaSet, CaError> {
    let texts = SetTexts::of_secret("Secret istio-system/cacerts", data)?.expect("a set");
    CaSet::check(&texts, SystemTime::now())
}

#[test]
fn intermediates_of_any_depth_in_any_order() {
    let root = root("root", nothing);
    let (a, folder) = (root.sign("a", nothing), Folder::new());
    let b = a.sign("b", nothing);
    let signer = b.sign("signer", nothing);
    // Istio's chain starts with the signer and may end with the root.
    let set = check(&cacerts(&signer, &[&a, &root, &signer, &b], &root)).unwrap();
    assert_eq!(set.path().len(), 3, "signer, b, a");
    let ca = Authority::new(set, CaOptions::default());
    let (_, request) = csr::new(KeyAlgorithm::EcdsaP256).unwrap();
    let issued = ca.sign(&request, &Subject::Workload(spiffe("a", "b")), None, SystemTime::now()).unwrap();
    assert_eq!(issued.chain.len(), 4);
    let file = |name: &str, text: &str| folder.write(name, text).to_str().unwrap().to_owned();
    let (trusted, leaf) = (file("root.pem", &issued.root_bundle), file("leaf.pem", &issued.chain[0]));
    let rest = file("rest.pem", &issued.chain[1..].concat());
    let (ok, text) = openssl(&["verify", "-x509_strict", "-CAfile", &trusted, "-untrusted", &rest, &leaf]);
    assert!(ok, "{text}");
}

#[test]
fn the_names_of_tls_secrets_are_taken_too() {
    let root = root("root", nothing);
    let signer = root.sign("signer", nothing);
    let data = BTreeMap::from([
        ("tls.crt".to_owned(), format!("{}{}", signer.pem, root.pem).into_bytes()),
        ("tls.key".to_owned(), signer.key.serialize_pem().into_bytes()),
        ("ca.crt".to_owned(), root.pem.clone().into_bytes()),
    ]);
    let set = check(&data).unwrap();
    assert_eq!((set.path().len(), set.roots().roots().len()), (1, 1));
    // Written to a folder and read again it is the same set.
    let folder = Folder::new();
    let dir = folder.path().join("kept");
    SetTexts::of_secret("s", &data).unwrap().unwrap().write(&dir).unwrap();
    let kept = CaSet::check(&SetTexts::read(&dir).unwrap().unwrap(), SystemTime::now()).unwrap();
    assert_eq!(kept.id(), set.id());
    assert!(SetTexts::read(folder.path()).unwrap().is_none(), "a folder without a set");
}

#[test]
fn what_is_wrong_is_told_with_its_file() {
    let now = SystemTime::now();
    let good = root("root", nothing);
    let middle = good.sign("middle", nothing);
    let signer = middle.sign("signer", nothing);
    let other = root("other", nothing);
    let short = good.sign("short", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let below_short = short.sign("below", nothing);
    let old = good.sign("old", |p| p.not_after = (now - DAY / 2).into());
    let early = good.sign("early", |p| p.not_before = (now + DAY).into());
    let leaf = good.sign("leaf", |p| p.is_ca = IsCa::ExplicitNoCa);
    let usage = good.sign("usage", |p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let bank = |p: &mut CertificateParams| {
        let only = vec![GeneralSubtree::DnsName("bank.example".into())];
        p.name_constraints = Some(NameConstraints { permitted_subtrees: only, excluded_subtrees: Vec::new() });
    };
    let bound = good.sign("bound", bank);
    let old_root = root("old root", |p| p.not_after = (now - DAY / 2).into());
    let under_old = old_root.sign("under old", nothing);
    let mut foreign_key = cacerts(&signer, &[&middle], &good);
    foreign_key.insert("ca-key.pem".into(), other.key.serialize_pem().into_bytes());
    let mut no_root = cacerts(&signer, &[&middle], &good);
    no_root.remove("root-cert.pem");
    for (data, file, reason) in [
        (foreign_key, "ca-key.pem", "not that of the certificate in ca-cert.pem"),
        (no_root, "root-cert.pem", "missing, although ca-cert.pem is there"),
        (cacerts(&signer, &[], &good), "ca-cert.pem", "was signed by \"CN=middle\", which is not there"),
        (cacerts(&signer, &[&middle], &other), "cert-chain.pem", "was signed by \"CN=root\", which is not there"),
        (cacerts(&below_short, &[&short], &good), "cert-chain.pem", "(path length)"),
        (cacerts(&old, &[], &good), "ca-cert.pem", "has expired"),
        (cacerts(&early, &[], &good), "ca-cert.pem", "is not valid yet"),
        (cacerts(&leaf, &[], &good), "ca-cert.pem", "is not a CA certificate"),
        (cacerts(&usage, &[], &good), "ca-cert.pem", "may not sign certificates"),
        (cacerts(&bound, &[], &good), "ca-cert.pem", "name constraints"),
        (cacerts(&under_old, &[], &old_root), "root-cert.pem", "has expired"),
    ] {
        let error = check(&data).unwrap_err().to_string();
        assert!(error.starts_with(&format!("Secret istio-system/cacerts: {file}: ")), "{error}");
        assert!(error.contains(reason), "{reason:?} is not in {error:?}");
    }
}

#[test]
fn a_set_takes_over_only_under_published_roots() {
    let folder = Folder::new();
    let now = SystemTime::now();
    let ca = Authority::load_or_create(&folder.path().join("ca"), CaOptions::default(), now).unwrap();
    let old = ca.set();
    let new = root("new", nothing);
    let set = Arc::new(check(&cacerts(&new.sign("signer", nothing), &[], &new)).unwrap());

    let error = ca.switch(Arc::clone(&set), now).unwrap_err();
    assert!(matches!(error, CaError::Canary(_)), "{error}");
    assert_eq!(ca.set().id(), old.id(), "the old one stays in force");

    let both = old.roots().union(set.roots());
    ca.publish(both.clone(), now).unwrap();
    ca.switch(Arc::clone(&set), now).unwrap();
    assert_eq!((ca.set().id(), ca.roots()), (set.id(), both.clone()));
    assert!(matches!(ca.publish(old.roots().clone(), now), Err(CaError::Canary(_))), "its own root is needed");
    assert_eq!(ca.roots(), both);
    ca.publish(set.roots().clone(), now).unwrap();
    assert_eq!(ca.roots().roots().len(), 1);
}

#[test]
fn two_roots_of_one_name_are_told_apart() {
    // OpenSSL looks for an issuer by name first.
    let (folder, now) = (Folder::new(), SystemTime::now());
    let options = CaOptions::default();
    let sets =
        ["", "", "2"].map(|name| CaSet::check(&SetTexts::self_signed(&options, name, now).unwrap(), now).unwrap());
    let all = sets.iter().fold(carrick_pki::TrustBundle::default(), |all, set| all.union(set.roots()));
    let bundle = folder.write("all.pem", &all.to_pem()).to_str().unwrap().to_owned();
    for set in sets {
        let ca = Authority::new(set, options.clone());
        ca.publish(all.clone(), now).unwrap();
        let (_, request) = csr::new(KeyAlgorithm::EcdsaP256).unwrap();
        let issued = ca.sign(&request, &Subject::Workload(spiffe("a", "b")), None, now).unwrap();
        let leaf = folder.write("leaf.pem", &issued.chain[0]).to_str().unwrap().to_owned();
        let (ok, text) = openssl(&["verify", "-x509_strict", "-CAfile", &bundle, &leaf]);
        assert!(ok, "{text}");
    }
}

#[test]
fn lists_of_intermediates_cover_what_they_signed_and_are_not_made_for_others() {
    let root = root("root", nothing);
    let now = SystemTime::now();
    let sets = ["old", "new"].map(|name| Arc::new(check(&cacerts(&root.sign(name, nothing), &[], &root)).unwrap()));
    let [old, new] = sets.clone().map(|set| Authority::new(set, CaOptions::default()));
    new.hold(sets.to_vec());
    let issue = |ca: &Authority| {
        let (_, request) = csr::new(KeyAlgorithm::EcdsaP256).unwrap();
        ca.sign(&request, &Subject::Workload(spiffe("a", "b")), None, now).unwrap()
    };
    let (revoked, good, of_old) = (issue(&new), issue(&new), issue(&old));
    let issuers: BTreeSet<String> = sets.iter().map(|set| set.key_id()).collect();
    let lists =
        |issuers: &BTreeSet<String>| new.revocation_lists(&[(revoked.serial.clone(), now)], issuers, 1, now).unwrap();
    let pem = lists(&issuers).unwrap();
    assert_eq!(pem.matches("BEGIN X509 CRL").count(), 2);
    let folder = Folder::new();
    let file = |name: &str, text: &str| folder.write(name, text).to_str().unwrap().to_owned();
    let (trusted, crl) = (file("root.pem", &root.pem), file("lists.pem", &pem));
    for (issued, accepted) in [(&revoked, false), (&good, true), (&of_old, true)] {
        let (leaf, rest) = (file("leaf.pem", &issued.chain[0]), file("rest.pem", &issued.chain[1..].concat()));
        let args = ["verify", "-crl_check", "-CRLfile", &crl, "-CAfile", &trusted, "-untrusted", &rest, &leaf];
        let (ok, text) = openssl(&args);
        assert_eq!(ok, accepted, "{text}");
        assert!(accepted || text.contains("revoked"), "{text}");
    }
    // Whoever else has signed something, or may sign below another root, would be refused everywhere.
    let stranger = BTreeSet::from(["ab".to_owned()]);
    assert_eq!(lists(&stranger), None);
    let other = self::root("other", nothing);
    let both = new.roots().union(&TrustBundle::from_pem(other.pem.as_bytes()).unwrap());
    new.publish(both, now).unwrap();
    assert_eq!(lists(&issuers), None);
}
