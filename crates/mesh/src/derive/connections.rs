//! A VirtualService's rules for connections: by server name and destination network (semantics §10.9).
//!
//! Invariant: no two routes of a list match the same server name and network, since an engine would refuse both; the first keeps it.

use std::{collections::HashSet, sync::Arc};

use super::http::Place;
use crate::{
    model::{
        service::Prefix,
        virtual_service::{ConnectionRule, VirtualService},
    },
    parts::{TcpChain, TcpForward},
};

/// What has been matched so far.
#[derive(Debug, Default)]
pub(super) struct Taken(HashSet<(Option<Arc<str>>, Option<Prefix>)>);

impl Taken {
    /// What of these names and networks was not matched before; `None` when nothing is left.
    pub fn take(&mut self, names: Vec<Arc<str>>, networks: &[Prefix]) -> Option<Vec<Arc<str>>> {
        let networks: Vec<Option<Prefix>> =
            if networks.is_empty() { vec![None] } else { networks.iter().copied().map(Some).collect() };
        let mut free = |name: Option<Arc<str>>| {
            let free = networks.iter().all(|n| !self.0.contains(&(name.clone(), *n)));
            if free {
                self.0.extend(networks.iter().map(|n| (name.clone(), *n)));
            }
            free
        };
        if names.is_empty() {
            return free(None).then_some(names);
        }
        let left: Vec<Arc<str>> = names.into_iter().filter(|name| free(Some(name.clone()))).collect();
        (!left.is_empty()).then_some(left)
    }
}

/// Where a rule sends connections.
fn forward(rule: &ConnectionRule, place: &Place<'_>) -> TcpForward {
    let each = rule.destinations.iter().map(|(target, weight)| (place.reach.cluster(target, place.port), *weight));
    place.reach.forward(each.collect())
}

/// Routes by server name.
pub(super) fn tls(service: &VirtualService, place: &Place<'_>, taken: &mut Taken) -> Vec<TcpChain> {
    let mut out = Vec::new();
    for rule in &service.tls {
        for look in rule.matches.iter().filter(|look| place.holds_all(&look.bound)) {
            let Some(server_names) = taken.take(look.server_names.clone(), &look.networks) else { continue };
            out.push(TcpChain { server_names, prefixes: look.networks.clone(), forward: forward(rule, place) });
        }
    }
    out
}

/// Routes by destination, and whether the last one takes all.
fn tcp(service: &VirtualService, place: &Place<'_>, taken: &mut Taken) -> (Vec<TcpChain>, bool) {
    let mut out = Vec::new();
    for rule in &service.tcp {
        let all = rule.matches.is_empty();
        let looks = rule.matches.iter().filter(|look| place.holds_all(&look.bound));
        let networks = all.then(Vec::new).into_iter().chain(looks.map(|look| look.networks.clone()));
        for networks in networks {
            if taken.take(Vec::new(), &networks).is_none() {
                continue;
            }
            let last = networks.is_empty();
            out.push(TcpChain { server_names: Vec::new(), prefixes: networks, forward: forward(rule, place) });
            if last {
                return (out, true);
            }
        }
    }
    (out, false)
}

/// The first rule for connections that holds, wherever they go.
pub(super) fn first_tcp(service: &VirtualService, place: &Place<'_>) -> Option<TcpForward> {
    let holds = |rule: &&ConnectionRule| {
        rule.matches.is_empty() || rule.matches.iter().any(|look| place.holds_all(&look.bound))
    };
    service.tcp.iter().find(holds).map(|rule| forward(rule, place))
}

/// What a sidecar does with connections to a port that is not looked into, and whether that is all of them. TLS goes by server name alone.
pub(super) fn chains(service: &VirtualService, is_tls: bool, place: &Place<'_>) -> (Vec<TcpChain>, bool) {
    let mut taken = Taken::default();
    if is_tls {
        let chains = tls(service, place, &mut taken);
        let some = !chains.is_empty();
        (chains, some)
    } else {
        tcp(service, place, &mut taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_once_for_a_network() {
        let name = |text: &str| vec![Arc::<str>::from(text)];
        let network = |text: &str| Prefix::parse(text).expect("a network");
        let mut taken = Taken::default();
        assert_eq!(taken.take(name("a"), &[]), Some(name("a")));
        assert_eq!(taken.take(vec!["a".into(), "b".into()], &[]), Some(name("b")));
        assert_eq!(taken.take(name("a"), &[]), None);
        assert_eq!(taken.take(name("a"), &[network("10.0.0.0/8")]), Some(name("a")));
        assert_eq!(taken.take(Vec::new(), &[]), Some(Vec::new()));
        assert_eq!(taken.take(Vec::new(), &[]), None);
    }
}
