//! Putting rule text into the kernel through `nft -f -`, looking whether it is there, and taking it out again.
//!
//! Invariant: one call is one transaction; when it fails nothing has changed. Works on the calling thread's network namespace.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::CaptureError;

/// Family and name of a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Table<'a> {
    /// `inet` or `ip`.
    pub family: &'a str,
    /// Name.
    pub name: &'a str,
}

impl std::fmt::Display for Table<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {}", self.family, self.name)
    }
}

/// Applies a ruleset of this crate to `table`, and checks that every chain and set of the text is in the kernel; when it is not, the
/// table is removed again, so that there is never half a capture.
///
/// # Errors
/// [`CaptureError::NoNft`], [`CaptureError::Refused`], [`CaptureError::NotInPlace`].
pub fn apply(table: Table<'_>, ruleset: &str) -> Result<(), CaptureError> {
    transaction(table, ruleset)?;
    let wanted: Vec<&str> = names(ruleset).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let listing = list(table)?.unwrap_or_default();
    let present: std::collections::BTreeSet<&str> = names(&listing).collect();
    if wanted.iter().all(|name| present.contains(name)) {
        return Ok(());
    }
    remove(table)?;
    Err(CaptureError::NotInPlace { table: table.to_string() })
}

/// Applies without the check; for tables that are rewritten often.
///
/// # Errors
/// [`CaptureError::NoNft`], [`CaptureError::Refused`].
pub fn transaction(table: Table<'_>, ruleset: &str) -> Result<(), CaptureError> {
    let output = nft(&["-f", "-"], ruleset)?;
    if output.status.success() {
        return Ok(());
    }
    Err(CaptureError::Refused {
        table: table.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// The table as the kernel has it; `None` when there is none.
///
/// # Errors
/// [`CaptureError::NoNft`] or a failed call.
pub fn list(table: Table<'_>) -> Result<Option<String>, CaptureError> {
    let output = nft(&["-n", "list", "table", table.family, table.name], "")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Deletes the table; fine when it is not there.
///
/// # Errors
/// [`CaptureError::NoNft`], [`CaptureError::Refused`].
pub fn remove(table: Table<'_>) -> Result<(), CaptureError> {
    transaction(table, &format!("table {table}\ndelete table {table}\n"))
}

/// The chains, sets and maps that a text declares.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("chain" | "set" | "map") => words.next(),
            _ => None,
        }
    })
}

fn nft(arguments: &[&str], input: &str) -> Result<Output, CaptureError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .or_else(|error| match error.kind() {
            // A login without sbin in its path is common.
            std::io::ErrorKind::NotFound => Command::new("/usr/sbin/nft")
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn(),
            _ => Err(error),
        })
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => CaptureError::NoNft,
            _ => CaptureError::Io { doing: "start nft".into(), source: error },
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // nft reads its whole input before it answers, so this cannot block against its output.
        match stdin.write_all(input.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(CaptureError::Io { doing: "write to nft".into(), source: error });
            }
            _ => {}
        }
    }
    child.wait_with_output().map_err(CaptureError::io("wait for nft"))
}
