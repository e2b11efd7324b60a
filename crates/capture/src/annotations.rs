//! The capture annotations of a pod (spec §17.2), parsed and checked.
//!
//! Invariant: a value that Istio's injector would refuse (§16.10) is an error here, naming the annotation; nothing is guessed or skipped.
//! Leaves what the settings mean to [`crate::sidecar`].

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::CaptureError;
use crate::sidecar::{InboundPorts, Mode, OutboundRanges, SidecarCapture};

const MODE: &str = "sidecar.istio.io/interceptionMode";
const STATUS_PORT: &str = "status.sidecar.istio.io/port";
const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
const VIRTUAL_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";
const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";

/// What a pod with these annotations wants captured; defaults where they are silent.
///
/// # Errors
/// [`CaptureError::Annotation`] for the first value that is not what it should be.
pub fn parse(annotations: &BTreeMap<String, String>) -> Result<SidecarCapture, CaptureError> {
    let get = |key: &'static str| annotations.get(key).map(|value| (key, value.trim()));
    let mut capture = SidecarCapture::default();
    if let Some((key, value)) = get(MODE) {
        capture.mode = match value {
            "REDIRECT" => Mode::Redirect,
            "NONE" => Mode::None,
            "TPROXY" => Mode::Tproxy,
            _ => return Err(bad(key, value, "is not one of REDIRECT, TPROXY, NONE")),
        };
    }
    if let Some((key, value)) = get(STATUS_PORT) {
        capture.exclude_inbound_ports.remove(&15020);
        capture.exclude_inbound_ports.insert(port(key, value)?);
    }
    if let Some((key, value)) = get(INCLUDE_INBOUND_PORTS) {
        capture.inbound = if value == "*" { InboundPorts::All } else { InboundPorts::Only(ports(key, value)?) };
    }
    if let Some((key, value)) = get(EXCLUDE_INBOUND_PORTS) {
        capture.exclude_inbound_ports.extend(ports(key, value)?);
    }
    if let Some((key, value)) = get(INCLUDE_OUTBOUND_RANGES) {
        capture.outbound = if value == "*" { OutboundRanges::All } else { OutboundRanges::Only(ranges(key, value)?) };
    }
    if let Some((key, value)) = get(EXCLUDE_OUTBOUND_RANGES) {
        if value == "*" {
            return Err(bad(key, value, "would exclude everything: leave includeOutboundIPRanges empty instead"));
        }
        capture.exclude_outbound_ranges = ranges(key, value)?;
    }
    if let Some((key, value)) = get(INCLUDE_OUTBOUND_PORTS) {
        capture.include_outbound_ports = ports(key, value)?;
    }
    if let Some((key, value)) = get(EXCLUDE_OUTBOUND_PORTS) {
        capture.exclude_outbound_ports = ports(key, value)?;
    }
    if let Some((key, value)) = get(EXCLUDE_INTERFACES) {
        capture.exclude_interfaces = interfaces(key, value)?;
    }
    for key in [VIRTUAL_INTERFACES, REROUTE_INTERFACES] {
        if let Some((key, value)) = get(key) {
            capture.virtual_interfaces.extend(interfaces(key, value)?);
        }
    }
    Ok(capture)
}

fn bad(annotation: &'static str, value: &str, reason: &'static str) -> CaptureError {
    CaptureError::Annotation { annotation, value: value.to_owned(), reason }
}

fn items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn port(key: &'static str, item: &str) -> Result<u16, CaptureError> {
    match item.parse::<u16>() {
        Ok(number) if number != 0 => Ok(number),
        _ => Err(bad(key, item, "is not a port from 1 to 65535")),
    }
}

fn ports(key: &'static str, value: &str) -> Result<BTreeSet<u16>, CaptureError> {
    items(value).map(|item| port(key, item)).collect()
}

fn ranges(key: &'static str, value: &str) -> Result<Vec<IpNet>, CaptureError> {
    items(value)
        .map(|item| item.parse::<IpNet>().map_err(|_| bad(key, item, "is not an address range such as 10.0.0.0/8")))
        .collect()
}

fn interfaces(key: &'static str, value: &str) -> Result<BTreeSet<String>, CaptureError> {
    items(value)
        .map(|item| {
            // The names end up inside a quoted string of the rule text, so only what the kernel itself uses is let through.
            let fine = item.len() <= 15 && item.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@:".contains(&b));
            if fine { Ok(item.to_owned()) } else { Err(bad(key, item, "is not an interface name")) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(key: &str, value: &str) -> Result<SidecarCapture, CaptureError> {
        parse(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn refuses_what_the_injector_would_refuse() {
        for (key, value) in [
            (MODE, "redirect"),
            (STATUS_PORT, "0"),
            (INCLUDE_INBOUND_PORTS, "80,x"),
            (INCLUDE_INBOUND_PORTS, "80,*"),
            (EXCLUDE_INBOUND_PORTS, "65536"),
            (EXCLUDE_INBOUND_PORTS, "-1"),
            (INCLUDE_OUTBOUND_RANGES, "10.0.0.0/33"),
            (INCLUDE_OUTBOUND_RANGES, "10.0.0.1"),
            (INCLUDE_OUTBOUND_RANGES, "*,10.0.0.0/8"),
            (EXCLUDE_OUTBOUND_RANGES, "*"),
            (EXCLUDE_OUTBOUND_PORTS, "http"),
            (EXCLUDE_INTERFACES, "eth0\" accept"),
            (EXCLUDE_INTERFACES, "an-interface-name-too-long"),
        ] {
            let error = with(key, value).expect_err(&format!("{key}: {value}"));
            assert!(error.to_string().starts_with(&format!("annotation {key}: ")), "{error}");
        }
    }

    #[test]
    fn empty_lists_mean_none() {
        assert_eq!(with(INCLUDE_INBOUND_PORTS, "").unwrap().inbound, InboundPorts::Only(BTreeSet::new()));
        assert_eq!(with(INCLUDE_OUTBOUND_RANGES, " ").unwrap().outbound, OutboundRanges::Only(Vec::new()));
    }

    #[test]
    fn the_proxys_own_ports_stay_excluded() {
        let capture = with(EXCLUDE_INBOUND_PORTS, "9000").unwrap();
        assert_eq!(capture.exclude_inbound_ports, BTreeSet::from([9000, 15020, 15021, 15090]));
        let capture = with(STATUS_PORT, "15099").unwrap();
        assert_eq!(capture.exclude_inbound_ports, BTreeSet::from([15021, 15090, 15099]));
    }
}
