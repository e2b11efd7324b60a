//! What a connection's first bytes say about it: a TLS ClientHello (SNI, ALPN) or the beginning of HTTP.
//!
//! Invariant: pure functions of the bytes so far; they never panic, never consume, and ask for more only while
//! the bytes seen could still become what is looked for. Reading and replaying is `io::socket`'s work.

pub mod client_hello;
pub mod http;
pub mod proxy_header;

/// Most bytes that inspection ever holds back before it gives up (Envoy's tls_inspector limit).
pub const MAX_INSPECT: usize = 64 * 1024;

/// An inspector's answer for the bytes seen so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<T> {
    /// Undecided: the bytes are a proper beginning, more are needed.
    NeedMore,
    /// Certainly something else.
    No,
    /// Found.
    Yes(T),
    /// It is what was looked for, but larger than [`MAX_INSPECT`]: the connection is to be closed.
    TooLarge,
}
