//! A process that signs is killed at every point, started again on the same folder, and what is left is judged: the key
//! is the same, no serial is there twice, no certificate that left is missing, and every intent has an end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use carrick_ledger::{Entry, Fault, Ledger, LedgerOptions, Point, Target, scan};
use carrick_pki::{Authority, CaOptions, KeyAlgorithm, Subject, csr};
use carrick_runtime::clock::SystemClock;

/// Folder, point and which occurrence of it, for the child.
const FOLDER: &str = "CARRICK_TEST_LEDGER";
const POINT: &str = "CARRICK_TEST_POINT";
/// Certificates that a child signs when it is let.
const CERTIFICATES: usize = 6;

fn open(folder: &Path, fault: Fault) -> (Arc<Ledger>, Authority) {
    let options = LedgerOptions { segment: 1500, fault, ..LedgerOptions::new(SystemClock::shared()) };
    let ledger = Arc::new(Ledger::open(&folder.join("ledger"), options).unwrap());
    let authority = Authority::load_or_create(&folder.join("ca"), CaOptions::default(), SystemTime::now()).unwrap();
    authority.record_in(ledger.clone());
    (ledger, authority)
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{text}").unwrap();
    out.flush().unwrap();
}

fn target(round: &str) -> Target {
    Target::identity(&format!("spiffe://cluster.local/ns/evil/sa/{round}")).unwrap()
}

/// The child: signs, says what leaves, and waits for its end at the point it is told.
#[test]
#[ignore = "the child of the test below"]
fn child() {
    let (Ok(folder), Ok(point)) = (std::env::var(FOLDER), std::env::var(POINT)) else { return };
    let (point, occurrence) = point.split_once(' ').unwrap();
    let (point, occurrence) = (point.to_owned(), occurrence.parse::<usize>().unwrap());
    let name = format!("{}-{occurrence}", point.to_lowercase());
    let seen = AtomicUsize::new(0);
    let fault = Fault::new(move |at| {
        if format!("{at:?}") == point && seen.fetch_add(1, Ordering::SeqCst) + 1 == occurrence {
            say("here");
            std::thread::sleep(Duration::from_secs(60));
        }
    });
    let (ledger, authority) = open(Path::new(&folder), fault);
    for number in 0..CERTIFICATES {
        let (_, request) = csr::new(KeyAlgorithm::default()).unwrap();
        let id = format!("spiffe://cluster.local/ns/a/sa/{name}-{number}").parse().unwrap();
        let issued = authority.sign(&request, &Subject::Workload(id), None, SystemTime::now()).unwrap();
        say(&format!("left {}", issued.serial));
        if number == 2 {
            ledger.revoke(&target(&name), "test", "child").unwrap();
            say("revoked");
        }
    }
    say("here");
    std::thread::sleep(Duration::from_secs(60));
}

/// Runs a child until it is at its point, and kills it. What it said.
fn run(folder: &Path, point: Point, occurrence: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env(POINT, format!("{point:?} {occurrence}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "here" {
            break;
        }
        said.push(line);
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    said
}

#[test]
fn killed_at_every_point_nothing_is_lost_or_used_twice() {
    let folder = tempfile::tempdir().unwrap();
    let root = open(folder.path(), Fault::default()).1.roots().to_pem();
    let (mut left, mut revoked) = (BTreeSet::new(), BTreeSet::new());
    let (mut kills, mut unseen) = (0, 0);
    for point in Point::ALL {
        for occurrence in [1, 3] {
            let name = format!("{point:?}-{occurrence}").to_lowercase();
            for line in run(folder.path(), point, occurrence) {
                if let Some(serial) = line.strip_prefix("left ") {
                    assert!(left.insert(serial.to_owned()), "{serial} left twice");
                } else if line == "revoked" {
                    revoked.insert(target(&name));
                }
            }
            kills += 1;
            let (ledger, authority) = open(folder.path(), Fault::default());
            assert_eq!(authority.roots().to_pem(), root, "{name}: another key");
            let in_force: BTreeSet<Target> = ledger.revocations().into_iter().map(|(target, ..)| target).collect();
            assert!(revoked.is_subset(&in_force), "{name}: a revocation is lost");

            let mut ends: BTreeMap<String, Option<bool>> = BTreeMap::new();
            scan(&folder.path().join("ledger"), |record| match &record.entry {
                Entry::Intent { serial, .. } => {
                    assert!(ends.insert(serial.clone(), None).is_none(), "{name}: {serial} twice");
                }
                Entry::Issued { serial, .. } => {
                    assert_eq!(ends.insert(serial.clone(), Some(true)), Some(None), "{name}: {serial}");
                }
                Entry::Failed { serial, .. } => {
                    assert_eq!(ends.insert(serial.clone(), Some(false)), Some(None), "{name}: {serial}");
                }
                _ => {}
            })
            .unwrap();
            assert!(ends.values().all(Option::is_some), "{name}: an intent has no end");
            let issued: BTreeSet<&String> =
                ends.iter().filter(|(_, end)| **end == Some(true)).map(|(s, _)| s).collect();
            for serial in &left {
                assert!(issued.contains(serial), "{name}: {serial} left and is not in the ledger");
            }
            // Written and not handed on: at most the one that each kill interrupted.
            unseen = issued.len() - left.len();
            assert!(unseen <= kills, "{name}: {unseen} certificates nobody has after {kills} kills");
        }
    }
    assert!(left.len() > 30, "{}", left.len());
    assert!(unseen > 0, "no kill fell between the record and the answer");
}
