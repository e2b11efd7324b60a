//! Access logs: lines are made on the worker and written by one thread of their own.
//!
//! Invariant: a slow or stuck log never stops traffic; lines that do not fit the queue are dropped and counted.

use crate::export::{Entry, Exports, Head};
use carrick_proxy_core::access_log;
use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::model::access_log::{AccessLog, Compare, LogFilter, LogFormat, LogSink};
use carrick_proxy_core::model::listener::Listener;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const QUEUE: usize = 16 * 1024;

static WRITER: OnceLock<Option<SyncSender<(LogSink, String)>>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// One worker's access to the writer, and its queues for servers.
#[derive(Debug, Default)]
pub struct Log {
    pub(crate) exports: Exports,
}

impl Log {
    /// Writes a record to each log whose filter takes it.
    pub fn write(&self, logs: &[AccessLog], facts: &Facts<'_>, status: u16, took: Duration, flags: &str) {
        for log in logs {
            if log.filter.as_ref().is_some_and(|f| !takes(f, facts, status, took, flags)) {
                continue;
            }
            let mut line = String::new();
            match (&log.format, &log.sink) {
                (LogFormat::Text(f), sink) => {
                    line.reserve(320);
                    f.render(facts, if log.omit_empty { "" } else { "-" }, &mut line);
                    send(sink.clone(), line);
                }
                (LogFormat::Json(node), sink) => {
                    line.reserve(640);
                    node.render(facts, log.omit_empty, &mut line);
                    line.push('\n');
                    send(sink.clone(), line);
                }
                (LogFormat::Otlp(format), LogSink::Collector(to)) => {
                    let entry = Entry::Record(access_log::record(format, facts));
                    self.exports.put(to, || Head::Records(Arc::clone(format)), entry);
                }
                (LogFormat::Entry(format), LogSink::Collector(to)) => {
                    let entry = if format.http {
                        Entry::Http(access_log::http_entry(format, facts))
                    } else {
                        Entry::Tcp(access_log::tcp_entry(facts))
                    };
                    self.exports.put(to, || Head::Entries(Arc::clone(format)), entry);
                }
                _ => {}
            }
        }
    }

    /// Records a connection whose handshake failed.
    pub fn tls_failure(&self, listener: &Listener, local: SocketAddr, peer: SocketAddr, sni: Option<&str>, why: &str) {
        if listener.access_logs.is_empty() {
            return;
        }
        // As Envoy writes it: one word, whatever a certificate says.
        let why: String = why.chars().map(|c| if c.is_whitespace() || c.is_control() { '_' } else { c }).collect();
        let facts = Facts {
            local: Some(local),
            remote: Some(peer),
            direct_remote: Some(peer),
            server_name: sni,
            downstream_failure: Some(&why),
            start: Some(since_epoch(Duration::ZERO)),
            duration_ms: Some(0),
            ..Facts::default()
        };
        self.write(&listener.access_logs, &facts, 0, Duration::ZERO, "-");
    }

    /// Records a connection that found no chain.
    pub fn no_chain(&self, listener: &Listener, local: SocketAddr, peer: SocketAddr, sni: Option<&str>) {
        if listener.access_logs.is_empty() {
            return;
        }
        let facts = Facts {
            local: Some(local),
            remote: Some(peer),
            direct_remote: Some(peer),
            server_name: sni,
            flags: Some("NR"),
            code_details: Some("filter_chain_not_found"),
            start: Some(since_epoch(Duration::ZERO)),
            duration_ms: Some(0),
            ..Facts::default()
        };
        self.write(&listener.access_logs, &facts, 0, Duration::ZERO, "NR");
    }
}

/// Lines lost since the start.
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

fn takes(filter: &LogFilter, facts: &Facts<'_>, status: u16, took: Duration, flags: &str) -> bool {
    let compare = |c: &Compare, a: u64, b: u32| match c {
        Compare::Eq => a == u64::from(b),
        Compare::Ge => a >= u64::from(b),
        Compare::Le => a <= u64::from(b),
        Compare::Ne => a != u64::from(b),
    };
    match filter {
        LogFilter::Status(c, v) => compare(c, u64::from(status), *v),
        LogFilter::Duration(c, v) => compare(c, u64::try_from(took.as_millis()).unwrap_or(u64::MAX), *v),
        LogFilter::Flags(list) if list.is_empty() => flags != "-",
        LogFilter::Flags(list) => flags.split(',').any(|f| list.iter().any(|l| &**l == f)),
        LogFilter::Grpc(list, not) => facts.grpc_status.is_some_and(|g| list.contains(&i32::from(g))) != *not,
        LogFilter::Header(m) => facts.request.as_ref().is_some_and(|r| m.matches(r)),
        LogFilter::And(all) => all.iter().all(|f| takes(f, facts, status, took, flags)),
        LogFilter::Or(any) => any.iter().any(|f| takes(f, facts, status, took, flags)),
        LogFilter::Expr(expr) => expr.holds(facts),
        LogFilter::Share(share, anew) => {
            let id = facts.request.as_ref().and_then(|r| r.headers.get("x-request-id")).and_then(|v| v.to_str().ok());
            let of_id = id.filter(|_| !anew).and_then(|id| u64::from_str_radix(id.get(..8)?, 16).ok());
            of_id.unwrap_or_else(rand::random::<u64>) % 1_000_000 < u64::from(*share)
        }
        LogFilter::NotHealthCheck => true,
    }
}

fn send(sink: LogSink, line: String) {
    let writer = WRITER.get_or_init(|| {
        let (sender, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || drain(&receiver));
        thread.ok().map(|_| sender)
    });
    let sent = writer.as_ref().is_some_and(|w| w.try_send((sink, line)).is_ok());
    if !sent {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

fn drain(lines: &Receiver<(LogSink, String)>) {
    let mut files: HashMap<std::sync::Arc<str>, Option<File>> = HashMap::new();
    while let Ok((sink, mut text)) = lines.recv() {
        // What has gathered for the same place is written at once.
        let mut other = None;
        while text.len() < 32 * 1024 {
            match lines.try_recv() {
                Ok((s, t)) if path(&s) == path(&sink) => text.push_str(&t),
                Ok(next) => {
                    other = Some(next);
                    break;
                }
                Err(_) => break,
            }
        }
        put(&mut files, &sink, &text);
        if let Some((sink, text)) = other {
            put(&mut files, &sink, &text);
        }
    }
}

fn path(sink: &LogSink) -> &str {
    match sink {
        LogSink::Stdout => "/dev/stdout",
        LogSink::Stderr => "/dev/stderr",
        LogSink::File(path) => path,
        LogSink::Collector(_) => "/dev/null",
    }
}

fn put(files: &mut HashMap<std::sync::Arc<str>, Option<File>>, sink: &LogSink, text: &str) {
    let path = path(sink);
    let result = match path {
        "/dev/stdout" => std::io::stdout().lock().write_all(text.as_bytes()),
        "/dev/stderr" => std::io::stderr().lock().write_all(text.as_bytes()),
        path => {
            let file = files
                .entry(path.into())
                .or_insert_with(|| OpenOptions::new().create(true).append(true).open(path).ok());
            match file {
                Some(f) => f.write_all(text.as_bytes()),
                None => Err(std::io::ErrorKind::NotFound.into()),
            }
        }
    };
    if result.is_err() {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

/// The wall-clock time `ago`, since 1970.
pub fn since_epoch(ago: Duration) -> Duration {
    SystemTime::now().checked_sub(ago).unwrap_or(UNIX_EPOCH).duration_since(UNIX_EPOCH).unwrap_or_default()
}
