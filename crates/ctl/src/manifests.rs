//! Manifests named on a command line: files, folders, standard input.
//!
//! Invariant: a folder is walked in order of names; what is no manifest by its extension is left out and told.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A manifest's name as it was typed, and its text.
pub struct Manifest {
    pub name: String,
    pub text: String,
}

/// Extensions of manifests.
const EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];

/// Reads all of them; folders with everything below. `skipped` is told of files with other extensions.
///
/// # Errors
/// When one cannot be read.
pub fn read(paths: &[PathBuf], skipped: &mut dyn FnMut(&Path)) -> Result<Vec<Manifest>> {
    let mut found = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("standard input")?;
            found.push(Manifest { name: "-".to_owned(), text });
        } else if path.is_dir() {
            folder(path, skipped, &mut found)?;
        } else {
            found.push(file(path)?);
        }
    }
    Ok(found)
}

fn folder(path: &Path, skipped: &mut dyn FnMut(&Path), found: &mut Vec<Manifest>) -> Result<()> {
    let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
    let mut inside: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    inside.sort();
    for path in inside {
        if path.is_dir() {
            folder(&path, skipped, found)?;
        } else if is_manifest(&path) {
            found.push(file(&path)?);
        } else {
            skipped(&path);
        }
    }
    Ok(())
}

/// Whether a file is a manifest, by its extension.
pub fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|own| EXTENSIONS.iter().any(|known| own == *known))
}

fn file(path: &Path) -> Result<Manifest> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read file {name:?}"))?;
    Ok(Manifest { text: String::from_utf8_lossy(&bytes).into_owned(), name })
}
