//! Annotations that a pod's author gives to the injector, checked before anything is started.
//!
//! Invariant: a value that cannot be obeyed makes the pod be refused, with the annotation's name. Source: spec §16.10.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One annotation with a bad value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}: {message}")]
pub struct AnnotationError {
    pub annotation: String,
    pub message: String,
}

type Check = fn(&str) -> Result<(), String>;

const CHECKS: &[(&str, Check)] = &[
    ("sidecar.istio.io/interceptionMode", interception_mode),
    ("status.sidecar.istio.io/port", port_or_zero),
    ("readiness.status.sidecar.istio.io/initialDelaySeconds", count),
    ("readiness.status.sidecar.istio.io/periodSeconds", count),
    ("readiness.status.sidecar.istio.io/failureThreshold", count),
    ("readiness.status.sidecar.istio.io/applicationPorts", port_list),
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", cidr_list_or_all),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", cidr_list),
    ("traffic.sidecar.istio.io/includeInboundPorts", port_list_or_all),
    ("traffic.sidecar.istio.io/excludeInboundPorts", port_list),
    ("traffic.sidecar.istio.io/includeOutboundPorts", port_list),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", port_list),
    ("traffic.sidecar.istio.io/excludeInterfaces", interfaces),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", interfaces),
    ("istio.io/reroute-virtual-interfaces", interfaces),
    ("prometheus.istio.io/merge-metrics", boolean),
    ("proxy.istio.io/config", proxy_config),
    ("sidecar.istio.io/proxyCPU", quantity),
    ("sidecar.istio.io/proxyCPULimit", quantity),
    ("sidecar.istio.io/proxyMemory", quantity),
    ("sidecar.istio.io/proxyMemoryLimit", quantity),
];

/// Checks all annotations that the injector knows. Returns every problem, sorted by annotation.
pub fn validate(annotations: &BTreeMap<String, String>) -> Vec<AnnotationError> {
    let problems = annotations.iter().filter_map(|(annotation, value)| {
        let (_, check) = CHECKS.iter().find(|(name, _)| name == annotation)?;
        let message = format!("{} invalid: {}", parameter(annotation), check(value).err()?);
        Some(AnnotationError { annotation: annotation.clone(), message })
    });
    problems.collect()
}

/// What an annotation sets, as the installation's values call it.
fn parameter(annotation: &str) -> String {
    let name = annotation.rsplit('/').next().unwrap_or(annotation);
    name.replace("OutboundIPRanges", "IPRanges")
}

fn interception_mode(value: &str) -> Result<(), String> {
    match value {
        "REDIRECT" | "TPROXY" | "NONE" => Ok(()),
        other => Err(format!("{other:?} is none of REDIRECT, TPROXY, NONE")),
    }
}

/// Go's spellings of a boolean.
fn boolean(value: &str) -> Result<(), String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(()),
        other => Err(format!("{other:?} is not a boolean")),
    }
}

fn count(value: &str) -> Result<(), String> {
    value.parse::<u32>().map(drop).map_err(|_| format!("{value:?} is not a whole number"))
}

fn port_or_zero(value: &str) -> Result<(), String> {
    value.parse::<u16>().map(drop).map_err(|_| format!("{value:?} is not a port number"))
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn port_list(value: &str) -> Result<(), String> {
    let mut parts = value.split(',').map(str::trim).filter(|_| !value.trim().is_empty());
    parts.try_for_each(|part| match part.parse::<u16>() {
        Ok(port) if port > 0 => Ok(()),
        _ => Err(format!("port {part:?} is not between 1 and 65535")),
    })
}

fn port_list_or_all(value: &str) -> Result<(), String> {
    if value == "*" { Ok(()) } else { port_list(value) }
}

fn cidr_list(value: &str) -> Result<(), String> {
    // No blanks: what sets the rules is given the list as it is.
    let mut parts = value.split(',').filter(|_| !value.is_empty());
    parts.try_for_each(|part| if is_cidr(part) { Ok(()) } else { Err(format!("failed parsing cidr {part:?}")) })
}

fn cidr_list_or_all(value: &str) -> Result<(), String> {
    if value == "*" { Ok(()) } else { cidr_list(value) }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let limit = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => Ipv4Addr::BITS,
        Ok(IpAddr::V6(_)) => Ipv6Addr::BITS,
        Err(_) => return false,
    };
    !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) && length.parse::<u32>().is_ok_and(|l| l <= limit)
}

fn interfaces(value: &str) -> Result<(), String> {
    list(value).try_for_each(|name| {
        let fits = name.len() <= 15 && name.chars().all(|c| c.is_ascii_graphic() && c != '/');
        if fits { Ok(()) } else { Err(format!("{name:?} is not an interface name")) }
    })
}

fn proxy_config(value: &str) -> Result<(), String> {
    let documents = carrick_api::parse::documents(value.as_bytes()).map_err(|error| error.to_string())?;
    let config = match documents.as_slice() {
        [] => return Ok(()),
        [serde_json::Value::Object(config)] => config,
        _ => return Err("expected one object".to_owned()),
    };
    match config.keys().find(|field| !crate::proxy_config::is_field(field)) {
        Some(field) => Err(format!("unknown field {field:?}")),
        None => Ok(()),
    }
}

fn quantity(value: &str) -> Result<(), String> {
    if carrick_api::quantity::is_quantity(value) { Ok(()) } else { Err(format!("{value:?} is not a quantity")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_values_pass_and_bad_ones_are_named() {
        for (annotation, good, bad) in [
            ("sidecar.istio.io/interceptionMode", &["REDIRECT", "TPROXY", "NONE"][..], &["redirect", ""][..]),
            ("status.sidecar.istio.io/port", &["0", "15020"], &["-1", "70000", "x", ""]),
            ("readiness.status.sidecar.istio.io/periodSeconds", &["0", "30"], &["-1", "1.5"]),
            (
                "traffic.sidecar.istio.io/includeOutboundIPRanges",
                &["*", "", "10.0.0.0/8", "10.0.0.0/8,192.168.0.0/16", "2001:db8::/32"],
                &[
                    "10.0.0.0",
                    "10.0.0.0/33",
                    "*,10.0.0.0/8",
                    "a/8",
                    "10.0.0.0/+8",
                    "10.0.0.0/8, 11.0.0.0/8",
                    "10.0.0.0/8,",
                ],
            ),
            ("traffic.sidecar.istio.io/excludeOutboundIPRanges", &["", "10.0.0.0/8"], &["*"]),
            ("traffic.sidecar.istio.io/includeInboundPorts", &["*", "", "80,443"], &["80-90", "0", "65536", "80,,90"]),
            ("traffic.sidecar.istio.io/excludeOutboundPorts", &["", "3306, 5432"], &["*", "http"]),
            ("traffic.sidecar.istio.io/excludeInterfaces", &["eth0,eth1"], &["a/b", "averyverylongname"]),
            ("prometheus.istio.io/merge-metrics", &["true", "False", "0"], &["yes", ""]),
            (
                "proxy.istio.io/config",
                &["", "concurrency: 2\nproxyMetadata:\n  A: b\n"],
                &["[1]", "a: b: c", "concurrency: 1\nconcurrency: 2", "concurency: 2"],
            ),
            ("sidecar.istio.io/proxyCPU", &["100m", "1", "0.5"], &["", "lots", "1x"]),
        ] {
            for value in good {
                let annotations = BTreeMap::from([(annotation.to_owned(), (*value).to_owned())]);
                assert_eq!(validate(&annotations), [], "{annotation}: {value:?}");
            }
            for value in bad {
                let annotations = BTreeMap::from([(annotation.to_owned(), (*value).to_owned())]);
                let problems = validate(&annotations);
                assert_eq!(problems.len(), 1, "{annotation}: {value:?}");
                assert!(problems[0].to_string().starts_with(&format!("annotation {annotation}: ")));
            }
        }
        let bad = BTreeMap::from([("traffic.sidecar.istio.io/excludeOutboundIPRanges".to_owned(), "x".to_owned())]);
        assert!(validate(&bad)[0].message.starts_with("excludeIPRanges invalid: "), "named as Istio's values name it");
        assert_eq!(validate(&BTreeMap::from([("unknown.example/x".to_owned(), "?".to_owned())])), []);
    }
}
