//! Which original destinations a sidecar listens for (semantics §7.2–§7.4).
//!
//! Invariant: one listener for an address and port; the oldest service keeps a contested one.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{Scope, outbound::VisiblePort, routes};
use crate::{
    model::Resolution,
    parts::{OutboundListener, OutboundTarget, PortClass},
    proxy::ProxyNode,
    snapshot::Snapshot,
};

pub(super) fn derive(snapshot: &Snapshot, scope: &Scope, ports: &[VisiblePort<'_>]) -> Vec<Arc<OutboundListener>> {
    let settings = snapshot.settings();
    let mut listeners: BTreeMap<Arc<str>, Arc<OutboundListener>> = BTreeMap::new();
    let mut listen = |address: Option<IpAddr>, v6: bool, port: u16, target: OutboundTarget| {
        let host =
            address.map_or_else(|| if v6 { "[::]".to_owned() } else { "0.0.0.0".to_owned() }, |ip| ip.to_string());
        let name: Arc<str> = format!("{host}_{port}").into();
        listeners.entry(name.clone()).or_insert_with(|| {
            let (settings, allow_any) = (settings.listener.clone(), settings.allow_any);
            Arc::new(OutboundListener { name, address, v6, port, target, settings, allow_any })
        });
    };
    for visible in ports {
        let number = visible.port.number;
        let target = match visible.class {
            PortClass::Http { .. } => {
                let target = OutboundTarget::Http { routes: routes::port_table(number) };
                if scope.families.v4 {
                    listen(None, false, number, target.clone());
                }
                if scope.families.v6 {
                    listen(None, true, number, target);
                }
                continue;
            }
            PortClass::Auto => OutboundTarget::Auto {
                routes: routes::sniffed_table(&visible.service.hostname, number),
                cluster: visible.cluster.clone(),
            },
            PortClass::Tcp => OutboundTarget::Tcp { cluster: visible.cluster.clone() },
        };
        if visible.service.resolution == Resolution::Headless {
            let facts = snapshot.facts_of(visible.service).and_then(|f| f.ports.get(&visible.port.name));
            for (ip, port) in facts.into_iter().flat_map(|f| &f.addresses).filter(|(ip, _)| !scope.own.contains(ip)) {
                listen(Some(*ip), ip.is_ipv6(), number, target.clone());
                // Without a virtual address nothing translates ports, so clients that mean it use the pod's.
                listen(Some(*ip), ip.is_ipv6(), *port, target.clone());
            }
        } else {
            for ip in visible.service.vips.iter().filter(|ip| has_family(scope, ip)) {
                listen(Some(*ip), ip.is_ipv6(), number, target.clone());
            }
        }
    }
    listeners.into_values().collect()
}

fn has_family(scope: &Scope, ip: &IpAddr) -> bool {
    if ip.is_ipv6() { scope.families.v6 } else { scope.families.v4 }
}

/// Own addresses that a service without a virtual address lists. Only these make proxies of one namespace differ.
pub(super) fn own_headless(snapshot: &Snapshot, proxy: &ProxyNode) -> Vec<IpAddr> {
    let mut own: Vec<IpAddr> = proxy.ips.clone();
    own.retain(|ip| snapshot.headless.contains(ip));
    own.sort();
    own
}
