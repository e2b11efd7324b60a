//! Writes on every Istio object what became of it: accepted or why not, and applied to how many of the proxies it concerns.
//!
//! Invariant: a status is written only when it says something new, at most [`WRITES_AT_ONCE`] at a time, after a burst is over; conditions
//! of other writers are kept. What a status says is decided in `decide`, from facts alone; this file only listens and writes.

mod decide;
mod deploy;
mod gateway;

use crate::connections::Connections;
use crate::ledger::{self, Key, Object};
use crate::renderer::Renderer;
use crate::seen::Seen;
use crate::source::Kind;
use crate::source::kube::api;
use carrick_api::timestamp::Timestamp;
use carrick_base::{Diagnostic, ObjectRef};
use carrick_runtime::drain::Drain;
use decide::{Condition, Proxies, Proxy, Verdict};
pub(crate) use deploy::Deploying;
use futures_util::StreamExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

/// Patches under way at the same time.
const WRITES_AT_ONCE: usize = 4;
/// A burst of acknowledgements is over after this long without one.
const QUIET: Duration = Duration::from_millis(200);
/// Statuses are at most this late during a burst that does not end.
const LATEST: Duration = Duration::from_secs(2);
/// How long one patch may take.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// After this long statuses are looked at even if nothing was heard; it retries what could not be written.
const REST: Duration = Duration::from_secs(30);

/// The task.
#[derive(Clone)]
pub(crate) struct Statuses {
    pub(crate) client: kube::Client,
    pub(crate) seen: Arc<Seen>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) renderer: Arc<Renderer>,
    /// How gateways get pods too: in a cluster, where somebody runs them.
    pub(crate) deploying: Option<Deploying>,
}

impl Statuses {
    /// Writes statuses until drained.
    pub(crate) async fn run(self, drain: Drain) {
        // What was written last, until the watch tells of it.
        let mut written: BTreeMap<Key, Vec<Condition>> = BTreeMap::new();
        let mut news = self.news();
        while news.settled(&drain).await {
            self.write(&mut written).await;
            self.write_gateway_api().await;
        }
    }

    /// Makes what gateways need until drained.
    pub(crate) async fn run_gateways(self, drain: Drain) {
        let mut deployed = deploy::Deployed::default();
        let mut news = self.news();
        while news.settled(&drain).await {
            self.deploy(&mut deployed).await;
        }
    }

    fn news(&self) -> News {
        News { acks: self.connections.subscribe(), objects: self.seen.lock().ledger.subscribe(), begun: false }
    }

    async fn write(&self, written: &mut BTreeMap<Key, Vec<Condition>>) {
        let Some(due) = self.due(written) else { return };
        let writes = due.into_iter().map(|(key, object, wanted)| async move {
            let mut patch = status(&object, &wanted);
            // Others write conditions of these too: what is not as it was seen is seen again first.
            if key.0 == Kind::WorkloadEntry
                && let Some(version) = self.seen.lock().versions.get(&key.0).and_then(|all| all.get(&key.1))
                && let Some(fields) = patch.as_object_mut()
            {
                fields.insert("metadata".to_owned(), json!({ "resourceVersion": version.to_string() }));
            }
            let done = self.patch(&key, patch).await;
            (key, wanted, done)
        });
        let mut writes = futures_util::stream::iter(writes).buffer_unordered(WRITES_AT_ONCE);
        while let Some((key, wanted, done)) = writes.next().await {
            if done {
                written.insert(key, wanted);
            }
        }
    }

    /// The statuses of the Gateway API's objects, which the snapshot brings along.
    async fn write_gateway_api(&self) {
        let Some(current) = self.renderer.current() else { return };
        let now = Timestamp::from_system(SystemTime::now()).to_string();
        let due: Vec<(Key, Value)> = {
            let seen = self.seen.lock();
            let all = current.snapshot.gateway_api_statuses().iter();
            all.filter_map(|(reference, wanted)| {
                let key = gateway::key(reference)?;
                let object = seen.ledger.get(&key)?;
                let status = gateway::news(wanted, object.status.as_ref()?, &now)?;
                Some((key, status))
            })
            .collect()
        };
        let writes =
            due.into_iter().map(|(key, status)| async move { self.patch(&key, json!({ "status": status })).await });
        futures_util::stream::iter(writes).buffer_unordered(WRITES_AT_ONCE).for_each(|_| async {}).await;
    }

    /// The objects whose status is to say something else.
    fn due(&self, written: &mut BTreeMap<Key, Vec<Condition>>) -> Option<Vec<(Key, Object, Vec<Condition>)>> {
        let current = self.renderer.current()?;
        let mut proxies = Vec::new();
        self.connections.each(|connection| proxies.push(Proxy::of(connection, &current.snapshot)));
        let root = &current.snapshot.settings().root_namespace;
        let proxies = Proxies::of(proxies);
        let refusals = self.renderer.refusals();
        // By object, so that each object looks at its own alone.
        let mut findings: HashMap<_, Vec<&Diagnostic>> = HashMap::new();
        for finding in current.diagnostics.iter() {
            findings.entry(place(&finding.object)).or_default().push(finding);
        }
        let mut denied: HashMap<_, HashMap<&str, &str>> = HashMap::new();
        for (proxy, finding) in refusals.iter() {
            denied.entry(place(&finding.object)).or_default().entry(proxy).or_insert(&finding.reason);
        }
        let nobody = HashMap::new();
        let seen = self.seen.lock();
        written.retain(|key, _| seen.ledger.get(key).is_some());
        let mut due = Vec::new();
        for (key, object) in seen.ledger.all().filter(|(key, _)| !ledger::is_gateway_api(key.0)) {
            let Some(since) = seen.history.containing(object.revision).map(|s| s.sequence) else { continue };
            if since > current.published.sequence {
                continue;
            }
            let place = (key.0.info().name, &*key.1.0, &*key.1.1);
            let findings = findings.get(&place).into_iter().flatten().copied();
            let denied = denied.get(&place).unwrap_or(&nobody);
            let verdict = Verdict::of(key.0, object, &key.1, root, since, findings, &proxies, denied);
            let wanted = verdict.conditions(object.generation);
            let there = Condition::ours(&object.conditions);
            let known = match written.get(key) {
                Some(written) if !decide::same(&there, written) => written,
                _ => &there,
            };
            if !decide::same(known, &wanted) {
                due.push((key.clone(), object.clone(), wanted));
            }
        }
        Some(due)
    }

    /// Whether it was written, or cannot be any more.
    async fn patch(&self, key: &Key, patch: Value) -> bool {
        let (namespace, name) = &key.1;
        let info = key.0.info();
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        for version in info.versions {
            let api = api(&self.client, info, version, (!namespace.is_empty()).then_some(namespace));
            match timeout(WRITE_LIMIT, api.patch_status(name, &params, &patch)).await {
                Ok(Ok(_)) => return true,
                // It is gone, or this API has no such version or subresource.
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
                Ok(Err(error)) => {
                    debug!(kind = info.name, namespace, name, %error, "status not written; it is tried again");
                    return false;
                }
                Err(_) => {
                    let kind = info.name;
                    warn!(kind, namespace, name, "the API does not take a status in time; it is tried again");
                    return false;
                }
            }
        }
        true
    }
}

/// What gives reason to look again: acknowledgements, and objects.
struct News {
    acks: watch::Receiver<u64>,
    objects: watch::Receiver<()>,
    /// Whether it was looked once: who begins to lead does not wait for news.
    begun: bool,
}

impl News {
    /// Waits for some, and until a burst is over; false when there is nothing more to wait for.
    async fn settled(&mut self, drain: &Drain) -> bool {
        if std::mem::replace(&mut self.begun, true) {
            tokio::select! {
                () = drain.graceful() => return false,
                changed = self.acks.changed() => if changed.is_err() { return false },
                changed = self.objects.changed() => if changed.is_err() { return false },
                () = tokio::time::sleep(REST) => {}
            }
        }
        let latest = Instant::now() + LATEST;
        loop {
            let quiet = (Instant::now() + QUIET).min(latest);
            tokio::select! {
                () = drain.graceful() => return false,
                _ = self.acks.changed() => {}
                _ = self.objects.changed() => {}
                () = sleep_until(quiet) => return true,
            }
            if Instant::now() >= latest {
                return true;
            }
        }
    }
}

/// Kind, namespace and name.
fn place(object: &ObjectRef) -> (&str, &str, &str) {
    (&object.kind, &object.name.namespace, &object.name.name)
}

/// A status of conditions, with those of others kept.
fn status(object: &Object, wanted: &[Condition]) -> Value {
    let now = Timestamp::from_system(SystemTime::now()).to_string();
    let before = Condition::ours(&object.conditions);
    let ours = wanted.iter().map(|condition| condition.json(&before, &now));
    let foreign = object.conditions.iter().filter(|c| !Condition::is_ours(c)).cloned();
    let conditions: Vec<Value> = foreign.chain(ours).collect();
    json!({"status": {"conditions": conditions, "observedGeneration": object.generation}})
}
