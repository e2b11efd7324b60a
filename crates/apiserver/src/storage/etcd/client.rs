//! Speaks to etcd: endpoints in turn, TLS with files that are read anew for each connection, a bound on every answer.
//!
//! Invariant: nothing is sent twice by itself: a call whose answer did not come is told as such (`Unanswered`), one that
//! could not be sent as `Unreachable`.
//! What it leaves to others: what is asked (`replica`, `write`).

use super::super::StorageError;
use super::EtcdOptions;
use super::wire;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// For one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// For a connection with its handshake.
const CONNECT: Duration = Duration::from_secs(3);
/// How often a silent connection is asked whether it lives, and for how long.
const KEEPALIVE: Duration = Duration::from_secs(3);
/// A watch that catches up may be told of a thousand changes at once.
const LARGEST: usize = 1 << 30;
/// For etcd to be there when a server starts.
const START: Duration = Duration::from_secs(30);

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection on its way.
type Dial = Pin<Box<dyn Future<Output = io::Result<TokioIo<Box<dyn Io>>>> + Send>>;

/// A connection that is made anew when it is lost; clones share it.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
}

struct Dialler {
    options: EtcdOptions,
    /// Which endpoint comes next.
    next: AtomicUsize,
}

impl Client {
    /// Connects when first used.
    pub fn new(options: EtcdOptions) -> Self {
        let dialler = Arc::new(Dialler { options, next: AtomicUsize::new(0) });
        let connect = tower::service_fn(move |_: http::Uri| {
            let dialler = dialler.clone();
            let dial: Dial = Box::pin(async move { dialler.dial().await.map(TokioIo::new) });
            dial
        });
        let channel = Endpoint::from_static("http://etcd")
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .connect_with_connector_lazy(connect);
        Self { channel }
    }

    async fn ready(&self) -> Result<Grpc<Channel>, StorageError> {
        let mut grpc =
            Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST).max_encoding_message_size(LARGEST);
        match tokio::time::timeout(CONNECT, grpc.ready()).await {
            Ok(Ok(())) => Ok(grpc),
            Ok(Err(error)) => Err(StorageError::Unreachable(innermost(&error))),
            Err(_) => Err(StorageError::Unreachable("no connection to etcd".into())),
        }
    }

    async fn call<Q, A>(&self, path: &'static str, message: Q) -> Result<A, StorageError>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        let call = grpc.unary(tonic::Request::new(message), PathAndQuery::from_static(path), codec);
        match tokio::time::timeout(ANSWER, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(told(&status)),
            Err(_) => Err(StorageError::Unanswered(format!("etcd gave no answer in {} s", ANSWER.as_secs()))),
        }
    }

    /// Waits for etcd at the start; what it then answers is nobody's concern here.
    pub async fn appears(&self, key: Vec<u8>) {
        let until = tokio::time::Instant::now() + START;
        let request = || wire::RangeRequest { key: key.clone(), keys_only: true, ..wire::RangeRequest::default() };
        while let Err(StorageError::Unreachable(error)) = self.range(request()).await {
            if tokio::time::Instant::now() >= until {
                return;
            }
            tracing::info!(%error, "waiting for etcd");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Reads, from the leader's view.
    pub async fn range(&self, request: wire::RangeRequest) -> Result<wire::RangeResponse, StorageError> {
        self.call("/etcdserverpb.KV/Range", request).await
    }

    /// Writes one pair.
    pub async fn put(&self, request: wire::PutRequest) -> Result<wire::PutResponse, StorageError> {
        self.call("/etcdserverpb.KV/Put", request).await
    }

    /// Writes under conditions.
    pub async fn txn(&self, request: wire::TxnRequest) -> Result<wire::TxnResponse, StorageError> {
        self.call("/etcdserverpb.KV/Txn", request).await
    }

    /// Forgets history.
    pub async fn compact(&self, revision: i64) -> Result<wire::CompactionResponse, StorageError> {
        self.call("/etcdserverpb.KV/Compact", wire::CompactionRequest { revision, physical: false }).await
    }

    /// A new lease.
    pub async fn grant(&self, ttl: i64) -> Result<wire::LeaseGrantResponse, StorageError> {
        self.call("/etcdserverpb.Lease/LeaseGrant", wire::LeaseGrantRequest { ttl, id: 0 }).await
    }

    /// A stream of changes.
    pub async fn watch(
        &self,
        create: wire::WatchCreate,
    ) -> Result<tonic::Streaming<wire::WatchResponse>, StorageError> {
        let mut grpc = self.ready().await?;
        // The asking half stays open for as long as the answers are read: etcd ends both together.
        let first = wire::WatchRequest { ask: Some(wire::WatchAsk::Create(create)) };
        let asks = futures_util::StreamExt::chain(tokio_stream::iter([first]), tokio_stream::pending());
        let codec = ProstCodec::<wire::WatchRequest, wire::WatchResponse>::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        match tokio::time::timeout(ANSWER, grpc.streaming(tonic::Request::new(asks), path, codec)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(told(&status)),
            Err(_) => Err(StorageError::Unreachable("etcd does not begin the watch".into())),
        }
    }
}

/// What a status means for a write.
pub fn told(status: &tonic::Status) -> StorageError {
    use tonic::Code;
    let text = format!("etcd: {}", status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return StorageError::Unreachable(innermost(error));
        }
        cause = error.source();
    }
    match status.code() {
        // The connection was lost, the leader is gone, or the server took too long: it may still happen.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
            StorageError::Unanswered(text)
        }
        Code::ResourceExhausted if status.message().contains("too many requests") => StorageError::Unreachable(text),
        Code::InvalidArgument if status.message().contains("request is too large") => StorageError::TooLarge(text),
        Code::ResourceExhausted if status.message().contains("larger than max") => StorageError::TooLarge(text),
        _ => StorageError::Medium(text),
    }
}

/// What it comes down to; the layers above say the same again.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut inner = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    format!("etcd: {inner}")
}

impl Dialler {
    /// The first endpoint that answers, beginning after the one that was last used.
    async fn dial(&self) -> io::Result<Box<dyn Io>> {
        let endpoints = &self.options.servers;
        let mut last = io::Error::other("no etcd endpoint is configured");
        for _ in 0..endpoints.len() {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(endpoint) = endpoints.get(at.checked_rem(endpoints.len()).unwrap_or(0)) else { break };
            match tokio::time::timeout(CONNECT, self.one(endpoint)).await {
                Ok(Ok(io)) => return Ok(io),
                Ok(Err(error)) => last = io::Error::new(error.kind(), format!("{endpoint}: {error}")),
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{endpoint}: no answer")),
            }
        }
        Err(last)
    }

    async fn one(&self, endpoint: &super::Server) -> io::Result<Box<dyn Io>> {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        if !endpoint.tls {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(endpoint.host.clone()).map_err(io::Error::other)?;
        let config = tls(&self.options)?;
        Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
    }
}

/// The files as they are now.
pub(super) fn tls(options: &EtcdOptions) -> io::Result<rustls::ClientConfig> {
    let named = |path: &Path| {
        let path = path.display().to_string();
        move |e: rustls_pki_types::pem::Error| io::Error::other(format!("{path}: {e}"))
    };
    let certificates = |path: &Path| -> io::Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_file_iter(path).map_err(named(path))?.collect::<Result<_, _>>().map_err(named(path))
    };
    let mut roots = rustls::RootCertStore::empty();
    let ca = options.ca_file.as_deref().ok_or_else(|| io::Error::other("an https endpoint needs --etcd-cafile"))?;
    for root in certificates(ca)? {
        roots.add(root).map_err(io::Error::other)?;
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    let mut config = match (&options.cert_file, &options.key_file) {
        (Some(certificate), Some(key)) => {
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(named(key))?;
            builder.with_client_auth_cert(certificates(certificate)?, key_der).map_err(io::Error::other)?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(io::Error::other("--etcd-certfile and --etcd-keyfile go together")),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
