//! The mesh's roots and signing sets: which are in force, who holds them, and how one takes over from another.
//!
//! Invariant: everything is written down before it takes effect, and taking effect can be repeated: a process that is killed
//! at any moment finds the step it was at in [`Slots`] and goes on. What comes next is decided by [`carrick_certs::rotation`]
//! from what proxies told ([`population`]); here it is done.

mod command;
mod driver;
mod plugged;
mod population;
mod show;
mod slots;
mod tokens;
mod trust;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

pub(crate) use driver::{Around, Driver};
pub(crate) use population::Population;
pub use slots::{Opening, Slots, SlotsError};
pub use tokens::Tokens;
pub(crate) use trust::Trust;

/// The roots as text, for those who read them from a ConfigMap.
pub type RootText = Option<Arc<str>>;

/// What changes roots and signing sets.
pub struct RotationOptions {
    /// Where they are kept.
    pub slots: Slots,
    /// Told the published roots whenever they change.
    pub roots: watch::Sender<RootText>,
    /// Told the revocation lists that came with a plugged-in set, whenever they change; `None` where there are none.
    pub lists: watch::Sender<RootText>,
    /// The socket on which commands come. Who may open it may rotate.
    pub socket: PathBuf,
}

#[cfg(test)]
mod tests;
