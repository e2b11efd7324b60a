//! Requests of the engine's own: to authorizers, to servers of key sets.
//!
//! Invariant: they go through the cluster's own balancing, pools, limits and TLS, take no longer than they are told, and their
//! answers are no longer than they are told. They ask without changing anything, so a broken reused connection is replaced once.

use crate::local::Local;
use crate::message::h1::client::SendError;
use crate::message::incoming::{Broken, Incoming};
use crate::message::request_body::RequestBody;
use crate::upstream::Upstreams;
use crate::upstream::choose::{self, Wish};
use crate::upstream::connect::ConnectError;
use crate::upstream::pool::{self, Need, PoolKey, Taken};
use bytes::{Bytes, BytesMut};
use carrick_proxy_core::RuntimeConfig;
use carrick_proxy_core::model::filter::UpstreamOverrides;
use http::{HeaderMap, Request, Response, Version};
use http_body::Body;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("no such cluster")]
    NoCluster,
    #[error("no healthy host")]
    NoHost,
    #[error("circuit limits")]
    Overflow,
    #[error("no connection: {0}")]
    Connect(#[from] ConnectError),
    #[error("broken off: {0}")]
    Broken(#[from] Broken),
    #[error("no answer in time")]
    TimedOut,
    #[error("the answer is too long")]
    TooLong,
}

/// A whole answer.
pub(crate) struct Answered {
    pub head: http::response::Parts,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

/// What to ask.
pub(crate) struct Call<'a> {
    pub cluster: &'a str,
    /// Method, path, headers; `host` is the authority.
    pub head: http::request::Parts,
    pub body: Bytes,
    /// HTTP/2 whatever the cluster says (gRPC).
    pub h2: bool,
    pub timeout: Duration,
    /// Longest answer, bytes.
    pub limit: usize,
}

/// Asks.
pub(crate) async fn ask(
    local: &Rc<Local>,
    upstreams: &Upstreams,
    config: &RuntimeConfig,
    call: Call<'_>,
) -> Result<Answered, CallError> {
    let limit = call.timeout;
    let asked = Box::pin(attempts(local, upstreams, config, call));
    if limit.is_zero() {
        return asked.await;
    }
    tokio::time::timeout(limit, asked).await.unwrap_or(Err(CallError::TimedOut))
}

async fn attempts(
    local: &Rc<Local>,
    upstreams: &Upstreams,
    config: &RuntimeConfig,
    call: Call<'_>,
) -> Result<Answered, CallError> {
    let state = upstreams.get(local, config, call.cluster).ok_or(CallError::NoCluster)?;
    let h2 = call.h2 || pool::speaks_h2(state.cluster.http, false);
    let overrides = Rc::new(UpstreamOverrides::default());
    let mut fresh = false;
    loop {
        let wish = Wish {
            restored: None,
            from_header: None,
            tried: &[],
            reselections: 0,
            hash: None,
            overrides: &overrides,
            auto_sni: None,
            subset: &None,
            tried_priorities: &[],
            authority: None,
            client: None,
            proxy_protocol: None,
            source: None,
        };
        let chosen = choose::choose(local, config, &state, wish).await.ok_or(CallError::NoHost)?;
        let _active = state.begin(chosen.target.address, false).ok_or(CallError::Overflow)?;
        let key = PoolKey {
            address: chosen.target.address,
            transport: Arc::clone(&chosen.target.transport),
            overrides: Rc::clone(&overrides),
            auto_sni: None,
            h2,
            downstream: None,
        };
        let request = request(&call, h2);
        let need = Need { fresh, high: false, careful: true };
        let (result, reused, home): (Result<_, Broken>, _, _) =
            match pool::take(local, &state, &key, &chosen.target, need).await? {
                Taken::Http1 { mut connection, home, reused } => {
                    let (request, body) = request.into_parts();
                    let result = connection.send(&request, body, reused).await.map_err(|e| match e {
                        SendError::Unsent(_) => Broken::Incomplete,
                        SendError::Broken(e) => e,
                    });
                    (result, reused, Some((connection, home)))
                }
                Taken::Http2 { stream, reused } => {
                    let (request, body) = request.into_parts();
                    match stream.sender().send(&request, body).await {
                        Ok(response) => return collect(response, call.limit).await,
                        Err(SendError::Unsent(_)) => (Err(Broken::Incomplete), true, None),
                        Err(SendError::Broken(e)) => (Err(e), reused, None),
                    }
                }
            };
        match result {
            Ok(response) => {
                let answered = collect(response, call.limit).await?;
                if let Some((connection, home)) = home {
                    home.give_back(local, connection);
                }
                return Ok(answered);
            }
            Err(_) if reused && !fresh => fresh = true,
            Err(e) => return Err(e.into()),
        }
    }
}

fn request(call: &Call<'_>, h2: bool) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::whole(call.body.clone()));
    *request.method_mut() = call.head.method.clone();
    *request.headers_mut() = call.head.headers.clone();
    *request.uri_mut() = call.head.uri.clone();
    if h2 {
        let host = request.headers_mut().remove(http::header::HOST);
        let mut uri = request.uri().clone().into_parts();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = host.and_then(|h| http::uri::Authority::try_from(h.as_bytes()).ok());
        if let Ok(uri) = http::Uri::from_parts(uri) {
            *request.uri_mut() = uri;
        }
        *request.version_mut() = Version::HTTP_2;
    }
    request
}

async fn collect(response: Response<Incoming>, limit: usize) -> Result<Answered, CallError> {
    let (head, mut body) = response.into_parts();
    let mut bytes = BytesMut::new();
    let mut trailers = HeaderMap::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(data) if bytes.len().saturating_add(data.len()) > limit => return Err(CallError::TooLong),
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    Ok(Answered { head, body: bytes.freeze(), trailers })
}
