//! `carrick vm join`: from a token (or a folder of Istio's onboarding files) to a machine that runs its sidecar.
//!
//! Invariant: every step may be repeated: what the machine has is replaced as a whole, and what is not said again stays as it was, so that a
//! machine that joins anew (its certificate ended while it was off) keeps its name.

use std::{
    collections::BTreeMap,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};
use carrick_pod::{
    Engine,
    machine::{Folder, Machine},
};
use clap::Args;
use serde_json::Value;

use super::{Around, Place, address, onboarding, read, sidecar, units};

/// The file that carries the token to the proxy's user; gone when it was used.
const TOKEN: &str = "join-token";

/// `vm join`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub struct Options {
    /// What `carrick vm token create` printed. Others on this machine can see it in the list of processes: see --token-file.
    #[arg(long, env = "CARRICK_JOIN_TOKEN", hide_env_values = true, conflicts_with_all = ["token_file", "from"], value_name = "TOKEN")]
    token: Option<String>,
    /// A file with it; `-` reads standard input.
    #[arg(long, conflicts_with = "from", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A folder of Istio's onboarding files instead of a token: cluster.env, mesh.yaml, root-cert.pem, istio-token, hosts.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Where the control plane is [default: as the token tells].
    #[arg(long, value_name = "HOST:15012")]
    server: Option<String>,
    /// SHA-256 of the mesh's root, which the control plane is proven by [default: as the token tells].
    #[arg(long, value_name = "SHA256")]
    ca_fingerprint: Option<String>,
    /// The mesh's root as a file, instead of a fingerprint.
    #[arg(long, value_name = "FILE")]
    root_cert: Option<PathBuf>,
    /// This machine's address [default: that of its way to the control plane].
    #[arg(long, value_name = "IP")]
    ip: Option<IpAddr>,
    /// Its network [default: the WorkloadGroup's].
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Where it stands: REGION/ZONE/SUBZONE [default: the WorkloadGroup's].
    #[arg(long, value_name = "PLACE")]
    locality: Option<String>,
    /// Labels, over the WorkloadGroup's.
    #[arg(short, long, value_delimiter = ',', value_parser = crate::flags::key_value, value_name = "K=V")]
    labels: Vec<(String, String)>,
    /// The sidecar's data plane: native or envoy.
    #[arg(long, value_name = "ENGINE")]
    engine: Option<Engine>,
    /// Users whose outgoing connections go through the sidecar, by name or number [default: all but root].
    #[arg(long = "capture-user", value_delimiter = ',', value_parser = user, value_name = "USER")]
    users: Vec<u32>,
    /// Groups whose outgoing connections do.
    #[arg(long = "capture-group", value_delimiter = ',', value_parser = group, value_name = "GROUP")]
    groups: Vec<u32>,
    /// Capture everybody's but these users' (`root` to begin with).
    #[arg(long = "leave-user", value_delimiter = ',', value_parser = user, conflicts_with_all = ["users", "groups"], value_name = "USER")]
    except: Vec<u32>,
    /// Capture all incoming ports but those of --leave-inbound-ports, not only the WorkloadGroup's.
    #[arg(long)]
    all_inbound: bool,
    /// Incoming ports left alone with --all-inbound [default: 22 and the sidecar's own].
    #[arg(long, value_delimiter = ',', value_name = "PORT")]
    leave_inbound_ports: Vec<u16>,
    /// Outgoing ports left alone.
    #[arg(long, value_delimiter = ',', value_name = "PORT")]
    leave_ports: Vec<u16>,
    /// Outgoing destinations left alone, as ranges.
    #[arg(long, value_delimiter = ',', value_name = "CIDR")]
    leave_ranges: Vec<String>,
    /// Do not resolve names of the mesh.
    #[arg(long)]
    no_dns: bool,
    /// User and group of the sidecar [default: 1337].
    #[arg(long, value_parser = user, value_name = "USER")]
    proxy_user: Option<u32>,
    /// Environment of the sidecar, e.g. SECRET_TTL=1h.
    #[arg(long, value_parser = crate::flags::key_value, value_name = "K=V")]
    sidecar_env: Vec<(String, String)>,
    /// Join and end; `carrick vm run` runs the sidecar.
    #[arg(long, conflicts_with = "systemd")]
    no_run: bool,
    /// Join, write systemd's units and end.
    #[arg(long)]
    systemd: bool,
    #[command(flatten)]
    place: Place,
}

fn user(text: &str) -> Result<u32, String> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    match nix::unistd::User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        _ => Err(format!("there is no user {text:?} on this machine")),
    }
}

fn group(text: &str) -> Result<u32, String> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        _ => Err(format!("there is no group {text:?} on this machine")),
    }
}

pub(super) async fn run(options: Options, around: &Around) -> Result<()> {
    ensure!(nix::unistd::Uid::effective().is_root(), "`carrick vm join` writes the machine's state: run it as root");
    let folder = Folder::create(&options.place.folder(&around.data_dir))?;
    // What was said when it joined for the first time, if it did.
    let before = folder.machine().unwrap_or_default();
    let machine = match &options.from {
        Some(from) => {
            let mut machine = onboarding::read_folder(from, before)?;
            options.settle(&mut machine)?;
            machine.ip = Some(own_address(&options, &machine)?);
            folder.give("istio-token", read(&from.join("istio-token"))?.as_bytes(), machine.captured.proxy_id)?;
            folder.write("root-cert.pem", read(&from.join("root-cert.pem"))?.as_bytes(), 0o644)?;
            machine
        }
        None => by_token(&options, &folder, before).await?,
    };
    machine.capture(Default::default())?;
    folder.save(&machine)?;
    println!("joined as {}.{}, service account {}", machine.name, machine.namespace, machine.service_account);
    if options.systemd {
        return units::install(&units::Options::of(options.place.clone()), around);
    }
    if options.no_run {
        return Ok(());
    }
    sidecar(&options.place.options(&around.data_dir, None)?).await
}

async fn by_token(options: &Options, folder: &Folder, before: Machine) -> Result<Machine> {
    let mut machine = before;
    options.settle(&mut machine)?;
    let user = machine.captured.proxy_id;
    folder.give(TOKEN, options.the_token()?.as_bytes(), user)?;
    folder.own("identity", user)?;
    let told = ask(options, folder, user).await;
    let _ = std::fs::remove_file(folder.path(TOKEN));
    let told = told?;
    let text = |path: &str| told.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    folder.write("root-cert.pem", text("/roots").as_bytes(), 0o644)?;
    machine.server = text("/server");
    machine.group = text("/profile/group");
    machine.namespace = text("/profile/namespace");
    machine.service_account = text("/profile/serviceAccount");
    machine.trust_domain = text("/profile/trustDomain");
    machine.cluster = text("/profile/cluster");
    machine.domain = text("/profile/domain");
    let map = |path: &str| -> BTreeMap<String, String> {
        told.pointer(path).and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default()
    };
    machine.labels = map("/profile/labels");
    machine.labels.extend(options.labels.iter().cloned());
    machine.annotations = map("/profile/annotations");
    let ports = told.pointer("/profile/ports").and_then(|value| serde_json::from_value(value.clone()).ok());
    machine.ports = ports.unwrap_or_default();
    machine.probe = told.pointer("/profile/probe").cloned().unwrap_or_default();
    if machine.network.is_empty() {
        machine.network = text("/profile/network");
    }
    if machine.locality.is_empty() {
        machine.locality = text("/profile/locality");
    }
    ensure!(!machine.group.is_empty(), "the control plane told no WorkloadGroup: is it older than this program?");
    machine.ip = Some(own_address(options, &machine)?);
    let name = format!("{}-{}", machine.group, machine.ip.map(|ip| ip.to_string()).unwrap_or_default());
    machine.name = name.replace(':', "-");
    Ok(machine)
}

fn own_address(options: &Options, machine: &Machine) -> Result<IpAddr> {
    match (options.ip, machine.ip) {
        (Some(ip), _) => Ok(ip),
        (None, Some(known)) => Ok(known),
        (None, None) => address::own(&machine.server),
    }
}

/// Lets `carrick-proxy` make the key and ask for the certificate, as the user that will use both.
async fn ask(options: &Options, folder: &Folder, user: u32) -> Result<Value> {
    let program = folder.reachable(&carrick_pod::machine::program(&options.place.program()?)?, user)?;
    let mut command = tokio::process::Command::new(program);
    command.arg("join").env_clear().stdin(Stdio::null()).uid(user).gid(user).kill_on_drop(true);
    command.arg("--token-file").arg(folder.path(TOKEN)).arg("--identity-dir").arg(folder.path("identity"));
    if let Some(server) = &options.server {
        command.args(["--ca-address", server]);
    }
    if let Some(fingerprint) = &options.ca_fingerprint {
        command.args(["--ca-fingerprint", fingerprint]);
    }
    if let Some(root) = &options.root_cert {
        // The proxy's user need not be able to read it where it is.
        folder.write("root-cert.pem", read(root)?.as_bytes(), 0o644)?;
        command.arg("--root-file").arg(folder.path("root-cert.pem"));
    }
    let output = command.output().await.context("carrick-proxy join")?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        let told: Vec<&str> = told.lines().map(|line| line.strip_prefix("carrick-proxy: ").unwrap_or(line)).collect();
        bail!("not joined: {}", told.join("; "));
    }
    serde_json::from_slice(&output.stdout).context("carrick-proxy join told something else than JSON")
}

impl Options {
    /// The token, from wherever it is.
    fn the_token(&self) -> Result<String> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(token.clone()),
            (None, Some(path)) if path == Path::new("-") => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("standard input")?;
                Ok(text)
            }
            (None, Some(path)) => read(path),
            (None, None) => bail!("give --token, --token-file or --from; `carrick vm token create` makes a token"),
        }
    }

    /// Takes over what was said now; the rest stays.
    fn settle(&self, machine: &mut Machine) -> Result<()> {
        let captured = &mut machine.captured;
        if let Some(user) = self.proxy_user {
            captured.proxy_id = user;
        }
        if !self.users.is_empty() || !self.groups.is_empty() {
            captured.users = self.users.iter().copied().collect();
            captured.groups = self.groups.iter().copied().collect();
        }
        if !self.except.is_empty() {
            captured.users.clear();
            captured.groups.clear();
            captured.except = self.except.iter().copied().collect();
        }
        captured.all_inbound |= self.all_inbound;
        if !self.leave_inbound_ports.is_empty() {
            captured.exclude_inbound = self.leave_inbound_ports.iter().copied().collect();
        }
        if !self.leave_ports.is_empty() {
            captured.exclude_ports = self.leave_ports.iter().copied().collect();
        }
        if !self.leave_ranges.is_empty() {
            captured.exclude_ranges = self.leave_ranges.iter().cloned().collect();
        }
        captured.names &= !self.no_dns;
        if let Some(engine) = self.engine {
            engine.as_str().clone_into(&mut machine.engine);
        }
        if machine.engine.is_empty() {
            Engine::default().as_str().clone_into(&mut machine.engine);
        }
        machine.environment.extend(self.sidecar_env.iter().cloned());
        machine.labels.extend(self.labels.iter().cloned());
        for (said, kept) in [(&self.network, &mut machine.network), (&self.locality, &mut machine.locality)] {
            if let Some(said) = said {
                kept.clone_from(said);
            }
        }
        if let Some(server) = &self.server {
            machine.server.clone_from(server);
        }
        Ok(())
    }
}
