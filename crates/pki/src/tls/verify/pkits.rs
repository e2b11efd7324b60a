//! NIST's suite of certification paths (PKITS, the edition of 2011), judged as a server judges the client's certificate.
//!
//! Invariant: a test's own name says what is to come out; whatever comes out otherwise is in `deviations.txt` beside this file with its
//! reason, and nothing else is. The certificates come from the PyPI package `cryptography-vectors`; `tools/install test` fetches them.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use rustls::crypto::aws_lc_rs;

use super::*;
use crate::{pem, trust::TrustBundle};

const DEVIATIONS: &str = include_str!("pkits/deviations.txt");
/// 1 January 2020: inside the life of what is not meant to have ended.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_577_836_800));

/// One file of the suite.
struct File {
    der: Vec<u8>,
    subject: Vec<u8>,
    issuer: Vec<u8>,
}

#[test]
fn the_suite_of_nist() {
    let folder = std::env::var("CARRICK_PKITS")
        .expect("CARRICK_PKITS names the suite's folder: make test, or tools/install test");
    let certificates = files(&Path::new(&folder).join("certs"), |der| {
        let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
        Some((cert.subject().as_raw().to_vec(), cert.issuer().as_raw().to_vec()))
    });
    let lists = files(&Path::new(&folder).join("crls"), |der| {
        let (_, list) = x509_parser::parse_x509_crl(der).ok()?;
        Some((Vec::new(), list.issuer().as_raw().to_vec()))
    });
    let anchor = CertificateDer::from(certificates["TrustAnchorRootCertificate"].der.clone());
    let mut judged = 0;
    let mut other = String::new();
    for (name, leaf) in certificates.iter().filter(|(name, _)| name.ends_with("EE")) {
        let wanted = match name.as_str() {
            name if name.starts_with("Valid") => true,
            name if name.starts_with("Invalid") => false,
            // What is to come out depends on which policies the relying party wants; we want none (RFC 5280 §6.1.1).
            _ => continue,
        };
        judged += 1;
        let verdict = judge(&anchor, &certificates, &lists, leaf);
        if verdict.is_ok() != wanted {
            let got = verdict.map_or_else(|reason| format!("refused: {reason}"), |()| "accepted".into());
            let _ = writeln!(other, "{name} {got}");
        }
    }
    assert!(judged > 200, "{judged} tests in {folder}: is it the whole suite?");
    let known: String =
        DEVIATIONS.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).flat_map(|l| [l, "\n"]).collect();
    let sorted = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (known, other) = (sorted(&known), sorted(&other));
    let new: Vec<_> = other.difference(&known).collect();
    let gone: Vec<_> = known.difference(&other).collect();
    assert!(new.is_empty() && gone.is_empty(), "not explained: {new:#?}\nexplained, but not so: {gone:#?}");
}

/// The path is offered as a peer would: whatever bears the names of the issuers, in any order; the lists are those of the same issuers.
fn judge(
    anchor: &CertificateDer<'static>,
    certificates: &BTreeMap<String, File>,
    lists: &BTreeMap<String, File>,
    leaf: &File,
) -> Result<(), String> {
    let mut issuers = vec![&leaf.issuer];
    let mut path: Vec<&File> = Vec::new();
    let mut at = 0;
    while let Some(issuer) = issuers.get(at).copied() {
        at += 1;
        for (_, file) in certificates.iter().filter(|(name, file)| !name.ends_with("EE") && same(&file.subject, issuer))
        {
            if file.der != anchor.as_ref() && !path.iter().any(|known| known.der == file.der) {
                path.push(file);
            }
            if !issuers.contains(&&file.issuer) {
                issuers.push(&file.issuer);
            }
        }
    }
    let text: String = lists
        .values()
        .filter(|list| issuers.iter().any(|issuer| same(issuer, &list.issuer)))
        .map(|list| pem::encode("X509 CRL", &list.der))
        .collect();
    let mut roots = TrustBundle::new([anchor.clone()]).map_err(|e| e.to_string())?;
    if !text.is_empty() {
        roots = roots.with_revocations(text.as_bytes()).map_err(|_| "a list is not usable".to_owned())?;
    }
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let verifier = ChainVerifier::new(PeerPolicy::new(roots, Vec::new()), false, algorithms);
    let path: Vec<CertificateDer<'_>> = path.iter().map(|file| CertificateDer::from(file.der.as_slice())).collect();
    let leaf = CertificateDer::from(leaf.der.as_slice());
    verifier.verify(&leaf, &path, NOW, KeyUsage::client_auth(), None).map_err(|error| match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => format!("{other:?}"),
        Error::InvalidCertificate(reason) => {
            format!("{reason:?}").split([' ', '(']).next().unwrap_or_default().to_owned()
        }
        error => error.to_string(),
    })
}

/// Names equal as text, so that a path whose names differ in case or spaces only is offered too.
fn same(one: &[u8], other: &[u8]) -> bool {
    let plain = |name: &[u8]| -> String {
        let text: String =
            name.iter().filter(|b| b.is_ascii_alphanumeric()).map(|b| b.to_ascii_lowercase() as char).collect();
        text
    };
    one == other || plain(one) == plain(other)
}

fn files(folder: &Path, names: impl Fn(&[u8]) -> Option<(Vec<u8>, Vec<u8>)>) -> BTreeMap<String, File> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        let der = fs::read(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let (subject, issuer) = names(&der).unwrap_or_default();
        found.insert(name, File { der, subject, issuer });
    }
    found
}
