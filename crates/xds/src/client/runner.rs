//! Keeps a [`ClientSession`] connected: open, subscribe, apply, answer; on loss back off and come again.
//!
//! Invariant: the handler is called from one task only, and keeps what it accepted while there is no connection.

use super::{ClientSession, Connector, Handler, Token, open_channel};
use crate::health::Health;
use crate::{Node, TypeUrl};
use carrick_runtime::backoff::Backoff;
use carrick_runtime::drain::Drain;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

/// Largest response taken.
pub(crate) const MAX_RESPONSE: usize = 256 << 20;
/// Requests under way. The server has at most one unanswered response per type, so this is never full for long.
const QUEUE: usize = 64;

/// How to reach the control plane, and as whom.
#[derive(Clone)]
pub struct ClientOptions {
    /// Where and how.
    pub connector: Connector,
    /// Who we are.
    pub node: Node,
    /// A bearer token, where the client has no certificate.
    pub token: Option<Token>,
    /// The first and the longest pause between attempts.
    pub backoff: (Duration, Duration),
    /// Notified when the handler's interests may have changed without an update.
    pub wake: Option<Arc<Notify>>,
    /// The workload's health, told on each stream and whenever it changes; `None` in it is not known yet.
    pub health: Option<watch::Receiver<Option<Health>>>,
    /// What the handler holds from before: type, name and version.
    pub held: Vec<(TypeUrl, Arc<str>, Arc<str>)>,
}

impl ClientOptions {
    /// Options with the usual pauses (100 ms to 5 s, with jitter).
    pub fn new(connector: Connector, node: Node) -> Self {
        let backoff = (Duration::from_millis(100), Duration::from_secs(5));
        Self { connector, node, token: None, backoff, wake: None, health: None, held: Vec::new() }
    }
}

/// Runs until drained. Gives the handler back.
pub async fn run<H: Handler>(options: ClientOptions, mut handler: H, drain: Drain) -> H {
    let mut session = ClientSession::new(options.node.clone());
    session.hold(options.held.iter().cloned());
    let (first, longest) = options.backoff;
    let mut backoff = Backoff::new(first, longest);
    loop {
        let reason = tokio::select! {
            () = drain.graceful() => return handler,
            reason = connected(&options, &mut session, &mut handler, &mut backoff) => reason,
        };
        debug!(reason, "xDS stream ended");
        handler.disconnected(&reason);
        tokio::select! {
            () = drain.graceful() => return handler,
            () = backoff.wait() => {}
        }
    }
}

/// One stream, from opening to its end; says why it ended.
async fn connected<H: Handler>(
    options: &ClientOptions,
    session: &mut ClientSession,
    handler: &mut H,
    backoff: &mut Backoff,
) -> String {
    let channel = match open_channel(&options.connector).await {
        Ok(channel) => channel,
        Err(error) => return describe(&error),
    };
    let (requests, queue) = mpsc::channel::<DeltaDiscoveryRequest>(QUEUE);
    for request in session.on_connected(handler.interests()) {
        if requests.send(request).await.is_err() {
            return "the request stream was closed".to_owned();
        }
    }
    let mut call = tonic::Request::new(ReceiverStream::new(queue));
    if let Some(token) = options.token.as_ref().and_then(|token| token())
        && let Ok(value) = format!("Bearer {token}").parse()
    {
        call.metadata_mut().insert("authorization", value);
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
    let mut responses = match client.delta_aggregated_resources(call).await {
        Ok(response) => response.into_inner(),
        Err(status) => return describe_status(&status),
    };
    handler.connected();
    let mut health = options.health.clone();
    if let Some(health) = &mut health {
        health.mark_changed();
    }
    loop {
        let response = tokio::select! {
            response = responses.message() => match response {
                Ok(Some(response)) => response,
                Ok(None) => return "the server closed the stream".to_owned(),
                Err(status) => return describe_status(&status),
            },
            () = woken(options.wake.as_deref()) => {
                if !send_all(&requests, session.on_interests(handler.interests())).await {
                    return "the request stream was closed".to_owned();
                }
                continue;
            }
            health = told(health.as_mut()) => {
                if !send_all(&requests, vec![health.request()]).await {
                    return "the request stream was closed".to_owned();
                }
                continue;
            }
        };
        // A server that answers is worth coming back to quickly.
        backoff.reset();
        let answer = match session.on_response(response) {
            Ok(received) => {
                let (update, parts) = received.split();
                let verdict = handler.apply(update);
                session.answer(parts, verdict)
            }
            Err(refusal) => *refusal,
        };
        let mut out = vec![answer];
        out.extend(session.on_interests(handler.interests()));
        if !send_all(&requests, out).await {
            return "the request stream was closed".to_owned();
        }
    }
}

async fn send_all(queue: &mpsc::Sender<DeltaDiscoveryRequest>, requests: Vec<DeltaDiscoveryRequest>) -> bool {
    for request in requests {
        if queue.send(request).await.is_err() {
            return false;
        }
    }
    true
}

async fn woken(wake: Option<&Notify>) {
    match wake {
        Some(wake) => wake.notified().await,
        None => std::future::pending().await,
    }
}

/// The next health to tell; cancel safe.
pub(crate) async fn told(health: Option<&mut watch::Receiver<Option<Health>>>) -> Health {
    if let Some(health) = health {
        while health.changed().await.is_ok() {
            if let Some(known) = health.borrow_and_update().clone() {
                return known;
            }
        }
    }
    std::future::pending().await
}

fn describe_status(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// An error with its causes, outermost first.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}
