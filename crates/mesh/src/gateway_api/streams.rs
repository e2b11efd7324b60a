//! TLSRoutes and TCPRoutes; UDPRoutes are only told.
//!
//! Invariant: connections are forwarded unread; of several routes on one listener the oldest gets them.

use std::sync::Arc;

use carrick_api::{
    gateway_api::{
        TcpRoute, TlsRoute, UdpRoute,
        route::{StreamRouteSpec, StreamRule},
    },
    istio::virtual_service::{RouteDestination, TcpRoute as Tcp, TlsMatch, TlsRoute as Tls, VirtualServiceSpec},
    object::Object,
};
use carrick_base::ObjectRef;
use serde_json::json;

use super::{
    Translated,
    attach::{Place, object},
    gateways::Gateways,
    http::Parents,
    references::{Backends, Unresolved},
};

pub(super) fn tls(all: &[Arc<TlsRoute>], gateways: &mut Gateways<'_>, backends: &Backends<'_>, out: &mut Translated) {
    routes("TLSRoute", all, gateways, backends, out);
}

pub(super) fn tcp(all: &[Arc<TcpRoute>], gateways: &mut Gateways<'_>, backends: &Backends<'_>, out: &mut Translated) {
    routes("TCPRoute", all, gateways, backends, out);
}

/// Datagrams are forwarded by nobody: each parent that is ours says so.
pub(super) fn udp(all: &[Arc<UdpRoute>], gateways: &Gateways<'_>, out: &mut Translated) {
    const KIND: &str = "UDPRoute";
    for route in all {
        let meta = &route.metadata;
        let parents = Parents { kind: KIND, meta, refs: &route.spec.parent_refs, hosts: &[] };
        let ours = route.spec.parent_refs.iter().filter(|parent| gateways.has(parent, &meta.namespace));
        let refused = Err(("UnsupportedValue", "datagrams are not forwarded, UDPRoutes have no effect".to_owned()));
        let told: Vec<_> = ours.map(|parent| parents.parent(parent, &refused, None)).collect();
        if !told.is_empty() {
            out.statuses.insert(ObjectRef::new(KIND, &meta.namespace, &meta.name), json!({"parents": told}));
        }
    }
}

fn routes(
    kind: &'static str,
    all: &[Arc<Object<StreamRouteSpec>>],
    gateways: &mut Gateways<'_>,
    backends: &Backends<'_>,
    out: &mut Translated,
) {
    let mut all: Vec<_> = all.iter().collect();
    all.sort_by(|a, b| a.metadata.age_order().cmp(&b.metadata.age_order()));
    for route in all {
        let meta = &route.metadata;
        let mut unresolved: Option<Unresolved> = None;
        let mut destinations = Vec::new();
        for rule in &route.spec.rules {
            let (found, why) = behind(kind, &meta.namespace, rule, backends);
            unresolved = unresolved.or(why);
            if destinations.is_empty() {
                destinations = found;
            }
        }
        let parents = Parents { kind, meta, refs: &route.spec.parent_refs, hosts: &route.spec.hostnames };
        let mut told = Vec::new();
        for parent in &route.spec.parent_refs {
            let Some(attachment) = gateways.attach(parent, kind, &meta.namespace, &route.spec.hostnames) else {
                continue;
            };
            let behind = destinations.iter().filter_map(|d: &RouteDestination| d.destination.as_ref());
            gateways.reach(&attachment, behind.map(|d| d.host.as_str()));
            for (index, hosts) in attachment.listeners {
                let Some(listener) = gateways.listeners.get(index) else { continue };
                if destinations.is_empty() {
                    continue;
                }
                let passes = listener.spec.protocol == "TLS" && !listener.terminates();
                let spec = VirtualServiceSpec {
                    hosts: hosts.clone(),
                    gateways: vec![listener.made.clone()],
                    tls: passes
                        .then(|| Tls {
                            matches: vec![TlsMatch { sni_hosts: hosts.clone(), ..TlsMatch::default() }],
                            route: destinations.clone(),
                        })
                        .into_iter()
                        .collect(),
                    tcp: (!passes)
                        .then(|| Tcp { matches: Vec::new(), route: destinations.clone() })
                        .into_iter()
                        .collect(),
                    ..VirtualServiceSpec::default()
                };
                let namespace = listener.made.split_once('/').map_or("", |(ns, _)| ns).to_owned();
                let place = Place {
                    gateway: listener.made.clone(),
                    host: format!("{}-{}-{}", meta.namespace, meta.name, kind.to_ascii_lowercase()),
                    namespace,
                    export_to: Vec::new(),
                };
                out.virtual_services.push(object(&place, meta.creation_timestamp, spec));
            }
            told.push(parents.parent(parent, &attachment.outcome, unresolved.as_ref()));
        }
        if !told.is_empty() {
            out.statuses.insert(ObjectRef::new(kind, &meta.namespace, &meta.name), json!({"parents": told}));
        }
    }
}

fn behind(
    kind: &str,
    namespace: &str,
    rule: &StreamRule,
    backends: &Backends<'_>,
) -> (Vec<RouteDestination>, Option<Unresolved>) {
    let (good, bad, _) = backends.all(kind, namespace, &rule.backend_refs);
    let all = good.into_iter().filter(|(_, weight, _)| *weight > 0);
    (all.map(|(d, weight, _)| RouteDestination { destination: Some(d), weight }).collect(), bad)
}
