//! A handshake with a consumer, to see which certificate it serves.
//!
//! Invariant: what is seen was proven by a signature of its key, made for this connection. Nothing is believed of it but which one it is:
//! no data is sent, and the chain is not judged.

use std::time::Duration;

use carrick_pki::CertificateInfo;
use carrick_pki::tls::{self, ServerAuth, TlsOptions};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::config::{Proof, StartTls};

/// Longest time for one look.
const LIMIT: Duration = Duration::from_secs(5);
/// PostgreSQL's request for TLS: length 8, code 80877103.
const POSTGRES: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// Nobody is there.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// No TLS came about.
    #[error("TLS handshake with {address}: {source}")]
    Handshake {
        /// With whom.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// It does not want to speak TLS.
    #[error("{0} refuses TLS")]
    NoTls(String),
    /// It takes too long.
    #[error("{0} does not answer in time")]
    Timeout(String),
    /// We cannot begin.
    #[error("{0}")]
    Setup(String),
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// Whether it is the very certificate that is meant.
    pub same: bool,
}

/// Looks once.
///
/// # Errors
/// See [`ProofError`].
pub async fn dial(proof: &Proof, leaf: &CertificateDer<'_>) -> Result<Observed, ProofError> {
    let address = proof.address.clone();
    match tokio::time::timeout(LIMIT.min(proof.period.max(Duration::from_secs(1))), look(proof, leaf)).await {
        Ok(seen) => seen,
        Err(_) => Err(ProofError::Timeout(address)),
    }
}

async fn look(proof: &Proof, leaf: &CertificateDer<'_>) -> Result<Observed, ProofError> {
    let address = || proof.address.clone();
    let none: [&str; 0] = [];
    let config = tls::client_config(None, ServerAuth::None, &none, &TlsOptions::default())
        .map_err(|e| ProofError::Setup(e.to_string()))?;
    let name = ServerName::try_from(proof.server_name.clone()).map_err(|e| ProofError::Setup(e.to_string()))?;
    let mut stream = TcpStream::connect(&proof.address)
        .await
        .map_err(|source| ProofError::Connect { address: address(), source })?;
    let failed = |source| ProofError::Handshake { address: address(), source };
    if proof.start_tls == Some(StartTls::Postgres) {
        stream.write_all(&POSTGRES).await.map_err(failed)?;
        if stream.read_u8().await.map_err(failed)? != b'S' {
            return Err(ProofError::NoTls(address()));
        }
    }
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(failed)?;
    let seen = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    let seen = seen.ok_or_else(|| ProofError::NoTls(address()))?;
    let serial = CertificateInfo::read(&seen).map(|info| info.serial).unwrap_or_else(|_| "unreadable".to_owned());
    Ok(Observed { serial, same: seen == *leaf })
}
