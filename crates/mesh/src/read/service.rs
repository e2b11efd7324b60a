//! Kubernetes services (semantics §6.2, §22).
//!
//! Invariant: UDP ports are left out; an address that does not parse is left out and told of.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use carrick_api::{Protocol, core::IntOrString};
use carrick_base::{Diagnostic, Hostname, Severity, SpiffeId};

use super::{export_to, finding, origin};
use crate::{
    Settings, codes,
    model::{
        Port, Registry, Resolution, Service, ServiceId,
        service::{Distribution, Target},
    },
};

const EXPORT_TO: &str = "networking.istio.io/exportTo";
const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
const CANONICAL_ACCOUNTS: &str = "alpha.istio.io/canonical-serviceaccounts";
const KUBERNETES_ACCOUNTS: &str = "alpha.istio.io/kubernetes-serviceaccounts";

pub(crate) fn read(from: &carrick_api::Service, settings: &Settings, found: &mut Vec<Diagnostic>) -> Service {
    let origin = origin("Service", &from.metadata);
    let namespace = origin.namespace().clone();
    let annotation = |key: &str| from.metadata.annotations.get(key).map_or("", String::as_str).split(',');
    let mut vips: Vec<IpAddr> = Vec::new();
    for address in from.spec.addresses() {
        match address.parse() {
            Ok(ip) if vips.contains(&ip) => {}
            Ok(ip) => vips.push(ip),
            Err(_) => {
                let message = format!("{address:?} is no address");
                found.push(finding(&origin, codes::UNREADABLE, Severity::Error, "spec.clusterIPs", message));
            }
        }
    }
    let resolution = match from.spec.type_.as_str() {
        "ExternalName" => Resolution::ExternalName(Hostname::new(&from.spec.external_name)),
        _ if from.spec.is_headless() => Resolution::Headless,
        _ => Resolution::ClusterIp,
    };
    let accounts = annotation(KUBERNETES_ACCOUNTS).map(str::trim).filter(|a| !a.is_empty());
    let identities = annotation(CANONICAL_ACCOUNTS)
        .map(str::trim)
        .filter(|a| !a.is_empty())
        .map(|id| id.into())
        .chain(accounts.map(|sa| SpiffeId::istio(&settings.trust_domain, &namespace, sa).as_str().into()))
        .collect();
    Service {
        id: ServiceId::kubernetes(&namespace, &origin.name.name),
        registry: Registry::Kubernetes,
        hostname: Hostname::service(&origin.name.name, &namespace, &settings.domain_suffix),
        ports: ports(from),
        vips,
        prefixes: Vec::new(),
        automatic: Vec::new(),
        resolution,
        selector: from.spec.selector.clone(),
        export_to: export_to(annotation(EXPORT_TO), &settings.service_export_to, &namespace),
        identities,
        subject_alt_names: Vec::new(),
        written: BTreeMap::new(),
        distribution: distribution(from),
        external: false,
        origin,
    }
}

/// The field, else the annotation that preceded it.
fn distribution(from: &carrick_api::Service) -> Option<Distribution> {
    let annotation = || from.metadata.annotations.get(DISTRIBUTION).map(String::as_str);
    let field = Some(from.spec.traffic_distribution.as_str()).filter(|f| !f.is_empty());
    match field.or_else(annotation)? {
        "PreferClose" | "PreferSameZone" => Some(Distribution::SameZone),
        "PreferSameNode" => Some(Distribution::SameNode),
        _ => None,
    }
}

fn ports(from: &carrick_api::Service) -> Vec<Port> {
    let mut out: Vec<Port> = Vec::new();
    for port in &from.spec.ports {
        let protocol = carrick_api::protocol::of_service_port(port);
        if protocol == Protocol::Udp || port.port == 0 || out.iter().any(|p| p.number == port.port) {
            continue;
        }
        let target = match &port.target_port {
            None => Target::Number(port.port),
            Some(IntOrString::Int(number)) => {
                Target::Number(u16::try_from(*number).ok().filter(|n| *n > 0).unwrap_or(port.port))
            }
            Some(IntOrString::Text(text)) => match text.parse() {
                Ok(number) => Target::Number(number),
                Err(_) if text.is_empty() => Target::Number(port.port),
                Err(_) => Target::Name(text.as_str().into()),
            },
        };
        let name: Arc<str> = port.name.as_str().into();
        out.push(Port { number: port.port, slot: name.clone(), name, target, protocol });
    }
    out
}
