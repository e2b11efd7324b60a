//! Listening, TLS handshakes, HTTP connections, and what becomes of a connection that is upgraded.
//!
//! Invariant: connections are bounded in number, and each phase before a request is bounded in time; a connection's
//! client certificate is read once, after the handshake verified it.
//! What it leaves to others: requests (`rest`).

use crate::auth::certs::{self, Authority, CertError, Leaf};
use crate::authorize::User;
use crate::rest::{Api, Takeover};
use carrick_runtime::drain::Drain;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Open connections at once.
const CONNECTIONS: usize = 8192;
/// From accept to the end of the handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// For the head of an HTTP/1 request.
const HEAD_TIME: Duration = Duration::from_secs(15);
/// Silence after which an HTTP/2 peer is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(30);
/// Streams on one HTTP/2 connection.
const STREAMS: u32 = 1000;
/// After accept fails for want of something (descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The TLS configuration: our certificate, client certificates verified where shown.
///
/// # Errors
/// `CertError` when rustls refuses what we made.
pub fn tls(authority: &Authority, leaf: Leaf) -> Result<Arc<ServerConfig>, CertError> {
    let content = |e: &dyn std::fmt::Display| CertError::Content(e.to_string());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate()?).map_err(|e| content(&e))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| content(&e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| content(&e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf.certificate], leaf.key)
        .map_err(|e| content(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Accepts on `listener` until a drain.
pub async fn run(listener: TcpListener, tls: Arc<ServerConfig>, api: Arc<Api>, drain: Drain) {
    let acceptor = TlsAcceptor::from(tls);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a connection panicked");
                }
                continue;
            }
            () = drain.graceful() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Beyond the bound the newest goes; it may try again.
                let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                let (acceptor, api, drain) = (acceptor.clone(), api.clone(), drain.clone());
                connections.spawn(async move {
                    let _permit = permit;
                    connection(stream, peer, acceptor, api, drain).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, api: Arc<Api>, drain: Drain) {
    // Small answers at once; a failure here costs only latency.
    drop(stream.set_nodelay(true));
    let stream = match tokio::time::timeout(HANDSHAKE_TIME, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
    };
    let user: Option<Arc<User>> = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|leaf| certs::user_of(leaf))
        .map(Arc::new);
    let taken_over: Arc<OnceLock<Takeover>> = Arc::default();
    let keep = taken_over.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (api, user, keep) = (api.clone(), user.clone(), keep.clone());
        async move {
            let mut answer = api.handle(request, user.as_deref()).await;
            if let Some(session) = answer.extensions_mut().remove::<Takeover>() {
                // A connection is upgraded once.
                let _ = keep.set(session);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = drain.graceful() => {
            served.as_mut().graceful_shutdown();
            tokio::select! {
                outcome = served.as_mut() => outcome,
                () = drain.forced() => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%peer, %error, "connection ended");
        return;
    }
    if let Some(session) = taken_over.get().and_then(Takeover::take) {
        tokio::select! {
            () = session => {}
            () = drain.graceful() => {}
        }
    }
}

/// Addresses the serving certificate is for: loopback, the service's, and those listened on.
pub fn certificate_addresses(bound: &[SocketAddr]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = vec![
        [127, 0, 0, 1].into(),
        IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        [10, 96, 0, 1].into(),
        [10, 244, 0, 1].into(),
    ];
    for address in bound.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}
