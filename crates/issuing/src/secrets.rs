//! Secrets of certificates: what they hold, and what is written into them.
//!
//! Invariant: only a key, its certificate and what is asked for beside them are written; other values of a secret stay. A
//! value that cannot be read counts as absent, and is replaced.

use std::collections::BTreeMap;

use base64::Engine as _;
use carrick_api::cert_manager::{Certificate, CertificateSpec, IssuerRef};
use carrick_api::timestamp::Timestamp;
use carrick_certs::{Held, Key, KeyKind, Leaf, Names, Wish};
use carrick_pki::issue::Profile;
use carrick_pki::{CertificateInfo, KeyAlgorithm, PrivateKey, pem};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

/// Keys of a `kubernetes.io/tls` secret.
pub(crate) const CERTIFICATE: &str = "tls.crt";
pub(crate) const KEY: &str = "tls.key";
pub(crate) const CA: &str = "ca.crt";

/// Notes beside a certificate.
const NAME_NOTE: &str = "cert-manager.io/certificate-name";
const ISSUER_NOTES: [&str; 3] =
    ["cert-manager.io/issuer-name", "cert-manager.io/issuer-kind", "cert-manager.io/issuer-group"];
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
    Some(Leaf {
        names: Names {
            common_name: common_name(&info.subject),
            dns: info.dns.iter().map(|name| name.to_ascii_lowercase()).collect(),
            ips: info.ips.iter().copied().collect(),
            uris: info.uris.iter().cloned().collect(),
            emails: info.emails.iter().cloned().collect(),
        },
        not_before: Timestamp::from_system(info.not_before),
        not_after: Timestamp::from_system(info.not_after),
        digest: info.spki_sha256,
        is_ca: info.is_ca,
    })
}

fn common_name(subject: &str) -> String {
    subject.split(", ").find_map(|part| part.strip_prefix("CN=")).unwrap_or_default().to_owned()
}

/// The names of a profile, as decisions know them.
pub(crate) fn names(profile: &Profile) -> Names {
    Names {
        common_name: profile.common_name.clone(),
        dns: profile.dns.iter().map(|name| name.to_ascii_lowercase()).collect(),
        ips: profile.ips.iter().copied().collect(),
        uris: profile.uris.iter().cloned().collect(),
        emails: profile.emails.iter().cloned().collect(),
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

/// The secret with a new certificate in it. `before` is the one that is there.
pub(crate) fn filled(
    certificate: &Certificate,
    before: Option<Secret>,
    key: &PrivateKey,
    chain: &str,
    ca: &str,
) -> Secret {
    let spec = &certificate.spec;
    let mut secret =
        before.unwrap_or_else(|| Secret { type_: Some("kubernetes.io/tls".to_owned()), ..Secret::default() });
    secret.metadata.name = Some(spec.secret_name.clone());
    secret.metadata.namespace = Some(certificate.metadata.namespace.clone());
    let key_text = key.to_pem();
    let data = secret.data.get_or_insert_default();
    let mut put = |name: &str, bytes: Vec<u8>| data.insert(name.to_owned(), ByteString(bytes));
    put(CERTIFICATE, chain.as_bytes().to_vec());
    put(KEY, key_text.clone().into_bytes());
    if !ca.is_empty() {
        put(CA, ca.as_bytes().to_vec());
    }
    for format in &spec.additional_output_formats {
        match format.type_.as_str() {
            "CombinedPEM" => put("tls-combined.pem", format!("{key_text}\n{chain}").into_bytes()),
            _ => put("key.der", key.to_der()),
        };
    }
    let notes = secret.metadata.annotations.get_or_insert_default();
    notes.extend(spec.secret_template.annotations.clone());
    notes.extend(self::notes(&certificate.metadata.name, spec));
    let labels = secret.metadata.labels.get_or_insert_default();
    labels.extend(spec.secret_template.labels.clone());
    labels.insert("controller.cert-manager.io/fao".to_owned(), "true".to_owned());
    secret
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

/// Base64, as Kubernetes writes bytes.
pub(crate) fn encode(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Text out of base64; `None` when it is not.
pub(crate) fn decode(text: &str) -> Option<String> {
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text).ok()?).ok()
}
