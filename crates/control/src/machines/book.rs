//! Which machines are connected, and whose entries are to go.
//!
//! Invariant: pure, with the time as an argument. An entry is due only when every stream of its machine has ended and the grace has passed
//! without a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Namespace and name of an entry.
pub(crate) type EntryKey = (String, String);

/// The machines of this control plane.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Streams by entry.
    live: BTreeMap<EntryKey, BTreeSet<u64>>,
    /// When the entries of those that left are due, by a clock that only goes forward.
    leaving: BTreeMap<EntryKey, Duration>,
}

impl Book {
    /// A stream of a machine began.
    pub(crate) fn came(&mut self, key: &EntryKey, stream: u64) {
        self.live.entry(key.clone()).or_default().insert(stream);
        self.leaving.remove(key);
    }

    /// A stream ended; whether it was the last, so that the entry is due at `due` unless another comes.
    pub(crate) fn left(&mut self, key: &EntryKey, stream: u64, due: Duration) -> bool {
        let Some(streams) = self.live.get_mut(key) else { return false };
        streams.remove(&stream);
        if !streams.is_empty() {
            return false;
        }
        self.live.remove(key);
        self.leaving.insert(key.clone(), due);
        true
    }

    /// Whether a machine has a stream here.
    pub(crate) fn is_live(&self, key: &EntryKey) -> bool {
        self.live.contains_key(key)
    }

    /// Takes out what is due.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<EntryKey> {
        let due: Vec<EntryKey> =
            self.leaving.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        self.leaving.retain(|_, at| *at > now);
        due
    }

    /// To be tried again later.
    pub(crate) fn again(&mut self, key: EntryKey, due: Duration) {
        if !self.is_live(&key) {
            self.leaving.entry(key).or_insert(due);
        }
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.leaving.values().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_entry_goes_after_the_last_stream_and_the_grace() {
        let mut book = Book::default();
        let key = ("gopay".to_owned(), "ledger-1".to_owned());
        book.came(&key, 1);
        book.came(&key, 2);
        assert!(!book.left(&key, 1, at(10)), "another stream is open");
        assert!(book.is_live(&key) && book.next().is_none());
        assert!(book.left(&key, 2, at(11)));
        assert!(!book.left(&key, 2, at(99)), "told twice");
        assert_eq!((book.next(), book.due(at(10))), (Some(at(11)), vec![]));
        book.came(&key, 3);
        assert!(book.due(at(100)).is_empty(), "it is back in time");
        assert!(book.left(&key, 3, at(110)));
        assert_eq!(book.due(at(110)), std::slice::from_ref(&key));
        assert!(book.due(at(200)).is_empty(), "once");
        book.again(key.clone(), at(210));
        book.came(&key, 4);
        book.again(key.clone(), at(211));
        assert!(book.due(at(300)).is_empty(), "it is live");
    }
}
