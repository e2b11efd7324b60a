//! The Pod object and its status, from what the runner observes.
//!
//! Invariant: pure, and honest: a container counts as ready only while its process runs and its check holds, and a pod that is going down is
//! not ready.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::options::{Port, RunOptions};
use crate::template::{PROXY, Template};

/// One container as the runner sees it. Times are RFC 3339.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct ContainerView {
    pub(crate) started_at: Option<String>,
    pub(crate) running: bool,
    pub(crate) ready: bool,
    pub(crate) restarts: u32,
}

/// The pod as the runner sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Observed {
    pub(crate) ip: String,
    pub(crate) host_ip: String,
    pub(crate) app_container: String,
    pub(crate) created_at: String,
    pub(crate) app: ContainerView,
    pub(crate) proxy: Option<ContainerView>,
    pub(crate) terminating: bool,
    /// How the command has ended: its exit code, and when.
    pub(crate) ended: Option<(i32, String)>,
}

impl Observed {
    /// Whether traffic may be sent to it.
    pub(crate) fn ready(&self) -> bool {
        !self.terminating && self.app.ready && self.proxy.as_ref().is_none_or(|proxy| proxy.ready)
    }
}

/// The object to create.
pub(crate) fn pod(
    options: &RunOptions,
    template: &Template,
    name: &str,
    node: &str,
    injected: bool,
) -> Result<Pod, serde_json::Error> {
    let command: Vec<String> = template.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let ports: Vec<Value> = template.ports.iter().map(port).collect();
    let env = crate::variables::object(&template.env);
    let mut app = json!({
        "name": template.container,
        "image": template.image.clone().unwrap_or_else(|| format!("localhost/{}", template.container)),
        "command": command,
    });
    for (field, set) in [("stdin", template.stdin), ("stdinOnce", template.stdin_once), ("tty", template.tty)] {
        if set {
            app[field] = true.into();
        }
    }
    if !ports.is_empty() {
        app["ports"] = ports.into();
    }
    if !env.is_empty() {
        app["env"] = env.into();
    }
    let mut containers = if options.gateway { Vec::new() } else { vec![app] };
    if injected {
        containers.push(crate::injection::container(options, template));
    }
    let mut spec = json!({
        "serviceAccountName": template.service_account,
        "nodeName": node,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": template.grace.as_secs(),
        "containers": containers,
    });
    for (key, value) in [("hostname", &template.host_name), ("subdomain", &template.subdomain)] {
        if let Some(value) = value {
            spec[key] = json!(value);
        }
    }
    let mut metadata = json!({"name": name, "namespace": options.namespace});
    for (key, map) in [("labels", &template.labels), ("annotations", &template.annotations)] {
        if !map.is_empty() {
            metadata[key] = json!(map);
        }
    }
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
}

/// A container port.
pub(crate) fn port(port: &Port) -> Value {
    match &port.name {
        Some(name) => json!({"name": name, "containerPort": port.number, "protocol": "TCP"}),
        None => json!({"containerPort": port.number, "protocol": "TCP"}),
    }
}

/// When each condition last changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transitions(BTreeMap<&'static str, (bool, String)>);

impl Transitions {
    fn condition(&mut self, kind: &'static str, holds: bool, now: &str) -> Value {
        let known = self.0.entry(kind).or_insert_with(|| (holds, now.to_owned()));
        if known.0 != holds {
            *known = (holds, now.to_owned());
        }
        json!({"type": kind, "status": if holds { "True" } else { "False" }, "lastTransitionTime": known.1})
    }
}

/// The status as a merge patch. `now` stamps the conditions that changed.
pub(crate) fn status(observed: &Observed, transitions: &mut Transitions, now: &str) -> Value {
    let phase = match &observed.ended {
        Some((0, _)) => "Succeeded",
        Some(_) => "Failed",
        None if observed.app.running => "Running",
        None => "Pending",
    };
    let containers_ready = observed.app.ready && observed.proxy.as_ref().is_none_or(|proxy| proxy.ready);
    let mut containers = vec![container(&observed.app_container, &observed.app, observed)];
    if let Some(proxy) = &observed.proxy {
        containers.push(container(PROXY, proxy, observed));
    }
    json!({"status": {
        "phase": phase,
        "hostIP": observed.host_ip,
        "podIP": observed.ip,
        "podIPs": [{"ip": observed.ip}],
        "startTime": observed.created_at,
        "qosClass": "BestEffort",
        "conditions": [
            transitions.condition("PodScheduled", true, now),
            transitions.condition("Initialized", true, now),
            transitions.condition("ContainersReady", containers_ready, now),
            transitions.condition("Ready", observed.ready(), now),
        ],
        "containerStatuses": containers,
    }})
}

fn container(name: &str, view: &ContainerView, observed: &Observed) -> Value {
    let ended = observed.ended.as_ref().filter(|_| !view.running);
    let state = match (&view.started_at, view.running) {
        (started, _) if let Some((code, at)) = ended => json!({"terminated": {
            "exitCode": code, "reason": if *code == 0 { "Completed" } else { "Error" },
            "startedAt": started, "finishedAt": at, "containerID": format!("carrick://{}/{name}", observed.ip),
        }}),
        (Some(at), true) => json!({"running": {"startedAt": at}}),
        (Some(_), false) => json!({"waiting": {"reason": "CrashLoopBackOff"}}),
        (None, _) => json!({"waiting": {"reason": "PodInitializing"}}),
    };
    json!({
        "name": name,
        "image": format!("localhost/{}", if name == PROXY { "carrick-proxy" } else { &observed.app_container }),
        "imageID": "",
        "containerID": format!("carrick://{}/{name}", observed.ip),
        "ready": view.ready,
        "started": view.running,
        "restartCount": view.restarts,
        "state": state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(app_ready: bool, proxy: Option<bool>) -> Observed {
        let view = |ready| ContainerView { started_at: Some("t0".into()), running: true, ready, restarts: 0 };
        Observed { app_container: "app".into(), app: view(app_ready), proxy: proxy.map(view), ..Observed::default() }
    }

    fn ready(observed: &Observed) -> String {
        let status = status(observed, &mut Transitions::default(), "now");
        let conditions = status["status"]["conditions"].as_array().unwrap();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap();
        ready["status"].as_str().unwrap().to_owned()
    }

    #[test]
    fn ready_means_every_container() {
        assert_eq!(ready(&observed(true, None)), "True");
        assert_eq!(ready(&observed(true, Some(true))), "True");
        assert_eq!(ready(&observed(true, Some(false))), "False");
        assert_eq!(ready(&observed(false, Some(true))), "False");
        assert_eq!(ready(&Observed { terminating: true, ..observed(true, Some(true)) }), "False");
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let mut transitions = Transitions::default();
        let mut at = |ready, now| status(&observed(ready, None), &mut transitions, now)["status"]["conditions"].clone();
        at(false, "t1");
        let times = |conditions: Value| {
            conditions.as_array().unwrap().iter().map(|c| c["lastTransitionTime"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(times(at(true, "t2")), ["t1", "t1", "t2", "t2"]);
        assert_eq!(times(at(true, "t3")), ["t1", "t1", "t2", "t2"]);
    }

    #[test]
    fn a_pod_without_a_running_app_is_pending() {
        let mut pending = observed(false, Some(true));
        pending.app.running = false;
        assert_eq!(status(&pending, &mut Transitions::default(), "now")["status"]["phase"], "Pending");
        assert_eq!(status(&observed(false, None), &mut Transitions::default(), "now")["status"]["phase"], "Running");
    }

    #[test]
    fn a_gateway_is_nothing_but_the_proxy() {
        let mut options = RunOptions::new("edge", Vec::new());
        assert!(crate::template::build(&options).is_err());
        options.gateway = true;
        options.name = Some("ingress".into());
        options.ports = vec!["https=443".parse().unwrap()];
        let mut template = crate::template::build(&options).unwrap();
        assert!(crate::injection::inject(&options, &BTreeMap::new(), &mut template).unwrap());
        assert!(!template.labels.contains_key("security.istio.io/tlsMode"));
        let pod = pod(&options, &template, "ingress", "node", true).unwrap();
        let containers = pod.spec.unwrap().containers;
        let [only] = containers.as_slice() else { panic!("{containers:?}") };
        assert_eq!(only.name, PROXY);
        assert_eq!(only.args.as_ref().unwrap()[1], "router");
        assert_eq!(only.ports.as_ref().unwrap()[0].container_port, 443);
    }

    #[test]
    fn an_injected_pod_has_two_containers() {
        let options = RunOptions::new("basic", vec!["server".into()]);
        let template = crate::template::build(&options).unwrap();
        let pod = pod(&options, &template, "server-x", "node", true).unwrap();
        let names: Vec<String> = pod.spec.unwrap().containers.into_iter().map(|container| container.name).collect();
        assert_eq!(names, ["server", PROXY]);
    }
}
