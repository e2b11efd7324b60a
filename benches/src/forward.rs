//! One end of a connection, plain or TLS, and bytes carried from one end to the other.
//!
//! Invariant: decrypted bytes are written from the library's own buffer; a short read means that the socket is empty, so nothing is asked
//! twice; nothing is read for an end that has not taken what came before.

use std::io::{self, BufRead, Read, Write};
use std::net::{Shutdown, TcpStream};

use rustls::Connection;

/// See the module.
pub(crate) struct End {
    stream: TcpStream,
    tls: Option<Connection>,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer has ended its side: a short read no longer means that there is no more.
    pub(crate) ended: bool,
    /// Everything that came has been read.
    pub(crate) finished: bool,
    /// Our side is closed.
    closed: bool,
    /// Plain bytes that the socket did not take.
    waiting: Vec<u8>,
    taken: usize,
}

fn later(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

impl End {
    /// `ready`: the connection stands already.
    pub(crate) fn new(stream: TcpStream, mut tls: Option<Connection>, ready: bool) -> Self {
        if let Some(tls) = &mut tls {
            tls.set_buffer_limit(None);
        }
        Self {
            stream,
            tls,
            readable: ready,
            writable: ready,
            ended: false,
            finished: false,
            closed: false,
            waiting: Vec::new(),
            taken: 0,
        }
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether something that was sent has not left yet.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write() && !tls.is_handshaking())
    }

    /// Reads once and gives what came to `take`. Whether there may be more.
    pub(crate) fn receive(
        &mut self,
        buffer: &mut [u8],
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        if !self.readable || self.finished {
            return Ok(false);
        }
        let count = match self.stream.read(buffer) {
            Ok(0) => {
                self.finished = true;
                return Ok(false);
            }
            Ok(count) => count,
            Err(error) if later(&error) => {
                self.readable = false;
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        if count < buffer.len() && !self.ended {
            self.readable = false;
        }
        let mut read = buffer.get(..count).unwrap_or_default();
        let Some(tls) = &mut self.tls else {
            take(read)?;
            return Ok(self.readable);
        };
        while !read.is_empty() {
            tls.read_tls(&mut read)?;
            let state = match tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    let _ = tls.write_tls(&mut self.stream);
                    return Err(io::Error::other(error));
                }
            };
            let mut left = state.plaintext_bytes_to_read();
            let mut reader = tls.reader();
            while left > 0 {
                let chunk = reader.fill_buf()?;
                take(chunk)?;
                let length = chunk.len();
                reader.consume(length);
                left = left.saturating_sub(length.max(1));
            }
            self.finished |= state.peer_has_closed();
        }
        self.flush()?;
        Ok(self.readable)
    }

    /// Sends; what does not leave at once waits.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(bytes)?;
            return self.flush();
        }
        let mut sent = 0;
        if self.writable && self.waiting.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => sent = count,
                Err(error) if later(&error) => self.writable = false,
                Err(error) => return Err(error),
            }
        }
        self.waiting.extend_from_slice(bytes.get(sent..).unwrap_or_default());
        Ok(())
    }

    /// Sends on what waits.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.writable {
            let done = match &mut self.tls {
                Some(tls) if tls.wants_write() => tls.write_tls(&mut self.stream),
                _ if self.taken < self.waiting.len() => {
                    let rest = self.waiting.get(self.taken..).unwrap_or_default();
                    self.stream.write(rest).inspect(|count| self.taken += count)
                }
                _ => break,
            };
            match done {
                Err(error) if later(&error) => self.writable = false,
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        if self.taken == self.waiting.len() {
            self.waiting.clear();
            self.taken = 0;
        }
        Ok(())
    }

    /// Says that no more comes. Whether that has been said.
    pub(crate) fn close(&mut self) -> io::Result<bool> {
        if self.closed || self.is_waiting() || self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            return Ok(self.closed);
        }
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        self.flush()?;
        let _ = self.stream.shutdown(Shutdown::Write);
        self.closed = true;
        Ok(true)
    }
}

/// Carries what can be carried both ways. Whether everything has been.
pub(crate) fn carry(a: &mut End, b: &mut End, buffer: &mut [u8]) -> io::Result<bool> {
    let over = [one_way(a, b, buffer)?, one_way(b, a, buffer)?];
    Ok(over == [true, true])
}

fn one_way(from: &mut End, to: &mut End, buffer: &mut [u8]) -> io::Result<bool> {
    to.flush()?;
    while !to.is_waiting() && from.receive(buffer, |bytes| to.send(bytes))? {}
    if from.finished { to.close() } else { Ok(false) }
}
