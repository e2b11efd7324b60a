//! The proxies there are, and what each said of itself last.
//!
//! Invariant: a proxy stays known when its connection ends, so that one that is frozen or cut off is still waited for; it
//! is forgotten when its pod is gone from the API, or a while after its certificate has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use carrick_certs::rotation::{Proxy, Told};
use carrick_pki::trust_service::Report;
use carrick_pki::{CertificateInfo, TrustBundle, pem};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A proxy as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    proxy: Proxy,
    pod: bool,
}

#[derive(Debug)]
struct Entry {
    proxy: Proxy,
    engine: String,
    /// The connection that speaks for it.
    stream: u64,
    /// The API had a pod of this name.
    pod: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Population {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    all: BTreeMap<String, Entry>,
}

/// Why a report is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReportError {
    #[error("the proxy's name is none")]
    Name,
    #[error("its certificate: {0}")]
    Certificate(String),
}

impl Population {
    /// Those that were known are away until they come back.
    pub(crate) fn new(known: Vec<Known>, now: SystemTime) -> Arc<Self> {
        let entry = |Known { mut proxy, pod }: Known| {
            proxy.away = Some(proxy.away.unwrap_or(now));
            (proxy.name.clone(), Entry { proxy, engine: String::new(), stream: 0, pod })
        };
        let all = known.into_iter().map(entry).collect();
        Arc::new(Self { inner: Mutex::new(Inner { next: 0, all }), changed: watch::channel(0).0 })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes with every report, arrival and departure.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<Proxy> {
        self.lock().all.values().map(|entry| entry.proxy.clone()).collect()
    }

    /// All of them, to be written down.
    pub(crate) fn known(&self) -> Vec<Known> {
        self.lock().all.values().map(|entry| Known { proxy: entry.proxy.clone(), pod: entry.pod }).collect()
    }

    /// All of them, with the engine each runs.
    pub(crate) fn engines(&self) -> BTreeMap<String, String> {
        self.lock().all.iter().map(|(name, entry)| (name.clone(), entry.engine.clone())).collect()
    }

    /// A number for a connection that is to speak for a proxy.
    pub(crate) fn stream(&self) -> u64 {
        let mut inner = self.lock();
        inner.next = inner.next.wrapping_add(1);
        inner.next
    }

    /// Takes what a proxy says of itself; gives its full name.
    ///
    /// # Errors
    /// It is of no use.
    pub(crate) fn take(
        &self,
        stream: u64,
        namespace: &str,
        report: &Report,
        roots: &TrustBundle,
        now: SystemTime,
    ) -> Result<String, ReportError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if report.name.is_empty() || report.name.len() > 253 || !report.name.chars().all(plain) {
            return Err(ReportError::Name);
        }
        let wrong = |e: &dyn std::fmt::Display| ReportError::Certificate(e.to_string());
        let chain = pem::certificates(report.chain.as_bytes()).map_err(|e| wrong(&e))?;
        let leaf = chain.first().ok_or_else(|| ReportError::Certificate("none".to_owned()))?;
        let info = CertificateInfo::read(leaf).map_err(|e| wrong(&e))?;
        let told = Told {
            trusts: report.trusts.iter().cloned().collect(),
            leads_to: roots.led_to(&chain),
            serial: info.serial,
            not_after: info.not_after,
        };
        let name = format!("{}.{namespace}", report.name);
        let mut inner = self.lock();
        let entry = inner.all.entry(name.clone()).or_insert_with(|| Entry {
            proxy: Proxy { name: name.clone(), seen: now, away: None, told: None },
            engine: String::new(),
            stream,
            pod: false,
        });
        entry.stream = stream;
        entry.engine.clone_from(&report.engine);
        entry.proxy.away = None;
        entry.proxy.told = Some(told);
        drop(inner);
        self.bump();
        Ok(name)
    }

    /// A connection ended; what it said stays.
    pub(crate) fn left(&self, stream: u64, name: &str, now: SystemTime) {
        if let Some(entry) = self.lock().all.get_mut(name).filter(|entry| entry.stream == stream) {
            entry.proxy.away = Some(now);
        }
        self.bump();
    }

    /// Adds those who are connected otherwise and have said nothing, and forgets those of them who are not any more.
    pub(crate) fn silent(&self, connected: &BTreeSet<String>, now: SystemTime) {
        let mut inner = self.lock();
        for name in connected {
            inner.all.entry(name.clone()).or_insert_with(|| Entry {
                proxy: Proxy { name: name.clone(), seen: now, away: None, told: None },
                engine: String::new(),
                stream: 0,
                pod: false,
            });
        }
        inner.all.retain(|name, entry| entry.proxy.told.is_some() || connected.contains(name));
    }

    /// Whether the API has to be asked about somebody.
    pub(crate) fn is_unclear(&self) -> bool {
        self.lock().all.values().any(|entry| entry.proxy.away.is_some() || !entry.pod)
    }

    /// The pods there are: who was one and is no more is forgotten.
    pub(crate) fn pods(&self, pods: &BTreeSet<String>) {
        let mut inner = self.lock();
        for (name, entry) in &mut inner.all {
            entry.pod |= pods.contains(name);
        }
        inner.all.retain(|name, entry| !(entry.pod && entry.proxy.away.is_some() && !pods.contains(name)));
    }

    /// Forgets who is away with a certificate that ended before `then`.
    pub(crate) fn forget_ended(&self, then: SystemTime) {
        let ended = |proxy: &Proxy| proxy.away.is_some() && proxy.told.as_ref().is_some_and(|t| t.not_after < then);
        self.lock().all.retain(|_, entry| !ended(&entry.proxy));
    }

    fn bump(&self) {
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }
}
