//! The ledger of certificates: what was asked to be signed, what was signed, what was revoked; append-only and hash-chained.
//!
//! Invariant: a certificate leaves the process only after its record is on disk, and its serial is on disk before it is
//! signed; every record carries the hash of the one before, so that nothing can be changed or taken out unseen. A chain
//! that does not hold stops all signing. What the records mean for the mesh is decided by whoever reads them.

mod book;
mod chain;
mod fault;
mod ledger;
pub mod list;
mod record;

pub use book::{Certificate, State, Totals};
pub use chain::{Broken, Scan, ScanError, Torn, scan};
pub use fault::{Fault, Point};
pub use ledger::{Ledger, LedgerError, LedgerOptions, Status};
pub use record::{Entry, Record, Target, TargetError};
