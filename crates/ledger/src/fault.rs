//! The moments at which a process may die.
//!
//! Invariant: every step that changes what is on disk has a point before and one after it; with no [`Fault`] they cost a
//! comparison. What happens at a point is told by whoever opens the ledger, which is tests.

use std::sync::Arc;

/// A moment between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The serial is chosen, nothing is written.
    BeforeIntent,
    /// Written, perhaps not on disk.
    IntentWritten,
    /// On disk; what follows is the signature.
    IntentKept,
    /// Signed, nothing of it written.
    BeforeIssued,
    /// Written, perhaps not on disk.
    IssuedWritten,
    /// On disk; what follows is the answer.
    IssuedKept,
    /// A revocation is about to be written.
    BeforeRevoked,
    /// It is on disk.
    RevokedKept,
    /// A segment is full and on disk; the next one does not exist.
    SegmentFull,
    /// The next one exists and is empty.
    SegmentMade,
}

impl Point {
    /// All of them, in the order of a life.
    pub const ALL: [Point; 10] = [
        Self::BeforeIntent,
        Self::IntentWritten,
        Self::IntentKept,
        Self::BeforeIssued,
        Self::IssuedWritten,
        Self::IssuedKept,
        Self::BeforeRevoked,
        Self::RevokedKept,
        Self::SegmentFull,
        Self::SegmentMade,
    ];
}

/// Is called at each point.
#[derive(Clone, Default)]
pub struct Fault(Option<Arc<dyn Fn(Point) + Send + Sync>>);

impl Fault {
    /// Calls `f` at each point.
    pub fn new(f: impl Fn(Point) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(f)))
    }

    pub(crate) fn at(&self, point: Point) {
        if let Some(f) = &self.0 {
            f(point);
        }
    }
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Fault(set)" } else { "Fault(none)" })
    }
}
