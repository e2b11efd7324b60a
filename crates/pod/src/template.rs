//! The pod to be: options of the caller over the template of a manifest.
//!
//! Invariant: pure once the manifest is read; what the caller says wins, what neither says is Kubernetes' default. Images are named as the
//! template does, and not run; volumes and further containers of a template are not taken over.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, PodTemplateSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::PodError;
use crate::options::{GATEWAY_LABEL, ManifestRef, Port, RunOptions};
use crate::variables::{self, Variable};

/// The proxy's container: a workload's second, a gateway's only one.
pub(crate) const PROXY: &str = carrick_inject::CONTAINER_NAME;

/// What the pod will be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Template {
    /// Pod name, or what it begins with.
    pub(crate) base_name: String,
    /// Whether `base_name` is the whole name.
    pub(crate) exact_name: bool,
    /// The app container's name.
    pub(crate) container: String,
    /// The image that its template names.
    pub(crate) image: Option<String>,
    /// What it runs unless the caller says something else.
    pub(crate) command: Vec<OsString>,
    /// What is typed into it comes from `kubectl attach`, not from the runner.
    pub(crate) stdin: bool,
    /// Its input ends with the first who attached.
    pub(crate) stdin_once: bool,
    /// It has a terminal of its own.
    pub(crate) tty: bool,
    /// Kind of the workload in the manifest.
    pub(crate) kind: Option<String>,
    /// Name of the workload that the pod is of.
    pub(crate) workload: String,
    pub(crate) service_account: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) ports: Vec<Port>,
    /// Only what the manifest and the caller set.
    pub(crate) env: Vec<Variable>,
    pub(crate) readiness: Option<ReadinessProbe>,
    pub(crate) grace: Duration,
    pub(crate) host_name: Option<String>,
    pub(crate) subdomain: Option<String>,
    pub(crate) host_network: bool,
    /// What the proxy starts with, by the mesh and its objects; `None` leaves it to the annotation.
    pub(crate) proxy_config: Option<serde_json::Value>,
}

/// How the app says that it is ready.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ReadinessProbe {
    pub(crate) port: u16,
    /// HTTP path; `None` for a plain connection.
    pub(crate) path: Option<String>,
    pub(crate) initial_delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) failures: u32,
}

/// Builds it; reads the manifest's file if there is one.
pub(crate) fn build(options: &RunOptions) -> Result<Template, PodError> {
    let (kind, workload, spec) = match &options.manifest {
        Some(ManifestRef { path: Some(path), workload }) => read(path, workload.as_deref())?,
        _ => (None, None, PodTemplateSpec::default()),
    };
    from_template(options, kind, workload, spec)
}

/// Builds it of a workload that the API has.
pub(crate) fn of_object(options: &RunOptions, object: Value) -> Result<Template, PodError> {
    let (kind, workload, spec) = choose(&[object], None).map_err(PodError::Request)?;
    from_template(options, kind, workload, spec)
}

fn from_template(
    options: &RunOptions,
    kind: Option<String>,
    workload: Option<String>,
    template: PodTemplateSpec,
) -> Result<Template, PodError> {
    let metadata = template.metadata.unwrap_or_default();
    let spec = template.spec.unwrap_or_default();
    let container = spec.containers.iter().find(|container| (container.name == PROXY) == options.gateway).cloned();
    let command = if options.command.is_empty() { declared(container.as_ref()) } else { options.command.clone() };
    let program = match options.gateway {
        true if !options.command.is_empty() => {
            return Err(PodError::Request("a gateway runs no command of its own".into()));
        }
        true => Some(options.labels.get(GATEWAY_LABEL).cloned().unwrap_or_else(|| "gateway".to_owned())),
        false => command.first().map(|program| {
            std::path::Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned()
        }),
    };
    let program = program.ok_or_else(|| {
        PodError::Request("nothing to run: give a command after --, since the manifest names only an image".into())
    })?;
    let fallback = label(&program);
    // A pod has its own name; pods of workloads get one each.
    let exact = options.name.clone().or_else(|| workload.clone().filter(|_| kind.as_deref() == Some("Pod")));
    let base_name = exact.clone().or_else(|| workload.clone()).unwrap_or_else(|| fallback.clone());
    if !is_name(&base_name) {
        return Err(PodError::Request(format!("{base_name:?} is no pod name: lower case letters, digits, - and .")));
    }
    let ports = if options.ports.is_empty() { container_ports(container.as_ref())? } else { options.ports.clone() };
    let env = variables::of(container.as_ref(), &options.env).map_err(PodError::Request)?;
    let grace = spec.termination_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let account = options.service_account.clone().or(spec.service_account_name).or(spec.service_account);
    let mut template = Template {
        container: container
            .as_ref()
            .map_or_else(|| workload.clone().unwrap_or_else(|| base_name.clone()), |c| c.name.clone()),
        image: container.as_ref().and_then(|c| c.image.clone()).filter(|image| !image.is_empty()),
        command: if options.gateway { Vec::new() } else { command },
        stdin: container.as_ref().and_then(|c| c.stdin).unwrap_or(false),
        stdin_once: container.as_ref().and_then(|c| c.stdin_once).unwrap_or(false),
        tty: container.as_ref().and_then(|c| c.tty).unwrap_or(false),
        workload: workload.unwrap_or_else(|| base_name.clone()),
        exact_name: exact.is_some(),
        kind,
        base_name,
        service_account: account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into()),
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        readiness: None,
        ports,
        env,
        grace: options.grace.or(grace.map(Duration::from_secs)).unwrap_or(Duration::from_secs(30)),
        host_name: spec.hostname,
        subdomain: spec.subdomain,
        host_network: spec.host_network.unwrap_or(false),
        proxy_config: None,
    };
    template.container = if options.gateway { PROXY.to_owned() } else { label(&template.container) };
    template.labels.extend(options.labels.clone());
    template.annotations.extend(options.annotations.clone());
    // The proxy of a gateway is looked at as every proxy is.
    template.readiness = container
        .filter(|_| !options.gateway)
        .and_then(|c| c.readiness_probe)
        .and_then(|probe| readiness(&probe, &template.ports));
    Ok(template)
}

/// What a container says that it runs: its command, or what it would tell its image's.
fn declared(container: Option<&Container>) -> Vec<OsString> {
    let words = container.into_iter().flat_map(|c| c.command.iter().flatten().chain(c.args.iter().flatten()));
    words.map(OsString::from).collect()
}

/// Kind, name and pod template of the workload.
fn read(path: &Path, workload: Option<&str>) -> Result<(Option<String>, Option<String>, PodTemplateSpec), PodError> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(PodError::io(format!("read {shown}")))?;
    let objects = carrick_api::parse::objects(&text).map_err(|error| PodError::Request(format!("{shown}: {error}")))?;
    choose(&objects, workload).map_err(|reason| PodError::Request(format!("{shown}: {reason}")))
}

/// Kind (in small letters, in the singular) and name of what a caller calls a workload.
pub(crate) fn reference(wanted: &str) -> (String, &str) {
    let (kind, name) = wanted.split_once('/').unwrap_or(("deployment", wanted));
    let kind = match kind.to_lowercase().as_str() {
        "deploy" | "deployments" | "deployment.apps" => "deployment".to_owned(),
        "sts" | "statefulsets" => "statefulset".to_owned(),
        "ds" | "daemonsets" => "daemonset".to_owned(),
        "po" | "pods" => "pod".to_owned(),
        other => other.to_owned(),
    };
    (kind, name)
}

fn choose(
    objects: &[Value],
    wanted: Option<&str>,
) -> Result<(Option<String>, Option<String>, PodTemplateSpec), String> {
    let workloads: Vec<(&str, &str, Value)> = objects
        .iter()
        .filter_map(|object| {
            let kind = object.get("kind")?.as_str()?;
            let name = object.pointer("/metadata/name")?.as_str()?;
            let template = match kind {
                "Pod" => object.clone(),
                "CronJob" => object.pointer("/spec/jobTemplate/spec/template")?.clone(),
                _ => object.pointer("/spec/template")?.clone(),
            };
            Some((kind, name, template))
        })
        .collect();
    let names = || {
        workloads.iter().map(|(kind, name, _)| format!("{}/{name}", kind.to_lowercase())).collect::<Vec<_>>().join(", ")
    };
    let found = match wanted {
        Some(wanted) => {
            let (kind, name) = reference(wanted);
            workloads.iter().find(|(k, n, _)| k.to_lowercase() == kind && *n == name).ok_or_else(|| {
                let known = names();
                format!(
                    "no {kind}/{name} in it{}",
                    if known.is_empty() { String::new() } else { format!("; it has {known}") }
                )
            })?
        }
        None => match workloads.as_slice() {
            [only] => only,
            [] => return Err("no workload in it".into()),
            _ => return Err(format!("say which workload: it has {}", names())),
        },
    };
    let (kind, name, template) = found;
    let spec = serde_json::from_value(template.clone()).map_err(|error| format!("{kind}/{name}: {error}"))?;
    Ok((Some((*kind).to_owned()), Some((*name).to_owned()), spec))
}

fn container_ports(container: Option<&Container>) -> Result<Vec<Port>, PodError> {
    let ports = container.and_then(|container| container.ports.clone()).unwrap_or_default();
    ports
        .into_iter()
        .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
        .map(|port| match u16::try_from(port.container_port) {
            Ok(number) if number != 0 => Ok(Port { name: port.name, number }),
            _ => Err(PodError::Request(format!("containerPort {} is not from 1 to 65535", port.container_port))),
        })
        .collect()
}

fn readiness(probe: &Probe, ports: &[Port]) -> Option<ReadinessProbe> {
    let number = |port: &IntOrString| match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => {
            ports.iter().find(|port| port.name.as_deref() == Some(name)).map(|port| port.number).or(name.parse().ok())
        }
    };
    let (port, path) = match (&probe.http_get, &probe.tcp_socket) {
        (Some(http), _) if http.scheme.as_deref().unwrap_or("HTTP") == "HTTP" => {
            (number(&http.port)?, Some(http.path.clone().unwrap_or_else(|| "/".into())))
        }
        // An HTTPS probe checks no certificate; that the port accepts is what is left of it here.
        (Some(http), _) => (number(&http.port)?, None),
        (None, Some(tcp)) => (number(&tcp.port)?, None),
        (None, None) => return None,
    };
    let seconds = |value: Option<i32>, default: u64| {
        Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).filter(|v| *v > 0).unwrap_or(default))
    };
    Some(ReadinessProbe {
        port,
        path,
        initial_delay: seconds(probe.initial_delay_seconds, 0),
        period: seconds(probe.period_seconds, 10),
        timeout: seconds(probe.timeout_seconds, 1),
        failures: probe.failure_threshold.and_then(|value| u32::try_from(value).ok()).filter(|v| *v > 0).unwrap_or(3),
    })
}

/// A DNS label made of any word.
fn label(word: &str) -> String {
    let text: String =
        word.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    let text = text.trim_matches('-');
    if text.is_empty() { "app".into() } else { text.to_owned() }
}

fn is_name(name: &str) -> bool {
    name.len() <= 200
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: kyc}
spec: {ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: kyc}
spec:
  selector: {matchLabels: {app: kyc}}
  template:
    metadata:
      labels: {app: kyc, version: v1}
      annotations: {sidecar.istio.io/inject: "true"}
    spec:
      serviceAccountName: kyc-sa
      terminationGracePeriodSeconds: 5
      containers:
      - name: main
        image: x
        ports: [{containerPort: 8080, name: http}, {containerPort: 53, protocol: UDP}]
        env: [{name: A, value: "1"}, {name: B, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 2}
"#;

    fn options() -> RunOptions {
        RunOptions::new("basic", vec!["/usr/bin/python3".into(), "-m".into()])
    }

    fn template(options: &RunOptions) -> Template {
        let objects = carrick_api::parse::objects(MANIFEST.as_bytes()).unwrap();
        let (kind, name, spec) = choose(&objects, None).unwrap();
        from_template(options, kind, name, spec).unwrap()
    }

    #[test]
    fn a_deployment_supplies_its_pod_template() {
        let template = template(&options());
        assert_eq!((template.base_name.as_str(), template.exact_name), ("kyc", false));
        assert_eq!((template.container.as_str(), template.service_account.as_str()), ("main", "kyc-sa"));
        assert_eq!(template.labels["version"], "v1");
        assert_eq!(template.ports, [Port { name: Some("http".into()), number: 8080 }]);
        let names: Vec<&str> = template.env.iter().map(|variable| variable.name.as_str()).collect();
        assert_eq!(names, ["A", "B"]);
        assert_eq!(template.grace, Duration::from_secs(5));
        let probe = template.readiness.unwrap();
        assert_eq!((probe.port, probe.path.as_deref(), probe.period), (8080, Some("/ready"), Duration::from_secs(2)));
    }

    #[test]
    fn the_caller_wins() {
        let options = RunOptions {
            name: Some("mine".into()),
            service_account: Some("other".into()),
            labels: BTreeMap::from([("version".into(), "v2".into())]),
            ports: vec!["9000".parse().unwrap()],
            ..options()
        };
        let template = template(&options);
        assert_eq!((template.base_name.as_str(), template.exact_name), ("mine", true));
        assert_eq!(template.workload, "kyc");
        assert_eq!(template.service_account, "other");
        assert_eq!((template.labels["app"].as_str(), template.labels["version"].as_str()), ("kyc", "v2"));
        assert_eq!(template.ports[0].number, 9000);
        assert_eq!(template.readiness, None, "the probe's port is not there any more");
    }

    #[test]
    fn without_a_manifest_the_program_gives_the_name() {
        let template = build(&options()).unwrap();
        assert_eq!((template.base_name.as_str(), template.container.as_str()), ("python3", "python3"));
        assert_eq!(template.service_account, "default");
    }

    #[test]
    fn which_workload_is_not_guessed() {
        let objects = carrick_api::parse::objects(MANIFEST.as_bytes()).unwrap();
        assert!(choose(&objects, Some("deployment/kyc")).is_ok());
        assert!(choose(&objects, Some("deploy/kyc")).is_ok());
        assert_eq!(
            choose(&objects, Some("deployment/nope")).unwrap_err(),
            "no deployment/nope in it; it has deployment/kyc"
        );
        let twice: Vec<Value> = objects.iter().chain(&objects).cloned().collect();
        assert!(choose(&twice, None).unwrap_err().starts_with("say which workload"));
        assert_eq!(choose(&objects[..1], None).unwrap_err(), "no workload in it");
    }
}
