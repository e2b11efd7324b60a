//! A worker's view of the configuration, and the lives of the connections that depend on it.
//!
//! Invariant: single-threaded. A configuration is taken over before the next decision is made with it; connections of
//! chains that are gone drain, others notice nothing. Accepting is in `accept`, serving in `connection`.

use crate::lifecycle::{Life, Phase};
use crate::local::Local;
use crate::upstream::Upstreams;
use carrick_proxy_core::RuntimeConfig;
use carrick_proxy_core::model::Name;
use carrick_proxy_core::model::listener::{FilterChain, Listener};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

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
    pub local: Rc<Local>,
    /// Connections without a chain yet; and all of them when the engine drains.
    pub life: Rc<Life>,
    pub upstreams: Upstreams,
    /// Key sets of JWT providers.
    pub jwks: crate::jwks::Cache,
    /// Faults at work.
    pub faults: std::cell::Cell<u32>,
    live: RefCell<Rc<Live>>,
    chains: RefCell<HashMap<usize, ChainEntry>>,
    /// Lives whose chain is gone but whose connections are not.
    leaving: RefCell<Vec<Rc<Life>>>,
}

impl std::ops::Deref for Worker {
    type Target = Local;
    fn deref(&self) -> &Local {
        &self.local
    }
}

impl Worker {
    pub fn new(local: Local) -> Rc<Worker> {
        let live = Rc::new(Live { config: local.shared.config.load_full() });
        Rc::new(Worker {
            local: Rc::new(local),
            upstreams: Upstreams::default(),
            jwks: crate::jwks::Cache::default(),
            faults: std::cell::Cell::new(0),
            life: Life::new(),
            live: RefCell::new(live),
            chains: RefCell::default(),
            leaving: RefCell::default(),
        })
    }

    /// The configuration in force; takes over a new one.
    pub fn live(self: &Rc<Self>) -> Rc<Live> {
        let current = self.shared.config.load();
        if !Arc::ptr_eq(&current, &self.live.borrow().config) {
            self.swap(Arc::clone(&current));
        }
        Rc::clone(&self.live.borrow())
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

    /// Lets all connections go within `deadline`. Accepting has ended.
    pub async fn drain(&self, deadline: Duration) {
        let mut lives: Vec<Rc<Life>> = vec![Rc::clone(&self.life)];
        lives.extend(self.chains.borrow().values().map(|c| Rc::clone(&c.life)));
        lives.extend(self.leaving.borrow().iter().cloned());
        wind_down(&lives, deadline).await;
    }

    /// Housekeeping, now and then.
    pub fn sweep(&self) {
        self.upstreams.sweep(&self.local);
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
