//! Passes a local Envoy's ADS stream on to the control plane, over the agent's mutual TLS.
//!
//! Invariant: Envoy's messages are not changed, and the two halves end together, so that Envoy itself reconnects with the
//! versions it holds. What passes may be kept by somebody else, for when the control plane is away. What the agent says and
//! hears on the same stream is `own`'s.

mod own;

use crate::ResourceSet;
use crate::client::{Connector, Token, open_channel};
use crate::server::{Hello, Opened, Source, drive_delta};
use carrick_runtime::backoff::Backoff;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::stream::{BoxStream, Stream, StreamExt};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

pub use own::Own;

/// Who keeps what passes, to tell it when the control plane is away.
pub trait Keep: Send + Sync {
    /// This went to Envoy.
    fn passed(&self, response: &DeltaDiscoveryResponse);
    /// Envoy asked for this.
    fn asked(&self, request: &DeltaDiscoveryRequest);
    /// What is told in the control plane's place; `None` when there is nothing.
    fn set(&self) -> Option<ResourceSet>;
}

/// How long the control plane may take before Envoy is told what was kept.
const PATIENCE: Duration = Duration::from_secs(1);

/// First and longest pause between attempts to reach the control plane.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// What became of a relayed stream; for readiness and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayEvent {
    /// The control plane took the stream.
    Connected,
    /// It could not be reached or refused.
    Failed(String),
    /// A response of this type URL passed through.
    Response(String),
}

/// Is told what happens; called from the connection's task, must not block.
pub type RelayObserver = Arc<dyn Fn(RelayEvent) + Send + Sync>;

/// The relay as a gRPC service.
pub struct Relay {
    connector: Connector,
    token: Option<Token>,
    observer: RelayObserver,
    own: Own,
}

/// The aggregated discovery service that passes everything on through `connector`. Serve it with
/// [`crate::server::serve_unix`].
pub fn relay_service(
    connector: Connector,
    token: Option<Token>,
    observer: RelayObserver,
    own: Own,
) -> AggregatedDiscoveryServiceServer<Relay> {
    AggregatedDiscoveryServiceServer::new(Relay { connector, token, observer, own })
        .max_decoding_message_size(crate::client::MAX_RESPONSE)
}

impl Relay {
    /// What was kept, until the control plane is there: then the stream ends, and Envoy comes back with what it holds.
    fn kept(
        &self,
        set: ResourceSet,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> BoxStream<'static, Result<DeltaDiscoveryResponse, Status>> {
        let (connector, observer) = (self.connector.clone(), self.observer.clone());
        let instead = Arc::new(Instead(watch::Sender::new(set)));
        let told = drive_delta(Arc::clone(&instead), request);
        let until = async move {
            drop(upstream(&connector, &observer).await);
            // The stream ends without its source.
            drop(instead);
        };
        told.take_until(until).boxed()
    }

    fn failed(&self, status: Status) -> Status {
        failed(&self.observer, status)
    }

    fn call<S>(&self, stream: S) -> Request<S> {
        let mut request = Request::new(stream);
        if let Some(token) = self.token.as_ref().and_then(|token| token())
            && let Ok(value) = format!("Bearer {token}").parse()
        {
            request.metadata_mut().insert("authorization", value);
        }
        request
    }
}

/// A connection to the control plane, however long it takes. Envoy's stream waits meanwhile: refused, Envoy would pause longer from try to
/// try (up to half a minute) and be late when the control plane is back.
async fn upstream(connector: &Connector, observer: &RelayObserver) -> AggregatedDiscoveryServiceClient<Channel> {
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let mut told = false;
    loop {
        match open_channel(connector).await {
            Ok(channel) => {
                return AggregatedDiscoveryServiceClient::new(channel)
                    .max_decoding_message_size(crate::client::MAX_RESPONSE);
            }
            // Told once: an outage of a day is one line in the log, not one a second.
            Err(error) if !told => {
                failed(observer, Status::unavailable(crate::client::describe(&error)));
                told = true;
            }
            Err(_) => {}
        }
        backoff.wait().await;
    }
}

fn failed(observer: &RelayObserver, status: Status) -> Status {
    observer(RelayEvent::Failed(format!("{:?}: {}", status.code(), status.message())));
    status
}

/// What was kept, in the place of a control plane.
struct Instead(watch::Sender<ResourceSet>);

impl Source for Instead {
    async fn open(&self, _: Hello) -> Result<Opened, Status> {
        Ok(Opened { sets: self.0.subscribe(), observer: Box::new(()), turns: None })
    }
}

/// The requests of the local proxy until it ends or breaks the stream.
struct Passed<T>(Streaming<T>);

impl<T> Stream for Passed<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_next_unpin(cx).map(|message| message?.ok())
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Relay {
    type StreamAggregatedResourcesStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let mut upstream = upstream(&self.connector, &self.observer).await;
        let call = self.call(Passed(request.into_inner()));
        let responses = upstream.stream_aggregated_resources(call).await.map_err(|s| self.failed(s))?.into_inner();
        (self.observer)(RelayEvent::Connected);
        let observer = self.observer.clone();
        Ok(Response::new(
            responses
                .inspect(move |response| match response {
                    Ok(response) => observer(RelayEvent::Response(response.type_url.clone())),
                    Err(status) => observer(RelayEvent::Failed(format!("{:?}: {}", status.code(), status.message()))),
                })
                .boxed(),
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let waits = async {
            match &self.own.kept {
                Some(_) => tokio::time::sleep(PATIENCE).await,
                None => std::future::pending().await,
            }
        };
        let mut upstream = tokio::select! {
            upstream = upstream(&self.connector, &self.observer) => upstream,
            () = waits => match self.own.kept.as_ref().and_then(|kept| kept.set()) {
                Some(set) => return Ok(Response::new(self.kept(set, request))),
                None => upstream(&self.connector, &self.observer).await,
            },
        };
        let (asked, passed) = (self.own.kept.clone(), self.own.kept.clone());
        let requests = Passed(request.into_inner()).inspect(move |request| {
            if let Some(kept) = &asked {
                kept.asked(request);
            }
        });
        let (stream, share) = own::share(&self.own, requests);
        let call = self.call(stream);
        let responses = upstream.delta_aggregated_resources(call).await.map_err(|s| self.failed(s))?.into_inner();
        (self.observer)(RelayEvent::Connected);
        let observer = self.observer.clone();
        Ok(Response::new(
            responses
                .inspect(move |response| {
                    if let (Ok(response), Some(kept)) = (response, &passed) {
                        kept.passed(response);
                    }
                })
                .filter_map(move |response| {
                    let passed = match (response, &share) {
                        (Ok(response), Some(share)) => share.take(response).map(Ok),
                        (response, _) => Some(response),
                    };
                    std::future::ready(passed)
                })
                .inspect(move |response| match response {
                    Ok(response) => observer(RelayEvent::Response(response.type_url.clone())),
                    Err(status) => observer(RelayEvent::Failed(format!("{:?}: {}", status.code(), status.message()))),
                })
                .boxed(),
        ))
    }
}
