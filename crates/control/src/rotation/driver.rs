//! Does what the state says, asks what comes next, and writes that down first.
//!
//! Invariant: one task owns sets, roots and state. Whatever is in force can be read off the state; a step's effects are
//! repeated until they are there, so a failure (a full disk, a canary that is not trusted) stops the rotation and nothing else.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use carrick_certs::rotation::{Next, Rotation, World};
use carrick_pki::trust_service::Order;
use carrick_pki::{Authority, CaSet, SetTexts, TrustBundle};
use carrick_runtime::drain::Drain;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::command::{self, Command};
use super::plugged::{Found, Plugged};
use super::population::Known;
use super::slots::{Ended, Slots, SlotsError, Source, folder_source, of_source};
use super::{Population, RootText, RotationOptions, show};
use crate::connections::Connections;
use crate::metrics::ControlMetrics;
use crate::quarantine::{Board, has_lists_found};
use crate::roots::Published;
use crate::server_cert::ServerCert;

/// How often is looked while something is to be done.
const BUSY: Duration = Duration::from_millis(100);
/// How often otherwise: plugged-in sets are taken over within two of these.
const IDLE: Duration = Duration::from_millis(500);
/// How often the API is asked which pods there are, while somebody is away: during a rotation, and otherwise.
const PODS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// How often the known proxies are written down while nothing rotates.
const REMEMBER: Duration = Duration::from_secs(5);
/// Whose certificate ended this long ago is forgotten.
const FORGET: Duration = Duration::from_secs(3600);
/// Renewals asked for in a second.
const RENEWALS: u64 = 50;
/// The ConfigMap that holds the roots for those who read files.
const ROOT_MAP: &str = "istio-ca-root-cert";

/// A set that is there and not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) id: String,
    pub(super) source: String,
    pub(super) reason: String,
}

/// What went wrong last, as long as it lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) text: String,
    pub(super) since: SystemTime,
}

/// See the module.
pub(crate) struct Driver {
    pub(super) slots: Slots,
    pub(super) authority: Arc<Authority>,
    pub(super) population: Arc<Population>,
    pub(super) pending: Option<Pending>,
    pub(super) problem: Option<Problem>,
    pub(super) step_problem: Option<Problem>,
    /// Held up by these at the last look.
    pub(super) next: Option<Next>,
    published: watch::Sender<Published>,
    roots: watch::Sender<RootText>,
    lists: watch::Sender<RootText>,
    certificate: Arc<ServerCert>,
    quarantine: Arc<Board>,
    connections: Arc<Connections>,
    client: Option<kube::Client>,
    namespace: String,
    plugged: Plugged,
    socket: PathBuf,
    metrics: ControlMetrics,
    pods_asked: Option<Instant>,
    remembered: Option<Instant>,
    /// What was written down.
    known: Vec<Known>,
    /// The sets that were kept when the authority was told of them last.
    held: BTreeSet<String>,
}

/// What the driver is given besides its options.
pub(crate) struct Around {
    pub(crate) authority: Arc<Authority>,
    pub(crate) population: Arc<Population>,
    pub(crate) published: watch::Sender<Published>,
    pub(crate) certificate: Arc<ServerCert>,
    pub(crate) quarantine: Arc<Board>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) client: Option<kube::Client>,
    pub(crate) namespace: String,
    pub(crate) metrics: ControlMetrics,
}

impl Driver {
    pub(crate) fn new(options: RotationOptions, around: Around) -> Self {
        let RotationOptions { slots, roots, lists, socket } = options;
        let plugged =
            Plugged::new(slots.plugged.clone(), slots.tokens.clone(), around.client.clone(), &around.namespace);
        Self {
            slots,
            authority: around.authority,
            population: around.population,
            pending: None,
            problem: None,
            step_problem: None,
            next: None,
            published: around.published,
            roots,
            lists,
            certificate: around.certificate,
            quarantine: around.quarantine,
            connections: around.connections,
            client: around.client,
            namespace: around.namespace,
            plugged,
            socket,
            metrics: around.metrics,
            pods_asked: None,
            remembered: None,
            known: Vec::new(),
            held: BTreeSet::new(),
        }
    }

    /// Works until drained.
    pub(crate) async fn run(mut self, drain: Drain) {
        let (sender, mut commands) = mpsc::channel(16);
        let listening = command::listen(self.socket.clone(), sender);
        tokio::pin!(listening);
        let mut changed = self.population.subscribe();
        loop {
            self.round(SystemTime::now()).await;
            let pause = if self.slots.state.rotation.is_some() { BUSY } else { IDLE };
            tokio::select! {
                () = drain.graceful() => break,
                () = &mut listening => break,
                command = commands.recv() => if let Some(command) = command { self.answer(command) },
                () = tokio::time::sleep(pause) => {}
                // A burst of reports is looked at once.
                _ = changed.changed(), if self.slots.state.rotation.is_some() => tokio::time::sleep(BUSY / 5).await,
            }
        }
        self.remember();
    }

    fn answer(&mut self, (command, reply): (Command, oneshot::Sender<Value>)) {
        let now = SystemTime::now();
        let done = self.obey(command, now);
        if let Err(error) = &done {
            info!(error, "command refused");
        }
        let _ = reply.send(show::answer(self, done, now));
    }

    fn obey(&mut self, command: Command, now: SystemTime) -> Result<(), String> {
        let text = |e: SlotsError| e.to_string();
        match command {
            Command::Status => return Ok(()),
            Command::Rotate { dir, token, soak_seconds } => {
                self.begin(dir.map(|folder| Source { folder, token }), Duration::from_secs(soak_seconds), now)?;
            }
            Command::Pause => self.rotation()?.paused = true,
            Command::Resume => self.rotation()?.paused = false,
            Command::Rollback => self.rotation()?.roll_back(now).map_err(|e| e.to_string())?,
            Command::Waive { proxy, until } => {
                if until <= now {
                    return Err("the waiver's date has passed".to_owned());
                }
                if !self.population.all().iter().any(|known| known.name == proxy) {
                    return Err(format!("no proxy {proxy:?} is known"));
                }
                self.rotation()?.waive(&proxy, until);
            }
        }
        self.next = None;
        self.slots.save().map_err(text)
    }

    fn rotation(&mut self) -> Result<&mut Rotation, String> {
        self.slots.state.rotation.as_mut().ok_or_else(|| "no rotation is under way".to_owned())
    }

    /// Begins a rotation to the set of a folder, to the one that is plugged in and not in force, or to a new one made here.
    fn begin(&mut self, dir: Option<Source>, soak: Duration, now: SystemTime) -> Result<(), String> {
        if self.slots.state.rotation.is_some() {
            return Err("a rotation is under way already".to_owned());
        }
        let own = self.slots.state.slots.get(&self.slots.state.issuer).map(|slot| (slot.own, slot.source.clone()));
        let to = match (dir, &self.pending, own) {
            (Some(dir), ..) => {
                let texts = dir.read().map_err(|e| e.to_string())?;
                let texts = texts.ok_or_else(|| format!("{}: no ca-cert.pem in it", dir.folder.display()))?;
                // Opened, and a throw-away leaf of it verified, before anything is written down.
                let set = CaSet::open(&texts, &self.slots.tokens, now).map_err(|e| e.to_string())?;
                let (id, source) = (set.id().to_owned(), of_source(folder_source(&dir.folder), &texts));
                self.slots.keep(&texts, set, &source, false).map_err(|e| e.to_string())?;
                id
            }
            (None, Some(pending), _) => pending.id.clone(),
            (None, None, Some((false, source))) => {
                return Err(format!(
                    "the signing set comes from {source}: put the next one there, or name a folder with --dir"
                ));
            }
            (None, None, _) => self.slots.make(now).map_err(|e| e.to_string())?,
        };
        let from = self.slots.state.issuer.clone();
        let rotation = Rotation::begin(&from, &to, soak, now).map_err(|e| e.to_string())?;
        info!(from, to, "rotation begins");
        self.slots.state.rotation = Some(rotation);
        Ok(())
    }

    async fn round(&mut self, now: SystemTime) {
        let mut connected = BTreeSet::new();
        self.connections.each(|c| {
            if c.secured {
                connected.insert(c.name());
            }
        });
        self.population.silent(&connected, now);
        self.population.forget_ended(now.checked_sub(FORGET).unwrap_or(now));
        self.ask_for_pods().await;
        if self.slots.state.rotation.is_none()
            && let Some(found) = self.plugged.look(now).await
        {
            self.found(found, now);
        }
        self.renew_own_root(now);
        let outcome = self.advance(now).await;
        note(&mut self.step_problem, outcome.err().map(|e| e.to_string()), now);
        let often = self.slots.state.rotation.is_some();
        if often || self.remembered.is_none_or(|at| at.elapsed() > REMEMBER) {
            self.remember();
        }
        self.measure();
    }

    /// A root that was made here is exchanged in time by itself; one that was plugged in is its owner's affair.
    fn renew_own_root(&mut self, now: SystemTime) {
        let state = &self.slots.state;
        let own = state.slots.get(&state.issuer).is_some_and(|slot| slot.own);
        let info = self.authority.set().info().clone();
        if !own || state.rotation.is_some() || self.pending.is_some() || !is_due(info.not_before, info.not_after, now) {
            return;
        }
        warn!(subject = info.subject, "the root ends before long; a new one takes over");
        let begun = self.begin(None, Duration::ZERO, now).and_then(|()| self.slots.save().map_err(|e| e.to_string()));
        if let Err(error) = begun {
            error!(error, "a new root cannot take over");
        }
    }

    fn remember(&mut self) {
        self.remembered = Some(Instant::now());
        let known = self.population.known();
        if known == self.known {
            return;
        }
        match self.slots.save_known(&known) {
            Ok(()) => self.known = known,
            Err(error) => error!(%error, "the known proxies are not written down"),
        }
    }

    /// Takes effect, and goes on if nothing is in the way.
    async fn advance(&mut self, now: SystemTime) -> Result<(), SlotsError> {
        self.take_effect(now)?;
        let Some(rotation) = &self.slots.state.rotation else { return Ok(()) };
        let to = rotation.to.clone();
        let done = self.is_done().await;
        let roots = self.slots.set(&to, now)?.roots().fingerprints();
        let proxies = self.population.all();
        let Some(rotation) = &mut self.slots.state.rotation else { return Ok(()) };
        let next = rotation.next(World { roots: &roots, proxies: &proxies, done }, now);
        match &next {
            Next::Go(step) => {
                info!(from = rotation.step.as_str(), to = step.as_str(), proxies = proxies.len(), "rotation goes on");
                rotation.enter(*step, now);
                self.slots.save()?;
                self.take_effect(now)?;
            }
            Next::Finished => {
                let (from, to, back) = (rotation.from.clone(), rotation.to.clone(), rotation.back);
                let ended = Ended { from, to: to.clone(), back, started: rotation.started, ended: now };
                info!(issuer = to, back, "rotation is done");
                self.slots.state.issuer = to;
                self.slots.state.last = Some(ended);
                self.slots.state.rotation = None;
                self.pending = None;
                self.plugged.again();
                self.slots.save()?;
            }
            Next::Held(held) => {
                let before = match &self.next {
                    Some(Next::Held(before)) => before.len(),
                    _ => 0,
                };
                if held.len() != before {
                    let first = held.first().map(|h| format!("{}: {}", h.proxy, h.reason)).unwrap_or_default();
                    info!(step = rotation.step.as_str(), by = held.len(), first, "rotation is held up");
                }
            }
            Next::Paused | Next::Working | Next::Until(_) => {}
        }
        self.next = Some(next);
        Ok(())
    }

    /// Makes what is in force equal to the state. Roots that come are published before anything is signed that needs them;
    /// roots that go are withdrawn after.
    fn take_effect(&mut self, now: SystemTime) -> Result<(), SlotsError> {
        let kept: BTreeSet<String> = self.slots.state.slots.keys().cloned().collect();
        if self.held != kept {
            let sets = self.slots.all(now).into_iter().filter(|set| has_lists_found(set));
            self.authority.hold(sets.collect());
            self.held = kept;
            self.quarantine.refresh();
        }
        let trust = self.slots.trust(now)?;
        let rotation = self.slots.state.rotation.as_ref();
        let signer = rotation.map_or_else(|| self.slots.state.issuer.clone(), |r| r.signer().to_owned());
        let (roots, set) = (self.authority.roots(), self.authority.set());
        if set.id() != signer {
            let next = self.slots.set(&signer, now)?;
            self.authority.publish(roots.union(&trust), now)?;
            self.authority.switch(next, now)?;
            info!(issuer = signer, "this set signs from now on");
        }
        if self.authority.roots() != trust {
            self.authority.publish(trust, now)?;
            info!(roots = self.authority.roots().roots().len(), "roots published");
        }
        self.tell();
        Ok(())
    }

    /// Tells proxies, files and the own server certificate what is in force.
    fn tell(&self) {
        let rotation = self.slots.state.rotation.as_ref();
        let renew = rotation.is_some_and(Rotation::asks_for_renewal);
        let set = self.authority.set();
        let count = u64::try_from(self.population.all().len()).unwrap_or(u64::MAX);
        let mut order = Order { roots: self.authority.roots().to_pem(), ..Order::default() };
        if renew {
            order.renew_unless = set.roots().fingerprints().into_iter().collect();
            order.spread_ms = count.saturating_mul(1000 / RENEWALS);
        }
        let same = |published: &Published| {
            let old = &published.order;
            old.roots == order.roots && old.renew_unless == order.renew_unless
        };
        let lists: RootText = set.crl().map(Arc::from);
        self.lists.send_if_modified(|told| std::mem::replace(told, lists.clone()) != lists);
        let of_set = self.certificate.made_of() == (set.id().to_owned(), self.authority.roots());
        if !same(&self.published.borrow()) || !of_set {
            self.quarantine.refresh();
            self.roots.send_replace(Some(Arc::from(order.roots.as_str())));
            self.published.send_modify(|published| {
                published.epoch = published.epoch.wrapping_add(1);
                published.order = order;
            });
        }
    }

    /// Whether what the step does by itself is done: in force here, in the server's own certificate, and readable as a file.
    async fn is_done(&self) -> bool {
        let (set, roots) = (self.authority.set(), self.authority.roots());
        if self.certificate.made_of() != (set.id().to_owned(), roots.clone()) {
            return false;
        }
        let Some(client) = &self.client else { return true };
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &self.namespace);
        match maps.get_opt(ROOT_MAP).await {
            Ok(Some(map)) => {
                let text = map.data.unwrap_or_default().remove("root-cert.pem").unwrap_or_default();
                TrustBundle::from_pem(text.as_bytes()).is_ok_and(|written| written.roots() == roots.roots())
            }
            // Nobody keeps roots there, so nobody reads them there.
            Ok(None) => true,
            Err(error) => {
                warn!(%error, "the ConfigMap of the roots");
                false
            }
        }
    }

    async fn ask_for_pods(&mut self) {
        let Some(client) = &self.client else { return };
        let pause = if self.slots.state.rotation.is_some() { PODS.0 } else { PODS.1 };
        if !self.population.is_unclear() || self.pods_asked.is_some_and(|at| at.elapsed() < pause) {
            return;
        }
        self.pods_asked = Some(Instant::now());
        let pods: Api<Pod> = Api::all(client.clone());
        match pods.list_metadata(&ListParams::default()).await {
            Ok(list) => {
                let name = |meta: kube::api::ObjectMeta| Some(format!("{}.{}", meta.name?, meta.namespace?));
                self.population.pods(&list.items.into_iter().filter_map(|pod| name(pod.metadata)).collect());
            }
            Err(error) => warn!(%error, "pods"),
        }
    }

    /// A plugged-in set: in force already, a change of the signer below roots that everybody trusts, or one to rotate to.
    fn found(&mut self, Found { source, set }: Found, now: SystemTime) {
        let outcome = set.and_then(|(texts, set)| self.judge(&texts, set, &source, now));
        if let Err(reason) = &outcome
            && self.problem.as_ref().is_none_or(|problem| problem.text != *reason)
        {
            self.metrics.ca_refused.inc();
            error!(source, reason, "the plugged-in signing set is not taken; the one in force stays");
        }
        note(&mut self.problem, outcome.err(), now);
    }

    fn judge(&mut self, texts: &SetTexts, set: CaSet, source: &str, now: SystemTime) -> Result<(), String> {
        let text = |e: SlotsError| e.to_string();
        let id = set.id().to_owned();
        if id == self.slots.state.issuer {
            self.pending = None;
            return self.take_lists(texts, set, now).map_err(text);
        }
        let reason = self.why_not_at_once(&set, now);
        self.slots.keep(texts, set, source, false).map_err(text)?;
        if let Some(reason) = reason {
            if self.pending.as_ref().is_none_or(|pending| pending.id != id) {
                warn!(source, reason, "a signing set waits for `carrick ca rotate`");
            }
            self.pending = Some(Pending { id, source: source.to_owned(), reason });
            self.plugged.again();
            return self.slots.save().map_err(text);
        }
        info!(source, id, "the plugged-in signing set is taken over");
        self.pending = None;
        self.slots.state.issuer = id;
        self.slots.save().map_err(text)?;
        self.take_effect(now).map_err(text)
    }

    /// The set in force was found again: its revocation lists may be newer. They need no proof of anybody.
    fn take_lists(&mut self, texts: &SetTexts, set: CaSet, now: SystemTime) -> Result<(), SlotsError> {
        if self.authority.set().id() != set.id() || self.authority.set().crl() == set.crl() {
            return Ok(());
        }
        info!(id = set.id(), "the plugged-in signing set has other revocation lists");
        let set = self.slots.replace(texts, set)?;
        self.authority.switch(set, now)?;
        self.quarantine.refresh();
        self.tell();
        Ok(())
    }

    /// Why a set cannot simply take over: the roots change in a way that proxies have to prove first.
    fn why_not_at_once(&self, set: &CaSet, now: SystemTime) -> Option<String> {
        let published = self.authority.roots();
        if set.prove(&published, now).is_err() {
            return Some("it leads to a root that is not published yet".to_owned());
        }
        if !set.roots().fingerprints().is_superset(&published.fingerprints()) {
            return Some("a root that is published is not among its own".to_owned());
        }
        let needed = published.led_to(&chain(set));
        // A root that certificates in use lead to is trusted by everybody who talks to anybody.
        if !needed.is_disjoint(&published.led_to(&chain(&self.authority.set()))) {
            return None;
        }
        let lacks = |proxy: &carrick_certs::rotation::Proxy| {
            proxy.told.as_ref().is_none_or(|told| told.trusts.is_disjoint(&needed))
        };
        let lacking = self.population.all().into_iter().find(lacks)?;
        Some(format!("{} does not say that it trusts its root", lacking.name))
    }

    fn measure(&self) {
        let rotation = self.slots.state.rotation.as_ref();
        let step = rotation.map_or(0, |r| 1 + i64::from(r.step as u8));
        let held = match &self.next {
            Some(Next::Held(held)) if rotation.is_some() => held.len(),
            _ => 0,
        };
        self.metrics.ca_rotation_step.set(step);
        self.metrics.ca_rotation_held.set(i64::try_from(held).unwrap_or(i64::MAX));
        self.metrics.ca_roots.set(i64::try_from(self.authority.roots().roots().len()).unwrap_or(i64::MAX));
        let end = self.authority.not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.metrics.root_expiry.set(i64::try_from(end).unwrap_or(i64::MAX));
    }
}

/// Whether less than a fifth of a life is left (spec §19.5).
pub(super) fn is_due(begin: SystemTime, end: SystemTime, now: SystemTime) -> bool {
    let life = end.duration_since(begin).unwrap_or_default();
    end.duration_since(now).unwrap_or_default() < life / 5
}

/// The certificates of a set, for telling to which roots it leads; a root that signs itself leads to itself.
fn chain(set: &CaSet) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    std::iter::once(set.signer().clone()).chain(set.path().iter().cloned()).collect()
}

/// Keeps the time since which a problem lasts.
fn note(problem: &mut Option<Problem>, text: Option<String>, now: SystemTime) {
    match text {
        None => *problem = None,
        Some(text) if problem.as_ref().is_some_and(|p| p.text == text) => {}
        Some(text) => {
            warn!(text, "certificate authority");
            *problem = Some(Problem { text, since: now });
        }
    }
}
