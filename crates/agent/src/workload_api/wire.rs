//! The Workload API's wire form: gRPC service `SpiffeWorkloadAPI`, as far as X.509 goes.
//!
//! Invariant: messages, tags and paths are SPIFFE's (workload.proto). What is told is decided by [`WorkloadApi`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::task::{Context, Poll};

use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::{Answers, WorkloadApi};

const FETCH_SVIDS: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
const FETCH_BUNDLES: &str = "/SpiffeWorkloadAPI/FetchX509Bundles";

/// `X509SVIDRequest` and `X509BundlesRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// `X509SVIDResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct X509Svids {
    /// Identities, the default one first.
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<X509Svid>,
    /// Revocation lists, DER.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub crl: Vec<Vec<u8>>,
    /// Roots of other trust domains, DER one after the other, by SPIFFE ID of the domain.
    #[prost(map = "string, bytes", tag = "3")]
    pub federated_bundles: HashMap<String, Vec<u8>>,
}

/// `X509SVID`. It holds a private key.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub struct X509Svid {
    /// `spiffe://…`
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// Leaf and intermediates, DER one after the other.
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    /// PKCS#8 DER.
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    /// Roots of its trust domain, DER one after the other.
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    /// What it is for, where there are several.
    #[prost(string, tag = "5")]
    pub hint: String,
}

impl std::fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X509Svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

/// `X509BundlesResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct X509Bundles {
    /// Revocation lists, DER.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub crl: Vec<Vec<u8>>,
    /// Roots, DER one after the other, by SPIFFE ID of the trust domain.
    #[prost(map = "string, bytes", tag = "2")]
    pub bundles: HashMap<String, Vec<u8>>,
}

/// Serves a [`WorkloadApi`].
#[derive(Clone, Debug)]
pub struct WorkloadApiServer(WorkloadApi);

impl WorkloadApiServer {
    /// A server of `api`.
    pub fn new(api: WorkloadApi) -> Self {
        Self(api)
    }
}

impl tonic::server::NamedService for WorkloadApiServer {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

struct Svids(WorkloadApi);
struct Bundles(WorkloadApi);

impl ServerStreamingService<Empty> for Svids {
    type Response = X509Svids;
    type ResponseStream = Answers<X509Svids>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Empty>) -> Self::Future {
        let answers = self.0.svids(request.metadata());
        Box::pin(async { answers })
    }
}

impl ServerStreamingService<Empty> for Bundles {
    type Response = X509Bundles;
    type ResponseStream = Answers<X509Bundles>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Empty>) -> Self::Future {
        let answers = self.0.bundles(request.metadata());
        Box::pin(async { answers })
    }
}

impl<B> Service<http::Request<B>> for WorkloadApiServer
where
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
        let api = self.0.clone();
        match request.uri().path() {
            FETCH_SVIDS => {
                Box::pin(async { Ok(Grpc::new(ProstCodec::default()).server_streaming(Svids(api), request).await) })
            }
            FETCH_BUNDLES => {
                Box::pin(async { Ok(Grpc::new(ProstCodec::default()).server_streaming(Bundles(api), request).await) })
            }
            _ => Box::pin(async { Ok(Status::unimplemented("only X.509 identities are issued here").into_http()) }),
        }
    }
}
