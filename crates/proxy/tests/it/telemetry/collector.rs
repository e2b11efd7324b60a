//! A server that takes logs and traces, for both engines.

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

/// A path, and the message that came to it.
type Came = (String, Vec<u8>);

/// What has come.
#[derive(Clone, Default)]
pub struct Collector(Arc<Mutex<Vec<Came>>>);

impl Collector {
    /// Starts one.
    pub async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let taken = collector.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let taken = taken.clone();
                tokio::spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let service = service_fn(move |r| take(taken.clone(), r));
                    let _ = builder.serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        (collector, address)
    }

    /// All messages of a path so far.
    pub fn messages<M: prost::Message + Default>(&self, path: &str) -> Vec<M> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|(p, _)| p == path).map(|(_, m)| M::decode(m.as_slice()).unwrap()).collect()
    }
}

async fn take(
    taken: Collector,
    mut request: Request<Incoming>,
) -> Result<Response<StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>>>>, Infallible> {
    let grpc = request.headers().get("content-type").is_some_and(|t| t == "application/grpc");
    let path = request.uri().path().to_owned();
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = request.body_mut().frame().await {
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
        // Envoy keeps the stream of its own service open: each message counts when it has come.
        while grpc && bytes.len() >= 5 {
            let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
            if bytes.len() < length + 5 {
                break;
            }
            let message: Vec<u8> = bytes.drain(..length + 5).skip(5).collect();
            taken.0.lock().unwrap().push((path.clone(), message));
        }
    }
    let mut frames = Vec::new();
    if grpc {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        frames = vec![Ok(Frame::data(Bytes::from_static(&[0; 5]))), Ok(Frame::trailers(trailers))];
    } else {
        taken.0.lock().unwrap().push((path, bytes));
    }
    let kind = if grpc { "application/grpc" } else { "application/x-protobuf" };
    let body = StreamBody::new(futures_util::stream::iter(frames));
    Ok(Response::builder().header("content-type", kind).body(body).unwrap())
}
