//! Files that were cut or changed: the end is mended, everything else is refused with its place.

use std::path::Path;
use std::time::{Duration, SystemTime};

use carrick_ledger::{Entry, Ledger, LedgerError, LedgerOptions, ScanError, Target, scan};
use carrick_pki::journal::{Issuance, Journal as _, JournalError};
use carrick_runtime::clock::SystemClock;

fn options() -> LedgerOptions {
    LedgerOptions::new(SystemClock::shared())
}

fn issuance(serial: &str, name: &str) -> Issuance {
    let now = SystemTime::now();
    Issuance {
        serial: serial.to_owned(),
        subject: String::new(),
        names: vec![name.to_owned()],
        issuer: "key".to_owned(),
        not_before: now,
        not_after: now + Duration::from_secs(3600),
        asked_by: name.to_owned(),
    }
}

fn entries(dir: &Path) -> Vec<Entry> {
    let mut all = Vec::new();
    scan(dir, |record| all.push(record.entry.clone())).unwrap();
    all
}

const NAME: &str = "spiffe://cluster.local/ns/a/sa/b";

/// Three certificates.
fn written(dir: &Path) {
    let ledger = Ledger::open(dir, options()).unwrap();
    for serial in ["41", "42", "43"] {
        ledger.intent(&issuance(serial, NAME)).unwrap();
        ledger.issued(serial, b"der").unwrap();
    }
}

#[test]
fn the_last_record_may_be_cut_anywhere_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ledger");
    written(&dir);
    let file = dir.join("ledger-00000001.log");
    let whole = std::fs::read(&file).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
    for cut in [last, last + 1, last + 64, last + 70, whole.len() - 1] {
        std::fs::write(&file, &whole[..cut]).unwrap();
        let ledger = Ledger::open(&dir, options()).unwrap();
        let entries = entries(&dir);
        // The certificate whose record is lost did not leave, and is given up.
        assert!(matches!(&entries[5..], [.., Entry::Failed { serial, .. }] if serial == "43"), "{cut}: {entries:?}");
        let noted = entries.iter().any(|e| matches!(e, Entry::Note { text } if text.contains("incomplete")));
        assert_eq!(noted, cut != last, "{cut}");
        assert_eq!(ledger.living().len(), 2);
        drop(ledger);
    }
    for at in [0, 70, last / 2, last - 1] {
        let mut other = whole.clone();
        other[at] ^= 1;
        std::fs::write(&file, &other).unwrap();
        let error = Ledger::open(&dir, options()).unwrap_err();
        let LedgerError::Scan(ScanError::Broken(broken)) = &error else { panic!("{at}: {error}") };
        assert_eq!(broken.file, "ledger-00000001.log");
        assert!(error.to_string().contains("the ledger is broken"), "{error}");
    }
}

#[test]
fn a_record_taken_out_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ledger");
    written(&dir);
    let file = dir.join("ledger-00000001.log");
    let text = std::fs::read_to_string(&file).unwrap();
    let without: String = text.lines().enumerate().filter(|(i, _)| *i != 2).map(|(_, l)| format!("{l}\n")).collect();
    std::fs::write(&file, without).unwrap();
    let error = Ledger::open(&dir, options()).unwrap_err().to_string();
    assert!(error.contains("record 3 (line 3): its number is 4"), "{error}");
}

#[test]
fn serials_revocations_and_segments_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ledger");
    let small = LedgerOptions { segment: 600, ..options() };
    let target = Target::identity(NAME).unwrap();
    {
        let ledger = Ledger::open(&dir, small.clone()).unwrap();
        let second = Ledger::open(&dir, small.clone()).unwrap_err();
        assert!(second.to_string().contains("another process writes"), "{second}");
        for serial in ["41", "42", "43"] {
            ledger.intent(&issuance(serial, NAME)).unwrap();
            ledger.issued(serial, b"der").unwrap();
        }
        ledger.failed("44", "never begun");
        ledger.revoke(&target, "key stolen", "ann").unwrap();
        ledger.revoke(&target, "key stolen", "ann").unwrap();
    }
    let ledger = Ledger::open(&dir, small.clone()).unwrap();
    let scan = carrick_ledger::scan(&dir, |_| {}).unwrap();
    assert!(scan.segments.len() > 2, "{:?}", scan.segments);
    assert_eq!(ledger.status().seq, 8);
    assert_eq!(ledger.intent(&issuance("42", "other")), Err(JournalError::Used("42".to_owned())));
    let refused = ledger.intent(&issuance("45", NAME)).unwrap_err();
    assert_eq!(refused, JournalError::Refused(format!("{NAME} is quarantined: key stolen")));
    assert_eq!(ledger.serials_of(NAME), ["41", "42", "43"]);
    ledger.restore(&target, "ann").unwrap();
    ledger.intent(&issuance("45", NAME)).unwrap();
    ledger.issued("45", b"der").unwrap();
    drop(ledger);
    // Old segments may be put away as a whole, one from the middle may not.
    std::fs::remove_file(&scan.segments[0]).unwrap();
    Ledger::open(&dir, small.clone()).unwrap();
    std::fs::remove_file(&scan.segments[2]).unwrap();
    let error = Ledger::open(&dir, small).unwrap_err().to_string();
    assert!(error.contains("the segment before it is missing: ledger-00000003.log"), "{error}");
}

#[test]
fn only_the_owner_reads_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ledger");
    written(&dir);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("ledger-00000001.log")), 0o600);
}
