//! What a pod's command writes: to the runner's own output as it was, and into a log of bounded size, with the time of each piece.
//!
//! Invariant: the command sees a terminal where the runner has one, and a pipe elsewhere; the log holds at most [`FILE`] bytes twice, is for
//! root alone, and a disk that is full ends the log, never the command. Lines of the log are `TIME STREAM F|P TEXT`, as container runtimes
//! write them; `P` says that the line goes on.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use carrick_api::timestamp::Timestamp;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::termios;
use tokio::process::Command;

/// Bytes after which a log is put aside, in place of the one put aside before.
pub(crate) const FILE: u64 = 10 << 20;
/// Bytes read at once.
const PIECE: usize = 16 << 10;
/// How often the terminal is asked for its size.
const LOOK: u16 = 250;
/// For the last output to be shown after everything of the pod has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// For what a command wrote right before its end, where others still hold its output.
const LAST_PIECES: Duration = Duration::from_millis(200);
/// The stream that tells the command's exit code.
pub(crate) const EXIT: &str = "exit";

/// Where the log of a pod's container is.
pub(crate) fn path(data_dir: &Path, namespace: &str, pod: &str, container: &str) -> PathBuf {
    crate::options::run_dir(data_dir).join("logs").join(format!("{namespace}_{pod}_{container}.log"))
}

/// Where the log is put aside.
pub(crate) fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// Removes a log.
pub(crate) fn remove(path: &Path) {
    for path in [path.to_owned(), aside(path)] {
        let _ = std::fs::remove_file(path);
    }
}

/// Puts a log aside that somebody else appends to, when it is longer than `limit`. What is written in that moment may be lost.
pub(crate) fn cut(path: &Path, limit: u64) -> io::Result<()> {
    if std::fs::metadata(path)?.len() < limit {
        return Ok(());
    }
    std::fs::copy(path, aside(path))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// The file, written by one process.
struct Log {
    path: PathBuf,
    /// `None` when it could not be written.
    file: Option<File>,
    length: u64,
}

impl Log {
    fn create(path: PathBuf) -> io::Result<Log> {
        remove(&path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Log { path, file: Some(file), length: 0 })
    }

    fn write(&mut self, stream: &str, bytes: &[u8]) {
        let time = Timestamp::from_system(SystemTime::now()).micro_string();
        let mut out = Vec::with_capacity(bytes.len().saturating_add(64));
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, whole) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, "F"),
                None => (piece, "P"),
            };
            out.extend_from_slice(format!("{time} {stream} {whole} ").as_bytes());
            out.extend_from_slice(text);
            out.push(b'\n');
        }
        if let Err(error) = self.append(&out) {
            tracing::warn!(%error, log = %self.path.display(), "the log of the pod's command ends here");
            self.file = None;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        file.write_all(bytes)?;
        self.length = self.length.saturating_add(bytes.len() as u64);
        if self.length >= FILE {
            std::fs::rename(&self.path, aside(&self.path))?;
            self.file = Some(OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path)?);
            self.length = 0;
        }
        Ok(())
    }
}

/// The output of a running command.
pub(crate) struct Outputs {
    log: Arc<Mutex<Log>>,
    readers: Vec<JoinHandle<()>>,
}

/// What is to be read once the command runs.
pub(crate) struct Prepared {
    log: Arc<Mutex<Log>>,
    sources: Vec<Source>,
}

enum Source {
    Pipe { from: PipeReader, to: File, stream: &'static str },
    Terminal { from: OwnedFd, to: File },
}

impl Prepared {
    /// Gives the command its output and errors, and makes the log at `path`.
    pub(crate) fn new(command: &mut Command, path: PathBuf) -> io::Result<Prepared> {
        let log = Arc::new(Mutex::new(Log::create(path)?));
        let mut sources = Vec::new();
        let mut terminal = None;
        for (stream, own) in [
            ("stdout", io::stdout().as_fd().try_clone_to_owned()?),
            ("stderr", io::stderr().as_fd().try_clone_to_owned()?),
        ] {
            let to = File::from(own);
            let end = if nix::unistd::isatty(&to).unwrap_or(false) {
                let slave = match terminal.take() {
                    Some(slave) => slave,
                    None => {
                        let size = size(&to);
                        let pty = openpty(size.as_ref(), None)?;
                        // What comes out is written to a terminal once more, which does what there is to be done.
                        let mut mode = termios::tcgetattr(&pty.slave)?;
                        mode.output_flags.remove(termios::OutputFlags::OPOST);
                        termios::tcsetattr(&pty.slave, termios::SetArg::TCSANOW, &mode)?;
                        sources.push(Source::Terminal { from: pty.master, to });
                        pty.slave
                    }
                };
                let end = Stdio::from(slave.try_clone()?);
                terminal = Some(slave);
                end
            } else {
                let (from, end) = io::pipe()?;
                // Programs that change their user open /dev/stdout anew.
                let end = File::from(OwnedFd::from(end));
                end.set_permissions(Permissions::from_mode(0o666))?;
                sources.push(Source::Pipe { from, to, stream });
                Stdio::from(end)
            };
            match stream {
                "stdout" => command.stdout(end),
                _ => command.stderr(end),
            };
        }
        Ok(Prepared { log, sources })
    }

    /// Gives the command a terminal of its own for everything, and makes the log at `path`; the command's side stays with the command.
    pub(crate) fn terminal(command: &mut Command, path: PathBuf) -> io::Result<(Prepared, OwnedFd)> {
        let log = Arc::new(Mutex::new(Log::create(path)?));
        let pty = openpty(None, None)?;
        command.stdin(pty.slave.try_clone()?).stdout(pty.slave.try_clone()?).stderr(pty.slave);
        let to = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let sources = vec![Source::Terminal { from: pty.master.try_clone()?, to }];
        Ok((Prepared { log, sources }, pty.master))
    }

    /// Begins to read; `leader` is the command's process.
    pub(crate) fn start(self, leader: Option<u32>) -> io::Result<Outputs> {
        let Prepared { log, sources } = self;
        let mut readers = Vec::new();
        for source in sources {
            let log = log.clone();
            let reader = std::thread::Builder::new().name("output".into());
            readers.push(match source {
                Source::Pipe { from, to, stream } => reader.spawn(move || pipe(from, to, stream, &log))?,
                Source::Terminal { from, to } => reader.spawn(move || terminal(&from, to, leader, &log))?,
            });
        }
        Ok(Outputs { log, readers })
    }
}

impl Outputs {
    /// Notes the command's exit code, for those who follow the log; after what the command itself has written.
    pub(crate) async fn ended(&self, code: i32) {
        self.wait(LAST_PIECES).await;
        write(&self.log, EXIT, format!("{code}\n").as_bytes());
    }

    /// Waits until everything that was written is shown; not for long.
    pub(crate) async fn finish(self) {
        self.wait(LAST_WORDS).await;
    }

    async fn wait(&self, limit: Duration) {
        let end = Instant::now() + limit;
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn write(log: &Mutex<Log>, stream: &str, bytes: &[u8]) {
    log.lock().unwrap_or_else(PoisonError::into_inner).write(stream, bytes);
}

fn pipe(mut from: PipeReader, mut to: File, stream: &str, log: &Mutex<Log>) {
    let mut buffer = vec![0; PIECE];
    let mut shown = true;
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let Some(bytes) = buffer.get(..length) else { return };
        if shown && let Err(error) = to.write_all(bytes) {
            // Nobody reads it: the command is told as it would have been without us.
            if error.kind() == io::ErrorKind::BrokenPipe {
                return;
            }
            shown = false;
        }
        write(log, stream, bytes);
    }
}

/// A terminal's size.
pub(crate) fn size(of: &File) -> Option<Winsize> {
    nix::ioctl_read_bad!(get, libc::TIOCGWINSZ, Winsize);
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one `Winsize`.
    unsafe { get(of.as_raw_fd(), &mut size) }.ok().map(|_| size)
}

/// Sets a terminal's size.
pub(crate) fn resize(terminal: &OwnedFd, size: &Winsize) {
    nix::ioctl_write_ptr_bad!(set, libc::TIOCSWINSZ, Winsize);
    // SAFETY: the kernel reads one `Winsize`.
    let _ = unsafe { set(terminal.as_raw_fd(), size) };
}

fn terminal(from: &OwnedFd, mut to: File, leader: Option<u32>, log: &Mutex<Log>) {
    let mut buffer = vec![0; PIECE];
    let mut known = size(&to);
    loop {
        let mut waits = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waits, PollTimeout::from(LOOK)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => {
                let now = size(&to);
                if let Some(new) = now.as_ref().filter(|_| now != known) {
                    resize(from, new);
                    crate::signals::to_group(leader, nix::sys::signal::Signal::SIGWINCH);
                    known = now;
                }
            }
            Err(_) => return,
            Ok(_) => match nix::unistd::read(from, &mut buffer) {
                // The terminal is shared with whoever writes into it, who does not wait.
                Err(nix::errno::Errno::EAGAIN) => {}
                // Nobody has the other side any more.
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    let Some(bytes) = buffer.get(..length) else { return };
                    let _ = to.write_all(bytes);
                    write(log, "stdout", bytes);
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_private_and_stamped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a_b_c.log");
        let mut log = Log::create(path.clone()).unwrap();
        log.write("stdout", b"one\ntw");
        log.write("stderr", b"o\n");
        let text = std::fs::read_to_string(&path).unwrap();
        let parts: Vec<Vec<&str>> = text.lines().map(|line| line.splitn(4, ' ').collect()).collect();
        let without: Vec<_> = parts.iter().map(|line| line[1..].join(" ")).collect();
        assert_eq!(without, ["stdout F one", "stdout P tw", "stderr F o"]);
        assert!(parts.iter().all(|line| Timestamp::parse(line[0]).is_some()), "{text}");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let line = [b"x".repeat(1 << 20), b"\n".to_vec()].concat();
        for _ in 0..25 {
            log.write("stdout", &line);
        }
        let length = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(length(&path) <= FILE + (2 << 20) && length(&aside(&path)) <= FILE + (2 << 20));
        remove(&path);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
