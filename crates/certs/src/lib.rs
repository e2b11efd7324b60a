//! Certificates that are wished for: what each of them needs next, as a function of what there is and what time it is.
//!
//! Invariant: nothing here depends on an event. The same facts give the same decision, however often they are asked about, and a
//! decision names the time at which it is to be asked again. A certificate is replaced only by one that was proved to be
//! what was wished for. Keys are never seen here, only the digests of their public halves.
//!
//! Reading and writing objects, and signing, belong to the control plane.

pub mod decide;
pub mod renewal;
pub mod rotation;
pub mod wish;

pub use decide::{Decision, Facts, Held, Key, Leaf, Reply, Request, Step, decide};
pub use wish::{KeyKind, Names, Wish, WishError};
