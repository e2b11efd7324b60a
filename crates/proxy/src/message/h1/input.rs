//! What a connection has read and nobody has taken yet.
//!
//! Invariant: one buffer for each connection, used again once nobody holds a slice of it.

use bytes::BytesMut;
use std::future::Future as _;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// See the module.
#[derive(Debug, Default)]
pub struct Input {
    /// The bytes.
    pub bytes: BytesMut,
    /// How far the search for the end of a head has come.
    pub searched: usize,
    /// The peer has ended its side.
    pub ended: bool,
    /// A large body has made it grow.
    pub grown: bool,
}

impl Input {
    /// Nothing is expected for a while: what was only for large bodies is given back.
    pub fn rest(&mut self) {
        if self.grown && self.bytes.is_empty() {
            self.bytes = BytesMut::new();
            self.grown = false;
        }
    }

    /// Reads once, into room for about `most` bytes. 0 at the end.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_read<R>(&mut self, from: &mut R, most: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>>
    where
        R: AsyncRead + Unpin,
    {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.bytes.capacity().saturating_sub(self.bytes.len()) < most.div_ceil(4) {
            self.bytes.reserve(most);
            self.grown |= most > super::PIECE;
        }
        let n = ready!(pin!(from.read_buf(&mut self.bytes)).poll(cx))?;
        self.ended = n == 0;
        Poll::Ready(Ok(n))
    }
}
