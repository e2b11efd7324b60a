//! ServiceEntries: one service for each host (semantics §11).
//!
//! Invariant: entries of one namespace with the same host are one service, the older giving what both give; an entry that cannot be read
//! gives no service.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use carrick_api::{
    Protocol, ServiceEntry,
    istio::service_entry::{Location, Resolution as Written},
};
use carrick_base::{Diagnostic, Hostname, Severity};

use super::{export_to, finding, origin, workload_entry};
use crate::{
    Settings,
    auto_address::AutoAddresses,
    codes,
    model::{
        Address, Endpoint, Port, Registry, Resolution, Service, ServiceId,
        service::{Prefix, Target},
    },
};

/// All services of all entries.
pub(crate) fn read_all(
    entries: &[Arc<ServiceEntry>],
    settings: &Settings,
    automatic: &AutoAddresses,
    found: &mut Vec<Diagnostic>,
) -> Vec<Service> {
    let mut entries: Vec<_> = entries.iter().map(|e| (origin("ServiceEntry", &e.metadata), e)).collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let mut at: HashMap<ServiceId, usize> = HashMap::new();
    let mut out: Vec<Service> = Vec::new();
    for (_, entry) in entries {
        for service in read(entry, settings, automatic, found) {
            match at.get(&service.id).and_then(|index| out.get_mut(*index)) {
                Some(older) => merge(older, service, found),
                None => {
                    at.insert(service.id.clone(), out.len());
                    out.push(service);
                }
            }
        }
    }
    out
}

fn read(
    from: &ServiceEntry,
    settings: &Settings,
    automatic: &AutoAddresses,
    found: &mut Vec<Diagnostic>,
) -> Vec<Service> {
    let origin = origin("ServiceEntry", &from.metadata);
    let namespace = origin.namespace().clone();
    let spec = &from.spec;
    let (mut vips, mut prefixes) = (Vec::new(), Vec::new());
    for (index, text) in spec.addresses.iter().enumerate() {
        match (text.parse::<IpAddr>(), Prefix::parse(text)) {
            (Ok(ip), _) => vips.push(ip),
            (_, Some(prefix)) if prefix.length == if prefix.ip.is_ipv6() { 128 } else { 32 } => vips.push(prefix.ip),
            (_, Some(prefix)) => prefixes.push(prefix),
            _ => {
                let at = format!("spec.addresses[{index}]");
                let message = format!("{text:?} is neither an address nor a range of addresses");
                found.push(finding(&origin, codes::UNREADABLE, Severity::Error, &at, message));
            }
        }
    }
    let ports = ports(from);
    let resolution = match spec.resolution {
        Written::None => Resolution::Passthrough,
        Written::Static => Resolution::Static,
        Written::Dns => Resolution::Dns,
        Written::DnsRoundRobin => Resolution::DnsRoundRobin,
        Written::DynamicDns => Resolution::DynamicDns,
    };
    let selector = spec.workload_selector.as_ref().map(|s| s.labels.clone()).unwrap_or_default();
    let mut names: Vec<Arc<str>> = spec.subject_alt_names.iter().map(|n| n.as_str().into()).collect();
    names.sort();
    names.dedup();
    let mut services: Vec<Service> = Vec::new();
    for host in &spec.hosts {
        let hostname = Hostname::new(host);
        if host.is_empty() || services.iter().any(|s| s.hostname == hostname) {
            continue;
        }
        let export = spec.export_to.iter().map(String::as_str);
        services.push(Service {
            id: ServiceId::entry(&namespace, &hostname),
            registry: Registry::Entry,
            ports: ports.clone(),
            vips: vips.clone(),
            prefixes: prefixes.clone(),
            automatic: automatic.of(from, &hostname),
            resolution: resolution.clone(),
            selector: selector.clone(),
            export_to: export_to(export, &settings.service_export_to, &namespace),
            identities: names.iter().cloned().collect(),
            subject_alt_names: names.clone(),
            written: written(from, &hostname, &vips, &ports, settings),
            distribution: None,
            external: spec.location == Location::MeshExternal,
            origin: origin.clone(),
            hostname,
        });
    }
    services
}

fn ports(from: &ServiceEntry) -> Vec<Port> {
    let mut out: Vec<Port> = Vec::new();
    for port in &from.spec.ports {
        let number = |n: u32| u16::try_from(n).ok().filter(|n| *n > 0);
        let Some(own) = number(port.number) else { continue };
        let protocol = Protocol::parse(&port.protocol).unwrap_or(Protocol::Auto);
        if protocol == Protocol::Udp || out.iter().any(|p| p.number == own) {
            continue;
        }
        out.push(Port {
            number: own,
            name: port.name.as_str().into(),
            target: Target::Number(number(port.target_port).unwrap_or(own)),
            protocol,
            slot: own.to_string().into(),
        });
    }
    out
}

/// Endpoints by slot: those written; else, where names are resolved, the host itself, and where addresses are static, those of the service.
fn written(
    from: &ServiceEntry,
    host: &Hostname,
    vips: &[IpAddr],
    ports: &[Port],
    settings: &Settings,
) -> BTreeMap<Arc<str>, Vec<Endpoint>> {
    let spec = &from.spec;
    let bare =
        |address: Address| Endpoint { address, ready: true, workload: None, cluster: "".into(), network: "".into() };
    let entries: Vec<_> =
        spec.endpoints.iter().filter_map(|e| workload_entry::inline(e, &from.metadata, settings)).collect();
    let of_port = |port: &Port| -> Vec<Endpoint> {
        let target = match port.target {
            Target::Number(number) => number,
            Target::Name(_) => port.number,
        };
        match spec.resolution {
            Written::None | Written::DynamicDns => Vec::new(),
            _ if !entries.is_empty() => entries
                .iter()
                .map(|e| Endpoint { workload: Some(e.workload.clone()), ..bare(e.address(port)) })
                .collect(),
            _ if spec.workload_selector.is_some() => Vec::new(),
            Written::Static => vips.iter().map(|ip| bare(Address::Ip(*ip, target))).collect(),
            Written::Dns | Written::DnsRoundRobin => vec![bare(Address::Name(host.as_str().into(), target))],
        }
    };
    ports.iter().map(|port| (port.slot.clone(), of_port(port))).filter(|(_, list)| !list.is_empty()).collect()
}

/// Adds what a younger entry of the same namespace and host has more: ports, with their endpoints, and addresses.
fn merge(older: &mut Service, younger: Service, found: &mut Vec<Diagnostic>) {
    let mut void = |field: &str| {
        let message =
            format!("{} is older and has this for {}; it has no effect here", older.origin.name, older.hostname);
        found.push(finding(&younger.origin, codes::RULE_SHADOWED, Severity::Warning, field, message));
    };
    if older.resolution != younger.resolution || older.selector != younger.selector {
        void("spec");
        return;
    }
    for port in younger.ports {
        if older.port(port.number).is_some() {
            void("spec.ports");
            continue;
        }
        if let Some(list) = younger.written.get(&port.slot) {
            older.written.insert(port.slot.clone(), list.clone());
        }
        older.ports.push(port);
    }
    for ip in younger.vips {
        if !older.vips.contains(&ip) {
            older.vips.push(ip);
        }
    }
    for prefix in younger.prefixes {
        if !older.prefixes.contains(&prefix) {
            older.prefixes.push(prefix);
        }
    }
}
