//! A small HTTP/1.1, h2c, gRPC and TLS service for the examples and cases.
//!
//! Invariant: it knows nothing of the mesh; what it answers about a request is what reached it.

mod answer;
mod closing;
mod proxied;
mod tls;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use clap::Args;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::{TcpListener, TcpStream};

use answer::{Service, Via};
use closing::{Closing, Use};

/// How the service listens and whom it calls.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Ports to listen on, on every address: HTTP/1.1 and HTTP/2 in the clear, gRPC by content type.
    #[arg(long = "port", default_value = "8080", value_name = "PORT")]
    ports: Vec<u16>,
    /// Ports that speak TLS.
    #[arg(long = "tls-port", requires = "certificates", value_name = "PORT")]
    tls_ports: Vec<u16>,
    /// Ports that speak TLS and demand a client's certificate.
    #[arg(long = "mutual-tls-port", requires = "certificates", value_name = "PORT")]
    mutual_tls_ports: Vec<u16>,
    /// Ports that demand a PROXY header, of either version, before HTTP.
    #[arg(long = "proxied-port", value_name = "PORT")]
    proxied_ports: Vec<u16>,
    /// Folder of server.pem, server-key.pem and, for clients, ca.pem.
    #[arg(long, value_name = "DIR")]
    certificates: Option<PathBuf>,
    /// What the service calls itself in its answers.
    #[arg(long, default_value = "demo")]
    name: String,
    /// URLs to call for each request; their statuses are part of the answer.
    #[arg(long = "call", value_name = "URL")]
    calls: Vec<String>,
    /// URLs to call for each request, `{path}` standing for its path; their answers become one JSON object.
    #[arg(long = "join", value_name = "URL")]
    joins: Vec<String>,
    /// A JSON object to answer with instead of what was seen.
    #[arg(long, value_name = "JSON")]
    answer: Option<String>,
    /// Close a connection that has been idle for this many milliseconds (`MIN-MAX`: a random number of them), or after each answer (0).
    #[arg(long, value_name = "MS", value_parser = closing::patience)]
    idle: Option<std::ops::RangeInclusive<u64>>,
    /// Close all idle connections at once every so many milliseconds, and the others after their answer: a restart behind a socket that
    /// another process keeps.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    restart_every: Option<u64>,
}

/// Serves until the process is told to stop, then lets open connections finish.
///
/// # Errors
/// When a port cannot be bound or a certificate cannot be read.
pub async fn run(options: Options) -> Result<u8> {
    let mut listeners = Vec::new();
    for (ports, kind) in [
        (&options.ports, Opens::Http),
        (&options.proxied_ports, Opens::Proxied),
        (&options.tls_ports, Opens::Tls { mutual: false }),
        (&options.mutual_tls_ports, Opens::Tls { mutual: true }),
    ] {
        for port in ports {
            let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], *port)))
                .await
                .with_context(|| format!("cannot listen on port {port}"))?;
            let acceptor = match (kind, &options.certificates) {
                (Opens::Tls { mutual }, Some(dir)) => Some(tls::acceptor(dir, mutual)?),
                _ => None,
            };
            listeners.push((listener, Begin { acceptor, proxied: matches!(kind, Opens::Proxied) }));
        }
    }
    let service = Arc::new(Service::new(options.name, options.calls, options.joins, options.answer)?);
    let graceful = Arc::new(hyper_util::server::graceful::GracefulShutdown::new());
    let closing = Arc::new(Closing::new(options.idle, options.restart_every));
    let mut accepting = tokio::task::JoinSet::new();
    for (listener, begin) in listeners {
        accepting.spawn(accept(listener, begin, service.clone(), graceful.clone(), closing.clone()));
    }
    stopped().await;
    accepting.shutdown().await;
    if let Some(graceful) = Arc::into_inner(graceful) {
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), graceful.shutdown()).await;
    }
    Ok(0)
}

/// What a port wants first.
#[derive(Clone, Copy)]
enum Opens {
    Http,
    Proxied,
    Tls { mutual: bool },
}

/// How a connection begins.
#[derive(Clone)]
struct Begin {
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    proxied: bool,
}

async fn accept(
    listener: TcpListener,
    begin: Begin,
    service: Arc<Service>,
    graceful: Arc<hyper_util::server::graceful::GracefulShutdown>,
    closing: Arc<Closing>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (service, begin, watcher) = (service.clone(), begin.clone(), graceful.watcher());
        let closing = closing.clone();
        // A peer that goes away is its own business.
        tokio::spawn(async move {
            let _ = connection(stream, begin, service, watcher, &closing).await;
        });
    }
}

async fn connection(
    mut stream: TcpStream,
    begin: Begin,
    service: Arc<Service>,
    watcher: hyper_util::server::graceful::Watcher,
    closing: &Closing,
) -> Result<()> {
    let (mut peer, local) = (stream.peer_addr()?, stream.local_addr()?);
    stream.set_nodelay(true)?;
    let mut proxied = None;
    if begin.proxied {
        let (version, told) = proxied::read(&mut stream).await?;
        (proxied, peer) = (Some(version), told);
    }
    let usage = Arc::new(Use::default());
    let served = |via: Via| {
        let (via, usage) = (Arc::new(via), usage.clone());
        service_fn(move |request: hyper::Request<Incoming>| {
            let (service, via, usage) = (service.clone(), via.clone(), usage.clone());
            async move {
                usage.begins();
                let answered = service.answer(request, &via).await;
                usage.ends();
                answered
            }
        })
    };
    let server = auto::Builder::new(TokioExecutor::new());
    let running: std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>> = match begin.acceptor {
        None => {
            let via = Via { peer, port: local.port(), tls: None, proxied };
            let serving =
                watcher.watch(server.serve_connection_with_upgrades(TokioIo::new(stream), served(via)).into_owned());
            Box::pin(async move { serving.await.map_err(|error| anyhow::anyhow!(error)) })
        }
        Some(acceptor) => {
            let stream = acceptor.accept(stream).await?;
            let via = Via { peer, port: local.port(), tls: Some(tls::facts(stream.get_ref().1)), proxied };
            let serving =
                watcher.watch(server.serve_connection_with_upgrades(TokioIo::new(stream), served(via)).into_owned());
            Box::pin(async move { serving.await.map_err(|error| anyhow::anyhow!(error)) })
        }
    };
    closing.watch(running, &usage).await
}

async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
}
