//! Whether a signing certificate may sign: the way from it to a root, link by link (RFC 5280 §6.1, spec §19.6).
//!
//! Invariant: every complaint names the file of the certificate that is wrong. Signatures and names are believed only after
//! the throw-away leaf of `canary` was verified by what verifies peers; this is for the words.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;

use super::CaError;
use super::texts::{SetText, SetTexts};
use crate::certificate::{CertificateInfo, is_signed_by};
use crate::trust::TrustBundle;

/// More links than anybody has; a circle of certificates ends here.
const DEEPEST: usize = 16;

/// The signer and the links above it, without roots, from the bottom up; then whatever else was in the chain.
pub(super) fn path(
    texts: &SetTexts,
    signer: &CertificateDer<'static>,
    mut links: Vec<CertificateDer<'static>>,
    roots: &TrustBundle,
    now: SystemTime,
) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let of_chain = texts.chain.as_ref().unwrap_or(&texts.cert);
    // What a peer already holds is not sent, and a chain often starts with the signer itself.
    links.retain(|link| link != signer && !roots.roots().contains(link));
    let mut path = vec![signer.clone()];
    let root = loop {
        let top = path.last().unwrap_or(signer);
        if let Some(root) = roots.roots().iter().find(|root| *root == top || is_signed_by(top, root)) {
            break root;
        }
        let next = links.iter().position(|link| is_signed_by(top, link)).filter(|_| path.len() < DEEPEST);
        let Some(next) = next else {
            let text = if path.len() == 1 { &texts.cert } else { of_chain };
            let info = CertificateInfo::read(top).map_err(|e| text.wrong(e))?;
            return Err(text.wrong(format!(
                "does not lead to a root in {}: {:?} was signed by {:?}, which is not there",
                texts.roots.name, info.subject, info.issuer
            )));
        };
        path.push(links.swap_remove(next));
    };
    for (depth, link) in path.iter().enumerate() {
        let text = if depth == 0 { &texts.cert } else { of_chain };
        may_sign(text, link, depth, now)?;
    }
    if path.last() != Some(root) {
        may_sign(&texts.roots, root, path.len(), now)?;
    }
    path.retain(|link| !roots.roots().contains(link));
    path.append(&mut links);
    Ok(path)
}

/// Whether a certificate may sign now with `below` signers under it.
fn may_sign(text: &SetText, der: &CertificateDer<'_>, below: usize, now: SystemTime) -> Result<(), CaError> {
    let info = CertificateInfo::read(der).map_err(|e| text.wrong(e))?;
    let wrong = |reason: String| text.wrong(format!("{:?} {reason}", info.subject));
    let (_, cert) = x509_parser::parse_x509_certificate(der).map_err(|_| wrong("cannot be read".to_owned()))?;
    if !info.is_ca {
        return Err(wrong("is not a CA certificate".to_owned()));
    }
    if let Ok(Some(usage)) = cert.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err(wrong("may not sign certificates (key usage)".to_owned()));
    }
    if let Ok(Some(constraints)) = cert.basic_constraints()
        && let Some(limit) = constraints.value.path_len_constraint
        && usize::try_from(limit).is_ok_and(|limit| below > limit)
    {
        return Err(wrong(format!("allows {limit} signers below it, and there are {below} (path length)")));
    }
    if now < info.not_before {
        return Err(wrong("is not valid yet".to_owned()));
    }
    if now >= info.not_after {
        return Err(wrong("has expired".to_owned()));
    }
    Ok(())
}

/// The text of a certificate with name constraints, if there is one.
pub(super) fn constrained<'a>(
    texts: &'a SetTexts,
    path: &[CertificateDer<'_>],
    roots: &TrustBundle,
) -> Option<&'a SetText> {
    let has = |der: &CertificateDer<'_>| {
        x509_parser::parse_x509_certificate(der).is_ok_and(|(_, cert)| {
            cert.extensions().iter().any(|e| matches!(e.parsed_extension(), ParsedExtension::NameConstraints(_)))
        })
    };
    let chain = texts.chain.as_ref().unwrap_or(&texts.cert);
    match path.iter().position(has) {
        Some(0) => Some(&texts.cert),
        Some(_) => Some(chain),
        None => roots.roots().iter().any(has).then_some(&texts.roots),
    }
}
