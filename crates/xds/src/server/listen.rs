//! Accepts connections for gRPC services: TLS with the identity of the peer, plain loopback, Unix sockets.
//!
//! Invariant: a request reaches a service only with a [`Peer`] in its extensions that was made here from the finished
//! handshake. Connections are owned by the accept loop, limited in number, and asked to finish on drain.

use super::Peer;
use super::authority::PathAuthority;
use carrick_base::SpiffeId;
use carrick_runtime::drain::Drain;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::service::Routes;
use tracing::debug;

/// Reads the verified identity of a peer out of a finished handshake; `None` when it presented no certificate.
pub type Identify = Arc<dyn Fn(&rustls::ServerConnection) -> Result<Option<SpiffeId>, String> + Send + Sync>;

/// The server's current TLS configuration, asked for on each connection.
pub type TlsSource = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// Limits of a listener.
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// Time for the TLS handshake.
    pub handshake_timeout: Duration,
    /// An idle connection is probed after this.
    pub keepalive_interval: Duration,
    /// A probe must be answered within this.
    pub keepalive_timeout: Duration,
    /// Connections at once; more wait in the accept queue.
    pub max_connections: usize,
    /// Requests at once on a connection.
    pub max_streams: u32,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            max_connections: 16 * 1024,
            max_streams: 128,
        }
    }
}

/// HTTP/2 flow-control windows: a first push of some hundred services fits without a round trip.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Serves `routes` over TLS until drained.
pub async fn serve_tls(
    listener: TcpListener,
    routes: Routes,
    tls: TlsSource,
    identify: Identify,
    options: ListenOptions,
    drain: Drain,
) {
    let options = Arc::new(options);
    let routes = routes.prepare();
    accept_loop(
        || listener.accept(),
        &options.clone(),
        drain,
        |(stream, address): (_, SocketAddr), drain| {
            let (routes, tls, identify, options) = (routes.clone(), tls(), identify.clone(), options.clone());
            async move {
                let _ = stream.set_nodelay(true);
                let handshake = TlsAcceptor::from(tls).accept(stream);
                let stream = match tokio::time::timeout(options.handshake_timeout, handshake).await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return debug!(%address, %error, "TLS handshake"),
                    Err(_) => return debug!(%address, "TLS handshake timed out"),
                };
                let identity = match identify(stream.get_ref().1) {
                    Ok(identity) => identity,
                    Err(error) => return debug!(%address, error, "peer refused"),
                };
                serve_connection(stream, Peer { address: Some(address), identity }, routes, &options, drain).await;
            }
        },
    )
    .await;
}

/// Serves `routes` without TLS until drained: for tests on loopback. Peers have no identity.
pub async fn serve_plain(listener: TcpListener, routes: Routes, options: ListenOptions, drain: Drain) {
    let options = Arc::new(options);
    let routes = routes.prepare();
    accept_loop(
        || listener.accept(),
        &options.clone(),
        drain,
        |(stream, address): (_, SocketAddr), drain| {
            let (routes, options) = (routes.clone(), options.clone());
            async move {
                let _ = stream.set_nodelay(true);
                serve_connection(stream, Peer { address: Some(address), identity: None }, routes, &options, drain)
                    .await;
            }
        },
    )
    .await;
}

/// Serves `routes` on a Unix socket until drained. Who may connect is decided by the socket's file mode.
pub async fn serve_unix(listener: UnixListener, routes: Routes, options: ListenOptions, drain: Drain) {
    serve_unix_where(listener, routes, options, drain, |_| true).await;
}

/// The same, for those whom `admit` lets in; a connection of another is closed at once.
pub async fn serve_unix_where(
    listener: UnixListener,
    routes: Routes,
    options: ListenOptions,
    drain: Drain,
    admit: impl Fn(&UnixStream) -> bool,
) {
    let options = Arc::new(options);
    let routes = routes.prepare();
    accept_loop(
        || listener.accept(),
        &options.clone(),
        drain,
        |(stream, _), drain| {
            let (routes, options, admitted) = (routes.clone(), options.clone(), admit(&stream));
            async move {
                if admitted {
                    serve_connection(PathAuthority::new(stream), Peer::default(), routes, &options, drain).await;
                }
            }
        },
    )
    .await;
}

async fn accept_loop<A, Conn, Serve>(
    mut accept: impl FnMut() -> A,
    options: &ListenOptions,
    drain: Drain,
    mut serve: impl FnMut(Conn, Drain) -> Serve,
) where
    A: Future<Output = std::io::Result<Conn>>,
    Serve: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(options.max_connections));
    let mut connections = JoinSet::new();
    loop {
        let permit = tokio::select! {
            () = drain.graceful() => break,
            permit = permits.clone().acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = drain.graceful() => break,
            accepted = accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok(connection) => {
                let serving = serve(connection, drain.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            // Out of descriptors, or a connection that went away: neither is a reason to stop.
            Err(error) => {
                debug!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn serve_connection<IO>(io: IO, peer: Peer, routes: Routes, options: &ListenOptions, drain: Drain)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let address = peer.address;
    let service = tower::ServiceBuilder::new()
        .map_request(move |mut request: http::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request
        })
        .service(routes);
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .max_concurrent_streams(options.max_streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = drain.graceful() => {
            // xDS streams never end by themselves: say GOAWAY, give the frames a moment, then close.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = &mut connection => ended,
                () = tokio::time::sleep(Duration::from_millis(50)) => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        debug!(?address, %error, "connection ended");
    }
}
