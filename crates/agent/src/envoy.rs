//! Envoy as the engine: its bootstrap, its two sockets, its process.
//!
//! Invariant: Envoy reaches the control plane and its secrets only through this agent's sockets, which only the agent's
//! user may open; it dies with the agent, and is started again when it dies alone. What it does with the configuration
//! is its own affair.

mod bootstrap;
mod process;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use carrick_proxy::Workload;
use carrick_runtime::drain::Drain;
use carrick_runtime::tasks::TaskSet;
use carrick_xds::client::{Connector, Token};
use carrick_xds::relay::{Own, RelayEvent, RelayObserver, relay_service};
use carrick_xds::server::{ListenOptions, serve_unix};
use carrick_xds::{Node, TypeUrl};
use http::Method;
use tokio::net::UnixListener;
use tonic::service::Routes;
use tracing::{info, warn};

use crate::config::{AgentConfig, DrainConfig};
use crate::counts::Counts;
use crate::http_client;
use crate::metrics::AgentMetrics;
use crate::native::workload;
use crate::readiness::Readiness;
use crate::sds::secret_service;
use crate::secrets::SecretStore;

pub use process::Supervisor;

/// `^(cluster_manager\.cds|listener_manager\.lds)\.update_(success|rejected)$|^server\.state$`
const READY_STATS: &str = "/stats?filter=%5E(cluster_manager%5C.cds%7Clistener_manager%5C.lds)%5C.update_(success%7Crejected)%24%7C%5Eserver%5C.state%24";
/// `^listener\..*downstream_cx_active$`
const OPEN_STATS: &str = "/stats?filter=%5Elistener%5C..*downstream_cx_active%24";
/// How often open connections are counted while draining.
const LOOK: Duration = Duration::from_millis(100);

/// What Envoy lives on.
pub struct Feed {
    pub node: Node,
    pub connector: Connector,
    /// What proves it where the certificate does not.
    pub token: Token,
    pub store: Arc<SecretStore>,
    pub metrics: Arc<AgentMetrics>,
    /// What the agent says and hears on the same stream.
    pub own: Own,
}

/// Envoy beside this workload.
#[derive(Debug)]
pub struct EnvoyEngine {
    admin: SocketAddr,
    readiness: Arc<Readiness>,
    counts: Arc<Counts>,
}

impl EnvoyEngine {
    /// Starts the sockets and, once there is an identity, Envoy. Everything runs in `tasks` until `drain`.
    pub fn start(
        config: &AgentConfig,
        feed: Feed,
        readiness: &Arc<Readiness>,
        tasks: &mut TaskSet,
        drain: &Drain,
    ) -> io::Result<Arc<Self>> {
        let Feed { node, connector, token, store, metrics, own: spoken } = feed;
        let crate::config::EngineKind::Envoy { binary, log_level } = &config.engine else {
            return Err(io::Error::other("the engine is not Envoy"));
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.state_dir)?;
        let (sds, xds) = (socket(&config.sds_socket())?, socket(&config.xds_socket())?);
        let als = socket(&config.counts_socket())?;
        let own = workload(config, &node);
        let node = with_peer(node, &own);
        let counts = Counts::new(own);
        let relay = relay_service(connector, Some(token), observer(Arc::clone(&metrics)), spoken);
        let options = ListenOptions { max_connections: 4096, max_streams: 4096, ..ListenOptions::default() };
        tasks.spawn("ads-relay", serve_unix(xds, Routes::new(relay), options.clone(), drain.clone()));
        let counter = Routes::new(counts.service());
        tasks.spawn("counts", serve_unix(als, counter, options.clone(), drain.clone()));
        tasks.spawn("sds", serve_unix(sds, Routes::new(secret_service(Arc::clone(&store))), options, drain.clone()));

        let bootstrap = config.state_dir.join("envoy.json");
        std::fs::write(&bootstrap, bootstrap::bootstrap(config, &node)?)?;
        let supervisor = Supervisor {
            binary: binary.clone(),
            log_level: log_level.clone(),
            bootstrap,
            concurrency: config.concurrency,
            metrics,
        };
        let mut secrets = store.subscribe();
        let drain = drain.clone();
        tasks.spawn("envoy", async move {
            let first = secrets.wait_for(|s| s.identity(crate::names::DEFAULT_SECRET).is_some());
            tokio::select! {
                () = drain.graceful() => return,
                _ = first => {}
            }
            supervisor.run(drain).await;
        });
        let admin = ([127, 0, 0, 1], config.ports.admin).into();
        Ok(Arc::new(Self { admin, readiness: Arc::clone(readiness), counts }))
    }

    /// What keeps it from being ready (spec §18.3).
    pub async fn not_ready(&self) -> Vec<String> {
        let state = self.readiness.state();
        if state.draining {
            return vec!["shutting down".to_owned()];
        }
        if !state.identity {
            return vec!["no certificate yet".to_owned()];
        }
        let text = match http_client::get(self.admin, READY_STATS).await {
            Ok((_, body)) => String::from_utf8_lossy(&body).into_owned(),
            Err(error) => return vec![format!("Envoy does not answer: {error}")],
        };
        let sum =
            |prefix: &str| numbers(&text).filter(|(name, _)| name.starts_with(prefix)).map(|(_, n)| n).sum::<u64>();
        let live = numbers(&text).any(|(name, value)| name == "server.state" && value == 0);
        [
            (sum("cluster_manager.cds") == 0, "no clusters (CDS) received yet"),
            (sum("listener_manager.lds") == 0, "no listeners (LDS) received yet"),
            (!live, "Envoy is not live yet"),
        ]
        .into_iter()
        .filter(|(missing, _)| *missing)
        .map(|(_, reason)| reason.to_owned())
        .collect()
    }

    /// Istio's metrics, and Envoy's own unless it does not answer.
    pub async fn prometheus(&self) -> Vec<u8> {
        let mut text = self.counts.prometheus().into_bytes();
        match http_client::get(self.admin, "/stats/prometheus").await {
            Ok((_, body)) => text.extend_from_slice(&body),
            Err(error) => warn!(%error, "Envoy's metrics"),
        }
        text
    }

    /// Asks Envoy to let inbound connections end.
    pub async fn start_drain(&self) {
        if let Err(error) = http_client::send(self.admin, Method::POST, "/drain_listeners?inboundonly&graceful").await {
            warn!(%error, "Envoy was not asked to drain");
        }
    }

    /// Lets connections end, within the limits of `config`. Ending Envoy itself is the supervisor's work.
    pub async fn drain(&self, config: &DrainConfig) {
        let start = Instant::now();
        self.start_drain().await;
        while start.elapsed() < config.duration.max(config.minimum) {
            if config.exit_on_zero && start.elapsed() >= config.minimum && self.open_connections().await == Some(0) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// `None` while Envoy does not answer.
    async fn open_connections(&self) -> Option<u64> {
        let (_, body) = http_client::get(self.admin, OPEN_STATS).await.ok()?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let own = |name: &str| name.starts_with("listener.admin");
        // A listener also counts per worker; the sum of both is zero exactly when there is none.
        Some(numbers(&text).filter(|(name, _)| !own(name)).map(|(_, n)| n).sum())
    }
}

/// The node as Envoy knows it, with the name of its workload as it is told to other proxies of the mesh.
fn with_peer(mut node: Node, own: &Workload) -> Node {
    let fields = &mut node.metadata.get_or_insert_default().fields;
    fields.insert("CARRICK_PEER".to_owned(), carrick_xds::node::text(own.peer().encode()));
    node
}

/// The `name: number` lines of Envoy's `/stats`.
fn numbers(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.rsplit_once(": ")?;
        Some((name, value.trim().parse().ok()?))
    })
}

/// A fresh socket that only this user may open.
pub fn socket(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Tells what becomes of a relayed stream.
pub fn observer(metrics: Arc<AgentMetrics>) -> RelayObserver {
    Arc::new(move |event| match event {
        RelayEvent::Connected => info!("connected to the control plane"),
        RelayEvent::Failed(reason) => {
            AgentMetrics::add(&metrics.xds_failures);
            warn!(reason, "no connection to the control plane; the configuration stays as it is");
        }
        RelayEvent::Response(type_url) => {
            tracing::debug!(kind = TypeUrl::parse(&type_url).short(), "configuration passed on");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_numbers() {
        let text = "cluster_manager.cds.update_success: 2\nserver.state: 0\nx: No recorded values\nlistener.0.0.0.0_15006.downstream_cx_active: 3\n";
        let all: Vec<_> = numbers(text).collect();
        assert_eq!(
            all,
            [
                ("cluster_manager.cds.update_success", 2),
                ("server.state", 0),
                ("listener.0.0.0.0_15006.downstream_cx_active", 3)
            ]
        );
    }
}
