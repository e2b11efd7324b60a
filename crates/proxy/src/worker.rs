//! A worker: one thread, one event loop, its own sockets, pools and counters.
//!
//! Invariant: everything here is single-threaded (`Rc`, `Cell`); what crosses threads is the shared configuration, the
//! command channel and counters. A configuration is taken over before the next decision is made with it.

use crate::connection;
use crate::engine::Shared;
use crate::lifecycle::{Life, Phase};
use crate::stats::{ListenerStats, WorkerStats};
use crate::tls::TlsCache;
use crate::upstream::Upstreams;
use carrick_proxy_core::RuntimeConfig;
use carrick_proxy_core::model::Name;
use carrick_proxy_core::model::listener::{FilterChain, Listener};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// What the engine asks of a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// Accept on this socket, instead of any other of this address.
    Listen(SocketAddr, TcpListener),
    /// Stop accepting here.
    Unlisten(SocketAddr),
    /// The configuration was replaced.
    Swapped,
    /// End in order.
    Drain { deadline: Duration, done: oneshot::Sender<()> },
    /// End now.
    Stop,
}

/// The configuration that this worker works with.
#[derive(Debug)]
pub(crate) struct Live {
    pub config: Arc<RuntimeConfig>,
}

struct ChainEntry {
    listener: Name,
    chain: Arc<FilterChain>,
    life: Rc<Life>,
}

pub(crate) struct Worker {
    pub shared: Arc<Shared>,
    pub stats: Arc<WorkerStats>,
    /// Connections without a chain yet; and all of them when the engine drains.
    pub life: Rc<Life>,
    pub tls: TlsCache,
    pub upstreams: Upstreams,
    pub log: crate::log::Log,
    live: RefCell<Rc<Live>>,
    chains: RefCell<HashMap<usize, ChainEntry>>,
    /// Lives whose chain is gone but whose connections are not.
    leaving: RefCell<Vec<Rc<Life>>>,
    listeners: RefCell<HashMap<Name, Arc<ListenerStats>>>,
    accepting: RefCell<HashMap<SocketAddr, JoinHandle<()>>>,
    ids: Cell<u64>,
    random: Cell<u64>,
}

/// Time between sweeps of idle pooled connections.
const SWEEP: Duration = Duration::from_secs(5);

/// The body of a worker's thread.
pub(crate) fn run(shared: Arc<Shared>, stats: Arc<WorkerStats>, commands: mpsc::UnboundedReceiver<Command>) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::from_secs(2))
        .build_local(LocalOptions::default());
    match runtime {
        Ok(runtime) => runtime.block_on(serve(shared, stats, commands)),
        Err(e) => tracing::error!("a proxy worker has no event loop: {e}"),
    }
}

async fn serve(shared: Arc<Shared>, stats: Arc<WorkerStats>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let live = Rc::new(Live { config: shared.config.load_full() });
    let worker = Rc::new(Worker {
        tls: TlsCache::new(shared.secrets.clone()),
        upstreams: Upstreams::default(),
        log: crate::log::Log,
        life: Life::new(),
        live: RefCell::new(live),
        chains: RefCell::default(),
        leaving: RefCell::default(),
        listeners: RefCell::default(),
        accepting: RefCell::default(),
        ids: Cell::new(0),
        random: Cell::new(rand::random::<u64>() | 1),
        shared,
        stats,
    });
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Listen(address, socket)) => worker.listen(address, socket),
                Some(Command::Unlisten(address)) => worker.unlisten(address),
                Some(Command::Swapped) => {
                    worker.live();
                }
                Some(Command::Drain { deadline, done }) => {
                    let draining = Rc::clone(&worker);
                    worker.spawn(async move {
                        draining.drain(deadline).await;
                        let _ = done.send(());
                    });
                }
                Some(Command::Stop) | None => return,
            },
            _ = sweep.tick() => {
                worker.upstreams.sweep(&worker);
                worker.forget_unused();
            }
        }
    }
}

impl Worker {
    /// Runs a task on this worker. It ends with the worker at the latest.
    pub fn spawn<F: Future<Output = ()> + 'static>(&self, task: F) -> JoinHandle<()> {
        tokio::task::spawn_local(task)
    }

    /// The configuration in force; takes over a new one.
    pub fn live(self: &Rc<Self>) -> Rc<Live> {
        let current = self.shared.config.load();
        if !Arc::ptr_eq(&current, &self.live.borrow().config) {
            self.swap(Arc::clone(&current));
        }
        Rc::clone(&self.live.borrow())
    }

    /// A number for a connection, unique within the engine's life for practical purposes.
    pub fn next_id(&self) -> u64 {
        self.ids.set(self.ids.get().wrapping_add(1));
        self.ids.get()
    }

    /// Cheap randomness for balancing and sampling (xorshift*): not for secrets.
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Milliseconds of `now` since the engine started.
    pub fn millis(&self, now: std::time::Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.shared.started).as_millis()).unwrap_or(u64::MAX)
    }

    pub fn listener_stats(&self, name: &Name) -> Arc<ListenerStats> {
        Arc::clone(self.listeners.borrow_mut().entry(Arc::clone(name)).or_insert_with(|| self.stats.listener(name)))
    }

    /// The life of a chain's connections.
    pub fn chain_life(&self, listener: &Listener, chain: &Arc<FilterChain>) -> Rc<Life> {
        let mut chains = self.chains.borrow_mut();
        let entry = chains.entry(Arc::as_ptr(chain) as usize).or_insert_with(|| {
            let life = Life::new();
            life.advance(self.life.phase());
            ChainEntry { listener: Arc::clone(&listener.name), chain: Arc::clone(chain), life }
        });
        Rc::clone(&entry.life)
    }

    pub fn log_no_chain(&self, listener: &Listener, local: SocketAddr, peer: SocketAddr, sni: Option<&str>) {
        tracing::debug!(listener = %listener.name, %local, %peer, sni, "no filter chain: connection reset");
        self.log.no_chain(listener, local, peer, sni);
    }

    pub fn log_tls_failure(&self, listener: &Listener, local: SocketAddr, peer: SocketAddr, why: &str) {
        tracing::debug!(listener = %listener.name, %local, %peer, "handshake failed: {why}");
    }

    fn listen(self: &Rc<Self>, address: SocketAddr, socket: TcpListener) {
        let socket = match tokio::net::TcpListener::from_std(socket) {
            Ok(s) => s,
            Err(e) => {
                tracing::error!(%address, "cannot accept: {e}");
                return;
            }
        };
        let worker = Rc::clone(self);
        let task = self.spawn(async move { worker.accept(address, socket).await });
        if let Some(old) = self.accepting.borrow_mut().insert(address, task) {
            old.abort();
        }
    }

    async fn accept(self: Rc<Self>, address: SocketAddr, socket: tokio::net::TcpListener) {
        let mut pause = Duration::from_millis(5);
        loop {
            match socket.accept().await {
                Ok((tcp, peer)) => {
                    pause = Duration::from_millis(5);
                    self.spawn(connection::run(Rc::clone(&self), address, tcp, peer));
                }
                // The client left while it waited: nothing to do with us.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ECONNABORTED | libc::EPROTO | libc::EINTR)) => {}
                // No descriptors or memory: accepting at once again would only burn time.
                Err(e) => {
                    tracing::warn!(%address, "cannot accept: {e}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
            }
        }
    }

    fn unlisten(&self, address: SocketAddr) {
        if let Some(task) = self.accepting.borrow_mut().remove(&address) {
            task.abort();
        }
    }

    fn swap(self: &Rc<Self>, config: Arc<RuntimeConfig>) {
        let old = self.live.replace(Rc::new(Live { config: Arc::clone(&config) }));
        self.upstreams.swap(&old.config, &config);
        // Chains that went on unchanged keep their connections, also where the update made new values of them.
        let mut chains = self.chains.borrow_mut();
        let mut kept = HashMap::with_capacity(chains.len());
        for (_, mut entry) in chains.drain() {
            match successor(&config, &entry) {
                Some(chain) => {
                    let key = Arc::as_ptr(&chain) as usize;
                    entry.chain = chain;
                    kept.insert(key, entry);
                }
                None => self.leave(entry.life),
            }
        }
        *chains = kept;
        drop(chains);
        self.tls.sweep();
    }

    /// Lets the connections of a life go within the drain time.
    fn leave(self: &Rc<Self>, life: Rc<Life>) {
        if life.open() == 0 {
            return;
        }
        self.leaving.borrow_mut().push(Rc::clone(&life));
        let worker = Rc::clone(self);
        let time = self.shared.options.drain_time;
        self.spawn(async move {
            wind_down(std::slice::from_ref(&life), time).await;
            worker.leaving.borrow_mut().retain(|l| !Rc::ptr_eq(l, &life));
        });
    }

    async fn drain(&self, deadline: Duration) {
        for (_, task) in self.accepting.borrow_mut().drain() {
            task.abort();
        }
        let mut lives: Vec<Rc<Life>> = vec![Rc::clone(&self.life)];
        lives.extend(self.chains.borrow().values().map(|c| Rc::clone(&c.life)));
        lives.extend(self.leaving.borrow().iter().cloned());
        wind_down(&lives, deadline).await;
    }

    fn forget_unused(&self) {
        self.chains.borrow_mut().retain(|_, c| c.life.open() > 0);
    }
}

/// The chain of the new configuration that is the same as `entry`'s.
fn successor(config: &RuntimeConfig, entry: &ChainEntry) -> Option<Arc<FilterChain>> {
    let listener = config.listeners.by_name.get(&entry.listener)?;
    let all = || listener.chains.iter().chain(&listener.default_chain);
    if let Some(same) = all().find(|c| Arc::ptr_eq(c, &entry.chain)) {
        return Some(Arc::clone(same));
    }
    let shown = format!("{:?}", entry.chain);
    all().find(|c| c.name == entry.chain.name && format!("{c:?}") == shown).cloned()
}

/// Draining, closing, cutting, within `deadline`; returns as soon as nothing is open.
async fn wind_down(lives: &[Rc<Life>], deadline: Duration) {
    let open = || lives.iter().map(|l| l.open()).sum::<usize>();
    let steps = [
        (Phase::Draining, deadline.mul_f64(0.8)),
        (Phase::Closing, deadline.mul_f64(0.2)),
        (Phase::Cut, Duration::from_millis(200)),
    ];
    for (phase, time) in steps {
        lives.iter().for_each(|l| l.advance(phase));
        let end = tokio::time::Instant::now() + time;
        // Connections end by themselves and tell nobody, so that they need not know who waits.
        loop {
            if open() == 0 {
                return;
            }
            let now = tokio::time::Instant::now();
            if now >= end {
                break;
            }
            tokio::time::sleep_until(end.min(now + Duration::from_millis(20))).await;
        }
    }
}
