//! `carrick backup` and `carrick restore`: the embedded API's objects, and the keys that go with them, as one file.
//!
//! Invariant: the file is 0600 from its first byte and appears whole; what is there already is replaced only when that is
//! asked for.

use std::{
    fs::{self, File},
    io::{BufReader, BufWriter, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use carrick_api::timestamp::Timestamp;
use carrick_apiserver::{
    backup::{BackupError, Snapshot},
    storage::{FolderLock, StorageError},
};
use clap::Args;
use serde_json::json;

use crate::{cluster, etcd, output};

/// Folders of the data folder that go with the objects: the API's keys, and the mesh's authority.
const FOLDERS: [&str; 2] = ["pki", "ca"];
/// Files that do.
const FILES: [&str; 1] = ["cluster-id"];

/// `carrick backup`.
#[derive(Debug, Args)]
pub struct Backup {
    /// Where to write it. Secrets and keys are in it: it is readable for its owner alone.
    file: PathBuf,
    /// Replace the file if it is there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    storage: etcd::StorageFlags,
}

/// `carrick restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// The backup.
    file: PathBuf,
    /// Replace the objects and keys that are there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    storage: etcd::StorageFlags,
}

impl Backup {
    /// Writes the file.
    ///
    /// # Errors
    /// When the storage cannot be read or the file not be written.
    pub async fn run(self, data_dir: &Path) -> Result<u8> {
        if self.file.exists() && !self.force {
            bail!("{} is there already; --force replaces it", self.file.display());
        }
        let mut snapshot = match self.storage.etcd.resolve() {
            Some(mut cluster) => {
                cluster.compact_every = std::time::Duration::ZERO;
                tokio::task::spawn_blocking(move || Snapshot::of_etcd(cluster)).await??
            }
            None => of_folder(data_dir).await?,
        };
        snapshot.files = files(data_dir)?;
        let aside = beside(&self.file);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside);
        let file = file.with_context(|| aside.display().to_string())?;
        let mut out = BufWriter::new(file);
        let taken = Timestamp::from_system(std::time::SystemTime::now()).to_string();
        let sha256 = snapshot.write(&mut out, &taken).with_context(|| aside.display().to_string())?;
        out.flush()?;
        out.get_ref().sync_all().with_context(|| aside.display().to_string())?;
        fs::rename(&aside, &self.file).with_context(|| self.file.display().to_string())?;
        let (objects, revision) = (snapshot.records.len(), snapshot.revision);
        let shown = json!({"file": self.file, "revision": revision, "objects": objects, "files": snapshot.files.len(),
            "sha256": sha256, "taken": taken});
        match output::machine(&shown, self.storage.output)? {
            Some(text) => print!("{text}"),
            None => println!("{objects} objects at revision {revision} in {} (sha256 {sha256})", self.file.display()),
        }
        Ok(0)
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

/// The data file itself, or, while a server has it, what that server says.
async fn of_folder(data_dir: &Path) -> Result<Snapshot> {
    let folder = data_dir.to_owned();
    let read = move || -> Result<Option<Snapshot>, BackupError> {
        if !folder.join("api.redb").exists() {
            // Not there to be made by looking at it; perhaps a server keeps its objects elsewhere.
            let held = folder.is_dir() && matches!(FolderLock::take(&folder), Err(StorageError::Locked(_)));
            return if held { Ok(None) } else { Err(BackupError::Nothing(folder.display().to_string())) };
        }
        match Snapshot::of_folder(&folder) {
            Err(BackupError::Storage(StorageError::Locked(_))) => Ok(None),
            other => other.map(Some),
        }
    };
    if let Some(snapshot) = tokio::task::spawn_blocking(read).await?? {
        return Ok(snapshot);
    }
    let client = cluster::client(&data_dir.join("kubeconfig")).await?;
    let request = http::Request::get("/carrick/backup").body(Vec::new())?;
    let text = client.request_text(request).await.context("the running server")?;
    Ok(Snapshot::read(text.as_bytes())?)
}

fn files(data_dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut paths: Vec<PathBuf> = FILES.iter().map(|name| data_dir.join(name)).filter(|p| p.is_file()).collect();
    let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|name| data_dir.join(name)).filter(|p| p.is_dir()).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let (path, kind) = entry.and_then(|e| Ok((e.path(), e.file_type()?)))?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                paths.push(path);
            }
        }
    }
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let name = path.strip_prefix(data_dir)?.to_str().context("a file's name is no text")?.to_owned();
            Ok((name, fs::read(path).with_context(|| path.display().to_string())?))
        })
        .collect()
}

impl Restore {
    /// Reads the file whole, then puts it in place.
    ///
    /// # Errors
    /// When the file is not whole, there is something already, or a server uses the folder.
    pub async fn run(self, data_dir: &Path) -> Result<u8> {
        let path = self.file.clone();
        let read = move || -> Result<Snapshot> { Ok(Snapshot::read(BufReader::new(File::open(&path)?))?) };
        let shown = self.file.display().to_string();
        let snapshot = tokio::task::spawn_blocking(read).await?.with_context(|| shown.clone())?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(data_dir)
            .with_context(|| data_dir.display().to_string())?;
        let (cluster, folder, force) = (self.storage.etcd.resolve(), data_dir.to_owned(), self.force);
        let (objects, files) = (snapshot.records.len(), snapshot.files.len());
        let place = cluster.as_ref().map_or(data_dir.display().to_string(), |_| "etcd".to_owned());
        let restore = move || -> Result<u64> {
            if let Some((name, _)) = snapshot
                .files
                .iter()
                .find(|(name, content)| !force && fs::read(folder.join(name)).is_ok_and(|there| there != *content))
            {
                bail!("{} is there already and differs; --force replaces it", folder.join(name).display());
            }
            let revision = match &cluster {
                Some(cluster) => snapshot.restore_etcd(cluster, force)?,
                None => snapshot.restore_folder(&folder, force)?,
            };
            for (name, content) in &snapshot.files {
                put(&folder.join(name), content)?;
            }
            Ok(revision)
        };
        let revision = tokio::task::spawn_blocking(restore).await??;
        let said = json!({"file": self.file, "into": place, "revision": revision, "objects": objects, "files": files});
        match output::machine(&said, self.storage.output)? {
            Some(text) => print!("{text}"),
            None => println!("{objects} objects from {shown} in {place}, at revision {revision}"),
        }
        Ok(0)
    }
}

/// A file of ours, whole or not at all, for its owner alone.
fn put(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().context("a file without a folder")?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| folder.display().to_string())?;
    let aside = beside(path);
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside);
    let mut file = file.with_context(|| aside.display().to_string())?;
    file.write_all(content).and_then(|()| file.sync_all()).with_context(|| aside.display().to_string())?;
    fs::rename(&aside, path).with_context(|| path.display().to_string())
}
