//! Opens one HTTP/2 connection to the control plane: TLS with a configuration made fresh for each attempt, plain, or Unix.
//!
//! Invariant: the configuration and the token are asked for anew on each connect, so that a rotated certificate or token
//! is used from the next connection on; tokens and keys are never printed.

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// Gives a TLS configuration for the next connection (ALPN `h2`). An error is told as the reason of the failed attempt.
pub type TlsProvider = Arc<dyn Fn() -> Result<Arc<rustls::ClientConfig>, String> + Send + Sync>;

/// Gives the bearer token for the next stream, when there is one.
pub type Token = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Where the control plane is and how to speak to it.
#[derive(Clone)]
pub enum Connector {
    /// TLS over TCP. `address` is `host:port` (resolved on each connect); `server_name` goes into SNI and is what the
    /// configuration's verifier sees.
    Tls {
        /// `host:port`.
        address: String,
        /// The name the server's certificate is to have.
        server_name: ServerName<'static>,
        /// The configuration.
        config: TlsProvider,
    },
    /// Without TLS: tests on loopback.
    Plain {
        /// `host:port`.
        address: String,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why a connection could not be opened. A retry is always safe.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address does not answer.
    #[error("cannot connect to {address}: {source}")]
    Dial {
        /// Where to.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// No TLS configuration, for instance no certificate yet.
    #[error("no TLS configuration: {0}")]
    Config(String),
    /// The handshake failed.
    #[error("TLS handshake with {address}: {source}")]
    Handshake {
        /// With whom.
        address: String,
        /// rustls' reason.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("connecting to {0} timed out")]
    Timeout(String),
    /// HTTP/2 could not be started.
    #[error("HTTP/2 with {address}: {source}")]
    Http {
        /// With whom.
        address: String,
        /// tonic's reason.
        source: tonic::transport::Error,
    },
}

const TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Connector {
    fn address(&self) -> String {
        match self {
            Self::Tls { address, .. } | Self::Plain { address } => address.clone(),
            Self::Unix(path) => path.display().to_string(),
        }
    }

    async fn dial(&self) -> Result<Box<dyn Io>, ConnectError> {
        let dialled = |address: &str| {
            let address = address.to_owned();
            move |source| ConnectError::Dial { address, source }
        };
        match self {
            Self::Tls { address, server_name, config } => {
                let config = config().map_err(ConnectError::Config)?;
                let stream = TcpStream::connect(address).await.map_err(dialled(address))?;
                let _ = stream.set_nodelay(true);
                let stream = TlsConnector::from(config)
                    .connect(server_name.clone(), stream)
                    .await
                    .map_err(|source| ConnectError::Handshake { address: address.clone(), source })?;
                Ok(Box::new(stream))
            }
            Self::Plain { address } => {
                let stream = TcpStream::connect(address).await.map_err(dialled(address))?;
                let _ = stream.set_nodelay(true);
                Ok(Box::new(stream))
            }
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(dialled(&path.display().to_string()))?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// Opens one connection and makes a gRPC channel of it. The channel does not reconnect by itself: a call on a lost
/// connection fails, and the caller opens a new one (with a new TLS configuration).
///
/// # Errors
/// [`ConnectError`] says which step failed.
pub async fn open_channel(connector: &Connector) -> Result<Channel, ConnectError> {
    let address = connector.address();
    let io =
        tokio::time::timeout(TIMEOUT, connector.dial()).await.map_err(|_| ConnectError::Timeout(address.clone()))??;
    let once = Mutex::new(Some(io));
    let connect = tower::service_fn(move |_: http::Uri| {
        let io = once.lock().ok().and_then(|mut io| io.take());
        async move { io.map(TokioIo::new).ok_or_else(|| std::io::Error::other("the connection was lost")) }
    });
    let authority = match connector {
        Connector::Tls { server_name, .. } => server_name.to_str().into_owned(),
        _ => "localhost".to_owned(),
    };
    let uri = http::Uri::builder().scheme("http").authority(authority).path_and_query("/").build().unwrap_or_default();
    Endpoint::from(uri)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_with_connector(connect)
        .await
        .map_err(|source| ConnectError::Http { address, source })
}
