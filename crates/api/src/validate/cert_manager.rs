//! Rules of cert-manager's kinds.
//!
//! Invariant: what its admission refuses is refused, except short lives: whoever wants to see a renewal may ask for seconds.

use std::time::Duration;

use super::{Findings, Node};

/// The usages a certificate may name, as cert-manager spells them.
const USAGES: [&str; 23] = [
    "signing",
    "digital signature",
    "content commitment",
    "key encipherment",
    "key agreement",
    "data encipherment",
    "cert sign",
    "crl sign",
    "encipher only",
    "decipher only",
    "any",
    "server auth",
    "client auth",
    "code signing",
    "email protection",
    "s/mime",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "timestamping",
    "ocsp signing",
    "microsoft sgc",
    "netscape sgc",
];

const ISSUERS: [&str; 7] = ["selfSigned", "ca", "acme", "vault", "pkcs11", "kubernetes", "venafi"];
const NAMES: [&str; 4] = ["dnsNames", "ipAddresses", "uris", "emailAddresses"];
/// The longest common name (RFC 5280, ub-common-name).
const COMMON_NAME: usize = 64;
/// What a duration is when none is given.
const DURATION: Duration = Duration::from_secs(2160 * 60 * 60);

pub(super) fn check(kind: &str, object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    match kind {
        "Certificate" => certificate(&spec, findings),
        "CertificateRequest" => {
            issuer_ref(&spec.field("issuerRef"), findings);
            if spec.field("request").text().is_empty() {
                findings.error(&spec.path.field("request"), "must be specified");
            }
            usages(&spec.field("usages"), findings);
        }
        "Issuer" | "ClusterIssuer" => issuer(&spec, findings),
        _ => {}
    }
}

fn certificate(spec: &Node<'_>, findings: &mut Findings) {
    if spec.field("secretName").text().is_empty() {
        findings.error(&spec.path.field("secretName"), "must be specified");
    }
    issuer_ref(&spec.field("issuerRef"), findings);
    let common_name = spec.field("commonName");
    if common_name.text().len() > COMMON_NAME {
        findings.error(&common_name.path, format!("must be no longer than {COMMON_NAME} bytes"));
    }
    let named = NAMES.iter().any(|list| !spec.field(list).is_empty());
    if !named && common_name.text().is_empty() && spec.field("literalSubject").text().is_empty() {
        findings.error(
            &spec.path,
            "at least one of commonName, dnsNames, ipAddresses, uris, emailAddresses or literalSubject must be set",
        );
    }
    if !spec.field("literalSubject").text().is_empty()
        && (!common_name.text().is_empty() || spec.field("subject").is_set())
    {
        findings.error(&spec.path.field("literalSubject"), "cannot be set together with commonName or subject");
    }
    for address in spec.field("ipAddresses").items() {
        if address.text().parse::<std::net::IpAddr>().is_err() {
            findings.error(&address.path, format!("invalid IP address {:?}", address.text()));
        }
    }
    for uri in spec.field("uris").items() {
        if !uri.text().split_once(':').is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty()) {
            findings.error(&uri.path, format!("{:?} is no URI with a scheme", uri.text()));
        }
    }
    life(spec, findings);
    key(&spec.field("privateKey"), findings);
    usages(&spec.field("usages"), findings);
    for store in ["jks", "pkcs12"] {
        let store = spec.field("keystores").field(store);
        let reference = store.field("passwordSecretRef");
        let given = store.field("password").is_set();
        if store.field("create").flag() && reference.is_set() == given {
            findings.error(&store.path, "exactly one of passwordSecretRef and password must be set");
        }
        if reference.is_set() && reference.field("name").text().is_empty() {
            findings.error(&reference.path.field("name"), "must be specified");
        }
    }
}

fn life(spec: &Node<'_>, findings: &mut Findings) {
    let duration = spec.field("duration").duration().map_or(DURATION, |d| d.get());
    let before = spec.field("renewBefore");
    let share = spec.field("renewBeforePercentage");
    if duration.is_zero() {
        findings.error(&spec.path.field("duration"), "must be longer than 0");
    }
    if before.is_set() && share.is_set() {
        findings.error(&before.path, "cannot be set together with renewBeforePercentage");
    }
    if before.duration().is_some_and(|before| before.get() >= duration) {
        findings.error(&before.path, "must be shorter than duration");
    }
    if share.is_set() && !(1..=99).contains(&share.number()) {
        findings.error(&share.path, "must be between 1 and 99");
    }
}

fn key(key: &Node<'_>, findings: &mut Findings) {
    let size = key.field("size");
    let fits = match (key.field("algorithm").text(), size.number()) {
        (_, 0) | ("Ed25519", _) => true,
        ("ECDSA", bits) => matches!(bits, 256 | 384 | 521),
        (_, bits) => (2048..=8192).contains(&bits),
    };
    if !fits {
        findings.error(&size.path, "RSA keys have 2048 to 8192 bits, ECDSA keys 256, 384 or 521");
    }
}

fn usages(list: &Node<'_>, findings: &mut Findings) {
    for usage in list.items() {
        if !USAGES.contains(&usage.text()) {
            findings.error(&usage.path, format!("unknown key usage {:?}", usage.text()));
        }
    }
}

fn issuer_ref(reference: &Node<'_>, findings: &mut Findings) {
    if reference.field("name").text().is_empty() {
        findings.error(&reference.path.field("name"), "must be specified");
    }
    let (kind, group) = (reference.field("kind"), reference.field("group"));
    if matches!(group.text(), "" | crate::cert_manager::GROUP)
        && !matches!(kind.text(), "" | "Issuer" | "ClusterIssuer")
    {
        findings.error(&kind.path, "must be one of Issuer or ClusterIssuer");
    }
}

fn issuer(spec: &Node<'_>, findings: &mut Findings) {
    let set = spec.set_among(&ISSUERS);
    match set.as_slice() {
        [] => {
            findings.error(&spec.path, "no issuer config specified: selfSigned, ca, acme, vault, pkcs11 or kubernetes")
        }
        ["venafi"] => findings.error(&spec.path.field("venafi"), "is not supported here"),
        [_] => {}
        [_, second, ..] => findings.error(&spec.path.field(second), "may not specify more than one issuer type"),
    }
    let mut required = |kind: &str, fields: &[&str]| {
        let node = spec.field(kind);
        for field in fields.iter().filter(|_| node.is_set()) {
            let last = field.split('.').fold(node.clone(), |node, part| node.field(part));
            if last.text().is_empty() {
                findings.error(&last.path, "must be specified");
            }
        }
    };
    required("ca", &["secretName"]);
    required("acme", &["server", "privateKeySecretRef.name"]);
    required("vault", &["server", "path"]);
    required("pkcs11", &["module", "tokenLabel", "keyLabel", "pinSecretRef.name", "certificateSecretRef.name"]);
    required("kubernetes", &["signerName"]);
    let auth = spec.field("vault").field("auth");
    if spec.field("vault").is_set()
        && auth.set_among(&["tokenSecretRef", "appRole", "kubernetes", "clientCertificate"]).len() != 1
    {
        findings.error(&auth.path, "exactly one of tokenSecretRef, appRole, kubernetes must be set");
    }
    for solver in spec.field("acme").field("solvers").items() {
        if solver.set_among(&["http01", "tlsAlpn01", "dns01"]).len() != 1 {
            findings.error(&solver.path, "exactly one of http01, tlsAlpn01, dns01 must be set");
        }
    }
}
