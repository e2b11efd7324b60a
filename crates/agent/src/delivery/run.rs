//! Start-up, life and end of an agent that keeps files.
//!
//! Invariant: consumers are kept from the first moment with what is remembered, whether or not the control plane can be reached.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use carrick_runtime::admin::AdminServer;
use carrick_runtime::clock::{SharedClock, SystemClock};
use carrick_runtime::drain::{self, DrainTrigger};
use carrick_runtime::tasks::{Ended, TaskSet};
use carrick_xds::client::ClientOptions;
use carrick_xds::delivery;
use carrick_xds::node::text;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use super::config::DeliveryConfig;
use super::feed::Feed;
use super::keeper::Keeper;
use super::place;
use super::report::Board;
use super::shown;
use crate::config::AgentConfig;
use crate::error::AgentError;
use crate::identity::IdentityKeeper;
use crate::metrics::AgentMetrics;
use crate::names::DEFAULT_SECRET;
use crate::native;
use crate::node;
use crate::secrets::SecretStore;

/// Time for what is under way to end.
const REST: Duration = Duration::from_secs(5);

/// A running agent.
#[derive(Debug)]
pub struct RunningDelivery {
    tasks: TaskSet,
    trigger: DrainTrigger,
    board: Arc<Board>,
    page: Option<SocketAddr>,
}

/// Starts it.
///
/// # Errors
/// An account that this machine does not have, or a port that cannot be had.
pub async fn start(
    config: AgentConfig,
    delivery: DeliveryConfig,
    clock: SharedClock,
) -> Result<RunningDelivery, AgentError> {
    accounts(&delivery)?;
    let (trigger, drain) = drain::channel();
    let mut tasks = TaskSet::new();
    let metrics = Arc::new(AgentMetrics::default());
    let store = SecretStore::new(config.control_plane.root_file.clone());
    let connector = native::connector(&config, &store).map_err(AgentError::Config)?;
    let secrets: BTreeSet<String> = delivery.certificates.iter().map(|spec| spec.secret.clone()).collect();
    let mut node = node::node(&config);
    let fields = &mut node.metadata.get_or_insert_default().fields;
    fields.insert("GENERATOR".to_owned(), text(delivery::GENERATOR));
    let names = secrets.iter().cloned().collect::<Vec<_>>().join(",");
    fields.insert(delivery::SECRETS.to_owned(), text(names));
    let feed = Feed::new(secrets);
    let board = Board::new(&config.node.name, &delivery.certificates);

    let mut page = None;
    if let Some(address) = delivery.metrics {
        let server = AdminServer::bind(address, shown::router(&board, &metrics, &clock))
            .await
            .map_err(|source| AgentError::Io { what: "metrics port", source })?;
        page = Some(server.local_addr());
        tasks.spawn("metrics", server.run(drain.clone()));
    }
    for spec in delivery.certificates {
        let Some(bundles) = feed.of(&spec.secret) else { continue };
        let name = format!("consumer {}", spec.name);
        let keeper = Keeper::new(spec, &config.state_dir, Arc::clone(&clock), Arc::clone(&board), bundles);
        tasks.spawn(name, keeper.run(drain.clone()));
    }
    let keeper = IdentityKeeper::new(&config, Arc::clone(&store), Arc::clone(&clock), metrics);
    tasks.spawn("identity", keeper.run(drain.clone()));
    tasks.spawn("root file", Arc::clone(&store).watch_files(drain.clone()));

    let options = ClientOptions::new(connector.clone(), node);
    let (mut identity, until) = (store.subscribe(), drain.clone());
    let (pushed, asked, told) = (Arc::clone(&feed), feed, Arc::clone(&board));
    tasks.spawn("control plane", async move {
        // Without a certificate the control plane would only refuse.
        tokio::select! {
            () = until.graceful() => return,
            _ = identity.wait_for(|s| s.identity(DEFAULT_SECRET).is_some()) => {}
        }
        tokio::join!(
            pushed.follow(options.clone(), until.clone()),
            asked.ask(options, delivery.ask_every, Arc::clone(&clock), until.clone()),
            told.tell(connector, clock, until),
        );
    });
    drop(drain);
    Ok(RunningDelivery { tasks, trigger, board, page })
}

/// Accounts that are not there would fail every delivery, so they are told at once.
fn accounts(delivery: &DeliveryConfig) -> Result<(), AgentError> {
    let mut missing = Vec::new();
    for (i, spec) in delivery.certificates.iter().enumerate() {
        for (j, file) in spec.files.iter().enumerate() {
            let users = file.owner.as_ref().map(place::user).transpose().map(drop);
            let groups = file.group.as_ref().map(place::group).transpose().map(drop);
            for (field, checked) in [("owner", users), ("group", groups)] {
                if let Err(error) = checked {
                    missing.push(format!("certificates[{i}].files[{j}].{field}: {error}"));
                }
            }
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(AgentError::Config(missing.join("\n"))) }
}

impl RunningDelivery {
    /// What is said of every consumer.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Where its page is, if anywhere.
    pub fn page(&self) -> Option<SocketAddr> {
        self.page
    }

    /// Resolves only when a part of it panicked, with its name.
    pub async fn ended(&mut self) -> AgentError {
        loop {
            match self.tasks.join_next().await {
                Some((name, Ended::Panicked)) => return AgentError::Task(name),
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Ends it; files stay.
    pub async fn shut_down(self) {
        self.trigger.drain(REST).await;
        self.tasks.finish(REST).await;
    }
}

/// Runs until TERM or INT.
///
/// # Errors
/// As [`start`]; or a part of it panicked.
pub async fn run(config: AgentConfig, delivery: DeliveryConfig) -> Result<(), AgentError> {
    let io = |source| AgentError::Io { what: "signals", source };
    let mut term = signal(SignalKind::terminate()).map_err(io)?;
    let mut int = signal(SignalKind::interrupt()).map_err(io)?;
    let mut running = start(config, delivery, SystemClock::shared()).await?;
    let result = tokio::select! {
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
        error = running.ended() => Err(error),
    };
    running.shut_down().await;
    info!("ended");
    result
}
