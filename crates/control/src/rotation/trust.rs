//! The trust service: takes the reports of proven proxies, and tells each what is published.
//!
//! Invariant: a report counts for the namespace of the caller's verified certificate alone; a proxy that reports is in the
//! population from its first report until it is forgotten there.

use std::sync::Arc;
use std::time::SystemTime;

use carrick_pki::Authority;
use carrick_pki::trust_service::{Order, Report, TrustService};
use carrick_xds::server::Peer;
use futures_util::stream;
use tokio::sync::watch;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use super::Population;
use crate::caller::Callers;
use crate::roots::Published;

/// The service.
pub(crate) struct Trust {
    pub(crate) callers: Arc<Callers>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) population: Arc<Population>,
    pub(crate) published: watch::Receiver<Published>,
    /// The other end where nobody changes anything, so that streams do not end.
    pub(crate) _idle: Option<watch::Sender<Published>>,
}

/// One proxy's stream.
struct Following {
    reports: Streaming<Report>,
    namespace: String,
    authority: Arc<Authority>,
    published: watch::Receiver<Published>,
    told: Option<Order>,
    presence: Presence,
}

/// Tells the population when the stream is dropped.
struct Presence {
    population: Arc<Population>,
    stream: u64,
    name: Option<String>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.population.left(self.stream, name, SystemTime::now());
        }
    }
}

#[tonic::async_trait]
impl TrustService for Trust {
    type FollowStream = BoxStream<Order>;

    async fn follow(&self, reports: Request<Streaming<Report>>) -> Result<Response<BoxStream<Order>>, Status> {
        let peer = reports.extensions().get::<Peer>().cloned().unwrap_or_default();
        // No token counts here: what is shown on this connection is what the proxy has.
        let caller = self.callers.prove(&peer, None).await?;
        let following = Following {
            reports: reports.into_inner(),
            namespace: caller.namespace,
            authority: Arc::clone(&self.authority),
            published: self.published.clone(),
            told: None,
            presence: Presence {
                population: Arc::clone(&self.population),
                stream: self.population.stream(),
                name: None,
            },
        };
        let orders = stream::unfold(Some(following), |following| async move {
            let mut following = following?;
            match following.next().await {
                Ok(Some(order)) => Some((Ok(order), Some(following))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(orders)))
    }
}

impl Following {
    async fn next(&mut self) -> Result<Option<Order>, Status> {
        loop {
            let order = self.published.borrow_and_update().order.clone();
            if self.told.as_ref() != Some(&order) {
                self.told = Some(order.clone());
                return Ok(Some(order));
            }
            tokio::select! {
                changed = self.published.changed() => if changed.is_err() { return Ok(None) },
                report = self.reports.message() => match report? {
                    Some(report) => self.take(&report)?,
                    None => return Ok(None),
                },
            }
        }
    }

    fn take(&mut self, report: &Report) -> Result<(), Status> {
        let presence = &mut self.presence;
        let roots = self.authority.roots();
        let taken = presence.population.take(presence.stream, &self.namespace, report, &roots, SystemTime::now());
        let name = taken.map_err(|error| Status::invalid_argument(error.to_string()))?;
        debug!(proxy = name, trusts = report.trusts.len(), "report");
        presence.name = Some(name);
        Ok(())
    }
}
