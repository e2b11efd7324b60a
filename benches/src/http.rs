//! The event loop: bytes from end to end, and HTTP/1.1 requests taken apart, put together again and sent on over kept connections.
//!
//! Invariant: one request at a time on each connection; heads are parsed in full, hop-by-hop headers dropped, one header added. Bodies have
//! a `content-length` or there is none: anything else ends the connection.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::TcpListener;

use anyhow::Result;
use rustls::{ClientConnection, Connection, ServerConnection};

use crate::epoll::{self, Epoll, Event};
use crate::forward::{End, carry};
use crate::{Carries, Door, Side, tls};

/// Numbers from here on are those of listening sockets.
const LISTENERS: u64 = 1 << 32;
const BUFFER: usize = 64 * 1024;

struct Link {
    end: End,
    door: usize,
    /// The other end: of bytes always, of HTTP while a request is under way.
    peer: Option<usize>,
    /// We called.
    called: bool,
    /// HTTP that is not understood yet.
    unread: Vec<u8>,
    /// The head of what comes has been sent on, and so much of its body is missing.
    body: Option<usize>,
    /// The client wants it closed after the answer.
    last: bool,
}

struct Loop<'a> {
    side: &'a Side,
    doors: &'a [Door],
    epoll: Epoll,
    links: Vec<Option<Box<Link>>>,
    free: Vec<usize>,
    /// Free after this batch of events: another one may still speak of them.
    gone: Vec<usize>,
    /// Connections to each door's target that wait for a request.
    idle: Vec<VecDeque<usize>>,
    head: Vec<u8>,
}

/// Serves for ever.
pub(crate) fn run(side: &Side, doors: &[Door]) -> Result<()> {
    let listeners: Vec<TcpListener> = doors.iter().map(|door| epoll::listen(door.listen)).collect::<io::Result<_>>()?;
    let idle = doors.iter().map(|_| VecDeque::new()).collect();
    let epoll = Epoll::new()?;
    for (number, listener) in (LISTENERS..).zip(&listeners) {
        epoll.add(listener, number)?;
    }
    let mut all =
        Loop { side, doors, epoll, links: Vec::new(), free: Vec::new(), gone: Vec::new(), idle, head: Vec::new() };
    let (mut events, mut buffer) = (Vec::new(), vec![0; BUFFER]);
    loop {
        all.epoll.wait(&mut events, None)?;
        for event in &events {
            match event.number.checked_sub(LISTENERS).and_then(|door| usize::try_from(door).ok()) {
                Some(door) => {
                    while let Some(stream) = listeners.get(door).and_then(epoll::accept) {
                        all.arrived(door, stream)?;
                    }
                }
                None => all.stirred(*event, &mut buffer),
            }
        }
        let gone = std::mem::take(&mut all.gone);
        all.free.extend(gone);
    }
}

impl Loop<'_> {
    fn add(&mut self, end: End, door: usize, called: bool) -> io::Result<usize> {
        let at = self.free.pop().unwrap_or_else(|| {
            self.links.push(None);
            self.links.len() - 1
        });
        self.epoll.add(end.socket(), at as u64)?;
        let link = Link { end, door, peer: None, called, unread: Vec::new(), body: None, last: false };
        self.links[at] = Some(Box::new(link));
        Ok(at)
    }

    fn arrived(&mut self, door: usize, stream: std::net::TcpStream) -> Result<()> {
        let tls = match self.side {
            Side::Client(_) => None,
            Side::Server(config) => Some(Connection::from(ServerConnection::new(config.clone())?)),
        };
        let at = self.add(End::new(stream, tls, true), door, false)?;
        if self.doors[door].carries == Carries::Bytes {
            let up = self.call(door)?;
            self.pair(at, up);
        }
        Ok(())
    }

    fn call(&mut self, door: usize) -> Result<usize> {
        let stream = epoll::connect(self.doors[door].to)?;
        let tls = match self.side {
            Side::Server(_) => None,
            Side::Client(config) => Some(Connection::from(ClientConnection::new(config.clone(), tls::server_name()?)?)),
        };
        Ok(self.add(End::new(stream, tls, false), door, true)?)
    }

    fn pair(&mut self, a: usize, b: usize) {
        for (at, peer) in [(a, b), (b, a)] {
            if let Some(link) = &mut self.links[at] {
                link.peer = Some(peer);
            }
        }
    }

    fn end(&mut self, at: usize) {
        let Some(link) = self.links[at].take() else { return };
        self.gone.push(at);
        if link.called {
            self.idle[link.door].retain(|idle| *idle != at);
        }
        if let Some(peer) = link.peer {
            self.end(peer);
        }
    }

    fn stirred(&mut self, event: Event, buffer: &mut [u8]) {
        let at = usize::try_from(event.number).unwrap_or(usize::MAX);
        let Some(Some(link)) = self.links.get_mut(at) else { return };
        link.end.readable |= event.readable;
        link.end.writable |= event.writable;
        link.end.ended |= event.ended;
        let (called, peer, door) = (link.called, link.peer, link.door);
        let going = match self.doors[door].carries {
            Carries::Bytes => self.bytes(at, peer, buffer),
            Carries::Http if called => self.answer(at, buffer),
            // Room again may be what the answer waits for.
            Carries::Http => {
                self.request(at, buffer).and_then(|going| match peer.filter(|_| event.writable && going) {
                    Some(peer) if self.links[peer].is_some() => self.answer(peer, buffer).map(|_| going),
                    _ => Ok(going),
                })
            }
        };
        if !matches!(going, Ok(true)) {
            self.end(at);
        }
    }

    fn bytes(&mut self, at: usize, peer: Option<usize>, buffer: &mut [u8]) -> Result<bool> {
        let Some(peer) = peer else { return Ok(false) };
        let (Some(mut one), Some(mut other)) = (self.links[at].take(), self.links[peer].take()) else {
            return Ok(false);
        };
        let over = carry(&mut one.end, &mut other.end, buffer);
        self.links[at] = Some(one);
        self.links[peer] = Some(other);
        Ok(!over?)
    }

    /// Reads requests and sends them on. False ends the connection.
    fn request(&mut self, at: usize, buffer: &mut [u8]) -> Result<bool> {
        loop {
            let Some(mut link) = self.links[at].take() else { return Ok(false) };
            let step = self.read_request(at, &mut link, buffer);
            let over = link.end.finished;
            self.links[at] = Some(link);
            let (going, more) = step?;
            if over || !going {
                return Ok(false);
            }
            if !more {
                return Ok(true);
            }
        }
    }

    /// Reads once. Whether the connection goes on, and whether there may be more.
    fn read_request(&mut self, at: usize, link: &mut Link, buffer: &mut [u8]) -> Result<(bool, bool)> {
        link.end.flush()?;
        if link.peer.is_some() && link.body == Some(0) {
            return Ok((true, false));
        }
        let unread = &mut link.unread;
        let more = link.end.receive(buffer, |bytes| {
            unread.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok((self.send_request(at, link)?, more))
    }

    fn send_request(&mut self, at: usize, link: &mut Link) -> Result<bool> {
        if let (Some(peer), Some(left)) = (link.peer, link.body) {
            let part: Vec<u8> = link.unread.drain(..left.min(link.unread.len())).collect();
            link.body = Some(left - part.len());
            if let (Some(up), false) = (&mut self.links[peer], part.is_empty()) {
                up.end.send(&part)?;
            }
            return Ok(true);
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(length) = request.parse(&link.unread)? else { return Ok(true) };
        let (Some(method), Some(path)) = (request.method, request.path.filter(|path| path.starts_with('/'))) else {
            return Ok(false);
        };
        self.head.clear();
        write!(self.head, "{method} {path} HTTP/1.1\r\n")?;
        let Some(fields) = copy_fields(request.headers, &mut self.head) else { return Ok(false) };
        let added = match self.side {
            Side::Client(_) => &b"x-request-id: 00000000-0000-4000-8000-000000000000\r\n\r\n"[..],
            Side::Server(_) => b"x-forwarded-client-cert: URI=spiffe://cluster.local/ns/bench/sa/client\r\n\r\n",
        };
        self.head.extend_from_slice(added);
        let have = fields.body.min(link.unread.len() - length);
        self.head.extend_from_slice(&link.unread[length..length + have]);
        link.unread.drain(..length + have);
        link.body = Some(fields.body - have);
        link.last = fields.close;
        let up = match self.idle[link.door].pop_back() {
            Some(up) => up,
            None => self.call(link.door)?,
        };
        link.peer = Some(up);
        let Some(to) = &mut self.links[up] else { return Ok(false) };
        to.peer = Some(at);
        to.body = None;
        to.end.send(&self.head)?;
        Ok(true)
    }

    /// Reads an answer and sends it on. False ends the connection.
    fn answer(&mut self, at: usize, buffer: &mut [u8]) -> Result<bool> {
        loop {
            let Some(mut up) = self.links[at].take() else { return Ok(false) };
            let done = self.send_answer(&mut up, buffer);
            let (over, peer) = (up.end.finished, up.peer);
            if let Ok(Sent::All) = done {
                up.peer = None;
                up.body = None;
                if !over {
                    self.idle[up.door].push_back(at);
                }
            }
            self.links[at] = Some(up);
            match done? {
                Sent::All => {
                    let going = match peer {
                        Some(peer) => self.answered(peer, buffer)?,
                        None => false,
                    };
                    if let (Some(peer), false) = (peer, going) {
                        self.end(peer);
                    }
                    return Ok(!over);
                }
                Sent::Some { more: true } if !over => {}
                Sent::Some { .. } => return Ok(!over),
            }
        }
    }

    /// The client's end after an answer.
    fn answered(&mut self, at: usize, buffer: &mut [u8]) -> Result<bool> {
        let Some(down) = &mut self.links[at] else { return Ok(true) };
        down.peer = None;
        down.body = None;
        if down.last {
            down.end.close()?;
            return Ok(false);
        }
        self.request(at, buffer)
    }

    fn send_answer(&mut self, up: &mut Link, buffer: &mut [u8]) -> Result<Sent> {
        up.end.flush()?;
        let Some(Some(down)) = up.peer.and_then(|peer| self.links.get_mut(peer)) else {
            // Nobody waits: whatever comes now ends it.
            let more = up.end.receive(buffer, |_| Ok(()))?;
            return Ok(Sent::Some { more });
        };
        if down.end.is_waiting() {
            return Ok(Sent::Some { more: false });
        }
        let Some(left) = up.body else {
            let unread = &mut up.unread;
            let more = up.end.receive(buffer, |bytes| {
                unread.extend_from_slice(bytes);
                Ok(())
            })?;
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut answer = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(length) = answer.parse(&up.unread)? else { return Ok(Sent::Some { more }) };
            self.head.clear();
            write!(self.head, "HTTP/1.1 {} {}\r\n", answer.code.unwrap_or(502), answer.reason.unwrap_or_default())?;
            let Some(fields) = copy_fields(answer.headers, &mut self.head) else {
                return Ok(Sent::Some { more: false });
            };
            self.head.extend_from_slice(if down.last { b"connection: close\r\n\r\n" } else { b"\r\n" });
            let have = fields.body.min(up.unread.len() - length);
            self.head.extend_from_slice(&up.unread[length..length + have]);
            up.unread.clear();
            down.end.send(&self.head)?;
            up.body = Some(fields.body - have);
            return Ok(if fields.body == have { Sent::All } else { Sent::Some { more } });
        };
        let mut left = left;
        let more = up.end.receive(buffer, |bytes| {
            left = left.saturating_sub(bytes.len());
            down.end.send(bytes)
        })?;
        up.body = Some(left);
        Ok(if left == 0 { Sent::All } else { Sent::Some { more } })
    }
}

enum Sent {
    All,
    Some { more: bool },
}

struct Fields {
    body: usize,
    close: bool,
}

/// Copies the headers that go on; `None` where the body has no length.
fn copy_fields(headers: &[httparse::Header<'_>], head: &mut Vec<u8>) -> Option<Fields> {
    let mut fields = Fields { body: 0, close: false };
    for header in headers {
        let name = header.name;
        if name.eq_ignore_ascii_case("connection") {
            fields.close = header.value.eq_ignore_ascii_case(b"close");
            continue;
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return None;
        }
        if name.eq_ignore_ascii_case("content-length") {
            fields.body = std::str::from_utf8(header.value).ok()?.parse().ok()?;
        }
        for part in [name.as_bytes(), b": ", header.value, b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_headers_stay() {
        let header = |name, value: &'static str| httparse::Header { name, value: value.as_bytes() };
        let mut head = Vec::new();
        let all = [header("Host", "a"), header("Connection", "close"), header("Content-Length", "12")];
        let fields = copy_fields(&all, &mut head).unwrap();
        assert_eq!((fields.body, fields.close, head.as_slice()), (12, true, &b"Host: a\r\nContent-Length: 12\r\n"[..]));
        assert!(copy_fields(&[header("Transfer-Encoding", "chunked")], &mut head).is_none());
    }
}
