//! The inside of a pod: one thread that lives in the pod's network, mount and host name namespaces and drives everything that must happen
//! there (children, DNS sockets, probes).
//!
//! Invariant: the thread ends last; children started by it die with it, so a killed runner leaves no child behind.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use carrick_capture::netns::NetNs;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::PodError;
use crate::child;

/// What the pod sees in place of the host's files.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Host name in the pod.
    pub(crate) host_name: String,
    /// Source and place of each file or folder that is put over the host's.
    pub(crate) binds: Vec<(PathBuf, PathBuf)>,
}

/// The running thread.
pub(crate) struct Sandbox {
    handle: Handle,
    thread: i32,
    stop: Option<oneshot::Sender<()>>,
    join: Option<std::thread::JoinHandle<()>>,
}

impl Sandbox {
    /// Starts it.
    pub(crate) async fn start(namespace: NetNs, view: View) -> Result<Sandbox, PodError> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, start) = oneshot::channel();
        let join = std::thread::Builder::new()
            .name("pod".into())
            .spawn(move || {
                let runtime = match enter(&namespace, &view) {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                let _ = started.send(Ok((runtime.handle().clone(), child::thread_id())));
                let _ = runtime.block_on(stopped);
            })
            .map_err(PodError::io("start the pod's thread"))?;
        let (handle, thread) =
            start.await.unwrap_or_else(|_| Err(PodError::Request("the pod's thread ended before it began".into())))?;
        Ok(Sandbox { handle, thread, stop: Some(stop), join: Some(join) })
    }

    /// Its number under `/proc/<pid>/task`.
    pub(crate) fn thread(&self) -> i32 {
        self.thread
    }

    /// Where to spawn what shall run inside.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs `work` inside and waits for it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, PodError> {
        self.handle.spawn(work).await.map_err(|error| PodError::Request(format!("inside the pod: {error}")))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(join) = self.join.take() {
            let _ = join.join();
        }
    }
}

fn enter(namespace: &NetNs, view: &View) -> Result<tokio::runtime::Runtime, PodError> {
    namespace.enter_this_thread()?;
    crate::network::settings_inside()?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .map_err(PodError::sys("make the pod's mount namespace"))?;
    // Slave, not private: what the host unmounts, above all other pods' namespaces, must go here too.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(PodError::sys("detach the pod's mounts from the host's"))?;
    for (source, target) in &view.binds {
        bind(source, target)?;
    }
    set_host_name(&view.host_name)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PodError::io("start the pod's runtime"))
}

/// The kernel cuts at 64 bytes, and so do container runtimes.
fn set_host_name(name: &str) -> Result<(), PodError> {
    let name = name.get(..63).unwrap_or(name).trim_end_matches(['-', '.']);
    std::fs::write("/proc/sys/kernel/hostname", name).map_err(PodError::io("set the pod's host name"))
}

fn bind(source: &Path, target: &Path) -> Result<(), PodError> {
    make_place(source, target)?;
    let put = || mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>);
    let mut done = put();
    // A file that the host replaces in this moment (`/etc/hosts`, by renaming) is gone for the kernel, and there again.
    for _ in 0..3 {
        if done != Err(Errno::ENOENT) {
            break;
        }
        done = put();
    }
    done.map_err(PodError::sys(format!("put {} over {}", source.display(), target.display())))
}

/// A mount needs something to be put over. Where the host has nothing, an empty file or folder is made, and stays.
fn make_place(source: &Path, target: &Path) -> Result<(), PodError> {
    if target.exists() {
        return Ok(());
    }
    let folder = if source.is_dir() { target } else { target.parent().unwrap_or(target) };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .map_err(PodError::io(format!("create {}", folder.display())))?;
    if !source.is_dir() {
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(target)
            .map_err(PodError::io(format!("create {}", target.display())))?;
    }
    Ok(())
}
