//! Named network namespaces as `ip netns` keeps them: a bind mount per name under `/run/netns`.
//!
//! Invariant: the calling thread's own namespace never changes; whatever must run inside runs on a thread of its own. Leaves links and
//! addresses to others.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::CaptureError;

const DIRECTORY: &str = "/run/netns";

/// A named network namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetNs {
    name: String,
}

impl NetNs {
    /// Makes a new one.
    ///
    /// # Errors
    /// The name is taken or the kernel refuses (not root).
    pub fn create(name: &str) -> Result<NetNs, CaptureError> {
        share_directory()?;
        let namespace = NetNs { name: name.to_owned() };
        let path = namespace.path();
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(CaptureError::io(format!("create {}", path.display())))?;
        let made = on_thread({
            let path = path.clone();
            move || {
                unshare(CloneFlags::CLONE_NEWNET)?;
                mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
                Ok(())
            }
        });
        if let Err(error) = made {
            // The file alone would look like a namespace.
            let _ = std::fs::remove_file(&path);
            return Err(CaptureError::io(format!("make network namespace {name}"))(error));
        }
        Ok(namespace)
    }

    /// One that exists.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn open(name: &str) -> Result<NetNs, CaptureError> {
        let namespace = NetNs { name: name.to_owned() };
        namespace.file()?;
        Ok(namespace)
    }

    /// Names of all that exist.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn names() -> Result<Vec<String>, CaptureError> {
        let entries = match std::fs::read_dir(DIRECTORY) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(CaptureError::io(format!("read {DIRECTORY}"))(error)),
        };
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// An open handle that keeps the namespace alive.
    ///
    /// # Errors
    /// It is gone.
    pub fn file(&self) -> Result<File, CaptureError> {
        let path = self.path();
        File::open(&path).map_err(CaptureError::io(format!("open network namespace {}", path.display())))
    }

    /// Moves the calling thread into it, for threads that live inside.
    ///
    /// # Errors
    /// It is gone or the kernel refuses.
    pub fn enter_this_thread(&self) -> Result<(), CaptureError> {
        setns(self.file()?, CloneFlags::CLONE_NEWNET)
            .map_err(CaptureError::sys(format!("enter network namespace {}", self.name)))
    }

    /// Runs `work` inside, on a thread of its own, and waits for it. Sockets made there stay inside for good.
    ///
    /// # Errors
    /// It is gone, or a thread cannot be made.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, CaptureError> {
        let file = self.file()?;
        on_thread(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
        .map_err(CaptureError::io(format!("enter network namespace {}", self.name)))
    }

    /// Starts a child inside. It belongs to the process, not to a thread of it: a parent-death signal would come at once.
    ///
    /// # Errors
    /// As [`NetNs::run`], or the program cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child, CaptureError> {
        let program = command.get_program().to_owned();
        self.run(move || command.spawn())?.map_err(CaptureError::io(format!("start {}", program.to_string_lossy())))
    }

    /// Processes with at least one thread inside, this process excepted.
    ///
    /// # Errors
    /// It is gone, or `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>, CaptureError> {
        let path = self.path();
        let wanted = std::fs::metadata(&path).map_err(CaptureError::io(format!("look at {}", path.display())))?;
        let own = std::process::id() as i32;
        let entries = std::fs::read_dir("/proc").map_err(CaptureError::io("read /proc"))?;
        Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| *pid != own)
            .filter(|pid| {
                std::fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|meta| (meta.dev(), meta.ino()) == (wanted.dev(), wanted.ino()))
            })
            .collect())
    }

    /// Removes the name; the namespace itself goes when the last process and socket in it are gone. Fine when it is not there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete(&self) -> Result<(), CaptureError> {
        let path = self.path();
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: a file that was never mounted on, left by a crash between the two steps of making it.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(CaptureError::sys(format!("unmount {}", path.display()))(errno)),
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(CaptureError::io(format!("remove {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

/// Runs `work` inside a namespace that has no name of ours but a file (`/proc/PID/ns/net`, a bind mount), on a thread of its own.
///
/// # Errors
/// It is gone, or a thread cannot be made.
pub fn run_in<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, CaptureError> {
    let doing = || format!("enter network namespace {}", path.display());
    let file = File::open(path).map_err(CaptureError::io(doing()))?;
    on_thread(move || {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
    .map_err(CaptureError::io(doing()))
}

/// Makes `/run/netns` a shared mount, as `ip netns` does, so that a name removed here is removed in every mount namespace too.
fn share_directory() -> Result<(), CaptureError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(DIRECTORY)
        .map_err(CaptureError::io(format!("create {DIRECTORY}")))?;
    let directory = File::open(DIRECTORY).map_err(CaptureError::io(format!("open {DIRECTORY}")))?;
    // Two processes that bind it one over the other would hide each other's names.
    let _lock = Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, errno)| CaptureError::sys(format!("lock {DIRECTORY}"))(errno))?;
    let share = || mount(None::<&str>, DIRECTORY, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Ok(()) => Ok(()),
        Err(Errno::EINVAL) => {
            mount(Some(DIRECTORY), DIRECTORY, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
                .map_err(CaptureError::sys(format!("bind {DIRECTORY}")))?;
            share().map_err(CaptureError::sys(format!("share {DIRECTORY}")))
        }
        Err(errno) => Err(CaptureError::sys(format!("share {DIRECTORY}"))(errno)),
    }
}

/// Runs on a fresh thread, so that a change of namespace ends with it.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, Errno> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(result) => result.map_err(io::Error::from),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
