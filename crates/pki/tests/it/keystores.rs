//! Keystores as OpenSSL and Java's keytool read them, and key kinds as OpenSSL sees them.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use carrick_pki::issue::{self, Profile, Signer};
use carrick_pki::keystore::{self, Format, Pkcs12Profile};
use carrick_pki::{KeyAlgorithm, PrivateKey, pem};

use crate::lab::Folder;

const HOUR: Duration = Duration::from_secs(3600);

/// A key, its chain and its root, PEM.
fn leaf(algorithm: KeyAlgorithm, signer: KeyAlgorithm) -> (PrivateKey, String, String) {
    let now = SystemTime::now();
    let own = PrivateKey::generate(signer).unwrap();
    let ca = Profile { common_name: "root".into(), is_ca: true, ..Profile::default() };
    let root = issue::self_signed(&own, &ca, now, now + HOUR, None).unwrap();
    let signer = Signer::read(root.chain.as_bytes(), own.to_pem().as_bytes()).unwrap();
    let key = PrivateKey::generate(algorithm).unwrap();
    let profile = Profile { dns: vec!["shop.example".into()], ..Profile::default() };
    let request = issue::request(&key, &profile).unwrap();
    let signed = signer.sign(&request, &profile, now, now + HOUR).unwrap();
    (key, signed.chain, signed.ca)
}

fn run(program: &str, args: &[&str]) -> (bool, String) {
    let out = Command::new(program).args(args).output();
    let out = out.unwrap_or_else(|e| panic!("{program} is needed here (tools/install test): {e}"));
    let text = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (out.status.success(), text)
}

fn path(file: &Path) -> &str {
    file.to_str().unwrap()
}

#[test]
fn openssl_reads_every_profile_and_refuses_a_wrong_password() {
    let folder = Folder::new();
    let (key, chain, _) = leaf(KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP256);
    let chain = pem::certificates(chain.as_bytes()).unwrap();
    for profile in [Pkcs12Profile::LegacyRc2, Pkcs12Profile::LegacyDes, Pkcs12Profile::Modern2023] {
        let store = keystore::with_key(Format::Pkcs12(profile), "web", &key, &chain, "geheim", SystemTime::now());
        let file = folder.path().join("store.p12");
        std::fs::write(&file, store.unwrap()).unwrap();
        let read = |password: &str| {
            let password = format!("pass:{password}");
            let mut args = vec!["pkcs12", "-in", path(&file), "-passin", &password, "-nodes"];
            if profile != Pkcs12Profile::Modern2023 {
                args.push("-legacy");
            }
            run("openssl", &args)
        };
        let (ok, text) = read("geheim");
        assert!(ok, "{profile:?}: {text}");
        let found = PrivateKey::from_pem(text.as_bytes()).unwrap();
        assert_eq!(found.spki_sha256(), key.spki_sha256(), "{profile:?}");
        assert_eq!(pem::certificates(text.as_bytes()).unwrap(), chain, "{profile:?}");
        assert!(text.contains("friendlyName: web"), "{profile:?}: {text}");
        let (ok, text) = read("Geheim");
        assert!(!ok, "{profile:?}: {text}");
    }
}

#[test]
fn java_reads_what_is_written() {
    let folder = Folder::new();
    // A key longer than one block of the protector's stream, and not a multiple of it.
    let (key, chain, ca) = leaf(KeyAlgorithm::Rsa2048, KeyAlgorithm::EcdsaP256);
    let [chain, ca] = [chain, ca].map(|text| pem::certificates(text.as_bytes()).unwrap());
    let now = SystemTime::now();
    let formats = [
        ("JKS", Format::Jks),
        ("PKCS12", Format::Pkcs12(Pkcs12Profile::LegacyRc2)),
        ("PKCS12", Format::Pkcs12(Pkcs12Profile::LegacyDes)),
        ("PKCS12", Format::Pkcs12(Pkcs12Profile::Modern2023)),
    ];
    for (kind, format) in formats {
        let file = folder.path().join("store");
        std::fs::write(&file, keystore::with_key(format, "Web", &key, &chain, "changeit", now).unwrap()).unwrap();
        let list = |password| {
            run("keytool", &["-list", "-v", "-keystore", path(&file), "-storetype", kind, "-storepass", password])
        };
        let (ok, text) = list("changeit");
        assert!(ok, "{format:?}: {text}");
        assert!(text.contains("PrivateKeyEntry") && text.contains("Alias name: web"), "{format:?}: {text}");
        assert!(text.contains("Your keystore contains 1 entry"), "{format:?}: {text}");
        let (ok, text) = list("wrong-password");
        assert!(!ok, "{format:?}: {text}");
        // The key itself comes out again, which proves its protection and not only the seal.
        let out = folder.path().join("out.p12");
        let _ = std::fs::remove_file(&out);
        let (ok, text) = run(
            "keytool",
            &[
                "-importkeystore",
                "-noprompt",
                "-srckeystore",
                path(&file),
                "-srcstoretype",
                kind,
                "-srcstorepass",
                "changeit",
                "-destkeystore",
                path(&out),
                "-deststoretype",
                "PKCS12",
                "-deststorepass",
                "changeit",
            ],
        );
        assert!(ok, "{format:?}: {text}");
        let (ok, text) = run("openssl", &["pkcs12", "-in", path(&out), "-passin", "pass:changeit", "-nodes"]);
        assert!(ok, "{format:?}: {text}");
        assert_eq!(PrivateKey::from_pem(text.as_bytes()).unwrap().spki_sha256(), key.spki_sha256(), "{format:?}");
        // What is trusted is trusted in Java's eyes.
        std::fs::write(&file, keystore::trusted(format, "ca", &ca, "changeit", now).unwrap()).unwrap();
        let (ok, text) = list("changeit");
        assert!(ok && text.contains("trustedCertEntry"), "{format:?}: {text}");
    }
}

#[test]
fn every_kind_of_key_signs_and_is_signed() {
    let folder = Folder::new();
    let kinds = [KeyAlgorithm::EcdsaP521, KeyAlgorithm::Ed25519, KeyAlgorithm::EcdsaP384, KeyAlgorithm::Rsa3072];
    for algorithm in kinds {
        let (key, chain, ca) = leaf(algorithm, algorithm);
        let [certificate, root] = [("c.pem", &chain), ("r.pem", &ca)].map(|(name, text)| folder.write(name, text));
        let (ok, text) = run("openssl", &["verify", "-CAfile", path(&root), path(&certificate)]);
        assert!(ok, "{algorithm}: {text}");
        for form in [key.to_traditional_pem().unwrap(), key.to_pkcs8_pem().unwrap()] {
            let file = folder.write("k.pem", &form);
            let (ok, public) = run("openssl", &["pkey", "-in", path(&file), "-pubout"]);
            assert!(ok, "{algorithm}: {public}");
            let (_, certified) = run("openssl", &["x509", "-in", path(&certificate), "-noout", "-pubkey"]);
            assert_eq!(public, certified, "{algorithm}");
        }
    }
}
