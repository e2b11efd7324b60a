//! Rules for single files: each opens with `//!`, and modules are `foo.rs`, never `foo/mod.rs`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Folders of the project that hold Rust.
const FOLDERS: &[&str] = &["crates", "bin", "xtask", "fuzz", "benches"];

/// Every Rust file of the project.
///
/// # Errors
/// When a folder cannot be read.
pub fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        let path = root.join(folder);
        if path.is_dir() {
            collect(&path, &mut found)?;
        }
    }
    found.sort();
    Ok(found)
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target" && n != "corpus" && n != "artifacts") {
                collect(&path, into)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

/// Files that do not say what they are.
///
/// # Errors
/// When a file cannot be read.
pub fn check_headers(root: &Path, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
        if !first.is_some_and(|line| line.starts_with("//!")) {
            findings.push(format!("{}: the first line is no `//!` that says what the file is", shown(root, file)));
        }
    }
    Ok(findings)
}

/// Files that are called `mod.rs`.
pub fn check_module_files(root: &Path, files: &[PathBuf]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.file_name().is_some_and(|n| n == "mod.rs"))
        .map(|file| format!("{}: a module's file is named after it, not mod.rs", shown(root, file)))
        .collect()
}

fn shown(root: &Path, file: &Path) -> String {
    file.strip_prefix(root).unwrap_or(file).display().to_string()
}
