//! A new connection to an endpoint: socket options, source address, TCP, TLS, within the cluster's connect time.
//!
//! Invariant: an endpoint whose transport is TLS gets TLS or nothing. Pooling is `pool`'s.

use crate::io::socket::Socket;
use crate::io::stream::{Kind, Stream};
use crate::local::Local;
use crate::names::flag;
use crate::stats::ClusterStats;
use crate::tls::{self, Refused};
use carrick_proxy_core::model::Name;
use carrick_proxy_core::model::cluster::{Cluster, ProxyProtocol, TcpKeepalive, TransportSocket};
use carrick_proxy_core::model::filter::UpstreamOverrides;
use carrick_proxy_core::proxy_protocol::header;
use rustls::pki_types::ServerName;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};

/// Where and how to connect.
#[derive(Debug, Clone)]
pub struct Target {
    /// Address.
    pub address: SocketAddr,
    /// Host name of the endpoint, or empty.
    pub hostname: Arc<str>,
    /// Transport.
    pub transport: Arc<TransportSocket>,
    /// From filter state.
    pub overrides: Rc<UpstreamOverrides>,
    /// Host of the request, where the cluster takes the SNI from it.
    pub auto_sni: Option<Arc<str>>,
    /// A Unix socket; `address` only stands for it then.
    pub pipe: Option<Name>,
    /// The client, and what it connected to, for upstreams that want to know.
    pub client: Option<(SocketAddr, SocketAddr)>,
    /// The PROXY protocol before everything else, whatever the transport says.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The address that the endpoint is to see, which is not ours.
    pub source: Option<Source>,
}

/// An address of somebody else's, from which a connection comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The address.
    pub ip: IpAddr,
    /// The mark of the packets, by which rules bring the answers back to us; 0: none.
    pub mark: u32,
}

/// Why there is no connection. Nothing of the request has been sent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Took longer than the cluster allows.
    #[error("connection timeout")]
    Timeout,
    /// The socket says.
    #[error("delayed connect error: {}", plain(.0))]
    Tcp(io::Error),
    /// The TLS library says.
    #[error("{0}")]
    Tls(String),
    /// We have no configuration for it.
    #[error("TLS_error:{0}")]
    Refused(#[from] Refused),
    /// The cluster allows no more.
    #[error("overflow")]
    Overflow,
}

/// The system's words without the number that std adds.
fn plain(e: &io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or_default().to_string()
}

impl ConnectError {
    /// Response flag.
    pub fn flag(&self) -> &'static str {
        if matches!(self, ConnectError::Overflow) { flag::OVERFLOW } else { flag::CONNECT_FAILED }
    }
}

/// Connects, all within the cluster's connect timeout. `protocol` is the ALPN name of what will be spoken, empty for bytes.
///
/// # Errors
/// See [`ConnectError`].
pub(crate) async fn connect(
    local: &Local,
    cluster: &Cluster,
    stats: &ClusterStats,
    to: &Target,
    protocol: &'static str,
) -> Result<Stream, ConnectError> {
    let all = Box::pin(steps(local, cluster, stats, to, protocol));
    let result = match tokio::time::timeout(cluster.connect_timeout.max(Duration::from_millis(1)), all).await {
        Ok(r) => r,
        Err(_) => {
            stats.upstream_cx_connect_timeout.inc();
            Err(ConnectError::Timeout)
        }
    };
    if result.is_err() {
        stats.upstream_cx_connect_fail.inc();
    }
    result
}

async fn steps(
    local: &Local,
    cluster: &Cluster,
    stats: &ClusterStats,
    to: &Target,
    protocol: &'static str,
) -> Result<Stream, ConnectError> {
    stats.upstream_cx_total.inc();
    let mut tcp = match &to.pipe {
        None => dial(cluster, to.address, to.source).await,
        Some(path) => dial_pipe(path),
    }
    .map_err(ConnectError::Tcp)?;
    let (transport, wrapped) = match &*to.transport {
        TransportSocket::ProxyProtocol { version, inner } => (inner, Some(*version)),
        _ => (&to.transport, None),
    };
    if let Some(version) = to.proxy_protocol.or(wrapped) {
        tcp.write_all(&header(version, to.client)).await.map_err(ConnectError::Tcp)?;
    }
    let socket = Socket::new(tcp);
    match &**transport {
        TransportSocket::Raw | TransportSocket::ProxyProtocol { .. } => Ok(Kind::Plain(socket).into()),
        TransportSocket::Tls(settings) => {
            let name = to
                .overrides
                .sni
                .as_deref()
                .or(settings.sni.as_deref())
                .or(if settings.auto_host_sni && !to.hostname.is_empty() { Some(&*to.hostname) } else { None })
                .or(to.auto_sni.as_deref())
                .and_then(|n| ServerName::try_from(n.to_string()).ok())
                // rustls sends no SNI for an address.
                .unwrap_or(ServerName::IpAddress(to.address.ip().into()));
            let says_name = matches!(name, ServerName::DnsName(_));
            let config = local.tls.client(transport, settings, &to.overrides, protocol, says_name)?;
            match tls::connect(config, name, to.address, socket, &local.ties).await {
                Ok(stream) => {
                    stats.ssl_handshake.inc();
                    stats.ssl_session_reused.add(u64::from(stream.resumed()));
                    Ok(stream)
                }
                Err(e) => {
                    stats.ssl_connection_error.inc();
                    Err(ConnectError::Tls(tls::describe(&e)))
                }
            }
        }
    }
}

/// A Unix socket, in the clothes of a TCP one: all that is done with it is reading, writing and closing. Connecting is done at once
/// or refused.
fn dial_pipe(path: &str) -> io::Result<TcpStream> {
    use socket2::{Domain, SockAddr, Socket, Type};
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    TcpStream::from_std(socket.into())
}

async fn dial(cluster: &Cluster, address: SocketAddr, source: Option<Source>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    for (level, name, value) in &cluster.socket_options {
        crate::io::sys::set_option(&socket, *level, *name, *value)?;
    }
    // An address of the other family cannot be shown.
    if let Some(source) = source.filter(|source| source.ip.is_ipv4() == address.is_ipv4()) {
        crate::io::sys::borrow_address(&socket, source.ip.is_ipv6(), source.mark)?;
        crate::io::sys::bind_without_port(&socket);
        socket.bind(SocketAddr::new(source.ip, 0))?;
    } else if let Some(own) = cluster.bind_for(address.ip()) {
        if own.port() == 0 {
            // The port is chosen at connect, per destination, so that it does not run out.
            crate::io::sys::bind_without_port(&socket);
        }
        socket.bind(own)?;
    }
    let _ = socket.set_nodelay(true);
    let tcp = socket.connect(address).await?;
    if let Some(k) = &cluster.tcp_keepalive {
        keepalive(&tcp, k);
    }
    Ok(tcp)
}

/// Switches keep-alive on. The kernel's own values where none are given.
pub fn keepalive(tcp: &TcpStream, k: &TcpKeepalive) {
    let mut settings = socket2::TcpKeepalive::new();
    if let Some(t) = k.time {
        settings = settings.with_time(Duration::from_secs(u64::from(t)));
    }
    if let Some(i) = k.interval {
        settings = settings.with_interval(Duration::from_secs(u64::from(i)));
    }
    if let Some(p) = k.probes {
        settings = settings.with_retries(p);
    }
    let _ = socket2::SockRef::from(tcp).set_tcp_keepalive(&settings);
}
