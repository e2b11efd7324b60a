//! Folds changes into snapshots: waits until a burst is over, then hands everything known to the renderer.
//!
//! Invariant: one task owns all objects (single writer). A change reaches the renderer after at most [`Debounce::max`];
//! the first change after a quiet time does not wait for a whole quiet period; changes of endpoints alone and of policies for servers
//! alone take shorter ways that do not rebuild the rest. Nothing is published before every kind was listed once.

use crate::history::Published;
use crate::keys::Keys;
use crate::ledger;
use crate::mesh_settings::MeshSettings;
use crate::metrics::{ByType, ControlMetrics};
use crate::objects::{Known, identify};
use crate::quarantine::Board;
use crate::remote::{self, ClusterId, Remote, RemoteEvent, Remotes, What};
use crate::renderer::{Build, Parts, Renderer};
use crate::seen::Seen;
use crate::source::{Change, Event, KINDS, Kind, Name};
use carrick_api::MeshNetworks;
use carrick_api::timestamp::Timestamp;
use carrick_base::Diagnostic;
use carrick_mesh::gateway_api::GATEWAY_LABEL;
use carrick_mesh::{EndpointInput, FetchedKeys, SnapshotInput};
use carrick_runtime::drain::Drain;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

/// How long a snapshot waits for keys that were never tried to be fetched.
const KEYS_WAIT: Duration = Duration::from_secs(2);

/// When a burst of changes counts as over.
#[derive(Debug, Clone, Copy)]
pub struct Debounce {
    /// This long without a change.
    pub quiet: Duration,
    /// At the latest this long after the first.
    pub max: Duration,
    /// The quiet time for the first change after none were for `max`'s tenth, and for endpoints.
    pub eager: Duration,
    /// The longest wait of changes of endpoints alone.
    pub endpoints_max: Duration,
}

impl Default for Debounce {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(100),
            max: Duration::from_secs(10),
            eager: Duration::from_millis(10),
            endpoints_max: Duration::from_millis(100),
        }
    }
}

/// What a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Everything,
    Policies,
    Endpoints,
}

struct Pending {
    first: Instant,
    last: Instant,
    /// Something other than policies and endpoints changed.
    everything: bool,
    policies: bool,
    endpoints: bool,
    /// No change came for a while before the first.
    after_quiet: bool,
}

/// The task.
pub(crate) struct Fold {
    pub(crate) keys: Keys,
    pub(crate) remotes: Remotes,
    pub(crate) quarantine: Arc<Board>,
    /// What the own cluster is called.
    pub(crate) cluster_id: ClusterId,
    pub(crate) mesh_networks: MeshNetworks,
    pub(crate) mesh: MeshSettings,
    pub(crate) debounce: Debounce,
    pub(crate) renderer: Arc<Renderer>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) metrics: ControlMetrics,
    /// Told true when everything was listed.
    pub(crate) synced: watch::Sender<bool>,
}

impl Pending {
    fn of(extent: Extent, now: Instant, after_quiet: bool) -> Self {
        let new = Self { first: now, last: now, everything: false, policies: false, endpoints: false, after_quiet };
        new.and(extent)
    }

    fn and(mut self, extent: Extent) -> Self {
        match extent {
            Extent::Everything => self.everything = true,
            Extent::Policies => self.policies = true,
            Extent::Endpoints => self.endpoints = true,
        }
        self
    }
}

struct State {
    known: Known,
    listed: BTreeSet<Kind>,
    revision: u64,
    resource_version: u64,
    sequence: u64,
    pending: Option<Pending>,
    last_publish: Option<Instant>,
    keys: FetchedKeys,
    secrets: remote::Secrets,
    remotes: BTreeMap<ClusterId, Remote>,
    /// Words of Secrets on other clusters that are not used.
    unusable: Vec<Diagnostic>,
}

impl Fold {
    /// Runs until drained or until nobody tells of changes any more.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>, drain: Drain) {
        let mut state = State {
            known: Known::default(),
            listed: BTreeSet::new(),
            revision: 0,
            resource_version: 0,
            sequence: 0,
            pending: None,
            last_publish: None,
            keys: FetchedKeys::new(),
            secrets: remote::Secrets::default(),
            remotes: BTreeMap::new(),
            unusable: Vec::new(),
        };
        loop {
            // Half a configuration would close what is meant to be open, and open what is meant to be closed.
            let complete = state.listed.len() == KINDS.len();
            let due = state.pending.as_ref().filter(|_| complete).map(|pending| self.due(&state, pending));
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = drain.graceful() => return,
                event = events.recv() => match event {
                    Some(event) => self.take(&mut state, event),
                    None => {
                        self.publish(&mut state);
                        drain.graceful().await;
                        return;
                    }
                },
                () = timer => self.publish(&mut state),
                () = self.keys.changed() => self.take_keys(&mut state),
                event = self.remotes.next() => self.take_remote(&mut state, event),
                () = self.mesh.file_changed() => if self.mesh.take_file() {
                    Self::reconsider(&mut state);
                },
            }
        }
    }

    /// Other keys are a change like one of an object; a source that was tried in vain only ends the wait for it.
    fn take_keys(&mut self, state: &mut State) {
        let keys = self.keys.now();
        if state.keys == keys {
            return;
        }
        state.keys = keys;
        Self::reconsider(state);
    }

    /// Everything is to be derived anew, though no object changed.
    fn reconsider(state: &mut State) {
        let pending = state.pending.take().unwrap_or_else(|| Pending::of(Extent::Everything, Instant::now(), true));
        state.pending = Some(pending.and(Extent::Everything));
    }

    /// What another cluster holds is taken over like what the own one does, but waits for nothing of the own.
    fn take_remote(&self, state: &mut State, RemoteEvent { cluster, what }: RemoteEvent) {
        let gone = matches!(what, What::Gone);
        let endpoints = state.remotes.entry(cluster.clone()).or_default().take(what);
        if gone {
            state.remotes.remove(&cluster);
        }
        self.seen.lock().clusters = self.remotes.shown(&state.remotes);
        self.quarantine.set_others(!state.remotes.is_empty());
        let Some(endpoints) = endpoints else { return };
        state.revision = state.revision.wrapping_add(1);
        self.seen.lock().revision = state.revision;
        self.pend(state, if endpoints { Extent::Endpoints } else { Extent::Everything });
    }

    fn due(&self, state: &State, pending: &Pending) -> Instant {
        let mut due = self.due_by_age(pending);
        // Without its keys an issuer's tokens are refused, also those that were good under the last snapshot.
        if self.keys.outstanding() {
            due = due.max(pending.first + KEYS_WAIT);
        }
        // Proxies that the last process told of other clusters' endpoints keep them until this one knows them too.
        if state.sequence == 0 && self.remotes.outstanding(&state.remotes) {
            due = due.max(pending.first + remote::WAIT);
        }
        due
    }

    fn due_by_age(&self, pending: &Pending) -> Instant {
        let (quiet, max) = if !pending.everything && !pending.policies {
            (self.debounce.eager, self.debounce.endpoints_max)
        } else if pending.after_quiet && pending.last == pending.first {
            (self.debounce.eager, self.debounce.max)
        } else {
            (self.debounce.quiet, self.debounce.max)
        };
        (pending.last + quiet).min(pending.first + max)
    }

    fn take(&mut self, state: &mut State, event: Event) {
        let now = Instant::now();
        let kind = event.kind;
        let replaced = matches!(event.change, Change::Replace(_));
        self.metrics.events.get_or_create(&ByType { r#type: kind.info().name.to_owned() }).inc();
        let touched = touched(&event.change);
        let extent = match kind.info().endpoints {
            true if !is_gateway(&event.change) => Extent::Endpoints,
            _ if kind.is_policy() => Extent::Policies,
            _ => Extent::Everything,
        };
        let tracked = ledger::carries(kind).then(|| event.change.clone());
        if kind == Kind::Secret && state.secrets.take(&self.mesh.current().root_namespace, &event.change) {
            let (wanted, unusable) = state.secrets.wanted(&self.mesh.current().root_namespace, &self.cluster_id);
            self.remotes.want(wanted);
            if state.unusable != unusable {
                state.unusable = unusable;
                self.pend(state, Extent::Everything);
            }
            self.seen.lock().clusters = self.remotes.shown(&state.remotes);
        }
        if kind == Kind::ConfigMap && self.mesh.take_maps(&event.change) {
            Self::reconsider(state);
        }
        if kind == Kind::ConfigMap {
            let root = self.mesh.current().root_namespace.clone();
            // Told to proxies at once; what Envoys need besides goes the way of all configuration.
            if self.quarantine.take_maps(&root, &event.change) {
                self.renderer.bar(self.quarantine.barrier(&root));
                Self::reconsider(state);
            }
        }
        let outcome = state.known.take(kind, event.change);
        for ((namespace, name), reason) in &outcome.broken {
            warn!(kind = kind.info().name, namespace, name, reason, "object cannot be read and is left out");
        }
        if matches!(kind, Kind::RequestAuthentication | Kind::LegacyPolicy | Kind::LegacyMeshPolicy) {
            self.keys.want(state.known.key_sources());
        }
        state.resource_version = state.resource_version.max(outcome.version);
        let listed_now = replaced && state.listed.insert(kind);
        let changed = outcome.changed || listed_now;
        if changed {
            state.revision = state.revision.wrapping_add(1);
        }
        {
            let mut seen = self.seen.lock();
            seen.revision = state.revision;
            seen.history.saw(outcome.version, state.revision, now);
            if let Some(change) = &tracked {
                seen.ledger.take(kind, change, state.revision, &outcome.broken);
            }
            let versions = state.known.versions(kind);
            match (touched, versions) {
                (Some(name), Some(versions)) => {
                    let table = seen.versions.entry(kind).or_default();
                    match versions.get(&name) {
                        Some(version) => table.insert(name, *version),
                        None => table.remove(&name),
                    };
                }
                (None, Some(versions)) => {
                    seen.versions.insert(kind, versions.clone());
                }
                (_, None) => {}
            }
        }
        if !changed {
            return;
        }
        self.pend(state, extent);
        if listed_now && state.listed.len() == KINDS.len() {
            info!(services = state.known.service_count(), "all kinds are listed");
            if !self.keys.outstanding() && !self.remotes.outstanding(&state.remotes) {
                self.publish(state);
            }
        }
    }

    /// Something is to be published.
    fn pend(&self, state: &mut State, extent: Extent) {
        let now = Instant::now();
        state.pending = Some(match state.pending.take() {
            Some(pending) => Pending { last: now, ..pending.and(extent) },
            None => {
                let after_quiet =
                    state.last_publish.is_none_or(|last| now.duration_since(last) > self.debounce.max / 10);
                Pending::of(extent, now, after_quiet)
            }
        });
    }

    /// Everything, of all clusters that were listed.
    fn input(&self, state: &State) -> SnapshotInput {
        let mut input = state.known.input(&self.mesh.current(), state.keys.clone());
        input.mesh_networks = self.mesh_networks.clone();
        input.cluster_id = self.cluster_id.clone();
        input.remotes = listed(state).map(|(id, remote)| remote.known.remote(id)).collect();
        input.endpoints = self.endpoints(state);
        input.findings = state.unusable.clone();
        input.findings.extend(state.remotes.values().filter_map(|r| r.problem.clone()));
        input
    }

    fn endpoints(&self, state: &State) -> EndpointInput {
        let mut endpoints = state.known.endpoints(&self.mesh.current());
        endpoints.remotes = listed(state).map(|(id, remote)| remote.known.remote_endpoints(id)).collect();
        endpoints
    }

    fn publish(&self, state: &mut State) {
        if state.listed.len() < KINDS.len() {
            return;
        }
        let Some(pending) = state.pending.take() else { return };
        state.sequence = state.sequence.wrapping_add(1);
        let time = SystemTime::now();
        let published = Published {
            sequence: state.sequence,
            version: Arc::from(format!("{}/{}", Timestamp::from_system(time), state.sequence)),
            revision: state.revision,
            resource_version: state.resource_version,
            first_event: pending.first,
            time,
        };
        self.metrics.services.set(i64::try_from(state.known.service_count()).unwrap_or(i64::MAX));
        let build = if pending.everything || state.sequence == 1 {
            Build::Everything(Box::new(self.input(state)), published.clone())
        } else {
            let endpoints = pending.endpoints.then(|| self.endpoints(state));
            let policies = pending.policies.then(|| state.known.policies());
            Build::Parts(Parts { endpoints, policies }, published.clone())
        };
        self.seen.lock().history.published(published);
        self.renderer.build(build);
        state.last_publish = Some(Instant::now());
        self.synced.send_replace(true);
    }
}

/// Clusters of which everything was listed once.
fn listed(state: &State) -> impl Iterator<Item = (&ClusterId, &Remote)> {
    state.remotes.iter().filter(|(_, remote)| remote.complete())
}

/// The one object a change is about; `None` for a list.
fn touched(change: &Change) -> Option<Name> {
    match change {
        Change::Apply(value) | Change::Delete(value) => Some(identify(value).0),
        Change::Replace(_) => None,
    }
}

/// Whether the change is of a gateway's pod: what is said of the Gateway API's gateways depends on those.
fn is_gateway(change: &Change) -> bool {
    let labelled = |value: &Value| {
        let labels = value.pointer("/metadata/labels");
        let containers = value.pointer("/spec/containers").and_then(Value::as_array).map(Vec::as_slice);
        let nothing_else = matches!(containers, Some([only]) if only.get("name").is_some_and(|n| n == "istio-proxy"));
        nothing_else || labels.is_some_and(|l| l.get(GATEWAY_LABEL).is_some() || l.get("istio").is_some())
    };
    match change {
        Change::Apply(value) | Change::Delete(value) => labelled(value),
        Change::Replace(_) => true,
    }
}
