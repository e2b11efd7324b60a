//! Gateways and their listeners: whose they are, which of them hold, and what attaches to them.
//!
//! Invariant: a listener becomes a server only if nothing is wrong with it; routes attach only where the listener allows their kind and
//! namespace, and only for hosts that both have.

use std::{collections::BTreeMap, sync::Arc};

use carrick_api::{
    Gateway,
    gateway_api::{
        GROUP, K8sGateway, ListenerSet, Reference,
        gateway::{Allowed, FrontendValidation, Listener as Spec},
    },
    istio::{
        gateway::{GatewaySpec, Server, ServerPort},
        server_tls::{ServerTls, ServerTlsMode},
    },
    object::{Meta, Object},
};
use carrick_base::ObjectRef;
use serde_json::{Value, json};

use super::{
    CLASS, CONTROLLER, GATEWAY_LABEL, GatewayApiInput, Surroundings, Translated,
    conditions::{Outcome, condition, of},
    references::Grants,
};

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
            "TLS" => &["TLSRoute", "TCPRoute"],
            "TCP" => &["TCPRoute"],
            _ => &[],
        }
    }

    fn supported(&self) -> Vec<&'static str> {
        let asked = self.spec.allowed_routes.iter().flat_map(|a| &a.kinds).map(|k| k.kind.as_str());
        let asked: Vec<&str> = asked.collect();
        self.kinds().iter().copied().filter(|k| asked.is_empty() || asked.contains(k)).collect()
    }

    /// Whether TLS ends there.
    pub(super) fn terminates(&self) -> bool {
        self.spec.tls.as_ref().is_none_or(|t| t.mode.as_deref() != Some("Passthrough"))
    }
}

/// What a route's reference to a parent comes to.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) outcome: Outcome,
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
}

impl<'a> Gateways<'a> {
    pub(super) fn of(
        input: &'a GatewayApiInput,
        around: Surroundings<'a>,
        grants: &Grants<'_>,
        out: &mut Translated,
    ) -> Self {
        let mut classes = vec![CLASS];
        for class in input.classes.iter().filter(|c| c.spec.controller_name == CONTROLLER) {
            classes.push(&class.metadata.name);
            let accepted =
                condition("Accepted", true, "Accepted", "handled by this control plane", class.metadata.generation);
            let reference = ObjectRef::new("GatewayClass", "", &class.metadata.name);
            out.statuses.insert(reference, json!({"conditions": [accepted]}));
        }
        let ours = |g: &&Arc<K8sGateway>| classes.contains(&g.spec.gateway_class_name.as_str());
        let gateways: Vec<_> = input.gateways.iter().filter(ours).collect();
        let mut all = Self { around, gateways, sets: Vec::new(), listeners: Vec::new() };
        for index in 0..all.gateways.len() {
            let Some(gateway) = all.gateways.get(index).copied() else { continue };
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
            let Some(index) = parent else { continue };
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
        let Some(of) = self.gateways.get(gateway) else { return };
        let made = format!("{}/{}-{}-istio-autogenerated-k8s-gateway", of.metadata.namespace, owner.name, spec.name);
        let accepted = match spec.protocol.as_str() {
            "HTTP" | "HTTPS" | "TLS" | "TCP" => Ok(()),
            other => Err(("UnsupportedProtocol", format!("protocol {other:?} is not served"))),
        };
        let kind = if set.is_some() { "ListenerSet" } else { "Gateway" };
        let mut listener =
            Listener { gateway, set, spec, made, accepted, conflicted: Ok(()), resolved: Ok(()), attached: 0 };
        let asks = spec.allowed_routes.as_ref().is_some_and(|a| !a.kinds.is_empty());
        listener.resolved = if asks
            && listener.supported().len() < spec.allowed_routes.as_ref().map_or(0, |a| a.kinds.len())
        {
            Err(("InvalidRouteKinds", "allowedRoutes.kinds names a kind that this listener cannot carry".to_owned()))
        } else {
            self.certificates(&listener, kind, &owner.namespace, grants)
        };
        self.listeners.push(listener);
    }

    /// Whether the certificates a listener ends TLS with are there and may be used.
    fn certificates(&self, listener: &Listener<'_>, kind: &str, namespace: &str, grants: &Grants<'_>) -> Outcome {
        let ends = matches!(listener.spec.protocol.as_str(), "HTTPS" | "TLS") && listener.terminates();
        if !ends {
            return Ok(());
        }
        let refs = listener.spec.tls.as_ref().map(|t| t.certificate_refs.as_slice()).unwrap_or_default();
        if refs.is_empty() {
            return Err(("InvalidCertificateRef", "tls.certificateRefs is empty".to_owned()));
        }
        refs.iter()
            .try_for_each(|r| self.secret(r, kind, namespace, grants, "InvalidCertificateRef", &["tls.crt", "tls.key"]))
    }

    fn secret(
        &self,
        to: &Reference,
        kind: &str,
        namespace: &str,
        grants: &Grants<'_>,
        reason: &'static str,
        keys: &[&str],
    ) -> Outcome {
        if !to.is("", "Secret", "", "Secret") {
            return Err((reason, format!("{:?} is no Secret", to.name)));
        }
        let there = to.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(namespace);
        if !grants.allow(kind, namespace, "", "Secret", there, &to.name) {
            let message =
                format!("no ReferenceGrant in {there} lets a {kind} of {namespace} name secret {:?}", to.name);
            return Err(("RefNotPermitted", message));
        }
        let found = self.around.secrets.iter().find(|s| s.metadata.namespace == there && s.metadata.name == to.name);
        let secret = found.ok_or_else(|| (reason, format!("secret {there}/{} does not exist", to.name)))?;
        match keys.iter().find(|key| !secret.data.contains_key(**key)) {
            Some(key) => Err((reason, format!("secret {there}/{} has no {key}", to.name))),
            None => Ok(()),
        }
    }

    /// Listeners of one gateway that want the same port in ways that exclude each other. One of a set never displaces an earlier one.
    fn conflicts(&mut self) {
        let mut found: Vec<(usize, &'static str)> = Vec::new();
        for (b, second) in self.listeners.iter().enumerate() {
            for (a, first) in self.listeners.iter().enumerate().take(b) {
                if first.gateway != second.gateway || first.spec.port != second.spec.port {
                    continue;
                }
                let protocol = |l: &Listener<'_>| {
                    if l.spec.protocol == "HTTPS" { "TLS".to_owned() } else { l.spec.protocol.clone() }
                };
                let reason = if protocol(first) != protocol(second) {
                    "ProtocolConflict"
                } else if first.spec.hostname == second.spec.hostname {
                    "HostnameConflict"
                } else {
                    continue;
                };
                found.push((b, reason));
                if second.set.is_none() {
                    found.push((a, reason));
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
            Some(Attachment { outcome: Err((reason, message.to_owned())), listeners: Vec::new() })
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
            let Some(listener) = self.listeners.get_mut(index) else { continue };
            let both = shared(listener.spec.hostname.as_deref(), hosts);
            if both.is_empty() {
                continue;
            }
            listener.attached = listener.attached.saturating_add(1);
            if listener.holds() {
                listeners.push((index, both));
            } else {
                listeners.push((index, Vec::new()));
            }
        }
        if listeners.is_empty() {
            return refused("NoMatchingListenerHostname", "no listener has one of the route's host names");
        }
        listeners.retain(|(_, hosts)| !hosts.is_empty());
        Some(Attachment { outcome: Ok(()), listeners })
    }

    /// Gateways for the listeners that hold, and what is to be said on all.
    pub(super) fn finish(self, out: &mut Translated) {
        for (index, gateway) in self.gateways.iter().enumerate() {
            let own = |l: &&Listener<'_>| l.gateway == index;
            for listener in self.listeners.iter().filter(own).filter(|l| l.holds()) {
                out.gateways.push(self.made(gateway, listener));
            }
            let generation = gateway.metadata.generation;
            let addresses = self.addresses(gateway);
            let written = |l: &&Listener<'_>| own(l) && l.set.is_none();
            let valid = self.listeners.iter().filter(written).all(|l| l.holds());
            let any = self.listeners.iter().filter(own).any(|l| l.holds());
            let accepted = if valid {
                condition("Accepted", true, "Accepted", "", generation)
            } else {
                condition(
                    "Accepted",
                    any,
                    "ListenersNotValid",
                    "a listener is not valid; see its conditions",
                    generation,
                )
            };
            let programmed = match (any, addresses.is_empty()) {
                (false, _) => condition("Programmed", false, "Invalid", "no listener is valid", generation),
                (true, true) => {
                    let words = format!(
                        "no gateway runs yet: none of its pods ({GATEWAY_LABEL}={}) is there",
                        gateway.metadata.name
                    );
                    condition("Programmed", false, "AddressNotAssigned", &words, generation)
                }
                (true, false) => condition("Programmed", true, "Programmed", "", generation),
            };
            let sets = self.sets.iter().filter(|(_, g, outcome)| *g == index && outcome.is_ok()).count();
            let mut status = json!({
                "conditions": [accepted, programmed],
                "addresses": addresses,
                "listeners": self.listeners.iter().filter(written).map(|l| told(l, generation)).collect::<Vec<Value>>(),
            });
            if sets > 0
                && let Some(map) = status.as_object_mut()
            {
                map.insert("attachedListenerSets".to_owned(), json!(sets));
            }
            out.statuses
                .insert(ObjectRef::new("K8sGateway", &gateway.metadata.namespace, &gateway.metadata.name), status);
        }
        for (number, (set, _, outcome)) in self.sets.iter().enumerate() {
            let generation = set.metadata.generation;
            let own: Vec<&Listener<'_>> = self.listeners.iter().filter(|l| l.set == Some(number)).collect();
            let valid: Outcome = match outcome {
                Ok(()) if own.iter().any(|l| l.holds()) => Ok(()),
                Ok(()) => Err(("ListenersNotValid", "no listener is valid; see their conditions".to_owned())),
                Err(why) => Err(why.clone()),
            };
            let status = json!({
                "conditions": [of("Accepted", "Accepted", &valid, generation), of("Programmed", "Programmed", &valid, generation)],
                "listeners": own.iter().map(|l| told(l, generation)).collect::<Vec<Value>>(),
            });
            out.statuses.insert(ObjectRef::new("ListenerSet", &set.metadata.namespace, &set.metadata.name), status);
        }
    }

    /// The Gateway of one listener.
    fn made(&self, gateway: &K8sGateway, listener: &Listener<'_>) -> Arc<Gateway> {
        let spec = listener.spec;
        let host = spec.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or("*");
        let server = Server {
            port: Some(ServerPort {
                number: u32::from(spec.port),
                protocol: spec.protocol.clone(),
                name: format!("{}-{}", spec.name, spec.port),
                target_port: 0,
            }),
            hosts: vec![format!("*/{host}")],
            tls: self.tls(gateway, listener),
            ..Server::default()
        };
        let (namespace, name) = listener.made.split_once('/').unwrap_or(("", &listener.made));
        let metadata = Meta {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            creation_timestamp: gateway.metadata.creation_timestamp,
            ..Meta::default()
        };
        let spec = GatewaySpec { servers: vec![server], selector: self.selector(gateway) };
        Arc::new(Object {
            api_version: "networking.istio.io/v1".to_owned(),
            kind: "Gateway".to_owned(),
            metadata,
            spec,
        })
    }

    /// Which pods serve a gateway: those behind the service that its addresses name, else those that carry its label.
    fn selector(&self, gateway: &K8sGateway) -> BTreeMap<String, String> {
        let named = gateway.spec.addresses.iter().find_map(|a| self.service_of(gateway, &a.value));
        match named {
            Some(service) => service.spec.selector.clone(),
            None => BTreeMap::from([(GATEWAY_LABEL.to_owned(), gateway.metadata.name.clone())]),
        }
    }

    fn service_of(&self, gateway: &K8sGateway, host: &str) -> Option<&carrick_api::Service> {
        let mut parts = host.split('.');
        let (name, namespace) = (parts.next()?, parts.next().unwrap_or(&gateway.metadata.namespace));
        let found = |s: &&Arc<carrick_api::Service>| s.metadata.name == name && s.metadata.namespace == namespace;
        self.around.services.iter().find(found).map(|s| &**s)
    }

    fn tls(&self, gateway: &K8sGateway, listener: &Listener<'_>) -> Option<ServerTls> {
        if !matches!(listener.spec.protocol.as_str(), "HTTPS" | "TLS") {
            return None;
        }
        if !listener.terminates() {
            return Some(ServerTls { mode: ServerTlsMode::Passthrough, ..ServerTls::default() });
        }
        let refs = listener.spec.tls.as_ref().map(|t| t.certificate_refs.as_slice()).unwrap_or_default();
        let owner = match listener.set.and_then(|n| self.sets.get(n)) {
            Some((set, ..)) => &set.metadata.namespace,
            None => &gateway.metadata.namespace,
        };
        // A secret of another namespace is named with it; the grant was looked at.
        let name = |r: &Reference| match r.namespace.as_deref().unwrap_or(owner) {
            there if *there == gateway.metadata.namespace => r.name.clone(),
            there => format!("{there}/{}", r.name),
        };
        let mut names: Vec<String> = refs.iter().map(name).collect();
        let mut tls = ServerTls { mode: ServerTlsMode::Simple, ..ServerTls::default() };
        if names.len() == 1 {
            tls.credential_name = names.pop().unwrap_or_default();
        } else {
            tls.credential_names = names;
        }
        if let Some(validation) = frontend(gateway, listener.spec.port)
            && let Some(ca) = validation.ca_certificate_refs.first()
        {
            let insecure = validation.mode.as_deref() == Some("AllowInsecureFallback");
            tls.mode = if insecure { ServerTlsMode::OptionalMutual } else { ServerTlsMode::Mutual };
            tls.ca_cert_credential_name = match ca.kind.as_deref() {
                Some("ConfigMap") | None => {
                    format!(
                        "configmap://{}/{}",
                        ca.namespace.as_deref().unwrap_or(&gateway.metadata.namespace),
                        ca.name
                    )
                }
                _ => name(ca),
            };
        }
        Some(tls)
    }

    /// Where a gateway is reached: its service's addresses, else its pods'.
    fn addresses(&self, gateway: &K8sGateway) -> Vec<Value> {
        let selector = self.selector(gateway);
        let meant = |labels: &BTreeMap<String, String>| {
            !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
        };
        let runs = self.around.pods.iter().filter(|p| p.is_ready() && meant(&p.metadata.labels)).collect::<Vec<_>>();
        if runs.is_empty() {
            return Vec::new();
        }
        let service = self.around.services.iter().find(|s| !s.spec.selector.is_empty() && meant(&s.spec.selector));
        let outside = service.iter().flat_map(|s| s.status.load_balancer.ingress.iter().map(|i| i.ip.clone()));
        let mut values: Vec<String> = outside.filter(|ip| !ip.is_empty()).collect();
        if values.is_empty() {
            values.extend(
                service.iter().flat_map(|s| s.spec.cluster_ips.clone()).filter(|ip| !ip.is_empty() && ip != "None"),
            );
        }
        if values.is_empty() {
            values.extend(runs.iter().flat_map(|p| p.ips().take(1)).map(str::to_owned));
        }
        values.sort();
        values.iter().map(|ip| json!({"type": "IPAddress", "value": ip})).collect()
    }
}

/// What clients of a port must show.
fn frontend(gateway: &K8sGateway, port: u16) -> Option<&FrontendValidation> {
    let frontend = gateway.spec.tls.as_ref()?.frontend.as_ref()?;
    let own = frontend.per_port.iter().find(|p| p.port == port).and_then(|p| p.tls.as_ref());
    own.or(frontend.all.as_ref())?.validation.as_ref()
}

fn told(listener: &Listener<'_>, generation: i64) -> Value {
    let programmed: Outcome =
        if listener.holds() { Ok(()) } else { Err(("Invalid", "the listener is not valid".to_owned())) };
    let conflicted = match &listener.conflicted {
        Ok(()) => condition("Conflicted", false, "NoConflicts", "", generation),
        Err((reason, message)) => condition("Conflicted", true, reason, message, generation),
    };
    let kinds: Vec<Value> = listener.supported().iter().map(|kind| json!({"group": GROUP, "kind": kind})).collect();
    json!({
        "name": listener.spec.name,
        "attachedRoutes": listener.attached,
        "supportedKinds": kinds,
        "conditions": [
            of("Accepted", "Accepted", &listener.accepted, generation),
            conflicted,
            of("ResolvedRefs", "ResolvedRefs", &listener.resolved, generation),
            of("Programmed", "Programmed", &programmed, generation),
        ],
    })
}

/// The hosts that a listener and a route have in common; `*` for all.
fn shared(listener: Option<&str>, route: &[String]) -> Vec<String> {
    let listener = listener.filter(|h| !h.is_empty()).unwrap_or("*");
    if route.is_empty() {
        return vec![listener.to_owned()];
    }
    let covers = |wide: &str, narrow: &str| {
        wide == "*"
            || wide == narrow
            || wide.strip_prefix('*').is_some_and(|suffix| narrow.len() > suffix.len() && narrow.ends_with(suffix))
    };
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
