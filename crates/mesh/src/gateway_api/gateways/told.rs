//! What gateways and sets of listeners are told: conditions, addresses, and how many routes attach.
//!
//! Invariant: a gateway is Programmed only while a pod that serves it is ready; one bad listener does not make the others bad.

use carrick_api::gateway_api::{GROUP, K8sGateway};
use carrick_base::ObjectRef;
use serde_json::{Value, json};

use super::{Gateways, Listener, frontend};
use crate::gateway_api::{
    Translated,
    conditions::{Outcome, condition, of},
    deploy, parameters,
};

impl Gateways<'_> {
    /// Gateways for the listeners that hold, and what is to be said on all.
    pub(in crate::gateway_api) fn finish(self, out: &mut Translated) {
        for (index, gateway) in self.gateways.iter().enumerate() {
            for listener in self.listeners.iter().filter(|l| l.gateway == index && l.holds()) {
                let made = self.made(gateway, listener, out);
                out.gateways.push(made);
            }
            let held = self.listeners.iter().filter(|l| l.gateway == index && l.holds());
            let ports = deploy::ports(held.map(|l| (l.spec.port, l.spec.protocol.as_str())));
            if let Ok(overlays) = parameters::of(gateway, &self.around) {
                out.services.extend(deploy::service(gateway, &ports, overlays));
            }
            let status = self.gateway(index, gateway);
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
                "listeners": own.iter().map(|l| listener(l, generation)).collect::<Vec<Value>>(),
            });
            out.statuses.insert(ObjectRef::new("ListenerSet", &set.metadata.namespace, &set.metadata.name), status);
        }
    }

    fn gateway(&self, index: usize, gateway: &K8sGateway) -> Value {
        let generation = gateway.metadata.generation;
        let own = |l: &&Listener<'_>| l.gateway == index;
        let written = |l: &&Listener<'_>| own(l) && l.set.is_none();
        let valid = self.listeners.iter().filter(written).all(|l| l.holds() && !l.odd_kinds);
        let any = self.listeners.iter().filter(own).any(|l| l.holds());
        let accepted = match self.asked(gateway) {
            Err((reason, words)) => condition("Accepted", false, reason, &words, generation),
            Ok(()) if valid => condition("Accepted", true, "Accepted", "", generation),
            Ok(()) => {
                let words = "a listener is not valid; see its conditions";
                condition("Accepted", any, "ListenersNotValid", words, generation)
            }
        };
        let addresses = self.addresses(gateway);
        let programmed: Outcome = if !any && !gateway.spec.listeners.is_empty() {
            Err(("Invalid", "no listener is valid".to_owned()))
        } else if let Some(bad) = self.unusable(gateway, &addresses) {
            Err(("AddressNotUsable", format!("{bad:?} is no address of a service that leads to gateways")))
        } else if addresses.is_empty() {
            let (selector, namespace) = self.selector(gateway);
            let labels: Vec<String> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let words = format!("no gateway runs yet: no pod of {namespace} with {} is ready", labels.join(","));
            Err(("AddressNotAssigned", words))
        } else {
            Ok(())
        };
        let mut conditions = vec![accepted, of("Programmed", "Programmed", &programmed, generation)];
        if gateway.spec.tls.as_ref().is_some_and(|t| t.backend.is_some()) {
            let outcome = self.backend.get(index).cloned().unwrap_or(Ok(()));
            conditions.push(of("ResolvedRefs", "ResolvedRefs", &outcome, generation));
        }
        let insecure = |l: &Listener<'_>| l.roots.as_ref().is_some_and(|r| r.insecure);
        let asked = gateway.spec.listeners.iter().filter_map(|l| frontend(gateway, l.port));
        if self.listeners.iter().filter(own).any(insecure)
            || asked.into_iter().any(|v| v.mode.as_deref() == Some("AllowInsecureFallback"))
        {
            let words = "clients without a good certificate are let in too";
            conditions.push(condition(
                "InsecureFrontendValidationMode",
                true,
                "ConfigurationChanged",
                words,
                generation,
            ));
        }
        let with_listeners = |number: usize| self.listeners.iter().any(|l| l.set == Some(number) && l.holds());
        let sets = self.sets.iter().enumerate().filter(|(n, (_, g, _))| *g == index && with_listeners(*n)).count();
        let mut status = json!({
            "conditions": conditions,
            "addresses": addresses,
            "listeners": self.listeners.iter().filter(written).map(|l| listener(l, generation)).collect::<Vec<Value>>(),
        });
        if gateway.spec.allowed_listeners.is_some()
            && let Some(map) = status.as_object_mut()
        {
            map.insert("attachedListenerSets".to_owned(), json!(sets));
        }
        status
    }

    /// Whether the object asks for something that does not exist here.
    fn asked(&self, gateway: &K8sGateway) -> Outcome {
        let kind = |a: &&carrick_api::gateway_api::gateway::Address| {
            !matches!(a.kind.as_deref(), None | Some("IPAddress" | "Hostname"))
        };
        if let Some(address) = gateway.spec.addresses.iter().find(kind) {
            let kind = address.kind.as_deref().unwrap_or_default();
            return Err(("UnsupportedAddress", format!("addresses of type {kind:?} are not known here")));
        }
        parameters::of(gateway, &self.around).map(drop).map_err(|why| ("InvalidParameters", why))
    }

    /// An address that was asked for and cannot be had.
    fn unusable<'g>(&self, gateway: &'g K8sGateway, assigned: &[Value]) -> Option<&'g str> {
        let usable = |a: &carrick_api::gateway_api::gateway::Address| match a.kind.as_deref() {
            _ if a.value.is_empty() => true,
            Some("Hostname") => self.service_of(gateway, &a.value).is_some(),
            _ => assigned.is_empty() || assigned.iter().any(|given| given.get("value").is_some_and(|v| *v == *a.value)),
        };
        gateway.spec.addresses.iter().find(|a| !usable(a)).map(|a| a.value.as_str())
    }

    /// Where a gateway is reached: its service's addresses, else its pods'.
    fn addresses(&self, gateway: &K8sGateway) -> Vec<Value> {
        let (selector, namespace) = self.selector(gateway);
        let meant = |labels: &std::collections::BTreeMap<String, String>, own: &str| {
            own == namespace && !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
        };
        let runs = self.around.pods.iter().filter(|p| p.is_ready() && meant(&p.metadata.labels, &p.metadata.namespace));
        let runs: Vec<_> = runs.collect();
        if runs.is_empty() {
            return Vec::new();
        }
        let leads = |s: &&std::sync::Arc<carrick_api::Service>| {
            !s.spec.selector.is_empty() && meant(&s.spec.selector, &s.metadata.namespace)
        };
        let service = self.around.services.iter().find(leads);
        let outside = || service.iter().flat_map(|s| s.status.load_balancer.ingress.iter());
        let mut values: Vec<String> = outside().map(|i| i.ip.clone()).filter(|ip| !ip.is_empty()).collect();
        // Some balancers have a name and no address.
        let mut names: Vec<String> = outside().map(|i| i.hostname.clone()).filter(|name| !name.is_empty()).collect();
        names.sort();
        if values.is_empty() && names.is_empty() {
            values.extend(
                service.iter().flat_map(|s| s.spec.cluster_ips.clone()).filter(|ip| !ip.is_empty() && ip != "None"),
            );
        }
        if values.is_empty() && names.is_empty() {
            values.extend(runs.iter().flat_map(|p| p.ips().take(1)).map(str::to_owned));
        }
        values.sort();
        let of = |kind: &str, value: &String| json!({"type": kind, "value": value});
        values.iter().map(|ip| of("IPAddress", ip)).chain(names.iter().map(|name| of("Hostname", name))).collect()
    }
}

fn listener(listener: &Listener<'_>, generation: i64) -> Value {
    let accepted = listener.accepted.clone().and(listener.conflicted.clone());
    let programmed: Outcome = match (&listener.conflicted, listener.holds()) {
        (Err(why), _) => Err(why.clone()),
        (Ok(()), true) => Ok(()),
        (Ok(()), false) => Err(("Invalid", "the listener is not valid".to_owned())),
    };
    let resolved = match &listener.resolved {
        Ok(()) if listener.odd_kinds => {
            Err(("InvalidRouteKinds", "allowedRoutes.kinds names a kind that this listener cannot carry".to_owned()))
        }
        other => other.clone(),
    };
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
            of("Accepted", "Accepted", &accepted, generation),
            conflicted,
            of("ResolvedRefs", "ResolvedRefs", &resolved, generation),
            of("Programmed", "Programmed", &programmed, generation),
        ],
    })
}
