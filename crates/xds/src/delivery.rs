//! What an agent that keeps certificates as files and the control plane say to each other beside SDS: names, and a report of what
//! became of each delivery (gRPC `carrick.delivery.v1.Deliveries/Report`).
//!
//! Invariant: a report holds no secret. Certificates themselves go over SDS, as generic secrets; who may have which, and who may report
//! on what, is decided by the implementor of [`DeliveryService`].

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::codegen::{Body, BoxFuture, Bytes, GrpcMethod, Service, StdError, async_trait, http};
use tonic::{Request, Response, Status};

/// The full gRPC method path.
pub const REPORT: &str = "/carrick.delivery.v1.Deliveries/Report";
/// The gRPC service name.
pub const SERVICE: &str = "carrick.delivery.v1.Deliveries";
/// SDS names of whole Secrets of the agent's own namespace: `files://<name>`.
pub const SCHEME: &str = "files://";
/// `GENERATOR` in the metadata of such an agent's node.
pub const GENERATOR: &str = "files";
/// The Secrets it keeps, separated by commas, in the metadata of its node.
pub const SECRETS: &str = "CARRICK_SECRETS";
/// Secrets one agent may keep.
pub const MAX_SECRETS: usize = 256;

/// One of two things that are told apart: that the files are there, and that the consumer serves what is in them.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Verdict {
    /// `True`, `False` or `Unknown`.
    #[prost(string, tag = "1")]
    pub status: String,
    /// One word.
    #[prost(string, tag = "2")]
    pub reason: String,
    /// For people.
    #[prost(string, tag = "3")]
    pub message: String,
    /// Serial number of the certificate that is there, or served: lower-case hexadecimal.
    #[prost(string, tag = "4")]
    pub serial: String,
}

/// What became of one certificate at one consumer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Report {
    /// What the agent's configuration calls it.
    #[prost(string, tag = "1")]
    pub consumer: String,
    /// The agent's name.
    #[prost(string, tag = "2")]
    pub agent: String,
    /// The Secret it comes from, in the agent's namespace.
    #[prost(string, tag = "3")]
    pub secret: String,
    /// Whether the files are in place.
    #[prost(message, optional, tag = "4")]
    pub delivered: Option<Verdict>,
    /// Whether the endpoint serves it; absent where none is declared.
    #[prost(message, optional, tag = "5")]
    pub served: Option<Verdict>,
    /// Seconds after which the next report comes at the latest.
    #[prost(uint64, tag = "6")]
    pub period_seconds: u64,
}

/// All of an agent's.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReportRequest {
    /// One for each consumer.
    #[prost(message, repeated, tag = "1")]
    pub reports: Vec<Report>,
}

/// Taken.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReportResponse {}

/// Takes reports.
#[async_trait]
pub trait DeliveryService: Send + Sync + 'static {
    /// Takes them from the proven caller; extensions and metadata of the request say who that is.
    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status>;
}

/// Serves a [`DeliveryService`].
#[derive(Debug)]
pub struct DeliveryServer<T> {
    inner: Arc<T>,
}

impl<T> DeliveryServer<T> {
    /// A server of `inner`.
    pub fn new(inner: Arc<T>) -> Self {
        Self { inner }
    }
}

impl<T> Clone for DeliveryServer<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T> tonic::server::NamedService for DeliveryServer<T> {
    const NAME: &'static str = SERVICE;
}

struct Reporting<T>(Arc<T>);

impl<T: DeliveryService> tonic::server::UnaryService<ReportRequest> for Reporting<T> {
    type Response = ReportResponse;
    type Future = BoxFuture<Response<ReportResponse>, Status>;

    fn call(&mut self, request: Request<ReportRequest>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.report(request).await })
    }
}

impl<T, B> Service<http::Request<B>> for DeliveryServer<T>
where
    T: DeliveryService,
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
        if request.uri().path() != REPORT {
            return Box::pin(async { Ok(Status::unimplemented("no such method").into_http()) });
        }
        let method = Reporting(Arc::clone(&self.inner));
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::default();
            Ok(tonic::server::Grpc::new(codec).unary(method, request).await)
        })
    }
}

/// Reports.
#[derive(Clone, Debug)]
pub struct DeliveryClient<T> {
    inner: tonic::client::Grpc<T>,
}

impl<T> DeliveryClient<T>
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

    /// Tells what became of deliveries.
    ///
    /// # Errors
    /// What the control plane answers, or `Unavailable` when it is not there.
    pub async fn report(&mut self, reports: ReportRequest) -> Result<(), Status> {
        self.inner.ready().await.map_err(|e| {
            let error: StdError = e.into();
            Status::unavailable(format!("control plane: {error}"))
        })?;
        let mut request = Request::new(reports);
        request.extensions_mut().insert(GrpcMethod::new(SERVICE, "Report"));
        let path = http::uri::PathAndQuery::from_static(REPORT);
        let answer: Response<ReportResponse> =
            self.inner.unary(request, path, tonic_prost::ProstCodec::default()).await?;
        let ReportResponse {} = answer.into_inner();
        Ok(())
    }
}
