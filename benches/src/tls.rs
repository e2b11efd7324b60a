//! Configurations of both sides, of the files that `carrick bench` writes.
//!
//! Invariant: one suite and one group, so that every run is like the other; no session is ever taken up again.

use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// The name in the server's certificate.
const SERVER: &str = "server.bench";

pub(crate) fn server_name() -> Result<ServerName<'static>> {
    Ok(ServerName::try_from(SERVER)?)
}

fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::aws_lc_rs::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider, kx_group::X25519};
    Arc::new(CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![X25519],
        ..default_provider()
    })
}

fn roots(dir: &str) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(format!("{dir}/ca.pem")).context("ca.pem")? {
        roots.add(certificate?)?;
    }
    Ok(Arc::new(roots))
}

fn own(dir: &str, who: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(format!("{dir}/{who}.crt"))?.collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(format!("{dir}/{who}.key"))?))
}

pub(crate) fn client(dir: &str) -> Result<Arc<ClientConfig>> {
    let (chain, key) = own(dir, "client")?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(dir)?)
        .with_client_auth_cert(chain, key)?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

pub(crate) fn server(dir: &str) -> Result<Arc<ServerConfig>> {
    let (chain, key) = own(dir, "server")?;
    let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(roots(dir)?, provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
