//! VirtualService objects, with delegates merged (semantics §10).
//!
//! Invariant: one rule that cannot be read does not widen another: it stays in its place, for whatever it can be said to match, and
//! answers 500; a rule for connections that cannot be read goes nowhere.

mod delegate;
pub(crate) mod http;
mod text;

use std::{collections::HashMap, sync::Arc};

use carrick_api::istio::virtual_service as api;
use carrick_base::{Diagnostic, HostPattern, Hostname, Labels, NamespacedName, Severity};

use super::{export_to, finding, origin};
use crate::{
    Settings, codes,
    model::{
        Origin,
        service::Prefix,
        virtual_service::{Bound, ConnectionLook, ConnectionRule, GatewayRef, Target, VirtualService},
    },
    names,
};

/// What is wrong with a part: a field below it, and why.
pub(super) type Wrong = (String, String);

/// Reads all of them: roots with what they delegate.
pub(crate) fn read_all(
    all: &[Arc<carrick_api::VirtualService>],
    settings: &Settings,
    found: &mut Vec<Diagnostic>,
) -> Vec<VirtualService> {
    let resolved: Vec<_> =
        all.iter().map(|v| (origin("VirtualService", &v.metadata), delegate::resolved(v, settings))).collect();
    let delegates: HashMap<NamespacedName, &(Origin, api::VirtualServiceSpec)> =
        resolved.iter().filter(|(_, spec)| spec.hosts.is_empty()).map(|d| (d.0.name.clone(), d)).collect();
    let roots = resolved.iter().filter(|(_, spec)| !spec.hosts.is_empty());
    roots
        .map(|(origin, spec)| {
            let spec = delegate::merged(origin, spec, &delegates, settings, found);
            read(origin, &spec, settings, found)
        })
        .collect()
}

fn read(
    origin: &Origin,
    spec: &api::VirtualServiceSpec,
    settings: &Settings,
    found: &mut Vec<Diagnostic>,
) -> VirtualService {
    let namespace = origin.namespace();
    let mut report = |field: String, message: String| {
        found.push(finding(origin, codes::UNREADABLE, Severity::Error, &field, message));
    };
    let http = spec.http.iter().enumerate().map(|(index, route)| {
        http::rule(route, namespace).unwrap_or_else(|(field, message)| {
            report(format!("spec.http[{index}]{field}"), format!("{message}; what it matches is answered with 500"));
            http::refusal(route, namespace)
        })
    });
    let http = http.collect();
    let mut connections = |kind: &str, rules: Vec<Result<ConnectionRule, Wrong>>| {
        let take = |(index, rule): (usize, Result<ConnectionRule, Wrong>)| match rule {
            Ok(rule) => rule,
            Err((field, message)) => {
                report(format!("spec.{kind}[{index}]{field}"), format!("{message}; it leads nowhere"));
                let nowhere = Target { host: Hostname::new("invalid"), subset: "".into(), port: Some(0) };
                ConnectionRule { matches: Vec::new(), destinations: vec![(nowhere, 1)] }
            }
        };
        rules.into_iter().enumerate().map(take).collect::<Vec<_>>()
    };
    let tls = connections("tls", spec.tls.iter().map(|r| tls_rule(r, namespace)).collect());
    let tcp = connections("tcp", spec.tcp.iter().map(|r| tcp_rule(r, namespace)).collect());
    let gateways: Vec<_> = spec.gateways.iter().map(|g| gateway_ref(g, namespace)).collect();
    VirtualService {
        hosts: spec.hosts.iter().map(|h| HostPattern::new(h)).collect(),
        gateways: if gateways.is_empty() { vec![GatewayRef::Mesh] } else { gateways },
        export_to: export_to(spec.export_to.iter().map(String::as_str), &settings.virtual_service_export_to, namespace),
        http,
        tls,
        tcp,
        origin: origin.clone(),
    }
}

/// `mesh`, `name`, `namespace/name`, `./name`, or the old `name.namespace.svc…` (§9.11).
pub(crate) fn gateway_ref(text: &str, namespace: &Arc<str>) -> GatewayRef {
    let named = |namespace: &str, name: &str| GatewayRef::Named(NamespacedName::new(namespace, name));
    match text.split_once('/') {
        Some((".", name)) => named(namespace, name),
        Some((other, name)) => named(other, name),
        None if text == "mesh" => GatewayRef::Mesh,
        None => match text.split_once('.') {
            Some((name, rest)) => named(rest.split('.').next().unwrap_or_default(), name),
            None => named(namespace, text),
        },
    }
}

fn bound(port: u32, labels: &Labels, source: &str, gateways: &[String], own: &Arc<str>) -> Result<Bound, Wrong> {
    let port = match u16::try_from(port) {
        Ok(0) => None,
        Ok(port) => Some(port),
        Err(_) => return Err((".port".to_owned(), format!("{port} is no port"))),
    };
    Ok(Bound {
        port,
        labels: labels.clone(),
        namespace: (!source.is_empty()).then(|| source.into()),
        gateways: gateways.iter().map(|g| gateway_ref(g, own)).collect(),
    })
}

fn target(from: Option<&api::Destination>) -> Result<Target, Wrong> {
    let Some(from) = from.filter(|d| !d.host.is_empty()) else {
        return Err((".destination.host".to_owned(), "a host is required".to_owned()));
    };
    let port = match from.port.as_ref().map(|p| u16::try_from(p.number)) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return Err((".destination.port.number".to_owned(), "no port".to_owned())),
    };
    Ok(Target { host: Hostname::new(&from.host), subset: from.subset.as_str().into(), port })
}

/// Weights of several destinations; those without any are left out, unless there is only one (§10.6).
fn weighted<T>(all: Vec<(T, i32)>) -> Result<Vec<(T, u32)>, Wrong> {
    let wrong = |message: &str| Err((".route".to_owned(), message.to_owned()));
    let alone = all.len() == 1;
    let mut out = Vec::new();
    for (target, weight) in all {
        match u32::try_from(weight) {
            Err(_) => return wrong("a weight is negative"),
            Ok(0) if alone => out.push((target, 100)),
            Ok(0) => {}
            Ok(weight) => out.push((target, weight)),
        }
    }
    let total: u64 = out.iter().map(|(_, weight)| u64::from(*weight)).sum();
    match (out.is_empty(), u32::try_from(total)) {
        (true, _) => wrong("no destination has a weight"),
        (_, Err(_)) => wrong("the weights are too large"),
        _ => Ok(out),
    }
}

fn destinations(route: &[api::RouteDestination]) -> Result<Vec<(Target, u32)>, Wrong> {
    let each = route.iter().enumerate().map(|(index, d)| {
        let target = target(d.destination.as_ref()).map_err(|(f, m)| (format!(".route[{index}]{f}"), m))?;
        Ok((target, d.weight))
    });
    weighted(each.collect::<Result<_, Wrong>>()?)
}

/// An address, or a range of them.
fn prefix(text: &str) -> Option<Prefix> {
    let alone = || text.parse::<std::net::IpAddr>().ok();
    Prefix::parse(text).or_else(|| alone().map(|ip| Prefix { ip, length: if ip.is_ipv6() { 128 } else { 32 } }))
}

fn networks(all: &[String]) -> Result<Vec<Prefix>, Wrong> {
    let each = all
        .iter()
        .map(|text| prefix(text).ok_or_else(|| (".destinationSubnets".to_owned(), format!("{text:?} is no network"))));
    each.collect()
}

fn at(index: usize) -> impl Fn(Wrong) -> Wrong {
    move |(field, message)| (format!(".match[{index}]{field}"), message)
}

fn tls_rule(from: &api::TlsRoute, own: &Arc<str>) -> Result<ConnectionRule, Wrong> {
    let look = |m: &api::TlsMatch| {
        if m.sni_hosts.is_empty() {
            return Err((".sniHosts".to_owned(), "a server name is required".to_owned()));
        }
        Ok(ConnectionLook {
            bound: bound(m.port, &m.source_labels, &m.source_namespace, &m.gateways, own)?,
            server_names: names::server_names(m.sni_hosts.iter().map(String::as_str)),
            networks: networks(&m.destination_subnets)?,
        })
    };
    if from.matches.is_empty() {
        return Err((".match".to_owned(), "a match is required".to_owned()));
    }
    let matches = from.matches.iter().enumerate().map(|(index, m)| look(m).map_err(at(index)));
    Ok(ConnectionRule { matches: matches.collect::<Result<_, _>>()?, destinations: destinations(&from.route)? })
}

fn tcp_rule(from: &api::TcpRoute, own: &Arc<str>) -> Result<ConnectionRule, Wrong> {
    let look = |m: &api::L4Match| {
        Ok(ConnectionLook {
            bound: bound(m.port, &m.source_labels, &m.source_namespace, &m.gateways, own)?,
            server_names: Vec::new(),
            networks: networks(&m.destination_subnets)?,
        })
    };
    let matches = from.matches.iter().enumerate().map(|(index, m)| look(m).map_err(at(index)));
    Ok(ConnectionRule { matches: matches.collect::<Result<_, _>>()?, destinations: destinations(&from.route)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_named_in_four_ways() {
        let own: Arc<str> = "own".into();
        for (text, want) in [
            ("gw", "own/gw"),
            ("./gw", "own/gw"),
            ("a/gw", "a/gw"),
            ("gw.a", "a/gw"),
            ("gw.a.svc.cluster.local", "a/gw"),
        ] {
            let (namespace, name) = want.split_once('/').expect("both");
            assert_eq!(gateway_ref(text, &own), GatewayRef::Named(NamespacedName::new(namespace, name)), "{text}");
        }
        assert_eq!(gateway_ref("mesh", &own), GatewayRef::Mesh);
    }

    #[test]
    fn weights() {
        assert_eq!(weighted(vec![("a", 0)]), Ok(vec![("a", 100)]));
        assert_eq!(weighted(vec![("a", 0), ("b", 3)]), Ok(vec![("b", 3)]));
        assert!(weighted(vec![("a", 0), ("b", 0)]).is_err());
        assert!(weighted(vec![("a", -1), ("b", 2)]).is_err());
        assert!(weighted(vec![("a", i32::MAX), ("b", i32::MAX), ("c", i32::MAX)]).is_err());
        assert!(weighted::<&str>(vec![]).is_err());
    }
}
