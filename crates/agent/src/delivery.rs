//! `carrick-proxy agent`: named certificates kept as files on a machine, with a reload of whoever reads them, and proof that they are served.
//!
//! Invariant: files change as a set and only to something whose key and certificate belong together; what is there stays there when the
//! control plane is away, refuses, or sends something unusable. That files are in place and that they are served are told apart: the
//! second is believed only after a handshake with the endpoint. Which Secrets this identity may have is the control plane's decision.

mod bundle;
mod config;
mod decide;
mod feed;
mod keeper;
mod place;
mod proof;
mod reload;
mod report;
mod run;
mod shown;
mod state;

pub use bundle::{Bundle, BundleError};
pub use config::{Account, Content, DeliveryConfig, FileSpec, Place, Proof, Reload, Spec, StartTls, load, parse};
pub use decide::{Facts, Progress, Step, ask_after, decide};
pub use keeper::Keeper;
pub use place::{File, PlaceError, write};
pub use proof::{Observed, ProofError, dial};
pub use reload::{ReloadError, reload};
pub use report::Board;
pub use run::{RunningDelivery, run, start};
