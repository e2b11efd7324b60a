//! The arguments of the init container that sets a pod's rules, as injection writes them (`istio-iptables`, semantics §17.1).
//!
//! Invariant: whatever is asked for is done or refused; no argument is left out silently. Values are checked as the annotations are
//! that they come from.

use std::collections::BTreeMap;

use crate::CaptureError;
use crate::annotations;
use crate::sidecar::{SidecarCapture, TABLE};

/// What an init container is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    pub capture: SidecarCapture,
    /// Put the rules in place.
    pub apply: bool,
    /// Look whether they are.
    pub validate: bool,
    /// Only print them.
    pub dry_run: bool,
}

/// An argument that cannot be obeyed.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    #[error("unknown argument {0:?}")]
    Unknown(String),
    #[error("{0} needs a value")]
    NoValue(String),
    #[error("{flag}: {value:?} {reason}")]
    Value { flag: String, value: String, reason: &'static str },
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

/// Flags whose value means what an annotation's does.
const ANNOTATED: &[(&[&str], &str)] = &[
    (&["-m", "--istio-inbound-interception-mode"], "sidecar.istio.io/interceptionMode"),
    (&["-i", "--istio-service-cidr"], "traffic.sidecar.istio.io/includeOutboundIPRanges"),
    (&["-x", "--istio-service-exclude-cidr"], "traffic.sidecar.istio.io/excludeOutboundIPRanges"),
    (&["-b", "--istio-inbound-ports"], "traffic.sidecar.istio.io/includeInboundPorts"),
    (&["-q", "--istio-outbound-ports"], "traffic.sidecar.istio.io/includeOutboundPorts"),
    (&["-o", "--istio-local-outbound-ports-exclude"], "traffic.sidecar.istio.io/excludeOutboundPorts"),
    (&["-c", "--istio-exclude-interfaces"], "traffic.sidecar.istio.io/excludeInterfaces"),
    (&["-k", "--kube-virt-interfaces"], "istio.io/reroute-virtual-interfaces"),
];

const EXCLUDED: &[&str] = &["-d", "--istio-local-exclude-ports"];
const BARE: &[&str] = &[
    "--run-validation",
    "--skip-rule-apply",
    "--dry-run",
    "-n",
    "--force-apply",
    "--native-nftables",
    "--log_as_json",
];

/// Reads the arguments after the command's name.
///
/// # Errors
/// [`ArgumentError`] of the first that cannot be obeyed.
pub fn parse(arguments: &[String]) -> Result<Plan, ArgumentError> {
    let mut annotated = BTreeMap::new();
    let mut plan = Plan { capture: SidecarCapture::default(), apply: true, validate: false, dry_run: false };
    let (mut outbound, mut inbound, mut user, mut group) = (None, None, None, None);
    let mut excluded = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let (flag, inline) = match argument.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_owned())),
            _ => (argument.as_str(), None),
        };
        if BARE.contains(&flag) {
            // The rest is how rules are written, and ours are always written anew and always nftables.
            let on = inline.as_deref() != Some("false");
            match flag {
                "--run-validation" => plan.validate = on,
                "--skip-rule-apply" => plan.apply = !on,
                "--dry-run" | "-n" => plan.dry_run = on,
                _ => {}
            }
            continue;
        }
        let mut value =
            || inline.clone().or_else(|| rest.next().cloned()).ok_or_else(|| ArgumentError::NoValue(flag.to_owned()));
        if let Some((_, annotation)) = ANNOTATED.iter().find(|(flags, _)| flags.contains(&flag)) {
            annotated.insert((*annotation).to_owned(), value()?);
            continue;
        }
        match flag {
            "-p" | "--envoy-port" => outbound = Some(number(flag, &value()?)?),
            "-z" | "--inbound-capture-port" => inbound = Some(number(flag, &value()?)?),
            "-u" | "--proxy-uid" => user = Some(id(flag, &value()?)?),
            "-g" | "--proxy-gid" => group = Some(id(flag, &value()?)?),
            "--log_output_level" => drop(value()?),
            _ if EXCLUDED.contains(&flag) => excluded = Some(value()?),
            _ => return Err(ArgumentError::Unknown(argument.clone())),
        }
    }
    if let Some(ports) = &excluded {
        annotated.insert("traffic.sidecar.istio.io/excludeInboundPorts".to_owned(), ports.clone());
    }
    plan.capture = annotations::parse(&annotated)?;
    if excluded.is_some() {
        // The list is whole as it is: who wrote it put the proxy's own ports in.
        plan.capture.exclude_inbound_ports.retain(|port| {
            excluded.iter().flat_map(|ports| ports.split(',')).any(|listed| listed.trim().parse() == Ok(*port))
        });
    }
    plan.capture.table = TABLE.to_owned();
    plan.capture.outbound_port = outbound.unwrap_or(plan.capture.outbound_port);
    plan.capture.inbound_port = inbound.unwrap_or(plan.capture.inbound_port);
    plan.capture.proxy_id = user.unwrap_or(plan.capture.proxy_id);
    match group {
        Some(group) if group != plan.capture.proxy_id => Err(ArgumentError::Value {
            flag: "-g".to_owned(),
            value: group.to_string(),
            reason: "must be the proxy's user: rules know one number for both",
        }),
        _ => Ok(plan),
    }
}

fn number(flag: &str, value: &str) -> Result<u16, ArgumentError> {
    let number = value.parse::<u16>().ok().filter(|number| *number != 0);
    number.ok_or_else(|| wrong(flag, value, "is not a port from 1 to 65535"))
}

fn id(flag: &str, value: &str) -> Result<u32, ArgumentError> {
    // Root is everybody in a pod: its traffic would all pass.
    let id = value.parse::<u32>().ok().filter(|id| *id != 0);
    id.ok_or_else(|| wrong(flag, value, "is not a user's number above 0"))
}

fn wrong(flag: &str, value: &str, reason: &'static str) -> ArgumentError {
    ArgumentError::Value { flag: flag.to_owned(), value: value.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sidecar::{InboundPorts, Mode, OutboundRanges};

    fn plan(text: &str) -> Result<Plan, String> {
        let arguments: Vec<String> = text.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect();
        parse(&arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn what_injection_writes_is_understood() {
        let text = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x '' -b * -d 15090,15021,15020 --log_output_level=default:info";
        assert_eq!(
            plan(text).unwrap(),
            Plan { capture: SidecarCapture::default(), apply: true, validate: false, dry_run: false }
        );
        let text = "-p 1 -z 2 -u 1500 -m REDIRECT -i 10.0.0.0/8 -b 80 -d 15090,15021 -q 9 -o 25 -k net1 -c eth1 --run-validation --skip-rule-apply";
        let plan = plan(text).unwrap();
        assert!(plan.validate && !plan.apply);
        let capture = plan.capture;
        assert_eq!((capture.outbound_port, capture.inbound_port, capture.proxy_id), (1, 2, 1500));
        assert_eq!(capture.inbound, InboundPorts::Only(BTreeSet::from([80])));
        assert!(matches!(capture.outbound, OutboundRanges::Only(ranges) if ranges.len() == 1));
        assert_eq!(capture.exclude_inbound_ports, BTreeSet::from([15021, 15090]));
        assert_eq!(capture.include_outbound_ports, BTreeSet::from([9]));
        assert_eq!(capture.exclude_outbound_ports, BTreeSet::from([25]));
        assert_eq!(capture.mode, Mode::Redirect);
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused() {
        for (text, words) in [
            ("-m tproxy", "not one of REDIRECT"),
            ("--what", "unknown argument"),
            ("-u 0", "above 0"),
            ("-p", "needs a value"),
            ("-x nonsense", "address range"),
            ("-u 5 -g 6", "one number"),
        ] {
            assert!(plan(text).unwrap_err().contains(words), "{text}: {:?}", plan(text));
        }
    }
}
