//! Secrets of certificates: what they hold, and what is written into them.
//!
//! Invariant: only a key, its certificate and what is asked for beside them are written; other values of a secret stay. A
//! value that cannot be read counts as absent, and is replaced.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use base64::Engine as _;
use carrick_api::cert_manager::{Certificate, CertificateSpec, IssuerRef};
use carrick_api::timestamp::Timestamp;
use carrick_certs::{Held, Key, KeyKind, Leaf, Names, Wish};
use carrick_pki::issue::Profile;
use carrick_pki::{CertificateInfo, KeyAlgorithm, PrivateKey, pem};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;

use crate::keystores::{self, Wanted};

/// Keys of a `kubernetes.io/tls` secret.
pub(crate) const CERTIFICATE: &str = "tls.crt";
pub(crate) const KEY: &str = "tls.key";
pub(crate) const CA: &str = "ca.crt";

/// Notes beside a certificate.
const NAME_NOTE: &str = "cert-manager.io/certificate-name";
const ISSUER_NOTES: [&str; 3] =
    ["cert-manager.io/issuer-name", "cert-manager.io/issuer-kind", "cert-manager.io/issuer-group"];
/// What the keystores beside a certificate were made with.
const STORES_NOTE: &str = "carrick.io/keystores";
/// The label of a key that waits for its certificate.
pub(crate) const NEXT_KEY_LABEL: &str = "cert-manager.io/next-private-key";

/// What a secret holds.
pub(crate) fn held(secret: &Secret) -> Held {
    let notes = secret.metadata.annotations.clone().unwrap_or_default();
    let note = |name: &str| notes.get(name).cloned().unwrap_or_default();
    let [name, kind, group] = ISSUER_NOTES.map(note);
    Held {
        key: key(secret).as_ref().and_then(facts),
        leaf: value(secret, CERTIFICATE).and_then(leaf),
        issuer: (!name.is_empty()).then_some(IssuerRef { name, kind, group }),
    }
}

/// A value of a secret.
pub(crate) fn value<'a>(secret: &'a Secret, key: &str) -> Option<&'a [u8]> {
    secret.data.as_ref()?.get(key).map(|bytes| bytes.0.as_slice())
}

/// The key in a secret.
pub(crate) fn key(secret: &Secret) -> Option<PrivateKey> {
    PrivateKey::from_pem(value(secret, KEY)?).ok()
}

/// What is decided by, of a key.
pub(crate) fn facts(key: &PrivateKey) -> Option<Key> {
    let kind = key.algorithm().map(|algorithm| match algorithm {
        KeyAlgorithm::EcdsaP256 => KeyKind::Ecdsa(256),
        KeyAlgorithm::EcdsaP384 => KeyKind::Ecdsa(384),
        KeyAlgorithm::EcdsaP521 => KeyKind::Ecdsa(521),
        KeyAlgorithm::Ed25519 => KeyKind::Ed25519,
        KeyAlgorithm::Rsa2048 => KeyKind::Rsa(2048),
        KeyAlgorithm::Rsa3072 => KeyKind::Rsa(3072),
        KeyAlgorithm::Rsa4096 => KeyKind::Rsa(4096),
    });
    Some(Key { kind, digest: key.spki_sha256()? })
}

/// The algorithm that makes keys of a kind; `None` when none is at hand.
pub(crate) fn algorithm(kind: KeyKind) -> Option<KeyAlgorithm> {
    match kind {
        KeyKind::Ecdsa(256) => Some(KeyAlgorithm::EcdsaP256),
        KeyKind::Ecdsa(384) => Some(KeyAlgorithm::EcdsaP384),
        KeyKind::Ecdsa(521) => Some(KeyAlgorithm::EcdsaP521),
        KeyKind::Ed25519 => Some(KeyAlgorithm::Ed25519),
        KeyKind::Rsa(2048) => Some(KeyAlgorithm::Rsa2048),
        KeyKind::Rsa(3072) => Some(KeyAlgorithm::Rsa3072),
        KeyKind::Rsa(4096) => Some(KeyAlgorithm::Rsa4096),
        _ => None,
    }
}

/// What is decided by, of the first certificate of a PEM text.
pub(crate) fn leaf(text: &[u8]) -> Option<Leaf> {
    let chain = pem::certificates(text).ok()?;
    let info = CertificateInfo::read(chain.first()?).ok()?;
    let common_name = info.subject.split(", ").find_map(|part| part.strip_prefix("CN=")).unwrap_or_default();
    Some(Leaf {
        names: named(common_name, &info.dns, &info.ips, &info.uris, &info.emails),
        not_before: Timestamp::from_system(info.not_before),
        not_after: Timestamp::from_system(info.not_after),
        digest: info.spki_sha256,
        is_ca: info.is_ca,
    })
}

/// The names of a profile, as decisions know them.
pub(crate) fn names(profile: &Profile) -> Names {
    named(&profile.common_name, &profile.dns, &profile.ips, &profile.uris, &profile.emails)
}

fn named(common_name: &str, dns: &[String], ips: &[IpAddr], uris: &[String], emails: &[String]) -> Names {
    Names {
        common_name: common_name.to_owned(),
        dns: dns.iter().map(|name| name.to_ascii_lowercase()).collect(),
        ips: ips.iter().copied().collect(),
        uris: uris.iter().cloned().collect(),
        emails: emails.iter().cloned().collect(),
    }
}

/// The profile of a wish.
pub(crate) fn profile(wish: &Wish) -> Profile {
    let parts = &wish.subject;
    let mut subject = Vec::new();
    let lists = [
        ("C", &parts.countries),
        ("ST", &parts.provinces),
        ("L", &parts.localities),
        ("STREET", &parts.street_addresses),
        ("postalCode", &parts.postal_codes),
        ("O", &parts.organizations),
        ("OU", &parts.organizational_units),
    ];
    for (short, values) in lists {
        subject.extend(values.iter().map(|value| (short, value.clone())));
    }
    if !parts.serial_number.is_empty() {
        subject.push(("serialNumber", parts.serial_number.clone()));
    }
    Profile {
        common_name: wish.names.common_name.clone(),
        subject,
        dns: wish.names.dns.iter().cloned().collect(),
        ips: wish.names.ips.iter().copied().collect(),
        uris: wish.names.uris.iter().cloned().collect(),
        emails: wish.names.emails.iter().cloned().collect(),
        is_ca: wish.is_ca,
        usages: wish.usages.iter().cloned().collect(),
        asked_by: String::new(),
    }
}

/// What is written into a secret.
pub(crate) struct Material<'a> {
    pub(crate) key: &'a PrivateKey,
    /// Leaf and intermediates, PEM.
    pub(crate) chain: &'a str,
    /// What a peer has to trust, PEM; empty when nobody said.
    pub(crate) ca: &'a str,
    pub(crate) stores: &'a [Wanted],
}

/// The secret with a certificate in it. `before` is the one that is there; what it has that fits stays as it is.
///
/// # Errors
/// A keystore cannot be made; in words.
pub(crate) fn filled(
    certificate: &Certificate,
    before: Option<Secret>,
    material: &Material<'_>,
    now: SystemTime,
) -> Result<Secret, String> {
    let spec = &certificate.spec;
    let Material { key, chain, ca, stores } = *material;
    let mark = keystores::mark(stores, key, chain, ca);
    let stale = before.as_ref().is_none_or(|secret| secret.annotations().get(STORES_NOTE) != Some(&mark));
    let mut secret =
        before.unwrap_or_else(|| Secret { type_: Some("kubernetes.io/tls".to_owned()), ..Secret::default() });
    secret.metadata.name = Some(spec.secret_name.clone());
    secret.metadata.namespace = Some(certificate.metadata.namespace.clone());
    let text = match spec.private_key.encoding.as_str() {
        "PKCS8" => key.to_pkcs8_pem(),
        _ => key.to_traditional_pem(),
    };
    let text = text.unwrap_or_else(|| key.to_pem());
    let marked = secret.annotations().contains_key(STORES_NOTE);
    let data = secret.data.get_or_insert_default();
    let mut put = |name: &str, bytes: Vec<u8>| data.insert(name.to_owned(), ByteString(bytes));
    put(CERTIFICATE, chain.as_bytes().to_vec());
    put(KEY, text.clone().into_bytes());
    if !ca.is_empty() {
        put(CA, ca.as_bytes().to_vec());
    }
    for format in &spec.additional_output_formats {
        match format.type_.as_str() {
            "CombinedPEM" => put("tls-combined.pem", format!("{text}\n{chain}").into_bytes()),
            _ => put(
                "key.der",
                pem::private_key(text.as_bytes()).map(|der| der.secret_der().to_vec()).unwrap_or_default(),
            ),
        };
    }
    if stale {
        if marked {
            keystores::names().for_each(|name| drop(data.remove(name)));
        }
        for (name, bytes) in keystores::made(stores, key, chain, ca, now)? {
            data.insert(name.to_owned(), ByteString(bytes));
        }
    }
    let notes = secret.metadata.annotations.get_or_insert_default();
    notes.extend(spec.secret_template.annotations.clone());
    notes.extend(self::notes(&certificate.metadata.name, spec));
    match stores.is_empty() {
        true => drop(notes.remove(STORES_NOTE)),
        false => drop(notes.insert(STORES_NOTE.to_owned(), mark)),
    }
    let labels = secret.metadata.labels.get_or_insert_default();
    labels.extend(spec.secret_template.labels.clone());
    labels.insert("controller.cert-manager.io/fao".to_owned(), "true".to_owned());
    Ok(secret)
}

fn notes(name: &str, spec: &CertificateSpec) -> BTreeMap<String, String> {
    let issuer = &spec.issuer_ref;
    let values = [issuer.name.clone(), issuer.kind().to_owned(), issuer.group.clone()];
    let mut notes: BTreeMap<String, String> = ISSUER_NOTES.map(str::to_owned).into_iter().zip(values).collect();
    let more = [
        (NAME_NOTE, name.to_owned()),
        ("cert-manager.io/common-name", spec.common_name.clone()),
        ("cert-manager.io/alt-names", spec.dns_names.join(",")),
        ("cert-manager.io/ip-sans", spec.ip_addresses.join(",")),
        ("cert-manager.io/uri-sans", spec.uris.join(",")),
    ];
    notes.extend(more.map(|(name, value)| (name.to_owned(), value)));
    notes
}

/// The text of a value of a secret; empty when there is none.
pub(crate) fn text(secret: &Secret, key: &str) -> String {
    value(secret, key).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
}

/// Base64, as Kubernetes writes bytes.
pub(crate) fn encode(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Text out of base64; `None` when it is not.
pub(crate) fn decode(text: &str) -> Option<String> {
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text).ok()?).ok()
}
