//! Proof that a peer's certificate was verified in this connection.
//!
//! Invariant: a [`VerifiedPeer`] can only be made from a finished handshake of a configuration of this module that
//! verifies; there is no other constructor. What the peer may do is decided by whoever takes the proof.

use std::sync::Arc;

use carrick_base::SpiffeId;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConnection, CommonState, ServerConnection};

use super::{PeerPolicy, ServerAuth};
use crate::certificate::CertificateInfo;

/// A server's end of a connection, whoever moves its bytes.
pub trait ServerEnd: sealed::Sealed {
    /// What its handshake has agreed on.
    fn state(&self) -> &CommonState;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::ServerConnection {}
    impl Sealed for super::UnbufferedServerConnection {}
}

impl ServerEnd for ServerConnection {
    fn state(&self) -> &CommonState {
        self
    }
}

impl ServerEnd for UnbufferedServerConnection {
    fn state(&self) -> &CommonState {
        self
    }
}

/// Who is at the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedPeer {
    spiffe: Option<SpiffeId>,
    sha256: [u8; 32],
    info: Arc<CertificateInfo>,
    leaf: Box<[u8]>,
}

impl VerifiedPeer {
    /// The client of a finished server-side handshake; `None` while shaking hands or when it showed no certificate.
    pub fn of_client(connection: &impl ServerEnd) -> Option<Self> {
        Self::read(connection.state())
    }

    /// The client of a finished handshake that let everybody in, if it would have passed `policy` too.
    pub fn of_unverified_client(connection: &impl ServerEnd, policy: &PeerPolicy) -> Option<Self> {
        let connection = connection.state();
        let (leaf, intermediates) = connection.peer_certificates()?.split_first()?;
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        let chain = super::verify::ChainVerifier::new(policy.clone(), false, algorithms);
        let now = rustls_pki_types::UnixTime::now();
        chain.verify(leaf, intermediates, now, webpki::KeyUsage::client_auth(), None).ok()?;
        Self::read(connection)
    }

    /// The server of a finished client-side handshake; `None` while shaking hands or where `auth`, with which the
    /// connection's configuration was made, verifies nothing.
    pub fn of_server(connection: &ClientConnection, auth: &ServerAuth) -> Option<Self> {
        if matches!(auth, ServerAuth::None) { None } else { Self::read(connection) }
    }

    fn read(connection: &CommonState) -> Option<Self> {
        if connection.is_handshaking() {
            return None;
        }
        let leaf = connection.peer_certificates()?.first()?;
        let info = CertificateInfo::known(leaf).ok()?;
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
        let spiffe = match info.uris.as_slice() {
            [uri] => uri.parse().ok(),
            _ => None,
        };
        Some(Self { spiffe, sha256: digest.as_ref().try_into().ok()?, info, leaf: leaf.as_ref().into() })
    }

    /// The SPIFFE ID; always there for peers verified as SPIFFE peers.
    pub fn spiffe(&self) -> Option<&SpiffeId> {
        self.spiffe.as_ref()
    }

    /// SHA-256 of the leaf's DER.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// The same in lower-case hexadecimal, as `x-forwarded-client-cert` has it.
    pub fn sha256_hex(&self) -> String {
        self.sha256.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The leaf as PEM, percent-encoded as `x-forwarded-client-cert` has it.
    pub fn pem_encoded(&self) -> String {
        let mut out = String::with_capacity(self.leaf.len().saturating_mul(2));
        for letter in crate::pem::encode_certificate(&self.leaf).chars() {
            match letter {
                '\n' => out.push_str("%0A"),
                ' ' => out.push_str("%20"),
                '+' => out.push_str("%2B"),
                '/' => out.push_str("%2F"),
                '=' => out.push_str("%3D"),
                other => out.push(other),
            }
        }
        out
    }

    /// The subject; empty for workloads.
    pub fn subject(&self) -> &str {
        &self.info.subject
    }

    /// URI names.
    pub fn uris(&self) -> &[String] {
        &self.info.uris
    }

    /// DNS names.
    pub fn dns_names(&self) -> &[String] {
        &self.info.dns
    }

    /// Everything else the leaf says.
    pub fn certificate(&self) -> &CertificateInfo {
        &self.info
    }
}
