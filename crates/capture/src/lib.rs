//! Interception: from a pod's annotations and a table of services to nftables text (pure), and the few system calls that put it in place.
//!
//! Invariant: a rule text is a function of its input alone and replaces its own table as a whole, so that applying it twice is applying it once
//! and undoing it is deleting one table. It does not know who wants the rules, pods' life, or any API.

mod error;

pub use error::CaptureError;
