//! SPDY/3.1, as much as the streams of Kubernetes need: frames, compressed headers, streams over one connection.
//!
//! Invariant: a connection holds a fixed number of streams, and for each a fixed number of pieces; a stream that is not read stops the
//! connection, as the flow control of TCP does. Windows are not kept: the callers of Kubernetes never update theirs.

mod connection;
mod frame;
mod headers;
pub(crate) mod remote;

pub(crate) use connection::{Received, Stream, Streams, serve};

use bytes::BytesMut;

/// Parses bytes as the frames of a connection.
pub(crate) fn parse_anything(bytes: &[u8]) {
    // The first byte says in which pieces they come.
    let Some((first, rest)) = bytes.split_first() else { return };
    let mut parser = frame::Parser::default();
    let mut inflate = headers::Inflater::new();
    let mut buffer = BytesMut::new();
    for piece in rest.chunks(usize::from(*first).saturating_add(1)) {
        buffer.extend_from_slice(piece);
        loop {
            match parser.next(&mut buffer) {
                Ok(Some(frame::Frame::SynStream { block, .. } | frame::Frame::Headers { block, .. })) => {
                    if inflate.read(&block).is_err() {
                        return;
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(buffer.len() <= frame::CONTROL.saturating_add(512), "what is no whole frame yet is bounded");
    }
}
