//! What a server asks of a client's certificate beyond its chain, and which of several certificates it shows.
//! OpenSSL makes the certificates and revocation lists.

use carrick_pki::tls::{
    ClientAuth, PeerPolicy, ServerAuth, TlsOptions, TlsVersion, VerifiedPeer, client_config, server_config_of,
};
use carrick_pki::{CertificateInfo, Identity, TrustBundle};
use rustls::{CertificateError, Error};

use crate::lab::{Folder, openssl, shake};

const NONE: [&str; 0] = [];

/// A small authority of OpenSSL's.
struct Office {
    folder: Folder,
}

impl Office {
    fn new() -> Self {
        let office = Self { folder: Folder::new() };
        office.folder.write(
            "ca.cnf",
            &format!(
                "[ca]\ndefault_ca=d\n[d]\ndatabase={0}/index\ncrlnumber={0}/number\ndefault_md=sha256\ndefault_crl_days=3\n",
                office.folder.path().display()
            ),
        );
        office.folder.write("index", "");
        office.folder.write("number", "01");
        office.root("ca");
        office
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn run(&self, args: &[&str]) {
        let (ok, text) = openssl(args);
        assert!(ok, "openssl {args:?}: {text}");
    }

    fn root(&self, name: &str) {
        let (key, pem) = (self.path(&format!("{name}.key")), self.path(&format!("{name}.pem")));
        self.run(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            &key,
            "-out",
            &pem,
            "-subj",
            &format!("/CN={name}"),
            "-days",
            "30",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ]);
    }

    /// `extensions` empty makes a certificate of version 1.
    fn leaf(&self, name: &str, issuer: &str, kind: &[&str], extensions: &str) -> Identity {
        let of = |suffix: &str| self.path(&format!("{name}.{suffix}"));
        let mut request = vec!["req", "-new", "-nodes", "-newkey"];
        request.extend(kind);
        let (key, csr, pem, subject) = (of("key"), of("csr"), of("pem"), format!("/CN={name}"));
        request.extend(["-keyout", &key, "-out", &csr, "-subj", &subject]);
        self.run(&request);
        let (ca, ca_key) = (self.path(&format!("{issuer}.pem")), self.path(&format!("{issuer}.key")));
        let mut sign = vec![
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            "3",
            "-out",
            &pem,
        ];
        let file = self.folder.write(&format!("{name}.ext"), extensions).display().to_string();
        if !extensions.is_empty() {
            sign.extend(["-extfile", &file]);
        }
        self.run(&sign);
        let read = |path: &str| std::fs::read(path).unwrap();
        let chain = if issuer == "ca" || issuer == "other" { read(&pem) } else { [read(&pem), read(&ca)].concat() };
        Identity::from_pem(&chain, &read(&key)).unwrap()
    }

    fn roots(&self) -> TrustBundle {
        TrustBundle::from_pem(&std::fs::read(self.path("ca.pem")).unwrap()).unwrap()
    }

    fn crl(&self, revoke: &str) -> Vec<u8> {
        let (config, ca, key) = (self.path("ca.cnf"), self.path("ca.pem"), self.path("ca.key"));
        let common = ["ca", "-config", &config, "-keyfile", &key, "-cert", &ca];
        let (gone, list) = (self.path(&format!("{revoke}.pem")), self.path("list.pem"));
        self.run(&[&common[..], &["-revoke", &gone]].concat());
        self.run(&[&common[..], &["-gencrl", "-out", &list]].concat());
        std::fs::read(list).unwrap()
    }
}

const EC: [&str; 3] = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
const RSA: [&str; 1] = ["rsa:2048"];
const BOTH: &str = "subjectAltName=DNS:client.test,email:a@client.test\nextendedKeyUsage=clientAuth,serverAuth\n";

fn let_in(server: &Identity, policy: &PeerPolicy, client: &Identity) -> Result<VerifiedPeer, CertificateError> {
    let mut outcomes = Vec::new();
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let options = TlsOptions { min_version: version, max_version: version, ..TlsOptions::default() };
        let auth = ClientAuth::RequireChain(policy.clone());
        let server = server_config_of([server], auth, &NONE, &options).unwrap();
        let client = client_config(Some(client), ServerAuth::None, &NONE, &options).unwrap();
        outcomes.push(match shake(&client, &server, "server.test") {
            Ok((_, server)) => Ok(VerifiedPeer::of_client(&server).unwrap()),
            Err(("server", Error::InvalidCertificate(reason))) => Err(reason),
            Err(other) => panic!("{other:?}"),
        });
    }
    let second = outcomes.pop().unwrap();
    assert_eq!(outcomes.pop().unwrap().is_ok(), second.is_ok(), "TLS 1.2 and 1.3 agree");
    second
}

#[test]
fn revocation_pins_depth_and_old_versions() {
    let office = Office::new();
    let server = office.leaf("server", "ca", &EC, "subjectAltName=DNS:server.test\n");
    let good = office.leaf("good", "ca", &EC, BOTH);
    let gone = office.leaf("gone", "ca", &EC, BOTH);
    let rsa = office.leaf("rsa", "ca", &RSA, BOTH);
    let old = office.leaf("old", "ca", &RSA, "");
    office.root("other");
    let alien = office.leaf("alien", "other", &EC, BOTH);
    let old_alien = office.leaf("old-alien", "other", &EC, "");
    office.leaf("middle", "ca", &EC, "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\n");
    let deep = office.leaf("deep", "middle", &EC, BOTH);
    let plain = PeerPolicy::new(office.roots(), vec![]);
    for (what, client, expect) in [
        ("good", &good, true),
        ("to be revoked", &gone, true),
        ("RSA", &rsa, true),
        ("version 1", &old, true),
        ("another root", &alien, false),
        ("version 1 of another root", &old_alien, false),
        ("below an intermediate", &deep, true),
    ] {
        assert_eq!(let_in(&server, &plain, client).is_ok(), expect, "{what}");
    }
    assert_eq!(let_in(&server, &plain, &alien).unwrap_err(), CertificateError::UnknownIssuer);

    // Version 1 has no names, so it fits none.
    let named = PeerPolicy::new(office.roots(), vec![carrick_pki::tls::SanMatch::Exact("old".into())]);
    assert!(let_in(&server, &named, &old).is_err());
    let by_email = PeerPolicy::new(office.roots(), vec![carrick_pki::tls::SanMatch::Suffix("@client.test".into())]);
    assert!(let_in(&server, &by_email, &good).is_ok());

    let depth = PeerPolicy { max_intermediates: Some(0), ..plain.clone() };
    assert!(let_in(&server, &depth, &good).is_ok() && let_in(&server, &depth, &deep).is_err());

    // With a list in force everything below the root must be covered by one, as OpenSSL has it.
    let lists = office.crl("gone");
    let strict = PeerPolicy { roots: office.roots().with_revocations(&lists).unwrap(), ..plain.clone() };
    assert!(let_in(&server, &strict, &good).is_ok());
    assert_eq!(let_in(&server, &strict, &gone).unwrap_err(), CertificateError::Revoked);
    assert_eq!(let_in(&server, &strict, &deep).unwrap_err(), CertificateError::UnknownRevocationStatus);
    assert_eq!(let_in(&server, &strict, &old).unwrap_err(), CertificateError::UnknownRevocationStatus);
    assert!(TrustBundle::default().with_revocations(b"junk").is_err());
    let other = crate::lab::authority(&crate::lab::Folder::new(), carrick_pki::KeyAlgorithm::EcdsaP256).roots();
    let both = strict.roots.union(&other);
    assert_eq!(both.believed(), office.roots().fingerprints(), "nothing below the other root is believed");
    assert_eq!(office.roots().union(&other).believed().len(), 2);
    let text = strict.roots.revocations_pem();
    assert_eq!(office.roots().with_revocations(text.as_bytes()).unwrap(), strict.roots);

    // Pins: either list is enough, and without roots they alone decide.
    let info = CertificateInfo::read(&good.chain[0]).unwrap();
    let digest = let_in(&server, &plain, &good).unwrap().sha256().to_owned();
    for pinned in [
        PeerPolicy { keys: vec![info.spki_sha256], ..plain.clone() },
        PeerPolicy { hashes: vec![digest], ..plain.clone() },
        PeerPolicy { hashes: vec![[0; 32]], keys: vec![info.spki_sha256], ..plain.clone() },
        PeerPolicy { roots: TrustBundle::default(), hashes: vec![digest], chain: false, ..plain.clone() },
    ] {
        assert!(let_in(&server, &pinned, &good).is_ok());
        let refused = let_in(&server, &pinned, &rsa).unwrap_err();
        assert!(
            matches!(&refused, CertificateError::Other(other) if other.to_string() == "cert hash and spki"),
            "{refused:?}"
        );
    }
}

#[test]
fn everybody_is_let_in_but_only_the_good_are_named() {
    let office = Office::new();
    let server = office.leaf("server", "ca", &EC, "subjectAltName=DNS:server.test\n");
    let good = office.leaf("good", "ca", &EC, BOTH);
    office.root("other");
    let alien = office.leaf("alien", "other", &EC, BOTH);
    let policy = PeerPolicy::new(office.roots(), vec![]);
    let options = TlsOptions::default();
    let open = server_config_of([&server], ClientAuth::Unverified { required: true }, &NONE, &options).unwrap();
    for (client, named) in [(&good, true), (&alien, false)] {
        let client = client_config(Some(client), ServerAuth::None, &NONE, &options).unwrap();
        let (_, connection) = shake(&client, &open, "server.test").unwrap();
        assert_eq!(VerifiedPeer::of_unverified_client(&connection, &policy).is_some(), named);
    }
    let nobody = client_config(None, ServerAuth::None, &NONE, &options).unwrap();
    assert!(shake(&nobody, &open, "server.test").is_err());
}

#[test]
fn the_certificate_that_fits_is_shown() {
    let office = Office::new();
    let a_rsa = office.leaf("a-rsa", "ca", &RSA, "subjectAltName=DNS:a.test\n");
    let a_ec = office.leaf("a-ec", "ca", &EC, "subjectAltName=DNS:a.test\n");
    let b = office.leaf("b", "ca", &EC, "subjectAltName=DNS:*.b.test\n");
    let all = [&a_rsa, &a_ec, &b];
    let shown = |sni: &str, ciphers: &[&str]| {
        let mut options = TlsOptions::default();
        if !ciphers.is_empty() {
            options.max_version = TlsVersion::V1_2;
            options.ciphers = ciphers.iter().map(|c| (*c).to_owned()).collect();
        }
        let server = server_config_of(all, ClientAuth::None, &NONE, &TlsOptions::default()).unwrap();
        let client = client_config(None, ServerAuth::None, &NONE, &options).unwrap();
        let (client, _) = shake(&client, &server, sni).unwrap();
        let leaf = client.peer_certificates().unwrap()[0].clone();
        all.iter().position(|identity| identity.chain[0] == leaf).unwrap()
    };
    assert_eq!((shown("a.test", &[]), shown("x.b.test", &[])), (1, 2));
    assert_eq!(shown("elsewhere.test", &[]), 1, "no name fits: the best of all");
    assert_eq!(shown("a.test", &["ECDHE-ECDSA-AES128-GCM-SHA256"]), 1);
}
