//! What the service answers: what it saw, a joined answer of others, a status, a delay, an echo by WebSocket or gRPC, a tunnel.
//!
//! Invariant: the answer is told by the request alone (and a count per key of `/flaky/` and `/count/`), so a test knows it before.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    body::{Frame, Incoming},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use serde_json::{Value, json};

use crate::demo::{grpc, websocket};

/// An answer.
pub type Reply = Response<UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>>;

/// Bytes of a request's body that are shown.
const SHOWN_BODY: usize = 4096;

/// How a request came in.
#[derive(Debug)]
pub struct Via {
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// Our port.
    pub port: u16,
    /// What the service's own TLS told, when the port has it.
    pub tls: Option<Value>,
    /// The version of the PROXY header that named the peer, on a port that demands one.
    pub proxied: Option<&'static str>,
}

/// The service, shared by its connections.
pub struct Service {
    name: String,
    calls: Vec<String>,
    joins: Vec<String>,
    fixed: Option<Value>,
    caller: Client<HttpConnector, Empty<Bytes>>,
    counts: Mutex<HashMap<String, u32>>,
}

impl Service {
    /// A service that calls `calls` and joins the answers of `joins`.
    ///
    /// # Errors
    /// When the fixed answer is not JSON.
    pub fn new(name: String, calls: Vec<String>, joins: Vec<String>, fixed: Option<String>) -> Result<Self> {
        let fixed = fixed.map(|text| serde_json::from_str(&text).context("--answer")).transpose()?;
        let caller = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { name, calls, joins, fixed, caller, counts: Mutex::default() })
    }

    /// Answers one request.
    ///
    /// # Errors
    /// Never; the type is hyper's.
    pub async fn answer(&self, request: Request<Incoming>, via: &Via) -> Result<Reply, Infallible> {
        let is_grpc = request
            .headers()
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if is_grpc && request.uri().path().starts_with(grpc::SERVICE) {
            let reply = grpc::serve(&self.name, request).await;
            return Ok(reply.map(|body| body.map_err(Into::into).boxed_unsync()));
        }
        if is_grpc {
            return Ok(grpc_echo(request, &self.name));
        }
        if request.headers().contains_key("sec-websocket-key") {
            return Ok(self.web_socket(request, via).await);
        }
        if request.method() == Method::CONNECT {
            return Ok(tunnel(request).await);
        }
        let is_head = request.method() == Method::HEAD;
        let path = self.late(request.uri().path()).await;
        let path = self.here(path).to_owned();
        if let Some(told) = echo(&path) {
            return Ok(told);
        }
        let status = self.status(&path).await;
        let told = match (&self.fixed, self.joins.is_empty()) {
            (Some(fixed), _) => fixed.clone(),
            (None, false) => match self.join(request.uri()).await {
                Ok(joined) => joined,
                Err(error) => {
                    let mut refused = json_response(&json!({"error": format!("{error:#}")}));
                    *refused.status_mut() = StatusCode::BAD_GATEWAY;
                    return Ok(refused);
                }
            },
            (None, true) => self.seen(request, via).await,
        };
        let mut response = json_response(&told);
        *response.status_mut() = status;
        if is_head {
            // For HTTP/2 the library would send what this method has not.
            let length = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
            response.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
            *response.body_mut() = Empty::new().map_err(|never| match never {}).boxed_unsync();
        }
        Ok(response)
    }

    /// What is behind `/late/MS` is answered that much later.
    async fn late<'a>(&self, path: &'a str) -> &'a str {
        let Some((millis, rest)) = path.strip_prefix("/late/").and_then(|rest| rest.split_once('/')) else {
            return path;
        };
        tokio::time::sleep(Duration::from_millis(millis.parse().unwrap_or(0))).await;
        path.get(path.len().saturating_sub(rest.len()).saturating_sub(1)..).unwrap_or("/")
    }

    /// What is behind `/at/NAME` is asked of the service of that name alone; the others answer as to `/`.
    fn here<'a>(&self, path: &'a str) -> &'a str {
        let Some((name, _)) = path.strip_prefix("/at/").and_then(|rest| rest.split_once('/')) else { return path };
        let rest = path.get("/at/".len().saturating_add(name.len())..).unwrap_or("/");
        if name == self.name { rest } else { "/" }
    }

    /// `/status/N` answers N, `/delay/MS` waits, `/flaky/KEY` answers 503 to every other request of that key, `/count/KEY` counts and
    /// `/counted/KEY` answers 404 when nothing was.
    async fn status(&self, path: &str) -> StatusCode {
        let mut parts = path.trim_start_matches('/').split('/');
        match (parts.next(), parts.next()) {
            (Some("status"), Some(code)) => {
                code.parse().ok().and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::OK)
            }
            (Some("delay"), Some(millis)) => {
                tokio::time::sleep(Duration::from_millis(millis.parse().unwrap_or(0))).await;
                StatusCode::OK
            }
            (Some("flaky"), Some(key)) => {
                if self.counted(key, 1) % 2 == 1 {
                    StatusCode::SERVICE_UNAVAILABLE
                } else {
                    StatusCode::OK
                }
            }
            (Some("count"), Some(key)) => {
                self.counted(key, 1);
                StatusCode::OK
            }
            (Some("counted"), Some(key)) if self.counted(key, 0) == 0 => StatusCode::NOT_FOUND,
            _ => StatusCode::OK,
        }
    }

    /// Becomes a WebSocket whose first message tells what was seen and whose others are the client's own.
    async fn web_socket(&self, mut request: Request<Incoming>, via: &Via) -> Reply {
        let key = request.headers().get("sec-websocket-key").map(|key| websocket::accept(key.as_bytes()));
        let upgrade = hyper::upgrade::on(&mut request);
        let seen = self.seen(request, via).await;
        // It ends with its connection.
        tokio::spawn(async move {
            let _ = websocket::echo(hyper_util::rt::TokioIo::new(upgrade.await?), seen.to_string()).await;
            Ok::<_, hyper::Error>(())
        });
        let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
        headers.insert(http::header::UPGRADE, http::HeaderValue::from_static("websocket"));
        if let Some(accept) = key.and_then(|key| http::HeaderValue::from_str(&key).ok()) {
            headers.insert(http::header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        response
    }

    /// The count of a key, with one more or as it is.
    fn counted(&self, key: &str, more: u32) -> u32 {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key.to_owned()).or_default();
        *count = count.saturating_add(more);
        *count
    }

    async fn seen(&self, request: Request<Incoming>, via: &Via) -> Value {
        let mut calls = Vec::new();
        for url in &self.calls {
            calls.push(self.call(url).await);
        }
        let headers = headers(request.headers());
        let uri = request.uri().clone();
        let host = uri.authority().map(ToString::to_string).or_else(|| Some(headers.get("host")?.as_str()?.to_owned()));
        let mut told = json!({
            "service": self.name,
            "method": request.method().as_str(),
            "path": uri.path_and_query().map_or("/", |p| p.as_str()),
            "host": host,
            "protocol": if request.version() == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
            "port": via.port,
            "peer": via.peer.ip().to_string(),
            "headers": headers,
        });
        if let Some(tls) = &via.tls {
            told["tls"] = tls.clone();
        }
        if let Some(version) = via.proxied {
            told["proxied"] = version.into();
        }
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        if !body.is_empty() {
            told["body"] = String::from_utf8_lossy(body.get(..SHOWN_BODY).unwrap_or(&body)).into();
        }
        if !calls.is_empty() {
            told["calls"] = calls.into();
        }
        told
    }

    async fn call(&self, url: &str) -> Value {
        match self.get(url).await {
            Ok((status, _)) => json!({"url": url, "status": status}),
            Err(error) => json!({"url": url, "error": format!("{error:#}")}),
        }
    }

    async fn join(&self, uri: &http::Uri) -> Result<Value> {
        let last = uri.path().rsplit('/').next().unwrap_or_default();
        let mut joined = serde_json::Map::new();
        for template in &self.joins {
            let url = template.replace("{path}", uri.path()).replace("{last}", last);
            let (status, body) = self.get(&url).await.with_context(|| url.clone())?;
            anyhow::ensure!(status == 200, "{url}: status {status}");
            let answer: Value = serde_json::from_slice(&body).with_context(|| url.clone())?;
            joined.extend(answer.as_object().cloned().unwrap_or_default());
        }
        Ok(joined.into())
    }

    async fn get(&self, url: &str) -> Result<(u16, Bytes)> {
        let uri: http::Uri = url.parse().context("not a URL")?;
        let response = self.caller.request(Request::get(uri).body(Empty::new())?).await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}

/// The headers as JSON; values of one name are joined by a comma.
fn headers(map: &HeaderMap) -> serde_json::Map<String, Value> {
    let mut told = serde_json::Map::new();
    for name in map.keys() {
        let values: Vec<_> = map.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
        told.insert(name.to_string(), values.join(",").into());
    }
    told
}

fn json_response(value: &Value) -> Reply {
    let body = Full::new(Bytes::from(format!("{value}\n"))).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// `/echo/BASE64URL/…` is answered with those bytes, whatever follows.
fn echo(path: &str) -> Option<Reply> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let text = path.strip_prefix("/echo/")?.split('/').next()?;
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let mut response = Response::new(Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync());
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Some(response)
}

/// Opens a tunnel to where a CONNECT wants to go; 502 where nothing listens.
async fn tunnel(request: Request<Incoming>) -> Reply {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    let to = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let Ok(mut there) = tokio::net::TcpStream::connect(&to).await else {
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        return response;
    };
    // It ends with either side; a peer that goes away is its own business.
    tokio::spawn(async move {
        if let Ok(here) = hyper::upgrade::on(request).await {
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(here), &mut there).await;
        }
    });
    response
}

/// Gives a gRPC call its own messages back and ends it with status 0; the server's name is in the trailers.
fn grpc_echo(request: Request<Incoming>, name: &str) -> Reply {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    if let Ok(name) = http::HeaderValue::from_str(name) {
        trailers.insert("x-service", name);
    }
    let (parts, body) = request.into_parts();
    let ended = futures_util::stream::once(async move { Ok(Frame::trailers(trailers)) });
    let messages = futures_util::StreamExt::filter(http_body_util::BodyStream::new(body), |frame| {
        std::future::ready(frame.as_ref().map_or(true, Frame::is_data))
    });
    let body = StreamBody::new(futures_util::StreamExt::chain(messages, ended));
    let mut response = Response::new(BodyExt::map_err(body, |error: hyper::Error| error.into()).boxed_unsync());
    if let Some(kind) = parts.headers.get(http::header::CONTENT_TYPE) {
        response.headers_mut().insert(http::header::CONTENT_TYPE, kind.clone());
    }
    response
}
