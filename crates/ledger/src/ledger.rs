//! The ledger as its owner sees it: opened, written, asked.
//!
//! Invariant: one writer (the folder is locked). A call that succeeded is on disk; one that failed has left nothing
//! behind, and where that cannot be had no further record is written until the ledger is opened again.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::digest;
use carrick_pki::journal::{Issuance, Journal, JournalError};
use carrick_runtime::clock::SharedClock;
use tracing::{error, warn};

use crate::book::{Book, Certificate, Revocation, Totals};
use crate::chain::{self, ScanError, scan};
use crate::fault::{Fault, Point};
use crate::record::{Entry, Record, Target, hex, seconds};

/// How a ledger is opened.
#[derive(Clone, Debug)]
pub struct LedgerOptions {
    /// What time it is.
    pub clock: SharedClock,
    /// A segment that has grown to so many bytes is followed by another.
    pub segment: u64,
    /// What happens at fault points; nothing outside tests.
    pub fault: Fault,
}

impl LedgerOptions {
    /// Segments of 32 MiB: some 80,000 records.
    pub fn new(clock: SharedClock) -> Self {
        Self { clock, segment: 32 << 20, fault: Fault::default() }
    }
}

/// Why there is no ledger, or no new record in it.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Its files cannot be read, or the chain does not hold: nothing may be signed.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A file cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody else has it open.
    #[error("{0}: another process writes this ledger")]
    Locked(String),
    /// An earlier write failed in a way that could not be undone.
    #[error("the ledger could not be written before; it has to be opened again")]
    Spoiled,
    /// A record cannot be put into words.
    #[error("a record cannot be written: {0}")]
    Record(String),
}

/// What the ledger says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The folder.
    pub dir: PathBuf,
    /// The last record's number.
    pub seq: u64,
    /// Its hash.
    pub head: String,
    /// Sums.
    pub totals: Totals,
}

struct Open {
    file: Arc<File>,
    number: u64,
    length: u64,
    seq: u64,
    head: String,
    spoiled: bool,
    book: Book,
}

/// See the module.
pub struct Ledger {
    dir: PathBuf,
    options: LedgerOptions,
    open: Mutex<Open>,
    /// The last record that is known to be on disk.
    kept: Mutex<u64>,
    /// Held for as long as the ledger is open.
    _lock: File,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> LedgerError + '_ {
    move |source| LedgerError::Io { path: path.display().to_string(), source }
}

/// Records after which what has ended is forgotten.
const FORGET: u64 = 1024;

impl Ledger {
    /// Opens the ledger in `dir`, or begins one. An incomplete last record is cut off, and intents without an end are
    /// given up (their certificates did not leave); both are written down.
    ///
    /// # Errors
    /// See [`LedgerError`]. A chain that does not hold is one: then nothing may be signed.
    pub fn open(dir: &Path, options: LedgerOptions) -> Result<Self, LedgerError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
        std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(io(dir))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(io(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(LedgerError::Locked(dir.display().to_string())),
            Err(std::fs::TryLockError::Error(source)) => return Err(io(&path)(source)),
        }
        let now = options.clock.now();
        let (mut book, mut read) = (Book::default(), 0_u64);
        let scan = scan(dir, |record| {
            book.take(record);
            read = read.wrapping_add(1);
            if read.is_multiple_of(FORGET) {
                book.forget(now);
            }
        })?;
        book.forget(now);
        let last = scan.segments.last().cloned();
        let number = last.as_deref().and_then(chain::number).unwrap_or(1);
        let path = dir.join(chain::segment(number));
        let file = segment(&path)?;
        if let Some(torn) = &scan.torn {
            file.set_len(torn.keep).and_then(|()| file.sync_all()).map_err(io(&path))?;
        }
        sync_folder(dir)?;
        let open = Open {
            file: Arc::new(file),
            number,
            length: scan.length,
            seq: scan.seq,
            head: scan.head,
            spoiled: false,
            book,
        };
        let ledger =
            Self { dir: dir.to_owned(), options, open: Mutex::new(open), kept: Mutex::new(scan.seq), _lock: lock };
        if let Some(torn) = scan.torn {
            warn!(bytes = torn.bytes, "the ledger's last record was incomplete and is cut off");
            let text = format!("{} bytes of an incomplete last record were cut off", torn.bytes);
            ledger.keep(Entry::Note { text })?;
        }
        let unfinished = ledger.lock().book.unfinished();
        for serial in unfinished {
            warn!(serial, "a certificate was being signed when the process ended; it did not leave");
            let reason = "the process ended before the certificate left it".to_owned();
            ledger.keep(Entry::Failed { serial, reason })?;
        }
        Ok(ledger)
    }

    /// Revokes: from the return on, no certificate is signed for the target. Revoking twice changes nothing.
    ///
    /// # Errors
    /// It could not be written, and is not in force.
    pub fn revoke(&self, target: &Target, reason: &str, by: &str) -> Result<(), LedgerError> {
        let known = self.lock().book.revocations.get(target).map(|r| (r.reason.clone(), r.by.clone()));
        if known.is_some_and(|(r, b)| r == reason && b == by) {
            return Ok(());
        }
        self.options.fault.at(Point::BeforeRevoked);
        let (reason, by) = (reason.to_owned(), by.to_owned());
        self.keep(Entry::Revoked { target: target.clone(), reason, by })?;
        self.options.fault.at(Point::RevokedKept);
        Ok(())
    }

    /// Takes a revocation back.
    ///
    /// # Errors
    /// It could not be written, and is still in force.
    pub fn restore(&self, target: &Target, by: &str) -> Result<(), LedgerError> {
        if !self.lock().book.revocations.contains_key(target) {
            return Ok(());
        }
        self.keep(Entry::Restored { target: target.clone(), by: by.to_owned() })
    }

    /// Writes down a certificate that was signed elsewhere, unless its serial is known.
    ///
    /// # Errors
    /// It could not be written.
    pub fn import(&self, what: &Issuance, from: &str) -> Result<(), LedgerError> {
        if self.lock().book.certificates.contains_key(&what.serial) {
            return Ok(());
        }
        self.keep(Entry::Imported {
            serial: what.serial.clone(),
            subject: what.subject.clone(),
            names: what.names.clone(),
            issuer: what.issuer.clone(),
            not_before: seconds(what.not_before),
            not_after: seconds(what.not_after),
            from: from.to_owned(),
        })
    }

    /// Revocations in force: what, why, who said so, since when.
    pub fn revocations(&self) -> Vec<(Target, String, String, SystemTime)> {
        let open = self.lock();
        let all = open.book.revocations.iter();
        all.map(|(t, Revocation { reason, by, since })| (t.clone(), reason.clone(), by.clone(), *since)).collect()
    }

    /// Certificates that have not ended, in order of their end.
    pub fn living(&self) -> Vec<Certificate> {
        let now = self.options.clock.now();
        let mut all: Vec<Certificate> =
            self.lock().book.certificates.values().filter(|c| c.not_after > now).cloned().collect();
        all.sort_by(|a, b| (a.not_after, &a.serial).cmp(&(b.not_after, &b.serial)));
        all
    }

    /// Serials of living certificates that carry `name`, those that are being signed included.
    pub fn serials_of(&self, name: &str) -> Vec<String> {
        let of = |c: &Certificate| c.names.iter().any(|n| n == name);
        self.living().into_iter().filter(of).map(|c| c.serial).collect()
    }

    /// What it says of itself.
    pub fn status(&self) -> Status {
        let open = self.lock();
        Status { dir: self.dir.clone(), seq: open.seq, head: open.head.clone(), totals: open.book.totals }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, entry: Entry) -> Result<(), LedgerError> {
        let seq = self.append(&mut self.lock(), entry)?;
        self.settle(seq)
    }

    /// Writes a record; it is on disk after [`Self::settle`].
    fn append(&self, open: &mut Open, entry: Entry) -> Result<u64, LedgerError> {
        if open.spoiled {
            return Err(LedgerError::Spoiled);
        }
        if open.length >= self.options.segment {
            self.next_segment(open)?;
        }
        let now = self.options.clock.now();
        let seq = open.seq.saturating_add(1);
        let record = Record { seq, prev: open.head.clone(), time: seconds(now), entry };
        let (line, hash) = record.line().map_err(|e| LedgerError::Record(e.to_string()))?;
        if line.len() >= crate::record::LONGEST {
            return Err(LedgerError::Record("it is too long".to_owned()));
        }
        if let Err(source) = (&*open.file).write_all(&line) {
            // Half a line would break the chain for whoever comes next.
            open.spoiled = open.file.set_len(open.length).is_err();
            return Err(io(&self.dir)(source));
        }
        open.length = open.length.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        open.seq = seq;
        open.head = hash;
        open.book.take(&record);
        if seq.is_multiple_of(FORGET) {
            open.book.forget(now);
        }
        Ok(seq)
    }

    fn next_segment(&self, open: &mut Open) -> Result<(), LedgerError> {
        open.file.sync_all().map_err(io(&self.dir))?;
        self.options.fault.at(Point::SegmentFull);
        let number = open.number.saturating_add(1);
        let path = self.dir.join(chain::segment(number));
        open.file = Arc::new(segment(&path)?);
        sync_folder(&self.dir)?;
        self.options.fault.at(Point::SegmentMade);
        open.number = number;
        open.length = 0;
        Ok(())
    }

    /// Waits until a record is on disk. Whoever comes while another waits shares its wait.
    fn settle(&self, seq: u64) -> Result<(), LedgerError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if *kept >= seq {
            return Ok(());
        }
        let (file, head) = {
            let open = self.lock();
            (open.file.clone(), open.seq)
        };
        // A segment is on disk before the next one begins, so the newest file is the only one to wait for.
        if let Err(source) = file.sync_data() {
            // What the kernel holds now is unknown; only reading it again can tell.
            self.lock().spoiled = true;
            return Err(io(&self.dir)(source));
        }
        *kept = head;
        Ok(())
    }
}

impl Journal for Ledger {
    fn intent(&self, issuance: &Issuance) -> Result<(), JournalError> {
        self.options.fault.at(Point::BeforeIntent);
        let seq = {
            let mut open = self.lock();
            // Under the same lock as the record: a revocation is before it or after it, never beside it.
            for name in &issuance.names {
                if let Some(revocation) = open.book.revocations.get(&Target::Identity(name.clone())) {
                    return Err(JournalError::Refused(format!("{name} is quarantined: {}", revocation.reason)));
                }
            }
            if open.book.certificates.contains_key(&issuance.serial) {
                return Err(JournalError::Used(issuance.serial.clone()));
            }
            let entry = Entry::Intent {
                serial: issuance.serial.clone(),
                subject: issuance.subject.clone(),
                names: issuance.names.clone(),
                issuer: issuance.issuer.clone(),
                not_before: seconds(issuance.not_before),
                not_after: seconds(issuance.not_after),
                asked_by: issuance.asked_by.clone(),
            };
            self.append(&mut open, entry).map_err(told)?
        };
        self.options.fault.at(Point::IntentWritten);
        self.settle(seq).map_err(told)?;
        self.options.fault.at(Point::IntentKept);
        Ok(())
    }

    fn issued(&self, serial: &str, certificate: &[u8]) -> Result<(), JournalError> {
        self.options.fault.at(Point::BeforeIssued);
        let sha256 = hex(digest::digest(&digest::SHA256, certificate).as_ref());
        let seq = self.append(&mut self.lock(), Entry::Issued { serial: serial.to_owned(), sha256 }).map_err(told)?;
        self.options.fault.at(Point::IssuedWritten);
        self.settle(seq).map_err(told)?;
        self.options.fault.at(Point::IssuedKept);
        Ok(())
    }

    fn failed(&self, serial: &str, reason: &str) {
        let entry = Entry::Failed { serial: serial.to_owned(), reason: reason.to_owned() };
        if let Err(error) = self.keep(entry) {
            // Opening it again gives the intent up too.
            error!(%error, serial, "ledger");
        }
    }
}

fn told(error: LedgerError) -> JournalError {
    JournalError::Write(error.to_string())
}

fn segment(path: &Path) -> Result<File, LedgerError> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(io(path))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(io(path))?;
    Ok(file)
}

fn sync_folder(dir: &Path) -> Result<(), LedgerError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io(dir))
}
