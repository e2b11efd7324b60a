//! Which replica writes: a Lease that one of them holds and renews.
//!
//! Invariant: whoever leads stops to believe so before anybody else may begin: it steps down when it could not renew for two thirds of
//! the lease's length. Whether another's lease has run out is judged by one's own clock since its last change was seen, so clocks need
//! not agree. A write to the Lease goes through only over the version that was read.

use std::time::Duration;

use carrick_api::timestamp::Timestamp;
use carrick_runtime::drain::Drain;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use serde_json::{Value, json};
use std::future::Future;
use std::time::SystemTime;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

/// Where the Lease is, and how long it holds.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who asks for it; no two replicas are called the same.
    pub identity: String,
    /// How long it holds after it was renewed; a killed holder is followed after at most this and one pause.
    pub length: Duration,
    /// Pause between attempts.
    pub pause: Duration,
}

impl LeaseOptions {
    /// The usual lengths: fifteen seconds, looked after every two.
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            length: Duration::from_secs(15),
            pause: Duration::from_secs(2),
        }
    }
}

/// Whether this replica leads, and the task that keeps it so until drained.
pub fn election(
    client: Client,
    options: LeaseOptions,
    drain: Drain,
) -> (watch::Receiver<bool>, impl Future<Output = ()> + Send) {
    let (leads, told) = watch::channel(false);
    let resource = ApiResource {
        group: "coordination.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "coordination.k8s.io/v1".to_owned(),
        kind: "Lease".to_owned(),
        plural: "leases".to_owned(),
    };
    let api = Api::namespaced_with(client, &options.namespace, &resource);
    let election = Election { api, options, leads, seen: None, renewed: None };
    (told, election.run(drain))
}

/// Runs what a leader does for as long as this replica leads; begins anew each time it comes to lead. Without an election it always does.
pub(crate) async fn while_leading<F: Future<Output = ()>>(
    leading: Option<watch::Receiver<bool>>,
    drain: Drain,
    mut work: impl FnMut() -> F,
) {
    let Some(mut leading) = leading else { return work().await };
    loop {
        tokio::select! {
            () = drain.graceful() => return,
            begun = leading.wait_for(|leads| *leads) => if begun.is_err() { return },
        }
        tokio::select! {
            () = work() => return,
            ended = leading.wait_for(|leads| !*leads) => if ended.is_err() { return },
        }
    }
}

struct Election {
    api: Api<DynamicObject>,
    options: LeaseOptions,
    leads: watch::Sender<bool>,
    /// The Lease's version as it was last seen to change, and when.
    seen: Option<(String, Instant)>,
    /// When this replica last wrote it.
    renewed: Option<Instant>,
}

impl Election {
    async fn run(mut self, drain: Drain) {
        loop {
            let begun = Instant::now();
            let limit = self.options.length / 3;
            match timeout(limit, self.attempt()).await {
                Ok(Ok(true)) => self.renewed = Some(begun),
                Ok(Ok(false)) => self.renewed = None,
                Ok(Err(error)) => debug!(%error, "lease"),
                Err(_) => debug!("the API does not answer about the lease"),
            }
            let leads = self.renewed.is_some_and(|at| at.elapsed() < self.options.length * 2 / 3);
            self.leads.send_if_modified(|known| {
                if *known != leads {
                    info!(lease = self.options.name, leads, "leadership");
                }
                std::mem::replace(known, leads) != leads
            });
            tokio::select! {
                () = drain.graceful() => break,
                () = tokio::time::sleep(self.options.pause) => {}
            }
        }
        self.leads.send_replace(false);
        if self.renewed.is_some() {
            let _ = timeout(self.options.length / 3, self.release()).await;
        }
    }

    /// One look at the Lease, and a write to it if it is this replica's or nobody's.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.options.name).await? else {
            let fresh = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": self.options.name}, "spec": self.spec(0, None),
            });
            let Ok(fresh) = serde_json::from_value(fresh) else { return Ok(false) };
            return taken(self.api.create(&PostParams::default(), &fresh).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(known, _)| *known != version) {
            self.seen = Some((version, Instant::now()));
        }
        let field = |name: &str| lease.data.pointer(&format!("/spec/{name}")).cloned().unwrap_or(Value::Null);
        let holder = field("holderIdentity");
        let holder = holder.as_str().unwrap_or_default();
        let mine = holder == self.options.identity;
        let length = field("leaseDurationSeconds").as_u64().map_or(self.options.length, Duration::from_secs);
        let free = holder.is_empty() || self.seen.as_ref().is_some_and(|(_, at)| at.elapsed() > length);
        if !mine && !free {
            return Ok(false);
        }
        let transitions = field("leaseTransitions").as_u64().unwrap_or_default();
        let acquired = if mine { Some(field("acquireTime")) } else { None };
        lease.data["spec"] = self.spec(transitions.saturating_add(u64::from(!mine)), acquired);
        taken(self.api.replace(&self.options.name, &PostParams::default(), &lease).await)
    }

    fn spec(&self, transitions: u64, acquired: Option<Value>) -> Value {
        let now = Timestamp::from_system(SystemTime::now()).micro_string();
        json!({
            "holderIdentity": self.options.identity,
            "leaseDurationSeconds": self.options.length.as_secs().max(1),
            "acquireTime": acquired.unwrap_or_else(|| now.as_str().into()),
            "renewTime": now,
            "leaseTransitions": transitions,
        })
    }

    /// Gives it back, so that nobody has to wait.
    async fn release(&self) -> Result<(), kube::Error> {
        let mut lease = self.api.get(&self.options.name).await?;
        if lease.data.pointer("/spec/holderIdentity").and_then(Value::as_str) == Some(&self.options.identity) {
            lease.data["spec"]["holderIdentity"] = "".into();
            self.api.replace(&self.options.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

/// Somebody else was quicker: no error.
fn taken(written: Result<DynamicObject, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
