//! HTTP/2 frame by frame: what a peer may and may not send (RFC 9113, RFC 7541), given to our engine and to a real Envoy.
//!
//! Invariant: each case names its section and what the RFC allows as an outcome; ours must be allowed, and must not take what Envoy
//! refuses. Frames are written by hand, so nothing of a library keeps a case from being as wrong as it wants.

use crate::lab::{Envoy, Setup, native};
use crate::support::echo_app;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;
pub const BOTH: u8 = END_STREAM | END_HEADERS;

/// What the RFC allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// Stream 1 is answered with 200.
    Answer,
    /// The connection lives on, and nothing else comes.
    Nothing,
    /// A stream error, or an answer that refuses (§5.4.2, §8.1.1), or an error of the connection.
    Refusal,
    /// An error of the connection: GOAWAY, or its end (§5.4.1).
    End,
}

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    Answer,
    Nothing,
    Refused(u32),
    Status,
    GoAway(u32),
    Closed,
    Silence,
}

impl Came {
    fn is(self, want: Want) -> bool {
        match want {
            Want::Answer => self == Came::Answer,
            Want::Nothing => self == Came::Nothing,
            Want::Refusal => matches!(self, Came::Refused(_) | Came::Status | Came::GoAway(_) | Came::Closed),
            Want::End => matches!(self, Came::GoAway(_) | Came::Closed),
        }
    }

    fn takes(self) -> bool {
        matches!(self, Came::Answer | Came::Nothing)
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut all = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    all.extend([kind, flags]);
    all.extend(stream.to_be_bytes());
    all.extend(payload);
    all
}

/// Literals without indexing and without Huffman's code (RFC 7541 §6.2.2).
pub fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let mut all = Vec::new();
    for (name, value) in list {
        all.push(0);
        for text in [name, value] {
            let length = text.len();
            if length < 127 {
                all.push(u8::try_from(length).unwrap());
            } else {
                all.extend([127, u8::try_from((length - 127) % 128 + 128).unwrap()]);
                all.push(u8::try_from((length - 127) / 128).unwrap());
            }
            all.extend(text.as_bytes());
        }
    }
    all
}

pub const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "app.test")];
const POST: [(&str, &str); 4] = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "app.test")];

fn with(base: &[(&'static str, &'static str)], more: &[(&'static str, &'static str)]) -> Vec<u8> {
    fields(&[base, more].concat())
}

/// A request that has ended.
pub fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, BOTH, stream, &fields(&GET))
}

/// A request that goes on.
pub fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &fields(&POST))
}

fn request(more: &[(&'static str, &'static str)]) -> Vec<u8> {
    frame(HEADERS, BOTH, 1, &with(&GET, more))
}

pub fn only(list: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, BOTH, 1, &fields(list))
}

pub fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

pub fn settings(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &setting(id, value))
}

/// One case: the section, what is sent after the preface and an empty SETTINGS, what is wanted.
type Case = (&'static str, Vec<u8>, Want);

fn frames() -> Vec<Case> {
    use Want::{Answer, End, Nothing, Refusal};
    let block = fields(&GET);
    let (half, rest) = block.split_at(block.len() / 2);
    let long = "a".repeat(8000);
    let window = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let stream_of = |parts: &[Vec<u8>]| parts.concat();
    vec![
        ("3.4 a request after the preface", get(1), Answer),
        ("4.1 a frame of an unknown kind is ignored", stream_of(&[frame(0x16, 0, 0, b"12345678"), get(1)]), Answer),
        ("4.1 an undefined flag is ignored", stream_of(&[frame(PING, 0xfe, 0, &[0; 8]), get(1)]), Answer),
        ("4.1 the reserved bit is ignored", stream_of(&[frame(PING, 0, 0x8000_0000, &[0; 8]), get(1)]), Answer),
        ("4.2 DATA of 16,384 bytes", stream_of(&[post(1), frame(DATA, END_STREAM, 1, &[b'x'; 16384])]), Answer),
        ("4.2 DATA of 16,385 bytes", stream_of(&[post(1), frame(DATA, END_STREAM, 1, &[b'x'; 16385])]), Refusal),
        ("4.2 HEADERS of 16,385 bytes", frame(HEADERS, BOTH, 1, &[0; 16385]), End),
        ("4.2 SETTINGS too large", frame(SETTINGS, 0, 0, &vec![0; 16386]), End),
        ("4.3 a header block that cannot be decoded", frame(HEADERS, BOTH, 1, &[0x40]), End),
        (
            "4.3 PRIORITY within a header block",
            stream_of(&[
                frame(HEADERS, END_STREAM, 1, half),
                frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]),
                frame(CONTINUATION, END_HEADERS, 1, rest),
            ]),
            End,
        ),
        (
            "4.3 another stream's HEADERS within a header block",
            stream_of(&[frame(HEADERS, END_STREAM, 1, half), get(3)]),
            End,
        ),
        ("5.1 idle: DATA", frame(DATA, END_STREAM, 1, b"x"), End),
        ("5.1 idle: RST_STREAM", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), End),
        ("5.1 idle: WINDOW_UPDATE", window(1, 100), End),
        ("5.1 idle: CONTINUATION", frame(CONTINUATION, END_HEADERS, 1, &block), End),
        ("5.1 half closed: DATA", stream_of(&[get(1), frame(DATA, END_STREAM, 1, b"x")]), Refusal),
        ("5.1 half closed: HEADERS", stream_of(&[get(1), get(1)]), Refusal),
        ("5.1 half closed: CONTINUATION", stream_of(&[get(1), frame(CONTINUATION, END_HEADERS, 1, &block)]), End),
        (
            "5.1 closed by RST_STREAM: WINDOW_UPDATE is ignored",
            stream_of(&[post(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), window(1, 1)]),
            Nothing,
        ),
        ("5.1.1 a stream of an even number", get(2), End),
        ("5.1.1 a stream of a smaller number", stream_of(&[get(5), get(3)]), End),
        (
            "5.3 HEADERS with a priority",
            frame(HEADERS, BOTH | WITH_PRIORITY, 1, &[&[0, 0, 0, 3, 7][..], &block].concat()),
            Answer,
        ),
        (
            "5.3.1 HEADERS that depends on itself",
            frame(HEADERS, BOTH | WITH_PRIORITY, 1, &[&[0, 0, 0, 1, 7][..], &block].concat()),
            Want::Refusal,
        ),
        ("5.4.1 GOAWAY of the client lets its request end", stream_of(&[get(1), frame(GOAWAY, 0, 0, &[0; 8])]), Answer),
        ("6.1 DATA on stream 0", frame(DATA, END_STREAM, 0, b"x"), End),
        ("6.1 DATA with padding", stream_of(&[post(1), frame(DATA, END_STREAM | PADDED, 1, &[2, b'x', 0, 0])]), Answer),
        (
            "6.1 DATA whose padding is as long as the frame",
            stream_of(&[post(1), frame(DATA, END_STREAM | PADDED, 1, &[4, b'x', 0, 0])]),
            End,
        ),
        ("6.2 HEADERS on stream 0", frame(HEADERS, BOTH, 0, &block), End),
        ("6.2 HEADERS with padding", frame(HEADERS, BOTH | PADDED, 1, &[&[2][..], &block, &[0, 0]].concat()), Answer),
        (
            "6.2 HEADERS whose padding is too long",
            frame(HEADERS, BOTH | PADDED, 1, &[&[255][..], &block].concat()),
            End,
        ),
        ("6.3 PRIORITY on stream 0", frame(PRIORITY, 0, 0, &[0, 0, 0, 0, 1]), End),
        ("6.3 PRIORITY of 4 bytes", stream_of(&[post(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 0])]), Refusal),
        ("6.3 PRIORITY on an idle stream", stream_of(&[frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]), get(1)]), Answer),
        ("6.4 RST_STREAM on stream 0", frame(RST_STREAM, 0, 0, &[0, 0, 0, 8]), End),
        ("6.4 RST_STREAM of 3 bytes", stream_of(&[post(1), frame(RST_STREAM, 0, 1, &[0, 0, 8])]), End),
        ("6.5 SETTINGS with an acknowledgement that has a payload", frame(SETTINGS, ACK, 0, &setting(3, 1)), End),
        ("6.5 SETTINGS on stream 1", frame(SETTINGS, 0, 1, &setting(3, 1)), End),
        ("6.5 SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5]), End),
        ("6.5.2 ENABLE_PUSH of 2", settings(2, 2), End),
        ("6.5.2 INITIAL_WINDOW_SIZE of 2^31", settings(4, 0x8000_0000), End),
        ("6.5.2 MAX_FRAME_SIZE of 16,383", settings(5, 16383), End),
        ("6.5.2 MAX_FRAME_SIZE of 2^24", settings(5, 1 << 24), End),
        ("6.5.2 an unknown setting is ignored", stream_of(&[settings(0xff, 1), get(1)]), Answer),
        (
            "6.5.3 of two values the last counts",
            stream_of(&[frame(SETTINGS, 0, 0, &[setting(4, 1), setting(4, 65535)].concat()), get(1)]),
            Answer,
        ),
        (
            "6.6 PUSH_PROMISE of a client",
            stream_of(&[post(1), frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &block].concat())]),
            End,
        ),
        ("6.7 PING", frame(PING, 0, 0, b"anything"), Nothing),
        ("6.7 PING that acknowledges what was not sent", frame(PING, ACK, 0, b"anything"), Nothing),
        ("6.7 PING on stream 1", frame(PING, 0, 1, &[0; 8]), End),
        ("6.7 PING of 6 bytes", frame(PING, 0, 0, &[0; 6]), End),
        ("6.8 GOAWAY on stream 1", frame(GOAWAY, 0, 1, &[0; 8]), End),
        ("6.9 WINDOW_UPDATE by 0 on the connection", window(0, 0), End),
        ("6.9 WINDOW_UPDATE by 0 on a stream", stream_of(&[post(1), window(1, 0)]), Refusal),
        ("6.9 WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1]), End),
        (
            "6.9.1 the connection's window over 2^31-1",
            stream_of(&[window(0, 0x7fff_ffff), window(0, 0x7fff_ffff)]),
            End,
        ),
        (
            "6.9.1 a stream's window over 2^31-1",
            stream_of(&[post(1), window(1, 0x7fff_ffff), window(1, 0x7fff_ffff)]),
            Refusal,
        ),
        ("6.9.2 a window of 0 that grows later", stream_of(&[settings(4, 0), get(1), settings(4, 65535)]), Answer),
        (
            "6.9.2 SETTINGS that makes a window overflow",
            stream_of(&[settings(4, 1), post(1), window(1, 0x7fff_ffff - 1), settings(4, 0x7fff_ffff)]),
            End,
        ),
        (
            "6.10 CONTINUATION, twice",
            stream_of(&[
                frame(HEADERS, END_STREAM, 1, half),
                frame(CONTINUATION, 0, 1, &rest[..4]),
                frame(CONTINUATION, END_HEADERS, 1, &rest[4..]),
            ]),
            Answer,
        ),
        (
            "6.10 DATA in place of CONTINUATION",
            stream_of(&[frame(HEADERS, 0, 1, half), frame(DATA, END_STREAM, 1, b"x")]),
            End,
        ),
        (
            "6.10 CONTINUATION on stream 0",
            stream_of(&[frame(HEADERS, END_STREAM, 1, half), frame(CONTINUATION, END_HEADERS, 0, rest)]),
            End,
        ),
        (
            "6.10 CONTINUATION after the block has ended",
            stream_of(&[frame(HEADERS, END_HEADERS, 1, &fields(&POST)), frame(CONTINUATION, END_HEADERS, 1, rest)]),
            End,
        ),
        (
            "7 RST_STREAM with an unknown code",
            stream_of(&[post(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 0xff])]),
            Nothing,
        ),
        (
            "10.5.1 a field of 8,000 bytes",
            frame(HEADERS, BOTH, 1, &fields(&[&GET[..], &[("x-long", &long)]].concat())),
            Answer,
        ),
    ]
}

fn messages() -> Vec<Case> {
    use Want::{Answer, End, Refusal};
    let body = |length: &'static str, sent: &[u8]| {
        let head = frame(HEADERS, END_HEADERS, 1, &with(&POST, &[("content-length", length)]));
        [head, frame(DATA, END_STREAM, 1, sent)].concat()
    };
    let trailers = |list: &[(&str, &str)], flags| {
        [post(1), frame(DATA, 0, 1, b"x"), frame(HEADERS, flags, 1, &fields(list))].concat()
    };
    let raw = |bytes: &[u8]| frame(HEADERS, BOTH, 1, &[fields(&GET), bytes.to_vec()].concat());
    vec![
        ("8.1 trailers", trailers(&[("x-end", "1")], BOTH), Answer),
        ("8.1 a second HEADERS that does not end the stream", trailers(&[("x-end", "1")], END_HEADERS), Refusal),
        ("8.1 a pseudo-header in trailers", trailers(&[(":method", "POST")], BOTH), Refusal),
        ("8.1.1 content-length over the body", body("2", b"x"), Refusal),
        ("8.1.1 content-length under the body", body("1", b"xx"), Refusal),
        (
            "8.1.1 content-length over no body",
            frame(HEADERS, BOTH, 1, &with(&POST, &[("content-length", "1")])),
            Refusal,
        ),
        ("8.1.1 content-length as it is", body("2", b"xx"), Answer),
        (
            "8.1.1 two lengths that differ",
            frame(HEADERS, BOTH, 1, &with(&POST, &[("content-length", "0"), ("content-length", "1")])),
            Refusal,
        ),
        ("8.2.1 a name in upper case", request(&[("X-Up", "1")]), Refusal),
        ("8.2.1 a name with a space", request(&[("x y", "1")]), Refusal),
        ("8.2.1 a name with a colon", request(&[("x:y", "1")]), Refusal),
        ("8.2.1 an empty name", request(&[("", "1")]), Refusal),
        ("8.2.1 a value with CR and LF", request(&[("x-a", "1\r\nx-b: 2")]), Refusal),
        ("8.2.1 a value with NUL", request(&[("x-a", "1\0")]), Refusal),
        ("8.2.2 connection", request(&[("connection", "keep-alive")]), Refusal),
        ("8.2.2 keep-alive", request(&[("keep-alive", "1")]), Refusal),
        ("8.2.2 proxy-connection", request(&[("proxy-connection", "close")]), Refusal),
        ("8.2.2 transfer-encoding", request(&[("transfer-encoding", "chunked")]), Refusal),
        ("8.2.2 upgrade", request(&[("upgrade", "websocket")]), Refusal),
        ("8.2.2 te: trailers", request(&[("te", "trailers")]), Answer),
        ("8.2.2 te: gzip", request(&[("te", "gzip")]), Refusal),
        ("8.2.3 cookies in pieces", request(&[("cookie", "a=1"), ("cookie", "b=2")]), Answer),
        ("8.3 an unknown pseudo-header", only(&[&GET[..], &[(":x", "1")]].concat()), Refusal),
        ("8.3 :status in a request", only(&[&GET[..], &[(":status", "200")]].concat()), Refusal),
        ("8.3 a pseudo-header after another field", only(&[&GET[..3], &[("x-a", "1")], &GET[3..]].concat()), Refusal),
        ("8.3.1 no :method", only(&GET[1..]), Refusal),
        ("8.3.1 no :scheme", only(&[GET[0], GET[2], GET[3]]), Refusal),
        ("8.3.1 no :path", only(&[GET[0], GET[1], GET[3]]), Refusal),
        ("8.3.1 an empty :path", only(&[GET[0], GET[1], (":path", ""), GET[3]]), Refusal),
        ("8.3.1 a :path without a slash", only(&[GET[0], GET[1], (":path", "x"), GET[3]]), Refusal),
        ("8.3.1 :method twice", only(&[GET[0], GET[0], GET[1], GET[2], GET[3]]), Refusal),
        ("8.3.1 :scheme twice", only(&[GET[0], GET[1], GET[1], GET[2], GET[3]]), Refusal),
        ("8.3.1 :path twice", only(&[GET[0], GET[1], GET[2], GET[2], GET[3]]), Refusal),
        ("8.3.1 :authority twice", only(&[&GET[..], &GET[3..]].concat()), Refusal),
        // SHOULD be malformed; both take the authority and forget the other name.
        ("8.3.1 :authority and another host", request(&[("host", "other.test")]), Answer),
        (
            "8.3.1 :authority with user information",
            only(&[GET[0], GET[1], GET[2], (":authority", "u@app.test")]),
            Refusal,
        ),
        ("8.5 CONNECT with a path", only(&[(":method", "CONNECT"), GET[1], GET[2], GET[3]]), Refusal),
        ("7541 2.3.3 an index of no field", raw(&[0xff, 0x7f]), End),
        ("7541 2.3.3 index 0", raw(&[0x80]), End),
        (
            "7541 4.2 a table larger than allowed",
            frame(HEADERS, BOTH, 1, &[&[0x3f, 0xff, 0xff, 0xff, 0x07][..], &fields(&GET)].concat()),
            End,
        ),
        ("7541 4.2 a change of the table within a block", raw(&[0x20]), End),
        (
            "7541 5.2 an integer without end",
            raw(&[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            End,
        ),
        ("7541 5.2 padding of a coded text over 7 bits", raw(&[0x00, 0x82, 0x1f, 0xff, 0x01, b'x']), End),
        ("7541 5.2 padding of a coded text with zeros", raw(&[0x00, 0x81, 0x18, 0x01, b'x']), End),
        ("7541 5.2 the end of text in a coded text", raw(&[0x00, 0x85, 0x1f, 0xff, 0xff, 0xff, 0xff, 0x01, b'x']), End),
        (
            "7541 6.1 known fields by index",
            frame(HEADERS, BOTH, 1, &[&[0x82, 0x86, 0x84, 0x01, 0x08][..], b"app.test"].concat()),
            Answer,
        ),
        (
            "7541 6.3 a smaller table at the beginning of a block",
            frame(HEADERS, BOTH, 1, &[&[0x20][..], &fields(&GET)].concat()),
            Answer,
        ),
    ]
}

/// Without the preface, or with another beginning.
fn beginnings() -> Vec<Case> {
    let settings_first = [PREFACE, &get(1)].concat();
    vec![
        ("3.4 a preface that breaks off wrongly", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(), Want::End),
        ("3.4 no SETTINGS after the preface", settings_first, Want::End),
        ("3.4 SETTINGS that acknowledges first", [PREFACE, &frame(SETTINGS, ACK, 0, &[])].concat(), Want::End),
    ]
}

/// Sends and looks what comes of it.
async fn outcome(to: SocketAddr, begin: &[u8], bytes: &[u8], want: Want) -> Came {
    let mut tcp = TcpStream::connect(to).await.unwrap();
    let marker = *b"the mark";
    let all = [begin, bytes, &frame(PING, 0, 0, &marker)].concat();
    // The other side may close while we still write.
    let _ = tcp.write_all(&all).await;
    let (mut reader, mut writer) = tcp.into_split();
    let looking = async {
        loop {
            let mut head = [0; 9];
            if reader.read_exact(&mut head).await.is_err() {
                return Came::Closed;
            }
            let [_, a, b, kind, flags, _, _, _, stream] = head;
            let mut payload = vec![0; usize::from(a) << 8 | usize::from(b)];
            if reader.read_exact(&mut payload).await.is_err() {
                return Came::Closed;
            }
            let code = |at: usize| payload.get(at..at + 4).map_or(0, |c| u32::from_be_bytes(c.try_into().unwrap()));
            match kind {
                GOAWAY if code(4) != 0 => return Came::GoAway(code(4)),
                RST_STREAM => return Came::Refused(code(0)),
                HEADERS if stream == 1 && payload.first() == Some(&0x88) => return Came::Answer,
                HEADERS if stream == 1 => return Came::Status,
                SETTINGS if flags & ACK == 0 => drop(writer.write_all(&frame(SETTINGS, ACK, 0, &[])).await),
                PING if payload == marker && want == Want::Nothing => return Came::Nothing,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), looking).await.unwrap_or(Came::Silence)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_rfc_forbids_is_refused_and_what_it_allows_is_not() {
    let (app, _) = echo_app().await;
    let setup = Setup::new("h2");
    let envoy = Envoy::start(&[&setup], app).await;
    let (_native, ports) = native(&[&setup], app);
    let usual = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let cases = frames().into_iter().chain(messages()).map(|case| (usual.clone(), case));
    let cases: Vec<_> = cases.chain(beginnings().into_iter().map(|case| (Vec::new(), case))).collect();
    assert!(cases.len() > 100);
    let runs = cases.iter().map(|(begin, (name, bytes, want))| {
        let (ours, theirs) = (ports[0], envoy.ports[0]);
        async move {
            let both = (outcome(ours, begin, bytes, *want), outcome(theirs, begin, bytes, *want));
            let (ours, theirs) = futures_util::future::join(both.0, both.1).await;
            let wrong = !ours.is(*want);
            let laxer = ours.takes() && !theirs.takes();
            (wrong || laxer).then(|| format!("{name}: want {want:?}, ours {ours:?}, Envoy {theirs:?}"))
        }
    });
    let wrong: Vec<String> = futures_util::future::join_all(runs).await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{} of {}\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
