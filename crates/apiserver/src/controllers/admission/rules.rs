//! What is wrong by meaning in objects that people write by hand, field by field.
//!
//! Invariant: a field that is absent breaks no rule but `Needed`; a value of a wrong type was told before and breaks none here. Words and
//! order are Kubernetes'. What it leaves to others: rules that compare fields (`kept`, `workload`, `pod`).

use carrick_api::quantity::Quantity;
use serde_json::{Value, json};

use super::is_dns_label;
use crate::error::Cause;

/// What a field must be.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// There, with what else is said of it.
    Needed(&'static str),
    /// A number of at least this.
    AtLeast(i64),
    /// Above nothing.
    Above0,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A TCP or UDP port.
    Port,
    /// A DNS label.
    Label,
    /// A DNS subdomain.
    Subdomain,
    /// An address; this machine's own, too, since servers on it may be endpoints here.
    Address,
    /// A network.
    Network,
    /// A quantity above nothing.
    Amount,
    /// A whole number, or a percentage.
    Share,
}

use Rule::{Above0, Address, Amount, AtLeast, Label, Needed, Network, OneOf, Port, Share, Subdomain};

const PROTOCOLS: Rule = OneOf(&["SCTP", "TCP", "UDP"]);
const MODES: Rule = OneOf(&["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]);

/// Fields by resource; `[]` stands for every item of a list.
const TABLE: &[(&str, &[(&str, Rule)])] = &[
    (
        "deployments.apps",
        &[
            ("spec.replicas", AtLeast(0)),
            ("spec.minReadySeconds", AtLeast(0)),
            ("spec.revisionHistoryLimit", AtLeast(0)),
            ("spec.progressDeadlineSeconds", AtLeast(0)),
        ],
    ),
    ("replicasets.apps", &[("spec.replicas", AtLeast(0)), ("spec.minReadySeconds", AtLeast(0))]),
    (
        "statefulsets.apps",
        &[
            ("spec.replicas", AtLeast(0)),
            ("spec.minReadySeconds", AtLeast(0)),
            ("spec.volumeClaimTemplates[].spec.accessModes", Needed("at least 1 access mode is required")),
            ("spec.volumeClaimTemplates[].spec.accessModes[]", MODES),
        ],
    ),
    ("daemonsets.apps", &[("spec.minReadySeconds", AtLeast(0)), ("spec.revisionHistoryLimit", AtLeast(0))]),
    (
        "jobs.batch",
        &[
            ("spec.parallelism", AtLeast(0)),
            ("spec.completions", AtLeast(0)),
            ("spec.activeDeadlineSeconds", AtLeast(0)),
            ("spec.backoffLimit", AtLeast(0)),
            ("spec.ttlSecondsAfterFinished", AtLeast(0)),
            ("spec.completionMode", OneOf(&["NonIndexed", "Indexed"])),
        ],
    ),
    (
        "cronjobs.batch",
        &[
            ("spec.startingDeadlineSeconds", AtLeast(0)),
            ("spec.concurrencyPolicy", OneOf(&["Allow", "Forbid", "Replace"])),
            ("spec.successfulJobsHistoryLimit", AtLeast(0)),
            ("spec.failedJobsHistoryLimit", AtLeast(0)),
        ],
    ),
    (
        "poddisruptionbudgets.policy",
        &[
            ("spec.minAvailable", Share),
            ("spec.maxUnavailable", Share),
            ("spec.unhealthyPodEvictionPolicy", OneOf(&["AlwaysAllow", "IfHealthyBudget"])),
        ],
    ),
    (
        "horizontalpodautoscalers.autoscaling",
        &[
            ("spec.minReplicas", AtLeast(1)),
            ("spec.scaleTargetRef.kind", Needed("")),
            ("spec.scaleTargetRef.name", Needed("")),
            ("spec.metrics[].type", OneOf(&["ContainerResource", "External", "Object", "Pods", "Resource"])),
        ],
    ),
    (
        "persistentvolumeclaims",
        &[
            ("spec.accessModes", Needed("at least 1 access mode is required")),
            ("spec.accessModes[]", MODES),
            ("spec.resources.requests.storage", Amount),
            ("spec.storageClassName", Subdomain),
            ("spec.volumeMode", OneOf(&["Block", "Filesystem"])),
        ],
    ),
    (
        "storageclasses.storage.k8s.io",
        &[
            ("provisioner", Needed("")),
            ("reclaimPolicy", OneOf(&["Delete", "Retain"])),
            ("volumeBindingMode", OneOf(&["Immediate", "WaitForFirstConsumer"])),
        ],
    ),
    (
        "endpoints",
        &[
            ("subsets[].addresses[].ip", Address),
            ("subsets[].notReadyAddresses[].ip", Address),
            ("subsets[].ports[].port", Port),
            ("subsets[].ports[].protocol", PROTOCOLS),
        ],
    ),
    (
        "endpointslices.discovery.k8s.io",
        &[
            ("addressType", OneOf(&["FQDN", "IPv4", "IPv6"])),
            ("ports[].name", Label),
            ("ports[].port", Port),
            ("ports[].protocol", PROTOCOLS),
            ("endpoints[].addresses", Needed("must contain at least 1 address")),
            ("endpoints[].hostname", Label),
        ],
    ),
    ("leases.coordination.k8s.io", &[("spec.leaseDurationSeconds", Above0), ("spec.leaseTransitions", AtLeast(0))]),
    ("priorityclasses.scheduling.k8s.io", &[("preemptionPolicy", OneOf(&["PreemptLowerPriority", "Never"]))]),
    ("runtimeclasses.node.k8s.io", &[("handler", Label)]),
    ("nodes", &[("spec.podCIDRs[]", Network)]),
    (
        "networkpolicies.networking.k8s.io",
        &[
            ("spec.policyTypes[]", OneOf(&["Egress", "Ingress"])),
            ("spec.ingress[].ports[].protocol", PROTOCOLS),
            ("spec.egress[].ports[].protocol", PROTOCOLS),
            ("spec.ingress[].from[].ipBlock.cidr", Network),
            ("spec.egress[].to[].ipBlock.cidr", Network),
        ],
    ),
    ("services", &[("spec.externalIPs[]", Address)]),
];

/// What of an object breaks the rules of its resource.
pub(super) fn broken(resource: &str, object: &Value) -> Vec<Cause> {
    let rules = TABLE.iter().find(|(name, _)| *name == resource).map_or(&[][..], |(_, rules)| rules);
    rules.iter().flat_map(|(path, rule)| held(object, path, *rule)).collect()
}

/// What is wrong with the fields at a path.
pub(super) fn held(object: &Value, path: &str, rule: Rule) -> Vec<Cause> {
    let mut found = Vec::new();
    collect(Some(object), path, String::new(), &mut found);
    found.into_iter().filter_map(|(field, value)| judge(field, value, rule)).collect()
}

fn collect<'a>(at: Option<&'a Value>, path: &str, field: String, found: &mut Vec<(String, Option<&'a Value>)>) {
    if path.is_empty() {
        found.push((field, at.filter(|v| !v.is_null())));
        return;
    }
    if let Some(rest) = path.strip_prefix("[]") {
        let rest = rest.strip_prefix('.').unwrap_or(rest);
        for (index, item) in at.and_then(Value::as_array).into_iter().flatten().enumerate() {
            collect(Some(item), rest, format!("{field}[{index}]"), found);
        }
        return;
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    let (name, rest) = path.split_at(end);
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    let joined = if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
    collect(at.and_then(|v| v.get(name)), rest, joined, found);
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";

fn judge(field: String, value: Option<&Value>, rule: Rule) -> Option<Cause> {
    if let Needed(why) = rule {
        let empty = value.is_none_or(|v| v.as_str() == Some("") || v.as_array().is_some_and(Vec::is_empty));
        return empty.then(|| Cause::required(field, why));
    }
    let value = value?;
    let text = value.as_str().filter(|t| !t.is_empty());
    let why = match rule {
        Needed(_) => return None,
        AtLeast(bound) => {
            value.as_i64().filter(|n| *n < bound)?;
            format!("must be greater than or equal to {bound}")
        }
        Above0 => {
            value.as_i64().filter(|n| *n <= 0)?;
            "must be greater than 0".to_owned()
        }
        OneOf(known) => {
            text.filter(|t| !known.contains(t))?;
            // Kubernetes names the list of modes, not the one.
            let whole = field.split_once("accessModes[").map(|(before, _)| format!("{before}accessModes"));
            return Some(Cause::unsupported(whole.unwrap_or(field), value, known));
        }
        Port => {
            value.as_i64().filter(|n| !(1..=65535).contains(n))?;
            super::PORT_RANGE.to_owned()
        }
        Label => {
            text.filter(|t| !is_dns_label(t))?;
            LABEL.to_owned()
        }
        Subdomain => {
            text.filter(|t| t.len() > 253 || !t.split('.').all(is_dns_label))?;
            SUBDOMAIN.to_owned()
        }
        Address => {
            text.filter(|t| t.parse::<std::net::IpAddr>().is_err())?;
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()
        }
        Network => {
            text.filter(|t| !is_network(t))?;
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()
        }
        Amount => {
            Quantity::of(value).filter(|q| q.nano() <= 0)?;
            let field = match field.strip_suffix(".requests.storage") {
                Some(of) => format!("{of}[storage]"),
                None => field,
            };
            return Some(Cause::invalid(field, value, "must be greater than zero"));
        }
        Share => match (value.as_i64(), text) {
            (Some(number), _) if number < 0 => "must be greater than or equal to 0".to_owned(),
            (None, Some(text)) if !is_percent(text) => PERCENT.to_owned(),
            _ => return None,
        },
    };
    Some(Cause::invalid(field, value, why))
}

fn is_percent(text: &str) -> bool {
    text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

fn is_network(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|b| b <= most)
}

/// A label selector whose operators are known.
pub(super) fn selector(selector: &Value, at: &str) -> Vec<Cause> {
    let expressions = selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten();
    let mut causes = Vec::new();
    for (index, expression) in expressions.enumerate() {
        let at = format!("{at}.matchExpressions[{index}]");
        let values = expression.get("values").and_then(Value::as_array).is_some_and(|l| !l.is_empty());
        match expression.get("operator").and_then(Value::as_str).unwrap_or_default() {
            "In" | "NotIn" if !values => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                causes.push(Cause::required(format!("{at}.values"), why));
            }
            "Exists" | "DoesNotExist" if values => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                causes.push(Cause::forbidden(format!("{at}.values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                causes.push(Cause::invalid(format!("{at}.operator"), &json!(other), "not a valid selector operator"))
            }
        }
    }
    causes
}

/// What is wrong with a schedule, as the library that Kubernetes reads it with says.
pub(super) fn schedule(text: &str) -> Option<String> {
    const NAMED: [&str; 8] =
        ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly", "@every"];
    if text.starts_with('@') {
        let name = text.split_whitespace().next().unwrap_or_default();
        return (!NAMED.contains(&name)).then(|| format!("unrecognized descriptor: {text}"));
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 5 {
        return Some(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    let ranges = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];
    fields.iter().zip(ranges).find_map(|(field, range)| field.split(',').find_map(|part| part_of(part, range)))
}

fn part_of(part: &str, (least, most): (u32, u32)) -> Option<String> {
    const NAMES: [&str; 19] = [
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec", "sun", "mon", "tue", "wed",
        "thu", "fri", "sat",
    ];
    let (span, step) = part.split_once('/').map_or((part, None), |(span, step)| (span, Some(step)));
    if let Some(step) = step {
        match step.parse::<u32>() {
            Ok(0) => return Some(format!("step of range should be a positive number: {part}")),
            Ok(_) => {}
            Err(_) => {
                return Some(format!(
                    "failed to parse int from {step}: strconv.Atoi: parsing {step:?}: invalid syntax"
                ));
            }
        }
    }
    if matches!(span, "*" | "?") {
        return None;
    }
    let (first, last) = span.split_once('-').unwrap_or((span, span));
    for end in [first, last] {
        if NAMES.contains(&end.to_ascii_lowercase().as_str()) {
            continue;
        }
        match end.parse::<u32>() {
            Err(_) => {
                return Some(format!("failed to parse int from {end}: strconv.Atoi: parsing {end:?}: invalid syntax"));
            }
            Ok(number) if number < least => {
                return Some(format!("beginning of range ({number}) below minimum ({least}): {part}"));
            }
            Ok(number) if number > most => {
                return Some(format!("end of range ({number}) above maximum ({most}): {part}"));
            }
            Ok(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(resource: &str, object: Value) -> Vec<String> {
        broken(resource, &object).into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn rules_are_held_against_every_item() {
        assert_eq!(told("deployments.apps", json!({"spec": {"replicas": 0}})), Vec::<String>::new());
        assert_eq!(
            told("deployments.apps", json!({"spec": {"replicas": -1}})),
            ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
        );
        assert_eq!(
            told(
                "endpoints",
                json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "x"}], "ports": [{"port": 0}]}]})
            ),
            [
                "subsets[0].addresses[1].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
        assert_eq!(
            told("storageclasses.storage.k8s.io", json!({"reclaimPolicy": "Bad"})),
            [
                "provisioner: Required value",
                "reclaimPolicy: Unsupported value: \"Bad\": supported values: \"Delete\", \"Retain\"",
            ]
        );
        assert_eq!(told("poddisruptionbudgets.policy", json!({"spec": {"minAvailable": "50%"}})), Vec::<String>::new());
        assert_eq!(told("poddisruptionbudgets.policy", json!({"spec": {"minAvailable": "half"}})).len(), 1);
    }

    #[test]
    fn schedules_are_read() {
        for good in ["*/5 * * * *", "0 0 1,15 * mon-fri", "@daily", "@every 1h", "5-10/2 * ? jan 0"] {
            assert_eq!(schedule(good), None, "{good}");
        }
        for (bad, why) in [
            ("bad", "expected exactly 5 fields, found 1: [bad]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("@never", "unrecognized descriptor: @never"),
        ] {
            assert_eq!(schedule(bad).as_deref(), Some(why));
        }
    }
}
