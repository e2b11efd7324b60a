//! Getting a key set: by its URL, or by the URL in an issuer's discovery document.
//!
//! Invariant: HTTPS servers are verified; an answer is bounded in size and what asks bounds it in time; addresses that only mean
//! something on this very machine's link (cloud metadata services) are never called, since whoever writes an object would read their
//! answers through us.

use super::KeyOptions;
use crate::renderer::Renderer;
use carrick_base::Hostname;
use carrick_mesh::{KeySource, is_key_set};
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DISCOVERY: &str = "/.well-known/openid-configuration";
/// Redirects that are followed.
const REDIRECTS: usize = 3;
/// Where distributions keep their roots.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

pub(crate) struct Fetcher {
    roots: Vec<String>,
    max_bytes: usize,
    renderer: Arc<Renderer>,
    tls: OnceLock<Arc<ClientConfig>>,
}

/// What an answer holds.
enum Answer {
    Body(Bytes),
    Elsewhere(Uri),
}

impl Fetcher {
    pub(crate) fn new(options: &KeyOptions, renderer: Arc<Renderer>) -> Self {
        let (roots, max_bytes) = (options.roots.clone(), options.max_bytes);
        Self { roots, max_bytes, renderer, tls: OnceLock::new() }
    }

    /// The key set.
    ///
    /// # Errors
    /// Why there is none, as a sentence. Has no time limit of its own; cancel safe.
    pub(super) async fn keys(&self, source: &KeySource) -> Result<Arc<str>, String> {
        let uri = match source {
            KeySource::Uri(uri) => uri.to_string(),
            KeySource::Issuer(issuer) => {
                let document = self.get(&format!("{}{DISCOVERY}", issuer.trim_end_matches('/'))).await?;
                let document: serde_json::Value = serde_json::from_slice(&document).map_err(|e| e.to_string())?;
                let uri = document.get("jwks_uri").and_then(serde_json::Value::as_str);
                uri.ok_or("the discovery document has no jwks_uri")?.to_owned()
            }
        };
        let body = self.get(&uri).await?;
        let text = std::str::from_utf8(&body).map_err(|e| e.to_string())?;
        if is_key_set(text) { Ok(text.into()) } else { Err("the answer is no key set".to_owned()) }
    }

    /// What a URL answers with. Has no time limit of its own; cancel safe.
    ///
    /// # Errors
    /// Why there is no answer, as a sentence.
    pub(crate) async fn get(&self, uri: &str) -> Result<Bytes, String> {
        let mut uri: Uri = uri.parse().map_err(|_| format!("{uri:?} is no URL"))?;
        for _ in 0..=REDIRECTS {
            match self.get_once(&uri, None).await.map_err(|reason| format!("{uri}: {reason}"))? {
                Answer::Body(body) => return Ok(body),
                Answer::Elsewhere(other) => {
                    if uri.scheme_str() == Some("https") && other.scheme_str() != Some("https") {
                        return Err(format!("{uri} leads to {other}, which is not secured"));
                    }
                    uri = other;
                }
            }
        }
        Err("too many redirects".to_owned())
    }

    /// The same of a server that is verified otherwise; it leads nowhere else.
    pub(crate) async fn get_with(&self, uri: &str, tls: Arc<ClientConfig>) -> Result<Bytes, String> {
        let uri: Uri = uri.parse().map_err(|_| format!("{uri:?} is no URL"))?;
        match self.get_once(&uri, Some(tls)).await.map_err(|reason| format!("{uri}: {reason}"))? {
            Answer::Body(body) => Ok(body),
            Answer::Elsewhere(other) => Err(format!("{uri} leads to {other}, which is not followed")),
        }
    }

    async fn get_once(&self, uri: &Uri, tls: Option<Arc<ClientConfig>>) -> Result<Answer, String> {
        let host = uri.host().ok_or("no host")?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("neither http nor https".to_owned()),
        };
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = self.connect(host.trim_matches(['[', ']']), port).await?;
        if !secure {
            return self.ask(stream, uri).await;
        }
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|e| e.to_string())?;
        let tls = tls.map_or_else(|| self.tls(), Ok)?;
        let stream = TlsConnector::from(tls).connect(name, stream).await.map_err(|e| e.to_string())?;
        self.ask(stream, uri).await
    }

    /// A service of the mesh by its endpoints, since this machine may not know its name; else by DNS.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let mut addresses = self.of_service(host, port);
        if addresses.is_empty() {
            addresses = tokio::net::lookup_host((host, port)).await.map_err(|e| e.to_string())?.collect();
        }
        let mut reason = "no address".to_owned();
        for address in addresses {
            if is_forbidden(address.ip()) {
                reason = format!("{} is not called", address.ip());
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => reason = error.to_string(),
            }
        }
        Err(reason)
    }

    fn of_service(&self, host: &str, port: u16) -> Vec<SocketAddr> {
        let Some(current) = self.renderer.current() else { return Vec::new() };
        let snapshot = &current.snapshot;
        let domain = &snapshot.settings().domain_suffix;
        let names = [host.to_owned(), format!("{host}.{domain}"), format!("{host}.svc.{domain}")];
        let Some(service) = names.iter().find_map(|n| snapshot.service(&Hostname::new(n))) else { return Vec::new() };
        let Some(port) = service.port(port) else { return Vec::new() };
        let endpoints = snapshot.endpoints().of(&service.id, &port.slot).iter();
        endpoints.filter(|e| e.ready).filter_map(|e| Some(SocketAddr::new(e.address.ip()?, e.address.port()))).collect()
    }

    async fn ask(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        uri: &Uri,
    ) -> Result<Answer, String> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        let authority = uri.authority().ok_or("no host")?.as_str();
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let request = Request::get(path)
            .header(header::HOST, authority.rsplit_once('@').map_or(authority, |(_, host)| host))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "carrick")
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = response.status();
            if status.is_redirection() {
                let place = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
                return elsewhere(uri, place.unwrap_or_default()).map(Answer::Elsewhere);
            }
            if status != StatusCode::OK {
                return Err(format!("status {status}"));
            }
            let body = Limited::new(response.into_body(), self.max_bytes).collect().await.map_err(|e| e.to_string())?;
            Ok(Answer::Body(body.to_bytes()))
        };
        // The connection is driven beside the exchange and ends with it.
        tokio::select! {
            answer = exchange => answer,
            Err(error) = connection => Err(error.to_string()),
        }
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        if let Some(known) = self.tls.get() {
            return Ok(known.clone());
        }
        let mut store = RootCertStore::empty();
        let system = SYSTEM_BUNDLES.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
        for bundle in std::iter::once(system.as_slice()).chain(self.roots.iter().map(String::as_bytes)) {
            // One certificate that cannot be used does not take the others with it.
            for certificate in CertificateDer::pem_slice_iter(bundle).flatten() {
                let _ = store.add(certificate);
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(self.tls.get_or_init(|| Arc::new(config)).clone())
    }
}

/// Where a redirect leads to: a whole URL, or a path on the same server.
fn elsewhere(from: &Uri, place: &str) -> Result<Uri, String> {
    let to: Uri = place.parse().map_err(|_| format!("redirect to {place:?}"))?;
    if to.scheme().is_some() {
        return Ok(to);
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = to.into_parts().path_and_query;
    Uri::from_parts(parts).map_err(|e| e.to_string())
}

/// Addresses of the link, of everybody and of nobody.
fn is_forbidden(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_multicast() || ip.is_unspecified() || ip.is_broadcast(),
        IpAddr::V6(ip) => {
            // fd00:ec2::254 is a metadata service with an address of its own.
            ip.is_unicast_link_local()
                || ip.is_multicast()
                || ip.is_unspecified()
                || ip.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    }
}
