//! Follows other clusters: one set of watches for each, begun anew when its Secret changes.
//!
//! Invariant: watches of one cluster end with its Secret and before newer ones begin, so that nothing old is told after something new.

use super::secrets::finding;
use super::{ClusterId, REMOTE_KINDS, RemoteEvent, Remotes, Source, Wanted, What, kubeconfig};
use crate::caller::Reviewers;
use crate::source::kube::watch as watch_kind;
use carrick_runtime::drain::Drain;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, PostParams};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

/// Events that wait for the fold, of all clusters.
const EVENTS: usize = 4096;

/// The task that follows, and the fold's side of it. With a client of the own API, what is wrong is told there too, as an event.
pub(crate) fn task(
    root: Arc<str>,
    own: Option<kube::Client>,
    reviewers: Reviewers,
    drain: Drain,
) -> (Remotes, impl Future<Output = ()> + use<>) {
    let (wanted, wanted_here) = watch::channel(Wanted::new());
    let (sender, events) = mpsc::channel(EVENTS);
    (Remotes { wanted, events }, run(root, own, reviewers, wanted_here, sender, drain))
}

async fn run(
    root: Arc<str>,
    own: Option<kube::Client>,
    reviewers: Reviewers,
    mut wanted: watch::Receiver<Wanted>,
    events: mpsc::Sender<RemoteEvent>,
    drain: Drain,
) {
    let mut followed: BTreeMap<ClusterId, (Source, AbortHandle)> = BTreeMap::new();
    let mut running = JoinSet::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        let gone: Vec<ClusterId> = followed.keys().filter(|id| !now.contains_key(*id)).cloned().collect();
        for cluster in gone {
            if let Some((_, task)) = followed.remove(&cluster) {
                task.abort();
            }
            reviewers.forget(&cluster);
            info!(%cluster, "no Secret names this cluster any more");
            if events.send(RemoteEvent { cluster, what: What::Gone }).await.is_err() {
                return;
            }
        }
        for (cluster, source) in now {
            if followed.get(&cluster).is_some_and(|(known, _)| *known == source) {
                continue;
            }
            if let Some((_, task)) = followed.remove(&cluster) {
                task.abort();
            }
            reviewers.forget(&cluster);
            let follow =
                follow(root.clone(), own.clone(), reviewers.clone(), cluster.clone(), source.clone(), events.clone());
            followed.insert(cluster, (source, running.spawn(follow)));
        }
        tokio::select! {
            () = drain.graceful() => return,
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            Some(_) = running.join_next() => {}
        }
    }
}

/// One cluster, until the task is ended.
async fn follow(
    root: Arc<str>,
    own: Option<kube::Client>,
    reviewers: Reviewers,
    cluster: ClusterId,
    source: Source,
    events: mpsc::Sender<RemoteEvent>,
) {
    let tell = |what: What| {
        let event = RemoteEvent { cluster: cluster.clone(), what };
        async { events.send(event).await.is_ok() }
    };
    if !tell(What::Begun).await {
        return;
    }
    let client = match kubeconfig::client(&source.kubeconfig).await {
        Ok(client) => client,
        Err(reason) => {
            warn!(%cluster, secret = &*source.secret, reason, "the cluster is not followed");
            let problem = finding(&root, &source.secret, &cluster, reason.clone());
            tell(What::Refused(problem)).await;
            record(own, &root, &source.secret, format!("cluster {cluster}: {reason}")).await;
            return;
        }
    };
    info!(%cluster, secret = &*source.secret, "following another cluster");
    reviewers.learn(&cluster, client.clone());
    let (sender, mut changes) = mpsc::channel(64);
    let watches = join_all(REMOTE_KINDS.map(|kind| watch_kind(client.clone(), kind.info(), sender.clone())));
    drop(sender);
    let forward = async {
        while let Some(change) = changes.recv().await {
            if !tell(What::Changed(change)).await {
                return;
            }
        }
    };
    tokio::select! { _ = watches => {}, () = forward => {} }
}

/// Tells of it on the Secret, where people look who wrote it.
async fn record(own: Option<kube::Client>, root: &str, secret: &str, note: String) {
    let Some(client) = own else { return };
    let now = Some(Time(k8s_openapi::jiff::Timestamp::now()));
    let event = Event {
        metadata: ObjectMeta {
            // A dot at the end is no beginning of a name.
            generate_name: Some(format!("{secret}-")),
            ..Default::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            name: Some(secret.to_owned()),
            namespace: Some(root.to_owned()),
            ..Default::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some("RemoteClusterRefused".to_owned()),
        message: Some(note),
        source: Some(EventSource { component: Some("carrick".to_owned()), host: None }),
        first_timestamp: now.clone(),
        last_timestamp: now,
        count: Some(1),
        ..Default::default()
    };
    let events: Api<Event> = Api::namespaced(client, root);
    if let Err(error) = events.create(&PostParams::default(), &event).await {
        warn!(secret, %error, "no event could be written on the Secret");
    }
}
