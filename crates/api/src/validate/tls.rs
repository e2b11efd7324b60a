//! Rules of a client's TLS settings (spec §3.10).
//!
//! Invariant: one source of certificates; a mode that needs some has them. Fields that a mode does not use are let be.

use carrick_base::FieldPath;

use super::Findings;
use crate::istio::destination_rule::{ClientTls, ClientTlsMode};

const CONFIG_MAP: &str = "configmap://";

pub(super) fn check(tls: &ClientTls, namespace: &str, path: &FieldPath, findings: &mut Findings) {
    config_map(&tls.credential_name, namespace, &path.field("credentialName"), findings);
    let verifies = matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual);
    if verifies && tls.insecure_skip_verify == Some(true) {
        if !tls.ca_certificates.is_empty() {
            findings
                .error(&path.field("caCertificates"), "cannot specify caCertificates when insecureSkipVerify is set");
        }
        if !tls.subject_alt_names.is_empty() {
            findings
                .error(&path.field("subjectAltNames"), "cannot specify subjectAltNames when insecureSkipVerify is set");
        }
        if tls.mode == ClientTlsMode::Simple && !tls.credential_name.is_empty() {
            findings
                .error(&path.field("credentialName"), "cannot specify credentialName when insecureSkipVerify is set");
        }
    }
    if matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual) && !tls.credential_name.is_empty() {
        let files = [&tls.client_certificate, &tls.private_key, &tls.ca_certificates, &tls.ca_crl];
        if files.iter().any(|file| !file.is_empty()) {
            findings
                .error(path, "cannot specify client certificates or CA certificate or CA CRL if credentialName is set");
        }
        return;
    }
    if tls.mode == ClientTlsMode::Mutual {
        if tls.client_certificate.is_empty() {
            findings.error(&path.field("clientCertificate"), "client certificate required for mutual tls");
        }
        if tls.private_key.is_empty() {
            findings.error(&path.field("privateKey"), "private key required for mutual tls");
        }
    }
}

/// `configmap://namespace/name` or `configmap://name`, of the rule's own namespace.
fn config_map(credential: &str, namespace: &str, path: &FieldPath, findings: &mut Findings) {
    let Some(place) = credential.strip_prefix(CONFIG_MAP) else { return };
    let (owner, name) = place.split_once('/').unwrap_or((namespace, place));
    if name.is_empty() || name.contains('/') {
        findings.error(path, format!("invalid config map reference {credential:?}"));
    } else if !namespace.is_empty() && owner != namespace {
        findings
            .error(path, format!("config map {credential:?} must be in the same namespace as the rule, {namespace:?}"));
    }
}
