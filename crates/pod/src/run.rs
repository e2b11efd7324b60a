//! One process as a pod, from its address to its removal.
//!
//! Invariant: whatever is made is recorded first, so that it can be taken apart whether the run ends well, ends early or is killed. The order
//! on the way up: address and object, namespaces, names, capture, sidecar, command; on the way down: endpoints, command, object, sidecar, rest.

mod attend;
pub(crate) mod console;
mod credentials;
pub(crate) mod files;
mod life;
mod readiness;
pub(crate) mod sidecar;
mod status;
mod volumes;

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::options::{Engine, ManifestRef};
use crate::signals::Signals;
use crate::{PodError, RunOptions, api, injection, network, proxy_config, sweep, template};
use life::Life;

/// What is decided before anything is made.
pub(crate) struct Plan {
    pub(crate) options: RunOptions,
    pub(crate) template: template::Template,
    /// The ReplicaSet that the pod is of, where the API has one.
    pub(crate) set: Option<api::Set>,
    pub(crate) connection: api::Connection,
    pub(crate) sidecar: Option<SidecarPlan>,
}

/// What a pod with a sidecar needs besides.
pub(crate) struct SidecarPlan {
    pub(crate) program: PathBuf,
    pub(crate) envoy: Option<PathBuf>,
    /// `None` for a gateway, which others connect to by its address.
    pub(crate) capture: Option<carrick_capture::sidecar::SidecarCapture>,
}

/// Runs `options.command` as a pod and returns its exit code (128+n after signal n). Signals that reach this process are passed on; `SIGTERM`
/// first takes the pod out of its services.
///
/// # Errors
/// Whatever kept the command from starting, with [`PodError::exit_code`]; once it has started, its exit code is the answer.
pub async fn run(options: RunOptions) -> Result<i32, PodError> {
    require_root("carrick run")?;
    let mut signals = Signals::listen()?;
    let plan = tokio::select! {
        plan = plan(options) => plan?,
        signal = signals.next_stop() => return Err(PodError::Interrupted { signal }),
    };
    tracing::debug!("planned");
    let mut life = Life::allocate(&plan)?;
    let started = tokio::select! {
        started = life.start(&plan) => started,
        signal = signals.next_stop() => Err(PodError::Interrupted { signal }),
    };
    let outcome = match started {
        Ok(app) => Ok(attend::attend(&mut life, app, &mut signals).await),
        Err(error) => Err(error),
    };
    life.end().await;
    outcome
}

async fn plan(options: RunOptions) -> Result<Plan, PodError> {
    let stored = match &options.manifest {
        Some(ManifestRef { path: None, workload: Some(workload) }) => Some(workload.clone()),
        _ => None,
    };
    // What the command line alone has wrong is told before the API is asked.
    let told = if stored.is_none() { Some(template::build(&options)?) } else { None };
    let connection = api::connect(&options.kubeconfig_path()).await?;
    let namespace = api::namespace(&connection, &options.namespace).await?;
    let mut template = match (told, stored) {
        (Some(template), _) => template,
        (None, stored) => {
            let workload = stored.unwrap_or_default();
            template::of_object(&options, api::workload(&connection, &options.namespace, &workload).await?)?
        }
    };
    let set = match template.kind.as_deref() {
        Some("Deployment") => api::newest_set(&connection.client, &options.namespace, &template.workload).await,
        _ => None,
    };
    template.labels.extend(set.iter().map(|set| (api::TEMPLATE_HASH.to_owned(), set.hash.clone())));
    let labels = namespace.metadata.labels.unwrap_or_default();
    let injected = injection::inject(&options, &labels, &mut template)?;
    if injected {
        let found = proxy_config::find(&connection.client, &options.namespace).await;
        let annotation = injection::annotated(&template);
        template.proxy_config = proxy_config::effective(&found, &options.namespace, &template.labels, annotation);
    }
    let sidecar = if injected { Some(sidecar_plan(&options, &template)?) } else { None };
    // What others left behind is no reason not to run.
    if let Err(error) = sweep(&options.data_dir, &options.network, Some(&connection.client)).await {
        tracing::warn!(%error, "dead pods not swept");
    }
    network::Netlink::open()?.ensure_bridge(&options.network).await?;
    network::settings_of_host(&options.network.bridge)?;
    Ok(Plan { options, template, set, connection, sidecar })
}

fn sidecar_plan(options: &RunOptions, template: &template::Template) -> Result<SidecarPlan, PodError> {
    let capture = match options.gateway {
        true => None,
        false => Some(crate::injection::capture(template)?),
    };
    let program = find(&options.proxy_binary)
        .ok_or_else(|| PodError::Request(format!("no sidecar program {}", options.proxy_binary.display())))?;
    let envoy = match (&options.engine, &options.envoy_binary) {
        (Engine::Native, _) => None,
        (Engine::Envoy, Some(envoy)) => {
            Some(find(envoy).ok_or_else(|| PodError::Request(format!("no Envoy at {}", envoy.display())))?)
        }
        (Engine::Envoy, None) => {
            return Err(PodError::Request(
                "the envoy engine needs the envoy binary: set CARRICK_ENVOY or put envoy in PATH".into(),
            ));
        }
    };
    Ok(SidecarPlan { program, envoy, capture })
}

/// A program by its path, or by its name along `PATH`.
pub(crate) fn find(program: &Path) -> Option<PathBuf> {
    let candidates: Vec<PathBuf> = if program.components().count() > 1 {
        vec![program.to_owned()]
    } else {
        std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).collect()
    };
    candidates.into_iter().find_map(|path| std::fs::canonicalize(path).ok().filter(|path| path.is_file()))
}

pub(crate) fn require_root(what: &'static str) -> Result<(), PodError> {
    if nix::unistd::Uid::effective().is_root() { Ok(()) } else { Err(PodError::NotRoot { what }) }
}

/// Whether a signal asks the pod as a whole to go.
pub(crate) fn asks_to_end(signal: Signal) -> bool {
    signal == Signal::SIGTERM
}
