//! A key in SoftHSM signs as a certificate's key does.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use carrick_pki::ca::CaKey;
use carrick_pki::issue::{self, Profile, Signer};
use carrick_pki::{CertificateInfo, KeyAlgorithm, PrivateKey, pem};
use carrick_token::{Location, TokenError, TokenKey};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "4711";

fn softhsm(args: &[&str]) {
    let out = Command::new("softhsm2-util").args(args).output().expect("softhsm2-util (tools/install test)");
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A token that goes away.
struct Token(String);

impl Token {
    fn new(name: &str) -> Self {
        let label = format!("carrick-{name}-{}", std::process::id());
        softhsm(&["--init-token", "--free", "--label", &label, "--so-pin", "0000", "--pin", PIN]);
        Self(label)
    }

    fn import(&self, key: &PrivateKey, label: &str, id: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), key.to_pkcs8_pem().unwrap()).unwrap();
        let path = file.path().to_str().unwrap();
        softhsm(&["--import", path, "--token", &self.0, "--label", label, "--id", id, "--pin", PIN]);
    }

    fn location(&self, key: &str) -> Location {
        Location { module: PathBuf::from(MODULE), token: self.0.clone(), key: key.to_owned() }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let _ = Command::new("softhsm2-util").args(["--delete-token", "--token", &self.0]).output();
    }
}

#[test]
fn a_tokens_key_signs_and_nobody_without_its_pin_has_it_sign() {
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let token = Token::new("sign");
    let ca = Profile { common_name: "token root".into(), is_ca: true, ..Profile::default() };
    let kinds = [("p256", KeyAlgorithm::EcdsaP256), ("p384", KeyAlgorithm::EcdsaP384), ("rsa", KeyAlgorithm::Rsa2048)];
    let mut first = None;
    for (index, (label, algorithm)) in kinds.into_iter().enumerate() {
        let key = PrivateKey::generate(algorithm).unwrap();
        token.import(&key, label, &format!("0{}", index + 1));
        let root = issue::self_signed(&key, &ca, now, now + hour, None).unwrap().chain;
        let public = CertificateInfo::public_key(&pem::certificates(root.as_bytes()).unwrap()[0]).unwrap();
        let opened = TokenKey::open(token.location(label), PIN, &public).unwrap();
        let signer = Signer::with_key(root.as_bytes(), CaKey::new(opened)).unwrap();
        let leaf = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
        let profile = Profile { dns: vec!["shop.example".into()], ..Profile::default() };
        // As often as an ECDSA signature's numbers need to have every length.
        for _ in 0..40 {
            let signed = signer.sign(&issue::request(&leaf, &profile).unwrap(), &profile, now, now + hour).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let [own, above] = [("leaf", &signed.chain), ("root", &root)].map(|(name, text)| {
                let path = folder.path().join(name);
                std::fs::write(&path, text).unwrap();
                path
            });
            let out = Command::new("openssl").arg("verify").arg("-CAfile").arg(above).arg(own).output().unwrap();
            assert!(out.status.success(), "{algorithm}: {}", String::from_utf8_lossy(&out.stderr));
        }
        first.get_or_insert((signer, public));
    }
    // While a session is open, another caller still has to know the PIN, the right key and the right token.
    let (_signer, public) = first.unwrap();
    let open = |location: Location, pin| TokenKey::open(location, pin, &public).map(drop);
    assert!(matches!(open(token.location("p256"), "0815"), Err(TokenError::Pin(_))));
    assert!(matches!(open(token.location("p384"), PIN), Err(TokenError::OtherKey | TokenError::Token(_))));
    assert!(matches!(open(token.location("none"), PIN), Err(TokenError::NoKey(_, 0))));
    let elsewhere = Location { token: "nobody's".into(), ..token.location("p256") };
    assert!(matches!(open(elsewhere, PIN), Err(TokenError::NoToken(_))));
    let unknown = Location { module: "/nonexistent.so".into(), ..token.location("p256") };
    assert!(matches!(open(unknown, PIN), Err(TokenError::Module(..))));
    open(token.location("p256"), PIN).unwrap();
}
