//! Start-up, life and end of an agent, in order.
//!
//! Invariant: what others look at (status, health) is there from the first moment; the engine ends before what feeds it,
//! so that connections finish with certificates and configuration in place.

use std::sync::Arc;
use std::time::Duration;

use carrick_runtime::clock::{SharedClock, SystemClock};
use carrick_runtime::drain::{self, DrainTrigger};
use carrick_runtime::tasks::{Ended, TaskSet};
use carrick_runtime::telemetry::LogHandle;
use carrick_xds::name_table::NameTable;
use carrick_xds::relay::Own;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tracing::info;

use crate::admin;
use crate::config::{AgentConfig, DrainConfig, EngineKind};
use crate::dns::{self, Names};
use crate::engine::EngineHandle;
use crate::envoy::{EnvoyEngine, Feed};
use crate::error::AgentError;
use crate::health;
use crate::identity::{Folder, IdentityKeeper};
use crate::kept::Keeper;
use crate::library::Library;
use crate::memory;
use crate::metrics::AgentMetrics;
use crate::names::DEFAULT_SECRET;
use crate::native::{self, NativeEngine};
use crate::node;
use crate::outside::Outside;
use crate::quarantine;
use crate::readiness::Readiness;
use crate::secrets::SecretStore;
use crate::status::{Status, StatusServers};
use crate::trust::TrustFollower;
use crate::workload_api;

/// Time for what is not the engine to end.
const REST: Duration = Duration::from_secs(5);

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> AgentError {
    move |source| AgentError::Io { what, source }
}

/// A running agent.
#[derive(Debug)]
pub struct Running {
    engine: EngineHandle,
    readiness: Arc<Readiness>,
    tasks: TaskSet,
    trigger: DrainTrigger,
    quit: Arc<Notify>,
    drain: DrainConfig,
    addresses: [std::net::SocketAddr; 3],
}

/// Starts everything; readiness is seen on the health port.
///
/// # Errors
/// A port, socket or thread could not be had.
pub async fn start(config: AgentConfig, clock: SharedClock, logs: Option<LogHandle>) -> Result<Running, AgentError> {
    let (trigger, drain) = drain::channel();
    let mut tasks = TaskSet::new();
    let metrics = Arc::new(AgentMetrics::default());
    let readiness = Arc::new(Readiness::new(config.role));
    let quit = Arc::new(Notify::new());
    let store = SecretStore::new(config.control_plane.root_file.clone());
    let outside = Outside::find(config.workload_api_socket.as_deref(), config.identity.credentials.as_deref());
    if let Some(outside) = &outside {
        info!(?outside, "the identity comes from elsewhere");
        store.set_outside();
    }
    let node = node::node(&config);
    let connector = native::connector(&config, &store).map_err(AgentError::Config)?;

    let folder = config.identity.folder.clone().map(Folder::new);
    let kept = folder.clone().map(Keeper::configuration);
    if let Some(kept) = &kept {
        tasks.spawn("kept", Arc::clone(kept).run(drain.clone()));
    }
    let bans = folder.map(Keeper::quarantine);
    if let Some(bans) = &bans {
        // Before there is anything that it could forbid.
        quarantine::restore(&store, bans);
    }
    let token = native::token(&config, &store);
    let following =
        quarantine::follow(node.clone(), connector.clone(), token.clone(), Arc::clone(&store), bans, drain.clone());
    tasks.spawn("quarantine", following);
    let mut own = Own::default();
    if let Some(dns) = &config.dns {
        let names = Names::new(&config.node.namespace);
        let server = dns::Server::bind(dns, names.clone()).await.map_err(io("name server"))?;
        tasks.spawn("names", server.run(drain.clone()));
        own.names = Some(Arc::new(move |table| names.set(&table)));
    }
    if let Some(probe) = config.probe.clone() {
        let (told, health) = watch::channel(None);
        own.health = Some(health);
        tasks.spawn("probes", health::run(probe, Arc::clone(&clock), told, drain.clone()));
    }

    let mut admin_server = None;
    let engine = match &config.engine {
        EngineKind::Native => {
            let native = NativeEngine::start(
                &config,
                node,
                Arc::clone(&store),
                Arc::clone(&readiness),
                Arc::clone(&metrics),
                Arc::clone(&clock),
            )
            .map_err(io("native engine"))?;
            admin_server = Some(admin::bind(config.ports.admin, &native, logs, &quit).await.map_err(io("admin port"))?);
            let (following, until) = (Arc::clone(&native), drain.clone());
            let mut secrets = store.subscribe();
            tasks.spawn("xds", async move {
                // Without a certificate the control plane would only refuse.
                let first = secrets.wait_for(|s| s.identity(DEFAULT_SECRET).is_some());
                tokio::select! {
                    () = until.graceful() => return,
                    _ = first => {}
                }
                following.follow(connector, token, own, kept, until).await;
            });
            EngineHandle::Native(native)
        }
        EngineKind::Envoy { .. } => {
            if let Some(kept) = kept {
                // Its names are the agent's affair, and nobody but the control plane tells them.
                if let Some(names) = &own.names {
                    let tables = kept.updates().into_iter().filter(|update| update.type_url == NameTable::type_url());
                    let tables = tables.flat_map(|update| update.upserts);
                    tables.filter_map(|resource| NameTable::read(&resource.body)).for_each(|table| names(table));
                }
                own.kept = Some(kept);
            }
            let feed = Feed { node, connector, token, store: Arc::clone(&store), metrics: Arc::clone(&metrics), own };
            let envoy = EnvoyEngine::start(&config, feed, &readiness, &mut tasks, &drain).map_err(io("Envoy"))?;
            EngineHandle::Envoy(envoy)
        }
        EngineKind::Library { .. } => {
            let feed = Feed { node, connector, token, store: Arc::clone(&store), metrics: Arc::clone(&metrics), own };
            let library =
                Library::start(&config, feed, &readiness, &mut tasks, &drain).map_err(io("gRPC's bootstrap"))?;
            EngineHandle::Library(library)
        }
    };

    let application = match &config.app_metrics {
        Some(told) => crate::status::injected_application(told, &config.ports),
        None => crate::status::application(&config.node.annotations, &config.ports),
    };
    let status = Status {
        engine: engine.clone(),
        metrics: Arc::clone(&metrics),
        clock: Arc::clone(&clock),
        app_probes: config.app_probes.clone(),
        quit: quit.clone(),
        application,
    };
    let servers = StatusServers::bind(&config.ports, &status).await.map_err(io("status ports"))?;
    let addresses = [servers.status.local_addr(), servers.health.local_addr(), servers.prometheus.local_addr()];
    tasks.spawn("status", servers.status.run(drain.clone()));
    tasks.spawn("health", servers.health.run(drain.clone()));
    tasks.spawn("metrics", servers.prometheus.run(drain.clone()));
    if let Some(server) = admin_server {
        tasks.spawn("admin", server.run(drain.clone()));
    }
    let (mut secrets, ready, until) = (store.subscribe(), Arc::clone(&readiness), drain.clone());
    tasks.spawn("readiness", async move {
        tokio::select! {
            () = until.graceful() => {}
            found = secrets.wait_for(|s| s.identity(DEFAULT_SECRET).is_some()) => {
                if found.is_ok() {
                    ready.update(|state| state.identity = true);
                }
            }
        }
    });
    if let Some(path) = config.workload_api_socket.as_ref().filter(|_| !matches!(outside, Some(Outside::Socket(_))))
        && let Some(listener) = workload_api::bind(path).map_err(io("the Workload API's socket"))?
    {
        let trust_domain = config.node.trust_domain.clone();
        tasks.spawn("workload-api", workload_api::serve(listener, Arc::clone(&store), trust_domain, drain.clone()));
    }
    tasks.spawn("files", Arc::clone(&store).watch_files(drain.clone()));
    if let Some(outside) = outside {
        tasks.spawn("identity", outside.run(store, metrics, drain.clone()));
    } else {
        let follower = TrustFollower::new(&config, &store, Arc::clone(&clock)).map_err(AgentError::Config)?;
        tasks.spawn("trust", follower.run(drain.clone()));
        tasks.spawn("identity", IdentityKeeper::new(&config, store, clock, metrics).run(drain.clone()));
    }
    drop(drain);
    Ok(Running { engine, readiness, tasks, trigger, quit, drain: config.drain, addresses })
}

impl Running {
    /// Resolves when somebody asks for the end through `/quitquitquit`.
    ///
    /// # Errors
    /// A part of the agent panicked.
    pub async fn ended(&mut self) -> Result<(), AgentError> {
        loop {
            tokio::select! {
                () = self.quit.notified() => return Ok(()),
                ended = self.tasks.join_next() => match ended {
                    Some((name, Ended::Panicked)) => return Err(AgentError::Task(name)),
                    // The wait for the first identity ends by itself; others only when draining.
                    Some(_) => {}
                    None => return Ok(()),
                },
            }
        }
    }

    /// What keeps it from being ready; empty when nothing does.
    pub async fn not_ready(&self) -> Vec<String> {
        self.engine.not_ready().await
    }

    /// Addresses of the status, health and metrics ports.
    pub fn addresses(&self) -> [std::net::SocketAddr; 3] {
        self.addresses
    }

    /// Drains and ends.
    pub async fn shut_down(self) {
        self.readiness.update(|state| state.draining = true);
        self.engine.drain(&self.drain).await;
        let (tasks, trigger) = (self.tasks, self.trigger);
        trigger.drain(REST).await;
        tasks.finish(REST).await;
    }
}

/// Runs until TERM, INT or `/quitquitquit`, then drains; a second signal ends at once.
///
/// # Errors
/// As [`start`]; or a part of it panicked.
pub async fn run(config: AgentConfig, logs: Option<LogHandle>) -> Result<(), AgentError> {
    let mut term = signal(SignalKind::terminate()).map_err(io("signals"))?;
    let mut int = signal(SignalKind::interrupt()).map_err(io("signals"))?;
    let mut running = start(config, SystemClock::shared(), logs).await?;
    let settled = memory::give_back_when_quiet(running.engine.clone(), Arc::clone(&running.readiness));
    running.tasks.spawn("start-up memory", settled);
    let result = tokio::select! {
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
        ended = running.ended() => ended,
    };
    info!("draining");
    tokio::select! {
        () = running.shut_down() => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    info!("ended");
    result
}
