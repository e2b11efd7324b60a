//! gRPC for the lab: the example service `carrick.demo.Echo` in its four kinds of call, and the client that tries them.
//!
//! Invariant: messages are bytes as they are, so any gRPC library can call and be called without a schema; both sides are tonic, which
//! decides what gRPC is. The client's answer says exit code 0 only when every message came as it had to, in its turn.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytes::{Buf, BufMut, Bytes};
use futures_util::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tonic::{
    Code, Request, Response, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{MetadataKey, MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{call::Call, curl::Answer};

/// Paths of the service begin so.
pub const SERVICE: &str = "/carrick.demo.Echo/";
/// Longest message.
const LARGEST: usize = 16 << 20;

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One message, and the same back.
    Unary,
    /// `COUNT SIZE`, and that many messages back.
    Repeat,
    /// Messages, and `COUNT BYTES` back.
    Collect,
    /// Messages, each back before the next is sent.
    Chat,
}

/// What a client does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exchange {
    call: Kind,
    /// Messages of a stream.
    #[serde(default = "Exchange::some")]
    messages: usize,
    /// Bytes of each.
    #[serde(default = "Exchange::small")]
    size: usize,
}

impl Exchange {
    fn some() -> usize {
        3
    }

    fn small() -> usize {
        10
    }
}

/// Bytes as they are.
#[derive(Debug, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = from.remaining();
        Ok(Some(from.copy_to_bytes(length)))
    }
}

/// Answers a call of the service. A request with `x-fail: N` ends with that status; `x-token-bin` comes back; `x-service` is who answers.
pub async fn serve<B>(name: &str, request: http::Request<B>) -> http::Response<tonic::body::Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    let method = request.uri().path().strip_prefix(SERVICE).unwrap_or_default().to_owned();
    let mut grpc = tonic::server::Grpc::new(Plain).max_decoding_message_size(LARGEST);
    let name = name.to_owned();
    match method.as_str() {
        "Unary" => grpc.unary(Method(name, unary), request).await,
        "Repeat" => grpc.server_streaming(Method(name, repeat), request).await,
        "Collect" => grpc.client_streaming(Method(name, collect), request).await,
        "Chat" => grpc.streaming(Method(name, chat), request).await,
        _ => Status::unimplemented("no such method").into_http(),
    }
}

/// A method and the name of the service.
struct Method<F>(String, F);

impl<F, I, O, R> tower::Service<Request<I>> for Method<F>
where
    F: Fn(I) -> R,
    R: Future<Output = Result<O, Status>> + Send + 'static,
{
    type Response = Response<O>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<O>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Status>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let (asked, _, message) = request.into_parts();
        let mut told = MetadataMap::new();
        if let Ok(name) = self.0.parse() {
            told.insert("x-service", name);
        }
        if let Some(token) = asked.get_bin("x-token-bin") {
            told.insert_bin("x-token-bin", token.clone());
        }
        let code = asked.get("x-fail").and_then(|code| code.to_str().ok()?.parse::<i32>().ok());
        if let Some(code) = code {
            let status = Status::with_metadata(Code::from_i32(code), "as it was told to", told);
            return Box::pin(async move { Err(status) });
        }
        let answer = (self.1)(message);
        Box::pin(async move { Ok(Response::from_parts(told, answer.await?, http::Extensions::new())) })
    }
}

async fn unary(message: Bytes) -> Result<Bytes, Status> {
    Ok(message)
}

async fn repeat(message: Bytes) -> Result<Messages, Status> {
    let numbers = |text: &str| -> Option<(usize, usize)> {
        let (count, size) = text.split_once(' ')?;
        Some((count.parse().ok()?, size.parse().ok().filter(|size| *size <= LARGEST)?))
    };
    let text = String::from_utf8_lossy(&message);
    let (count, size) = numbers(&text).ok_or_else(|| Status::invalid_argument("want COUNT SIZE"))?;
    Ok(futures_util::stream::iter((0..count).map(move |number| Ok(filled(number, size)))).boxed())
}

async fn collect(mut messages: tonic::Streaming<Bytes>) -> Result<Bytes, Status> {
    let (mut count, mut bytes) = (0_usize, 0_usize);
    while let Some(message) = messages.message().await? {
        count = count.saturating_add(1);
        bytes = bytes.saturating_add(message.len());
    }
    Ok(format!("{count} {bytes}").into())
}

async fn chat(messages: tonic::Streaming<Bytes>) -> Result<Messages, Status> {
    Ok(messages.boxed())
}

/// A message that differs from the others of its stream.
fn filled(number: usize, size: usize) -> Bytes {
    vec![u8::try_from(number % 251).unwrap_or(0); size].into()
}

/// The client; it keeps one connection for each address, so that many calls share one.
#[derive(Debug, Default)]
pub struct Client {
    channels: Mutex<HashMap<String, Channel>>,
}

impl Client {
    /// Calls, and tells: status 200 when there was an answer of gRPC's, `grpc-status` and the metadata as headers, and as body who
    /// answered and how many messages and bytes came.
    pub async fn call(&self, call: &Call, exchange: &Exchange) -> Answer {
        let mut answer = Answer::default();
        let result = tokio::time::timeout(Duration::from_secs(10), self.run(call, exchange, &mut answer)).await;
        if let Err(error) = result.map_err(anyhow::Error::new).and_then(|done| done) {
            answer.exit = 1;
            answer.error = format!("{error:#}");
        }
        answer
    }

    fn channel(&self, url: &str) -> Result<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(url) {
            return Ok(channel.clone());
        }
        let channel = Endpoint::from_shared(url.to_owned()).context("url")?.connect_lazy();
        channels.insert(url.to_owned(), channel.clone());
        Ok(channel)
    }

    async fn run(&self, call: &Call, exchange: &Exchange, answer: &mut Answer) -> Result<()> {
        let mut grpc = tonic::client::Grpc::new(self.channel(&call.url)?).max_decoding_message_size(LARGEST);
        grpc.ready().await.context("no connection")?;
        let mut metadata = MetadataMap::new();
        for (name, value) in &call.headers {
            if name.ends_with("-bin") {
                metadata
                    .insert_bin(MetadataKey::from_bytes(name.as_bytes())?, MetadataValue::from_bytes(value.as_bytes()));
            } else {
                metadata.insert(MetadataKey::from_bytes(name.as_bytes())?, value.parse()?);
            }
        }
        let path = |method: &str| format!("{SERVICE}{method}").parse::<http::uri::PathAndQuery>();
        let Exchange { messages, size, .. } = *exchange;
        let sent = move || futures_util::stream::iter((0..messages).map(move |number| filled(number, size)));
        let result = match exchange.call {
            Kind::Unary => {
                let request = with(&metadata, filled(1, size));
                grpc.unary(request, path("Unary")?, Plain).await.map(|r| r.map(one))
            }
            Kind::Repeat => {
                let request = with(&metadata, format!("{messages} {size}").into());
                grpc.server_streaming(request, path("Repeat")?, Plain).await.map(|r| r.map(StreamExt::boxed))
            }
            Kind::Collect => {
                let request = with(&metadata, sent());
                grpc.client_streaming(request, path("Collect")?, Plain).await.map(|r| r.map(one))
            }
            Kind::Chat => return chatted(grpc, with(&metadata, ()), path("Chat")?, exchange, answer).await,
        };
        let (told, mut stream) = match result {
            Ok(response) => {
                let (told, stream, _) = response.into_parts();
                (told, stream)
            }
            Err(status) => return refused(&status, answer),
        };
        let mut got = Vec::new();
        while let Some(message) = stream.next().await {
            match message {
                Ok(message) => got.push(message),
                Err(status) => return refused(&status, answer),
            }
        }
        let wanted = match exchange.call {
            Kind::Unary => vec![filled(1, size)],
            Kind::Collect => vec![format!("{messages} {}", messages.saturating_mul(size)).into()],
            Kind::Repeat | Kind::Chat => (0..messages).map(|number| filled(number, size)).collect(),
        };
        finished(&told, &got, answer);
        ensure!(got == wanted, "want {} messages, got {} or other ones", wanted.len(), got.len());
        Ok(())
    }
}

fn one(message: Bytes) -> Messages {
    futures_util::stream::iter([Ok(message)]).boxed()
}

fn with<T>(metadata: &MetadataMap, message: T) -> Request<T> {
    Request::from_parts(metadata.clone(), tonic::Extensions::default(), message)
}

/// Each message is sent only when the one before has come back.
async fn chatted(
    mut grpc: tonic::client::Grpc<Channel>,
    request: Request<()>,
    path: http::uri::PathAndQuery,
    exchange: &Exchange,
    answer: &mut Answer,
) -> Result<()> {
    let (sender, messages) = tokio::sync::mpsc::channel::<Bytes>(1);
    let (metadata, extensions, ()) = request.into_parts();
    let messages =
        futures_util::stream::unfold(messages, |mut messages| async move { Some((messages.recv().await?, messages)) });
    let request = Request::from_parts(metadata, extensions, messages);
    // A server may wait with its head until there is something to answer.
    sender.send(filled(0, exchange.size)).await?;
    let (told, mut stream) = match grpc.streaming(request, path, Plain).await {
        Ok(response) => {
            let (told, stream, _) = response.into_parts();
            (told, stream)
        }
        Err(status) => return refused(&status, answer),
    };
    let mut got = Vec::new();
    for number in 0..exchange.messages {
        if number > 0 {
            sender.send(filled(number, exchange.size)).await?;
        }
        match stream.message().await {
            Ok(Some(message)) => got.push(message),
            Ok(None) => break,
            Err(status) => return refused(&status, answer),
        }
        ensure!(got.last() == Some(&filled(number, exchange.size)), "message {number} came back as another");
    }
    drop(sender);
    match stream.message().await {
        Ok(None) => {}
        Ok(Some(_)) => anyhow::bail!("a message too many"),
        Err(status) => return refused(&status, answer),
    }
    finished(&told, &got, answer);
    ensure!(got.len() == exchange.messages, "want {} messages, got {}", exchange.messages, got.len());
    Ok(())
}

fn finished(told: &MetadataMap, got: &[Bytes], answer: &mut Answer) {
    answer.status = 200;
    metadata_of(told, answer);
    answer.headers.entry("grpc-status".into()).or_insert_with(|| "0".into());
    let bytes: usize = got.iter().map(Bytes::len).sum();
    let by = answer.headers.get("x-service");
    answer.body = json!({"service": by, "messages": got.len(), "bytes": bytes}).to_string();
}

fn metadata_of(told: &MetadataMap, answer: &mut Answer) {
    for (name, value) in told.as_ref() {
        answer.headers.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
}

/// A status of gRPC's is an answer; that there was no answer at all tonic tells as a status, too, with the cause beside it.
fn refused(status: &Status, answer: &mut Answer) -> Result<()> {
    if std::error::Error::source(status).is_some() {
        return Err(anyhow::Error::new(status.clone()));
    }
    answer.status = 200;
    metadata_of(status.metadata(), answer);
    answer.headers.insert("grpc-status".into(), i32::from(status.code()).to_string());
    answer.headers.insert("grpc-message".into(), status.message().to_owned());
    Ok(())
}
