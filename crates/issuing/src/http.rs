//! A small HTTP client for the servers that issuers name.
//!
//! Invariant: HTTPS servers are verified, by the issuer's own bundle where it has one and else by the machine's; answers are
//! bounded in size and time; addresses that mean something on this machine's link only (metadata services) are never called,
//! since whoever writes an issuer would read their answers through us.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest time for one exchange.
const TIME: Duration = Duration::from_secs(15);
/// Longest answer, in bytes.
const SIZE: usize = 1 << 20;
/// Where distributions keep their roots.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// The client.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    tls: Arc<ClientConfig>,
}

impl Http {
    /// A client that verifies servers by `bundle` (PEM), or by the machine's roots.
    ///
    /// # Errors
    /// The bundle has no certificate.
    pub(crate) fn new(bundle: Option<&[u8]>) -> Result<Self, String> {
        let system = || SYSTEM_BUNDLES.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
        let text = bundle.map_or_else(system, <[u8]>::to_vec);
        let mut roots = RootCertStore::empty();
        // One certificate that cannot be used does not take the others with it.
        for certificate in CertificateDer::pem_slice_iter(&text).flatten() {
            let _ = roots.add(certificate);
        }
        if bundle.is_some() && roots.is_empty() {
            return Err("caBundle: has no certificate that can be used".to_owned());
        }
        Self::trusting(roots)
    }

    fn trusting(roots: RootCertStore) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(config) })
    }

    /// A client for servers without TLS: no other is believed.
    pub(crate) fn plain() -> Result<Self, String> {
        Self::trusting(RootCertStore::empty())
    }

    /// Sends a request with an absolute URL.
    ///
    /// # Errors
    /// Why there is no answer, as a sentence that names the URL. Cancel safe.
    pub(crate) async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let uri = request.uri().clone();
        let answer = tokio::time::timeout(TIME, self.exchange(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", TIME.as_secs())));
        answer.map_err(|why| format!("{uri}: {why}"))
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let uri = request.uri();
        let host = uri.host().ok_or("no host")?.trim_matches(['[', ']']).to_owned();
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("neither http nor https".to_owned()),
        };
        let stream = connect(&host, uri.port_u16().unwrap_or(if secure { 443 } else { 80 })).await?;
        if !secure {
            return ask(stream, request).await;
        }
        let name = ServerName::try_from(host).map_err(|e| e.to_string())?;
        let stream =
            TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.map_err(|e| e.to_string())?;
        ask(stream, request).await
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let mut reason = "no address".to_owned();
    for address in tokio::net::lookup_host((host, port)).await.map_err(|e| e.to_string())? {
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

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().ok_or("no host")?.as_str();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if !parts.headers.contains_key(header::HOST) {
        parts.headers.insert(header::HOST, HeaderValue::from_str(host).map_err(|e| e.to_string())?);
    }
    parts.headers.insert(header::USER_AGENT, HeaderValue::from_static("carrick"));
    parts.uri = parts
        .uri
        .path_and_query()
        .map_or_else(|| Ok(Uri::from_static("/")), |path| path.as_str().parse())
        .map_err(|_| "no path")?;
    let exchange = async {
        let response = sender.send_request(Request::from_parts(parts, Full::new(body))).await;
        let (parts, body) = response.map_err(|e| e.to_string())?.into_parts();
        let body = Limited::new(body, SIZE).collect().await.map_err(|e| e.to_string())?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    };
    // The connection is driven beside the exchange and ends with it.
    tokio::select! {
        answer = exchange => answer,
        Err(error) = connection => Err(error.to_string()),
    }
}

/// Addresses of the link, of everybody and of nobody.
fn is_forbidden(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_multicast() || ip.is_unspecified() || ip.is_broadcast(),
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local()
                || ip.is_multicast()
                || ip.is_unspecified()
                || ip.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    }
}
