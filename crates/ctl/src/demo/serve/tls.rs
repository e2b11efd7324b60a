//! The service's own TLS, as a server outside of the mesh has it.
//!
//! Invariant: a port that demands a client's certificate takes none that the folder's `ca.pem` did not sign.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

/// An acceptor for the certificates of a folder.
///
/// # Errors
/// When a file is missing or holds something else.
pub fn acceptor(dir: &Path, mutual: bool) -> Result<TlsAcceptor> {
    let read = |name: &str| {
        let path = dir.join(name);
        CertificateDer::pem_file_iter(&path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| path.display().to_string())
    };
    let key = dir.join("server-key.pem");
    let key = PrivateKeyDer::from_pem_file(&key).with_context(|| key.display().to_string())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = if mutual {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(read("ca.pem")?);
        builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().context("ca.pem")?,
        )
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_single_cert(read("server.pem")?, key).context("server.pem")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What the handshake told: server name, protocol, the client's names.
pub fn facts(connection: &ServerConnection) -> Value {
    let names = connection.peer_certificates().and_then(|chain| chain.first()).map(|leaf| names(leaf));
    json!({
        "server_name": connection.server_name(),
        "alpn": connection.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned()),
        "client": names,
    })
}

/// The alternative names of a certificate, joined by commas.
fn names(der: &[u8]) -> String {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return "unreadable".into() };
    let found = certificate.subject_alternative_name().ok().flatten();
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        _ => None,
    };
    found.map(|san| san.value.general_names.iter().filter_map(text).collect::<Vec<_>>().join(",")).unwrap_or_default()
}
