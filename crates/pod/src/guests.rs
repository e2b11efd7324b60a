//! Pods of this machine's `carrick run`, as the API server's streams ask for them: commands in them, their logs, their ports.
//!
//! Invariant: what is started in a pod sees what the pod's command sees, runs as the same user (in the sidecar's container: as the proxy's,
//! without a way to more), and ends with its caller. All of it is started by one thread that lives as long as this, since a child dies with
//! the thread that started it.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use carrick_streams::{Duplex, Ended, Guest, LogRequest, Pods, PodsError, Size, Target, Want};
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt};
use nix::pty::{Winsize, openpty};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::logs::{Alive, Followed, Following, Form, Reading};
use crate::options::PROXY_ID;
use crate::output;
use crate::run::console;
use crate::signals::exit_code;
use crate::state::{self, PodState};
use crate::template::PROXY;
use crate::terminal::Terminal;
use crate::{PodError, child, connect_in_pod};

/// For a connection to a port of a pod.
const DIAL: Duration = Duration::from_secs(10);
/// Output of an attached command that waits to be taken.
const WAITING: usize = 32 << 10;

/// The pods of one data folder.
pub struct LocalPods {
    data_dir: PathBuf,
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl LocalPods {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(data_dir: &Path) -> Result<LocalPods, PodError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(PodError::io("start a runtime for guests"))?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("guests".into())
            .spawn(move || {
                // It ends when the sender is dropped, and its guests end with it.
                let _ = runtime.block_on(stopped);
            })
            .map_err(PodError::io("start a thread for guests"))?;
        Ok(LocalPods { data_dir: data_dir.to_owned(), handle, _stop: stop })
    }

    fn find(&self, target: &Target) -> Result<PodState, PodsError> {
        let found = state::find(&self.data_dir, &target.namespace, &target.pod);
        let found = found.ok().filter(|state| state.uid.is_empty() || state.uid == target.uid);
        found.ok_or_else(|| PodsError::NotHere { pod: target.pod.clone() })
    }

    /// The log of a container, and how it is written.
    fn log(&self, target: &Target) -> Result<(PathBuf, Form, Alive), PodsError> {
        let state = self.find(target)?;
        let (path, form) = if target.container == PROXY {
            (state.sidecar_log.clone(), Form::Plain)
        } else {
            let path = output::path(&self.data_dir, &target.namespace, &target.pod, &target.container);
            (path, Form::Stamped)
        };
        if !path.exists() {
            return Err(PodsError::Request(format!(
                "container {:?} in pod {:?} is waiting to start: PodInitializing",
                target.container, target.pod
            )));
        }
        let (data_dir, id) = (self.data_dir.clone(), state.id);
        let alive =
            move || state::all(&data_dir).is_ok_and(|all| all.iter().any(|pod| pod.id == id && state::in_place(pod)));
        Ok((path, form, Box::new(alive)))
    }
}

fn failed(error: impl std::fmt::Display) -> PodsError {
    PodsError::Failed(error.to_string())
}

impl Pods for LocalPods {
    fn exec<'a>(
        &'a self,
        target: &'a Target,
        command: &'a [String],
        want: Want,
    ) -> BoxFuture<'a, Result<Guest, PodsError>> {
        Box::pin(async move {
            let pod = self.find(target)?;
            let (command, sidecar) = (command.to_vec(), target.container == PROXY);
            let started = self.handle.spawn(async move { start(pod, &command, want, sidecar) }).await;
            started.map_err(failed)?
        })
    }

    fn attach<'a>(&'a self, target: &'a Target, want: Want) -> BoxFuture<'a, Result<Guest, PodsError>> {
        Box::pin(async move {
            let (path, form, alive) = self.log(target)?;
            let following = Following::open(path, form, alive).map_err(failed)?;
            let mut guest = follow(following);
            if want.stdin && target.container != PROXY {
                let folder = state::folder(&self.data_dir, &self.find(target)?.id);
                if let Some(typing) = console::connect(&folder).await {
                    guest.stdin = Some(Box::new(typing.input));
                    guest.resize = Some(typing.sizes);
                }
            }
            Ok(guest)
        })
    }

    fn logs<'a>(
        &'a self,
        target: &'a Target,
        request: &'a LogRequest,
    ) -> BoxFuture<'a, Result<BoxStream<'static, bytes::Bytes>, PodsError>> {
        Box::pin(async move {
            let (path, form, alive) = self.log(target)?;
            let request = request.clone();
            // The end of a long log is found by reading all of it.
            let opened = tokio::task::spawn_blocking(move || Reading::open(path, form, &request, alive)).await;
            let reading = opened.map_err(failed)?.map_err(failed)?;
            let pieces = futures_util::stream::unfold(reading, |mut reading| async move {
                let piece = reading.piece().await?;
                Some((piece, reading))
            });
            Ok(pieces.boxed())
        })
    }

    fn dial<'a>(&'a self, target: &'a Target, port: u16) -> BoxFuture<'a, Result<Box<dyn Duplex>, PodsError>> {
        Box::pin(async move {
            self.find(target)?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let stream = connect_in_pod(&self.data_dir, &target.namespace, &target.pod, address, DIAL).await;
            let stream = stream.map_err(failed)?;
            // Small pieces at once; a failure here costs only latency.
            let _ = stream.set_nodelay(true);
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}

/// The namespaces of a pod, from its runner's thread inside.
pub(crate) fn namespaces(pod: &PodState) -> Result<Vec<(File, CloneFlags)>, PodError> {
    [("net", CloneFlags::CLONE_NEWNET), ("uts", CloneFlags::CLONE_NEWUTS), ("mnt", CloneFlags::CLONE_NEWNS)]
        .into_iter()
        .map(|(name, kind)| {
            let path = format!("/proc/{}/task/{}/ns/{name}", pod.pid, pod.thread);
            Ok((File::open(&path).map_err(PodError::io(format!("open {path}")))?, kind))
        })
        .collect()
}

/// Ends a process group unless told that it has ended.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0.take() {
            // Gone already is fine.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

/// Starts a command; on the thread that lives.
fn start(pod: PodState, words: &[String], want: Want, sidecar: bool) -> Result<Guest, PodsError> {
    let (program, arguments) = words.split_first().ok_or_else(|| PodsError::Request("nothing to run".to_owned()))?;
    let cwd = std::ffi::CString::new(pod.cwd.as_os_str().as_bytes()).unwrap_or_else(|_| c"/".into());
    let mut command = Command::new(program);
    command.args(arguments).env_clear().kill_on_drop(true);
    if sidecar {
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("POD_NAME", &pod.name).env("POD_NAMESPACE", &pod.namespace).env("HOSTNAME", &pod.name);
    } else {
        command.envs(pod.env.iter().map(|(name, value)| (name, value)));
    }
    let user = sidecar.then_some(PROXY_ID);
    let inside = namespaces(&pod).map_err(failed)?;
    let master = if want.tty {
        command.env("TERM", "xterm");
        let pty = openpty(None, None).map_err(failed)?;
        let end = || pty.slave.try_clone().map(Stdio::from).map_err(failed);
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        Some(pty.master)
    } else {
        let end = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
        command.stdin(end(want.stdin)).stdout(end(want.stdout)).stderr(end(want.stderr));
        None
    };
    child::as_session(&mut command, inside, cwd, user, want.tty);
    let mut guest = command.spawn().map_err(|error| PodsError::Failed(format!("exec: {program:?}: {error}")))?;
    // The terminal's other side is the guest's alone, so that its end is seen.
    drop(command);
    let leader = guest.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let (stdin, stdout, stderr) = (guest.stdin.take(), guest.stdout.take(), guest.stderr.take());
    let ended = Box::pin(async move {
        let mut group = Group(leader);
        match guest.wait().await {
            Ok(status) => {
                group.0 = None;
                Ended::Code(exit_code(status))
            }
            Err(error) => Ended::Unknown(error.to_string()),
        }
    });
    let Some(master) = master else {
        return Ok(Guest {
            stdin: stdin.map(|pipe| Box::new(pipe) as _),
            stdout: stdout.map(|pipe| Box::new(pipe) as _),
            stderr: stderr.map(|pipe| Box::new(pipe) as _),
            resize: None,
            ended,
        });
    };
    let terminal = Terminal::new(master).map_err(failed)?;
    let sized = terminal.clone();
    let resize = move |size: Size| {
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        output::resize(sized.descriptor(), &size);
    };
    Ok(Guest {
        stdin: want.stdin.then(|| Box::new(terminal.clone()) as _),
        stdout: Some(Box::new(terminal)),
        stderr: None,
        resize: Some(Box::new(resize)),
        ended,
    })
}

/// A command that runs already, as far as it can be seen.
fn follow(mut following: Following) -> Guest {
    let (stdout, mut out) = tokio::io::duplex(WAITING);
    let (stderr, mut errors) = tokio::io::duplex(WAITING);
    let ended = Box::pin(async move {
        loop {
            let (to, bytes) = match following.next().await {
                Some(Followed::Piece { errors: true, bytes }) => (&mut errors, bytes),
                Some(Followed::Piece { errors: false, bytes }) => (&mut out, bytes),
                // As with a kubelet: how the container ended is its status's to say.
                Some(Followed::Ended) => return Ended::Code(0),
                None => return Ended::Unknown("the pod's runner is gone".to_owned()),
            };
            // A stream that nobody wanted is thrown away.
            let _ = to.write_all(&bytes).await;
        }
    });
    Guest { stdin: None, stdout: Some(Box::new(stdout)), stderr: Some(Box::new(stderr)), resize: None, ended }
}
