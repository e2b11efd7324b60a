//! Somebody outside who makes a handshake with every sidecar again and again, and notes which certificate it serves and how old that is.
//!
//! Invariant: what is noted was seen on the wire, by the clock after the handshake; a certificate counts as served until the moment in
//! which another one was seen in its place, so that nothing between two looks is missed. A handshake that fails is a failure.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use carrick_pki::{
    CertificateInfo,
    tls::{ServerAuth, TlsOptions, client_config},
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, sync::Semaphore, task::JoinHandle};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// How long one look may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Looks under way at once; a round that cannot keep up becomes longer.
const AT_ONCE: usize = 64;
/// Failures that are told in words.
const TOLD: usize = 5;

/// Somebody who is looked at.
#[derive(Debug, Clone)]
pub struct Target {
    /// The pod's name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// What counts of a certificate here.
#[derive(Debug, Clone)]
struct Leaf {
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// What was seen of one sidecar.
#[derive(Debug, Clone)]
struct Member {
    leaf: Option<Leaf>,
    serials: BTreeSet<String>,
    /// When it was looked at last.
    looked: Option<Instant>,
}

/// What was seen so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Handshakes that went through.
    pub looks: u64,
    /// Handshakes that did not.
    pub failed: u64,
    /// Why, of the first ones.
    pub failures: Vec<String>,
    /// The highest share of its life at which a certificate was served, counted from its signature.
    pub highest: f64,
    /// Whose that was.
    pub whose: String,
    /// The same, counted from `notBefore`, which lies before the signature for the sake of clocks that are behind.
    pub from_not_before: f64,
    /// The longest time between two looks at one sidecar.
    pub gap: Duration,
    members: Vec<Member>,
}

impl Seen {
    /// Different certificates that were seen.
    pub fn certificates(&self) -> usize {
        self.members.iter().map(|member| member.serials.len()).sum()
    }

    /// The smallest and the largest number of certificates of one sidecar.
    pub fn spread(&self) -> (usize, usize) {
        let each = || self.members.iter().map(|member| member.serials.len());
        (each().min().unwrap_or_default(), each().max().unwrap_or_default())
    }

    /// Notes a look at one member.
    fn note(&mut self, at: usize, name: &str, leaf: Leaf, life: Duration, now: (SystemTime, Instant)) {
        self.looks += 1;
        let Some(member) = self.members.get_mut(at) else { return };
        if let Some(before) = member.looked.replace(now.1) {
            self.gap = self.gap.max(now.1.saturating_duration_since(before));
        }
        let replaced = member.leaf.take().filter(|old| old.serial != leaf.serial);
        member.serials.insert(leaf.serial.clone());
        member.leaf = Some(leaf.clone());
        // The one before may have been served until a moment ago.
        for certificate in [Some(leaf), replaced].into_iter().flatten() {
            let signed = certificate.not_after.checked_sub(life).unwrap_or(certificate.not_before);
            let share = used((signed, certificate.not_after), now.0);
            if share > self.highest {
                self.highest = share;
                self.whose = format!("{name}, serial {}", certificate.serial);
            }
            self.from_not_before =
                self.from_not_before.max(used((certificate.not_before, certificate.not_after), now.0));
        }
    }

    fn fail(&mut self, name: &str, error: &anyhow::Error) {
        self.failed += 1;
        if self.failures.len() < TOLD {
            self.failures.push(format!("{name}: {error:#}"));
        }
    }
}

/// The share of a life that has passed.
fn used((from, until): (SystemTime, SystemTime), now: SystemTime) -> f64 {
    let life = until.duration_since(from).unwrap_or_default().as_secs_f64();
    let passed = now.duration_since(from).unwrap_or_default().as_secs_f64();
    if life > 0.0 { passed / life } else { f64::INFINITY }
}

/// The one who looks, until told to end.
pub struct Observer {
    seen: Arc<Mutex<Seen>>,
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Observer {
    /// Looks at each of these once in `every`; their certificates are signed for `life`.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn start(targets: Vec<Target>, life: Duration, every: Duration) -> Result<Self> {
        let config = client_config(None, ServerAuth::None, &["istio"], &TlsOptions::default())?;
        let members = vec![Member { leaf: None, serials: BTreeSet::new(), looked: None }; targets.len()];
        let seen = Arc::new(Mutex::new(Seen { members, ..Seen::default() }));
        let end = CancellationToken::new();
        let walk = Walk { targets, life, every, config, seen: Arc::clone(&seen) };
        let until = end.clone();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = until.cancelled() => {}
                () = walk.run() => {}
            }
        });
        Ok(Self { seen, end, task })
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        locked(&self.seen).clone()
    }

    /// Ends, and tells what was seen.
    ///
    /// # Errors
    /// It has ended before.
    pub async fn finish(self) -> Result<Seen> {
        if self.task.is_finished() {
            bail!("the observer has ended by itself");
        }
        self.end.cancel();
        self.task.await.context("the observer")?;
        Ok(locked(&self.seen).clone())
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Walk {
    targets: Vec<Target>,
    life: Duration,
    every: Duration,
    config: Arc<ClientConfig>,
    seen: Arc<Mutex<Seen>>,
}

impl Walk {
    async fn run(self) {
        let step = self.every / u32::try_from(self.targets.len().max(1)).unwrap_or(u32::MAX);
        let free = Arc::new(Semaphore::new(AT_ONCE));
        let mut due = tokio::time::interval(step.max(Duration::from_millis(1)));
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks = tokio::task::JoinSet::new();
        for (at, target) in self.targets.iter().enumerate().cycle() {
            due.tick().await;
            let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
            let (target, config, seen, life) = (target.clone(), self.config.clone(), self.seen.clone(), self.life);
            looks.spawn(async move {
                let looked = tokio::time::timeout(LIMIT, look(target.address, config)).await;
                let looked = looked.with_context(|| format!("no handshake in {LIMIT:?}")).flatten();
                let mut seen = locked(&seen);
                match looked {
                    Ok(leaf) => seen.note(at, &target.name, leaf, life, (SystemTime::now(), Instant::now())),
                    Err(error) => seen.fail(&target.name, &error),
                }
                drop(permit);
            });
            while looks.try_join_next().is_some() {}
        }
    }
}

/// The leaf that is served at the application's port, where the sidecar takes the connection.
async fn look(address: Ipv4Addr, config: Arc<ClientConfig>) -> Result<Leaf> {
    let tcp = TcpStream::connect((address, 8080)).await.context("no connection")?;
    let name = ServerName::try_from("observer.example.com")?;
    let stream = TlsConnector::from(config).connect(name, tcp).await.context("no handshake")?;
    let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).context("no certificate was shown")?;
    let CertificateInfo { serial, not_before, not_after, .. } = CertificateInfo::read(leaf)?;
    Ok(Leaf { serial, not_before, not_after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_counts_as_served_until_another_is_seen() {
        let (start, instant) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000), Instant::now());
        let seconds = Duration::from_secs;
        let leaf = |serial: &str, signed: u64| Leaf {
            serial: serial.to_owned(),
            not_before: start + seconds(signed) - seconds(120),
            not_after: start + seconds(signed + 60),
        };
        let mut seen =
            Seen { members: vec![Member { leaf: None, serials: BTreeSet::new(), looked: None }], ..Seen::default() };
        let life = seconds(60);
        let note = |seen: &mut Seen, certificate, after: u64| {
            seen.note(0, "a", certificate, life, (start + seconds(after), instant + seconds(after)));
        };
        note(&mut seen, leaf("1", 0), 20);
        assert!((seen.highest - 1.0 / 3.0).abs() < 1e-9, "{seen:?}");
        note(&mut seen, leaf("2", 31), 40);
        assert!((seen.highest - 2.0 / 3.0).abs() < 1e-9, "the first was served until 40 s at most: {seen:?}");
        assert!((seen.from_not_before - 160.0 / 180.0).abs() < 1e-9, "{seen:?}");
        assert_eq!((seen.certificates(), seen.spread(), seen.gap), (2, (2, 2), seconds(20)));
        note(&mut seen, leaf("2", 31), 91);
        assert!(seen.highest >= 1.0 && seen.whose.contains("serial 2"), "served at its end: {seen:?}");
    }
}
