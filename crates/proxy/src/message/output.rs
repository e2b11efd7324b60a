//! What a connection has to write: text (heads, frames, small data), and between it large data where it lies.
//!
//! Invariant: bytes leave in the order in which they were put in. It knows how much of all that was ever put in has been written.

use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Data up to this size is copied beside what frames it, bytes.
pub const COPIED: usize = 8 * 1024;
/// As much text as is gathered before it is written, bytes. A record of TLS holds as much.
const GATHERED: usize = 16 * 1024;
/// Slices given to one write.
const SLICES: usize = 16;

/// See the module.
#[derive(Debug, Default)]
pub struct Output {
    /// All but large data. May be written to at its end.
    pub text: Vec<u8>,
    /// How much of `text` is gone.
    at: usize,
    /// Large data, each behind so much of `text`.
    data: VecDeque<(usize, Bytes)>,
    /// Bytes of `data`.
    large: usize,
    /// All that was written.
    written: u64,
    flush: bool,
}

impl Output {
    /// Whether more is worth gathering before it is written.
    pub fn has_room(&self) -> bool {
        self.data.is_empty() && self.text.len() < GATHERED
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.text.len().saturating_sub(self.at).saturating_add(self.large)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && !self.flush
    }

    /// All that was ever written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// All that was ever put in.
    pub fn total(&self) -> u64 {
        self.written.saturating_add(u64::try_from(self.len()).unwrap_or(0))
    }

    /// Appends data.
    pub fn data(&mut self, data: Bytes) {
        if data.len() <= COPIED {
            self.text.extend_from_slice(&data);
        } else {
            self.large = self.large.saturating_add(data.len());
            self.data.push_back((self.text.len(), data));
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_write<W: AsyncWrite>(&mut self, mut to: Pin<&mut W>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.at < self.text.len() || self.large > 0 {
            let written = if self.data.is_empty() {
                ready!(to.as_mut().poll_write(cx, self.text.get(self.at..).unwrap_or_default()))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let used = self.slices(&mut slices);
                ready!(to.as_mut().poll_write_vectored(cx, slices.get(..used).unwrap_or_default()))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.flush = true;
            self.advance(written);
        }
        self.text.clear();
        self.at = 0;
        if self.text.capacity() > 4 * COPIED {
            self.text = Vec::new();
        }
        if self.flush {
            ready!(to.poll_flush(cx))?;
            self.flush = false;
        }
        Poll::Ready(Ok(()))
    }

    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let (mut from, mut used) = (self.at, 0_usize);
        let ends = self.data.iter().map(|(end, data)| (*end, &**data)).chain([(self.text.len(), &[][..])]);
        let parts = ends.flat_map(|(end, data)| {
            let text = self.text.get(from..end).unwrap_or_default();
            from = end;
            [text, data]
        });
        for (slice, part) in slices.iter_mut().zip(parts.filter(|part| !part.is_empty())) {
            *slice = IoSlice::new(part);
            used = used.saturating_add(1);
        }
        used
    }

    fn advance(&mut self, mut by: usize) {
        self.written = self.written.saturating_add(u64::try_from(by).unwrap_or(0));
        while by > 0 {
            let end = self.data.front().map_or(self.text.len(), |(end, _)| *end);
            let step = by.min(end.saturating_sub(self.at));
            self.at = self.at.saturating_add(step);
            by = by.saturating_sub(step);
            let Some((_, data)) = self.data.front_mut() else { return };
            let step = by.min(data.len());
            data.advance(step);
            self.large = self.large.saturating_sub(step);
            by = by.saturating_sub(step);
            if data.is_empty() {
                // What it was a part of can be used again.
                self.data.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Takes so many bytes at a time.
    struct Slow(Vec<u8>, usize);

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let n = buf.len().min(self.1);
            self.0.extend(&buf[..n]);
            Poll::Ready(Ok(n))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
            let n = all.len().min(self.1);
            self.0.extend(&all[..n]);
            Poll::Ready(Ok(n))
        }
    }

    #[test]
    fn bytes_keep_their_order() {
        for step in [1000, 8999, 100_000] {
            let mut output = Output::default();
            let mut wanted = Vec::new();
            for n in 0..12_usize {
                output.text.extend_from_slice(b"head");
                wanted.extend_from_slice(b"head");
                let data = vec![u8::try_from(n).unwrap(); if n % 3 == 0 { 10 } else { COPIED + n }];
                wanted.extend_from_slice(&data);
                output.data(data.into());
            }
            assert_eq!(output.len(), wanted.len());
            let mut to = Slow(Vec::new(), step);
            let done = output.poll_write(Pin::new(&mut to), &mut Context::from_waker(Waker::noop()));
            assert!(matches!(done, Poll::Ready(Ok(()))));
            assert!(to.0 == wanted && output.is_empty(), "{step}");
            assert_eq!(output.written(), u64::try_from(wanted.len()).unwrap());
        }
    }
}
