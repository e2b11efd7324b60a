//! The logs of pods, read: the end of them, from a time on, as they grow.
//!
//! Invariant: at most a few pieces are held, however long a log is; a follower ends when the command has ended or its runner is gone. The
//! command's log says the time of every piece (`output`); the sidecar's is what the proxy wrote, and has times where its lines begin
//! with one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use carrick_api::timestamp::Timestamp;
use carrick_streams::LogRequest;

use crate::output::{EXIT, aside};

/// About as much as is handed out at once.
const PIECE: usize = 32 << 10;
/// Longest record that is taken as one.
const RECORD: u64 = 1 << 20;
/// Between two looks at a log that is followed.
const LOOK: Duration = Duration::from_millis(100);
/// Looks after which it is asked whether the runner still lives.
const LOOKS: u32 = 20;

/// The same for whoever is attached: somebody may be typing and waits for the echo.
const ATTACHED: Duration = Duration::from_millis(20);
const ATTACHED_LOOKS: u32 = 100;

/// How records are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Form {
    /// By the runner: `TIME STREAM F|P TEXT`.
    Stamped,
    /// By somebody else: lines.
    Plain,
}

/// One record.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Record<'a> {
    pub(crate) time: Option<&'a str>,
    pub(crate) stream: &'a str,
    /// Whether the line ends with it.
    pub(crate) whole: bool,
    pub(crate) text: &'a [u8],
}

impl Form {
    fn record(self, line: &[u8]) -> Option<Record<'_>> {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        match self {
            Form::Plain => {
                let bare = text.strip_prefix(b"[").unwrap_or(text);
                let time = bare.split(|b| *b == b' ' || *b == b']').next().and_then(|t| std::str::from_utf8(t).ok());
                let time = time.filter(|time| Timestamp::parse(time).is_some());
                Some(Record { time, stream: "stdout", whole: true, text })
            }
            Form::Stamped => {
                let mut parts = text.splitn(4, |byte| *byte == b' ');
                let mut word = || parts.next().and_then(|part| std::str::from_utf8(part).ok());
                let (time, stream, whole) = (word()?, word()?, word()? == "F");
                Some(Record { time: Some(time), stream, whole, text: parts.next()? })
            }
        }
    }
}

/// A log's records, from one file to the next.
pub(crate) struct Records {
    path: PathBuf,
    form: Form,
    file: Option<BufReader<File>>,
    inode: u64,
    /// A record that is not whole yet.
    begun: Vec<u8>,
}

impl Records {
    /// From the oldest record that is kept.
    pub(crate) fn open(path: PathBuf, form: Form) -> io::Result<Records> {
        let mut records = Records { path, form, file: None, inode: 0, begun: Vec::new() };
        let old = aside(&records.path);
        match File::open(&old) {
            Ok(file) => records.read_from(file)?,
            Err(_) => records.read_from(File::open(&records.path)?)?,
        }
        Ok(records)
    }

    /// Only what is written from now on.
    pub(crate) fn at_end(path: PathBuf, form: Form) -> io::Result<Records> {
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::End(0))?;
        let mut records = Records { path, form, file: None, inode: 0, begun: Vec::new() };
        records.read_from(file)?;
        Ok(records)
    }

    fn read_from(&mut self, file: File) -> io::Result<()> {
        self.inode = file.metadata()?.ino();
        self.file = Some(BufReader::with_capacity(PIECE, file));
        Ok(())
    }

    /// The next record; `None` when there is none yet.
    pub(crate) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let Some(file) = self.file.as_mut() else { return Ok(None) };
            let room = RECORD.saturating_sub(self.begun.len() as u64).max(1);
            let read = file.by_ref().take(room).read_until(b'\n', &mut self.begun)?;
            if self.begun.ends_with(b"\n") || self.begun.len() as u64 >= RECORD {
                return Ok(Some(std::mem::take(&mut self.begun)));
            }
            if read > 0 {
                continue;
            }
            // The end, unless the log was cut, or goes on in a new file.
            let read_so_far = file.stream_position()?;
            if file.get_ref().metadata()?.len() < read_so_far {
                self.begun.clear();
                file.rewind()?;
                continue;
            }
            let next = File::open(&self.path).ok().filter(|f| f.metadata().is_ok_and(|m| m.ino() != self.inode));
            let Some(next) = next else { return Ok(None) };
            // What was written between the last look and the new file.
            if file.fill_buf()?.is_empty() {
                self.read_from(next)?;
            }
        }
    }
}

/// What a request makes of the records.
struct Shown {
    request: LogRequest,
    /// Lines still to be left out.
    skip: usize,
    line_begins: bool,
    last_time: String,
    left: u64,
}

impl Shown {
    /// Appends a record's text.
    fn take(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        if let Some(time) = record.time {
            time.clone_into(&mut self.last_time);
        }
        if self.skip > 0 {
            self.skip = self.skip.saturating_sub(usize::from(record.whole));
            return;
        }
        let time = Timestamp::parse(&self.last_time);
        if let (Some(since), Some(time)) = (self.request.since, time)
            && time < Timestamp::from_system(since)
        {
            return;
        }
        let before = out.len();
        if self.request.timestamps && self.line_begins && !self.last_time.is_empty() {
            out.extend_from_slice(self.last_time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(record.text);
        if record.whole {
            out.push(b'\n');
        }
        self.line_begins = record.whole;
        let added = out.len().saturating_sub(before) as u64;
        if added > self.left {
            out.truncate(before.saturating_add(usize::try_from(self.left).unwrap_or(usize::MAX)));
        }
        self.left = self.left.saturating_sub(added);
    }
}

/// Whether the pod is still there.
pub(crate) type Alive = Box<dyn Fn() -> bool + Send>;

/// A log that is being read.
pub(crate) struct Reading {
    records: Records,
    shown: Shown,
    /// Whether the pod's runner still is there.
    alive: Alive,
    ended: bool,
}

impl Reading {
    /// Opens a log; `alive` says whether somebody still writes it.
    pub(crate) fn open(path: PathBuf, form: Form, request: &LogRequest, alive: Alive) -> io::Result<Reading> {
        let skip = match request.tail {
            Some(tail) => lines(Records::open(path.clone(), form)?)?.saturating_sub(tail),
            None => 0,
        };
        let shown = Shown {
            skip,
            line_begins: true,
            last_time: String::new(),
            left: request.limit.unwrap_or(u64::MAX),
            request: request.clone(),
        };
        Ok(Reading { records: Records::open(path, form)?, shown, alive, ended: false })
    }

    /// The next piece, or `None` at the end.
    pub(crate) async fn piece(&mut self) -> Option<Bytes> {
        let mut looks = 0_u32;
        loop {
            let mut out = Vec::new();
            while out.len() < PIECE && self.shown.left > 0 && !self.ended {
                let Ok(Some(line)) = self.records.next() else { break };
                match self.records.form.record(&line) {
                    Some(record) if record.stream == EXIT => self.ended = true,
                    Some(record) => self.shown.take(&record, &mut out),
                    None => {}
                }
            }
            if !out.is_empty() {
                return Some(out.into());
            }
            if !self.shown.request.follow || self.shown.left == 0 || self.ended {
                return None;
            }
            looks = looks.saturating_add(1);
            if looks.is_multiple_of(LOOKS) && !(self.alive)() {
                // Once more: it may have written something before it went.
                self.shown.request.follow = false;
                continue;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Whole lines, and one that is begun.
fn lines(mut records: Records) -> io::Result<usize> {
    let (mut count, mut begun) = (0_usize, false);
    while let Some(line) = records.next()? {
        if let Some(record) = records.form.record(&line).filter(|record| record.stream != EXIT) {
            count = count.saturating_add(usize::from(record.whole));
            begun = !record.whole;
        }
    }
    Ok(count.saturating_add(usize::from(begun)))
}

/// What a command writes from now on, up to its end.
pub(crate) struct Following {
    records: Records,
    alive: Alive,
}

/// A piece of it.
pub(crate) enum Followed {
    Piece { errors: bool, bytes: Vec<u8> },
    Ended,
}

impl Following {
    /// Opens a log at its end.
    pub(crate) fn open(path: PathBuf, form: Form, alive: Alive) -> io::Result<Following> {
        Ok(Following { records: Records::at_end(path, form)?, alive })
    }

    /// The next piece; `None` when the runner is gone.
    pub(crate) async fn next(&mut self) -> Option<Followed> {
        let mut looks = 0_u32;
        loop {
            while let Ok(Some(line)) = self.records.next() {
                let Some(record) = self.records.form.record(&line) else { continue };
                if record.stream == EXIT {
                    return Some(Followed::Ended);
                }
                let mut bytes = record.text.to_vec();
                if record.whole {
                    bytes.push(b'\n');
                }
                return Some(Followed::Piece { errors: record.stream == "stderr", bytes });
            }
            looks = looks.saturating_add(1);
            if looks.is_multiple_of(ATTACHED_LOOKS) && !(self.alive)() {
                return None;
            }
            tokio::time::sleep(ATTACHED).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::SystemTime;

    const LOG: &str = "2026-01-01T00:00:01.000000Z stdout F one\n\
        2026-01-01T00:00:02.000000Z stdout P tw\n\
        2026-01-01T00:00:02.500000Z stdout F o\n\
        2026-01-01T00:00:03.000000Z stderr F three \n\
        2026-01-01T00:00:04.000000Z exit F 0\n";

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    async fn read(path: &std::path::Path, form: Form, request: LogRequest) -> String {
        let mut reading = Reading::open(path.to_owned(), form, &request, Box::new(|| false)).unwrap();
        let mut all = Vec::new();
        while let Some(piece) = reading.piece().await {
            all.extend_from_slice(&piece);
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn a_log_that_was_cut_is_read_on() {
        let (_folder, path) = written("one\n");
        let mut records = Records::at_end(path.clone(), Form::Plain).unwrap();
        let mut writer = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        writer.write_all(b"two\n").unwrap();
        assert_eq!(records.next().unwrap().unwrap(), b"two\n");
        crate::output::cut(&path, 100).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8);
        crate::output::cut(&path, 8).unwrap();
        assert_eq!(std::fs::read(aside(&path)).unwrap(), b"one\ntwo\n");
        writer.write_all(b"3\n").unwrap();
        assert_eq!(records.next().unwrap().unwrap(), b"3\n");
        assert_eq!(records.next().unwrap(), None);
    }

    #[tokio::test]
    async fn parts_of_a_log() {
        let (_folder, path) = written(LOG);
        let whole = LogRequest::default();
        assert_eq!(read(&path, Form::Stamped, whole.clone()).await, "one\ntwo\nthree \n");
        let tail = |lines| LogRequest { tail: Some(lines), ..whole.clone() };
        assert_eq!(read(&path, Form::Stamped, tail(2)).await, "two\nthree \n");
        assert_eq!(read(&path, Form::Stamped, tail(0)).await, "");
        assert_eq!(read(&path, Form::Stamped, tail(99)).await, "one\ntwo\nthree \n");
        let stamped = LogRequest { timestamps: true, ..tail(2) };
        let expected = "2026-01-01T00:00:02.000000Z two\n2026-01-01T00:00:03.000000Z three \n";
        assert_eq!(read(&path, Form::Stamped, stamped).await, expected);
        let since = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_603));
        assert_eq!(read(&path, Form::Stamped, LogRequest { since, ..whole.clone() }).await, "three \n");
        assert_eq!(read(&path, Form::Stamped, LogRequest { limit: Some(5), ..whole.clone() }).await, "one\nt");
        // Its end is written down: a follower ends, too.
        assert_eq!(read(&path, Form::Stamped, LogRequest { follow: true, ..whole }).await, "one\ntwo\nthree \n");
    }

    #[tokio::test]
    async fn a_log_that_is_put_aside_is_followed() {
        let (_folder, path) = written("2026-01-01T00:00:01Z stdout F one\n");
        let request = LogRequest { follow: true, ..LogRequest::default() };
        let mut reading = Reading::open(path.clone(), Form::Stamped, &request, Box::new(|| true)).unwrap();
        assert_eq!(reading.piece().await.unwrap(), "one\n");
        let append = |text: &str| {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append("2026-01-01T00:00:02Z stdout F two\n");
        std::fs::rename(&path, aside(&path)).unwrap();
        append("2026-01-01T00:00:03Z stdout F three\n2026-01-01T00:00:04Z exit F 3\n");
        let mut all = Vec::new();
        while let Some(piece) = reading.piece().await {
            all.extend_from_slice(&piece);
        }
        assert_eq!(all, b"two\nthree\n");
        assert_eq!(read(&path, Form::Stamped, LogRequest::default()).await, "one\ntwo\nthree\n");
    }

    #[tokio::test]
    async fn a_log_of_somebody_else() {
        let (_folder, path) =
            written("2026-01-01T00:00:01Z INFO a\n  more\n[2026-01-01T00:00:05.123Z] \"GET / HTTP/1.1\"\nno end");
        let stamped = LogRequest { timestamps: true, ..LogRequest::default() };
        let expected = "2026-01-01T00:00:01Z 2026-01-01T00:00:01Z INFO a\n2026-01-01T00:00:01Z   more\n";
        let text = read(&path, Form::Plain, stamped).await;
        assert!(text.starts_with(expected), "{text}");
        let since = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_603));
        let text = read(&path, Form::Plain, LogRequest { since, ..LogRequest::default() }).await;
        assert_eq!(text, "[2026-01-01T00:00:05.123Z] \"GET / HTTP/1.1\"\n");
    }
}
