//! Peers that do not do what a connection waits for: the other end of a socket, by hand.

use crate::io::socket::Socket;
use crate::io::stream::Kind;
use crate::message::h1::client::SendError;
use crate::message::h2::core::Own;
use crate::message::h2::frame::{self, ACK, GOAWAY, SETTINGS, setting};
use crate::message::h2::{Patience, Protocol, Reason, client};
use crate::message::incoming::Broken;
use crate::message::request_body::RequestBody;
use bytes::Bytes;
use http::{Method, Request, request};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const OWN: Own = Own { table: 4096, streams: 0, window: 65535, connection: 65535, list: 8192, connect: false };
const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(50);

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (ours, theirs) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (ours.unwrap(), theirs.unwrap().0)
}

fn connect(tcp: TcpStream, patience: Patience) -> (client::Sender, impl Future<Output = ()>) {
    client::connect(Kind::Plain(Socket::new(tcp)).into(), OWN, None, patience)
}

fn settings(all: &[(u16, u32)]) -> Vec<u8> {
    let mut text = Vec::new();
    frame::settings(&mut text, all);
    text
}

fn request(method: Method, protocol: Option<&str>) -> request::Parts {
    let mut request = Request::builder().method(method).uri("http://app.test/").body(()).unwrap();
    if let Some(protocol) = protocol {
        request.extensions_mut().insert(Protocol::from(protocol));
    }
    request.into_parts().0
}

/// Frames behind the preface until the end: their kinds and the code that each would have as a GOAWAY.
async fn frames(tcp: &mut TcpStream) -> Vec<(u8, u32)> {
    let mut all = Vec::new();
    let _ = tcp.read_to_end(&mut all).await;
    let mut rest = all.get(24..).unwrap_or_default();
    let mut seen = Vec::new();
    while let Some((head, more)) = rest.split_first_chunk::<9>() {
        let (payload, more) = more.split_at(usize::from(head[1]) << 8 | usize::from(head[2]));
        seen.push((head[3], payload.get(4..8).map_or(0, |code| u32::from_be_bytes(code.try_into().unwrap()))));
        rest = more;
    }
    seen
}

/// RFC 9113 §6.5.3. Who has said nothing yet is waited for.
#[tokio::test]
async fn settings_want_an_acknowledgement() {
    let patience = Patience { stalled: None, settled: SHORT };
    for acknowledges in [false, true] {
        let (ours, mut theirs) = pair().await;
        let (sender, task) = connect(ours, patience);
        let mut task = Box::pin(task);
        assert!(tokio::time::timeout(4 * SHORT, &mut task).await.is_err(), "a server that has said nothing was left");
        theirs.write_all(&settings(&[])).await.unwrap();
        if acknowledges {
            let mut ack = Vec::new();
            frame::head(&mut ack, 0, SETTINGS, ACK, 0);
            theirs.write_all(&ack).await.unwrap();
            assert!(tokio::time::timeout(4 * SHORT, &mut task).await.is_err(), "left for nothing");
            assert!(!sender.is_closed());
        } else {
            let (seen, ()) = tokio::join!(frames(&mut theirs), task);
            assert_eq!(seen.last(), Some(&(GOAWAY, Reason::SETTINGS.0)), "{seen:?}");
            assert!(sender.is_closed());
        }
    }
}

/// A server that takes nothing: what waits for it is given up, and nobody else is sent to it.
#[tokio::test]
async fn a_server_that_reads_nothing_is_left() {
    let (ours, mut theirs) = pair().await;
    let (sender, task) = connect(ours, Patience { stalled: Some(SHORT), settled: LONG });
    theirs.write_all(&settings(&[(setting::WINDOW, 0x7fff_ffff)])).await.unwrap();
    let mut wide = Vec::new();
    frame::number(&mut wide, frame::WINDOW_UPDATE, 0, 0x7000_0000);
    theirs.write_all(&wide).await.unwrap();
    let asked = request(Method::POST, None);
    let body = RequestBody::whole(Bytes::from(vec![0; 64 << 20]));
    let (answer, ()) = tokio::join!(sender.send(&asked, body), task);
    assert!(matches!(answer, Err(SendError::Broken(Broken::Http2(_)))));
    assert!(sender.is_closed());
}

/// RFC 8441 §3: CONNECT for another protocol waits for the server's settings, and is not sent where they do not offer it.
#[tokio::test]
async fn a_protocol_is_asked_for_where_it_is_offered() {
    for offered in [false, true] {
        let (ours, mut theirs) = pair().await;
        let (sender, task) = connect(ours, Patience { stalled: None, settled: LONG });
        let serving = async {
            let mut seen = vec![0; 24 + 9];
            theirs.read_exact(&mut seen).await.unwrap();
            let rest = usize::from(seen[26]);
            theirs.read_exact(&mut vec![0; rest]).await.unwrap();
            // Nothing more comes before the server's settings.
            let early = tokio::time::timeout(2 * SHORT, theirs.read_u8()).await;
            assert!(early.is_err(), "{early:?}");
            let own: &[(u16, u32)] = if offered { &[(setting::CONNECT, 1)] } else { &[] };
            theirs.write_all(&settings(own)).await.unwrap();
            let mut heads = Vec::new();
            while heads.last() != Some(&frame::HEADERS) {
                let mut head = [0; 9];
                if theirs.read_exact(&mut head).await.is_err() {
                    break;
                }
                theirs.read_exact(&mut vec![0; usize::from(head[2])]).await.unwrap();
                heads.push(head[3]);
            }
            drop(theirs);
            heads
        };
        let asked = request(Method::CONNECT, Some("websocket"));
        let asking = async {
            let answer = sender.send(&asked, RequestBody::Empty).await;
            drop(sender);
            answer.err()
        };
        let (heads, answer, ()) = tokio::join!(serving, asking, task);
        assert_eq!(heads.contains(&frame::HEADERS), offered);
        let refused = matches!(answer, Some(SendError::Broken(Broken::Http2(super::Fault::Ours(Reason::PROTOCOL, _)))));
        assert_eq!(refused, !offered);
    }
}
