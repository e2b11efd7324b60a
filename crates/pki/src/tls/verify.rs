//! Verifiers for rustls: webpki checks the chain, then the names are checked against the policy.
//!
//! Invariant: the order is chain first, names second, so that an error about names only reaches peers we would trust;
//! every failure becomes the alert that tells the peer what to mend. DNS names are looked at only where asked for.

#[cfg(test)]
mod pkits;

use std::sync::Arc;

use carrick_base::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
    VerifiedPath,
};

use super::passed::{Passed, Window};
use super::{PeerPolicy, old};
use crate::certificate::CertificateInfo;
use crate::trust::TrustBundle;

/// Why a verified chain is still not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NameError {
    #[error("a SPIFFE certificate has exactly one URI name, this one has {0}")]
    UriCount(usize),
    #[error("{0:?} is not a SPIFFE ID")]
    NotSpiffe(String),
    // The words are Envoy's: they reach access logs.
    #[error("SAN matcher, certificate SANs are [{}]", .0.join(", "))]
    NotAccepted(Vec<String>),
    #[error("cert hash and spki")]
    NotPinned,
}

/// Chain and names of one peer.
#[derive(Debug)]
pub(super) struct ChainVerifier {
    policy: PeerPolicy,
    spiffe: bool,
    algorithms: WebPkiSupportedAlgorithms,
    passed: Passed,
}

impl ChainVerifier {
    pub(super) fn new(policy: PeerPolicy, spiffe: bool, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { policy, spiffe, algorithms, passed: Passed::default() }
    }

    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
        name: Option<&ServerName<'_>>,
    ) -> Result<(), Error> {
        let info = CertificateInfo::known(leaf).map_err(|_| CertificateError::BadEncoding)?;
        if self.policy.chain {
            self.verify_chain(leaf, intermediates, now, usage, &info)?;
        }
        self.check_quarantine(&info, intermediates)?;
        if let Some(name) = name {
            EndEntityCert::try_from(leaf)
                .and_then(|cert| cert.verify_is_valid_for_subject_name(name))
                .map_err(tls_error)?;
        }
        if !self.spiffe && !self.policy.looks_at_leaf() {
            return Ok(());
        }
        check_leaf(&self.policy, self.spiffe, leaf, &info)
            .map_err(|e| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(e)))))
    }

    /// After the chain, so that nobody learns from the answer who is on the list without a certificate of ours.
    fn check_quarantine(&self, info: &CertificateInfo, intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
        let list = &self.policy.quarantine;
        if list.is_empty() {
            return Ok(());
        }
        let of_chain = |der: &CertificateDer<'_>| CertificateInfo::known(der).is_ok_and(|i| list.covers(&i).is_some());
        if list.covers(info).is_some() || intermediates.iter().any(of_chain) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(())
    }

    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
        info: &Arc<CertificateInfo>,
    ) -> Result<(), Error> {
        let policy = &self.policy;
        // Before the chain: a root of another domain must not even be tried on a name of ours.
        let roots = policy.roots.for_names(&info.uris).ok_or(CertificateError::UnknownIssuer)?;
        // What lists say ends with the lists, so it is asked anew.
        if !roots.revocations().is_empty() {
            return self.judge_chain(roots, leaf, intermediates, now, usage, info);
        }
        let key = Passed::key(leaf, intermediates);
        if self.passed.knows(&key, now) {
            return Ok(());
        }
        self.judge_chain(roots, leaf, intermediates, now, usage, info)?;
        info.keep(leaf);
        for der in intermediates {
            if let Ok(info) = CertificateInfo::read(der) {
                Arc::new(info).keep(der);
            }
        }
        if let Some(window) = Window::of(info, intermediates) {
            self.passed.add(key, window);
        }
        Ok(())
    }

    fn judge_chain(
        &self,
        roots: &TrustBundle,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
        info: &CertificateInfo,
    ) -> Result<(), Error> {
        let policy = &self.policy;
        if !info.is_v3 && !self.spiffe {
            return old::verify(roots, leaf, info, now).map_err(Error::InvalidCertificate);
        }
        let cert = EndEntityCert::try_from(leaf).map_err(tls_error)?;
        let lists = roots.revocations();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            let depth = match policy.revoke_leaf_only || roots.lists_leaves_only() {
                true => RevocationCheckDepth::EndEntity,
                false => RevocationCheckDepth::Chain,
            };
            // As OpenSSL does it: a certificate that no valid list covers is refused.
            builder
                .with_depth(depth)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let limit = policy.max_intermediates;
        let sound = |path: &VerifiedPath<'_>| {
            if limit.is_some_and(|limit| path.intermediate_certificates().count() > limit) {
                return Err(webpki::Error::MaximumPathDepthExceeded);
            }
            // webpki does not read the key usage (RFC 5280 §4.2.1.3) of those who sign certificates.
            match path.intermediate_certificates().all(|issuer| may_sign(&issuer.der())) {
                true => Ok(()),
                false => Err(webpki::Error::EndEntityUsedAsCa),
            }
        };
        let anchors = roots.anchors();
        cert.verify_for_usage(self.algorithms.all, anchors, intermediates, now, usage, revocation, Some(&sound))
            .map(|_| ())
            .map_err(tls_error)
    }
}

/// Whether a certificate's key usage, where it has one, covers certificates.
fn may_sign(der: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return false };
    certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()))
}

/// The proof of possession of TLS 1.2.
fn tls12_signature(
    algorithms: &WebPkiSupportedAlgorithms,
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    match old::key_of_old(cert) {
        Some(key) => old::verify_tls12_signature(message, &key, dss, algorithms),
        None => verify_tls12_signature(message, cert, dss, algorithms),
    }
}

/// The proof of possession of TLS 1.3.
fn tls13_signature(
    algorithms: &WebPkiSupportedAlgorithms,
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    match old::key_of_old(cert) {
        Some(key) => verify_tls13_signature_with_raw_key(message, &key, dss, algorithms),
        None => verify_tls13_signature(message, cert, dss, algorithms),
    }
}

fn check_leaf(
    policy: &PeerPolicy,
    spiffe: bool,
    leaf: &CertificateDer<'_>,
    info: &CertificateInfo,
) -> Result<(), NameError> {
    if spiffe {
        match info.uris.as_slice() {
            [uri] if uri.parse::<SpiffeId>().is_ok() => {}
            [uri] => return Err(NameError::NotSpiffe(uri.clone())),
            more => return Err(NameError::UriCount(more.len())),
        }
    }
    if !policy.accepts(info) {
        let ips = info.ips.iter().map(ToString::to_string);
        let texts = info.dns.iter().chain(&info.uris).chain(&info.emails).cloned();
        return Err(NameError::NotAccepted(texts.chain(ips).collect()));
    }
    if policy.pinned(leaf, info) { Ok(()) } else { Err(NameError::NotPinned) }
}

/// What webpki says, in rustls' words, which decide the alert.
fn tls_error(error: webpki::Error) -> Error {
    use webpki::Error as E;
    let reason = match error {
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        E::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        E::InvalidCertValidity => CertificateError::Expired,
        // Two meshes' self-signed roots may share a name, so a chain from the other one first shows as a bad signature.
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => CertificateError::UnknownIssuer,
        E::CertRevoked => CertificateError::Revoked,
        // A list that its issuer did not sign, or may not sign, says nothing.
        E::UnknownRevocationStatus | E::InvalidCrlSignatureForPublicKey | E::IssuerNotCrlSigner => {
            CertificateError::UnknownRevocationStatus
        }
        E::CrlExpired { time, next_update } => CertificateError::ExpiredRevocationListContext { time, next_update },
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        E::CertNotValidForName(context) => {
            CertificateError::NotValidForNameContext { expected: context.expected, presented: context.presented }
        }
        E::UnsupportedCriticalExtension => CertificateError::UnhandledCriticalExtension,
        E::CaUsedAsEndEntity
        | E::EndEntityUsedAsCa
        | E::PathLenConstraintViolated
        | E::NameConstraintViolation
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded
        | E::MaximumNameConstraintComparisonsExceeded => {
            CertificateError::Other(OtherError(Arc::new(ChainError(error))))
        }
        _ => CertificateError::BadEncoding,
    };
    Error::InvalidCertificate(reason)
}

#[derive(Debug, thiserror::Error)]
#[error("certificate chain: {0:?}")]
struct ChainError(webpki::Error);

/// For servers: verifies clients.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    chain: ChainVerifier,
    mandatory: bool,
}

impl ClientVerifier {
    pub(super) fn new(chain: ChainVerifier, mandatory: bool) -> Self {
        Self { chain, mandatory }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Istio's sidecars send none either; a client then shows the one certificate it has.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.chain.verify(leaf, intermediates, now, KeyUsage::client_auth(), None)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_signature(&self.chain.algorithms, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(&self.chain.algorithms, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.algorithms.supported_schemes()
    }
}

/// For servers that let everybody in: checks only that the client has the key of what it shows.
#[derive(Debug)]
pub(super) struct AnyClient {
    algorithms: WebPkiSupportedAlgorithms,
    mandatory: bool,
}

impl AnyClient {
    pub(super) fn new(algorithms: WebPkiSupportedAlgorithms, mandatory: bool) -> Self {
        Self { algorithms, mandatory }
    }
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_signature(&self.algorithms, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(&self.algorithms, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What a client checks of a server.
#[derive(Debug)]
pub(super) enum ServerCheck {
    Policy(ChainVerifier),
    Name(ChainVerifier),
    Nothing(WebPkiSupportedAlgorithms),
}

/// For clients: verifies servers.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    check: ServerCheck,
}

impl ServerVerifier {
    pub(super) fn new(check: ServerCheck) -> Self {
        Self { check }
    }

    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        match &self.check {
            ServerCheck::Policy(chain) | ServerCheck::Name(chain) => &chain.algorithms,
            ServerCheck::Nothing(algorithms) => algorithms,
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usage = KeyUsage::server_auth();
        match &self.check {
            ServerCheck::Policy(chain) => chain.verify(leaf, intermediates, now, usage, None)?,
            ServerCheck::Name(chain) => chain.verify(leaf, intermediates, now, usage, Some(server_name))?,
            ServerCheck::Nothing(_) => {}
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12_signature(self.algorithms(), message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls13_signature(self.algorithms(), message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}
