//! A connection that rustls drives on bytes of ours: every handshake, and TLS 1.2 to its end.
//!
//! Invariant: whatever rustls wants to be sent is appended in its order, alerts of a failure too. rustls notes places in what was read
//! and not done with, so that it is given those very bytes with every call. Nothing is read or written here.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};
use rustls_pki_types::ServerName;

use super::records::Records;

/// Which end we are.
pub enum Library {
    /// The server.
    Server(Box<UnbufferedServerConnection>),
    /// The client.
    Client(Box<UnbufferedClientConnection>),
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It wants to be called again.
    Again,
    /// It wants more bytes, after what it had to say has been sent.
    More,
    /// The same, and data may be sent.
    Open,
    /// The peer will send no more.
    Closed,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Library::Server(_)) { "Library(server)" } else { "Library(client)" })
    }
}

impl Library {
    /// A server's end, of which nothing has been read.
    ///
    /// # Errors
    /// The configuration is of no use.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        UnbufferedServerConnection::new(config).map(|connection| Library::Server(Box::new(connection)))
    }

    /// A client's end, which speaks first.
    ///
    /// # Errors
    /// The configuration is of no use.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        UnbufferedClientConnection::new(config, name).map(|connection| Library::Client(Box::new(connection)))
    }

    /// What the handshake has agreed on.
    pub fn state(&self) -> &CommonState {
        match self {
            Library::Server(connection) => connection,
            Library::Client(connection) => connection,
        }
    }

    /// Goes one step on with what was read. Tells how many of its bytes are done with.
    ///
    /// # Errors
    /// The connection is to end, after [`Self::last_words`].
    pub fn step(&mut self, read: &mut [u8], out: &mut Vec<u8>, data: &mut Vec<u8>) -> (usize, Result<Step, Error>) {
        match self {
            Library::Server(connection) => taken(connection.process_tls_records(read), out, data),
            Library::Client(connection) => taken(connection.process_tls_records(read), out, data),
        }
    }

    /// What is to be sent of an end that failed.
    pub fn last_words(&mut self, out: &mut Vec<u8>) {
        // As long as there is something to be sent nothing that was read is looked at.
        while self.state().wants_write() && self.step(&mut [], out, &mut Vec::new()).1.is_ok() {}
    }

    /// Goes on with what was read until `data`, one piece behind the other, is appended to `out`, sealed; none: the word that nothing more
    /// will come from us. Tells how many bytes of what was read are done with.
    ///
    /// # Errors
    /// Nothing can be sealed, or not yet.
    pub fn seal(
        &mut self,
        read: &mut [u8],
        data: Option<&[&[u8]]>,
        out: &mut Vec<u8>,
        came: &mut Vec<u8>,
    ) -> (usize, Result<(), Error>) {
        let all;
        let data = match data {
            Some([only]) => Some(*only),
            Some(more) => {
                all = more.concat();
                Some(&*all)
            }
            None => None,
        };
        let mut done = 0_usize;
        loop {
            let read = read.get_mut(done..).unwrap_or_default();
            let (more, sent) = match self {
                Library::Server(connection) => sent(connection.process_tls_records(read), data, out, came),
                Library::Client(connection) => sent(connection.process_tls_records(read), data, out, came),
            };
            done = done.saturating_add(more);
            match sent {
                Ok(false) => {}
                Ok(true) => return (done, Ok(())),
                Err(error) => return (done, Err(error)),
            }
        }
    }

    /// Its records, from now on ours, where they are TLS 1.3's. `Err` is the same connection, which rustls goes on with.
    ///
    /// # Errors
    /// The handshake is not finished, or its configuration gives no keys away.
    pub fn into_records(self) -> Result<Result<Records, Self>, Error> {
        if self.state().protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
            return Ok(Err(self));
        }
        match self {
            Library::Server(connection) => Records::of_server(*connection),
            Library::Client(connection) => Records::of_client(*connection),
        }
        .map(Ok)
    }
}

fn taken<D>(
    status: UnbufferedStatus<'_, '_, D>,
    out: &mut Vec<u8>,
    data: &mut Vec<u8>,
) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Ok(ConnectionState::ReadTraffic(mut records)) => loop {
            match records.next_record() {
                Some(Ok(record)) => {
                    discard = discard.saturating_add(record.discard);
                    data.extend_from_slice(record.payload);
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(Step::Again),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut message)) => {
            let encoded = into(
                out,
                |room| message.encode(room),
                |e| match e {
                    EncodeError::InsufficientSize(size) => Some(size),
                    EncodeError::AlreadyEncoded => None,
                },
            );
            encoded.map(|()| Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(sent)) => {
            sent.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::More),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Open),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Step::Closed),
        // No configuration of ours takes data before the handshake is over.
        Ok(_) => Err(Error::HandshakeNotComplete),
        Err(error) => Err(error),
    };
    (discard, step)
}

/// Whether it is sent; if not, the connection is to be asked again.
fn sent<D>(
    status: UnbufferedStatus<'_, '_, D>,
    data: Option<&[u8]>,
    out: &mut Vec<u8>,
    came: &mut Vec<u8>,
) -> (usize, Result<bool, Error>) {
    let UnbufferedStatus { discard, state } = status;
    let mut open = match state {
        Ok(ConnectionState::WriteTraffic(open)) => open,
        state => {
            let (discard, step) = taken(UnbufferedStatus { discard, state }, out, came);
            return match step {
                Ok(Step::Again | Step::Closed) => (discard, Ok(false)),
                Ok(Step::More | Step::Open) => (discard, Err(Error::HandshakeNotComplete)),
                Err(error) => (discard, Err(error)),
            };
        }
    };
    let too_small = |e| match e {
        EncryptError::InsufficientSize(size) => Some(size),
        EncryptError::EncryptExhausted => None,
    };
    let sealed = match data {
        Some(data) => into(out, |room| open.encrypt(data, room), too_small),
        None => into(out, |room| open.queue_close_notify(room), too_small),
    };
    (discard, sealed.map(|()| true))
}

/// Appends what `write` writes, with the room that it says it wants.
fn into<E>(
    out: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
    too_small: impl Fn(E) -> Option<InsufficientSizeError>,
) -> Result<(), Error> {
    let start = out.len();
    let mut room = 0;
    loop {
        out.resize(start.saturating_add(room), 0);
        match write(out.get_mut(start..).unwrap_or_default()) {
            Ok(written) => {
                out.truncate(start.saturating_add(written));
                return Ok(());
            }
            Err(error) => match too_small(error) {
                Some(InsufficientSizeError { required_size }) if required_size > room => room = required_size,
                _ => {
                    out.truncate(start);
                    return Err(Error::EncryptError);
                }
            },
        }
    }
}
