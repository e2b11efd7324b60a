//! What lies in a secret beside key and certificate, and in which forms.

use std::process::Command;

use carrick_pki::{KeyAlgorithm, PrivateKey};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::{LIMIT, World, value};

/// Waits until a secret is as wanted.
async fn secret(world: &World, name: &str, wanted: impl Fn(&Secret) -> bool) -> Secret {
    let found = async {
        loop {
            if let Some(found) = world.secrets().get_opt(name).await.unwrap().filter(|found| wanted(found)) {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("the secret {name} is not as wanted"))
}

/// Whether OpenSSL opens a PKCS#12 store with a password.
fn opens(store: &[u8], password: &str) -> bool {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), store).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["pkcs12", "-nodes", "-in"]).arg(file.path()).arg("-passin").arg(format!("pass:{password}"));
    openssl.output().expect("openssl (tools/install test)").status.success()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keystores_follow_certificate_and_password() {
    let world = World::start().await;
    world.with_ca().await;
    let spec = json!({"secretName": "web-tls", "dnsNames": ["web.example"], "issuerRef": {"name": "ca"},
        "privateKey": {"algorithm": "ECDSA"}, "additionalOutputFormats": [{"type": "CombinedPEM"}, {"type": "DER"}],
        "keystores": {
            "pkcs12": {"create": true, "profile": "Modern2023", "passwordSecretRef": {"name": "pass", "key": "word"}},
            "jks": {"create": true, "alias": "web", "password": "changeit"}}});
    world.cert_manager("Certificate", "web", spec).await;
    // Without its password nothing is delivered, and why is told.
    let event = world.event("web", "SecretError").await;
    assert!(event.message.as_deref().unwrap().starts_with("spec.keystores.pkcs12: the secret shop/pass"), "{event:?}");
    assert!(world.secrets().get_opt("web-tls").await.unwrap().is_none());
    let password = |word: &str| json!({"metadata": {"name": "pass"}, "stringData": {"word": word}});
    world.create("", "v1", "Secret", password("first")).await;
    world.ready("Certificate", "web", "True").await;
    let found = secret(&world, "web-tls", |_| true).await;
    let store = value(&found, "keystore.p12").unwrap();
    assert!(opens(&store, "first") && !opens(&store, "second"));
    assert!(opens(&value(&found, "truststore.p12").unwrap(), "first"));
    assert_eq!(value(&found, "keystore.jks").unwrap()[..4], [0xfe, 0xed, 0xfe, 0xed]);
    assert!(value(&found, "truststore.jks").is_some());
    let (key, chain) = (value(&found, "tls.key").unwrap(), value(&found, "tls.crt").unwrap());
    assert!(key.starts_with(b"-----BEGIN EC PRIVATE KEY-----"), "cert-manager's default");
    assert_eq!(value(&found, "tls-combined.pem").unwrap(), [&key[..], b"\n", &chain[..]].concat());
    assert!(value(&found, "key.der").unwrap().starts_with(&[0x30]));
    // Another password, encoding and label: the same certificate in new clothes.
    world.secrets().delete("pass", &DeleteParams::default()).await.unwrap();
    world.create("", "v1", "Secret", password("second")).await;
    let patch = json!({"spec": {"privateKey": {"encoding": "PKCS8"}, "secretTemplate": {"labels": {"tier": "front"}},
        "keystores": {"jks": null}}});
    let api = world.api("cert-manager.io", "v1", "Certificate");
    api.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let found = secret(&world, "web-tls", |secret| {
        value(secret, "keystore.p12").is_some_and(|store| opens(&store, "second"))
            && value(secret, "tls.key").is_some_and(|key| key.starts_with(b"-----BEGIN PRIVATE KEY-----"))
    })
    .await;
    assert_eq!(value(&found, "tls.crt").unwrap(), chain);
    assert_eq!(found.metadata.labels.as_ref().unwrap()["tier"], "front");
    assert!(value(&found, "keystore.jks").is_none(), "what is not asked for any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_every_kind() {
    let world = World::start().await;
    world.with_ca().await;
    let kinds = [
        ("p521", json!({"algorithm": "ECDSA", "size": 521}), KeyAlgorithm::EcdsaP521),
        ("ed", json!({"algorithm": "Ed25519"}), KeyAlgorithm::Ed25519),
        ("p384", json!({"algorithm": "ECDSA", "size": 384}), KeyAlgorithm::EcdsaP384),
        ("rsa", json!({"size": 2048, "rotationPolicy": "Never"}), KeyAlgorithm::Rsa2048),
    ];
    for (name, key, _) in &kinds {
        let spec = json!({"secretName": name, "dnsNames": ["a.b"], "issuerRef": {"name": "ca"}, "privateKey": key});
        world.cert_manager("Certificate", name, spec).await;
    }
    for (name, _, algorithm) in kinds {
        world.ready("Certificate", name, "True").await;
        let (info, secret) = world.certificate(name, |_| true).await;
        let key = PrivateKey::from_pem(&value(&secret, "tls.key").unwrap()).unwrap();
        assert_eq!((key.algorithm(), key.spki_sha256()), (Some(algorithm), Some(info.spki_sha256)), "{name}");
    }
    // A key that is never to change does not, with a new name in the certificate.
    let (before, _) = world.certificate("rsa", |_| true).await;
    let api = world.api("cert-manager.io", "v1", "Certificate");
    let patch = json!({"spec": {"dnsNames": ["a.b", "c.d"]}});
    api.patch("rsa", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let (after, _) = world.certificate("rsa", |info| info.dns.len() == 2).await;
    assert_eq!(after.spki_sha256, before.spki_sha256);
}
