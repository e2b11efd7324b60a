//! How proxies tell what they trust and serve, and are told what to trust: gRPC `carrick.ca.v1.Trust/Follow`, beside the
//! certificate service and on the same connections.
//!
//! Invariant: a [`Report`] says what the engine holds, not what the agent was sent; only digests and public certificates
//! cross. Each side sends its whole state whenever that changes, so neither needs to remember what was said before. Who
//! reports, and what they are told, is decided by the implementor of [`TrustService`]. Authorities of others do not have it:
//! then the roots come with each certificate, as ever.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::codegen::tokio_stream::Stream;
use tonic::codegen::{Body, BoxFuture, BoxStream, Bytes, GrpcMethod, Service, StdError, async_trait, http};
use tonic::{Request, Response, Status, Streaming};

/// The full gRPC method path.
pub const FOLLOW: &str = "/carrick.ca.v1.Trust/Follow";
/// The gRPC service name.
pub const SERVICE: &str = "carrick.ca.v1.Trust";

/// What a proxy holds at this moment.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Report {
    /// The pod's or machine's name; its namespace is that of the caller's identity.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Digests ([`crate::certificate::fingerprint`]) of the roots that the engine verifies peers with.
    #[prost(string, repeated, tag = "2")]
    pub trusts: Vec<String>,
    /// The certificate that the engine shows, and what leads from it to a root; PEM.
    #[prost(string, tag = "3")]
    pub chain: String,
    /// What kind of engine holds them.
    #[prost(string, tag = "4")]
    pub engine: String,
}

/// What a proxy is to hold.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Order {
    /// All roots, PEM.
    #[prost(string, tag = "1")]
    pub roots: String,
    /// Digests of the roots to one of which the certificate should lead; one that leads to none is to be renewed now. Empty
    /// asks for nothing.
    #[prost(string, repeated, tag = "2")]
    pub renew_unless: Vec<String>,
    /// Milliseconds over which proxies spread that renewal.
    #[prost(uint64, tag = "3")]
    pub spread_ms: u64,
}

/// What a certificate authority's server does.
#[async_trait]
pub trait TrustService: Send + Sync + 'static {
    /// Takes the reports of the proven caller and gives orders, until either side ends.
    async fn follow(&self, reports: Request<Streaming<Report>>) -> Result<Response<BoxStream<Order>>, Status>;
}

/// Serves a [`TrustService`].
#[derive(Debug)]
pub struct TrustServer<T> {
    inner: Arc<T>,
}

impl<T> TrustServer<T> {
    /// A server of `inner`.
    pub fn new(inner: T) -> Self {
        Self { inner: Arc::new(inner) }
    }
}

impl<T> Clone for TrustServer<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T> tonic::server::NamedService for TrustServer<T> {
    const NAME: &'static str = SERVICE;
}

struct Follow<T>(Arc<T>);

impl<T: TrustService> tonic::server::StreamingService<Report> for Follow<T> {
    type Response = Order;
    type ResponseStream = BoxStream<Order>;
    type Future = BoxFuture<Response<BoxStream<Order>>, Status>;

    fn call(&mut self, request: Request<Streaming<Report>>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.follow(request).await })
    }
}

impl<T, B> Service<http::Request<B>> for TrustServer<T>
where
    T: TrustService,
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != FOLLOW {
            return Box::pin(async { Ok(Status::unimplemented("no such method").into_http()) });
        }
        let method = Follow(Arc::clone(&self.inner));
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::default();
            Ok(tonic::server::Grpc::new(codec).streaming(method, request).await)
        })
    }
}

/// Follows a certificate authority.
#[derive(Clone, Debug)]
pub struct TrustClient<T> {
    inner: tonic::client::Grpc<T>,
}

impl<T> TrustClient<T>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    /// A client over `channel`.
    pub fn new(channel: T) -> Self {
        Self { inner: tonic::client::Grpc::new(channel) }
    }

    /// Sends reports and gives the orders that come back.
    ///
    /// # Errors
    /// What the authority answers; `Unimplemented` from one that does not know this, `Unavailable` when it is not there.
    pub async fn follow(
        &mut self,
        reports: impl Stream<Item = Report> + Send + 'static,
    ) -> Result<Response<Streaming<Order>>, Status> {
        self.inner.ready().await.map_err(|e| {
            let error: StdError = e.into();
            Status::unavailable(format!("certificate authority: {error}"))
        })?;
        let mut request = Request::new(reports);
        request.extensions_mut().insert(GrpcMethod::new(SERVICE, "Follow"));
        let path = http::uri::PathAndQuery::from_static(FOLLOW);
        self.inner.streaming(request, path, tonic_prost::ProstCodec::default()).await
    }
}
