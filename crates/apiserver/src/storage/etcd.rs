//! The storage on etcd: several replicas of this API over one, each with a picture of everything in memory.
//!
//! Invariant: order is etcd's: a revision here is a revision there, and one transaction on it is one change. A picture is
//! changed by etcd's watch alone, also for one's own writes; a write is answered when etcd has acknowledged it and the
//! picture shows it. A replica that cannot reach etcd refuses writes and consistent reads, shows what it last knew to
//! whoever asks for no more, and goes on with the watch where it was.
//! What it leaves to others: what values mean (`store`).

mod client;
mod compact;
mod layout;
mod replica;
mod restore;
mod wire;
mod write;

use super::engine::{Command, EngineOptions, Freshener};
use super::image::Image;
use super::{Loaded, StorageError};
pub use restore::{RestoreError, restore};

use client::Client;
use layout::Layout;
use replica::Replica;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `https`.
    pub tls: bool,
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: http::Uri = text.parse().map_err(|e| format!("{text}: {e}"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(format!("{text}: must begin with http:// or https://")),
        };
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| format!("{text}: no host"))?;
        if !matches!(uri.path(), "" | "/") {
            return Err(format!("{text}: must have no path"));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(2379), tls })
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let brackets = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{}{}{}:{}", brackets.0, self.host, brackets.1, self.port)
    }
}

/// Which etcd, and how.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// Endpoints of one cluster.
    pub servers: Vec<Server>,
    /// Whom to believe, for `https`.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, if it asks for one.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// What all keys begin with.
    pub prefix: String,
    /// How often history is forgotten, and how old it is then at least; zero: others do that.
    pub compact_every: Duration,
}

impl EtcdOptions {
    /// Kubernetes' prefix, and its five minutes.
    pub fn new(servers: Vec<Server>) -> Self {
        Self {
            servers,
            ca_file: None,
            cert_file: None,
            key_file: None,
            prefix: "/registry".into(),
            compact_every: Duration::from_secs(300),
        }
    }
}

/// What the engine's handles hold the other ends of.
pub(super) struct Ends {
    pub commands: mpsc::Receiver<Command>,
    pub fresheners: mpsc::Receiver<Freshener>,
    pub healthy: Arc<AtomicBool>,
}

/// The picture, and how far it is.
#[derive(Clone)]
struct Picture {
    image: Arc<RwLock<Image>>,
    /// The revision up to which it is complete.
    through: watch::Sender<u64>,
}

impl Picture {
    fn with<T>(&self, f: impl FnOnce(&mut Image) -> T) -> T {
        f(&mut self.image.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn advance(&self, revision: u64) {
        self.with(|image| image.advance(revision));
        self.through.send_if_modified(|known| std::mem::replace(known, revision.max(*known)) < revision);
    }

    /// Waits until it is at `revision`; whether that happened in time.
    async fn reaches(&self, revision: u64, patience: Duration) -> bool {
        let mut through = self.through.subscribe();
        let reached = async { through.wait_for(|at| *at >= revision).await.is_ok() };
        tokio::time::timeout(patience, reached).await.unwrap_or(false)
    }
}

/// What all parts share.
#[derive(Clone)]
struct Shared {
    client: Client,
    layout: Arc<Layout>,
    picture: Picture,
    healthy: Arc<AtomicBool>,
}

/// Everything of this storage, until the last handle of the engine is gone. `told` hears of the picture when it is
/// complete, or why there is none.
pub(super) fn run(
    options: EtcdOptions,
    sizes: EngineOptions,
    ends: Ends,
    told: &SyncSender<Result<Arc<RwLock<Image>>, StorageError>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(told.send(Err(StorageError::Medium(error.to_string())))),
    };
    runtime.block_on(async {
        let picture =
            Picture { image: Arc::new(RwLock::new(Image::new(Loaded::default()))), through: watch::Sender::new(0) };
        let shared = Shared {
            client: Client::new(options.clone()),
            layout: Arc::new(Layout::new(&options.prefix)),
            picture: picture.clone(),
            healthy: ends.healthy.clone(),
        };
        let mut replica = Replica::new(shared.clone(), sizes);
        if let Err(error) = replica.load().await {
            return drop(told.send(Err(error)));
        }
        drop(told.send(Ok(picture.image.clone())));
        let mut tasks = JoinSet::new();
        tasks.spawn(replica.follow());
        tasks.spawn(write::freshen(shared.clone(), ends.fresheners));
        if !options.compact_every.is_zero() {
            tasks.spawn(compact::run(shared.clone(), options.compact_every));
        }
        // Ends when nobody can ask any more.
        write::run(shared, ends.commands, sizes.group).await;
        tasks.shutdown().await;
    });
}

/// What somebody who is no replica wants of an etcd. Blocks.
fn asked<T, E: From<StorageError>>(
    options: &EtcdOptions,
    work: impl AsyncFnOnce(Client, Layout) -> Result<T, E>,
) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| StorageError::Medium(e.to_string()))?;
    runtime.block_on(work(Client::new(options.clone()), Layout::new(&options.prefix)))
}

/// Puts `entries` (name, content) down in etcd if none of them is there, and gives those that are: what all replicas have
/// to share, by whoever was first. Blocks.
///
/// # Errors
/// As [`super::Engine::over_etcd`]; `Medium` when only some are there.
pub fn agree(options: &EtcdOptions, entries: Vec<(&str, Vec<u8>)>) -> Result<Vec<Vec<u8>>, StorageError> {
    asked(options, async |client, layout| {
        client.appears(layout.own("tick")).await;
        let mut txn = wire::TxnRequest::default();
        for (name, content) in &entries {
            let key = layout.own(name);
            txn.compare.push(wire::changed_at(key.clone(), 0));
            let value = bytes::Bytes::copy_from_slice(content);
            txn.success.push(wire::step(wire::Request::Put(wire::PutRequest { key: key.clone(), value, lease: 0 })));
            let read = wire::RangeRequest { key, ..wire::RangeRequest::default() };
            txn.failure.push(wire::step(wire::Request::Range(read)));
        }
        let answer = client.txn(txn).await?;
        if answer.succeeded {
            return Ok(entries.into_iter().map(|(_, content)| content).collect());
        }
        let theirs = answer.responses.into_iter().filter_map(|r| match r.response {
            Some(wire::Response::Range(range)) => range.kvs.into_iter().next().map(|kv| kv.value.to_vec()),
            _ => None,
        });
        let theirs: Vec<Vec<u8>> = theirs.collect();
        if theirs.len() == entries.len() {
            Ok(theirs)
        } else {
            let names: Vec<&str> = entries.iter().map(|(name, _)| *name).collect();
            Err(StorageError::Medium(format!("etcd has only some of {}: remove or restore them", names.join(", "))))
        }
    })
}

/// A revision as we count them; etcd's are never negative.
fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn revision_of(header: Option<&wire::Header>) -> u64 {
    header.map_or(0, |h| unsigned(h.revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read() {
        for (text, shown) in [
            ("http://a", "http://a:2379"),
            ("https://a.b:1/", "https://a.b:1"),
            ("https://[::1]:2379", "https://[::1]:2379"),
        ] {
            assert_eq!(text.parse::<Server>().unwrap().to_string(), shown);
        }
        for wrong in ["a:2379", "tcp://a:1", "http://", "http://a/b", ""] {
            assert!(wrong.parse::<Server>().is_err(), "{wrong}");
        }
    }
}
