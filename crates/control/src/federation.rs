//! Other trust domains: whose roots are wanted, by bundle endpoints and by PEM, and our own roots for theirs.
//!
//! Invariant: what was read once stays until something newer was read, also while its endpoint is away and across a restart; a bundle
//! with a smaller sequence number is older and changes nothing. A domain of which nothing was ever read is trusted by nobody. That roots
//! count for their own domain alone is `pki::trust::Domains`' work; what is wanted is read in [`wanted`].

mod endpoint;
mod fetch;
mod kept;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use carrick_api::MeshConfig;
use carrick_api::timestamp::Timestamp;
use carrick_base::TrustDomain;
use carrick_pki::TrustBundle;
use carrick_pki::trust::Domains;
use carrick_runtime::backoff::Backoff;
use carrick_runtime::drain::Drain;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::quarantine::Board;
use crate::renderer::Renderer;
pub use endpoint::{BundleEndpoint, Profile};
pub(crate) use endpoint::{Certificates, serve};
use fetch::{Fetched, Fetcher};
use kept::Kept;
use wanted::Wanted;

/// How often is looked whether something is due, or wanted.
const LOOK: Duration = Duration::from_millis(250);
/// How often a bundle is read that does not say how often (SPIFFE's own default).
const REFRESH: Duration = Duration::from_secs(300);
/// The least and the most that an endpoint may ask for.
const BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// First and longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Time for one answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How other trust domains are reached, and reach us.
#[derive(Debug, Clone)]
pub struct FederationOptions {
    /// Where bundles that were read are kept; `None` forgets them with the process.
    pub dir: Option<PathBuf>,
    /// Where our own bundle is served.
    pub endpoints: Vec<BundleEndpoint>,
    /// How often others are asked to read it.
    pub refresh: Duration,
}

impl Default for FederationOptions {
    fn default() -> Self {
        Self { dir: None, endpoints: Vec::new(), refresh: Duration::from_secs(60) }
    }
}

/// One domain's endpoint, as it goes.
struct Asked {
    due: Option<Instant>,
    backoff: Backoff,
    problem: Option<String>,
}

impl Default for Asked {
    fn default() -> Self {
        Self { due: Some(Instant::now()), backoff: Backoff::new(PAUSES.0, PAUSES.1), problem: None }
    }
}

/// What is shown at `/debug/federation`.
pub(crate) type Shown = Arc<Mutex<Value>>;

/// See the module.
pub(crate) struct Federation {
    own: BTreeSet<TrustDomain>,
    mesh: Arc<ArcSwap<MeshConfig>>,
    read: Option<Arc<MeshConfig>>,
    wanted: Wanted,
    kept: Kept,
    asked: BTreeMap<TrustDomain, Asked>,
    fetcher: Arc<Fetcher>,
    board: Arc<Board>,
    shown: Shown,
}

impl Federation {
    pub(crate) fn new(
        own: BTreeSet<TrustDomain>,
        mesh: Arc<ArcSwap<MeshConfig>>,
        options: &FederationOptions,
        board: Arc<Board>,
        renderer: Arc<Renderer>,
    ) -> Self {
        Self {
            own,
            mesh,
            read: None,
            wanted: Wanted::default(),
            kept: Kept::open(options.dir.as_deref()),
            asked: BTreeMap::new(),
            fetcher: Arc::new(Fetcher::new(renderer)),
            board,
            shown: Shown::default(),
        }
    }

    pub(crate) fn shown(&self) -> Shown {
        Arc::clone(&self.shown)
    }

    /// Works until drained. Nothing is published before everything was listed once: the settings may be an object.
    pub(crate) async fn run(mut self, mut synced: watch::Receiver<bool>, drain: Drain) {
        tokio::select! {
            () = drain.graceful() => return,
            _ = synced.wait_for(|synced| *synced) => {}
        }
        let mut running: JoinSet<(TrustDomain, String, Result<Fetched, String>)> = JoinSet::new();
        let mut published = None;
        loop {
            self.read_settings();
            self.ask(&mut running);
            let domains = self.domains();
            if published.as_ref() != Some(&domains) {
                self.board.set_domains(domains.clone());
                published = Some(domains);
            }
            self.show();
            tokio::select! {
                () = drain.graceful() => break,
                () = tokio::time::sleep(LOOK) => {}
                Some(Ok((domain, url, answer))) = running.join_next() => self.take(&domain, &url, answer),
            }
        }
        running.shutdown().await;
    }

    fn read_settings(&mut self) {
        let now = self.mesh.load_full();
        if self.read.as_ref().is_some_and(|read| read.ca_certificates == now.ca_certificates) {
            return;
        }
        self.wanted = Wanted::read(&now.ca_certificates, &self.own);
        for problem in &self.wanted.problems {
            warn!(problem, "mesh configuration");
        }
        self.read = Some(now);
        self.asked.retain(|domain, _| self.wanted.endpoints.contains_key(domain));
        let endpoints = &self.wanted.endpoints;
        self.kept.retain(|domain, url| endpoints.get(domain).is_some_and(|wanted| wanted.url == url));
        for domain in endpoints.keys() {
            // Whatever changed, it is worth another try.
            self.asked.insert(domain.clone(), Asked::default());
        }
    }

    /// Asks whoever is due.
    fn ask(&mut self, running: &mut JoinSet<(TrustDomain, String, Result<Fetched, String>)>) {
        let now = Instant::now();
        for (domain, asked) in &mut self.asked {
            let Some(endpoint) = self.wanted.endpoints.get(domain) else { continue };
            if asked.due.is_none_or(|due| due > now) {
                continue;
            }
            asked.due = None;
            let known = self.kept.get(domain).map(|bundle| bundle.roots.clone());
            let roots = known.or_else(|| self.wanted.fixed.get(domain).cloned()).unwrap_or_default();
            let (domain, endpoint, fetcher) = (domain.clone(), endpoint.clone(), Arc::clone(&self.fetcher));
            let web = self.wanted.web_roots.clone();
            running.spawn(async move {
                let answer = tokio::time::timeout(PATIENCE, fetcher.fetch(&endpoint, roots, &web)).await;
                let answer = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                (domain, endpoint.url, answer)
            });
        }
    }

    fn take(&mut self, domain: &TrustDomain, url: &str, answer: Result<Fetched, String>) {
        let is_wanted = self.wanted.endpoints.get(domain).is_some_and(|endpoint| endpoint.url == url);
        let Some(asked) = self.asked.get_mut(domain).filter(|_| is_wanted) else { return };
        let taken = answer.and_then(|bundle| self.kept.take(domain, url, bundle));
        match taken {
            Ok(changed) => {
                if changed {
                    info!(%domain, url, "another trust domain has new roots");
                }
                asked.problem = None;
                asked.backoff.reset();
                let refresh = self.kept.get(domain).and_then(|bundle| bundle.refresh).unwrap_or(REFRESH);
                asked.due = Instant::now().checked_add(refresh.clamp(BOUNDS.0, BOUNDS.1));
            }
            Err(problem) => {
                if asked.problem.as_ref() != Some(&problem) {
                    warn!(%domain, url, problem, "a bundle endpoint; what was read before stays");
                }
                asked.problem = Some(problem);
                asked.due = Instant::now().checked_add(asked.backoff.next_delay());
            }
        }
    }

    /// What is in force: of each domain what its endpoint said last, else what was written down for it.
    fn domains(&self) -> Domains {
        let mut others = self.wanted.fixed.clone();
        for domain in self.wanted.endpoints.keys() {
            if let Some(bundle) = self.kept.get(domain) {
                // Lists come with the PEM: a bundle has none.
                let lists = self.wanted.fixed.get(domain).map(TrustBundle::only_revocations).unwrap_or_default();
                others.insert(domain.clone(), bundle.roots.union(&lists));
            }
        }
        Domains { own: self.own.clone(), others }
    }

    fn show(&self) {
        let domains: Vec<Value> = self
            .domains()
            .others
            .iter()
            .map(|(domain, roots)| {
                let kept = self.kept.get(domain);
                json!({
                    "trustDomain": domain.to_string(),
                    "roots": roots.fingerprints(),
                    "sequence": kept.and_then(|bundle| bundle.sequence),
                    "fetched": kept.map(|bundle| Timestamp::from_system(bundle.fetched).to_string()),
                })
            })
            .collect();
        let endpoints: Vec<Value> = self
            .wanted
            .endpoints
            .iter()
            .map(|(domain, endpoint)| {
                let problem = self.asked.get(domain).and_then(|asked| asked.problem.clone());
                json!({
                    "trustDomain": domain.to_string(),
                    "url": endpoint.url,
                    "profile": if endpoint.id.is_some() { "https_spiffe" } else { "https_web" },
                    "problem": problem,
                })
            })
            .collect();
        let value = json!({"trustDomains": domains, "endpoints": endpoints, "problems": self.wanted.problems});
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }
}
