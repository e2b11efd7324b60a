//! The loops' turn: where several servers share one storage, only one of them runs the loops.
//!
//! Invariant: whoever has the turn stops to believe so before anybody else may begin: it lets go when it could not renew the
//! Lease for two thirds of its length. Another's Lease has run out by one's own clock since its last change was seen. With
//! a storage of one's own there is nobody to take turns with.

use std::time::Duration;

use serde_json::{Value, json};
use tracing::{debug, info};

use crate::error::ApiResult;
use crate::store::{Intent, Store, WriteOptions, resource_version_of, rfc3339};

const LEASES: &str = "leases.coordination.k8s.io";
const NAMESPACE: &str = "kube-system";
const NAME: &str = "carrick-api-controllers";
/// Before a loop that ended by an error of the storage begins anew.
const AGAIN: Duration = Duration::from_millis(500);

/// Runs `work` for as long as this server has the turn, again and again. It begins anew when it ends by itself: loops end
/// when the storage fails them.
pub async fn run<F: Future<Output = ()>>(store: Store, length: Duration, mut work: impl FnMut() -> F) {
    let pause = length / 9;
    let mut election = Election { length, identity: uuid::Uuid::new_v4().to_string(), seen: None, renewed: None };
    loop {
        if store.engine().is_shared() {
            while !election.attempt(&store).await {
                store.clock().sleep(pause).await;
            }
            info!(lease = NAME, "this server runs the API's loops");
        }
        let keeping = async {
            if !store.engine().is_shared() {
                return std::future::pending::<()>().await;
            }
            while election.attempt(&store).await {
                store.clock().sleep(pause).await;
            }
            info!(lease = NAME, "another server is to run the API's loops");
        };
        tokio::select! {
            () = work() => store.clock().sleep(AGAIN).await,
            () = keeping => {}
        }
    }
}

/// Runs `work` for ever, whoever has the turn.
pub async fn run_here<F: Future<Output = ()>>(store: Store, mut work: impl FnMut() -> F) {
    loop {
        work().await;
        store.clock().sleep(AGAIN).await;
    }
}

struct Election {
    length: Duration,
    identity: String,
    /// The Lease's version as it was last seen to change, and when.
    seen: Option<(u64, Duration)>,
    renewed: Option<Duration>,
}

impl Election {
    /// One look at the Lease, and a write to it if it is ours or nobody's; whether we have the turn.
    async fn attempt(&mut self, store: &Store) -> bool {
        let begun = store.clock().monotonic();
        match tokio::time::timeout(self.length / 3, self.take(store)).await {
            Ok(Ok(true)) => self.renewed = Some(begun),
            Ok(Ok(false)) => self.renewed = None,
            Ok(Err(error)) => debug!(%error, "lease"),
            Err(_) => debug!("the storage does not answer about the lease"),
        }
        let now = store.clock().monotonic();
        self.renewed.is_some_and(|at| now.saturating_sub(at) < self.length * 2 / 3)
    }

    async fn take(&mut self, store: &Store) -> ApiResult<bool> {
        let now = store.clock().monotonic();
        let stamp = rfc3339(store.now()).replace('Z', ".000000Z");
        let mut ours = false;
        let change = |old: Option<&Value>| {
            let spec = |field: &str| old.and_then(|o| o.pointer(&format!("/spec/{field}"))).cloned();
            let version = old.and_then(resource_version_of).unwrap_or(0);
            if self.seen.is_none_or(|(known, _)| known != version) {
                self.seen = Some((version, now));
            }
            let holder = spec("holderIdentity").and_then(|h| h.as_str().map(str::to_owned)).unwrap_or_default();
            let length = spec("leaseDurationSeconds").and_then(|s| s.as_u64()).map_or(self.length, Duration::from_secs);
            let mine = holder == self.identity;
            let free = holder.is_empty() || self.seen.is_some_and(|(_, at)| now.saturating_sub(at) > length);
            ours = mine || free;
            if !ours {
                return Ok(Intent::Keep);
            }
            let moves = spec("leaseTransitions").and_then(|t| t.as_u64()).unwrap_or(0);
            let mut lease = old.cloned().unwrap_or_else(|| {
                json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": NAME, "namespace": NAMESPACE}})
            });
            let acquired = spec("acquireTime").filter(|_| mine).unwrap_or_else(|| stamp.as_str().into());
            // Differs each time: a write to the same content would store nothing.
            let renewal = format!("{stamp}/{}", now.as_millis());
            let meta = &mut lease["metadata"];
            if !meta["annotations"].is_object() {
                meta["annotations"] = json!({});
            }
            meta["annotations"]["carrick.dev/renewal"] = renewal.into();
            lease["spec"] = json!({
                "holderIdentity": self.identity, "leaseDurationSeconds": self.length.as_secs().max(1), "acquireTime": acquired,
                "renewTime": stamp, "leaseTransitions": moves.saturating_add(u64::from(!mine)),
            });
            Ok(Intent::Put(lease))
        };
        store.modify(LEASES, NAMESPACE, NAME, WriteOptions::default(), change).await?;
        Ok(ours)
    }
}
