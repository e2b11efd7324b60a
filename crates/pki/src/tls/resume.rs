//! Sessions that are taken up again: tickets of servers, and what clients remember of each endpoint.
//!
//! Invariant: a session never outlives the trust that made it. A ticket opens only under the very certificates, roots, names and
//! quarantine under which it was written (their digest is authenticated with it) and with a key that is at most two lives old; a client
//! remembers sessions per configuration and endpoint, and a configuration goes with its secrets. Where revocation lists are in force no
//! session is taken up, since they end by themselves. What is left to the caller: [`in_time`] after each handshake.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{Context, SHA256};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls12Resumption, Tls13ClientSessionValue,
};
use rustls::server::ProducesTickets;
use rustls::{ClientConfig, CommonState, HandshakeKind, NamedGroup, ServerConfig};
use rustls_pki_types::ServerName;

use crate::certificate::CertificateInfo;

/// How long tickets are written with one key; they are read for as long again.
const KEY_LIFE: Duration = Duration::from_secs(30 * 60);
/// Bytes of the name of a key.
const KEY_NAME: usize = 8;
/// Sessions remembered per endpoint: as many connections as may begin there at once and find one. Each is used once.
const PER_ENDPOINT: usize = 32;
/// Sessions remembered per configuration; beyond, all are forgotten.
const SESSIONS: usize = 2048;

/// Whatever decides who is believed, as one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrustDigest([u8; 32]);

impl TrustDigest {
    /// Of these parts, whose order and lengths count.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(part);
        }
        let mut out = [0; 32];
        out.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Self(out)
    }
}

/// The keys of one process's tickets. They are made here and never leave it.
#[derive(Debug, Default)]
pub struct TicketKeys(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    current: Option<Key>,
    previous: Option<Key>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring(redacted)")
    }
}

#[derive(Clone)]
struct Key {
    name: [u8; KEY_NAME],
    key: Arc<LessSafeKey>,
    made: Instant,
}

impl Key {
    fn new(now: Instant) -> Option<Self> {
        let (mut name, mut secret) = ([0; KEY_NAME], [0; 32]);
        aws_lc_rs::rand::fill(&mut name).ok()?;
        aws_lc_rs::rand::fill(&mut secret).ok()?;
        let key = UnboundKey::new(&AES_256_GCM, &secret).ok()?;
        Some(Self { name, key: Arc::new(LessSafeKey::new(key)), made: now })
    }
}

impl TicketKeys {
    fn ring(&self, now: Instant) -> MutexGuard<'_, Ring> {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = |key: &Option<Key>, lives: u32| {
            key.as_ref().is_some_and(|key| now.saturating_duration_since(key.made) >= KEY_LIFE.saturating_mul(lives))
        };
        if old(&ring.current, 1) {
            ring.previous = ring.current.take();
        }
        if old(&ring.previous, 2) {
            ring.previous = None;
        }
        ring
    }

    fn seal(&self, digest: &TrustDigest, plain: &[u8], now: Instant) -> Option<Vec<u8>> {
        let key = {
            let mut ring = self.ring(now);
            match &ring.current {
                Some(key) => key.clone(),
                None => ring.current.insert(Key::new(now)?).clone(),
            }
        };
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).ok()?;
        let mut text = plain.to_vec();
        let sealed = Nonce::assume_unique_for_key(nonce);
        key.key.seal_in_place_append_tag(sealed, Aad::from(digest.0), &mut text).ok()?;
        Some([&key.name[..], &nonce, &text].concat())
    }

    fn open(&self, digest: &TrustDigest, ticket: &[u8], now: Instant) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<KEY_NAME>()?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>()?;
        let key = {
            let ring = self.ring(now);
            [&ring.current, &ring.previous].into_iter().flatten().find(|key| key.name == *name)?.clone()
        };
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.key.open_in_place(nonce, Aad::from(digest.0), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

/// One configuration's part in the keys.
#[derive(Debug)]
struct Tickets {
    keys: Arc<TicketKeys>,
    digest: TrustDigest,
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(KEY_LIFE.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.seal(&self.digest, plain, Instant::now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.keys.open(&self.digest, cipher, Instant::now())
    }
}

/// A server's configuration with tickets. `digest` is of everything that decides who is believed: with any other one, and with a
/// configuration that was given no tickets, the handshake is a full one.
#[must_use]
pub fn with_tickets(config: Arc<ServerConfig>, keys: &Arc<TicketKeys>, digest: TrustDigest) -> Arc<ServerConfig> {
    let mut config = Arc::unwrap_or_clone(config);
    config.ticketer = Arc::new(Tickets { keys: Arc::clone(keys), digest });
    config.send_tls13_tickets = 1;
    Arc::new(config)
}

/// What the clients of one configuration remember, by endpoint: a ticket is of use to who wrote it only.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<Kept<Tls13ClientSessionValue>>);

#[derive(Debug)]
struct Kept<S> {
    by_endpoint: HashMap<SocketAddr, VecDeque<S>>,
    count: usize,
}

impl<S> Default for Kept<S> {
    fn default() -> Self {
        Kept { by_endpoint: HashMap::new(), count: 0 }
    }
}

impl<S> Kept<S> {
    fn put(&mut self, endpoint: SocketAddr, session: S) {
        if self.count >= SESSIONS {
            *self = Kept::default();
        }
        let here = self.by_endpoint.entry(endpoint).or_default();
        if here.len() < PER_ENDPOINT {
            self.count = self.count.saturating_add(1);
        } else {
            here.pop_front();
        }
        here.push_back(session);
    }

    /// The newest.
    fn take(&mut self, endpoint: SocketAddr) -> Option<S> {
        let here = self.by_endpoint.get_mut(&endpoint)?;
        let session = here.pop_back()?;
        self.count = self.count.saturating_sub(1);
        if here.is_empty() {
            self.by_endpoint.remove(&endpoint);
        }
        Some(session)
    }
}

/// The part of one endpoint.
#[derive(Debug)]
struct AtEndpoint {
    all: Arc<Sessions>,
    address: SocketAddr,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Kept<Tls13ClientSessionValue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for AtEndpoint {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.all.lock().put(self.address, value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.all.lock().take(self.address)
    }
}

/// A client's configuration that takes up what `sessions` remembers of `address`. One set of sessions is for one configuration: whoever
/// makes another one, of other secrets or for another name, makes other sessions with it.
#[must_use]
pub fn with_sessions(config: &ClientConfig, sessions: &Arc<Sessions>, address: SocketAddr) -> Arc<ClientConfig> {
    let mut config = config.clone();
    let store = Arc::new(AtEndpoint { all: Arc::clone(sessions), address });
    config.resumption = Resumption::store(store).tls12_resumption(Tls12Resumption::Disabled);
    Arc::new(config)
}

/// Whether a finished handshake shows only what could be shown now: a full one has been judged, of a session that is taken up the peer's
/// certificates have to be within their validity still.
pub fn in_time(connection: &CommonState, now: SystemTime) -> bool {
    if connection.handshake_kind() != Some(HandshakeKind::Resumed) {
        return true;
    }
    let valid = |info: Arc<CertificateInfo>| info.not_before <= now && now <= info.not_after;
    connection.peer_certificates().unwrap_or_default().iter().all(|der| CertificateInfo::known(der).is_ok_and(valid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_opens_under_its_own_trust_and_for_two_lives_of_its_key() {
        let keys = TicketKeys::default();
        let start = Instant::now();
        let (own, other) = (TrustDigest::of([&b"a"[..], b"b"]), TrustDigest::of([&b"ab"[..], b""]));
        assert_ne!(own, other);
        let ticket = keys.seal(&own, b"session", start).unwrap();
        assert_eq!(keys.open(&own, &ticket, start).as_deref(), Some(&b"session"[..]));
        assert_eq!(keys.open(&other, &ticket, start), None);
        for at in [0, KEY_NAME, ticket.len() - 1] {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(keys.open(&own, &changed, start), None, "byte {at}");
        }
        assert_eq!(keys.open(&own, b"", start), None);
        assert_eq!(TicketKeys::default().open(&own, &ticket, start), None, "another process");
        let later = start + KEY_LIFE;
        let newer = keys.seal(&own, b"session", later).unwrap();
        assert_ne!(ticket[..KEY_NAME], newer[..KEY_NAME], "the key was replaced");
        assert!(keys.open(&own, &ticket, later).is_some(), "and is read still");
        assert_eq!(keys.open(&own, &ticket, start + 2 * KEY_LIFE), None);
        assert!(keys.open(&own, &newer, start + 2 * KEY_LIFE).is_some());
    }

    #[test]
    fn sessions_are_kept_for_as_many_as_begin_at_once_and_no_more() {
        let endpoint = |n: u16| SocketAddr::from(([127, 0, 0, 1], n));
        let mut kept = Kept::default();
        for session in 0..PER_ENDPOINT + 1 {
            kept.put(endpoint(1), session);
        }
        assert_eq!(kept.take(endpoint(2)), None);
        let given: Vec<usize> = std::iter::from_fn(|| kept.take(endpoint(1))).collect();
        assert!(
            given.iter().copied().eq((1..=PER_ENDPOINT).rev()),
            "the newest first, the oldest not at all: {given:?}"
        );
        assert!(kept.by_endpoint.is_empty() && kept.count == 0, "nothing stays of who has none");
        for session in 0..SESSIONS {
            kept.put(endpoint((session % 1000) as u16), session);
        }
        assert_eq!(kept.count, SESSIONS);
        kept.put(endpoint(2000), 0);
        assert_eq!((kept.count, kept.by_endpoint.len()), (1, 1));
    }
}
