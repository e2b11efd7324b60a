//! The engine as its owner sees it: start, apply, drain, stats.
//!
//! Invariant: configuration is one value that all workers see from the moment `apply` returns; listening sockets are
//! made here, one per worker and address, before the configuration that needs them is visible. What happens on a
//! connection is the workers' business.

use crate::accept::{self, Command};
use crate::options::EngineOptions;
use crate::secrets::Secrets;
use crate::shared::Shared;
use crate::stats::{Stats, WorkerStats};
use arc_swap::ArcSwap;
use carrick_proxy_core::RuntimeConfig;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// A running native engine. Dropping it ends its workers at once; [`Engine::drain`] ends them in order.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    bound: Mutex<BTreeMap<SocketAddr, Bound>>,
}

#[derive(Debug)]
struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
    stats: Arc<WorkerStats>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How the sockets of an address were made; another way needs new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    transparent: bool,
    freebind: bool,
}

/// A listener whose address could not be bound. The rest of the configuration is in force.
#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: cannot listen on {address}: {source}")]
pub struct BindError {
    /// Listener name.
    pub listener: Arc<str>,
    /// Address.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl Engine {
    /// Starts the workers, without any listener. `secrets` is read at each handshake after a change.
    ///
    /// # Errors
    /// Threads or their event loops could not be made.
    pub fn start(options: EngineOptions, secrets: watch::Receiver<Arc<Secrets>>) -> io::Result<Engine> {
        let shared = Arc::new(Shared {
            config: ArcSwap::from_pointee(RuntimeConfig::default()),
            secrets,
            tickets: options.resume.then(Arc::default),
            started: std::time::Instant::now(),
            joints: Default::default(),
            options,
        });
        let mut workers = Vec::new();
        for index in 0..shared.options.workers.max(1) {
            let (commands, receiver) = mpsc::unbounded_channel();
            let stats = Arc::new(WorkerStats::default());
            let (shared, own) = (Arc::clone(&shared), Arc::clone(&stats));
            let thread = std::thread::Builder::new()
                .name(format!("proxy-{index}"))
                .spawn(move || accept::run(shared, own, receiver))?;
            workers.push(WorkerHandle { commands, stats, thread: Some(thread) });
        }
        Ok(Engine { shared, workers, bound: Mutex::default() })
    }

    /// Makes `config` the one in force, opening and closing listening sockets as it needs. Connections of listeners and
    /// chains that are gone drain within [`EngineOptions::drain_time`].
    ///
    /// # Errors
    /// The listeners that could not be bound; everything else is in force nevertheless.
    pub fn apply(&self, config: Arc<RuntimeConfig>) -> Result<(), Vec<BindError>> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted: BTreeMap<SocketAddr, Bound> = BTreeMap::new();
        let mut errors = Vec::new();
        let mut fresh = Vec::new();
        for listener in config.listeners.by_name.values().filter(|l| l.bind_to_port) {
            let way = Bound { transparent: listener.transparent, freebind: listener.freebind };
            for address in std::iter::once(&listener.address).chain(&listener.additional_addresses) {
                if bound.get(address) != Some(&way) {
                    let sockets: io::Result<Vec<TcpListener>> =
                        self.workers.iter().map(|_| listen(*address, way, listener.backlog)).collect();
                    match sockets {
                        Ok(sockets) => fresh.push((*address, sockets)),
                        Err(source) => {
                            errors.push(BindError { listener: Arc::clone(&listener.name), address: *address, source });
                            continue;
                        }
                    }
                }
                wanted.insert(*address, way);
            }
        }
        self.shared.joints.retain(|name| config.clusters.contains_key(name));
        self.shared.config.store(config);
        for address in bound.keys().filter(|a| !wanted.contains_key(a)) {
            self.tell(|| Command::Unlisten(*address));
        }
        for (address, sockets) in fresh {
            for (worker, socket) in self.workers.iter().zip(sockets) {
                let _ = worker.commands.send(Command::Listen(address, socket));
            }
        }
        *bound = wanted;
        drop(bound);
        self.tell(|| Command::Swapped);
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Stops accepting, asks clients to leave, and cuts what is left at `deadline`. Resolves when nothing is open.
    /// Not cancel safe: a dropped drain goes on in the workers.
    pub async fn drain(&self, deadline: Duration) {
        let mut waits = Vec::new();
        for worker in &self.workers {
            let (done, wait) = oneshot::channel();
            if worker.commands.send(Command::Drain { deadline, done }).is_ok() {
                waits.push(wait);
            }
        }
        for wait in waits {
            let _ = wait.await;
        }
    }

    /// The counters of all workers, merged.
    pub fn stats(&self) -> Stats {
        Stats::merge(
            self.workers.iter().map(|w| &*w.stats),
            &self.shared.config.load(),
            &self.shared.options.workload,
            self.shared.started.elapsed(),
        )
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<RuntimeConfig> {
        self.shared.config.load_full()
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            let _ = worker.commands.send(command());
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for worker in &self.workers {
            let _ = worker.commands.send(Command::Stop);
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

fn listen(address: SocketAddr, way: Bound, backlog: Option<u32>) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if way.transparent {
        if address.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
        }
    }
    if way.freebind {
        if address.is_ipv4() {
            socket.set_freebind_v4(true)?;
        } else {
            socket.set_freebind_v6(true)?;
        }
    }
    socket.bind(&address.into())?;
    socket.listen(backlog.and_then(|b| i32::try_from(b).ok()).unwrap_or(4096))?;
    Ok(socket.into())
}
