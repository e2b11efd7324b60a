//! What goes wrong with a stream or a connection, and the codes for it (RFC 9113 §7).
//!
//! Invariant: it can be told who ended it, and whether the other side may have seen anything of a request.

/// An error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason(pub u32);

impl Reason {
    /// NO_ERROR
    pub const NONE: Reason = Reason(0);
    /// PROTOCOL_ERROR
    pub const PROTOCOL: Reason = Reason(1);
    /// INTERNAL_ERROR
    pub const INTERNAL: Reason = Reason(2);
    /// FLOW_CONTROL_ERROR
    pub const FLOW: Reason = Reason(3);
    /// SETTINGS_TIMEOUT
    pub const SETTINGS: Reason = Reason(4);
    /// STREAM_CLOSED
    pub const CLOSED: Reason = Reason(5);
    /// FRAME_SIZE_ERROR
    pub const SIZE: Reason = Reason(6);
    /// REFUSED_STREAM
    pub const REFUSED: Reason = Reason(7);
    /// CANCEL
    pub const CANCEL: Reason = Reason(8);
    /// COMPRESSION_ERROR
    pub const COMPRESSION: Reason = Reason(9);
    /// ENHANCE_YOUR_CALM
    pub const CALM: Reason = Reason(11);
}

/// Why a stream, or all of a connection's, came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The peer has reset the stream.
    #[error("stream reset by the peer with code {}", .0.0)]
    Reset(Reason),
    /// The peer says that it has not looked at it, and will not.
    #[error("refused by the peer")]
    Refused,
    /// What the peer sent is not allowed.
    #[error("protocol error: {1}")]
    Ours(Reason, &'static str),
    /// The connection has ended.
    #[error("connection ended")]
    Ended,
    /// It has ended, and nothing of this request was written.
    #[error("connection ended before the request")]
    Unsent,
    /// The peer does not answer.
    #[error("no answer to PING")]
    Silent,
}
