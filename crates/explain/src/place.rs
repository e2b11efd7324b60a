//! Who calls and who is called, found in a snapshot.
//!
//! Invariant: a name is resolved as the caller's own DNS and search path would.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use carrick_base::{Hostname, NamespacedName};
use carrick_mesh::{
    Snapshot,
    model::{Resolution, Service, TlsMode, Workload},
};

use crate::QuestionError;

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A pod.
    Pod(NamespacedName),
    /// Whoever has this address.
    Address(IpAddr),
}

/// A destination as it is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("{text:?} is not HOST:PORT"))?;
        let port = port.parse().ok().filter(|p| *p != 0).ok_or_else(|| format!("{port:?} is not a port"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(format!("{text:?} names no host"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

/// A caller that was found: a workload the API knows, or an address nobody knows.
#[derive(Debug, Clone)]
pub(crate) struct From {
    pub(crate) workload: Option<Arc<Workload>>,
    pub(crate) ip: IpAddr,
}

pub(crate) fn caller(snapshot: &Snapshot, caller: &Caller) -> Result<From, QuestionError> {
    match caller {
        Caller::Address(ip) => Ok(From { workload: snapshot.endpoints().workload_at(*ip).cloned(), ip: *ip }),
        Caller::Pod(name) => {
            let missing = || QuestionError::NoCaller(name.to_string());
            let workload = snapshot.endpoints().workload(name).ok_or_else(missing)?;
            let ip = *workload.ips.first().ok_or_else(missing)?;
            Ok(From { workload: Some(workload.clone()), ip })
        }
    }
}

/// Where a destination leads: the address the caller connects to, and the service behind it.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    pub(crate) address: SocketAddr,
    pub(crate) service: Option<Arc<Service>>,
}

pub(crate) fn destination(
    snapshot: &Snapshot,
    namespace: Option<&str>,
    target: &Target,
) -> Result<Destination, QuestionError> {
    if let Ok(ip) = target.host.parse::<IpAddr>() {
        let service = snapshot.services().iter().find(|s| s.vips.contains(&ip) || s.automatic.contains(&ip)).cloned();
        return Ok(Destination { address: SocketAddr::new(ip, target.port), service });
    }
    let missing = || QuestionError::NoHost(target.host.clone());
    let mut service = named(snapshot, namespace, &target.host).ok_or_else(missing)?;
    // Aliases lead to other services, not for ever.
    for _ in 0..8 {
        let Resolution::ExternalName(next) = &service.resolution else { break };
        service = snapshot.service(next).cloned().ok_or_else(missing)?;
    }
    let port = service.port(target.port).ok_or_else(|| QuestionError::NoPort {
        host: service.hostname.to_string(),
        port: target.port,
        has: service.ports.iter().map(|p| p.number.to_string()).collect::<Vec<_>>().join(", "),
    })?;
    let first = || {
        let ready = snapshot.endpoints().of(&service.id, &port.slot).iter().find(|e| e.ready)?;
        Some(SocketAddr::new(ready.address.ip()?, ready.address.port()))
    };
    let vip = service.vips.first().or(service.automatic.first()).map(|ip| SocketAddr::new(*ip, target.port));
    let address = vip.or_else(first).ok_or_else(missing)?;
    Ok(Destination { address, service: Some(service) })
}

/// The service a name means, by the search path of a pod in `namespace`.
fn named(snapshot: &Snapshot, namespace: Option<&str>, host: &str) -> Option<Arc<Service>> {
    let domain = &snapshot.settings().domain_suffix;
    let host = host.trim_end_matches('.');
    let spelled = [
        Some(host.to_owned()),
        namespace.map(|ns| format!("{host}.{ns}.svc.{domain}")),
        Some(format!("{host}.svc.{domain}")),
        Some(format!("{host}.{domain}")),
    ];
    spelled.into_iter().flatten().find_map(|name| snapshot.service(&Hostname::new(&name)).cloned())
}

/// Whether a workload is a gateway: some Gateway selects it by labels, and it says of itself no mutual TLS, as sidecars do.
pub(crate) fn is_gateway(snapshot: &Snapshot, workload: &Workload) -> bool {
    let namespace = &workload.name.namespace;
    let named = || snapshot.gateways().of(namespace, &workload.labels).iter().any(|g| !g.selector.is_empty());
    workload.tls_mode != TlsMode::Istio && named()
}

/// Where a gateway listens for what is called at a port of its service; the port itself where no service has it.
pub(crate) fn gateway_port(snapshot: &Snapshot, gateway: &Workload, port: u16) -> u16 {
    let own = snapshot.services().iter().filter_map(|service| {
        let slot = &service.port(port)?.slot;
        let all = snapshot.endpoints().of(&service.id, slot);
        let here = all.iter().find(|e| e.workload.as_ref().is_some_and(|w| w.name == gateway.name))?;
        Some(here.address.port())
    });
    own.into_iter().next().unwrap_or(port)
}
