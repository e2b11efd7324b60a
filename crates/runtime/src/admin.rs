//! A small HTTP/1 server for administration: a table of (method, path) → handler.
//!
//! Invariant: whatever a client sends, memory and time per request are bounded, and a handler's panic costs one
//! connection only. It knows nothing of what it serves; TLS is not its business (loopback and in-pod ports).

mod table;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::debug;

pub use table::{Handler, Request, Response, Router};

use crate::drain::Drain;

/// Largest request body.
const MAX_BODY: usize = 1 << 20;
/// Connections served at once; more wait in the accept queue.
const MAX_CONNECTIONS: usize = 256;
/// Time for a request's head, and for its body, to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A bound, not yet running server.
#[derive(Debug)]
pub struct AdminServer {
    listener: TcpListener,
    router: Arc<Router>,
    local: SocketAddr,
}

impl AdminServer {
    /// Binds `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind(addr: SocketAddr, router: Router) -> std::io::Result<Self> {
        Self::from_listener(TcpListener::bind(addr).await?, router)
    }

    /// Serves a listener that somebody else bound.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn from_listener(listener: TcpListener, router: Router) -> std::io::Result<Self> {
        let local = listener.local_addr()?;
        Ok(Self { listener, router: Arc::new(router), local })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves until told to drain; then finishes the requests under way.
    pub async fn run(self, drain: Drain) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let permit = tokio::select! {
                () = drain.graceful() => break,
                permit = Arc::clone(&permits).acquire_owned() => permit,
            };
            let accepted = tokio::select! {
                () = drain.graceful() => break,
                accepted = self.listener.accept() => accepted,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, peer)) => {
                    let (router, drain) = (Arc::clone(&self.router), drain.clone());
                    connections.spawn(async move {
                        serve(stream, peer, router, drain).await;
                        drop(permit);
                    });
                }
                // Out of descriptors or an aborted connection: neither is a reason to stop listening.
                Err(error) => {
                    debug!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, router: Arc<Router>, drain: Drain) {
    let service = service_fn(move |request| {
        let router = Arc::clone(&router);
        async move { Ok::<_, std::convert::Infallible>(answer(request, peer, &router).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(READ_TIMEOUT)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = drain.graceful() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = &mut connection => result,
                () = drain.forced() => Ok(()),
            }
        }
    };
    if let Err(error) = result {
        debug!(%peer, %error, "admin connection");
    }
}

async fn answer(request: http::Request<Incoming>, peer: SocketAddr, router: &Router) -> http::Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let handler = match router.find(&parts.method, parts.uri.path()) {
        Ok(handler) => handler,
        Err(response) => return response.into_http(),
    };
    // A declared length is refused before anything of it is read.
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Response::text(http::StatusCode::PAYLOAD_TOO_LARGE, "body too large\n").into_http();
    }
    let body = match tokio::time::timeout(READ_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return Response::text(http::StatusCode::PAYLOAD_TOO_LARGE, "body too large\n").into_http(),
        Err(_) => return Response::text(http::StatusCode::REQUEST_TIMEOUT, "body too slow\n").into_http(),
    };
    handler(Request::new(parts, peer, body)).await.into_http()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drain;
    use http::{Method, StatusCode};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn talk(addr: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    }

    async fn start() -> (SocketAddr, drain::DrainTrigger) {
        let mut router = Router::new();
        router.get("/ready", |_| async { Response::text(StatusCode::OK, "LIVE\n") });
        router.get("/echo", |r: Request| async move {
            Response::text(StatusCode::OK, format!("{:?}", r.query("a").map(|v| v.into_owned())))
        });
        router.route(Method::POST, "/quit", |r: Request| async move {
            Response::text(StatusCode::OK, format!("{}", r.body.len()))
        });
        router.prefix(
            Method::GET,
            "/app/",
            |r: Request| async move { Response::text(StatusCode::OK, r.path().to_owned()) },
        );
        let server = AdminServer::bind(([127, 0, 0, 1], 0).into(), router).await.unwrap();
        let (trigger, drain) = drain::channel();
        let addr = server.local_addr();
        tokio::spawn(server.run(drain));
        (addr, trigger)
    }

    #[tokio::test]
    async fn routes_by_method_and_path() {
        let (addr, _trigger) = start().await;
        for (request, status, body) in [
            (get("/ready"), "200", "LIVE\n"),
            (get("/echo?a=b%20c&x"), "200", "Some(\"b c\")"),
            (get("/app/x/y?z"), "200", "/app/x/y"),
            (get("/quit"), "405", ""),
            (get("/none"), "404", ""),
            ("POST /quit HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc".into(), "200", "3"),
            (
                format!(
                    "POST /quit HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    MAX_BODY + 1
                ),
                "413",
                "",
            ),
            ("\u{1}\u{2} nonsense\r\n\r\n".into(), "400", ""),
        ] {
            let answer = talk(addr, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
            assert!(answer.ends_with(body), "{request:?}: {answer}");
        }
    }

    #[tokio::test]
    async fn drains_with_idle_connections_open() {
        let (addr, trigger) = start().await;
        let mut idle = TcpStream::connect(addr).await.unwrap();
        idle.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0u8; 15];
        idle.read_exact(&mut first).await.unwrap();
        assert_eq!(trigger.drain(Duration::from_secs(5)).await, drain::Drained::Gracefully);
    }
}
