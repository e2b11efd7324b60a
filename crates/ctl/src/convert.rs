//! `carrick convert -f`: legacy policies and roles as today's objects, on standard output.
//!
//! Invariant: what is printed means what was read; where that cannot be, nothing is printed for that object and it is
//! told on standard error.

use std::path::PathBuf;

use anyhow::Result;
use carrick_analyze::read_file;
use carrick_api::convert;

use crate::manifests;

/// Converts the objects of all files; returns 0 when all of them could be converted.
///
/// # Errors
/// When a file cannot be read.
pub fn run(files: &[PathBuf], namespace: &str, root_namespace: &str) -> Result<u8> {
    let mut failed = false;
    let mut objects = Vec::new();
    for manifest in manifests::read(files, &mut |_| {})? {
        let (found, problems) = read_file(&manifest.name, &manifest.text, namespace);
        objects.extend(found.into_iter().map(|object| object.value));
        for problem in problems {
            eprintln!("{}:{}: {}", problem.file, problem.line, problem.message);
            failed = true;
        }
    }
    let converted = convert::legacy(&objects, root_namespace);
    for (index, object) in converted.objects.iter().enumerate() {
        if index > 0 {
            println!("---");
        }
        print!("{}", serde_saphyr::to_string(object)?);
    }
    for problem in &converted.problems {
        eprintln!("{problem}");
    }
    Ok(u8::from(failed || !converted.problems.is_empty()))
}
