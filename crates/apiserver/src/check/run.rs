//! Random writers, and watchers that drop their stream and resume, over anything that can be written, listed and watched.
//!
//! Invariant: what is random comes from the seed; a writer knows for each of its writes whether it was acknowledged,
//! refused, or left without an answer.
//! What it leaves to others: the judgement (`check`).

use super::{Event, Finding, Held, Journal, Kind, Witness};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One wanted change.
#[derive(Debug, Clone, Copy)]
pub enum Write {
    /// Make an object that is not there.
    Create {
        /// Which.
        object: u32,
        /// The number of this write.
        number: u64,
    },
    /// Replace whatever is there.
    Replace {
        /// Which.
        object: u32,
        /// The number of this write.
        number: u64,
    },
    /// Replace one version.
    Exchange {
        /// Which.
        object: u32,
        /// The number of this write.
        number: u64,
        /// The version.
        revision: u64,
    },
    /// Remove one version.
    Remove {
        /// Which.
        object: u32,
        /// The version.
        revision: u64,
    },
}

impl Write {
    /// Which object.
    pub fn object(&self) -> u32 {
        match self {
            Self::Create { object, .. }
            | Self::Replace { object, .. }
            | Self::Exchange { object, .. }
            | Self::Remove { object, .. } => *object,
        }
    }
}

/// What a writer was told.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// The content is stored.
    Put(Held),
    /// The object is gone.
    Removed,
}

/// Why nothing was acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A precondition did not hold; nothing happened.
    #[error("refused")]
    Refused,
    /// Nobody knows whether it happened.
    #[error("{0}")]
    Doubtful(String),
    /// The check cannot go on.
    #[error("{0}")]
    Broken(String),
}

/// What a stream gives.
#[derive(Debug)]
pub enum Next {
    /// An event of an object of this checker.
    Event(Event),
    /// Nothing is missing up to here.
    Bookmark(u64),
    /// History has gone on without this watcher.
    Expired,
    /// The stream ended.
    Ended,
}

/// A stream of events. Cancel safe.
pub trait Stream: Send + 'static {
    /// The next one.
    fn next(&mut self) -> impl Future<Output = Next> + Send;
}

/// Whatever is checked.
pub trait Access: Clone + Send + Sync + 'static {
    /// Its streams.
    type Stream: Stream;
    /// Does one change.
    fn write(&self, write: &Write) -> impl Future<Output = Result<Answer, Failure>> + Send;
    /// Everything, and at which revision.
    fn list(&self) -> impl Future<Output = Result<(u64, Vec<(u32, Held)>), Failure>> + Send;
    /// Changes after a revision.
    fn watch(&self, since: u64) -> impl Future<Output = Result<Self::Stream, Failure>> + Send;
}

/// A fault put in on purpose, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seeded {
    /// One event is left out.
    Lose,
    /// One comes twice.
    Double,
    /// Two change places.
    Swap,
    /// One has the content of another write.
    Alter,
}

/// A seeded fault and the event of the first watcher it happens to.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// What.
    pub what: Seeded,
    /// When, in events.
    pub at: u64,
}

/// How much, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Acknowledged changes in all.
    pub events: u64,
    /// Writers at the same time.
    pub writers: u64,
    /// Watchers at the same time.
    pub watchers: usize,
    /// Objects that they write.
    pub objects: u32,
    /// Every so many streams a watcher sleeps until it is this many revisions behind; 0: never.
    pub lag: u64,
    /// Events after which a stream is dropped, at most.
    pub stretch: u64,
    /// What randomness begins with.
    pub seed: u64,
    /// A fault put in on purpose.
    pub fault: Option<Fault>,
    /// How long watchers may take to catch up in the end.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            events: 5_000,
            writers: 8,
            watchers: 8,
            objects: 40,
            lag: 0,
            stretch: 200,
            seed: 1,
            fault: None,
            patience: Duration::from_secs(60),
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Changes that were acknowledged, and those left without an answer.
    pub changes: u64,
    /// Of these: without an answer.
    pub doubtful: u64,
    /// Writes that were refused because somebody else was faster.
    pub refused: u64,
    /// Events that watchers took, in all.
    pub events: u64,
    /// Streams that were opened.
    pub streams: u64,
    /// Lists after history had gone on without a watcher.
    pub relists: u64,
    /// What is wrong, the first hundred.
    pub findings: Vec<Finding>,
    /// How long writing took.
    pub took: Duration,
}

struct Shared {
    acknowledged: AtomicU64,
    refused: AtomicU64,
    doubtful: AtomicU64,
    number: AtomicU64,
    revision: AtomicU64,
    streams: AtomicU64,
    /// Writers are done.
    done: AtomicBool,
    options: Options,
}

/// Writes at the places of `writers` and watches at those of `watchers`, in turns, and judges.
///
/// # Errors
/// Why it could not be carried out; what is wrong with the store are findings, not errors.
pub async fn run<A: Access>(writers: &[A], watchers: &[A], options: Options) -> Result<Outcome, Failure> {
    let shared = Arc::new(Shared {
        acknowledged: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        doubtful: AtomicU64::new(0),
        number: AtomicU64::new(1),
        revision: AtomicU64::new(0),
        streams: AtomicU64::new(0),
        done: AtomicBool::new(false),
        options: options.clone(),
    });
    let broken = |e: tokio::task::JoinError| Failure::Broken(e.to_string());
    let started = Instant::now();
    let mut watching = Vec::new();
    for (id, access) in watchers.iter().cycle().take(options.watchers.max(1)).enumerate() {
        watching.push(tokio::spawn(follow(access.clone(), id, shared.clone())));
    }
    let mut writing = Vec::new();
    for (id, access) in (0..options.writers.max(1)).zip(writers.iter().cycle()) {
        writing.push(tokio::spawn(write(access.clone(), id, shared.clone())));
    }
    let mut journal = Journal::default();
    let mut trouble = None;
    for writer in writing {
        match writer.await.map_err(broken)? {
            Ok(known) => journal.merge(known),
            Err(error) => trouble = Some(error),
        }
    }
    let took = started.elapsed();
    let first = writers.first().ok_or_else(|| Failure::Broken("nobody writes".into()))?;
    let stored = settle(first, &shared, trouble, &mut journal).await;
    shared.done.store(true, Ordering::SeqCst);
    let mut findings = Vec::new();
    let (mut events, mut lists) = (0_u64, 0_u64);
    let stored = match stored {
        Ok(stored) => stored,
        Err(error) => {
            watching.iter().for_each(tokio::task::JoinHandle::abort);
            return Err(error);
        }
    };
    for watcher in watching {
        let witness = watcher.await.map_err(broken)??;
        events = events.saturating_add(witness.events);
        lists = lists.saturating_add(witness.lists.saturating_sub(1));
        findings.extend(witness.judge(&journal, &stored));
        findings.truncate(100);
    }
    Ok(Outcome {
        changes: journal.len() as u64,
        doubtful: shared.doubtful.load(Ordering::SeqCst),
        refused: shared.refused.load(Ordering::SeqCst),
        events,
        streams: shared.streams.load(Ordering::SeqCst),
        relists: lists,
        findings,
        took,
    })
}

/// A last write, by which watchers see the end, and what is stored then.
async fn settle<A: Access>(
    access: &A,
    shared: &Shared,
    trouble: Option<Failure>,
    journal: &mut Journal,
) -> Result<HashMap<u32, Held>, Failure> {
    if let Some(trouble) = trouble {
        return Err(trouble);
    }
    let until = Instant::now() + shared.options.patience;
    let object = shared.options.objects.max(1);
    let mut there = false;
    loop {
        let number = shared.number.fetch_add(1, Ordering::Relaxed);
        let last = if there { Write::Replace { object, number } } else { Write::Create { object, number } };
        match access.write(&last).await {
            Ok(Answer::Put(held)) => {
                journal.put(held.revision, object, number);
                shared.revision.store(held.revision, Ordering::SeqCst);
                break;
            }
            Ok(Answer::Removed) => return Err(Failure::Broken("a removal nobody asked for".into())),
            Err(Failure::Refused) => there = !there,
            Err(Failure::Doubtful(_)) if Instant::now() < until => {
                journal.doubtful(object, number);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => return Err(error),
        }
    }
    loop {
        match access.list().await {
            Ok((_, items)) => return Ok(items.into_iter().collect()),
            Err(Failure::Doubtful(_)) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => return Err(error),
        }
    }
}

async fn write<A: Access>(access: A, id: u64, shared: Arc<Shared>) -> Result<Journal, Failure> {
    let mut random = StdRng::seed_from_u64(shared.options.seed.wrapping_mul(1_000_003).wrapping_add(id));
    let mut journal = Journal::default();
    // What this writer last knew of each object.
    let mut known: HashMap<u32, Held> = HashMap::new();
    while shared.acknowledged.load(Ordering::Relaxed) < shared.options.events {
        let object = random.random_range(0..shared.options.objects.max(1));
        let number = shared.number.fetch_add(1, Ordering::Relaxed);
        let change = match (known.get(&object), random.random_range(0..10)) {
            (None, 0..6) => Write::Create { object, number },
            (Some(held), 6..8) => Write::Exchange { object, number, revision: held.revision },
            (Some(held), 8..10) => Write::Remove { object, revision: held.revision },
            _ => Write::Replace { object, number },
        };
        match (access.write(&change).await, change) {
            (Ok(Answer::Put(held)), _) => {
                journal.put(held.revision, object, number);
                known.insert(object, held);
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                shared.revision.fetch_max(held.revision, Ordering::SeqCst);
            }
            (Ok(Answer::Removed), Write::Remove { revision, .. }) => {
                journal.removed(object, revision);
                known.remove(&object);
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            (Ok(Answer::Removed), _) => return Err(Failure::Broken("a removal nobody asked for".into())),
            (Err(Failure::Refused), _) => {
                known.remove(&object);
                shared.refused.fetch_add(1, Ordering::Relaxed);
            }
            (Err(Failure::Doubtful(_)), change) => {
                match change {
                    Write::Remove { revision, .. } => journal.removed(object, revision),
                    _ => journal.doubtful(object, number),
                }
                known.remove(&object);
                shared.doubtful.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (Err(broken), _) => return Err(broken),
        }
    }
    Ok(journal)
}

/// Puts one fault into a stream of events.
struct Tamper {
    fault: Option<Fault>,
    count: u64,
    kept: Option<Event>,
}

impl Tamper {
    fn through(&mut self, event: Event, witness: &mut Witness) {
        self.count = self.count.saturating_add(1);
        if let Some(kept) = self.kept.take() {
            witness.event(event);
            return witness.event(kept);
        }
        let due = self.fault.filter(|f| self.count >= f.at);
        match due.map(|f| f.what) {
            None => return witness.event(event),
            Some(Seeded::Lose) => {}
            Some(Seeded::Double) => {
                witness.event(event);
                witness.event(event);
            }
            Some(Seeded::Swap) => self.kept = Some(event),
            Some(Seeded::Alter) if event.kind == Kind::Deleted => return witness.event(event),
            Some(Seeded::Alter) => witness.event(Event { number: event.number.wrapping_add(1), ..event }),
        }
        self.fault = None;
    }
}

/// Follows until the writers are done and everything is seen.
async fn follow<A: Access>(access: A, id: usize, shared: Arc<Shared>) -> Result<Witness, Failure> {
    let mut random = StdRng::seed_from_u64(shared.options.seed.wrapping_mul(7_000_003).wrapping_add(id as u64));
    let mut witness = Witness::new(id);
    let mut tamper = Tamper { fault: shared.options.fault.filter(|_| id == 0), count: 0, kept: None };
    let mut until = None;
    let mut listed = false;
    loop {
        if shared.done.load(Ordering::SeqCst) {
            if witness.at() >= shared.revision.load(Ordering::SeqCst) {
                return Ok(witness);
            }
            let limit = *until.get_or_insert(Instant::now() + shared.options.patience);
            if Instant::now() > limit {
                // The judgement says what is missing.
                return Ok(witness);
            }
        }
        if !listed {
            match access.list().await {
                Ok((revision, items)) => witness.list(revision, items),
                Err(Failure::Doubtful(_)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                Err(error) => return Err(error),
            }
            listed = true;
        }
        let Ok(mut stream) = access.watch(witness.at()).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        shared.streams.fetch_add(1, Ordering::Relaxed);
        for _ in 0..random.random_range(1..=shared.options.stretch.max(1)) {
            // Looks up now and then: the writers may be done.
            match tokio::time::timeout(Duration::from_millis(200), stream.next()).await {
                Ok(Next::Event(event)) => tamper.through(event, &mut witness),
                Ok(Next::Bookmark(revision)) => witness.bookmark(revision),
                Ok(Next::Expired) => listed = false,
                Ok(Next::Ended) => break,
                Err(_) if shared.done.load(Ordering::SeqCst) => break,
                Err(_) => {}
            }
            if !listed {
                break;
            }
        }
        drop(stream);
        let lag = shared.options.lag;
        if lag > 0 && id % 2 == 1 && random.random_range(0..4) == 0 {
            while shared.revision.load(Ordering::SeqCst) < witness.at().saturating_add(lag)
                && !shared.done.load(Ordering::SeqCst)
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
}
