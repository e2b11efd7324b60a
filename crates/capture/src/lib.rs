//! Interception: from a pod's annotations and a table of services to nftables text (pure), and the few system calls that put it in place.
//!
//! Invariant: a rule text is a function of its input alone and replaces its own table as a whole, so that applying it twice is applying it once
//! and undoing it is deleting one table. It does not know who wants the rules, pods' life, or any API.

mod error;

pub mod annotations;
pub mod arguments;
pub mod check;
pub mod host;
pub mod netns;
pub mod nft;
pub mod original_dst;
pub mod routes;
pub mod services;
pub mod sidecar;

pub use error::CaptureError;
pub use original_dst::original_dst;
