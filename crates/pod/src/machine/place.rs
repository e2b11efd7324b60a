//! The folder of a machine: settings of root's, key and certificate of the proxy's user alone.
//!
//! Invariant: `identity` is 0700 and the proxy's; nothing else in the folder is secret but a token that waits to be used (0600). One run at a
//! time holds the folder.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::settings::Machine;
use crate::PodError;
use crate::run::files::{downward, write_owned};
use crate::state::write_atomic;

const SETTINGS: &str = "machine.json";

/// A machine's folder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(path: &Path) -> Result<Self, PodError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .and_then(|()| std::fs::canonicalize(path))
            .map(|path| Self { path })
            .map_err(PodError::io(format!("create {}", path.display())))
    }

    /// One that is there.
    ///
    /// # Errors
    /// No machine has joined there.
    pub fn open(path: &Path) -> Result<Self, PodError> {
        let folder = Self::create(path)?;
        if folder.path(SETTINGS).exists() {
            return Ok(folder);
        }
        Err(PodError::Request(format!(
            "no machine has joined with the folder {}: see `carrick vm join`",
            path.display()
        )))
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What was written by [`Folder::save`].
    ///
    /// # Errors
    /// It cannot be read.
    pub fn machine(&self) -> Result<Machine, PodError> {
        let path = self.path(SETTINGS);
        let doing = || format!("read {}", path.display());
        let text = std::fs::read(&path).map_err(PodError::io(doing()))?;
        serde_json::from_slice(&text).map_err(|error| PodError::Request(format!("{}: {error}", doing())))
    }

    /// Writes what the machine is to be from now on.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, machine: &Machine) -> Result<(), PodError> {
        let text = serde_json::to_vec_pretty(machine).map_err(|error| PodError::Request(error.to_string()))?;
        self.write(SETTINGS, &text, 0o600)
    }

    /// Replaces one file of root's.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, text: &[u8], mode: u32) -> Result<(), PodError> {
        let path = self.path(name);
        write_atomic(&path, text, mode).map_err(PodError::io(format!("write {}", path.display())))
    }

    /// Replaces one file that the proxy's user alone may read.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn give(&self, name: &str, text: &[u8], user: u32) -> Result<(), PodError> {
        let path = self.path(name);
        write_owned(&path, text, 0o600, user).map_err(PodError::io(format!("write {}", path.display())))
    }

    /// A folder in it that is the proxy's user's alone.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn own(&self, name: &str, user: u32) -> Result<PathBuf, PodError> {
        let path = self.path(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path).and_then(|()| {
            std::fs::set_permissions(&path, Permissions::from_mode(0o700))?;
            chown(&path, Some(user), Some(user))
        });
        made.map_err(PodError::io(format!("create {}", path.display())))?;
        Ok(path)
    }

    /// Files that the sidecar reads; gives the folder it works in.
    pub(super) fn prepare(&self, machine: &Machine) -> Result<PathBuf, PodError> {
        let user = machine.captured.proxy_id;
        self.write("labels", downward(&machine.all_labels()).as_bytes(), 0o644)?;
        self.write("annotations", downward(&machine.annotations).as_bytes(), 0o644)?;
        self.own("identity", user)?;
        let work = self.own("proxy", user)?;
        if let Some(closed) = closed(&work) {
            return Err(PodError::Request(format!(
                "user {user} cannot reach {}: {} is closed to it; choose another --state-dir",
                work.display(),
                closed.display()
            )));
        }
        Ok(work)
    }

    /// A program where the proxy's user can reach it: itself, or a copy in the folder.
    ///
    /// # Errors
    /// It is not there, or cannot be copied.
    pub fn reachable(&self, program: &Path, user: u32) -> Result<PathBuf, PodError> {
        let doing = || format!("find {}", program.display());
        let real = std::fs::canonicalize(program).map_err(PodError::io(doing()))?;
        let mode = std::fs::metadata(&real).map_err(PodError::io(doing()))?.permissions().mode();
        if user == 0 || (mode & 0o005 == 0o005 && closed(&real).is_none()) {
            return Ok(real);
        }
        let name = real.file_name().ok_or_else(|| PodError::Request(format!("{} is no program", real.display())))?;
        let folder = self.path("bin");
        let (copy, staged) = (folder.join(name), folder.join(".new"));
        let copied = DirBuilder::new().recursive(true).mode(0o755).create(&folder).and_then(|()| {
            std::fs::copy(&real, &staged)?;
            std::fs::set_permissions(&staged, Permissions::from_mode(0o755))?;
            std::fs::rename(&staged, &copy)
        });
        copied.map_err(PodError::io(format!("copy {} to {}", real.display(), folder.display())))?;
        Ok(copy)
    }

    /// The folder's lock; the kernel gives it back however this process ends.
    pub(super) fn lock(&self) -> Result<Flock<std::fs::File>, PodError> {
        let path = self.path("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(PodError::io(format!("open {}", path.display())))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => {
                PodError::Request(format!("the machine of {} runs already", self.path.display()))
            }
            error => PodError::io(format!("lock {}", path.display()))(io::Error::from(error)),
        })
    }
}

/// The first folder above a path that others than its owner cannot pass.
fn closed(path: &Path) -> Option<&Path> {
    let open = |folder: &Path| std::fs::metadata(folder).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0);
    path.ancestors().skip(1).find(|folder| !folder.as_os_str().is_empty() && !open(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_cannot_be_reached_are_copied() {
        let base = std::env::temp_dir().join(format!("carrick-machine-{}", std::process::id()));
        let folder = Folder::create(&base.join("state")).unwrap();
        let hidden = base.join("hidden");
        DirBuilder::new().mode(0o700).create(&hidden).unwrap();
        let program = hidden.join("program");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let copy = folder.reachable(&program, 1337).unwrap();
        assert_eq!(copy, folder.path("bin/program"));
        assert_eq!(std::fs::read(copy).unwrap(), b"#!/bin/sh\n");
        assert_eq!(folder.reachable(Path::new("/bin/sh"), 1337).unwrap(), std::fs::canonicalize("/bin/sh").unwrap());
        assert!(Folder::open(&base.join("state")).is_err(), "nobody has joined");
        let machine = Machine { name: "m".into(), ..Machine::default() };
        folder.save(&machine).unwrap();
        assert_eq!(Folder::open(&base.join("state")).unwrap().machine().unwrap(), machine);
        let held = folder.lock().unwrap();
        assert!(folder.lock().is_err_and(|error| error.to_string().contains("runs already")));
        drop(held);
        std::fs::remove_dir_all(base).unwrap();
    }
}
