//! Checks that no compiler makes, run as `cargo xtask tidy`, and images, written by `cargo xtask image`.
//!
//! Invariant: a check prints every finding with its place, and the exit code is 1 when there is any. Nothing is
//! changed in the tree.

mod cycles;
mod features;
mod image;
mod layers;
mod sources;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &*args.iter().map(String::as_str).collect::<Vec<_>>() {
        ["tidy"] => report(tidy(&root)),
        ["image", control_plane, proxy, out] => {
            let programs = [Path::new(control_plane), Path::new(proxy)];
            report(image::write(&root, programs, Path::new(out)).map(|()| Vec::new()))
        }
        _ => {
            eprintln!("usage: cargo xtask tidy | image CARRICK CARRICK-PROXY OUT");
            ExitCode::from(64)
        }
    }
}

fn tidy(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut findings = layers::check(root)?;
    let files = sources::rust_files(root)?;
    findings.extend(sources::check_headers(root, &files)?);
    findings.extend(sources::check_module_files(root, &files));
    findings.extend(cycles::check(root)?);
    findings.extend(features::check(root, &files)?);
    Ok(findings)
}

fn report(result: anyhow::Result<Vec<String>>) -> ExitCode {
    match result {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            for finding in &findings {
                eprintln!("{finding}");
            }
            eprintln!("tidy: {} findings", findings.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
