//! HTTP/1.1 requests at a fixed rate: one that is due is sent whether or not earlier ones have been answered.
//!
//! Invariant: latency counts from when a request was due, to the nanosecond of the kernel's timers, so that whoever stalls is charged for every
//! request that waited meanwhile. Rate, time and connections are bounded; an answer counts if it is a 200 and whole.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::epoll::{self, Epoll};

/// Connections over which requests go, as many as the saturated measurement has.
const LANES: usize = 64;
/// How long answers are waited for when the last request has been sent.
const LINGER: Duration = Duration::from_secs(5);

/// A connection, which carries one request at a time.
struct Lane {
    stream: TcpStream,
    /// When the request under way was due.
    due: Option<Instant>,
    got: Vec<u8>,
    connected: bool,
    /// An answer to an earlier request was no good, or the peer has left.
    broken: bool,
}

/// Sends `rate` requests a second for `seconds` and prints what came of them as one line of JSON.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [target, rate, seconds] = arguments else { bail!("pace HOST:PORT RATE SECONDS") };
    let (rate, seconds): (u32, u32) = (rate.parse().context("rate")?, seconds.parse().context("seconds")?);
    ensure!((1..=100_000).contains(&rate) && (1..=3600).contains(&seconds), "rate or seconds out of range");
    let to = target.to_socket_addrs().with_context(|| target.clone())?.find(SocketAddr::is_ipv4);
    let to = to.with_context(|| format!("{target}: no address"))?;
    epoll::exact_timers();
    let mut pace = Pace::open(to, format!("GET / HTTP/1.1\r\nHost: {target}\r\n\r\n").into_bytes())?;
    let total = u64::from(rate) * u64::from(seconds);
    pace.send_all(total, Duration::from_secs(1).as_nanos() as u64 / u64::from(rate))?;
    println!("{}", pace.line());
    Ok(())
}

struct Pace {
    request: Vec<u8>,
    epoll: Epoll,
    lanes: Vec<Lane>,
    free: VecDeque<usize>,
    took: Vec<Duration>,
    failed: u64,
    elapsed: Duration,
}

impl Pace {
    /// With all connections open.
    fn open(to: SocketAddr, request: Vec<u8>) -> Result<Self> {
        let mut epoll = Epoll::new()?;
        let mut lanes = Vec::new();
        for at in 0..LANES {
            let stream = epoll::connect(to)?;
            epoll.add(&stream, at as u64)?;
            lanes.push(Lane { stream, due: None, got: Vec::new(), connected: false, broken: false });
        }
        let (mut events, end) = (Vec::new(), Instant::now() + LINGER);
        while lanes.iter().any(|lane| !lane.connected) {
            ensure!(Instant::now() < end, "{to} takes no {LANES} connections");
            epoll.wait(&mut events, Some(LINGER))?;
            for event in &events {
                lanes[event.number as usize].connected |= event.writable;
                ensure!(!event.ended, "{to} closes connections");
            }
        }
        let free = (0..LANES).collect();
        Ok(Self { request, epoll, lanes, free, took: Vec::new(), failed: 0, elapsed: Duration::ZERO })
    }

    fn send_all(&mut self, total: u64, gap: u64) -> Result<()> {
        let start = Instant::now();
        let due = |n: u64| start + Duration::from_nanos(gap * n);
        let (mut released, mut waiting, mut events) = (0, VecDeque::new(), Vec::new());
        let mut end = due(total) + LINGER;
        while self.took.len() as u64 + self.failed < total && Instant::now() < end {
            let now = Instant::now();
            while released < total && due(released) <= now {
                waiting.push_back(due(released));
                released += 1;
            }
            while let (Some(_), Some(_)) = (self.free.front(), waiting.front()) {
                let (lane, due) = (self.free.pop_front().unwrap_or(0), waiting.pop_front().unwrap_or(now));
                self.send(lane, due);
            }
            if self.lanes.iter().all(|lane| lane.broken) {
                end = now;
            }
            let next = if released < total { due(released) } else { end };
            self.epoll.wait(&mut events, Some(next.saturating_duration_since(Instant::now())))?;
            for event in &events {
                self.hear(event.number as usize);
            }
        }
        self.elapsed = start.elapsed();
        self.failed = total - self.took.len() as u64;
        Ok(())
    }

    fn send(&mut self, at: usize, due: Instant) {
        let lane = &mut self.lanes[at];
        lane.due = Some(due);
        // So little always fits.
        if lane.stream.write(&self.request).ok() != Some(self.request.len()) {
            self.give_up(at);
        }
    }

    fn hear(&mut self, at: usize) {
        let mut some = [0; 16 * 1024];
        loop {
            let lane = &mut self.lanes[at];
            match lane.stream.read(&mut some) {
                Ok(0) => return self.give_up(at),
                Ok(n) => lane.got.extend_from_slice(&some[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.give_up(at),
            }
        }
        let lane = &mut self.lanes[at];
        match whole(&lane.got) {
            Ok(None) => {}
            Ok(Some(length)) if length == lane.got.len() && lane.due.is_some() => {
                self.took.extend(lane.due.take().map(|due| due.elapsed()));
                lane.got.clear();
                self.free.push_back(at);
            }
            Ok(Some(_)) | Err(_) => self.give_up(at),
        }
    }

    /// A connection that is no good carries nothing more; the run has failed by then.
    fn give_up(&mut self, at: usize) {
        let lane = &mut self.lanes[at];
        if !std::mem::replace(&mut lane.broken, true) {
            self.failed += u64::from(lane.due.take().is_some());
            self.free.retain(|free| *free != at);
        }
    }

    fn line(&mut self) -> String {
        self.took.sort_unstable();
        let quantile = |q: f64| {
            let at = (self.took.len() as f64 * q) as usize;
            self.took.get(at.min(self.took.len().saturating_sub(1))).map_or(0, Duration::as_micros)
        };
        format!(
            "{{\"requests\": {}, \"failed\": {}, \"seconds\": {:.3}, \"p50_us\": {}, \"p99_us\": {}, \"max_us\": {}}}",
            self.took.len(),
            self.failed,
            self.elapsed.as_secs_f64(),
            quantile(0.5),
            quantile(0.99),
            quantile(1.0)
        )
    }
}

/// How long the answer at the front is, once that is known and all of it is there.
fn whole(got: &[u8]) -> Result<Option<usize>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = head.parse(got)? else { return Ok(None) };
    ensure!(head.code == Some(200), "status {:?}", head.code);
    let field = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let body: usize = std::str::from_utf8(field.context("no content-length")?.value)?.trim().parse()?;
    Ok((got.len() >= length + body).then_some(length + body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn answers_are_whole_or_not() {
        assert_eq!(whole(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap(), None);
        assert_eq!(whole(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na").unwrap(), None);
        assert_eq!(whole(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab").unwrap(), Some(40));
        for bad in [&b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"[..], b"HTTP/1.1 200 OK\r\n\r\n", b"\0"] {
            assert!(whole(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_request_is_counted_answered_or_not() {
        for (answer, wanted) in [("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", 0), ("HTTP/1.1 500 No\r\n\r\n", 50)]
        {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let to = listener.local_addr().unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    std::thread::spawn(move || {
                        let mut some = [0; 1024];
                        while stream.read(&mut some).is_ok_and(|n| n > 0) && stream.write_all(answer.as_bytes()).is_ok()
                        {
                        }
                    });
                }
            });
            let mut pace = Pace::open(to, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()).unwrap();
            pace.send_all(50, 1_000_000).unwrap();
            assert_eq!((pace.took.len() as u64, pace.failed), (50 - wanted, wanted));
            assert!(pace.elapsed >= Duration::from_millis(if wanted == 0 { 49 } else { 0 }));
        }
    }
}
