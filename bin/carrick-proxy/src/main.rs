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
    // What sets rules needs no runtime and no identity.
    if let Some(("istio-iptables", flags)) = arguments.split_first().map(|(command, rest)| (command.as_str(), rest)) {
        return match rules::run(flags) {
            Ok(told) => {
                println!("{told}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
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
    let flag = |name: &str, default: &str| {
        let given = flags.iter().find_map(|flag| flag.strip_prefix(&format!("--{name}=")));
        given.unwrap_or(default).to_owned()
    };
    let host = std::env::var("KUBERNETES_SERVICE_HOST").unwrap_or_default();
    let port = std::env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".to_owned());
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let places = cni::install::Places {
        binaries: flag("bin-dir", "/host/opt/cni/bin").into(),
        configurations: flag("conf-dir", "/host/etc/cni/net.d").into(),
        configurations_on_node: flag("node-conf-dir", "/etc/cni/net.d").into(),
        account: flag("service-account", "/var/run/secrets/kubernetes.io/serviceaccount").into(),
        server: flag("server", &format!("https://{host}:{port}")),
        excluded: flag("exclude-namespaces", "kube-system").split(',').map(str::to_owned).collect(),
    };
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return fail(&error.to_string()),
    };
    block_on(async move {
        let io = |source| AgentError::Io { what: "signals", source };
        let (mut term, mut int) =
            (signal(SignalKind::terminate()).map_err(io)?, signal(SignalKind::interrupt()).map_err(io)?);
        loop {
            match cni::install::install(&places, &own) {
                Ok(changed) => changed.iter().for_each(|file| println!("written: {file}")),
                Err(error) => eprintln!("carrick-proxy: {error}"),
            }
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                () = tokio::time::sleep(std::time::Duration::from_secs(10)) => {}
            }
        }
        cni::install::uninstall(&places).map_err(AgentError::Config)
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
