//! Challenges of ACME that this process answers itself: http-01 (RFC 8555 §8.3) and tls-alpn-01 (RFC 8737).
//!
//! Invariant: only what was put here is answered, and it is put here again with each look at an order that still needs it, so a
//! restart loses nothing. Nothing but the path of a challenge, and nothing but its protocol, is served.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

/// Where the answers of http-01 are.
const PATH: &str = "/.well-known/acme-challenge/";
/// The protocol of tls-alpn-01.
const PROTOCOL: &[u8] = b"acme-tls/1";
/// Callers at the same time; servers of ACME come with a handful.
const CALLERS: usize = 64;
/// Longest time for a caller.
const TIME: Duration = Duration::from_secs(10);

/// What is answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Challenges {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    http: HashMap<String, String>,
    tls: HashMap<String, Arc<CertifiedKey>>,
    /// Challenges that the server was asked to look at, by URL.
    asked: HashSet<String>,
}

impl Challenges {
    fn with<T>(&self, act: impl FnOnce(&mut Known) -> T) -> T {
        act(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A token is answered with a key authorization.
    pub(crate) fn put_http(&self, token: &str, answer: &str) {
        self.with(|known| known.http.insert(token.to_owned(), answer.to_owned()));
    }

    /// A name is answered with a certificate.
    pub(crate) fn put_tls(&self, name: &str, certificate: Arc<CertifiedKey>) {
        self.with(|known| known.tls.insert(name.to_owned(), certificate));
    }

    /// Whether the server has not yet been asked to look at this challenge; from now on it has.
    pub(crate) fn ask(&self, url: &str) -> bool {
        self.with(|known| known.asked.insert(url.to_owned()))
    }

    /// Asking failed.
    pub(crate) fn unask(&self, url: &str) {
        self.with(|known| known.asked.remove(url));
    }

    /// Everything about a challenge is over.
    pub(crate) fn forget(&self, token: &str, name: &str, url: &str) {
        self.with(|known| {
            known.http.remove(token);
            known.tls.remove(name);
            known.asked.remove(url);
        });
    }

    fn http(&self, token: &str) -> Option<String> {
        self.with(|known| known.http.get(token).cloned())
    }
}

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.to_ascii_lowercase();
        hello.alpn()?.find(|protocol| *protocol == PROTOCOL)?;
        self.with(|known| known.tls.get(&name).cloned())
    }
}

/// Answers http-01 on a listener until the future is dropped.
pub(crate) async fn serve_http(challenges: Challenges, listener: TcpListener) {
    serve(listener, move |stream| answer_http(challenges.clone(), stream)).await;
}

/// Answers tls-alpn-01 on a listener until the future is dropped.
pub(crate) async fn serve_tls(challenges: Challenges, listener: TcpListener) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = match builder {
        Ok(builder) => builder.with_no_client_auth().with_cert_resolver(Arc::new(challenges)),
        Err(error) => return warn!(%error, "tls-alpn-01 is not answered"),
    };
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    serve(listener, move |stream| {
        let acceptor = acceptor.clone();
        // The handshake is all there is to see.
        async move { drop(acceptor.accept(stream).await) }
    })
    .await;
}

async fn serve<F: Future<Output = ()> + Send + 'static>(listener: TcpListener, answer: impl Fn(TcpStream) -> F) {
    let mut callers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if callers.len() < CALLERS => match accepted {
                Ok((stream, _)) => {
                    callers.spawn(tokio::time::timeout(TIME, answer(stream)));
                }
                Err(error) => {
                    debug!(%error, "accepting a caller");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = callers.join_next(), if !callers.is_empty() => {}
        }
    }
}

async fn answer_http(challenges: Challenges, stream: TcpStream) {
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let token = (request.method() == Method::GET).then(|| request.uri().path().strip_prefix(PATH)).flatten();
        let answer = token.and_then(|token| challenges.http(token));
        let (status, body) = answer.map_or((StatusCode::NOT_FOUND, String::new()), |text| (StatusCode::OK, text));
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        async move { Ok::<_, Infallible>(response) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Where challenges are answered.
#[derive(Debug, Default)]
pub struct ChallengeListeners {
    /// http-01, on any port that requests for port 80 of the names come to.
    pub http: Option<TcpListener>,
    /// tls-alpn-01, on any port that connections for port 443 come to.
    pub tls: Option<TcpListener>,
    /// Where pods reach the listener for http-01: gateways are led there.
    pub reached_at: Option<SocketAddr>,
}
