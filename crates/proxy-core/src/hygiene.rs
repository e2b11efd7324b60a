//! What is done to every request and response whatever its route: refuse what is ambiguous, clean what is per hop, tell the next hop
//! who called.
//!
//! Invariant: a request that two parsers could read differently (RFC 9112 §6.3) is refused, not repaired, unless configured otherwise.

pub mod address;
pub mod hop;
pub mod path;
pub mod reject;
pub mod wire;
pub mod xfcc;

/// A request that is answered here and now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalReply {
    /// Status and the text for `%RESPONSE_CODE_DETAILS%`.
    Status(u16, &'static str),
    /// 307 to this location.
    Redirect(String),
}
