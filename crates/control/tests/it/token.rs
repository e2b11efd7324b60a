//! The issuer behind the mesh's authority is swapped live: self-signed, then a file, then a key in a token (SoftHSM).

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use carrick_pki::issue::{self, Profile};
use carrick_pki::{CaOptions, KeyAlgorithm, PrivateKey, SetTexts};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::roots::{command, proxy, start, until};

pub(crate) const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A token that goes away.
struct Token(String);

impl Token {
    fn run(args: &[&str]) {
        let out = Command::new("softhsm2-util").args(args).output().expect("softhsm2-util (tools/install test)");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// With a key, whose self-signed certificate is in the folder; the key is not.
    fn with_set(folder: &Path) -> Self {
        let key = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key");
        let now = SystemTime::now();
        let profile = Profile { common_name: "root in a token".into(), is_ca: true, ..Profile::default() };
        let root =
            issue::self_signed(&key, &profile, now, now + Duration::from_secs(864_000), None).expect("signed").chain;
        std::fs::create_dir_all(folder).expect("a folder");
        for name in ["ca-cert.pem", "root-cert.pem"] {
            std::fs::write(folder.join(name), &root).expect("written");
        }
        let token = Self(format!("carrick-control-{}", std::process::id()));
        Self::run(&["--init-token", "--free", "--label", &token.0, "--so-pin", "0000", "--pin", "4711"]);
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), key.to_pkcs8_pem().expect("PKCS#8")).expect("written");
        let path = file.path().to_str().expect("a path");
        Self::run(&["--import", path, "--token", &token.0, "--label", "mesh", "--id", "01", "--pin", "4711"]);
        token
    }

    fn uri(&self, module: &str, pin: &Path) -> String {
        format!("pkcs11:token={};object=mesh?module-path={module}&pin-source={}", self.0, pin.display())
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let _ = Command::new("softhsm2-util").args(["--delete-token", "--token", &self.0]).output();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_issuer_goes_from_self_signed_to_a_file_to_a_token() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (file, kept) = (dir.path().join("file"), dir.path().join("token"));
    SetTexts::self_signed(&CaOptions::default(), "in a file", SystemTime::now())
        .expect("a set")
        .write(&file)
        .expect("written");
    let token = Token::with_set(&kept);
    let pin = dir.path().join("pin");
    std::fs::write(&pin, "0815\n").expect("written");
    let (world, _published) = start(dir.path()).await;
    let (_running, awake) = watch::channel(false);
    let follower = proxy(&world, "web", awake.clone());
    let done = |now: &Value| now["rotation"].is_null();
    until(dir.path(), "it reports", |now| now["proxies"].as_array().is_some_and(|all| all.len() == 1)).await;

    let begun = command(dir.path(), json!({"command": "rotate", "dir": file})).await;
    assert!(begun.get("error").is_none(), "{begun}");
    let now = until(dir.path(), "to the file", done).await;
    assert!(now["issuer"]["subject"].as_str().is_some_and(|s| s.contains("in a file")), "{now:#}");
    let of_file = now["issuer"].clone();

    // Whatever keeps the token from signing is told before anything changes.
    let rotate = |uri: String| command(dir.path(), json!({"command": "rotate", "dir": kept, "token": uri}));
    for (uri, why) in [
        (token.uri("/tmp/evil.so", &pin), "/tmp/evil.so is not among the libraries that the control plane may load"),
        (token.uri(MODULE, &pin), "the PIN of the token"),
        (token.uri(MODULE, Path::new("/nonexistent")), "pin-source: /nonexistent"),
        (token.uri(MODULE, &pin).replace("object=mesh", "object=other"), "the PIN of the token"),
    ] {
        let refused = rotate(uri).await;
        assert!(refused["error"].as_str().is_some_and(|e| e.contains(why)), "{why}: {refused}");
        assert_eq!((&refused["rotation"], &refused["issuer"]), (&Value::Null, &of_file));
    }
    std::fs::write(&pin, "4711\n").expect("written");
    let begun = rotate(token.uri(MODULE, &pin)).await;
    assert!(begun.get("error").is_none(), "{begun}");
    let now = until(dir.path(), "to the token", done).await;
    assert!(now["issuer"]["subject"].as_str().is_some_and(|s| s.contains("root in a token")), "{now:#}");
    let source = now["issuer"]["source"].as_str().unwrap_or_default();
    assert!(source.ends_with(&format!("key in pkcs11:token={};object=mesh", token.0)), "{source}");
    let root = &now["roots"][0]["fingerprint"];
    assert_eq!(now["proxies"][0]["leadsTo"], json!([root]), "the proxy serves what the token signed");

    // The next process finds the token again, and signs with it; the key is in no file.
    follower.abort();
    world.control.drain(Duration::from_secs(2)).await;
    let id = now["issuer"]["id"].as_str().expect("an id");
    let text = std::fs::read_to_string(dir.path().join("ca/sets").join(id).join("ca-key.pem")).expect("kept");
    assert!(text.starts_with("pkcs11:token="), "{text}");
    let (world, _published) = start(dir.path()).await;
    assert_eq!(world.authority.set().id(), id);
    let _follower = proxy(&world, "web", awake);
    until(dir.path(), "it serves again", |now| now["proxies"][0]["leadsTo"] == json!([root])).await;
}
