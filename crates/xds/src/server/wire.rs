//! One gRPC call as bytes: requests out of a body, responses into one.
//!
//! Invariant: a stream that waits holds no buffer. What was received is given back with the message it became, and a response is written
//! out in pieces as the peer takes them, its resources shared with everybody who gets them: thousands of proxies wait most of the time, and
//! the buffer of one large message in each of them would be the largest part of the control plane's memory.

use super::delta::IDENTIFIER;
use crate::{Resource, TypeUrl};
use envoy_types::pb::envoy::config::core::v3::ControlPlane;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryResponse, DiscoveryResponse, Resource as WireResource,
};
use futures_util::stream::{BoxStream, StreamExt};
use http::{HeaderMap, HeaderValue, header};
use hyper::body::{Body as _, Bytes, Frame};
use prost::Message;
use prost::bytes::BytesMut;
use prost::encoding::{encode_varint, encoded_len_varint};
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tonic::body::Body;
use tonic::{Code, Status, Streaming};

/// Largest request: initial versions of ten thousand resources.
pub(super) const MAX_REQUEST: usize = 8 << 20;
/// A response is written out in pieces of about this size, which is HTTP/2's usual frame.
const PIECE: usize = 16 * 1024;
/// Before each message: one byte that says whether it is compressed, and its length.
const HEAD: usize = 5;

/// The requests of one call.
pub(super) enum Requests<M> {
    /// From a body.
    Body(Body, BytesMut, PhantomData<fn() -> M>),
    /// Taken apart by somebody else.
    Decoded(Streaming<M>),
}

impl<M: Message + Default + 'static> Requests<M> {
    pub(super) fn of(body: Body) -> Self {
        Self::Body(body, BytesMut::new(), PhantomData)
    }

    /// The next request; `None` when the peer has ended or broken the stream. Cancel safe.
    ///
    /// # Errors
    /// The peer's fault: no gRPC, or a message too large.
    pub(super) async fn message(&mut self) -> Result<Option<M>, Status> {
        let (body, held) = match self {
            Self::Decoded(streaming) => return streaming.message().await,
            Self::Body(body, held, _) => (body, held),
        };
        loop {
            if let Some(message) = whole(held)? {
                return M::decode(message.as_ref()).map(Some).map_err(|e| Status::internal(e.to_string()));
            }
            let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
            match frame {
                None if held.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ended within a message")),
                Some(Err(status)) if status.code() == Code::Cancelled => return Ok(None),
                Some(Err(status)) => return Err(status),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        held.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// The first message, if all of it is there.
fn whole(held: &mut BytesMut) -> Result<Option<BytesMut>, Status> {
    let Some([compressed, length @ ..]) = held.first_chunk::<HEAD>() else { return Ok(None) };
    if *compressed != 0 {
        return Err(Status::unimplemented("compressed messages are not taken"));
    }
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_REQUEST {
        return Err(Status::out_of_range(format!("a request of {length} bytes; the limit is {MAX_REQUEST}")));
    }
    let end = length.saturating_add(HEAD);
    if held.len() < end {
        return Ok(None);
    }
    let mut message = held.split_to(end);
    let _ = message.split_to(HEAD);
    if held.is_empty() {
        *held = BytesMut::new();
    }
    Ok(Some(message))
}

/// A delta response whose resources are still those of the set it was made from.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaResponse {
    /// The version of the set.
    pub version: Arc<str>,
    /// Of what.
    pub type_url: TypeUrl,
    /// What it is answered by.
    pub nonce: Arc<str>,
    /// New, changed, or asked for again.
    pub resources: Vec<Arc<Resource>>,
    /// Gone, or never there.
    pub removed: Vec<Arc<str>>,
}

impl DeltaResponse {
    /// As the message it goes over the wire as.
    pub fn message(&self) -> DeltaDiscoveryResponse {
        let of = |resource: &Arc<Resource>| WireResource {
            name: resource.name.to_string(),
            version: resource.version.to_string(),
            resource: Some(resource.body.clone()),
            ..Default::default()
        };
        DeltaDiscoveryResponse { resources: self.resources.iter().map(of).collect(), ..self.frame() }
    }

    /// The message without its resources.
    fn frame(&self) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            system_version_info: self.version.to_string(),
            type_url: self.type_url.as_str().to_owned(),
            nonce: self.nonce.to_string(),
            removed_resources: self.removed.iter().map(ToString::to_string).collect(),
            control_plane: Some(ControlPlane { identifier: IDENTIFIER.to_owned() }),
            ..Default::default()
        }
    }
}

/// A response that can be written out.
pub(super) trait Outgoing {
    /// In pieces.
    fn pieces(self) -> Pieces;
}

impl Outgoing for DiscoveryResponse {
    fn pieces(self) -> Pieces {
        Pieces { next: head(&self, 0), resources: Vec::new().into_iter() }
    }
}

impl Outgoing for DeltaResponse {
    fn pieces(self) -> Pieces {
        let resources = self.resources.iter().map(|resource| field_length(resource_length(resource))).sum();
        Pieces { next: head(&self.frame(), resources), resources: self.resources.into_iter() }
    }
}

/// A message with its length, which is longer by what follows.
fn head(message: &impl Message, more: usize) -> Vec<u8> {
    let length = message.encoded_len();
    let mut out = Vec::with_capacity(length.saturating_add(HEAD));
    out.push(0);
    // Nothing here comes near four gigabytes.
    let whole = u32::try_from(length.saturating_add(more)).unwrap_or(u32::MAX);
    out.extend_from_slice(&whole.to_be_bytes());
    // A vector grows.
    let _ = message.encode(&mut out);
    out
}

/// What is left of a response.
#[derive(Debug)]
pub(super) struct Pieces {
    /// Begins the next piece.
    next: Vec<u8>,
    resources: std::vec::IntoIter<Arc<Resource>>,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut out = std::mem::take(&mut self.next);
        while out.len() < PIECE {
            let Some(resource) = self.resources.next() else { break };
            put_resource(&mut out, &resource);
        }
        (!out.is_empty()).then(|| out.into())
    }
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse.resources`.
const RESOURCES: u8 = 2;
/// `envoy.service.discovery.v3.Resource`.
mod resource {
    pub(super) const VERSION: u8 = 1;
    pub(super) const RESOURCE: u8 = 2;
    pub(super) const NAME: u8 = 3;
}
/// `google.protobuf.Any`.
mod any {
    pub(super) const TYPE_URL: u8 = 1;
    pub(super) const VALUE: u8 = 2;
}

/// One of the `resources` of a delta response (Protocol Buffers, "Encoding": fields of one message may come one after the other).
fn put_resource(out: &mut Vec<u8>, resource: &Resource) {
    let length = resource_length(resource);
    out.reserve(field_length(length));
    put_key(out, RESOURCES, length);
    put(out, resource::VERSION, resource.version.as_bytes());
    put_key(out, resource::RESOURCE, any_length(resource));
    put(out, any::TYPE_URL, resource.body.type_url.as_bytes());
    put(out, any::VALUE, &resource.body.value);
    put(out, resource::NAME, resource.name.as_bytes());
}

fn put(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_key(out, field, bytes.len());
        out.extend_from_slice(bytes);
    }
}

/// The head of a field that has a length: its number, below 16, and wire type 2.
fn put_key(out: &mut Vec<u8>, field: u8, length: usize) {
    out.push(field << 3 | 2);
    encode_varint(u64::try_from(length).unwrap_or(u64::MAX), out);
}

fn resource_length(resource: &Resource) -> usize {
    let texts = put_length(resource.version.len()).saturating_add(put_length(resource.name.len()));
    texts.saturating_add(field_length(any_length(resource)))
}

fn any_length(resource: &Resource) -> usize {
    put_length(resource.body.type_url.len()).saturating_add(put_length(resource.body.value.len()))
}

/// Of a field that is left out when it is empty.
fn put_length(length: usize) -> usize {
    if length == 0 { 0 } else { field_length(length) }
}

fn field_length(length: usize) -> usize {
    let digits = encoded_len_varint(u64::try_from(length).unwrap_or(u64::MAX));
    length.saturating_add(digits).saturating_add(1)
}

/// The responses of one call, as its body: data, and the status that ends it.
struct Answer<R> {
    responses: BoxStream<'static, Result<R, Status>>,
    now: Option<Pieces>,
    ended: bool,
}

/// The response of a call that was heard.
pub(super) fn answer<R: Outgoing + 'static>(responses: BoxStream<'static, Result<R, Status>>) -> http::Response<Body> {
    let mut response = http::Response::new(Body::new(Answer { responses, now: None, ended: false }));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

impl<R: Outgoing> hyper::body::Body for Answer<R> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        loop {
            if let Some(piece) = self.now.as_mut().and_then(Iterator::next) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.now = None;
            if self.ended {
                return Poll::Ready(None);
            }
            let status = match ready!(self.responses.poll_next_unpin(cx)) {
                Some(Ok(response)) => {
                    self.now = Some(response.pieces());
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.ended = true;
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.now.is_none()
    }
}

impl<R> Unpin for Answer<R> {}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::google::protobuf::Any;

    fn bytes(pieces: Pieces) -> (usize, BytesMut) {
        let pieces: Vec<Bytes> = pieces.collect();
        (pieces.len(), pieces.concat().as_slice().into())
    }

    #[test]
    fn a_delta_response_is_written_as_its_message() {
        let resource = |n: usize, size: usize| {
            let type_url = if n == 1 { String::new() } else { "type.example/x".repeat(n) };
            Arc::new(Resource::new(format!("name-{n}"), Any { type_url, value: vec![7; size] }))
        };
        for sizes in [&[][..], &[0], &[1, 0, 127, 128, 300], &[20_000, 5, 70_000, 16_000, 16_000]] {
            let response = DeltaResponse {
                version: "2026/1".into(),
                type_url: TypeUrl::Cluster,
                nonce: "1-2".into(),
                resources: sizes.iter().enumerate().map(|(n, size)| resource(n, *size)).collect(),
                removed: vec!["gone".into(), "lost".into()],
            };
            let (count, mut all) = bytes(response.clone().pieces());
            let message = whole(&mut all).unwrap().unwrap();
            assert!(all.is_empty());
            assert_eq!(DeltaDiscoveryResponse::decode(message.as_ref()).unwrap(), response.message());
            assert!(count <= 1 + message.len() / PIECE, "{count} pieces of {}", message.len());
        }
        let message = DiscoveryResponse { nonce: "n".into(), ..Default::default() };
        let (_, mut all) = bytes(message.clone().pieces());
        assert_eq!(DiscoveryResponse::decode(whole(&mut all).unwrap().unwrap().as_ref()).unwrap(), message);
    }

    #[test]
    fn requests_are_found_wherever_they_are_cut() {
        let message = DiscoveryResponse { nonce: "n".repeat(300), ..Default::default() };
        let one = bytes(message.clone().pieces()).1;
        let two = [&one[..], &one[..]].concat();
        for cut in 0..two.len() {
            let (first, second) = two.split_at(cut);
            let (mut held, mut found) = (BytesMut::new(), 0);
            for part in [first, second] {
                held.extend_from_slice(part);
                while let Some(bytes) = whole(&mut held).unwrap() {
                    assert_eq!(DiscoveryResponse::decode(bytes.as_ref()).unwrap(), message);
                    found += 1;
                }
            }
            assert_eq!((found, held.capacity()), (2, 0), "cut at {cut}");
        }
        assert_eq!(whole(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).unwrap_err().code(), Code::Unimplemented);
        assert_eq!(whole(&mut BytesMut::from(&[0, 1, 0, 0, 0][..])).unwrap_err().code(), Code::OutOfRange);
    }
}
