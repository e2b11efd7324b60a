//! One question to the application: over HTTP, over TLS, by a connection alone, or by gRPC's health protocol.
//!
//! Invariant: an answer's head is all that is looked at, and a redirect is an answer. A certificate is not judged, as Kubernetes does
//! not judge it: it is the pod asking itself. Time is bounded by the caller.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::HttpGet;

/// Largest answer of a health service.
const MAX: usize = 64 << 10;

/// Where the application listens, and from where it is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) to: SocketAddr,
    pub(super) from: Option<IpAddr>,
}

/// Opens a connection.
pub(super) async fn connect(place: Place) -> Result<TcpStream, String> {
    let words = |error: std::io::Error| format!("{}: {error}", place.to);
    let socket = match place.to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.map_err(words)?;
    if let Some(from) = place.from {
        socket.bind(SocketAddr::new(from, 0)).map_err(words)?;
    }
    socket.connect(place.to).await.map_err(words)
}

/// Asks over HTTP or HTTPS; gives the application's status.
pub(super) async fn http(place: Place, get: &HttpGet, headers: &HeaderMap) -> Result<StatusCode, String> {
    let path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    let mut request = Request::get(path);
    let own: Vec<String> = get.http_headers.iter().map(|h| h.name.to_ascii_lowercase()).collect();
    for (name, value) in headers {
        let told =
            matches!(*name, header::HOST | header::CONNECTION | header::CONTENT_LENGTH | header::TRANSFER_ENCODING);
        if !told && !own.iter().any(|o| o == name.as_str()) {
            request = request.header(name, value);
        }
    }
    for header in &get.http_headers {
        request = request.header(header.name.as_str(), header.value.as_str());
    }
    if !own.iter().any(|name| name == "host") {
        request = request.header(header::HOST, place.to.to_string());
    }
    let request = request.header(header::CONNECTION, "close").body(Full::new(Bytes::new()));
    let request = request.map_err(|error| error.to_string())?;
    let stream = connect(place).await?;
    if get.scheme.eq_ignore_ascii_case("https") {
        let name = ServerName::IpAddress(place.to.ip().into());
        let stream = TlsConnector::from(unjudged()?).connect(name, stream).await;
        return exchange(stream.map_err(|error| format!("{}: {error}", place.to))?, request).await;
    }
    exchange(stream, request).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<StatusCode, String> {
    let words = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
    let response = driven(sender.send_request(request), connection).await?;
    Ok(response.map_err(words)?.status())
}

/// Drives the connection beside the answer instead of in a task of its own: it ends with the answer.
async fn driven<T>(
    answer: impl Future<Output = T>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<T, String> {
    tokio::pin!(answer, connection);
    let mut ended = false;
    loop {
        tokio::select! {
            answer = &mut answer => return Ok(answer),
            result = &mut connection, if !ended => {
                ended = true;
                result.map_err(|error| error.to_string())?;
            }
        }
    }
}

/// Asks gRPC's health service (grpc.health.v1), in the clear as Kubernetes does.
pub(super) async fn grpc(place: Place, service: &str) -> Result<(), String> {
    let words = |error: hyper::Error| error.to_string();
    let stream = connect(place).await?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(words)?;
    let request = Request::post(format!("http://{}/grpc.health.v1.Health/Check", place.to))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(question(service)?))
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response: http::Response<Incoming> = sender.send_request(request).await.map_err(words)?;
        let status = |headers: &HeaderMap| headers.get("grpc-status").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let mut code = status(response.headers());
        let body = Limited::new(response.into_body(), MAX).collect().await.map_err(|error| error.to_string())?;
        code = code.or_else(|| body.trailers().and_then(status));
        match code.as_deref() {
            Some("0") if serves(&body.to_bytes()) => Ok(()),
            Some("0") => Err("the service is not serving".to_owned()),
            code => Err(format!("gRPC status {}", code.unwrap_or("unknown"))),
        }
    };
    driven(answer, connection).await?
}

/// `HealthCheckRequest { service = 1 }` in a gRPC frame.
fn question(service: &str) -> Result<Bytes, String> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        // A name of a service is short; one byte of length is enough for 127.
        let length = u8::try_from(service.len()).ok().filter(|length| *length < 0x80);
        message.push(length.ok_or("the service's name is too long")?);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or_default().to_be_bytes());
    frame.extend_from_slice(&message);
    Ok(frame.into())
}

/// Whether a frame is `HealthCheckResponse { status = 1: SERVING (1) }`.
fn serves(frame: &[u8]) -> bool {
    frame.get(5..).is_some_and(|message| message.starts_with(&[0x08, 0x01]))
}

fn unjudged() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Believes every certificate.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_the_health_protocol() {
        assert_eq!(question("").unwrap().as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(question("ab").unwrap().as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert!(question(&"x".repeat(200)).is_err());
        assert!(serves(&[0, 0, 0, 0, 2, 8, 1]));
        assert!(!serves(&[0, 0, 0, 0, 2, 8, 2]) && !serves(&[0, 0, 0, 0, 0]) && !serves(&[]));
    }

    #[tokio::test]
    async fn a_health_service_is_asked() {
        use hyper::service::service_fn;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service_fn(|request: Request<Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let healthy = body.ends_with(b"up");
                    let frame = if healthy { vec![0, 0, 0, 0, 2, 8, 1] } else { vec![0, 0, 0, 0, 2, 8, 2] };
                    let response = http::Response::builder().header("grpc-status", "0");
                    Ok::<_, std::convert::Infallible>(response.body(Full::new(Bytes::from(frame))).unwrap())
                });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        });
        let place = Place { to, from: None };
        assert_eq!(grpc(place, "up").await, Ok(()));
        assert_eq!(grpc(place, "down").await, Err("the service is not serving".to_owned()));
        serving.abort();
    }
}
