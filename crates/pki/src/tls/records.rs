//! Records of a TLS 1.3 connection after its handshake (RFC 8446 §5), opened and sealed where they lie.
//!
//! Invariant: a byte is given out only if its record was authentic, in its order and of a form that the protocol allows; each record is
//! sealed under a number of its own, and a key seals fewer records than it may. Keys come from a finished handshake of rustls
//! and from its updates of them, never from elsewhere. Reading and writing is the caller's; handshakes and TLS 1.2 are rustls'.

#[cfg(test)]
mod tests;

use std::ops::Range;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, Error, InvalidMessage, PeerMisbehaved, ProtocolVersion,
    SupportedCipherSuite,
};

/// Bytes of a record's head.
const HEAD: usize = 5;
/// Bytes of the tag of every suite.
const TAG: usize = 16;
/// Most bytes of a record's content.
pub const MAX_CONTENT: usize = 1 << 14;
/// Most bytes that follow a record's head (RFC 8446 §5.2).
const MAX_SEALED: usize = MAX_CONTENT + 256;
/// Bytes that sealing adds to a record's content: head, kind of content, tag.
pub const OVERHEAD: usize = HEAD + 1 + TAG;
/// Longest message of a handshake, as rustls has it.
const MAX_MESSAGE: usize = 0xffff;
/// Updates of keys that a peer may ask for without a byte of data between them; warnings altogether. As rustls and BoringSSL have them.
const MOST_UPDATES: u8 = 32;
const MOST_WARNINGS: u8 = 4;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// What the beginning of what was read is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// No whole record yet.
    More,
    /// Data, at this place; the record ends at `end`.
    Data {
        /// Where the data lies.
        at: Range<usize>,
        /// Where the record ends.
        end: usize,
    },
    /// A record without data, which ends at `end`; it has been dealt with.
    Nothing {
        /// Where the record ends.
        end: usize,
    },
    /// The peer will send no more, and said so.
    Closed,
}

/// Why a connection cannot go on, and what the peer is to be told; nothing where it was the peer who told it.
#[derive(Debug, Clone, PartialEq)]
pub struct Broken {
    /// Why.
    pub error: Error,
    /// The alert for it.
    pub alert: Option<AlertDescription>,
}

/// Both directions. See the module.
pub struct Records {
    reads: Keys,
    writes: Keys,
    rest: Rest,
    /// The beginning of a message that a record did not hold whole.
    part: Vec<u8>,
    /// The peer wants our keys to be new before we send more data.
    owes_update: bool,
    /// Records that may be sealed with one key (RFC 8446 §5.5).
    limit: u64,
    updates: u8,
    warnings: u8,
}

/// What rustls keeps doing.
enum Rest {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

/// One direction's key.
struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// The next record's.
    number: u64,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Records(redacted)")
    }
}

impl Keys {
    fn new((number, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        use ConnectionTrafficSecrets as S;
        let (algorithm, key, iv) = match &secrets {
            S::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            S::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            S::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher suite without records of ours".into())),
        };
        let unusable = |_| Error::General("a key of another length".into());
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| unusable(()))?;
        let iv = iv.as_ref().try_into().map_err(|_| unusable(()))?;
        Ok(Keys { key: LessSafeKey::new(key), iv, number })
    }

    /// The next record's (RFC 8446 §5.3); none when the numbers have come to their end.
    fn nonce(&mut self) -> Option<Nonce> {
        let mut nonce = self.iv;
        let (_, low) = nonce.split_at_mut(NONCE_LEN.saturating_sub(8));
        low.iter_mut().zip(self.number.to_be_bytes()).for_each(|(to, from)| *to ^= from);
        self.number = self.number.checked_add(1)?;
        Some(Nonce::assume_unique_for_key(nonce))
    }
}

impl Records {
    /// Takes over a server's connection whose handshake is finished, and which owes its peer nothing.
    ///
    /// # Errors
    /// It is no such one, is not TLS 1.3, or its configuration does not give keys away.
    pub fn of_server(connection: UnbufferedServerConnection) -> Result<Self, Error> {
        let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
        let (version, suite) = (kernel.protocol_version(), kernel.negotiated_cipher_suite());
        Self::new(secrets.rx, secrets.tx, version, suite, Rest::Server(Box::new(kernel)))
    }

    /// The same of a client's.
    ///
    /// # Errors
    /// As [`Self::of_server`].
    pub fn of_client(connection: UnbufferedClientConnection) -> Result<Self, Error> {
        let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
        let (version, suite) = (kernel.protocol_version(), kernel.negotiated_cipher_suite());
        Self::new(secrets.rx, secrets.tx, version, suite, Rest::Client(Box::new(kernel)))
    }

    fn new(
        reads: (u64, ConnectionTrafficSecrets),
        writes: (u64, ConnectionTrafficSecrets),
        version: ProtocolVersion,
        suite: SupportedCipherSuite,
        rest: Rest,
    ) -> Result<Self, Error> {
        let (ProtocolVersion::TLSv1_3, Some(suite)) = (version, suite.tls13()) else {
            return Err(Error::General("records of ours are TLS 1.3's".into()));
        };
        Ok(Records {
            reads: Keys::new(reads)?,
            writes: Keys::new(writes)?,
            rest,
            part: Vec::new(),
            owes_update: false,
            limit: suite.common.confidentiality_limit,
            updates: 0,
            warnings: 0,
        })
    }

    /// Opens the record at the beginning of `bytes`, in its place.
    ///
    /// # Errors
    /// The connection is to end, after the alert.
    pub fn open(&mut self, bytes: &mut [u8]) -> Result<Opened, Broken> {
        let Some((head, rest)) = bytes.split_first_chunk_mut::<HEAD>() else { return Ok(Opened::More) };
        let [kind, _, _, a, b] = *head;
        match kind {
            DATA => {}
            // After the handshake nothing goes unsealed.
            CHANGE_CIPHER_SPEC | ALERT | HANDSHAKE => return Err(unexpected()),
            _ => return Err(broken(InvalidMessage::InvalidContentType.into(), AlertDescription::DecodeError)),
        }
        let length = usize::from(u16::from_be_bytes([a, b]));
        if length > MAX_SEALED {
            return Err(overflow());
        }
        let Some(sealed) = rest.get_mut(..length) else { return Ok(Opened::More) };
        let end = HEAD.saturating_add(length);
        let forged = || broken(Error::DecryptError, AlertDescription::BadRecordMac);
        let nonce = self.reads.nonce().ok_or_else(forged)?;
        let inner = self.reads.key.open_in_place(nonce, Aad::from(*head), sealed).map_err(|_| forged())?;
        if inner.len() > MAX_CONTENT.saturating_add(1) {
            return Err(overflow());
        }
        // Zeros behind the kind of content are padding.
        let Some(last) = inner.iter().rposition(|byte| *byte != 0) else {
            return Err(broken(PeerMisbehaved::IllegalTlsInnerPlaintext.into(), AlertDescription::UnexpectedMessage));
        };
        let (content, kind) = inner.split_at(last);
        let kind = kind.first().copied().unwrap_or_default();
        if kind != HANDSHAKE && !self.part.is_empty() {
            return Err(unexpected());
        }
        // Data may be of no length, these may not (RFC 8446 §5.4).
        if content.is_empty() && matches!(kind, ALERT | HANDSHAKE) {
            return Err(broken(InvalidMessage::InvalidEmptyPayload.into(), AlertDescription::UnexpectedMessage));
        }
        match kind {
            DATA => {
                self.updates = 0;
                Ok(Opened::Data { at: HEAD..HEAD.saturating_add(content.len()), end })
            }
            ALERT => {
                let &[_, what] = content else {
                    let error = InvalidMessage::MessageTooShort;
                    return Err(broken(error.into(), AlertDescription::DecodeError));
                };
                self.alerted(what).map(|closed| if closed { Opened::Closed } else { Opened::Nothing { end } })
            }
            HANDSHAKE => {
                let content = content.to_vec();
                self.messages(content)?;
                Ok(Opened::Nothing { end })
            }
            _ => Err(unexpected()),
        }
    }

    /// Whether that was the end; the level of an alert says nothing (RFC 8446 §6).
    fn alerted(&mut self, what: u8) -> Result<bool, Broken> {
        match what {
            CLOSE_NOTIFY => Ok(true),
            USER_CANCELED => {
                self.warnings = self.warnings.saturating_add(1);
                if self.warnings > MOST_WARNINGS {
                    let error = PeerMisbehaved::TooManyWarningAlertsReceived;
                    return Err(broken(error.into(), AlertDescription::UnexpectedMessage));
                }
                Ok(false)
            }
            other => Err(Broken { error: Error::AlertReceived(other.into()), alert: None }),
        }
    }

    /// Messages of the handshake that come after it.
    fn messages(&mut self, content: Vec<u8>) -> Result<(), Broken> {
        let mut all = std::mem::take(&mut self.part);
        if all.is_empty() {
            all = content;
        } else {
            all.extend_from_slice(&content);
        }
        let mut rest = &all[..];
        while let Some((&[kind, a, b, c], behind)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
            if length > MAX_MESSAGE {
                let error = InvalidMessage::HandshakePayloadTooLarge;
                return Err(broken(error.into(), AlertDescription::DecodeError));
            }
            let Some((message, behind)) = behind.split_at_checked(length) else { break };
            self.message(kind, message, behind.is_empty())?;
            rest = behind;
        }
        self.part = rest.to_vec();
        Ok(())
    }

    /// `last`: nothing follows in its record.
    fn message(&mut self, kind: u8, message: &[u8], last: bool) -> Result<(), Broken> {
        match (kind, &mut self.rest) {
            (NEW_SESSION_TICKET, Rest::Client(client)) => {
                client.handle_new_session_ticket(message).map_err(|error| broken(error, AlertDescription::DecodeError))
            }
            (KEY_UPDATE, _) => {
                let &[wants @ (0 | 1)] = message else {
                    let error = InvalidMessage::InvalidKeyUpdate;
                    return Err(broken(error.into(), AlertDescription::IllegalParameter));
                };
                if !last {
                    let error = PeerMisbehaved::KeyEpochWithPendingFragment;
                    return Err(broken(error.into(), AlertDescription::UnexpectedMessage));
                }
                self.updates = self.updates.saturating_add(1);
                if self.updates > MOST_UPDATES {
                    let error = PeerMisbehaved::TooManyKeyUpdateRequests;
                    return Err(broken(error.into(), AlertDescription::UnexpectedMessage));
                }
                self.reads = self.rest.next(Side::Reads).and_then(Keys::new).map_err(internal)?;
                self.owes_update |= wants == 1;
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }

    /// Appends `data`, one piece behind the other, to `out`, sealed in as few records as can be.
    ///
    /// # Errors
    /// Nothing more can be sealed.
    pub fn seal(&mut self, data: &[&[u8]], out: &mut Vec<u8>) -> Result<(), Error> {
        let mut pieces = data.iter().copied();
        let mut piece: &[u8] = &[];
        let mut left = data.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        while left > 0 {
            if self.owes_update || self.writes.number >= self.limit {
                self.record(HANDSHAKE, 5, |out| out.extend_from_slice(&[KEY_UPDATE, 0, 0, 1, 0]), out)?;
                self.writes = Keys::new(self.rest.next(Side::Writes)?)?;
                self.owes_update = false;
            }
            let size = left.min(MAX_CONTENT);
            left = left.saturating_sub(size);
            let write = |out: &mut Vec<u8>| {
                let mut room = size;
                while room > 0 {
                    while piece.is_empty() {
                        let Some(next) = pieces.next() else { return };
                        piece = next;
                    }
                    let (now, later) = piece.split_at(piece.len().min(room));
                    out.extend_from_slice(now);
                    (piece, room) = (later, room.saturating_sub(now.len()));
                }
            };
            self.record(DATA, size, write, out)?;
        }
        Ok(())
    }

    /// Appends the word that nothing more will come from us.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn close(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.record(ALERT, 2, |out| out.extend_from_slice(&[1, CLOSE_NOTIFY]), out)
    }

    /// Appends the alert of what broke the connection.
    ///
    /// # Errors
    /// As [`Self::seal`].
    pub fn alert(&mut self, alert: AlertDescription, out: &mut Vec<u8>) -> Result<(), Error> {
        self.record(ALERT, 2, |out| out.extend_from_slice(&[2, alert.into()]), out)
    }

    /// One record; `write` appends its content, which has this size.
    fn record(
        &mut self,
        kind: u8,
        size: usize,
        write: impl FnOnce(&mut Vec<u8>),
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let nonce = self.writes.nonce().ok_or(Error::EncryptError)?;
        let sealed = size.saturating_add(1).saturating_add(TAG);
        let [a, b] = u16::try_from(sealed).map_err(|_| Error::EncryptError)?.to_be_bytes();
        let head = [DATA, 3, 3, a, b];
        out.reserve(HEAD.saturating_add(sealed));
        out.extend_from_slice(&head);
        let start = out.len();
        write(out);
        out.push(kind);
        let inner = out.get_mut(start..).unwrap_or_default();
        let tag = self.writes.key.seal_in_place_separate_tag(nonce, Aad::from(head), inner);
        out.extend_from_slice(tag.map_err(|_| Error::EncryptError)?.as_ref());
        Ok(())
    }
}

enum Side {
    Reads,
    Writes,
}

impl Rest {
    /// The next keys of a direction (RFC 8446 §7.2).
    fn next(&mut self, side: Side) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match (self, side) {
            (Rest::Client(c), Side::Reads) => c.update_rx_secret(),
            (Rest::Client(c), Side::Writes) => c.update_tx_secret(),
            (Rest::Server(c), Side::Reads) => c.update_rx_secret(),
            (Rest::Server(c), Side::Writes) => c.update_tx_secret(),
        }
    }
}

fn broken(error: Error, alert: AlertDescription) -> Broken {
    Broken { error, alert: Some(alert) }
}

fn unexpected() -> Broken {
    let error = InvalidMessage::UnexpectedMessage("a record that may not come after the handshake");
    broken(error.into(), AlertDescription::UnexpectedMessage)
}

fn overflow() -> Broken {
    broken(Error::PeerSentOversizedRecord, AlertDescription::RecordOverflow)
}

fn internal(error: Error) -> Broken {
    broken(error, AlertDescription::InternalError)
}
