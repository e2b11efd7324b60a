//! `carrick-proxy`: what runs beside a workload. Reads the command line, runs the agent; links no control plane.

use std::process::ExitCode;

use carrick_agent::AgentError;
use carrick_agent::config::{Command, Process, parse};
use carrick_agent::{cni, rules};
use carrick_runtime::telemetry;

fn main() -> ExitCode {
    let arguments: Vec<String> = match std::env::args_os().skip(1).map(std::ffi::OsString::into_string).collect() {
        Ok(arguments) => arguments,
        Err(argument) => return fail(&format!("argument {argument:?} is not UTF-8")),
    };
    let program = std::env::args().next().unwrap_or_default();
    if program.rsplit('/').next() == Some(cni::NAME) || arguments.first().is_some_and(|command| command == "cni") {
        return plugin();
    }
    if let Some(("cni-install", flags)) = arguments.split_first().map(|(command, rest)| (command.as_str(), rest)) {
        return install(flags);
    }
    if let Some(("cni-ready", flags)) = arguments.split_first().map(|(command, rest)| (command.as_str(), rest)) {
        let file = flags.first().and_then(|flag| flag.strip_prefix("--ready-file="));
        let ready = file.ok_or_else(|| "--ready-file=FILE expected".to_owned());
        return match ready.and_then(|file| cni::node::ready(file.as_ref(), std::time::SystemTime::now())) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        };
    }
    // What sets rules needs no runtime and no identity.
    if let Some(("istio-iptables", flags)) = arguments.split_first().map(|(command, rest)| (command.as_str(), rest)) {
        return match rules::run(flags) {
            Ok(told) => {
                println!("{told}");
                ExitCode::SUCCESS
            }
            Err(error @ rules::RulesError::Missing(_)) => {
                fail(&error.to_string());
                ExitCode::from(rules::NO_RULES)
            }
            Err(error) => fail(&error.to_string()),
        };
    }
    match parse(&arguments, &Process) {
        Ok(Command::Tool(tool)) => {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return fail(&error.to_string()),
            };
            match runtime.block_on(carrick_agent::tool::run(&tool)) {
                Ok(told) => {
                    print!("{told}");
                    ExitCode::SUCCESS
                }
                Err(error) => fail(&error),
            }
        }
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

/// One call of a container runtime.
fn plugin() -> ExitCode {
    let mut input = String::new();
    // An input that cannot be read is answered in the specification's words, as an empty one.
    let _ = std::io::Read::read_to_string(&mut std::io::stdin(), &mut input);
    let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let (told, good) = cni::run(&env, &input);
    println!("{told}");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Keeps the plugin on this node until it is told to end.
fn install(flags: &[String]) -> ExitCode {
    use tokio::signal::unix::{SignalKind, signal};
    let host = std::env::var("KUBERNETES_SERVICE_HOST").unwrap_or_default();
    let port = std::env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".to_owned());
    let life = match cni::node::Life::parse(flags, &host, &port) {
        Ok(life) => life,
        Err(error) => return fail(&error),
    };
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return fail(&error.to_string()),
    };
    block_on(async move {
        let io = |source| AgentError::Io { what: "signals", source };
        let (mut term, mut int) =
            (signal(SignalKind::terminate()).map_err(io)?, signal(SignalKind::interrupt()).map_err(io)?);
        let stop = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        life.run(&own, stop).await.map_err(AgentError::Config)
    })
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
