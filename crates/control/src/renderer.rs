//! Builds snapshots and renders them for every connected proxy, on a thread of its own.
//!
//! Invariant: the newest build wins, older ones that were not started are merged into it; a proxy whose view did not
//! change is told the new generation and nothing else; a panic while one proxy is rendered costs that proxy's update
//! only. Sessions, diffing and encoding are not done here, so that both cores work during a push.

use crate::history::Published;
use crate::metrics::ControlMetrics;
use arc_swap::{ArcSwap, ArcSwapOption};
use carrick_api::EnvoyFilter;
use carrick_base::Diagnostic;
use carrick_envoy_filter::{Finding, Memo, Target};
use carrick_mesh::view::HostName;
use carrick_mesh::{Concerned, EndpointInput, PolicyInput, ProxyNode, Snapshot, SnapshotInput, View, Views};
use carrick_render::{Cache, Rendered, Resources};
use carrick_xds::name_table::{NameInfo, NameTable};
use carrick_xds::{Changes, Resource, ResourceSet, TypeMap, TypeUrl};
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;
use tokio::sync::watch;
use tracing::{debug, error, warn};

/// What to build next.
pub(crate) enum Build {
    /// From all objects.
    Everything(Box<SnapshotInput>, Published),
    /// The rest stays as it is.
    Parts(Parts, Published),
}

/// What is other than before; the rest stays as it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parts {
    /// Endpoints and pods.
    pub(crate) endpoints: Option<EndpointInput>,
    /// Policies for servers.
    pub(crate) policies: Option<PolicyInput>,
}

impl Parts {
    /// These, and what is in `older` alone.
    fn after(self, older: Self) -> Self {
        Self { endpoints: self.endpoints.or(older.endpoints), policies: self.policies.or(older.policies) }
    }

    fn put_into(self, input: &mut SnapshotInput) {
        if let Some(endpoints) = self.endpoints {
            input.endpoints = endpoints;
        }
        if let Some(policies) = self.policies {
            input.set_policies(policies);
        }
    }
}

/// A proxy that connected.
pub(crate) struct Join {
    /// The connection's number.
    pub(crate) id: u64,
    /// Who it is.
    pub(crate) node: ProxyNode,
    /// How EnvoyFilters match it.
    pub(crate) target: Target,
    /// It is a gRPC library, not a proxy.
    pub(crate) grpc: bool,
    /// Where its resources go.
    pub(crate) sets: watch::Sender<ResourceSet>,
}

/// Objects that a proxy's configuration was made without: the proxy as `name.namespace`, the object, the reason.
pub(crate) type Refusals = Vec<(String, Finding)>;

/// What is in force.
#[derive(Debug)]
pub(crate) struct Current {
    /// All objects, read.
    pub(crate) snapshot: Snapshot,
    /// Its number and times.
    pub(crate) published: Published,
    /// What is wrong in the objects.
    pub(crate) diagnostics: Arc<Vec<Diagnostic>>,
}

impl Current {
    /// What follows when parts are others.
    fn with(&self, parts: &Parts, published: Published) -> Self {
        let mut snapshot = self.snapshot.clone();
        if let Some(endpoints) = &parts.endpoints {
            snapshot = snapshot.with_endpoints(endpoints);
        }
        let mut diagnostics = self.diagnostics.clone();
        if let Some(policies) = &parts.policies {
            snapshot = snapshot.with_policies(policies);
            diagnostics = Arc::new(snapshot.diagnostics());
        }
        Self { snapshot, published, diagnostics }
    }
}

#[derive(Default)]
struct Inbox {
    build: Option<Build>,
    joins: Vec<Join>,
    leaves: Vec<u64>,
    stop: bool,
}

/// The inbox of the rendering thread, and what it made last.
pub(crate) struct Renderer {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    current: ArcSwapOption<Current>,
    refusals: ArcSwap<Refusals>,
    /// The last filter of every Envoy.
    barrier: ArcSwapOption<EnvoyFilter>,
    published: watch::Sender<u64>,
    metrics: ControlMetrics,
}

/// Rounds after which everything is rendered anew once, so that the caches can forget what nobody has any more.
const SWEEP_ROUNDS: u32 = 256;

impl Renderer {
    pub(crate) fn new(metrics: ControlMetrics) -> Arc<Self> {
        Arc::new(Self {
            inbox: Mutex::default(),
            wake: Condvar::new(),
            current: ArcSwapOption::empty(),
            refusals: ArcSwap::default(),
            barrier: ArcSwapOption::empty(),
            published: watch::Sender::new(0),
            metrics,
        })
    }

    /// What is in force; `None` before the first snapshot.
    pub(crate) fn current(&self) -> Option<Arc<Current>> {
        self.current.load_full()
    }

    /// Changes with every snapshot that comes into force; its number.
    pub(crate) fn published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// Objects that proxies' configurations were made without.
    pub(crate) fn refusals(&self) -> Arc<Refusals> {
        self.refusals.load_full()
    }

    /// What the next build puts before every inbound chain of every Envoy.
    pub(crate) fn bar(&self, barrier: Option<Arc<EnvoyFilter>>) {
        self.barrier.store(barrier);
    }

    /// Hands over what to build; merges with what was not started yet.
    pub(crate) fn build(&self, build: Build) {
        let mut inbox = self.lock();
        inbox.build = Some(match (inbox.build.take(), build) {
            (Some(Build::Everything(mut input, _)), Build::Parts(parts, published)) => {
                parts.put_into(&mut input);
                Build::Everything(input, published)
            }
            (Some(Build::Parts(older, _)), Build::Parts(parts, published)) => {
                Build::Parts(parts.after(older), published)
            }
            (_, build) => build,
        });
        self.wake.notify_one();
    }

    /// A proxy connected.
    pub(crate) fn join(&self, join: Join) {
        self.lock().joins.push(join);
        self.wake.notify_one();
    }

    /// A proxy is gone.
    pub(crate) fn leave(&self, id: u64) {
        self.lock().leaves.push(id);
        self.wake.notify_one();
    }

    /// Ends the thread after what it is doing.
    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn next(&self) -> Inbox {
        let mut inbox = self.lock();
        while !inbox.stop && inbox.build.is_none() && inbox.joins.is_empty() && inbox.leaves.is_empty() {
            inbox = self.wake.wait(inbox).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        std::mem::take(&mut inbox)
    }

    /// The thread's whole life.
    pub(crate) fn run(&self) {
        let mut work = Work::default();
        loop {
            let inbox = self.next();
            if inbox.stop {
                return;
            }
            for join in inbox.joins {
                work.proxies.insert(
                    join.id,
                    Proxy {
                        node: join.node,
                        target: join.target,
                        grpc: join.grpc,
                        sets: join.sets,
                        last: None,
                        findings: Vec::new(),
                        undone: Vec::new(),
                    },
                );
            }
            for id in inbox.leaves {
                work.proxies.remove(&id);
            }
            let start = Instant::now();
            let built = inbox.build.and_then(|build| self.advance(build, &mut work.undone));
            let Some(current) = self.current() else { continue };
            work.barrier = self.barrier.load_full();
            work.round(&current, built.is_some());
            self.refusals.store(Arc::new(work.refusals()));
            if built.is_some() {
                self.metrics.render.observe(start.elapsed().as_secs_f64());
                debug!(sequence = current.published.sequence, proxies = work.proxies.len(), took = ?start.elapsed(), "pushed");
            }
        }
    }

    /// `undone`: parts that could not be built; they are tried again with what comes next.
    fn advance(&self, build: Build, undone: &mut Parts) -> Option<()> {
        let older = std::mem::take(undone);
        let build = match build {
            Build::Parts(parts, published) => Build::Parts(parts.after(older), published),
            everything => everything,
        };
        let built = catch_unwind(AssertUnwindSafe(|| match &build {
            Build::Everything(input, published) => {
                let (snapshot, diagnostics) = Snapshot::build(input);
                for d in &diagnostics {
                    debug!(code = d.code, object = %d.object.name, field = d.field.as_str(), message = d.message, "finding");
                }
                Some(Current { snapshot, published: published.clone(), diagnostics: Arc::new(diagnostics) })
            }
            Build::Parts(parts, published) => self.current().map(|current| current.with(parts, published.clone())),
        }));
        match built {
            Ok(Some(current)) => {
                let sequence = current.published.sequence;
                self.current.store(Some(Arc::new(current)));
                self.published.send_replace(sequence);
                Some(())
            }
            Ok(None) => {
                warn!("parts came before anything else");
                None
            }
            Err(_) => {
                error!("building the snapshot panicked; the last one stays in force");
                *undone = match build {
                    Build::Everything(input, _) => {
                        Parts { policies: Some(input.policies()), endpoints: Some(input.endpoints) }
                    }
                    Build::Parts(parts, _) => parts,
                };
                None
            }
        }
    }
}

struct Proxy {
    node: ProxyNode,
    target: Target,
    grpc: bool,
    sets: watch::Sender<ResourceSet>,
    last: Option<(View, Vec<Arc<EnvoyFilter>>)>,
    findings: Vec<Finding>,
    /// Of objects that change nothing in the view, because the engine cannot do what they ask for.
    undone: Vec<Finding>,
}

#[derive(Default)]
struct Work {
    proxies: BTreeMap<u64, Proxy>,
    views: Option<Views>,
    cache: Cache,
    memo: Memo,
    shared: Shared,
    barrier: Option<Arc<EnvoyFilter>>,
    rounds: u32,
    /// The barrier that everybody has.
    barred: Option<Arc<EnvoyFilter>>,
    undone: Parts,
}

impl Work {
    /// All proxies after a build, else those that have nothing yet.
    fn round(&mut self, current: &Current, all: bool) {
        let mut concerned = Concerned::All;
        let views = match &mut self.views {
            Some(views) => {
                if all {
                    concerned = views.update(current.snapshot.clone());
                }
                views
            }
            None => self.views.insert(Views::new(current.snapshot.clone())),
        };
        // What all Envoys get before every chain is no object's.
        if self.barred != self.barrier {
            (self.barred, concerned) = (self.barrier.clone(), Concerned::All);
        }
        self.rounds = if all { self.rounds.wrapping_add(1) } else { self.rounds };
        let sweep = all && self.rounds.is_multiple_of(SWEEP_ROUNDS);
        let mut rendered_all = all;
        let mut panicked = false;
        for (id, proxy) in &mut self.proxies {
            if !all && proxy.last.is_some() {
                continue;
            }
            if !sweep && proxy.last.is_some() && !concerned.is(&proxy.node) {
                rendered_all = false;
                let published = &current.published;
                proxy.sets.send_modify(|set| *set = set.at(published.sequence, published.version.clone()));
                continue;
            }
            let (cache, memo, shared) = (&mut self.cache, &mut self.memo, &mut self.shared);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let node = effective(&current.snapshot, &proxy.node);
                let mut filters = filters_of(&current.snapshot, &node);
                filters.extend(self.barrier.clone().filter(|_| !proxy.target.native && !proxy.grpc));
                let now = (views.of(&node), filters);
                proxy.undone = if proxy.target.native { untraced(&current.snapshot, &node) } else { Vec::new() };
                if !sweep && proxy.last.as_ref() == Some(&now) {
                    return (None, now);
                }
                let rendered = carrick_render::resources(&now.0, cache);
                let patched = match now.1.is_empty() {
                    // EnvoyFilters are for proxies.
                    _ if proxy.grpc => (carrick_render::grpc::resources(&rendered), Vec::new()),
                    true => (rendered, Vec::new()),
                    false => carrick_envoy_filter::apply(&rendered, &now.1, &proxy.target, memo),
                };
                let before = proxy.sets.borrow().clone();
                (Some((shared.set(patched.0, now.0.names.as_deref(), current, &before), patched.1)), now)
            }));
            match outcome {
                Ok((Some((set, findings)), now)) => {
                    proxy.sets.send_replace(set);
                    proxy.last = Some(now);
                    proxy.findings = findings;
                }
                Ok((None, now)) => {
                    rendered_all = false;
                    let published = &current.published;
                    proxy.sets.send_modify(|set| *set = set.at(published.sequence, published.version.clone()));
                    // The newer of two equal views: its parts are the ones the next comparison finds quickly.
                    proxy.last = Some(now);
                }
                Err(_) => {
                    error!(id, node = %proxy.node.id, "rendering panicked; the proxy keeps what it has");
                    panicked = true;
                }
            }
        }
        self.shared.steps = HashMap::new();
        if panicked {
            // Whatever was half done when it panicked is not to be trusted.
            self.views = None;
            self.cache = Cache::default();
            self.memo = Memo::default();
            self.shared = Shared::default();
        } else if rendered_all {
            // Only when everybody was rendered do the caches know what is still in use.
            self.cache.sweep();
            self.memo.sweep();
            self.shared.sweep();
        }
    }

    /// What all proxies' configurations were made without.
    fn refusals(&self) -> Refusals {
        let of = |proxy: &Proxy| {
            let name = format!("{}.{}", proxy.node.name, proxy.node.namespace);
            proxy.findings.iter().chain(&proxy.undone).map(move |f| (name.clone(), f.clone())).collect::<Vec<_>>()
        };
        self.proxies.values().flat_map(of).collect()
    }
}

/// The EnvoyFilters of a proxy, by the labels of its pod.
fn filters_of(snapshot: &Snapshot, node: &ProxyNode) -> Vec<Arc<EnvoyFilter>> {
    let known = snapshot.workload_of(node);
    snapshot.envoy_filters().of(&node.namespace, known.map_or(&node.labels, |w| &w.labels))
}

/// Telemetries that ask for spans which the native engine does not make.
fn untraced(snapshot: &Snapshot, node: &ProxyNode) -> Vec<Finding> {
    let known = snapshot.workload_of(node);
    let labels = known.map_or(&node.labels, |w| &w.labels);
    let reason = "the native engine tells OpenTelemetry collectors alone; nothing is traced here";
    let all = snapshot.telemetry().beyond_native(&node.namespace, labels);
    all.into_iter().map(|object| Finding { object, reason: reason.to_owned() }).collect()
}

/// The labels that count are those of the pod the API knows; the node's own are for workloads it does not know.
fn effective(snapshot: &Snapshot, node: &ProxyNode) -> ProxyNode {
    let mut node = node.clone();
    if snapshot.workload_of(&node).is_some() {
        node.labels.clear();
    }
    node
}

/// Names as Istio's agents are told them.
fn name_table(names: &BTreeMap<Arc<str>, HostName>) -> NameTable {
    let info = |name: &HostName| {
        let (shortname, namespace) = name.kubernetes.clone().unwrap_or_default();
        NameInfo {
            ips: name.addresses.iter().map(ToString::to_string).collect(),
            registry: if name.kubernetes.is_some() { "Kubernetes" } else { "External" }.to_owned(),
            shortname: shortname.to_string(),
            namespace: namespace.to_string(),
        }
    };
    NameTable { table: names.iter().map(|(host, name)| (host.to_string(), info(name))).collect() }
}

/// Turns rendered resources into those of a session, one conversion for each distinct one.
#[derive(Default)]
struct Shared {
    maps: HashMap<usize, Converted<Resources, TypeMap>>,
    resources: HashMap<usize, Converted<carrick_render::Resource, Resource>>,
    /// Of the round that is under way.
    steps: HashMap<(usize, usize), Step>,
}

/// From one map to another. Both are kept alive: their addresses are the key.
struct Step {
    _ends: [Arc<TypeMap>; 2],
    changes: Changes,
}

/// A conversion, with the original kept alive: its address is the key.
struct Converted<A, B> {
    from: Arc<A>,
    to: Arc<B>,
    used: bool,
}

impl Shared {
    fn set(
        &mut self,
        rendered: Rendered,
        names: Option<&BTreeMap<Arc<str>, HostName>>,
        current: &Current,
        before: &ResourceSet,
    ) -> ResourceSet {
        let types = [
            (TypeUrl::Cluster, rendered.clusters),
            (TypeUrl::Endpoint, rendered.endpoints),
            (TypeUrl::Listener, rendered.listeners),
            (TypeUrl::Route, rendered.routes),
            (TypeUrl::Secret, rendered.secrets),
        ];
        let mut types: BTreeMap<TypeUrl, Arc<TypeMap>> =
            types.into_iter().map(|(t, resources)| (t, self.map(&resources))).collect();
        if let Some(names) = names {
            let resource = name_table(names).resource();
            types.insert(NameTable::type_url(), Arc::new([(resource.name.clone(), Arc::new(resource))].into()));
        }
        let since = types.iter().filter_map(|(type_url, now)| {
            let was = before.of(type_url).filter(|was| !Arc::ptr_eq(was, now))?;
            Some((type_url.clone(), self.between(was, now)))
        });
        let changes = since.collect();
        ResourceSet::new(current.published.sequence, current.published.version.clone(), types).knowing(changes)
    }

    /// What differs between two maps, found out once for all proxies that go from the one to the other.
    fn between(&mut self, was: &Arc<TypeMap>, now: &Arc<TypeMap>) -> Changes {
        let key = (Arc::as_ptr(was).addr(), Arc::as_ptr(now).addr());
        let known = self
            .steps
            .entry(key)
            .or_insert_with(|| Step { _ends: [was.clone(), now.clone()], changes: Changes::between(was, now) });
        known.changes.clone()
    }

    fn map(&mut self, from: &Arc<Resources>) -> Arc<TypeMap> {
        let key = Arc::as_ptr(from).addr();
        if let Some(known) = self.maps.get_mut(&key) {
            // Once for each sweep, not for each proxy.
            if !std::mem::replace(&mut known.used, true) {
                for resource in from.values() {
                    if let Some(known) = self.resources.get_mut(&Arc::as_ptr(resource).addr()) {
                        known.used = true;
                    }
                }
            }
            return known.to.clone();
        }
        let to: Arc<TypeMap> = Arc::new(from.iter().map(|(name, r)| (name.clone(), self.resource(r))).collect());
        self.maps.insert(key, Converted { from: from.clone(), to: to.clone(), used: true });
        to
    }

    fn resource(&mut self, from: &Arc<carrick_render::Resource>) -> Arc<Resource> {
        let converted = self.resources.entry(Arc::as_ptr(from).addr()).or_insert_with(|| Converted {
            from: from.clone(),
            to: Arc::new(Resource::with_version(from.name.clone(), from.version.clone(), from.body.clone())),
            used: true,
        });
        converted.used = true;
        converted.to.clone()
    }

    fn sweep(&mut self) {
        self.maps.retain(|_, c| std::mem::take(&mut c.used));
        self.resources.retain(|_, c| std::mem::take(&mut c.used));
        debug_assert!(self.maps.values().all(|c| Arc::strong_count(&c.from) > 0));
    }
}
