//! Puts files where they are read.
//!
//! Invariant: the files of a folder change all at once: they lie in a hidden folder of their own, and one rename of the link `..current`
//! takes readers from the old ones to the new (as Kubernetes mounts Secrets). A file that stands alone is replaced by a rename. Nothing is
//! ever readable by more than its mode allows, not even for a moment; equal files are left alone.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File as Open, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use carrick_xds::Any;
use zeroize::Zeroizing;

use super::config::{Account, Place};

/// The link to the folder in force.
const CURRENT: &str = "..current";
/// Folders of versions begin so.
const VERSION: &str = "..v-";

/// A file to be.
#[derive(Clone)]
pub struct File {
    /// Where.
    pub place: Place,
    /// What.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Permissions.
    pub mode: u32,
    /// Owner, by number.
    pub uid: Option<u32>,
    /// Group, by number.
    pub gid: Option<u32>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("place", &self.place).field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// Why files are not in place. What was there before is there still.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// What was being done to.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// No such account on this machine.
    #[error("there is no {kind} {name:?} on this machine")]
    Account {
        /// `user` or `group`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Something of the file's name stands there that must not be replaced.
    #[error("{0}: a folder stands where the file is to be")]
    Folder(PathBuf),
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> PlaceError {
    move |source| PlaceError::Io { path: path.to_owned(), source }
}

/// The number of a user.
///
/// # Errors
/// There is none of that name.
pub fn user(account: &Account) -> Result<u32, PlaceError> {
    let missing = |name: &str| PlaceError::Account { kind: "user", name: name.to_owned() };
    match account {
        Account::Id(id) => Ok(*id),
        Account::Name(name) => match nix::unistd::User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            _ => Err(missing(name)),
        },
    }
}

/// The number of a group.
///
/// # Errors
/// There is none of that name.
pub fn group(account: &Account) -> Result<u32, PlaceError> {
    let missing = |name: &str| PlaceError::Account { kind: "group", name: name.to_owned() };
    match account {
        Account::Id(id) => Ok(*id),
        Account::Name(name) => match nix::unistd::Group::from_name(name) {
            Ok(Some(group)) => Ok(group.gid.as_raw()),
            _ => Err(missing(name)),
        },
    }
}

/// What tells two sets of files apart, short.
pub fn version(files: &[File]) -> String {
    let mut all = Zeroizing::new(Vec::new());
    for file in files {
        let name = match &file.place {
            Place::InSet(name) => name.as_bytes().to_vec(),
            Place::Alone(path) => path.as_os_str().as_encoded_bytes().to_vec(),
        };
        all.extend_from_slice(&(name.len() as u64).to_be_bytes());
        all.extend_from_slice(&name);
        all.extend_from_slice(
            format!("{:o} {:?} {:?} {} ", file.mode, file.uid, file.gid, file.bytes.len()).as_bytes(),
        );
        all.extend_from_slice(&file.bytes);
    }
    let value = std::mem::take(&mut *all);
    let whole = Any { type_url: String::new(), value };
    let hash = carrick_xds::resource::content_version(&whole);
    drop(Zeroizing::new(whole.value));
    hash.chars().take(24).collect()
}

/// Puts them in place. Gives whether anything changed.
///
/// # Errors
/// See [`PlaceError`]. The folder's files are then all as they were; files that stand alone may have been replaced already.
pub fn write(directory: Option<&Path>, files: &[File]) -> Result<bool, PlaceError> {
    let mut changed = false;
    if let Some(directory) = directory {
        let set: Vec<(&str, &File)> = files
            .iter()
            .filter_map(|file| match &file.place {
                Place::InSet(name) => Some((name.as_str(), file)),
                Place::Alone(_) => None,
            })
            .collect();
        if !set.is_empty() {
            changed |= write_set(directory, &set)?;
        }
    }
    for file in files {
        if let Place::Alone(path) = &file.place {
            changed |= write_alone(path, file)?;
        }
    }
    Ok(changed)
}

fn write_set(directory: &Path, set: &[(&str, &File)]) -> Result<bool, PlaceError> {
    folder(directory)?;
    let owned: Vec<File> = set.iter().map(|(_, file)| (*file).clone()).collect();
    let version = format!("{VERSION}{}", version(&owned));
    let current = directory.join(CURRENT);
    let linked =
        |name: &str| std::fs::read_link(directory.join(name)).is_ok_and(|to| to == Path::new(CURRENT).join(name));
    // One that was tampered with is made anew beside itself.
    let again = format!("{version}-again");
    let in_force = std::fs::read_link(&current).ok().and_then(|to| to.into_os_string().into_string().ok());
    let in_force = in_force.filter(|to| *to == version || *to == again);
    if let Some(folder) = &in_force
        && set.iter().all(|(name, file)| is_equal(&directory.join(folder).join(name), file) && linked(name))
    {
        return Ok(false);
    }
    for (name, _) in set {
        let path = directory.join(name);
        if std::fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            return Err(PlaceError::Folder(path));
        }
    }
    let version = if in_force.as_ref() == Some(&version) { again } else { version };
    let folder = directory.join(&version);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(at(&folder)(error)),
        _ => {}
    }
    DirBuilder::new().mode(0o755).create(&folder).map_err(at(&folder))?;
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).map_err(at(&folder))?;
    for (name, file) in set {
        create(&folder.join(name), file)?;
    }
    sync(&folder)?;
    relink(Path::new(&version), &current)?;
    for (name, _) in set.iter().filter(|(name, _)| !linked(name)) {
        relink(&Path::new(CURRENT).join(name), &directory.join(name))?;
    }
    sync(directory)?;
    sweep(directory, &version);
    Ok(true)
}

/// Removes versions that are not in force. One that cannot be removed is removed next time.
fn sweep(directory: &Path, version: &str) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let old = name.to_str().is_some_and(|name| name.starts_with(VERSION) && name != version);
        if old && let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::debug!(path = %entry.path().display(), %error, "an old version stays");
        }
    }
}

fn write_alone(path: &Path, file: &File) -> Result<bool, PlaceError> {
    if is_equal(path, file) {
        return Ok(false);
    }
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
        return Err(PlaceError::Folder(path.to_owned()));
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    folder(parent)?;
    let new = beside(path);
    remove(&new)?;
    create(&new, file)?;
    std::fs::rename(&new, path).map_err(at(path))?;
    sync(parent)?;
    Ok(true)
}

/// A link of this name that points to `to`, in one step.
fn relink(to: &Path, path: &Path) -> Result<(), PlaceError> {
    let new = beside(path);
    remove(&new)?;
    symlink(to, &new).map_err(at(&new))?;
    std::fs::rename(&new, path).map_err(at(path))
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or(OsStr::new("file")).to_string_lossy();
    path.with_file_name(format!("..new-{name}"))
}

fn remove(path: &Path) -> Result<(), PlaceError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

fn folder(path: &Path) -> Result<(), PlaceError> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(at(path))
}

/// A new file, private until it is its owner's.
fn create(path: &Path, file: &File) -> Result<(), PlaceError> {
    let mut open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(at(path))?;
    open.write_all(&file.bytes).map_err(at(path))?;
    if file.uid.is_some() || file.gid.is_some() {
        std::os::unix::fs::fchown(&open, file.uid, file.gid).map_err(at(path))?;
    }
    open.set_permissions(Permissions::from_mode(file.mode)).map_err(at(path))?;
    open.sync_all().map_err(at(path))
}

fn sync(folder: &Path) -> Result<(), PlaceError> {
    Open::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))
}

/// Whether it is there just as wished for.
fn is_equal(path: &Path, file: &File) -> bool {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return false };
    let owned = |wanted: Option<u32>, is| wanted.is_none_or(|wanted| wanted == is);
    meta.is_file()
        && meta.mode() & 0o7777 == file.mode
        && owned(file.uid, meta.uid())
        && owned(file.gid, meta.gid())
        && std::fs::read(path).is_ok_and(|bytes| *Zeroizing::new(bytes) == *file.bytes)
}

#[cfg(test)]
mod tests;
