//! What the agent itself says and hears on the stream of its Envoy: the table of names, and the workload's health.
//!
//! Invariant: nothing is said before Envoy's own first message was answered, since that message carries the node; Envoy sees nothing of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::{mpsc, watch};

use super::Keep;
use crate::client::told;
use crate::health::Health;
use crate::name_table::{self, NameTable};

/// Answers under way: there is at most one unanswered response.
const QUEUE: usize = 8;

/// What an agent wants of its own.
#[derive(Clone, Default)]
pub struct Own {
    /// Where tables of names go; `None` asks for none.
    pub names: Option<Arc<dyn Fn(NameTable) + Send + Sync>>,
    /// The workload's health, told on each stream and whenever it changes.
    pub health: Option<watch::Receiver<Option<Health>>>,
    /// Keeps what passes; `None` where nobody has to come back without a control plane.
    pub kept: Option<Arc<dyn Keep>>,
}

impl Own {
    fn is_nothing(&self) -> bool {
        self.names.is_none() && self.health.is_none()
    }
}

/// The agent's half of one stream.
pub(super) struct Share {
    own: Own,
    says: mpsc::Sender<Say>,
    begun: AtomicBool,
}

enum Say {
    /// The stream is under way.
    Begin,
    Answer(Box<DeltaDiscoveryRequest>),
}

/// What goes to the control plane.
pub(super) struct Requests(BoxStream<'static, DeltaDiscoveryRequest>);

impl Stream for Requests {
    type Item = DeltaDiscoveryRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

/// Envoy's requests with the agent's among them, and what takes the agent's responses out again.
pub(super) fn share(
    own: &Own,
    envoy: impl Stream<Item = DeltaDiscoveryRequest> + Send + Unpin + 'static,
) -> (Requests, Option<Share>) {
    if own.is_nothing() {
        return (Requests(envoy.boxed()), None);
    }
    let (says, heard) = mpsc::channel(QUEUE);
    let mut health = own.health.clone();
    if let Some(health) = &mut health {
        health.mark_changed();
    }
    let speaker = Speaker { heard, health, names: own.names.is_some(), begun: false };
    let said = stream::unfold(speaker, |mut speaker| async move { Some((speaker.next().await, speaker)) }).boxed();
    (Requests(Both { envoy, said }.boxed()), Some(Share { own: own.clone(), says, begun: AtomicBool::new(false) }))
}

struct Speaker {
    heard: mpsc::Receiver<Say>,
    health: Option<watch::Receiver<Option<Health>>>,
    names: bool,
    begun: bool,
}

impl Speaker {
    async fn next(&mut self) -> DeltaDiscoveryRequest {
        loop {
            let heard = if self.begun {
                tokio::select! {
                    heard = self.heard.recv() => heard,
                    health = told(self.health.as_mut()) => return health.request(),
                }
            } else {
                self.heard.recv().await
            };
            match heard {
                Some(Say::Begin) => {
                    self.begun = true;
                    if self.names {
                        return DeltaDiscoveryRequest {
                            type_url: name_table::TYPE_URL.to_owned(),
                            ..Default::default()
                        };
                    }
                }
                Some(Say::Answer(request)) => return *request,
                None => std::future::pending().await,
            }
        }
    }
}

/// Ends with Envoy's half.
struct Both<E> {
    envoy: E,
    said: BoxStream<'static, DeltaDiscoveryRequest>,
}

impl<E: Stream<Item = DeltaDiscoveryRequest> + Unpin> Stream for Both<E> {
    type Item = DeltaDiscoveryRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.envoy.poll_next_unpin(cx) {
            Poll::Pending => match self.said.poll_next_unpin(cx) {
                Poll::Ready(Some(request)) => Poll::Ready(Some(request)),
                _ => Poll::Pending,
            },
            ready => ready,
        }
    }
}

impl Share {
    /// Takes what is the agent's; gives the rest back.
    pub(super) fn take(&self, response: DeltaDiscoveryResponse) -> Option<DeltaDiscoveryResponse> {
        if response.type_url != name_table::TYPE_URL {
            if !self.begun.swap(true, Ordering::Relaxed) {
                let _ = self.says.try_send(Say::Begin);
            }
            return Some(response);
        }
        for resource in &response.resources {
            let table = resource.resource.as_ref().and_then(NameTable::read);
            if let (Some(table), Some(names)) = (table, &self.own.names) {
                names(table);
            }
        }
        let answer =
            DeltaDiscoveryRequest { type_url: response.type_url, response_nonce: response.nonce, ..Default::default() };
        let _ = self.says.try_send(Say::Answer(Box::new(answer)));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::service::discovery::v3::Resource;
    use std::sync::Mutex;

    #[tokio::test]
    async fn the_agent_speaks_after_envoy_and_hears_its_own_alone() {
        let got = Arc::new(Mutex::new(Vec::new()));
        let (told, health) = watch::channel(Some(Health::Healthy));
        let sink = got.clone();
        let own = Own {
            names: Some(Arc::new(move |table| sink.lock().unwrap().push(table))),
            health: Some(health),
            kept: None,
        };
        let (envoy, requests) = mpsc::channel(4);
        let (mut out, share) = share(&own, tokio_stream::wrappers::ReceiverStream::new(requests));
        let share = share.unwrap();
        let mine = DeltaDiscoveryRequest { type_url: "clusters".into(), ..Default::default() };
        envoy.send(mine.clone()).await.unwrap();
        assert_eq!(out.next().await, Some(mine));
        let nothing = tokio::time::timeout(std::time::Duration::from_millis(20), out.next()).await;
        assert!(nothing.is_err(), "nothing before the first response");

        let response = DeltaDiscoveryResponse { type_url: "clusters".into(), ..Default::default() };
        assert_eq!(share.take(response.clone()), Some(response));
        assert_eq!(out.next().await.unwrap().type_url, name_table::TYPE_URL);
        assert_eq!(out.next().await, Some(Health::Healthy.request()));
        let table = NameTable { table: [("a".to_owned(), Default::default())].into() };
        let resource = Resource { resource: Some(table.resource().body), ..Default::default() };
        let names = DeltaDiscoveryResponse {
            type_url: name_table::TYPE_URL.into(),
            nonce: "7".into(),
            resources: vec![resource],
            ..Default::default()
        };
        assert_eq!(share.take(names), None);
        assert_eq!(*got.lock().unwrap(), [table]);
        assert_eq!(out.next().await.unwrap().response_nonce, "7");
        told.send_replace(Some(Health::Ill("x".into())));
        assert_eq!(out.next().await, Some(Health::Ill("x".into()).request()));
        drop(envoy);
        assert_eq!(out.next().await, None);
    }
}
