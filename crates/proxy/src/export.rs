//! What waits to be sent to servers of logs and traces.
//!
//! Invariant: gathering never waits; a queue is bounded, what does not fit is dropped and counted; one batch of a queue is on its way at a
//! time. Sending is `deliver`'s.

use carrick_proxy_core::model::access_log::{EntryFormat, OtlpFormat};
use carrick_proxy_core::model::collector::Collector;
use carrick_proxy_core::model::tracing::Tracer;
use carrick_proxy_core::otlp;
use envoy_types::pb::envoy::data::accesslog::v3 as data;
use prost::Message;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;

/// Most bytes that wait in a queue; more where its batches are larger.
const MOST_BYTES: usize = 1024 * 1024;
/// Most entries that wait in a queue.
const MOST_ENTRIES: usize = 8192;
/// Spans that make a batch, as in Envoy.
const SPANS: usize = 5;

/// One thing to send.
#[expect(clippy::large_enum_variant, reason = "a queue holds entries of one kind")]
pub(crate) enum Entry {
    Record(otlp::LogRecord),
    Http(data::HttpAccessLogEntry),
    Tcp(data::TcpAccessLogEntry),
    Span(otlp::Span),
}

impl Entry {
    fn len(&self) -> usize {
        match self {
            Entry::Record(r) => r.encoded_len(),
            Entry::Http(e) => e.encoded_len(),
            Entry::Tcp(e) => e.encoded_len(),
            Entry::Span(s) => s.encoded_len(),
        }
    }
}

/// What all entries of a queue have in common.
#[derive(Clone)]
pub(crate) enum Head {
    Records(Arc<OtlpFormat>),
    Entries(Arc<EntryFormat>),
    Spans(Arc<Tracer>),
}

struct Queue {
    to: Arc<Collector>,
    head: Head,
    entries: Vec<Entry>,
    bytes: usize,
    since: Instant,
    sending: Rc<Cell<bool>>,
}

impl Queue {
    fn is_full(&self) -> bool {
        match self.head {
            Head::Spans(_) => self.entries.len() >= SPANS,
            _ => self.bytes >= self.to.bytes,
        }
    }

    fn due(&self) -> Option<Instant> {
        let full = self.is_full();
        (!self.entries.is_empty() && !self.sending.get())
            .then(|| if full { self.since } else { self.since + self.to.flush })
    }
}

/// One worker's queues.
#[derive(Default)]
pub(crate) struct Exports {
    queues: RefCell<HashMap<usize, Queue>>,
    pub wake: Notify,
    /// What was dropped since this was looked at.
    pub dropped: RefCell<Vec<Arc<str>>>,
}

impl std::fmt::Debug for Exports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exports").finish_non_exhaustive()
    }
}

impl Exports {
    /// Puts an entry into the queue of its collector.
    pub fn put(&self, to: &Arc<Collector>, head: impl FnOnce() -> Head, entry: Entry) {
        let mut queues = self.queues.borrow_mut();
        let queue = queues.entry(Arc::as_ptr(to) as usize).or_insert_with(|| Queue {
            to: Arc::clone(to),
            head: head(),
            entries: Vec::new(),
            bytes: 0,
            since: Instant::now(),
            sending: Rc::default(),
        });
        let len = entry.len();
        let most = MOST_BYTES.max(queue.to.bytes.saturating_mul(4));
        if queue.entries.len() >= MOST_ENTRIES || queue.bytes.saturating_add(len) > most {
            let name = counter(&queue.to, &queue.head, false);
            drop(queues);
            self.dropped.borrow_mut().push(name);
            self.wake.notify_one();
            return;
        }
        let first = queue.entries.is_empty();
        if first {
            queue.since = Instant::now();
        }
        queue.entries.push(entry);
        queue.bytes = queue.bytes.saturating_add(len);
        if first || queue.is_full() {
            self.wake.notify_one();
        }
    }

    /// When something is to be sent next.
    pub fn next(&self) -> Option<Instant> {
        self.queues.borrow().values().filter_map(Queue::due).min()
    }

    /// The batches that are due; all of them if `all`.
    pub fn take(&self, now: Instant, all: bool) -> Vec<Batch> {
        let mut queues = self.queues.borrow_mut();
        let mut out = Vec::new();
        for queue in queues.values_mut() {
            if queue.due().is_some_and(|due| all || due <= now) {
                queue.sending.set(true);
                queue.bytes = 0;
                out.push(Batch {
                    to: Arc::clone(&queue.to),
                    head: queue.head.clone(),
                    entries: std::mem::take(&mut queue.entries),
                    sending: Rc::clone(&queue.sending),
                });
            }
        }
        // Those of configuration that is gone.
        queues.retain(|_, q| !q.entries.is_empty() || q.sending.get() || Arc::strong_count(&q.to) > 1);
        out
    }
}

/// Entries on their way.
pub(crate) struct Batch {
    pub to: Arc<Collector>,
    pub head: Head,
    pub entries: Vec<Entry>,
    pub sending: Rc<Cell<bool>>,
}

/// The counter of entries that were sent, or lost.
pub(crate) fn counter(to: &Collector, head: &Head, sent: bool) -> Arc<str> {
    let name = match (head, sent) {
        (Head::Spans(_), true) => "spans_sent",
        (Head::Spans(_), false) => "spans_dropped",
        (_, true) => "logs_written",
        (_, false) => "logs_dropped",
    };
    format!("{}{name}", to.counters).into()
}
