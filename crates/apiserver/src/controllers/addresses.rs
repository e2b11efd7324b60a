//! Which cluster IPs and node ports are taken: by stored services, and by writes that are on their way to the store.
//!
//! Invariant: no address is promised twice. What is stored is learnt from the store's own history, synchronously, before
//! each decision; what is promised is kept until it shows up there or the promise has expired. Where other servers promise too,
//! the storage refuses the later of two writes, and its claims are looked for anew.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{ApiError, ApiResult};
pub use crate::store::Claim;
use crate::store::{EventType, Store, Watch, held, name_of, namespace_of};

/// First address of the service network 10.96.0.0/16.
const NETWORK: u32 = 0x0A60_0000;
const NETWORK_SIZE: u32 = 1 << 16;
/// Addresses below this offset are given out only when asked for by name.
const STATIC_BAND: u32 = 256;
/// Address of the `kubernetes` service.
pub const KUBERNETES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Address at which pods find DNS.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Node ports that may be allocated.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// How long a write may take between its admission and its commit.
const PROMISE: Duration = Duration::from_secs(30);

/// Namespace and name of a service.
type Owner = (String, String);

/// Why a claim cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    #[error("provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/16")]
    OutsideNetwork,
    #[error("provided IP is already allocated")]
    IpTaken,
    #[error("provided port is not in the valid range. The range of valid ports is 30000-32767")]
    OutsidePorts,
    #[error("provided port is already allocated")]
    PortTaken,
    #[error("range is full")]
    Full,
}

/// All claims.
pub struct Addresses {
    store: Store,
    state: Mutex<State>,
    nameless: AtomicU64,
}

#[derive(Default)]
struct State {
    watch: Option<Watch>,
    stored: HashMap<Claim, Owner>,
    claims_of: HashMap<Owner, Vec<Claim>>,
    promised: HashMap<Claim, (Owner, Duration)>,
    /// Where the search for a free address goes on, so that addresses are not reused at once.
    next_ip: u32,
    next_port: u32,
}

impl Addresses {
    /// Claims of the services in `store`.
    pub fn new(store: Store) -> Self {
        let mut state = State::default();
        if store.engine().is_shared() {
            // Other servers search too, and what they find shows here a moment later: each begins at another place.
            state.next_ip = rand::random_range(0..NETWORK_SIZE - STATIC_BAND - 1);
            state.next_port = rand::random_range(0..u32::from(NODE_PORTS.end() - NODE_PORTS.start()));
        }
        Self { store, state: Mutex::new(state), nameless: AtomicU64::new(0) }
    }

    /// A name for a service whose own is generated later. No service can have it, and no two calls give the same, so that
    /// two such services never share a promise.
    pub fn nameless(&self) -> String {
        format!("*{}", self.nameless.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes a given claim for a service; taking what the service has already is fine. With `promise` false it is only
    /// checked.
    ///
    /// # Errors
    /// [`ClaimError`] in the inner result when it cannot be had; the outer one when the store is closed.
    pub fn take(&self, claim: Claim, namespace: &str, name: &str, promise: bool) -> ApiResult<Result<(), ClaimError>> {
        if let Err(error) = in_range(claim) {
            return Ok(Err(error));
        }
        self.with(|state, now| {
            let owner = (namespace.to_owned(), name.to_owned());
            if !state.is_free_for(claim, &owner) {
                return Err(match claim {
                    Claim::Ip(_) => ClaimError::IpTaken,
                    Claim::NodePort(_) => ClaimError::PortTaken,
                });
            }
            // What is stored needs no promise, which would outlive the service if no write follows.
            if promise && !state.stored.contains_key(&claim) {
                state.promised.insert(claim, (owner, now));
            }
            Ok(())
        })
    }

    /// Finds a free cluster IP for a service. A promise that the same service already has is used again.
    ///
    /// # Errors
    /// As [`Addresses::take`].
    pub fn find_ip(&self, namespace: &str, name: &str, promise: bool) -> ApiResult<Result<Ipv4Addr, ClaimError>> {
        self.with(|state, now| {
            let owner = (namespace.to_owned(), name.to_owned());
            let own = state.promised.iter().find_map(|(claim, (o, _))| match claim {
                Claim::Ip(ip) if *o == owner => Some(*ip),
                _ => None,
            });
            if let Some(ip) = own {
                return Ok(ip);
            }
            // The broadcast address ends the range; the static band is used when all else is full.
            let dynamic = NETWORK_SIZE - STATIC_BAND - 1;
            let start = state.next_ip;
            let upper = (0..dynamic).map(|i| STATIC_BAND + (start.wrapping_add(i)) % dynamic);
            let lower = 1..STATIC_BAND;
            let reserved = |ip: Ipv4Addr| ip == DNS || ip == KUBERNETES;
            let found = upper.chain(lower).map(|offset| Ipv4Addr::from(NETWORK + offset));
            let ip = found.into_iter().find(|ip| !reserved(*ip) && state.is_free_for(Claim::Ip(*ip), &owner));
            let ip = ip.ok_or(ClaimError::Full)?;
            if promise {
                state.next_ip = u32::from(ip).wrapping_sub(NETWORK + STATIC_BAND).wrapping_add(1) % dynamic;
                state.promised.insert(Claim::Ip(ip), (owner, now));
            }
            Ok(ip)
        })
    }

    /// Finds a free node port for a service, other than those in `except`.
    ///
    /// # Errors
    /// As [`Addresses::take`].
    pub fn find_node_port(
        &self,
        namespace: &str,
        name: &str,
        except: &[u16],
        promise: bool,
    ) -> ApiResult<Result<u16, ClaimError>> {
        self.with(|state, now| {
            let owner = (namespace.to_owned(), name.to_owned());
            let size = u32::from(NODE_PORTS.end() - NODE_PORTS.start()) + 1;
            let start = state.next_port;
            let ports = (0..size).filter_map(|i| {
                let offset = u16::try_from(start.wrapping_add(i) % size).ok()?;
                NODE_PORTS.start().checked_add(offset)
            });
            let free = |port: &u16| !except.contains(port) && state.is_unused(Claim::NodePort(*port));
            let port = ports.into_iter().find(free).ok_or(ClaimError::Full)?;
            if promise {
                state.next_port = u32::from(port - NODE_PORTS.start()) + 1;
                state.promised.insert(Claim::NodePort(port), (owner, now));
            }
            Ok(port)
        })
    }

    fn with<T>(&self, decide: impl FnOnce(&mut State, Duration) -> T) -> ApiResult<T> {
        // A panic while the lock was held leaves maps that are at worst too full; the next catch-up repairs them.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.store.clock().monotonic();
        state.catch_up(&self.store)?;
        state.promised.retain(|_, (_, since)| now.saturating_sub(*since) < PROMISE);
        Ok(decide(&mut state, now))
    }
}

fn in_range(claim: Claim) -> Result<(), ClaimError> {
    match claim {
        Claim::Ip(ip) => {
            let offset = u32::from(ip).checked_sub(NETWORK);
            let inside = offset.is_some_and(|o| o > 0 && o < NETWORK_SIZE - 1);
            if inside { Ok(()) } else { Err(ClaimError::OutsideNetwork) }
        }
        Claim::NodePort(port) => {
            if NODE_PORTS.contains(&port) {
                Ok(())
            } else {
                Err(ClaimError::OutsidePorts)
            }
        }
    }
}

impl State {
    fn catch_up(&mut self, store: &Store) -> ApiResult<()> {
        loop {
            let Some(watch) = self.watch.as_mut() else {
                self.start_over(store)?;
                return Ok(());
            };
            match watch.ready() {
                Ok(None) => return Ok(()),
                Ok(Some(event)) => {
                    let owner = (event.namespace().to_owned(), event.name().to_owned());
                    let claims = if event.kind == EventType::Deleted { Vec::new() } else { held(&event.object) };
                    self.set(owner, claims);
                }
                Err(ApiError::Expired(_)) => self.watch = None,
                Err(error) => return Err(error),
            }
        }
    }

    fn start_over(&mut self, store: &Store) -> ApiResult<()> {
        self.stored.clear();
        self.claims_of.clear();
        let list = store.list("services", None);
        for service in &list.items {
            self.set((namespace_of(service).to_owned(), name_of(service).to_owned()), held(service));
        }
        self.watch = Some(store.watch("services", list.revision)?);
        Ok(())
    }

    fn set(&mut self, owner: Owner, claims: Vec<Claim>) {
        for old in self.claims_of.remove(&owner).unwrap_or_default() {
            if self.stored.get(&old) == Some(&owner) {
                self.stored.remove(&old);
            }
        }
        for claim in &claims {
            self.promised.remove(claim);
            self.stored.insert(*claim, owner.clone());
        }
        if !claims.is_empty() {
            self.claims_of.insert(owner, claims);
        }
    }

    fn is_free_for(&self, claim: Claim, owner: &Owner) -> bool {
        self.stored.get(&claim).is_none_or(|o| o == owner) && self.promised.get(&claim).is_none_or(|(o, _)| o == owner)
    }

    fn is_unused(&self, claim: Claim) -> bool {
        !self.stored.contains_key(&claim) && !self.promised.contains_key(&claim)
    }
}
