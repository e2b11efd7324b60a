//! An issuer whose key is in a token: SoftHSM.

use std::process::Command;
use std::time::{Duration, SystemTime};

use carrick_pki::issue::{self, Profile};
use carrick_pki::{KeyAlgorithm, PrivateKey};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{World, value};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A token that goes away.
struct Token(String);

impl Token {
    fn run(args: &[&str]) {
        let out = Command::new("softhsm2-util").args(args).output().expect("softhsm2-util (tools/install test)");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn with(key: &PrivateKey) -> Self {
        let token = Self(format!("carrick-issuing-{}", std::process::id()));
        Self::run(&["--init-token", "--free", "--label", &token.0, "--so-pin", "0000", "--pin", "4711"]);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), key.to_pkcs8_pem().unwrap()).unwrap();
        let path = file.path().to_str().unwrap();
        Self::run(&["--import", path, "--token", &token.0, "--label", "issuing", "--id", "01", "--pin", "4711"]);
        token
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let _ = Command::new("softhsm2-util").args(["--delete-token", "--token", &self.0]).output();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tokens_key_signs_and_only_known_libraries_are_loaded() {
    let (now, key) = (SystemTime::now(), PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap());
    let profile = Profile { common_name: "token".into(), is_ca: true, ..Profile::default() };
    let root = issue::self_signed(&key, &profile, now, now + Duration::from_secs(36_000), None).unwrap().chain;
    let token = Token::with(&key);
    let world = World::with(|_, issuing| issuing.with_token_modules(vec![MODULE.into()])).await;
    let secret = json!({"metadata": {"name": "token"}, "stringData": {"pin": "0815", "tls.crt": root}});
    world.create("", "v1", "Secret", secret).await;
    let issuer = |module: &str| -> Value {
        json!({"pkcs11": {"module": module, "tokenLabel": token.0, "keyLabel": "issuing",
            "pinSecretRef": {"name": "token", "key": "pin"}, "certificateSecretRef": {"name": "token", "key": "tls.crt"}}})
    };
    world.cert_manager("Issuer", "other", issuer("/tmp/evil.so")).await;
    let why = world.ready("Issuer", "other", "False").await;
    assert!(why.contains("start it with --pkcs11-module"), "{why}");
    world.cert_manager("Issuer", "token", issuer(MODULE)).await;
    let why = world.ready("Issuer", "token", "False").await;
    assert!(why.contains("PIN") && why.contains("wrong"), "{why}");
    let right = json!({"stringData": {"pin": "4711"}});
    world.secrets().patch("token", &PatchParams::default(), &Patch::Merge(right)).await.unwrap();
    assert_eq!(world.ready("Issuer", "token", "True").await, "The token's key signs");
    let wish = json!({"secretName": "web", "dnsNames": ["web.example"], "issuerRef": {"name": "token"}});
    world.cert_manager("Certificate", "web", wish).await;
    world.ready("Certificate", "web", "True").await;
    let (info, secret) = world.certificate("web", |_| true).await;
    assert_eq!((info.issuer.as_str(), value(&secret, "ca.crt").unwrap()), ("CN=token", root.into_bytes()));
}
