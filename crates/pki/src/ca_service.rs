//! The wire form of the authority: gRPC `istio.v1.auth.IstioCertificateService/CreateCertificate` (spec §19.1).
//!
//! Invariant: messages and paths are Istio's, so that agents and authorities of either side interoperate. Who is asking,
//! and what they get, is decided by the implementor of [`CertificateService`].

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::codegen::{Body, BoxFuture, Bytes, GrpcMethod, Service, StdError, async_trait, http};
use tonic::{Request, Response, Status};

/// The full gRPC method path.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The gRPC service name.
pub const SERVICE: &str = "istio.v1.auth.IstioCertificateService";

/// Metadata of a refusal for want of proof: the mesh's roots, PEM. They prove nothing by themselves.
pub const ROOTS: &str = "carrick-roots-bin";
/// Metadata of the answer to a join token: what the machine is told of its WorkloadGroup, JSON.
pub const PROFILE: &str = "carrick-machine-bin";

/// A request for a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// PEM certificate request.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Life asked for in seconds; zero or less leaves it to the authority.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// `CertSigner`, `ImpersonatedIdentity`.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<prost_types::Struct>,
}

/// The answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateResponse {
    /// Leaf, intermediates, and last the root bundle; each PEM.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// What a certificate authority's server does.
#[async_trait]
pub trait CertificateService: Send + Sync + 'static {
    /// Signs for the proven caller; extensions and metadata of the request say who that is.
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status>;
}

/// Serves a [`CertificateService`].
#[derive(Debug)]
pub struct CertificateServer<T> {
    inner: Arc<T>,
}

impl<T> CertificateServer<T> {
    /// A server of `inner`.
    pub fn new(inner: T) -> Self {
        Self { inner: Arc::new(inner) }
    }
}

impl<T> Clone for CertificateServer<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T> tonic::server::NamedService for CertificateServer<T> {
    const NAME: &'static str = SERVICE;
}

struct CreateCertificate<T>(Arc<T>);

impl<T: CertificateService> tonic::server::UnaryService<IstioCertificateRequest> for CreateCertificate<T> {
    type Response = IstioCertificateResponse;
    type Future = BoxFuture<Response<IstioCertificateResponse>, Status>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move { inner.create_certificate(request).await })
    }
}

impl<T, B> Service<http::Request<B>> for CertificateServer<T>
where
    T: CertificateService,
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
        if request.uri().path() != CREATE_CERTIFICATE {
            return Box::pin(async { Ok(Status::unimplemented("no such method").into_http()) });
        }
        let method = CreateCertificate(Arc::clone(&self.inner));
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::default();
            Ok(tonic::server::Grpc::new(codec).unary(method, request).await)
        })
    }
}

/// Asks a certificate authority.
#[derive(Clone, Debug)]
pub struct CertificateClient<T> {
    inner: tonic::client::Grpc<T>,
}

impl<T> CertificateClient<T>
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

    /// Asks for a certificate; put `authorization` into the request's metadata.
    ///
    /// # Errors
    /// What the authority answers, or `Unavailable` when it is not there.
    pub async fn create_certificate(
        &mut self,
        request: impl tonic::IntoRequest<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.inner.ready().await.map_err(|e| {
            let error: StdError = e.into();
            Status::unavailable(format!("certificate authority: {error}"))
        })?;
        let mut request = request.into_request();
        request.extensions_mut().insert(GrpcMethod::new(SERVICE, "CreateCertificate"));
        let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
        self.inner.unary(request, path, tonic_prost::ProstCodec::default()).await
    }
}
