//! What several commands type alike: texts of flags as values, and programs that lie beside this one.
//!
//! Invariant: a text is taken whole, or the error says what was wanted.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// A program beside this one, else on the search path.
///
/// # Errors
/// It is in neither place.
pub fn beside(program: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let sibling = own.with_file_name(program);
    if sibling.exists() {
        return Ok(sibling);
    }
    crate::process::on_path(program)
        .with_context(|| format!("{program} is neither beside {} nor on PATH", own.display()))
}

/// `KEY=VALUE`, the value possibly empty.
///
/// # Errors
/// It is something else.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}
