//! Records of ours against rustls' own, and against forged ones.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::ServerName;

use super::*;
use crate::identity::Identity;
use crate::tls::{
    ClientAuth, Library, ServerAuth, Sessions, Step, TicketKeys, TlsOptions, TlsVersion, TrustDigest, client_config,
    server_config, with_sessions, with_tickets,
};

const NO_ALPN: [&str; 0] = [];

struct Configs {
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
}

fn configs(max_version: TlsVersion) -> Configs {
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let identity = Identity::from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
    let options = TlsOptions { own_records: true, max_version, ..TlsOptions::default() };
    let server = server_config(&identity, ClientAuth::None, &NO_ALPN, &options).unwrap();
    let server = with_tickets(server, &Arc::new(TicketKeys::default()), TrustDigest::of([&b"a"[..]]));
    let client = client_config(None, ServerAuth::None, &NO_ALPN, &options).unwrap();
    let client = with_sessions(&client, &Arc::new(Sessions::default()), "127.0.0.1:1".parse().unwrap());
    Configs { client, server }
}

fn name() -> ServerName<'static> {
    "a.example".try_into().unwrap()
}

/// Steps until more is wanted; whether data may be sent.
fn drive(library: &mut Library, read: &mut Vec<u8>, out: &mut Vec<u8>) -> bool {
    try_drive(library, read, out).unwrap()
}

fn try_drive(library: &mut Library, read: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<bool, Error> {
    loop {
        let (done, step) = library.step(read, out, &mut Vec::new());
        read.drain(..done);
        match step? {
            Step::Again => {}
            step => return Ok(step == Step::Open && !library.state().is_handshaking()),
        }
    }
}

/// Both ends after their handshake, and what is on its way to the client: the ticket.
fn shaken(configs: &Configs) -> (Library, Library, Vec<u8>) {
    let mut client = Library::client(Arc::clone(&configs.client), name()).unwrap();
    let mut server = Library::server(Arc::clone(&configs.server)).unwrap();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    loop {
        let open = drive(&mut client, &mut down, &mut up);
        if drive(&mut server, &mut up, &mut down) && open {
            return (client, server, down);
        }
    }
}

/// The same with records of ours.
fn pair(configs: &Configs) -> (Records, Records, Vec<u8>) {
    let (client, server, down) = shaken(configs);
    let ours = |library: Library| library.into_records().unwrap().unwrap();
    (ours(client), ours(server), down)
}

/// All data in `wire`; nothing may be left over.
fn read(records: &mut Records, wire: &mut Vec<u8>) -> Result<Vec<u8>, Broken> {
    let (mut data, mut at) = (Vec::new(), 0);
    while at < wire.len() {
        match records.open(&mut wire[at..])? {
            Opened::More => panic!("{} bytes left", wire.len() - at),
            Opened::Data { at: place, end } => {
                data.extend_from_slice(&wire[at..][place]);
                at += end;
            }
            Opened::Nothing { end } => at += end,
            Opened::Closed => break,
        }
    }
    wire.clear();
    Ok(data)
}

#[test]
fn both_ends_and_rustls_own_understand_each_other() {
    let configs = configs(TlsVersion::V1_3);
    let long: Vec<u8> = (0..50_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut client, mut server, mut ticket) = pair(&configs);
    assert_eq!(read(&mut client, &mut ticket).unwrap(), b"");
    for data in [&b"x"[..], b"", &long] {
        for (from, to) in [(0, 1), (1, 0)] {
            let ends = [&mut client, &mut server];
            let mut wire = Vec::new();
            let (a, b) = data.split_at(data.len() / 3);
            ends[from].seal(&[a, b"", b], &mut wire).unwrap();
            assert!(wire.len() <= data.len() + data.len().div_ceil(MAX_CONTENT) * OVERHEAD);
            assert_eq!(read(ends[to], &mut wire).unwrap(), data);
        }
    }
    // A server of rustls' own.
    let mut client = Library::client(Arc::clone(&configs.client), name()).unwrap();
    let mut server = ServerConnection::new(Arc::clone(&configs.server)).unwrap();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    loop {
        let open = drive(&mut client, &mut down, &mut up);
        server_takes(&mut server, &mut up);
        while server.wants_write() {
            server.write_tls(&mut down).unwrap();
        }
        if open && !server.is_handshaking() {
            break;
        }
    }
    assert_eq!(client.state().handshake_kind(), Some(rustls::HandshakeKind::Resumed), "by the ticket that came");
    let mut client = client.into_records().unwrap().unwrap();
    for round in 0..3 {
        client.seal(&[&long], &mut up).unwrap();
        let mut got = Vec::new();
        while !up.is_empty() {
            server_takes(&mut server, &mut up);
            let _ = server.reader().read_to_end(&mut got);
        }
        assert_eq!(got, long, "round {round}");
        // It renews its keys and wants ours to be new; we answer with the next data.
        server.refresh_traffic_keys().unwrap();
        server.writer().write_all(b"answer").unwrap();
        while server.wants_write() {
            server.write_tls(&mut down).unwrap();
        }
        assert_eq!(read(&mut client, &mut down).unwrap(), b"answer");
        assert!(client.owes_update);
    }
    client.close(&mut up).unwrap();
    server_takes(&mut server, &mut up);
    assert_eq!(server.reader().read(&mut [0]).unwrap(), 0);
    server.send_close_notify();
    server.write_tls(&mut down).unwrap();
    assert_eq!(client.open(&mut down), Ok(Opened::Closed));
}

fn server_takes(server: &mut ServerConnection, wire: &mut Vec<u8>) {
    let mut rest = wire.as_slice();
    while !rest.is_empty() && server.wants_read() {
        server.read_tls(&mut rest).unwrap();
        server.process_new_packets().unwrap();
    }
    let left = rest.len();
    wire.drain(..wire.len() - left);
}

#[test]
fn a_key_seals_no_more_than_it_may() {
    let configs = configs(TlsVersion::V1_3);
    let (mut client, mut server, _) = pair(&configs);
    client.limit = 3;
    let mut wire = Vec::new();
    for n in 0..10_u8 {
        client.seal(&[&[n]], &mut wire).unwrap();
        assert!(client.writes.number <= 3);
    }
    assert_eq!(read(&mut server, &mut wire).unwrap(), (0..10).collect::<Vec<u8>>());
    assert!(!server.owes_update, "nobody asked");
}

#[test]
fn tls_1_2_is_rustls_own() {
    let (client, mut server, mut down) = shaken(&configs(TlsVersion::V1_2));
    let mut up = Vec::new();
    let mut client = client.into_records().unwrap().unwrap_err();
    let mut data = Vec::new();
    for data in [Some(&[&b"a"[..], b"bc"][..]), None] {
        client.seal(&mut down, data, &mut up, &mut Vec::new()).1.unwrap();
    }
    loop {
        let (done, step) = server.step(&mut up, &mut down, &mut data);
        up.drain(..done);
        if step.unwrap() == Step::Closed {
            break;
        }
    }
    assert_eq!(data, b"abc");
}

/// What the server makes of a record of the client with this kind and content, padded with zeros.
fn made_of(kind: u8, content: &[u8], zeros: usize) -> Result<Opened, Broken> {
    let (mut client, mut server, _) = pair(&configs(TlsVersion::V1_3));
    server.open(&mut forged(&mut client, kind, content, zeros))
}

fn forged(client: &mut Records, kind: u8, content: &[u8], zeros: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    let padded = [content, &[kind], &vec![0; zeros]].concat();
    // The last byte is the kind of content, which may be padding too.
    let (last, inner) = padded.split_last().unwrap();
    client.record(*last, inner.len(), |out| out.extend_from_slice(inner), &mut wire).unwrap();
    wire
}

#[test]
fn forms_that_the_protocol_does_not_allow_are_refused() {
    use AlertDescription as A;
    let ticket = [NEW_SESSION_TICKET, 0, 0, 0];
    let update = [KEY_UPDATE, 0, 0, 1, 0];
    let twice = [update, update].concat();
    let full = vec![7; MAX_CONTENT];
    for (kind, content, zeros, alert) in [
        (0, &b""[..], 0, A::UnexpectedMessage),
        (0, b"", 100, A::UnexpectedMessage),
        (CHANGE_CIPHER_SPEC, b"\x01", 0, A::UnexpectedMessage),
        (99, b"x", 0, A::UnexpectedMessage),
        (ALERT, b"", 0, A::UnexpectedMessage),
        (ALERT, b"\x01", 0, A::DecodeError),
        (HANDSHAKE, b"", 0, A::UnexpectedMessage),
        // To a server.
        (HANDSHAKE, &ticket, 0, A::UnexpectedMessage),
        // A certificate is never asked for again.
        (HANDSHAKE, &[13, 0, 0, 0], 0, A::UnexpectedMessage),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 2], 0, A::IllegalParameter),
        (HANDSHAKE, &[KEY_UPDATE, 0, 0, 2, 0, 0], 0, A::IllegalParameter),
        (HANDSHAKE, &twice, 0, A::UnexpectedMessage),
        (HANDSHAKE, &[KEY_UPDATE, 1, 0, 0], 0, A::DecodeError),
        (DATA, &full, 1, A::RecordOverflow),
    ] {
        assert_eq!(made_of(kind, content, zeros).unwrap_err().alert, Some(alert), "{kind} {}", content.len());
    }
    for (kind, content, zeros) in [(DATA, &full[..], 0), (DATA, b"", 0), (DATA, b"", 200), (HANDSHAKE, &update, 10)] {
        assert!(made_of(kind, content, zeros).is_ok(), "{kind} {}", content.len());
    }
    assert_eq!(made_of(ALERT, &[2, CLOSE_NOTIFY], 0), Ok(Opened::Closed));
    assert!(matches!(made_of(ALERT, &[1, USER_CANCELED], 0), Ok(Opened::Nothing { .. })));
    let fatal = made_of(ALERT, &[1, 46], 0).unwrap_err();
    assert_eq!(fatal, Broken { error: Error::AlertReceived(AlertDescription::CertificateUnknown), alert: None });
}

#[test]
fn what_is_not_sealed_or_too_long_is_refused() {
    let (_, mut server, _) = pair(&configs(TlsVersion::V1_3));
    for (bytes, alert) in [
        (&[21, 3, 3, 0, 2, 1, 0][..], AlertDescription::UnexpectedMessage),
        (&[20, 3, 3, 0, 1, 1], AlertDescription::UnexpectedMessage),
        (&[22, 3, 3, 0, 4, 24, 0, 0, 1], AlertDescription::UnexpectedMessage),
        (&[99, 3, 3, 0, 1, 1], AlertDescription::DecodeError),
        (&[23, 3, 3, 0x41, 1], AlertDescription::RecordOverflow),
    ] {
        assert_eq!(server.open(&mut bytes.to_vec()).unwrap_err().alert, Some(alert), "{bytes:?}");
    }
    for bytes in [&[][..], &[23], &[23, 3, 3, 0], &[23, 3, 3, 0x41, 0], &[23, 3, 3, 0, 17, 1]] {
        assert_eq!(server.open(&mut bytes.to_vec()), Ok(Opened::More), "{bytes:?}");
    }
    for short in 0..=16 {
        let mut bytes = vec![0; 5 + short];
        bytes[..5].copy_from_slice(&[23, 3, 3, 0, short as u8]);
        let (_, mut server, _) = pair(&configs(TlsVersion::V1_3));
        assert_eq!(server.open(&mut bytes).unwrap_err().alert, Some(AlertDescription::BadRecordMac), "{short}");
    }
}

#[test]
fn updates_without_end_are_refused_and_messages_come_in_pieces() {
    let (mut client, mut server, _) = pair(&configs(TlsVersion::V1_3));
    let update = |client: &mut Records| {
        let wire = forged(client, HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1], 0);
        client.writes = client.rest.next(Side::Writes).and_then(Keys::new).unwrap();
        wire
    };
    for round in 0..2 * MOST_UPDATES {
        server.open(&mut update(&mut client)).unwrap();
        if round == MOST_UPDATES - 1 {
            let mut wire = Vec::new();
            client.seal(&[b"data"], &mut wire).unwrap();
            server.open(&mut wire).unwrap();
        }
    }
    let refused = server.open(&mut update(&mut client)).unwrap_err();
    assert_eq!(refused.error, PeerMisbehaved::TooManyKeyUpdateRequests.into());

    let (mut client, mut server, _) = pair(&configs(TlsVersion::V1_3));
    for piece in [&[KEY_UPDATE][..], &[0, 0, 1]] {
        assert!(matches!(server.open(&mut forged(&mut client, HANDSHAKE, piece, 0)), Ok(Opened::Nothing { .. })));
    }
    let between = server.open(&mut forged(&mut client, DATA, b"data", 0)).unwrap_err();
    assert_eq!(between.alert, Some(AlertDescription::UnexpectedMessage));
}

/// The same with handshake messages cut into records of this size; what is sealed stays as it is.
fn cut(wire: &[u8], size: usize) -> Vec<u8> {
    let (mut out, mut rest, mut plain) = (Vec::new(), wire, true);
    while let [kind, a, b, c, d, behind @ ..] = rest {
        let (content, next) = behind.split_at(usize::from(u16::from_be_bytes([*c, *d])));
        plain &= *kind == HANDSHAKE;
        let size = if plain { size } else { content.len().max(1) };
        for piece in content.chunks(size) {
            out.extend_from_slice(&[*kind, *a, *b]);
            out.extend_from_slice(&(piece.len() as u16).to_be_bytes());
            out.extend_from_slice(piece);
        }
        rest = next;
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A byte changed anywhere, a record left out or doubled: nothing of it is given out.
    #[test]
    fn nothing_forged_is_given_out(at in 0_usize..1000, with in 1_u8..=255, size in 1_usize..400, skip: bool) {
        let (mut client, mut server, _) = pair(&configs(TlsVersion::V1_3));
        let (mut first, mut second) = (Vec::new(), Vec::new());
        client.seal(&[&vec![1; size]], &mut first).unwrap();
        client.seal(&[&vec![2; size]], &mut second).unwrap();
        if skip {
            prop_assert_eq!(server.open(&mut second).unwrap_err().alert, Some(AlertDescription::BadRecordMac));
        } else {
            let at = at % first.len();
            first[at] ^= with;
            let opened = server.open(&mut first);
            prop_assert!(!matches!(opened, Ok(Opened::Data { .. } | Opened::Closed)), "{:?}", opened);
        }
    }

    /// A handshake whose flights come in records of any size, a few bytes at a time, and are damaged somewhere.
    #[test]
    fn a_stranger_ends_no_thread(size in 1_usize..600, step in 1_usize..900, at in 0_usize..4000, with: u8, old: bool) {
        let configs = configs(if old { TlsVersion::V1_2 } else { TlsVersion::V1_3 });
        let mut client = Library::client(Arc::clone(&configs.client), name()).unwrap();
        let mut server = Library::server(Arc::clone(&configs.server)).unwrap();
        let (mut up, mut down, mut read, mut passed) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for _ in 0..3 {
            if try_drive(&mut client, &mut down, &mut up).is_err() {
                // What it was told of was damaged.
                return Ok(());
            }
            let mut wire = cut(&std::mem::take(&mut up), size);
            if let Some(byte) = at.checked_sub(passed).and_then(|at| wire.get_mut(at)) {
                *byte ^= with;
            }
            passed += wire.len();
            for piece in wire.chunks(step) {
                read.extend_from_slice(piece);
                if let Err(error) = try_drive(&mut server, &mut read, &mut down) {
                    // Not every failure has an alert: what rustls has for this one is sent, and nothing is left to be sent.
                    let (before, told) = (down.len(), server.state().wants_write());
                    server.last_words(&mut down);
                    prop_assert_eq!(down.len() > before, told, "{:?}", error);
                    prop_assert!(!server.state().wants_write(), "{:?}", error);
                    return Ok(());
                }
            }
        }
        prop_assert!(!server.state().is_handshaking() || with != 0);
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 20_u8..=23) {
        let (mut client, mut server, _) = pair(&configs(TlsVersion::V1_3));
        let _ = server.open(&mut forged(&mut client, kind, &bytes, 0));
        let _ = server.open(&mut forged(&mut client, kind, &bytes, 0));
        let _ = server.open(&mut bytes);
    }
}

#[test]
fn a_server_of_ours_and_a_client_of_rustls() {
    let configs = configs(TlsVersion::V1_3);
    for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let mut client = ClientConnection::new(Arc::clone(&configs.client), name()).unwrap();
        let mut server = Library::server(Arc::clone(&configs.server)).unwrap();
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let takes = |client: &mut ClientConnection, down: &mut Vec<u8>| {
            let mut rest = down.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
            down.clear();
        };
        loop {
            while client.wants_write() {
                client.write_tls(&mut up).unwrap();
            }
            let open = drive(&mut server, &mut up, &mut down);
            takes(&mut client, &mut down);
            if open && !client.is_handshaking() {
                break;
            }
        }
        let agreed = client.handshake_kind().unwrap();
        assert!(agreed == kind || kind == rustls::HandshakeKind::Full, "{agreed:?}");
        let mut server = server.into_records().unwrap().unwrap();
        server.seal(&[b"hello"], &mut down).unwrap();
        takes(&mut client, &mut down);
        let mut got = [0; 5];
        client.reader().read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
    }
}
