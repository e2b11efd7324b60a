//! The time between the command's start and its end: signals, deletion, and the order in which a pod goes.
//!
//! Invariant: a pod that is asked to end first leaves its services, then its command is asked, then, after the grace period, killed.

use std::pin::Pin;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use nix::sys::signal::Signal;
use tokio::process::Child;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::files::SidecarPaths;
use super::life::Life;
use super::{Plan, asks_to_end, status};
use crate::injection::{owner, proxy_config};
use crate::options::host_name;
use crate::signals::{Signals, exit_code, to_group};
use crate::state::PodState;
use crate::variables::{self, Facts};

/// How long the endpoints may take to go before the command is asked nevertheless.
const WITHDRAWAL: Duration = Duration::from_secs(2);
/// From the endpoints' going to the last proxy's knowing.
const SPREAD: Duration = Duration::from_millis(300);

/// Stays until the command has ended; its exit code. A gateway has no command: it stays until it is asked to end, and ends with 0.
pub(crate) async fn attend(life: &mut Life, mut app: Option<Child>, signals: &mut Signals) -> i32 {
    let leader = app.as_ref().and_then(Child::id);
    let alone = app.is_none();
    let mut gone: Pin<Box<dyn Future<Output = Option<Duration>> + Send>> =
        Box::pin(status::deleted(life.pods.clone(), life.name.clone(), life.uid.clone()));
    let mut withdrawal: Option<Pin<Box<dyn Future<Output = ()> + Send>>> = None;
    let mut deadline: Option<Instant> = None;
    let mut grace = life.grace;
    loop {
        let leaving = withdrawal.is_some() || deadline.is_some();
        tokio::select! {
            ended = async { match app.as_mut() { Some(app) => app.wait().await, None => std::future::pending().await } } => {
                life.observed.send_modify(|observed| {
                    observed.app.running = false;
                    observed.app.ready = false;
                });
                let code = ended.map_or(1, exit_code);
                life.observed.send_modify(|observed| observed.ended = Some((code, status::now())));
                life.app_ended(code).await;
                return code;
            }
            signal = signals.next() => {
                let ends = asks_to_end(signal) || (alone && signal == Signal::SIGINT);
                if ends && !leaving {
                    withdrawal = Some(withdraw(life));
                } else if alone && ends {
                    return 0;
                } else {
                    to_group(leader, signal);
                }
            }
            left = &mut gone, if !leaving => {
                grace = left.unwrap_or(grace);
                withdrawal = Some(withdraw(life));
            }
            () = async { if let Some(withdrawal) = withdrawal.as_mut() { withdrawal.await } }, if withdrawal.is_some() => {
                if alone {
                    return 0;
                }
                withdrawal = None;
                deadline = Some(Instant::now() + grace);
                to_group(leader, Signal::SIGTERM);
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                to_group(leader, Signal::SIGKILL);
                deadline = Some(Instant::now() + Duration::from_secs(1));
            }
        }
    }
}

/// Marks the pod as going and waits until no slice has it as ready.
fn withdraw(life: &Life) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    life.observed.send_modify(|observed| observed.terminating = true);
    let namespace = life.folder.state.namespace.clone();
    let ip = life.folder.state.ip.map(|ip| ip.to_string()).unwrap_or_default();
    let slices: Api<EndpointSlice> = Api::namespaced(life.client.clone(), &namespace);
    Box::pin(async move {
        let mut served = false;
        let until_gone = async {
            while let Ok(true) = is_served(&slices, &ip).await {
                served = true;
                sleep(Duration::from_millis(25)).await;
            }
        };
        let _ = timeout(WITHDRAWAL, until_gone).await;
        if served {
            sleep(SPREAD).await;
        }
    })
}

async fn is_served(slices: &Api<EndpointSlice>, ip: &str) -> Result<bool, kube::Error> {
    let list = slices.list(&ListParams::default()).await?;
    Ok(list.iter().flat_map(|slice| slice.endpoints.iter()).any(|endpoint| {
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        ready && endpoint.addresses.iter().any(|address| address == ip)
    }))
}

/// Where a pod with a sidecar finds the SPIFFE Workload API, in the folder that Istio keeps for such a socket.
const WORKLOAD_API: &str = "/run/secrets/workload-spiffe-uds/socket";

/// What the command finds in its environment besides what this process has.
pub(crate) fn app_env(plan: &Plan, state: &PodState) -> Vec<(String, String)> {
    let (options, template) = (&plan.options, &plan.template);
    let mut env = vec![
        ("HOSTNAME".to_owned(), state.name.clone()),
        ("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned()),
    ];
    let facts = Facts {
        name: &state.name,
        namespace: &options.namespace,
        uid: &state.uid,
        node: &host_name(),
        service_account: &template.service_account,
        pod_ip: &state.ip.map(|ip| ip.to_string()).unwrap_or_default(),
        host_ip: &options.network.gateway.to_string(),
        labels: &template.labels,
        annotations: &template.annotations,
    };
    if plan.sidecar.is_some() {
        env.push(("SPIFFE_ENDPOINT_SOCKET".to_owned(), format!("unix://{WORKLOAD_API}")));
    }
    variables::resolve(&template.env, &facts, &mut env);
    env
}

/// What the sidecar finds in its environment, and nothing else (names as Istio's where it has them, spec §16.4).
pub(crate) fn sidecar_env(plan: &Plan, paths: &SidecarPaths, state: &PodState) -> Vec<(String, String)> {
    let (options, template) = (&plan.options, &plan.template);
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let ports: Vec<serde_json::Value> = template.ports.iter().map(crate::object::port).collect();
    let mut env: Vec<(String, String)> = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ("POD_NAME", state.name.clone()),
        ("POD_NAMESPACE", options.namespace.clone()),
        ("INSTANCE_IP", state.ip.map(|ip| ip.to_string()).unwrap_or_default()),
        ("HOST_IP", options.network.gateway.to_string()),
        ("SERVICE_ACCOUNT", template.service_account.clone()),
        ("DISCOVERY_ADDRESS", options.ca_address.clone()),
        ("CA_ADDR", options.ca_address.clone()),
        ("TRUST_DOMAIN", options.trust_domain.clone()),
        ("PILOT_CERT_PROVIDER", "istiod".to_owned()),
        ("CA_ROOT_CA", text(&paths.root_cert)),
        ("XDS_ROOT_CA", text(&paths.root_cert)),
        ("POD_LABELS_FILE", text(&paths.labels)),
        ("POD_ANNOTATIONS_FILE", text(&paths.annotations)),
        ("ISTIO_META_CLUSTER_ID", options.cluster_id.clone()),
        ("ISTIO_META_MESH_ID", options.trust_domain.clone()),
        ("ISTIO_META_NODE_NAME", host_name()),
        ("ISTIO_META_WORKLOAD_NAME", template.workload.clone()),
        ("ISTIO_META_OWNER", owner(options, template)),
        ("ISTIO_META_APP_CONTAINERS", if options.gateway { String::new() } else { template.container.clone() }),
        ("ISTIO_META_INTERCEPTION_MODE", crate::injection::interception(template)),
        ("ISTIO_META_DNS_CAPTURE", "true".to_owned()),
        ("ISTIO_META_POD_PORTS", serde_json::Value::from(ports).to_string()),
        ("CARRICK_ENGINE", options.engine.as_str().to_owned()),
        ("CARRICK_TOKEN_FILE", text(&paths.token)),
        ("CARRICK_STATE_DIR", text(&paths.folder)),
        ("CARRICK_WORKLOAD_API_SOCKET", WORKLOAD_API.to_owned()),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    if let Some(envoy) = &paths.envoy {
        env.push(("CARRICK_ENVOY".into(), text(envoy)));
    }
    if let Some(config) = proxy_config(template) {
        env.push(("PROXY_CONFIG".into(), config.to_string()));
    }
    // What a person sets to look closer.
    let looks = ["CARRICK_LOG", "CARRICK_LOG_JSON", "RUST_BACKTRACE"];
    env.extend(looks.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))));
    env.extend(options.sidecar_env.iter().cloned());
    env
}
