//! `carrick-proxy`: what runs beside a workload. Reads the command line, runs the agent; links no control plane.

use std::process::ExitCode;

use carrick_agent::AgentError;
use carrick_agent::config::{Command, Process, parse};
use carrick_runtime::telemetry;

fn main() -> ExitCode {
    let arguments: Vec<String> = match std::env::args_os().skip(1).map(std::ffi::OsString::into_string).collect() {
        Ok(arguments) => arguments,
        Err(argument) => return fail(&format!("argument {argument:?} is not UTF-8")),
    };
    match parse(&arguments, &Process) {
        Ok(Command::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Command::Join(config)) => {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return fail(&error.to_string()),
            };
            match runtime.block_on(carrick_agent::join(&config)) {
                Ok(told) => {
                    println!("{told}");
                    ExitCode::SUCCESS
                }
                Err(error) => fail(&error.to_string()),
            }
        }
        Ok(Command::Proxy(config)) => {
            let logs = match telemetry::init(&config.log_level, config.log_json) {
                Ok(logs) => logs,
                Err(error) => return fail(&error.to_string()),
            };
            block_on(carrick_agent::run(*config, Some(logs)))
        }
        Ok(Command::Agent(config, path)) => {
            let delivery = match carrick_agent::delivery::load(&path) {
                Ok(delivery) => delivery,
                Err(errors) => return fail(&errors.join("\n")),
            };
            if let Err(error) = telemetry::init(&config.log_level, config.log_json) {
                return fail(&error.to_string());
            }
            block_on(carrick_agent::delivery::run(*config, delivery))
        }
        Err(errors) => fail(&errors.to_string()),
    }
}

/// One thread for control; an engine's workers have their own.
fn block_on(life: impl Future<Output = Result<(), AgentError>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.to_string()),
    };
    match runtime.block_on(life) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(text: &str) -> ExitCode {
    for line in text.lines() {
        eprintln!("carrick-proxy: {line}");
    }
    ExitCode::from(2)
}
