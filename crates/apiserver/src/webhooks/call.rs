//! The way to a hook and back: one HTTPS request for each question.
//!
//! Invariant: a call is bounded by the hook's `timeoutSeconds` from the first address to the last byte, and its answer in
//! size; certificates are always verified, against `caBundle` or, without one, the system's authorities.
//! What it leaves to others: what is asked (`review`).

use crate::store::Store;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Largest answer, bytes; an object and its patch fit well.
const ANSWER_LIMIT: usize = 6 << 20;
/// Seconds when a hook names none.
const DEFAULT_TIMEOUT: u64 = 10;
/// Where distributions keep the authorities that programs believe.
const SYSTEM_AUTHORITIES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Calls hooks.
#[derive(Default)]
pub struct Caller {
    _private: (),
}

/// Where a hook is.
struct Place {
    /// As errors name it.
    url: String,
    /// Host and port to connect to.
    connect: (String, u16),
    /// The name in the certificate.
    name: String,
    /// `Host`.
    authority: String,
    /// Path and query.
    path: String,
}

impl Caller {
    /// Sends a review; the answer with the `apiVersion` that it must have.
    ///
    /// # Errors
    /// Why there is no answer, as Kubernetes words it.
    pub async fn call(&self, store: &Store, hook: &Value, review: &Value) -> Result<(String, Value), String> {
        let seconds = hook.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(DEFAULT_TIMEOUT).clamp(1, 30);
        let client = hook.get("clientConfig").cloned().unwrap_or_default();
        let place = place(store, &client, seconds)?;
        let version = review.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
        let body = serde_json::to_vec(review).map_err(|e| e.to_string())?;
        let failed = |why: String| format!("failed to call webhook: Post {:?}: {why}", place.url);
        let answer = tokio::time::timeout(Duration::from_secs(seconds), post(&place, &client, body));
        match answer.await {
            Err(_) => Err(failed("context deadline exceeded".into())),
            Ok(Err(why)) => Err(failed(why)),
            Ok(Ok((status, bytes))) if status != 200 => {
                let told: String = String::from_utf8_lossy(&bytes).chars().take(256).collect();
                Err(format!(
                    "failed to call webhook: an error on the server ({:?}) has prevented the request from succeeding (status {status})",
                    told.trim()
                ))
            }
            Ok(Ok((_, bytes))) => {
                let answer = serde_json::from_slice(&bytes);
                answer.map(|answer| (version, answer)).map_err(|e| failed(format!("the answer is not JSON: {e}")))
            }
        }
    }
}

async fn post(place: &Place, client: &Value, body: Vec<u8>) -> Result<(u16, Bytes), String> {
    let config = tls(client)?;
    let name = ServerName::try_from(place.name.clone()).map_err(|e| e.to_string())?;
    let stream = TcpStream::connect((place.connect.0.as_str(), place.connect.1)).await;
    let stream = stream.map_err(|e| format!("dial tcp {}:{}: {e}", place.connect.0, place.connect.1))?;
    // Only latency is lost when this fails.
    drop(stream.set_nodelay(true));
    let stream = TlsConnector::from(config).connect(name, stream).await;
    let stream = stream.map_err(|e| format!("tls: {e}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(&place.path)
        .header(HOST, &place.authority)
        .header(USER_AGENT, "kube-apiserver-admission")
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await.map_err(|e| e.to_string())?;
        Ok::<_, String>((status, body.to_bytes()))
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // What the connection has read is with the exchange already.
        _ = &mut connection => exchange.await,
    }
}

fn tls(client: &Value) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let mut named = None;
    let mut take = |pem: &[u8]| {
        for certificate in CertificateDer::pem_slice_iter(pem).flatten() {
            // One that rustls cannot read verifies nothing; the others still do.
            drop(roots.add(certificate));
        }
    };
    match client.get("caBundle").and_then(Value::as_str).filter(|b| !b.is_empty()) {
        Some(bundle) => {
            let pem = STANDARD.decode(bundle).map_err(|e| format!("caBundle is not base64: {e}"))?;
            take(&pem);
            named = Some(CertificateDer::pem_slice_iter(&pem).flatten().collect::<Vec<_>>());
        }
        None => SYSTEM_AUTHORITIES.iter().find_map(|path| std::fs::read(path).ok()).iter().for_each(|pem| take(pem)),
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| e.to_string())?;
    let mut config = builder.with_root_certificates(roots.clone()).with_no_client_auth();
    if let Some(trusted) = named {
        let usual = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
        );
        if let Ok(usual) = usual.build() {
            config.dangerous().set_certificate_verifier(Arc::new(Pinned { trusted, usual }));
        }
    }
    Ok(Arc::new(config))
}

/// Takes a certificate that is in the bundle itself for good, be it an authority's, as Go does: many hooks sign their own. Its name
/// and its time must be right all the same.
#[derive(Debug)]
struct Pinned {
    trusted: Vec<CertificateDer<'static>>,
    usual: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        staple: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let outcome = self.usual.verify_server_cert(leaf, between, name, staple, now);
        let own = self.trusted.iter().any(|known| known.as_ref() == leaf.as_ref());
        let as_authority = |error: &rustls::Error| {
            matches!(
                error,
                rustls::Error::InvalidCertificate(CertificateError::Other(_) | CertificateError::UnknownIssuer)
            )
        };
        match outcome {
            Err(error) if own && as_authority(&error) && is_valid(leaf, now) => {
                let parsed = ParsedCertificate::try_from(leaf)?;
                verify_server_name(&parsed, name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.usual.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

fn is_valid(leaf: &CertificateDer<'_>, now: UnixTime) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(leaf) else { return false };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now)
}

fn place(store: &Store, client: &Value, seconds: u64) -> Result<Place, String> {
    let text = |pointer: &str| client.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(url) = client.get("url").and_then(Value::as_str) {
        let uri: Uri = url.parse().map_err(|e| format!("the URL {url:?} cannot be read: {e}"))?;
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let path = with_timeout(uri.path_and_query().map_or("/", |p| p.as_str()), seconds);
        let authority = uri.authority().map_or_else(|| host.clone(), ToString::to_string);
        let url = format!("https://{authority}{path}");
        return Ok(Place { url, connect: (host.clone(), port), name: host, authority, path });
    }
    let (namespace, name) = (text("/service/namespace"), text("/service/name"));
    let port = client.pointer("/service/port").and_then(Value::as_u64).unwrap_or(443);
    let given = text("/service/path");
    let path = with_timeout(if given.is_empty() { "/" } else { &given }, seconds);
    let host = format!("{name}.{namespace}.svc");
    let authority = format!("{host}:{port}");
    let url = format!("https://{authority}{path}");
    let connect = endpoint(store, &namespace, &name, port)
        .map_err(|why| format!("failed to call webhook: Post {url:?}: {why}"))?;
    Ok(Place { url, connect, name: host, authority, path })
}

fn with_timeout(path: &str, seconds: u64) -> String {
    let joint = if path.contains('?') { '&' } else { '?' };
    format!("{path}{joint}timeout={seconds}s")
}

/// One ready endpoint of a service's port. Not the cluster address: nothing on the way to it needs to work for that.
fn endpoint(store: &Store, namespace: &str, name: &str, port: u64) -> Result<(String, u16), String> {
    let service = store.get("services", namespace, name).ok_or_else(|| format!("service {name:?} not found"))?;
    let spec = |field: &str| service.pointer(&format!("/spec/{field}")).and_then(Value::as_str).unwrap_or_default();
    if spec("type") == "ExternalName" {
        let port = u16::try_from(port).map_err(|_| format!("port {port} is none"))?;
        return Ok((spec("externalName").to_owned(), port));
    }
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let wanted = ports
        .into_iter()
        .flatten()
        .find(|p| p.get("port").and_then(Value::as_u64) == Some(port))
        .ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let same = |p: &&Value| {
        let name = |p: &Value| p.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        name(p) == name(wanted)
    };
    let mut found = Vec::new();
    let slices = store.list("endpointslices.discovery.k8s.io", Some(namespace)).items;
    let of_service = |slice: &&Value| {
        slice.pointer("/metadata/labels/kubernetes.io~1service-name").and_then(Value::as_str) == Some(name)
    };
    for slice in slices.iter().filter(of_service) {
        let ports = slice.get("ports").and_then(Value::as_array);
        let Some(number) = ports.into_iter().flatten().find(same).and_then(|p| p.get("port")).and_then(Value::as_u64)
        else {
            continue;
        };
        let Ok(number) = u16::try_from(number) else { continue };
        let endpoints = slice.get("endpoints").and_then(Value::as_array).into_iter().flatten();
        let ready = endpoints.filter(|e| e.pointer("/conditions/ready").and_then(Value::as_bool) != Some(false));
        let addresses = ready.filter_map(|e| e.pointer("/addresses/0").and_then(Value::as_str));
        found.extend(addresses.map(|a| (a.to_owned(), number)));
    }
    if found.is_empty() {
        return Err(format!("no endpoints available for service {name:?}"));
    }
    let at = rand::random_range(0..found.len());
    Ok(found.swap_remove(at))
}
