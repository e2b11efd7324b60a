//! Follows the authority: tells it what the engine trusts and shows, and takes over the roots it publishes, at once.
//!
//! Invariant: what is reported is what the engine holds ([`SecretStore::in_force`]), never what it was sent. While the
//! authority is away, the roots it told last stay in force; a certificate that leads to none of the roots heard of last is
//! renewed without being told to, since nobody might be able to tell. Renewing itself is `identity`'s work.

use std::sync::Arc;
use std::time::Duration;

use carrick_pki::trust_service::{Order, Report, TrustClient};
use carrick_pki::{Identity, TrustBundle};
use carrick_runtime::backoff::Backoff;
use carrick_runtime::clock::{SharedClock, Sleep};
use carrick_runtime::drain::Drain;
use carrick_xds::client::{Connector, open_channel};
use futures_util::stream;
use tokio::sync::watch;
use tonic::Code;
use tracing::{debug, error, info, warn};

use crate::config::{AgentConfig, EngineKind};
use crate::identity::Folder;
use crate::names::DEFAULT_SECRET;
use crate::native::connector_to;
use crate::secrets::SecretStore;
use carrick_proxy::Secrets;

/// First and longest pause between tries to reach the authority.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Pause after an authority that does not know this service.
const UNKNOWN: Duration = Duration::from_secs(600);

/// Why following ended.
enum End {
    /// The authority does not know this service.
    Unknown,
    /// In words.
    Lost(String),
}

/// See the module.
pub struct TrustFollower {
    connector: Connector,
    name: String,
    engine: &'static str,
    store: Arc<SecretStore>,
    clock: SharedClock,
    /// Of a machine.
    folder: Option<Folder>,
}

/// A renewal that is to come.
type Due = Option<Sleep>;

impl TrustFollower {
    /// A follower of the authority of `config`.
    ///
    /// # Errors
    /// The authority's name is none.
    pub fn new(config: &AgentConfig, store: &Arc<SecretStore>, clock: SharedClock) -> Result<Self, String> {
        Ok(Self {
            connector: connector_to(&config.control_plane.ca_address, config, store)?,
            name: config.node.name.clone(),
            engine: match config.engine {
                EngineKind::Native => "native",
                EngineKind::Envoy { .. } => "envoy",
                EngineKind::Library { .. } => "library",
            },
            store: Arc::clone(store),
            clock,
            folder: config.identity.folder.clone().map(Folder::new),
        })
    }

    /// Follows until drained.
    pub async fn run(self, drain: Drain) {
        tokio::select! {
            () = drain.graceful() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let mut secrets = self.store.subscribe();
        if secrets.wait_for(|s| s.identity(DEFAULT_SECRET).is_some()).await.is_err() {
            return;
        }
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let mut told = String::new();
        loop {
            let end = self.follow(&mut backoff).await;
            self.store.follow_roots(None);
            match end {
                End::Unknown => {
                    info!("the authority does not tell of its roots; they come with each certificate");
                    self.clock.sleep(UNKNOWN).await;
                }
                End::Lost(reason) => {
                    if reason == told {
                        debug!(reason, "the authority is not followed");
                    } else {
                        warn!(reason, "the authority is not followed");
                        told = reason;
                    }
                    self.renew_if_left_behind();
                    self.clock.sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// One connection, to its end.
    async fn follow(&self, backoff: &mut Backoff) -> End {
        let channel = match open_channel(&self.connector).await {
            Ok(channel) => channel,
            Err(error) => return End::Lost(error.to_string()),
        };
        let mut orders = match TrustClient::new(channel).follow(self.reports()).await {
            Ok(response) => response.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => return End::Unknown,
            Err(status) => return End::Lost(format!("{:?}: {}", status.code(), status.message())),
        };
        let mut due: Due = None;
        loop {
            let renewal = async {
                match &mut due {
                    Some(wait) => wait.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = renewal => {
                    due = None;
                    self.store.ask_renewal();
                }
                order = orders.message() => match order {
                    Ok(Some(order)) => {
                        backoff.reset();
                        match self.take(&order) {
                            Ok(wait) => due = wait,
                            Err(reason) => return End::Lost(reason),
                        }
                    }
                    Ok(None) => return End::Lost("it ended the stream".to_owned()),
                    Err(status) if status.code() == Code::Unimplemented => return End::Unknown,
                    Err(status) => return End::Lost(format!("{:?}: {}", status.code(), status.message())),
                },
            }
        }
    }

    /// Takes an order over; gives when to renew, if at all.
    fn take(&self, order: &Order) -> Result<Due, String> {
        let roots = TrustBundle::from_pem(order.roots.as_bytes()).map_err(|e| format!("its roots: {e}"))?;
        if self.store.roots().roots() != roots.roots() {
            info!(roots = ?roots, "the authority publishes other roots");
            // With the next certificate would be too late for a machine that is switched off before.
            if let Some(Err(error)) = self.folder.as_ref().map(|folder| folder.save_roots(&roots)) {
                error!(%error, "the mesh's new roots are not kept");
            }
        }
        self.store.follow_roots(Some(roots.clone()));
        let Some(identity) = self.store.identity() else { return Ok(None) };
        let led_to = roots.led_to(&identity.chain);
        let good = order.renew_unless.is_empty() || order.renew_unless.iter().any(|root| led_to.contains(root));
        let spread = Duration::from_millis(order.spread_ms).mul_f64(rand::random_range(0.0..=1.0));
        Ok((!good).then(|| self.clock.sleep(spread)))
    }

    /// The authority cannot be reached, perhaps because it trusts our certificate no more.
    fn renew_if_left_behind(&self) {
        let roots = self.store.newest_roots();
        let left = |identity: &Arc<Identity>| !roots.is_empty() && roots.led_to(&identity.chain).is_empty();
        if self.store.identity().as_ref().is_some_and(left) {
            warn!("the certificate leads to none of the mesh's roots any more");
            self.store.ask_renewal();
        }
    }

    /// A report now, and whenever it changes.
    fn reports(&self) -> impl stream::Stream<Item = Report> + Send + 'static + use<> {
        let watching = Watching {
            name: self.name.clone(),
            engine: self.engine,
            secrets: self.store.subscribe(),
            held: self.store.held().subscribe(),
            store: Arc::clone(&self.store),
            last: None,
        };
        stream::unfold(watching, |mut watching| async move {
            let report = watching.next().await?;
            Some((report, watching))
        })
    }
}

/// What is looked at for reports.
struct Watching {
    name: String,
    engine: &'static str,
    secrets: watch::Receiver<Arc<Secrets>>,
    held: watch::Receiver<u64>,
    store: Arc<SecretStore>,
    last: Option<Report>,
}

impl Watching {
    async fn next(&mut self) -> Option<Report> {
        loop {
            self.secrets.borrow_and_update();
            self.held.borrow_and_update();
            let report = self.report();
            if self.last.as_ref() != Some(&report) {
                self.last = Some(report.clone());
                return Some(report);
            }
            tokio::select! {
                changed = self.secrets.changed() => changed.ok()?,
                changed = self.held.changed() => changed.ok()?,
            }
        }
    }

    fn report(&self) -> Report {
        let held = self.store.in_force();
        Report {
            name: self.name.clone(),
            trusts: held.roots.believed().into_iter().collect(),
            chain: held.identity.map(|identity| identity.chain_pem()).unwrap_or_default(),
            engine: self.engine.to_owned(),
        }
    }
}
