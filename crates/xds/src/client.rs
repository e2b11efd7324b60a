//! The client side: a delta session without IO ([`ClientSession`]) and the runner that keeps it connected ([`run`]).
//!
//! Invariant: what the handler accepted stays in force when the connection is lost; on reconnect the server hears which
//! versions are held and sends only what differs. A refused update changes nothing.

mod connect;
mod runner;
mod session;

pub use connect::{ConnectError, Connector, TlsProvider, Token, open_channel};
pub use runner::{ClientOptions, run};
pub use session::{ClientSession, Received, ReceivedParts};

pub(crate) use runner::{MAX_RESPONSE, describe, told};

use crate::{Resource, TypeUrl};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a client wants of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interest {
    /// Everything.
    Wildcard,
    /// These names; an empty set is no interest at all.
    Names(BTreeSet<Arc<str>>),
}

/// One response of the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The type of all resources in it.
    pub type_url: TypeUrl,
    /// New and changed resources.
    pub upserts: Vec<Resource>,
    /// Names that are gone or do not exist.
    pub removed: Vec<Arc<str>>,
}

/// Why an update is refused as a whole; the text goes to the server and from there to people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Nack {
    /// Names the resource and the field.
    pub message: String,
}

/// Takes what the server sends. All calls come from the one task that runs [`run`].
pub trait Handler: Send {
    /// What is wanted now. Asked after each update and on each connect. Types that must be acknowledged first come first.
    fn interests(&self) -> Vec<(TypeUrl, Interest)>;

    /// Takes an update over, wholly or not at all.
    ///
    /// # Errors
    /// [`Nack`] refuses it; the previous state must stay in force.
    fn apply(&mut self, update: Update) -> Result<(), Nack>;

    /// The stream is open (the identity of the control plane is verified by TLS).
    fn connected(&mut self) {}

    /// The stream ended or could not be opened; the reason is for people.
    fn disconnected(&mut self, _reason: &str) {}
}
