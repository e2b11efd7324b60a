//! Rules of a server's TLS settings: gateways' and sidecars' (spec §9.5, §9.6).
//!
//! Invariant: one source of certificates; a mode that needs some has them. Unknown ciphers are told, since a proxy gets
//! only the others.

use std::collections::BTreeSet;

use super::{Findings, Node};
use crate::istio::server_tls::CIPHER_SUITES;

/// Istio lets it pass; no engine knows it any more.
const OLD_SUITE: &str = "DES-CBC3-SHA";

const MODES: [&str; 6] = ["PASSTHROUGH", "SIMPLE", "MUTUAL", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"];
const VERSIONS: [&str; 5] = ["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"];

/// The mode's name.
pub(super) fn mode(tls: &Node<'_>) -> &'static str {
    tls.field("mode").choice(&MODES)
}

pub(super) fn check(tls: &Node<'_>, findings: &mut Findings) {
    if !tls.is_set() {
        return;
    }
    let text = |field: &str| tls.field(field).text();
    let lists = |field: &str| !tls.field(field).is_empty();
    let mode = mode(tls);
    let lowest = tls.field("minProtocolVersion");
    if matches!(lowest.choice(&VERSIONS), "TLSV1_0" | "TLSV1_1") && tls.field("cipherSuites").is_empty() {
        findings.warning(
            &lowest.path,
            "TLS version below TLSV1_2 require setting compatible ciphers as by default they no longer include compatible ciphers.",
        );
    }
    versions(tls, findings);
    ciphers(&tls.field("cipherSuites"), findings);
    if mode == "ISTIO_MUTUAL" {
        let own = [
            ("serverCertificate", "server certificate"),
            ("privateKey", "private key"),
            ("caCertificates", "CA bundle"),
            ("credentialName", "credentialName"),
        ];
        for (field, what) in own.into_iter().filter(|(field, _)| !text(field).is_empty()) {
            findings.error(&tls.path.field(field), format!("ISTIO_MUTUAL TLS cannot have associated {what}"));
        }
        for field in ["tlsCertificates", "credentialNames"].into_iter().filter(|field| lists(field)) {
            findings.error(&tls.path.field(field), format!("ISTIO_MUTUAL TLS cannot have associated {field}"));
        }
        return;
    }
    let files = ["caCrl", "serverCertificate", "privateKey", "caCertificates", "credentialName"];
    let named = lists("tlsCertificates") || lists("credentialNames");
    if matches!(mode, "PASSTHROUGH" | "AUTO_PASSTHROUGH")
        && (named || files.iter().any(|field| !text(field).is_empty()))
    {
        findings.warning(&tls.path, format!("{mode} mode does not use certificates, they will be ignored"));
    }
    let sources = [
        !text("serverCertificate").is_empty() && !text("privateKey").is_empty(),
        !text("credentialName").is_empty(),
        lists("credentialNames"),
        lists("tlsCertificates"),
    ];
    if sources.iter().filter(|set| **set).count() > 1 {
        findings.error(
            &tls.path,
            "only one of credentialName, credentialNames, serverCertificate/privateKey, tlsCertificates should be specified",
        );
    }
    let ends_here = matches!(mode, "SIMPLE" | "MUTUAL" | "OPTIONAL_MUTUAL");
    let by_name = !text("credentialName").is_empty() || lists("credentialNames");
    if ends_here && !by_name {
        certificates(tls, mode, findings);
    }
    if !text("caCrl").is_empty() {
        let path = tls.path.field("caCrl");
        if !text("credentialName").is_empty() {
            findings
                .error(&path, "CRL is not supported with credentialName. CRL has to be specified in the credential");
        }
        if mode == "SIMPLE" {
            findings.error(&path, "CRL is not supported with SIMPLE TLS");
        }
    }
}

/// Certificate, key and CA as files.
fn certificates(tls: &Node<'_>, mode: &str, findings: &mut Findings) {
    let what = if mode == "SIMPLE" { "SIMPLE TLS" } else { "MUTUAL TLS" };
    if mode != "SIMPLE" && tls.field("caCertificates").text().is_empty() {
        findings.error(&tls.path.field("caCertificates"), format!("{what} requires a client CA bundle"));
    }
    let listed = tls.field("tlsCertificates");
    if listed.len() > 2 {
        findings.warning(&listed.path, format!("{what} can support up to 2 server certificates"));
    }
    let pairs = if listed.is_empty() { vec![tls.clone()] } else { listed.items() };
    for pair in pairs {
        if pair.field("serverCertificate").text().is_empty() {
            findings.error(&pair.path.field("serverCertificate"), format!("{what} requires a server certificate"));
        }
        if pair.field("privateKey").text().is_empty() {
            findings.error(&pair.path.field("privateKey"), format!("{what} requires a private key"));
        }
    }
}

/// The lowest version may not be above the highest: no client could connect.
fn versions(tls: &Node<'_>, findings: &mut Findings) {
    let rank = |field: &str| {
        let chosen = tls.field(field).choice(&VERSIONS);
        VERSIONS.iter().position(|version| *version == chosen).unwrap_or_default()
    };
    let (lowest, highest) = (rank("minProtocolVersion"), rank("maxProtocolVersion"));
    if highest != 0 && lowest > highest {
        findings.warning(&tls.path.field("minProtocolVersion"), "minProtocolVersion is above maxProtocolVersion");
    }
}

/// OpenSSL's names; words with an operator before them are let be.
fn ciphers(suites: &Node<'_>, findings: &mut Findings) {
    let (mut invalid, mut valid, mut duplicate) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for suite in suites.texts() {
        let plain = suite.chars().next().is_some_and(char::is_alphanumeric);
        if plain && suite != "ALL" && !(CIPHER_SUITES.contains(&suite) || suite == OLD_SUITE) {
            invalid.insert(suite);
        } else if !valid.insert(suite) {
            duplicate.insert(suite);
        }
    }
    for (what, which) in [("invalid", invalid), ("duplicate", duplicate)] {
        if !which.is_empty() {
            let list: Vec<_> = which.into_iter().collect();
            findings.warning(&suites.path, format!("ignoring {what} cipher suites: [{}]", list.join(" ")));
        }
    }
}
