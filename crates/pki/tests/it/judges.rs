//! The chains we issue, judged by OpenSSL, GnuTLS, Python's `cryptography` and our own verifier: all four say the same.
//!
//! Invariant: a judge that cannot be asked fails the test, and each good chain has bad sisters, so that a judge who accepts everything
//! would be seen.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use carrick_pki::issue::{self, Profile, Signer};
use carrick_pki::tls::{ClientAuth, PeerPolicy, ServerAuth, TlsOptions, client_config, server_config};
use carrick_pki::{Identity, KeyAlgorithm, PrivateKey, TrustBundle};

use crate::lab::{Folder, openssl, shake};

const NO_ALPN: [&str; 0] = [];
const HOUR: Duration = Duration::from_secs(3600);

/// A chain, and whether it is good.
struct Chain {
    name: String,
    root: String,
    between: Vec<String>,
    leaf: String,
    key: PrivateKey,
    good: bool,
}

#[test]
fn four_judges_agree_about_what_we_issue() {
    let mut chains = Vec::new();
    for kind in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::EcdsaP384, KeyAlgorithm::Rsa2048] {
        for depth in [0, 1, 3] {
            sisters(kind, depth, &mut chains);
        }
    }
    let folder = Folder::new();
    let python = python(&folder, &chains);
    let mut split = String::new();
    for (chain, python) in chains.iter().zip(python) {
        let said = [by_openssl(&folder, chain), by_gnutls(&folder, chain), python, by_ourselves(chain)];
        if said != [chain.good; 4] {
            let _ = writeln!(split, "{}: {said:?}, should be {}", chain.name, chain.good);
        }
    }
    assert!(split.is_empty(), "OpenSSL, GnuTLS, Python, we:\n{split}");
    assert!(chains.iter().filter(|chain| !chain.good).count() > 20 && chains.iter().any(|chain| chain.good));
}

/// A good chain of so many intermediates, and what becomes of it with one thing wrong.
fn sisters(kind: KeyAlgorithm, depth: usize, chains: &mut Vec<Chain>) {
    let now = SystemTime::now();
    let (start, end) = (now - 2 * HOUR, now + 20 * HOUR);
    let named = |name: &str, is_ca| Profile { common_name: name.into(), is_ca, ..Profile::default() };
    let root_key = PrivateKey::generate(kind).unwrap();
    let root = issue::self_signed(&root_key, &named("root", true), start, end, None).unwrap().chain;
    let mut above = (root.clone(), root_key);
    let mut between: Vec<String> = Vec::new();
    for level in 0..depth {
        let key = PrivateKey::generate(kind).unwrap();
        let profile = named(&format!("between {level}"), true);
        let issuing = Signer::read(above.0.as_bytes(), above.1.to_pem().as_bytes()).unwrap();
        let signed = issuing.sign(&issue::request(&key, &profile).unwrap(), &profile, start, end).unwrap();
        between.insert(0, first(&signed.chain));
        above = (first(&signed.chain), key);
    }
    let signer = Signer::read(above.0.as_bytes(), above.1.to_pem().as_bytes()).unwrap();
    let profile = Profile {
        uris: vec!["spiffe://cluster.local/ns/shop/sa/web".into()],
        dns: vec!["web.shop.svc".into()],
        usages: ["digital signature", "client auth", "server auth"].map(str::to_owned).to_vec(),
        ..Profile::default()
    };
    let key = PrivateKey::generate(kind).unwrap();
    let request = issue::request(&key, &profile).unwrap();
    let leaf = |profile: &Profile, start, end| first(&signer.sign(&request, profile, start, end).unwrap().chain);
    let mut add = |what: &str, root: &str, between: &[String], leaf: String, good| {
        let name = format!("{kind} {depth} {what}");
        chains.push(Chain { name, root: root.into(), between: between.to_vec(), leaf, key: key.clone(), good });
    };
    let good = leaf(&profile, now - HOUR, now + HOUR);
    add("good", &root, &between, good.clone(), true);
    add("ended", &root, &between, leaf(&profile, now - HOUR, now - Duration::from_secs(60)), false);
    add("not begun", &root, &between, leaf(&profile, now + HOUR, now + 2 * HOUR), false);
    let other = PrivateKey::generate(kind).unwrap();
    let stranger = issue::self_signed(&other, &named("root", true), start, end, None).unwrap().chain;
    add("another root of the same name", &stranger, &between, good.clone(), false);
    let servers = Profile { usages: vec!["digital signature".into(), "server auth".into()], ..profile.clone() };
    add("for servers only", &root, &between, leaf(&servers, now - HOUR, now + HOUR), false);
    if depth > 0 {
        add("an intermediate is missing", &root, &between[1..], good, false);
    }
    // A leaf that signs another leaf.
    let mut under = between.clone();
    under.insert(0, leaf(&profile, now - HOUR, now + HOUR));
    let false_ca =
        rcgen::Issuer::new(rcgen::CertificateParams::default(), rcgen::KeyPair::from_pem(&key.to_pem()).unwrap());
    let mut params = rcgen::CertificateParams::new(vec!["web.shop.svc".to_owned()]).unwrap();
    params.use_authority_key_identifier_extension = true;
    let forged = params.signed_by(&rcgen::KeyPair::from_pem(&key.to_pem()).unwrap(), &false_ca).unwrap().pem();
    add("signed by a leaf", &root, &under, forged, false);
}

/// The first certificate of a PEM list.
fn first(chain: &str) -> String {
    let end = "-----END CERTIFICATE-----\n";
    chain.split_inclusive(end).next().unwrap().to_owned()
}

fn by_openssl(folder: &Folder, chain: &Chain) -> bool {
    let root = folder.write("root.pem", &chain.root);
    let between = folder.write("between.pem", &chain.between.concat());
    let leaf = folder.write("leaf.pem", &chain.leaf);
    let [root, between, leaf] = [&root, &between, &leaf].map(|path| path.to_str().unwrap());
    let mut args = vec!["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", root];
    if !chain.between.is_empty() {
        args.extend(["-untrusted", between]);
    }
    args.push(leaf);
    openssl(&args).0
}

fn by_gnutls(folder: &Folder, chain: &Chain) -> bool {
    let root = folder.write("root.pem", &chain.root);
    let whole = folder.write("chain.pem", &(chain.leaf.clone() + &chain.between.concat()));
    let output = Command::new("certtool")
        .args(["--verify", "--verify-purpose", "1.3.6.1.5.5.7.3.2", "--load-ca-certificate"])
        .arg(root)
        .arg("--infile")
        .arg(whole)
        .output()
        .expect("certtool (gnutls-bin): make test installs it");
    output.status.success()
}

/// Both sides of a handshake with the chain as the client's.
fn by_ourselves(chain: &Chain) -> bool {
    let text = chain.leaf.clone() + &chain.between.concat();
    let Ok(identity) = Identity::from_pem(text.as_bytes(), chain.key.to_pem().as_bytes()) else { return false };
    let own = PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap();
    let now = SystemTime::now();
    let profile = Profile { dns: vec!["server".into()], ..Profile::default() };
    let server = issue::self_signed(&own, &profile, now - HOUR, now + HOUR, None).unwrap().chain;
    let server = Identity::from_pem(server.as_bytes(), own.to_pem().as_bytes()).unwrap();
    let policy = PeerPolicy::new(TrustBundle::from_pem(chain.root.as_bytes()).unwrap(), Vec::new());
    let server = server_config(&server, ClientAuth::Require(policy), &NO_ALPN, &TlsOptions::default()).unwrap();
    let client = client_config(Some(&identity), ServerAuth::None, &NO_ALPN, &TlsOptions::default()).unwrap();
    shake(&client, &server, "server").is_ok()
}

/// One process for all, since it starts slowly.
fn python(folder: &Folder, chains: &[Chain]) -> Vec<bool> {
    const SCRIPT: &str = include_str!("judge.py");
    let text = |list: &[String]| list.iter().map(|pem| format!("{pem:?}")).collect::<Vec<_>>().join(",");
    let all = chains.iter().map(|chain| {
        format!("{{\"root\":{:?},\"between\":[{}],\"leaf\":{:?}}}", chain.root, text(&chain.between), chain.leaf)
    });
    let script = folder.write("judge.py", SCRIPT);
    let cases = folder.write("cases.json", &format!("[{}]", all.collect::<Vec<_>>().join(",")));
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().to_string();
    let mut command = Command::new("python3");
    command.arg(script).arg(cases).arg(seconds);
    if let Some(path) = std::env::var_os("CARRICK_PYTHONPATH") {
        command.env("PYTHONPATH", path);
    }
    let output = command.output().expect("python3");
    let told = String::from_utf8_lossy(&output.stdout);
    let judged: Vec<bool> = told.lines().map(|line| line == "good").collect();
    assert_eq!(judged.len(), chains.len(), "judge.py: {told}{}", String::from_utf8_lossy(&output.stderr));
    judged
}
