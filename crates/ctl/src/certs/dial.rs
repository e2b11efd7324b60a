//! Which certificate an address serves, found out by a handshake.
//!
//! Invariant: nothing is believed and nothing is sent: the handshake ends as soon as the certificate is seen.

use std::time::Duration;

use anyhow::{Context, Result};
use carrick_pki::CertificateInfo;
use carrick_pki::tls::{ServerAuth, TlsOptions, client_config};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long the other side may take.
const LIMIT: Duration = Duration::from_secs(5);

/// The leaf served at `HOST:PORT`, or at `NAME@HOST:PORT` where another name is asked for.
///
/// # Errors
/// Nothing answers, or not with TLS.
pub(super) async fn served(place: &str) -> Result<CertificateInfo> {
    tokio::time::timeout(LIMIT, handshake(place)).await.with_context(|| format!("{place}: no answer in {LIMIT:?}"))?
}

async fn handshake(place: &str) -> Result<CertificateInfo> {
    let (name, address) = match place.split_once('@') {
        Some((name, address)) => (name, address),
        None => (place.rsplit_once(':').context("HOST:PORT expected")?.0, place),
    };
    let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned())
        .with_context(|| format!("{name:?} cannot be a server's name"))?;
    let tcp = TcpStream::connect(address).await.with_context(|| address.to_owned())?;
    let config = client_config(None, ServerAuth::None, &[] as &[&str], &TlsOptions::default())?;
    let stream = TlsConnector::from(config).connect(name, tcp).await.with_context(|| format!("{place}: handshake"))?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).context("no certificate was shown")?;
    Ok(CertificateInfo::read(leaf)?)
}
