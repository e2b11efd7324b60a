//! One consumer: its files, its reload, its proof, one after the other, as `decide` says.
//!
//! Invariant: one task for each consumer, so nothing of one delivery overlaps another; a consumer that fails holds up no other.

use std::path::Path;
use std::sync::Arc;

use carrick_runtime::clock::SharedClock;
use carrick_runtime::drain::Drain;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::bundle::Bundle;
use super::config::{Proof, Spec};
use super::decide::{Facts, Progress, Step, decide, had_its_time};
use super::place::{self, File};
use super::proof::{ProofError, dial};
use super::reload::reload;
use super::report::{Board, verdict};
use super::state::{Memory, Remembered};

/// The certificate that is to be in place.
struct Held {
    version: String,
    serial: String,
    leaf: CertificateDer<'static>,
    /// What is to be written; nothing after a restart, until the control plane has told it again.
    files: Vec<File>,
}

/// Keeps one consumer's files.
pub struct Keeper {
    spec: Spec,
    memory: Memory,
    clock: SharedClock,
    board: Arc<Board>,
    bundles: watch::Receiver<Option<Arc<Bundle>>>,
    held: Option<Held>,
    progress: Progress,
    /// What the last reload said, when it failed.
    complaint: Option<String>,
}

impl Keeper {
    /// A keeper of `spec`, which remembers in `state_dir` and takes what comes from `bundles`.
    pub fn new(
        spec: Spec,
        state_dir: &Path,
        clock: SharedClock,
        board: Arc<Board>,
        bundles: watch::Receiver<Option<Arc<Bundle>>>,
    ) -> Self {
        let memory = Memory::of(state_dir, &spec.name);
        let progress = Progress::default();
        Self { spec, memory, clock, board, bundles, held: None, progress, complaint: None }
    }

    /// Works until drained.
    pub async fn run(mut self, drain: Drain) {
        tokio::select! {
            () = drain.graceful() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&mut self) {
        self.restore();
        let facts =
            Facts { reloads: self.spec.reload.is_some(), proof: self.spec.proof.as_ref().map(|proof| proof.period) };
        loop {
            let bundle = self.bundles.borrow_and_update().clone();
            if let Some(bundle) = bundle {
                self.take(&bundle);
            }
            let step = match self.held {
                Some(_) => decide(self.clock.now(), facts, self.progress),
                None => Step::Wait(None),
            };
            match step {
                Step::Place => self.place(),
                Step::Reload => self.reload().await,
                Step::Look => self.look().await,
                Step::Wait(pause) => {
                    let sleep = async {
                        match pause {
                            Some(pause) => self.clock.sleep(pause).await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        changed = self.bundles.changed() => if changed.is_err() { return },
                        () = sleep => {}
                    }
                }
            }
        }
    }

    /// Goes on where the last process was, also while the control plane is away.
    fn restore(&mut self) {
        let Some(remembered) = self.memory.read() else { return };
        let Some(leaf) = remembered.leaf() else { return };
        let Ok(info) = carrick_pki::CertificateInfo::read(&leaf) else { return };
        let version = remembered.version;
        self.held = Some(Held { version, serial: info.serial.clone(), leaf, files: Vec::new() });
        self.progress =
            Progress { placed: Some(self.clock.now()), reloaded: remembered.reloaded, ..Progress::default() };
        self.board.note(&self.spec.name, |entry| {
            entry.life = Some((info.not_before, info.not_after));
            entry.report.delivered = Some(in_place(&info.serial));
        });
    }

    /// Takes a certificate over that may be another.
    fn take(&mut self, bundle: &Arc<Bundle>) {
        let files = match self.files(bundle) {
            Ok(files) => files,
            Err(reason) => return self.undelivered("Incomplete", &reason),
        };
        let version = place::version(&files);
        if self.held.as_ref().is_some_and(|held| held.version == version && !held.files.is_empty()) {
            return;
        }
        let before = self.held.take();
        self.held = Some(Held { version, serial: bundle.serial.clone(), leaf: bundle.leaf.clone(), files });
        self.progress = Progress::default();
        self.board.note(&self.spec.name, |entry| entry.life = Some((bundle.not_before, bundle.not_after)));
        if before.is_none_or(|before| before.serial != bundle.serial) {
            info!(consumer = self.spec.name, serial = bundle.serial, "a new certificate");
        }
    }

    fn files(&self, bundle: &Bundle) -> Result<Vec<File>, String> {
        let file = |spec: &super::config::FileSpec| {
            let uid = spec.owner.as_ref().map(place::user).transpose().map_err(|e| e.to_string())?;
            let gid = spec.group.as_ref().map(place::group).transpose().map_err(|e| e.to_string())?;
            let bytes: Zeroizing<Vec<u8>> = bundle.content(spec.content).map_err(|e| e.to_string())?;
            Ok(File { place: spec.place.clone(), bytes, mode: spec.mode, uid, gid })
        };
        self.spec.files.iter().map(file).collect()
    }

    fn undelivered(&self, reason: &str, message: &str) {
        let before = self.board.all().get(&self.spec.name).and_then(|entry| entry.report.delivered.clone());
        if before.as_ref().is_none_or(|b| b.message != message) {
            warn!(consumer = self.spec.name, reason, message, "not delivered; what was there stays");
        }
        let serial = before.map(|before| before.serial).unwrap_or_default();
        let said = verdict(false, reason, message.to_owned(), &serial);
        self.board.note(&self.spec.name, |entry| entry.report.delivered = Some(said));
    }

    fn place(&mut self) {
        let Some(held) = &self.held else { return };
        let now = self.clock.now();
        let changed = match place::write(self.spec.directory.as_deref(), &held.files) {
            Ok(changed) => changed,
            Err(error) => {
                self.progress.failures = self.progress.failures.saturating_add(1);
                self.progress.failed = Some(now);
                return self.undelivered("WriteFailed", &error.to_string());
            }
        };
        let told = self.memory.read().is_some_and(|r| r.reloaded && r.version == held.version);
        let reloaded = self.spec.reload.is_none() || (told && !changed);
        self.progress = Progress { placed: Some(now), reloaded, ..Progress::default() };
        self.complaint = None;
        self.remember();
        if changed {
            info!(consumer = self.spec.name, serial = held.serial, "files replaced");
        }
        let said = in_place(&held.serial);
        self.board.note(&self.spec.name, |entry| {
            entry.deliveries = entry.deliveries.saturating_add(u64::from(changed));
            entry.report.delivered = Some(said);
        });
    }

    fn remember(&self) {
        let Some(held) = &self.held else { return };
        self.memory.write(&Remembered {
            version: held.version.clone(),
            reloaded: self.progress.reloaded,
            certificate: carrick_pki::pem::encode_certificate(&held.leaf),
        });
    }

    async fn reload(&mut self) {
        let Some(how) = &self.spec.reload else { return };
        match reload(&self.spec.name, how).await {
            Ok(()) => {
                self.progress.reloaded = true;
                self.progress.told = Some(self.clock.now());
                self.progress.tellings = self.progress.tellings.saturating_add(1);
                self.progress.stale = false;
                (self.progress.failures, self.progress.failed) = (0, None);
                // What it did is looked at now.
                (self.progress.looked, self.progress.misses) = (None, 0);
                self.complaint = None;
                self.remember();
            }
            Err(error) => {
                let text = error.to_string();
                if self.complaint.as_ref() != Some(&text) {
                    warn!(consumer = self.spec.name, error = text, "the reload failed; it is tried again");
                }
                self.progress.failures = self.progress.failures.saturating_add(1);
                self.progress.failed = Some(self.clock.now());
                self.complaint = Some(text);
                self.board.note(&self.spec.name, |entry| {
                    entry.reload_failures = entry.reload_failures.saturating_add(1);
                });
            }
        }
    }

    async fn look(&mut self) {
        let (Some(proof), Some(held), Some(placed)) = (&self.spec.proof, &self.held, self.progress.placed) else {
            return;
        };
        let seen = dial(proof, &held.leaf).await.map(|seen| (seen.same, seen.serial));
        let now = self.clock.now();
        self.progress.looked = Some(now);
        self.progress.stale = matches!(seen, Ok((false, _)));
        let said = if let Ok((true, serial)) = &seen {
            self.progress.misses = 0;
            Some(verdict(true, "ServesIssued", format!("{} serves it", proof.address), serial))
        } else {
            self.progress.misses = self.progress.misses.saturating_add(1);
            had_its_time(now, placed, proof.period)
                .then(|| against(proof, &held.serial, &seen, self.complaint.as_deref()))
        };
        let Some(said) = said else { return };
        let known = self.board.all().get(&self.spec.name).and_then(|entry| entry.report.served.clone());
        if known.as_ref() != Some(&said) {
            match &seen {
                Ok((true, serial)) => info!(consumer = self.spec.name, serial, "served"),
                _ => warn!(consumer = self.spec.name, reason = said.reason, message = said.message, "not served"),
            }
        }
        self.board.note(&self.spec.name, |entry| entry.report.served = Some(said));
    }
}

fn in_place(serial: &str) -> carrick_xds::delivery::Verdict {
    verdict(true, "FilesInPlace", String::new(), serial)
}

/// What is said of a consumer that had its time.
fn against(
    proof: &Proof,
    issued: &str,
    seen: &Result<(bool, String), ProofError>,
    complaint: Option<&str>,
) -> carrick_xds::delivery::Verdict {
    let because = complaint.map(|c| format!("; the reload failed: {c}")).unwrap_or_default();
    match seen {
        Ok((_, serial)) => {
            let message = format!("{} serves serial {serial}, delivered is {issued}{because}", proof.address);
            verdict(false, "ConsumerDidNotReload", message, serial)
        }
        Err(error) => verdict(false, "Unreachable", format!("{error}{because}"), ""),
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("spec", &self.spec).finish_non_exhaustive()
    }
}
