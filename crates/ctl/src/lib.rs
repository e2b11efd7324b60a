//! The command line as a library: what people type, and what it does.
//!
//! Invariant: a command parses into plain options first (`cli`), then runs; exit codes are 0 for done, 1 for
//! failed, 64 for a command line that cannot be read, and the command's own for `run` and `exec` (as in a shell 127 or
//! 126 when it cannot be started, 128 and the number for a signal). No policy, no rendering and no packet is decided
//! here: commands call the crates that do.

pub mod analyze;
pub mod apply;
pub mod backup;
pub mod bench;
pub mod ca;
pub mod certs;
pub mod cli;
pub mod cluster;
pub mod control;
pub mod convert;
pub mod demo;
pub mod duration;
pub mod etcd;
pub mod experimental;
pub mod flags;
pub mod inject;
pub mod install;
pub mod manifests;
pub mod output;
pub mod process;
pub mod proxy_config;
pub mod proxy_status;
pub mod remote;
pub mod table;
pub mod up;
pub mod validate;
pub mod version;
pub mod vm;
pub mod why;
pub mod workload;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, FromArgMatches};

/// Exit code for a command line that cannot be read (sysexits' EX_USAGE, as `istioctl`).
const USAGE: u8 = 64;

/// The arguments, with `help --help` taken for a plea for help.
fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = given.collect();
    let is_help = |word: &OsString| word == "--help" || word == "-h";
    if all.get(1).is_some_and(|word| word == "help") {
        all.retain(|word| !is_help(word));
    }
    all
}

/// Parses the process's arguments, runs the command, tells errors on stderr.
pub fn main() -> ExitCode {
    let matches = match cli::Cli::command().try_get_matches_from(arguments(std::env::args_os())) {
        Ok(matches) => matches,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let parsed = match cli::Cli::from_arg_matches(&matches) {
        Ok(parsed) => parsed,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("Error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(parsed.dispatch());
    // Reads of a terminal's stdin cannot be cancelled: do not wait for them.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("Error: {}", output::words(&error));
            let code = error.downcast_ref::<carrick_pod::PodError>().map_or(1, carrick_pod::PodError::exit_code);
            ExitCode::from(u8::try_from(code).unwrap_or(1))
        }
    }
}
