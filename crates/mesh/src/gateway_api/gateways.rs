//! Gateways and their listeners: whose they are, which of them hold, and what attaches to them.
//!
//! Invariant: a listener becomes a server only if nothing is wrong with it; routes attach only where the listener allows their kind and
//! namespace, and only for hosts that both have.

mod certificates;
mod made;
mod told;

use std::{collections::BTreeSet, sync::Arc};

use carrick_api::{
    gateway_api::{
        GROUP, K8sGateway, ListenerSet, Reference,
        gateway::{Allowed, FrontendValidation, Listener as Spec},
    },
    object::Meta,
};
use carrick_base::ObjectRef;
use serde_json::json;

use super::{
    CLASSES, CONTROLLER, GatewayApiInput, Surroundings, Translated,
    conditions::{Outcome, condition},
    references::Grants,
};
use certificates::Roots;
pub(super) use certificates::Shown;

/// A listener of a gateway, written in it or in a set.
#[derive(Debug)]
pub(super) struct Listener<'a> {
    gateway: usize,
    set: Option<usize>,
    pub(super) spec: &'a Spec,
    /// Where the Gateway made for it is: `namespace/name`.
    pub(super) made: String,
    accepted: Outcome,
    conflicted: Outcome,
    resolved: Outcome,
    /// `allowedRoutes.kinds` names something it cannot carry, beside what it can.
    odd_kinds: bool,
    /// Whose certificates clients must show.
    roots: Option<Roots>,
    attached: i32,
}

impl Listener<'_> {
    fn holds(&self) -> bool {
        self.accepted.is_ok() && self.conflicted.is_ok() && self.resolved.is_ok()
    }

    /// Kinds of routes that its protocol carries.
    fn kinds(&self) -> &'static [&'static str] {
        match self.spec.protocol.as_str() {
            "HTTP" | "HTTPS" => &["HTTPRoute", "GRPCRoute"],
            "TLS" if self.terminates() => &["TLSRoute", "TCPRoute"],
            "TLS" => &["TLSRoute"],
            "TCP" => &["TCPRoute"],
            _ => &[],
        }
    }

    fn supported(&self) -> Vec<&'static str> {
        let group = |g: &Option<String>| g.as_deref().is_none_or(|g| g == GROUP);
        let asked = self.spec.allowed_routes.iter().flat_map(|a| &a.kinds);
        let asked: Vec<_> = asked.map(|k| if group(&k.group) { k.kind.as_str() } else { "" }).collect();
        self.kinds().iter().copied().filter(|k| asked.is_empty() || asked.contains(k)).collect()
    }

    /// Whether TLS ends there.
    pub(super) fn terminates(&self) -> bool {
        self.spec.tls.as_ref().is_none_or(|t| t.mode.as_deref() != Some("Passthrough"))
    }

    fn host(&self) -> &str {
        self.spec.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or("*")
    }
}

/// What a route's reference to a parent comes to.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) outcome: Outcome,
    /// The gateway.
    gateway: usize,
    /// Listeners, each with the hosts that both have.
    pub(super) listeners: Vec<(usize, Vec<String>)>,
}

/// All gateways that are ours.
#[derive(Debug)]
pub(super) struct Gateways<'a> {
    around: Surroundings<'a>,
    gateways: Vec<&'a Arc<K8sGateway>>,
    sets: Vec<(&'a Arc<ListenerSet>, usize, Outcome)>,
    pub(super) listeners: Vec<Listener<'a>>,
    /// Of each gateway, whether its own certificate for backends can be had.
    backend: Vec<Outcome>,
    /// Hosts that routes of a gateway lead to.
    reached: BTreeSet<(usize, String)>,
}

impl<'a> Gateways<'a> {
    pub(super) fn of(
        input: &'a GatewayApiInput,
        around: Surroundings<'a>,
        grants: &Grants<'_>,
        out: &mut Translated,
    ) -> Self {
        let mut classes = CLASSES.to_vec();
        for class in input.classes.iter().filter(|c| c.spec.controller_name == CONTROLLER) {
            classes.push(&class.metadata.name);
            let accepted =
                condition("Accepted", true, "Accepted", "handled by this control plane", class.metadata.generation);
            let reference = ObjectRef::new("GatewayClass", "", &class.metadata.name);
            out.statuses.insert(reference, json!({"conditions": [accepted]}));
        }
        // A class of that name may be somebody else's.
        let foreign =
            |name: &str| input.classes.iter().any(|c| c.metadata.name == name && c.spec.controller_name != CONTROLLER);
        classes.retain(|name| !foreign(name));
        let ours = |g: &&Arc<K8sGateway>| classes.contains(&g.spec.gateway_class_name.as_str());
        let gateways: Vec<_> = input.gateways.iter().filter(ours).collect();
        let mut all = Self {
            around,
            gateways,
            sets: Vec::new(),
            listeners: Vec::new(),
            backend: Vec::new(),
            reached: BTreeSet::new(),
        };
        for index in 0..all.gateways.len() {
            let Some(gateway) = all.gateways.get(index).copied() else { continue };
            let certificate = all.backend_certificate(gateway, grants);
            all.backend.push(certificate);
            for spec in &gateway.spec.listeners {
                all.push(index, None, spec, &gateway.metadata, grants);
            }
        }
        let mut sets: Vec<_> = input.listener_sets.iter().collect();
        sets.sort_by(|a, b| a.metadata.age_order().cmp(&b.metadata.age_order()));
        for set in sets {
            let to = &set.spec.parent_ref;
            let namespace = to.namespace.as_deref().unwrap_or(&set.metadata.namespace);
            let parent =
                all.gateways.iter().position(|g| g.metadata.namespace == namespace && g.metadata.name == to.name);
            let Some(index) = parent.filter(|_| to.is(GROUP, "Gateway", GROUP, "Gateway")) else { continue };
            let Some(gateway) = all.gateways.get(index).copied() else { continue };
            // Without a word from the gateway nobody may add to it.
            let from = gateway.spec.allowed_listeners.as_ref();
            let allowed = from.is_some() && all.allows(from, "None", namespace, &set.metadata.namespace);
            let outcome = if allowed {
                Ok(())
            } else {
                Err(("NotAllowed", "the gateway's allowedListeners do not name this namespace".to_owned()))
            };
            let number = all.sets.len();
            all.sets.push((set, index, outcome));
            if allowed {
                for spec in &set.spec.listeners {
                    all.push(index, Some(number), spec, &set.metadata, grants);
                }
            }
        }
        all.conflicts();
        all
    }

    fn push(&mut self, gateway: usize, set: Option<usize>, spec: &'a Spec, owner: &Meta, grants: &Grants<'_>) {
        let Some(of) = self.gateways.get(gateway).copied() else { return };
        // Sets of several namespaces may have one name, and that of the gateway.
        let of_set = set.map(|_| format!(".{}", owner.namespace)).unwrap_or_default();
        let made =
            format!("{}/{}-{}-istio-autogenerated-k8s-gateway{of_set}", of.metadata.namespace, owner.name, spec.name);
        let accepted = match spec.protocol.as_str() {
            "HTTP" | "HTTPS" | "TLS" | "TCP" => Ok(()),
            other => Err(("UnsupportedProtocol", format!("protocol {other:?} is not served"))),
        };
        let kind = if set.is_some() { "ListenerSet" } else { "Gateway" };
        let mut listener = Listener {
            gateway,
            set,
            spec,
            made,
            accepted,
            conflicted: Ok(()),
            resolved: Ok(()),
            odd_kinds: false,
            roots: None,
            attached: 0,
        };
        let asked = spec.allowed_routes.as_ref().map_or(0, |a| a.kinds.len());
        listener.odd_kinds = listener.supported().len() < asked;
        listener.resolved = if listener.odd_kinds && listener.supported().is_empty() {
            Err(("InvalidRouteKinds", "allowedRoutes.kinds names no kind that this listener can carry".to_owned()))
        } else {
            self.certificates(&listener, kind, &owner.namespace, grants)
        };
        if matches!(spec.protocol.as_str(), "HTTPS" | "TLS")
            && listener.terminates()
            && let Some(validation) = frontend(of, spec.port)
        {
            match self.roots(validation, &of.metadata.namespace, grants) {
                Ok(roots) => listener.roots = Some(roots),
                Err(why) => {
                    let message = "nobody's certificates are taken: the authority's certificate cannot be had";
                    listener.accepted = Err(("NoValidCACertificate", message.to_owned()));
                    listener.resolved = listener.resolved.and(Err(why));
                }
            }
        }
        self.listeners.push(listener);
    }

    /// Listeners of one gateway that want the same port in ways that exclude each other. One of a set never displaces an earlier one.
    fn conflicts(&mut self) {
        let mut found: BTreeSet<(usize, &'static str)> = BTreeSet::new();
        for (b, second) in self.listeners.iter().enumerate() {
            for (a, first) in self.listeners.iter().enumerate().take(b) {
                let displaced = second.set.is_some() && found.iter().any(|(index, _)| *index == a);
                if first.gateway != second.gateway || first.spec.port != second.spec.port || displaced {
                    continue;
                }
                let protocol = |l: &Listener<'_>| match l.spec.protocol.as_str() {
                    "HTTPS" => "TLS".to_owned(),
                    other => other.to_owned(),
                };
                let reason = if protocol(first) != protocol(second) {
                    "ProtocolConflict"
                } else if first.host() == second.host() {
                    "HostnameConflict"
                } else {
                    continue;
                };
                found.insert((b, reason));
                if second.set.is_none() {
                    found.insert((a, reason));
                }
            }
        }
        for (index, reason) in found {
            if let Some(listener) = self.listeners.get_mut(index) {
                listener.conflicted =
                    Err((reason, "another listener of the gateway has this port and host".to_owned()));
            }
        }
    }

    /// Whether a namespace is among those that are allowed; `own` is the gateway's.
    fn allows(&self, allowed: Option<&Allowed>, default: &str, own: &str, namespace: &str) -> bool {
        let namespaces = allowed.and_then(|a| a.namespaces.as_ref());
        match namespaces.and_then(|n| n.from.as_deref()).unwrap_or(default) {
            "All" => true,
            "Same" => own == namespace,
            "Selector" => {
                let selector = namespaces.and_then(|n| n.selector.as_ref());
                let labels =
                    self.around.namespaces.iter().find(|n| n.metadata.name == namespace).map(|n| &n.metadata.labels);
                selector.is_some_and(|s| labels.is_some_and(|labels| s.matches(labels)))
            }
            _ => false,
        }
    }

    /// Whether a parent is a gateway, or a set of listeners, of ours.
    pub(super) fn has(&self, to: &Reference, namespace: &str) -> bool {
        let there = to.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(namespace);
        let named = |m: &Meta| m.namespace == there && m.name == to.name;
        (to.is(GROUP, "Gateway", GROUP, "Gateway") && self.gateways.iter().any(|g| named(&g.metadata)))
            || (to.is(GROUP, "ListenerSet", GROUP, "Gateway") && self.sets.iter().any(|(s, ..)| named(&s.metadata)))
    }

    /// Attaches a route. `None` when the parent is no gateway of ours.
    pub(super) fn attach(
        &mut self,
        to: &Reference,
        kind: &str,
        namespace: &str,
        hosts: &[String],
    ) -> Option<Attachment> {
        let there = to.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(namespace);
        let named = |m: &Meta| m.namespace == there && m.name == to.name;
        let (gateway, set) = if to.is(GROUP, "Gateway", GROUP, "Gateway") {
            (self.gateways.iter().position(|g| named(&g.metadata))?, None)
        } else if to.is(GROUP, "ListenerSet", GROUP, "Gateway") {
            let number = self.sets.iter().position(|(s, ..)| named(&s.metadata))?;
            (self.sets.get(number)?.1, Some(number))
        } else {
            return None;
        };
        let refused = |reason, message: &str| {
            Some(Attachment { outcome: Err((reason, message.to_owned())), gateway, listeners: Vec::new() })
        };
        let meant = |l: &Listener<'_>| {
            l.gateway == gateway
                && l.set == set
                && to.section_name.as_ref().is_none_or(|s| s.is_empty() || *s == l.spec.name)
                && to.port.is_none_or(|p| p == l.spec.port)
        };
        let candidates: Vec<usize> =
            (0..self.listeners.len()).filter(|i| self.listeners.get(*i).is_some_and(meant)).collect();
        if candidates.is_empty() {
            return refused("NoMatchingParent", "no listener has this section name and port");
        }
        let allowed: Vec<usize> = candidates
            .into_iter()
            .filter(|i| {
                self.listeners.get(*i).is_some_and(|l| {
                    l.supported().contains(&kind)
                        && self.allows(l.spec.allowed_routes.as_ref(), "Same", there, namespace)
                })
            })
            .collect();
        if allowed.is_empty() {
            return refused("NotAllowedByListeners", "no listener allows routes of this kind from this namespace");
        }
        let mut listeners = Vec::new();
        for index in allowed {
            let narrower = self.narrower(index);
            let Some(listener) = self.listeners.get_mut(index) else { continue };
            let mut both = shared(listener.spec.hostname.as_deref(), hosts);
            if both.is_empty() {
                continue;
            }
            listener.attached = listener.attached.saturating_add(1);
            // A host belongs to the listener whose own is most specific, whatever attaches to the others.
            both.retain(|host| !narrower.iter().any(|other| covers(other, host)));
            listeners.push((index, if listener.holds() { both } else { Vec::new() }));
        }
        if listeners.is_empty() {
            return refused("NoMatchingListenerHostname", "no listener has one of the route's host names");
        }
        listeners.retain(|(_, hosts)| !hosts.is_empty());
        Some(Attachment { outcome: Ok(()), gateway, listeners })
    }

    /// Hosts of other listeners on the same port that are more specific than a listener's.
    fn narrower(&self, index: usize) -> Vec<String> {
        let Some(own) = self.listeners.get(index) else { return Vec::new() };
        let beside = |l: &&Listener<'_>| {
            l.gateway == own.gateway
                && l.spec.port == own.spec.port
                && l.host() != own.host()
                && covers(own.host(), l.host())
                && l.holds()
        };
        self.listeners.iter().filter(beside).map(|l| l.host().to_owned()).collect()
    }

    /// Plaintext listeners whose hosts lie within another's: what no route of theirs takes is theirs all the same.
    pub(super) fn enclosed(&self) -> impl Iterator<Item = &Listener<'a>> {
        let within = |own: &Listener<'_>| {
            self.listeners.iter().any(|l| {
                l.gateway == own.gateway
                    && l.spec.port == own.spec.port
                    && l.host() != own.host()
                    && covers(l.host(), own.host())
                    && l.holds()
            })
        };
        self.listeners.iter().filter(move |l| l.holds() && l.spec.protocol == "HTTP" && within(l))
    }

    /// Routes of an attachment lead to these hosts.
    pub(super) fn reach<'h>(&mut self, attachment: &Attachment, hosts: impl Iterator<Item = &'h str>) {
        if attachment.outcome.is_ok() {
            self.reached.extend(hosts.map(|host| (attachment.gateway, host.to_owned())));
        }
    }

    /// Gateways with a route to a host.
    pub(super) fn leading_to(&self, host: &str) -> impl Iterator<Item = &K8sGateway> {
        self.numbers_to(host).filter_map(|index| self.gateways.get(index)).map(|g| &***g)
    }

    fn numbers_to(&self, host: &str) -> impl Iterator<Item = usize> {
        (0..self.gateways.len()).filter(|index| self.reached.contains(&(*index, host.to_owned())))
    }
}

/// What clients of a port must show.
fn frontend(gateway: &K8sGateway, port: u16) -> Option<&FrontendValidation> {
    let frontend = gateway.spec.tls.as_ref()?.frontend.as_ref()?;
    let own = frontend.per_port.iter().find(|p| p.port == port).and_then(|p| p.tls.as_ref());
    own.or(frontend.all.as_ref())?.validation.as_ref()
}

/// Whether a host, which may begin with `*`, has all that another has.
fn covers(wide: &str, narrow: &str) -> bool {
    wide == "*"
        || wide == narrow
        || wide.strip_prefix('*').is_some_and(|suffix| narrow.len() > suffix.len() && narrow.ends_with(suffix))
}

/// The hosts that a listener and a route have in common; `*` for all.
fn shared(listener: Option<&str>, route: &[String]) -> Vec<String> {
    let listener = listener.filter(|h| !h.is_empty()).unwrap_or("*");
    if route.is_empty() {
        return vec![listener.to_owned()];
    }
    let mut both: Vec<String> = route
        .iter()
        .filter_map(|host| {
            if covers(listener, host) {
                Some(host.clone())
            } else {
                covers(host, listener).then(|| listener.to_owned())
            }
        })
        .collect();
    both.sort();
    both.dedup();
    both
}
