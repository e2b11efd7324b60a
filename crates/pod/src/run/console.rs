//! What is typed into a pod's command by `kubectl attach -i` and `kubectl run -i`: a socket in the pod's folder, which the API server connects to.
//!
//! Invariant: only root is listened to; a caller that hangs up ends its own typing alone, unless the container's input ends with the first
//! caller (`stdinOnce`). The first byte of a connection says what it is: [`TYPED`] bytes up to the end, or [`SIZES`] of the terminal, each two
//! numbers of two bytes, columns first.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use carrick_streams::Size;
use nix::pty::Winsize;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::ChildStdin;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::output;
use crate::terminal::Terminal;

const TYPED: u8 = b'i';
const SIZES: u8 = b's';
/// Bytes taken at once.
const PIECE: usize = 4 << 10;

/// Where a pod's command reads.
pub(crate) enum Console {
    /// The master side of its terminal.
    Terminal(Terminal),
    /// A pipe.
    Pipe(ChildStdin),
}

/// The socket of a pod's folder.
pub(crate) fn socket(folder: &Path) -> PathBuf {
    folder.join("input")
}

/// Makes the socket.
pub(crate) fn listen(folder: &Path) -> io::Result<UnixListener> {
    let path = socket(folder);
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Hands on what is typed; ends with whoever drops it.
pub(crate) async fn serve(listener: UnixListener, console: Console, once: bool, leader: Option<u32>) {
    let terminal = match &console {
        Console::Terminal(terminal) => Some(terminal.clone()),
        Console::Pipe(_) => None,
    };
    let input: Input = Arc::new(Mutex::new(Some(match console {
        Console::Terminal(terminal) => Box::new(terminal) as _,
        Console::Pipe(pipe) => Box::new(pipe) as _,
    })));
    let mut callers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
                    callers.spawn(caller(stream, input.clone(), terminal.clone(), once, leader));
                }
            }
            Some(_) = callers.join_next() => {}
        }
    }
}

type Input = Arc<Mutex<Option<Box<dyn AsyncWrite + Send + Unpin>>>>;

async fn caller(mut stream: UnixStream, input: Input, terminal: Option<Terminal>, once: bool, leader: Option<u32>) {
    match stream.read_u8().await {
        Ok(TYPED) => {
            let mut buffer = vec![0; PIECE];
            while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                let Some(typed) = buffer.get(..length) else { break };
                let mut input = input.lock().await;
                let Some(end) = input.as_mut() else { return };
                if end.write_all(typed).await.is_err() || end.flush().await.is_err() {
                    *input = None;
                    return;
                }
            }
            // A terminal stays: its end is the hanging up of whoever holds it.
            if once && terminal.is_none() {
                *input.lock().await = None;
            }
        }
        Ok(SIZES) => {
            while let (Ok(columns), Ok(rows)) = (stream.read_u16().await, stream.read_u16().await) {
                let Some(terminal) = &terminal else { return };
                resize(terminal, Size { width: columns, height: rows });
                crate::signals::to_group(leader, Signal::SIGWINCH);
            }
        }
        Ok(_) | Err(_) => {}
    }
}

/// Sets a terminal's size.
pub(crate) fn resize(terminal: &Terminal, size: Size) {
    let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    output::resize(terminal.descriptor(), &size);
}

/// The caller's side: where to write what is typed, and what sets the size.
pub(crate) struct Typing {
    pub(crate) input: UnixStream,
    pub(crate) sizes: Box<dyn FnMut(Size) + Send>,
}

/// Connects to a pod's command; `None` when nothing can be typed into it.
pub(crate) async fn connect(folder: &Path) -> Option<Typing> {
    let path = socket(folder);
    let mut input = UnixStream::connect(&path).await.ok()?;
    input.write_u8(TYPED).await.ok()?;
    let mut sizes = UnixStream::connect(&path).await.ok()?;
    sizes.write_u8(SIZES).await.ok()?;
    // A size that does not fit into the socket is one of many: the next one counts.
    let sizes = Box::new(move |size: Size| {
        let [a, b] = size.width.to_be_bytes();
        let [c, d] = size.height.to_be_bytes();
        let _ = sizes.try_write(&[a, b, c, d]);
    });
    Some(Typing { input, sizes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[tokio::test]
    async fn a_pipe_ends_with_the_first_caller_if_it_is_to() {
        let folder = tempfile::tempdir().unwrap();
        assert!(connect(folder.path()).await.is_none());
        let listener = listen(folder.path()).unwrap();
        let mut child =
            tokio::process::Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let console = Console::Pipe(child.stdin.take().unwrap());
        let serving = tokio::spawn(serve(listener, console, true, child.id()));
        let mut typing = connect(folder.path()).await.unwrap();
        (typing.sizes)(Size { width: 80, height: 24 });
        typing.input.write_all(b"hello\n").await.unwrap();
        drop(typing);
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.stdout, b"hello\n");
        serving.abort();
    }

    #[tokio::test]
    async fn a_terminal_has_the_callers_size_and_outlives_it() {
        let folder = tempfile::tempdir().unwrap();
        let listener = listen(folder.path()).unwrap();
        let nix::pty::OpenptyResult { slave, master } = nix::pty::openpty(None, None).unwrap();
        let shown = slave.try_clone().unwrap();
        let console = Console::Terminal(Terminal::new(master).unwrap());
        let serving = tokio::spawn(serve(listener, console, true, None));
        for text in ["one\n", "two\n"] {
            let mut typing = connect(folder.path()).await.unwrap();
            (typing.sizes)(Size { width: 99, height: 33 });
            typing.input.write_all(text.as_bytes()).await.unwrap();
            let slave = slave.try_clone().unwrap();
            let read = move || {
                let mut buffer = [0; 16];
                let length = nix::unistd::read(&slave, &mut buffer).unwrap();
                buffer.get(..length).unwrap().to_vec()
            };
            assert_eq!(tokio::task::spawn_blocking(read).await.unwrap(), text.as_bytes());
        }
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while output::size(&std::fs::File::from(shown.try_clone().unwrap())).is_none_or(|size| size.ws_col != 99) {
            assert!(std::time::Instant::now() < end, "the size did not come");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        serving.abort();
    }
}
