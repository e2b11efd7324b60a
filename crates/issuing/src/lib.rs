//! The controllers of certificates: Certificates become requests, requests are signed, secrets hold the outcome.
//!
//! Invariant: what is to be done follows from the objects as they are and from the time, never from an event: events only say
//! where to look. Every step may be the last one of this process; the next process goes on from the objects. A private key
//! lies in secrets of its own namespace and nowhere else, and is never logged.
//!
//! What a certificate needs next is decided in `carrick-certs`; how something is signed is `carrick-pki`'s.

mod certificates;
mod challenges;
mod events;
mod http;
mod index;
mod issuer;
mod keystores;
mod objects;
mod queue;
mod requests;
mod secrets;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carrick_api::timestamp::Timestamp;
use carrick_pki::Authority;
use carrick_pki::journal::Journal;
use carrick_runtime::backoff::Backoff;
use carrick_runtime::clock::SharedClock;
use carrick_runtime::drain::Drain;
use futures_util::StreamExt as _;
use kube::Client;
use kube::api::DynamicObject;
use kube::runtime::watcher;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

pub use self::challenges::ChallengeListeners;
use self::challenges::Challenges;
use self::index::Index;
use self::issuer::Signers;
use self::objects::{Kind, Objects};
use self::queue::{Key, Queue};

/// Objects that are worked on at the same time.
const AT_ONCE: usize = 8;
/// Names of objects that wait to be looked at; watches pause when there are more.
const WAITING: usize = 4096;
/// After this long every object is looked at even if nothing was heard of it.
const REST: Duration = Duration::from_secs(60);

/// The controllers.
#[derive(Debug)]
pub struct Issuing {
    objects: Objects,
    mesh: Option<Arc<Authority>>,
    listeners: ChallengeListeners,
    token_modules: Vec<PathBuf>,
    clock: SharedClock,
}

/// The controllers at work.
#[derive(Debug, Clone)]
struct Worker {
    objects: Objects,
    signers: Arc<Signers>,
    clock: SharedClock,
}

/// What a watch tells.
enum Heard {
    /// An object was there when the watch began.
    Found(Kind, Box<DynamicObject>),
    /// One is new, or has changed.
    Changed(Kind, Box<DynamicObject>),
    /// One is gone.
    Gone(Kind, Box<DynamicObject>),
    /// All objects may have changed.
    All,
}

impl Issuing {
    /// Controllers over an API. Secrets of ClusterIssuers are those of `root_namespace`.
    pub fn new(client: Client, root_namespace: &str, clock: SharedClock) -> Self {
        Self {
            objects: Objects::new(client, root_namespace),
            mesh: None,
            listeners: ChallengeListeners::default(),
            token_modules: Vec::new(),
            clock,
        }
    }

    /// The mesh's own authority signs for issuers that name its secret.
    #[must_use]
    pub fn with_authority(mut self, authority: Arc<Authority>) -> Self {
        self.mesh = Some(authority);
        self
    }

    /// Challenges of ACME servers are answered on these listeners. Gateways are led to `reached_at`.
    #[must_use]
    pub fn with_challenges(mut self, listeners: ChallengeListeners) -> Self {
        self.listeners = listeners;
        self
    }

    /// Issuers may name these PKCS#11 libraries, which then run in this process; no others are loaded.
    #[must_use]
    pub fn with_token_modules(mut self, modules: Vec<PathBuf>) -> Self {
        self.token_modules = modules;
        self
    }

    /// These controllers, with every certificate they sign written into `journal`.
    #[must_use]
    pub fn recorded(mut self, journal: Arc<dyn Journal>) -> Self {
        self.objects.record_in(journal);
        self
    }

    /// Runs until drained.
    pub async fn run(self, drain: Drain) {
        let Self { objects, mesh, listeners, token_modules, clock } = self;
        let mut serving = JoinSet::new();
        let challenges = Challenges::default();
        let reached_at = listeners.reached_at;
        let answers = [listeners.http.is_some(), listeners.tls.is_some()];
        if let Some(listener) = listeners.http {
            serving.spawn(challenges::serve_http(challenges.clone(), listener));
        }
        if let Some(listener) = listeners.tls {
            serving.spawn(challenges::serve_tls(challenges.clone(), listener));
        }
        let signers = Arc::new(Signers::new(mesh, challenges, answers, reached_at, token_modules));
        Worker { objects, signers, clock }.run(drain).await;
    }
}

impl Worker {
    async fn run(self, drain: Drain) {
        let (sender, mut heard) = mpsc::channel(WAITING);
        let mut watches = JoinSet::new();
        for kind in Kind::ALL {
            watches.spawn(watch(self.objects.clone(), kind, sender.clone()));
        }
        drop(sender);
        let mut queue = Queue::default();
        let mut index = Index::new(self.objects.root_namespace());
        let mut working = JoinSet::new();
        loop {
            let now = self.clock.now();
            while working.len() < AT_ONCE {
                let Some(job) = queue.next(now) else { break };
                let worker = self.clone();
                working.spawn(async move { worker.work(job).await });
            }
            let wait = queue.wait(now).unwrap_or(REST).min(REST);
            tokio::select! {
                () = drain.graceful() => return,
                news = heard.recv() => match news {
                    Some(Heard::Found(kind, object)) => index.put(kind, &object),
                    Some(Heard::Changed(kind, object)) => {
                        index.put(kind, &object);
                        index.concerned(kind, &object).into_iter().for_each(|job| queue.add(job));
                    }
                    Some(Heard::Gone(kind, object)) => {
                        index.concerned(kind, &object).into_iter().for_each(|job| queue.add(job));
                        index.remove(kind, &object);
                    }
                    Some(Heard::All) => self.all(&mut queue).await,
                    None => return,
                },
                Some(done) = working.join_next(), if !working.is_empty() => {
                    if let Ok((job, again)) = done {
                        queue.done(job, again);
                    }
                }
                () = self.clock.sleep(wait) => self.all(&mut queue).await,
            }
        }
    }

    /// Looks at one object; tells when to look again.
    async fn work(&self, job: Job) -> (Job, Option<SystemTime>) {
        let outcome = match job.kind {
            Kind::Certificate => certificates::reconcile(&self.objects, &job.key, self.clock.now()).await,
            Kind::Request => requests::reconcile(&self.objects, &self.signers, &job.key, self.clock.now()).await,
            Kind::Issuer | Kind::ClusterIssuer => {
                issuer::reconcile(&self.objects, &self.signers, job.kind, &job.key, self.clock.now()).await
            }
            Kind::Secret => Ok(None),
        };
        let again = match outcome {
            Ok(again) => again,
            Err(error) => {
                warn!(kind = job.kind.name(), namespace = job.key.0, name = job.key.1, %error, "trying again");
                self.clock.now().checked_add(Duration::from_secs(2))
            }
        };
        (job, again)
    }

    async fn all(&self, queue: &mut Queue) {
        for kind in [Kind::Issuer, Kind::ClusterIssuer, Kind::Certificate, Kind::Request] {
            match self.objects.names(kind).await {
                Ok(names) => names.into_iter().for_each(|key| queue.add(Job { kind, key })),
                Err(error) => debug!(kind = kind.name(), %error, "listing"),
            }
        }
    }
}

/// One object to look at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Job {
    kind: Kind,
    key: Key,
}

async fn watch(objects: Objects, kind: Kind, heard: mpsc::Sender<Heard>) {
    let mut stream = watcher(objects.api(kind, None), watcher::Config::default()).boxed();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    while let Some(event) = stream.next().await {
        let news = match event {
            Ok(watcher::Event::Init) => continue,
            Ok(watcher::Event::InitApply(object)) => Heard::Found(kind, Box::new(bare(kind, object))),
            Ok(watcher::Event::InitDone) => Heard::All,
            Ok(watcher::Event::Apply(object)) => Heard::Changed(kind, Box::new(bare(kind, object))),
            Ok(watcher::Event::Delete(object)) => Heard::Gone(kind, Box::new(bare(kind, object))),
            Err(error) => {
                debug!(kind = kind.name(), %error, "watch; trying again");
                backoff.wait().await;
                continue;
            }
        };
        backoff.reset();
        if heard.send(news).await.is_err() {
            return;
        }
    }
}

/// What is told of an object. What is in a secret is not.
fn bare(kind: Kind, mut object: DynamicObject) -> DynamicObject {
    if kind == Kind::Secret {
        object.data = serde_json::Value::Null;
    }
    object
}

fn system(time: Timestamp) -> SystemTime {
    let micros = Duration::from_micros(u64::try_from(time.0).unwrap_or(0));
    SystemTime::UNIX_EPOCH.checked_add(micros).unwrap_or(SystemTime::UNIX_EPOCH)
}
