//! Endpoint slices: which addresses stand behind each service, from the pods' status.
//!
//! Invariant: for every service with a selector, the slices of this controller say exactly what `plan` computes from the
//! service and the pods of its namespace; slices of other managers are left alone. A change of one pod recomputes only
//! the services that select it.

mod index;
mod plan;

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tracing::{debug, warn};

use self::index::{Index, ServiceKey};
use self::plan::Step;
use super::follow::{Follower, News};
use crate::error::{ApiError, ApiResult};
use crate::store::{DeleteOptions, EventType, Store, name_of, namespace_of};

const SLICES: &str = "endpointslices.discovery.k8s.io";

/// Writes under way at once; the store commits those that wait together.
const PARALLEL: usize = 64;

/// Pause before a service whose write failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Runs until the store is closed.
pub async fn run(store: Store) {
    let mut controller = Controller { store, index: Index::default(), dirty: BTreeSet::new(), failed: BTreeSet::new() };
    if let Err(error) = controller.run().await {
        debug!(%error, "endpoint slice loop ended");
    }
}

struct Controller {
    store: Store,
    index: Index,
    dirty: BTreeSet<ServiceKey>,
    failed: BTreeSet<ServiceKey>,
}

impl Controller {
    async fn run(&mut self) -> ApiResult<()> {
        let mut services = Follower::new(&self.store, "services");
        let mut pods = Follower::new(&self.store, "pods");
        let mut slices = Follower::new(&self.store, SLICES);
        // Nothing may be computed before all three are known, or slices would be emptied at every start.
        self.pods(pods.next().await?);
        self.slices(slices.next().await?);
        self.services(services.next().await?);
        loop {
            while let Some(news) = pods.ready()? {
                self.pods(news);
            }
            while let Some(news) = services.ready()? {
                self.services(news);
            }
            while let Some(news) = slices.ready()? {
                self.slices(news);
            }
            if !self.dirty.is_empty() {
                self.reconcile().await?;
                continue;
            }
            let retry = self.store.clock().sleep(RETRY);
            tokio::select! {
                news = pods.next() => self.pods(news?),
                news = services.next() => self.services(news?),
                news = slices.next() => self.slices(news?),
                () = retry, if !self.failed.is_empty() => {}
            }
            self.dirty.append(&mut self.failed);
        }
    }

    fn pods(&mut self, news: News) {
        match news {
            News::All(list) => {
                self.index.clear_pods();
                list.iter().for_each(|pod| _ = self.index.set_pod(&pod));
                self.dirty.extend(self.index.services());
            }
            News::Change(event) if event.kind == EventType::Deleted => {
                self.dirty.extend(self.index.remove_pod(event.namespace(), event.name()));
            }
            News::Change(event) => self.dirty.extend(self.index.set_pod(&event.object)),
        }
    }

    fn services(&mut self, news: News) {
        match news {
            News::All(list) => {
                self.dirty.extend(self.index.clear_services());
                for service in list.iter() {
                    self.dirty.insert(self.index.set_service(&service));
                }
            }
            News::Change(event) if event.kind == EventType::Deleted => {
                self.dirty.insert(self.index.remove_service(event.namespace(), event.name()));
            }
            News::Change(event) => _ = self.dirty.insert(self.index.set_service(&event.object)),
        }
    }

    fn slices(&mut self, news: News) {
        match news {
            News::All(list) => {
                self.index.clear_slices();
                list.iter().for_each(|slice| self.dirty.extend(self.index.set_slice(slice)));
                self.dirty.extend(self.index.services());
            }
            News::Change(event) if event.kind == EventType::Deleted => {
                self.dirty.extend(self.index.remove_slice(event.namespace(), event.name(), event.revision()));
            }
            News::Change(event) => self.dirty.extend(self.index.set_slice((*event.object).clone())),
        }
    }

    async fn reconcile(&mut self) -> ApiResult<()> {
        let mut steps = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            let planned = self.index.plan(&key);
            steps.extend(planned.into_iter().map(|step| (key.clone(), step)));
        }
        let store = &self.store;
        let mut written = stream::iter(steps).map(|(key, step)| write(store, key, step)).buffer_unordered(PARALLEL);
        let mut results = Vec::new();
        while let Some(result) = written.next().await {
            results.push(result);
        }
        drop(written);
        for (key, result) in results {
            match result {
                Ok(Some(slice)) => _ = self.index.set_slice(slice),
                // A conflict means that somebody changed the slice: that news is on its way and makes the service dirty.
                Ok(None) | Err(ApiError::NotFound(_) | ApiError::Conflict { .. } | ApiError::Forbidden { .. }) => {}
                Err(error @ ApiError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    warn!(namespace = %key.0, service = %key.1, %error, "endpoint slices could not be written; trying again");
                    self.failed.insert(key);
                }
            }
        }
        Ok(())
    }
}

async fn write(store: &Store, key: ServiceKey, step: Step) -> (ServiceKey, ApiResult<Option<serde_json::Value>>) {
    let result = match step {
        Step::Create(slice) => store.create(SLICES, slice).await.map(Some),
        Step::Update(slice) => store.update(SLICES, slice).await.map(Some),
        Step::Delete(slice) => {
            let deleted = store.delete(SLICES, namespace_of(&slice), name_of(&slice), &DeleteOptions::default()).await;
            deleted.map(|_| None)
        }
    };
    (key, result)
}
