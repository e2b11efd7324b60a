//! A pod as a row: the one word that tells what its containers are doing.
//!
//! Invariant: the same decisions as Kubernetes' printer, in the same order, so that `kubectl get pods` reads as usual.

use serde_json::Value;

use super::{NONE, age, items, name, or_none, since, text};
use crate::timestamp::Timestamp;

pub(in crate::kinds) fn pod(object: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(object);
    let restarts = match summary.last_restart {
        Some(time) if summary.restarts > 0 => format!("{} ({} ago)", summary.restarts, since(&time.to_string(), now)),
        _ => summary.restarts.to_string(),
    };
    let ip = match items(object, "/status/podIPs").first() {
        Some(first) => text(first, "/ip"),
        None => text(object, "/status/podIP"),
    };
    vec![
        name(object),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(object, now),
        or_none(ip),
        or_none(text(object, "/spec/nodeName")),
        or_none(text(object, "/status/nominatedNodeName")),
        readiness_gates(object),
    ]
}

fn readiness_gates(object: &Value) -> Value {
    let gates = items(object, "/spec/readinessGates");
    if gates.is_empty() {
        return NONE.into();
    }
    let met = gates.iter().filter(|gate| condition(object, text(gate, "/conditionType")) == "True").count();
    format!("{met}/{}", gates.len()).into()
}

fn condition<'a>(object: &'a Value, type_: &str) -> &'a str {
    let found = items(object, "/status/conditions").iter().find(|c| text(c, "/type") == type_);
    found.map(|c| text(c, "/status")).unwrap_or_default()
}

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: u64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(object: &Value) -> Self {
        let init: Vec<&Value> = items(object, "/spec/initContainers").iter().filter(|c| is_restartable(c)).collect();
        let phase = text(object, "/status/phase");
        let reason = text(object, "/status/reason");
        let mut this = Self {
            ready: 0,
            total: items(object, "/spec/containers").len() + init.len(),
            reason: if reason.is_empty() { phase.to_owned() } else { reason.to_owned() },
            restarts: 0,
            last_restart: None,
        };
        let scheduled = items(object, "/status/conditions").iter().find(|c| text(c, "/type") == "PodScheduled");
        if scheduled.is_some_and(|c| text(c, "/reason") == "SchedulingGated") {
            this.reason = "SchedulingGated".to_owned();
        }
        let initializing = this.init_containers(object);
        if !initializing || condition(object, "Initialized") == "True" {
            this.app_containers(object);
        }
        if !text(object, "/metadata/deletionTimestamp").is_empty() {
            if reason == "NodeLost" {
                this.reason = "Unknown".to_owned();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                this.reason = "Terminating".to_owned();
            }
        }
        this
    }

    /// Looks at the init containers; true while one of them has not done its part.
    fn init_containers(&mut self, object: &Value) -> bool {
        let specs = items(object, "/spec/initContainers");
        let restartable = |name: &str| specs.iter().any(|c| text(c, "/name") == name && is_restartable(c));
        for (index, status) in items(object, "/status/initContainerStatuses").iter().enumerate() {
            self.count_restarts(status);
            let restartable = restartable(text(status, "/name"));
            if restartable && flag(status, "/ready") {
                self.ready += 1;
            }
            let terminated = status.pointer("/state/terminated");
            let exit_code = terminated.and_then(|t| t.get("exitCode")).and_then(Value::as_i64);
            if exit_code == Some(0) || (restartable && flag(status, "/started")) {
                continue;
            }
            self.reason = match (terminated, text(status, "/state/waiting/reason")) {
                (Some(terminated), _) => format!("Init:{}", ended(terminated)),
                (None, waiting) if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                _ => format!("Init:{index}/{}", specs.len()),
            };
            return true;
        }
        false
    }

    fn app_containers(&mut self, object: &Value) {
        // Restarts of sidecars stay in the sum, those of finished init containers do not.
        self.restarts = 0;
        self.last_restart = None;
        let specs = items(object, "/spec/initContainers");
        for status in items(object, "/status/initContainerStatuses") {
            if specs.iter().any(|c| text(c, "/name") == text(status, "/name") && is_restartable(c)) {
                self.count_restarts(status);
            }
        }
        let mut running = false;
        for status in items(object, "/status/containerStatuses").iter().rev() {
            self.count_restarts(status);
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(terminated) = status.pointer("/state/terminated") {
                self.reason = ended(terminated);
            } else if flag(status, "/ready") && status.pointer("/state/running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        // One container has ended while another runs: the pod is neither completed nor broken.
        if self.reason == "Completed" && running {
            self.reason = if condition(object, "Ready") == "True" { "Running" } else { "NotReady" }.to_owned();
        }
    }

    fn count_restarts(&mut self, status: &Value) {
        self.restarts += status.get("restartCount").and_then(Value::as_u64).unwrap_or(0);
        let finished = Timestamp::parse(text(status, "/lastState/terminated/finishedAt"));
        self.last_restart = self.last_restart.max(finished);
    }
}

fn is_restartable(container: &Value) -> bool {
    text(container, "/restartPolicy") == "Always"
}

fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or(false)
}

/// Why a container ended, in a word.
fn ended(terminated: &Value) -> String {
    let reason = text(terminated, "/reason");
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match terminated.get("signal").and_then(Value::as_i64) {
        Some(signal) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", terminated.get("exitCode").and_then(Value::as_i64).unwrap_or(0)),
    }
}
