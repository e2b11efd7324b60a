//! Virtual services: destinations, subsets and gateways that do not exist, and hosts that two of them claim.
//!
//! Invariant: a short name belongs to the namespace of the virtual service that says it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::hosts::{Hosts, full, overlap, scopes};
use crate::objects::{Object, items, labels, number, selects, text, texts};
use crate::report::{Report, bracketed};

/// A destination with its path, and whether requests are only copied to it.
struct Destination<'a> {
    value: &'a Value,
    path: String,
    mirror: bool,
}

fn destinations(service: &Object) -> Vec<Destination<'_>> {
    let mut all = Vec::new();
    for kind in ["tcp", "tls", "http"] {
        for (i, rule) in items(service.spec(), kind).iter().enumerate() {
            for (j, route) in items(rule, "route").iter().enumerate() {
                if let Some(value) = route.get("destination") {
                    let path = format!("spec.{kind}[{i}].route[{j}].destination.host");
                    all.push(Destination { value, path, mirror: false });
                }
            }
        }
    }
    for (i, rule) in items(service.spec(), "http").iter().enumerate() {
        if let Some(value) = rule.get("mirror") {
            all.push(Destination { value, path: format!("spec.http[{i}].mirror.host"), mirror: true });
        }
        for (j, mirror) in items(rule, "mirrors").iter().enumerate() {
            if let Some(value) = mirror.get("destination") {
                let path = format!("spec.http[{i}].mirrors[{j}].destination.host");
                all.push(Destination { value, path, mirror: true });
            }
        }
    }
    all
}

pub(crate) fn hosts(report: &mut Report<'_>) {
    let objects = report.objects;
    let known = Hosts::of(objects);
    let services = objects.networking("VirtualService");
    for service in services {
        let export = texts(service.spec(), "exportTo");
        for destination in destinations(service) {
            let host = text(destination.value, "host");
            let Some(found) = known.find(service.namespace(), &export, host) else {
                let what = if destination.mirror { "mirror host" } else { "host" };
                report.not_found(service, &destination.path, what, host);
                continue;
            };
            match destination.value.get("port") {
                None if found.ports.len() > 1 => {
                    report.add("IST0112", service, &destination.path, format!("This VirtualService routes to a service {host:?} that exposes multiple ports {}. Specifying a port in the destination is required to disambiguate.", bracketed(&found.ports)));
                }
                None => {}
                Some(port) => {
                    let wanted = number(port, "number");
                    if !found.ports.contains(&wanted) {
                        report.not_found(service, &destination.path, "host:port", &format!("{host}:{wanted}"));
                    }
                }
            }
        }
    }
    ineffective_subsets(services, report);
}

/// Routes at a gateway to a host for which another object chooses subsets: that choice is made in the mesh only.
fn ineffective_subsets(services: &[Object], report: &mut Report<'_>) {
    let mut chosen: Vec<(&Object, &str)> = Vec::new();
    for service in services {
        let own = texts(service.spec(), "hosts");
        for route in items(service.spec(), "http").iter().flat_map(|rule| items(rule, "route")) {
            let destination = route.get("destination").unwrap_or(&Value::Null);
            let host = text(destination, "host");
            if !text(destination, "subset").is_empty() && own.contains(&host) {
                chosen.push((service, host));
            }
        }
    }
    for service in services.iter().filter(|service| !items(service.spec(), "gateways").is_empty()) {
        for (i, rule) in items(service.spec(), "http").iter().enumerate() {
            for (j, route) in items(rule, "route").iter().enumerate() {
                let destination = route.get("destination").unwrap_or(&Value::Null);
                if !text(destination, "subset").is_empty() {
                    continue;
                }
                for (other, _) in chosen.iter().filter(|(_, host)| *host == text(destination, "host")) {
                    report.add(
                        "IST0140",
                        service,
                        &format!("spec.http[{i}].route[{j}].destination.host"),
                        format!(
                            "Subset in virtual service {} has no effect on ingress gateway {} requests",
                            other.full_name(),
                            service.full_name()
                        ),
                    );
                }
            }
        }
    }
}

pub(crate) fn subsets(report: &mut Report<'_>) {
    let objects = report.objects;
    let mut known: BTreeSet<(String, &str)> = BTreeSet::new();
    for rule in objects.networking("DestinationRule") {
        let host = full(rule.namespace(), text(rule.spec(), "host"));
        known.extend(items(rule.spec(), "subsets").iter().map(|subset| (host.clone(), text(subset, "name"))));
    }
    for service in objects.networking("VirtualService") {
        for destination in destinations(service) {
            let (host, subset) = (text(destination.value, "host"), text(destination.value, "subset"));
            if !subset.is_empty() && !known.contains(&(full(service.namespace(), host), subset)) {
                let what = if destination.mirror {
                    "mirror+subset in destinationrule"
                } else {
                    "host+subset in destinationrule"
                };
                report.not_found(service, &destination.path, what, &format!("{host}+{subset}"));
            }
        }
    }
}

/// `namespace/name`, `name`, or a service's full name of old.
fn gateway_name<'a>(service: &'a Object, name: &'a str) -> (&'a str, &'a str) {
    name.split_once('/').unwrap_or((service.namespace(), name))
}

pub(crate) fn gateways(report: &mut Report<'_>) {
    let objects = report.objects;
    for service in objects.networking("VirtualService") {
        let hosts = texts(service.spec(), "hosts");
        for (index, name) in texts(service.spec(), "gateways").into_iter().enumerate() {
            if name == "mesh" {
                continue;
            }
            let field = format!("spec.gateways[{index}]");
            if name.contains("istio-autogenerated-k8s-gateway") {
                report.add("IST0165", service, &field, format!("Gateway reference in VirtualService {} is to an implementation-generated internal Gateway: {name}.", service.full_name()));
                continue;
            }
            let (namespace, short) = gateway_name(service, name);
            let fits = if let Some(gateway) = objects.find("networking.istio.io", "Gateway", namespace, short) {
                of_gateway(gateway, service.namespace()).iter().any(|host| hosts.iter().any(|h| overlap(host, h)))
            } else if let Some(gateway) = objects.find("gateway.networking.k8s.io", "Gateway", namespace, short) {
                let listeners = items(gateway.spec(), "listeners");
                listeners
                    .iter()
                    .map(|l| text(l, "hostname"))
                    .any(|h| h.is_empty() || hosts.iter().any(|own| overlap(h, own)))
            } else {
                report.not_found(service, &field, "gateway", name);
                false
            };
            if !fits && !hosts.is_empty() {
                report.add(
                    "IST0132",
                    service,
                    &field,
                    format!(
                        "one or more host {} defined in VirtualService {} not found in Gateway {namespace}/{short}.",
                        bracketed(&hosts),
                        service.full_name()
                    ),
                );
            }
        }
    }
}

/// The hosts that a gateway takes from objects of a namespace.
fn of_gateway<'a>(gateway: &'a Object, namespace: &str) -> Vec<&'a str> {
    let all = items(gateway.spec(), "servers").iter().flat_map(|server| texts(server, "hosts"));
    all.filter_map(|host| match host.split_once('/') {
        None => Some(host),
        Some((owner, host)) => {
            let owner = if owner == "." { gateway.namespace() } else { owner };
            (owner == "*" || owner == namespace).then_some(host)
        }
    })
    .collect()
}

pub(crate) fn conflicts(report: &mut Report<'_>) {
    let objects = report.objects;
    let mut claimed: BTreeMap<(String, String), Vec<&Object>> = BTreeMap::new();
    for service in objects.networking("VirtualService") {
        let gateways = texts(service.spec(), "gateways");
        if !gateways.is_empty() && !gateways.contains(&"mesh") {
            continue;
        }
        for scope in scopes(&texts(service.spec(), "exportTo"), service.namespace()) {
            for host in texts(service.spec(), "hosts") {
                claimed.entry((scope.clone(), full(service.namespace(), host))).or_default().push(service);
            }
        }
    }
    let mut told = BTreeSet::new();
    for ((scope, host), own) in &claimed {
        let mut all = own.clone();
        if scope != "*" {
            let public = claimed.iter().filter(|((scope, other), _)| scope == "*" && overlap(host, other));
            all.extend(public.flat_map(|(_, services)| services.iter().copied()));
        }
        if all.len() < 2 {
            continue;
        }
        let mut names: Vec<String> = all.iter().map(|service| service.full_name()).collect();
        names.sort();
        for service in all {
            if told.insert(service.full_name()) {
                report.add("IST0109", service, "metadata.name", format!("The VirtualServices {} associated with mesh gateway define the same host {scope}/{host} which can lead to undefined behavior. This can be fixed by merging the conflicting VirtualServices into a single resource.", names.join(",")));
            }
        }
    }
}

pub(crate) fn claims(report: &mut Report<'_>) {
    let objects = report.objects;
    let authentications = objects.of("security.istio.io", "RequestAuthentication");
    for service in objects.networking("VirtualService") {
        let Some(key) = claim(service) else { continue };
        for name in texts(service.spec(), "gateways").into_iter().filter(|name| *name != "mesh") {
            let (namespace, short) = gateway_name(service, name);
            let Some(gateway) = objects.find("networking.istio.io", "Gateway", namespace, short) else { continue };
            let wanted = labels(gateway.at("/spec/selector"));
            for pod in objects.pods().iter().filter(|pod| selects(&wanted, &pod.labels())) {
                let verified = authentications.iter().any(|authentication| {
                    let owner = authentication.namespace();
                    (owner == objects.root() || owner == pod.namespace())
                        && selects(&labels(authentication.at("/spec/selector/matchLabels")), &pod.labels())
                });
                if !verified {
                    report.add("IST0149", service, "", format!("The virtual service uses the JWT claim based routing (key: {key}) but found no request authentication for the gateway ({namespace}/{short}) pod ({}). The request authentication must first be applied for the gateway pods to validate the JWT token and make the claims available for routing.", pod.name()));
                }
            }
        }
    }
}

/// The first claim that a virtual service matches on.
fn claim(service: &Object) -> Option<&str> {
    let matches = items(service.spec(), "http").iter().flat_map(|rule| items(rule, "match"));
    let mut names = matches.flat_map(|wanted| {
        let fields = ["headers", "withoutHeaders"].into_iter().filter_map(|field| wanted.get(field)?.as_object());
        fields.flat_map(|map| map.keys().map(String::as_str))
    });
    names.find(|name| {
        let rest = name.to_ascii_lowercase();
        rest.strip_prefix("@request.auth.claims").is_some_and(|rest| {
            (rest.starts_with('.') && rest.len() > 1)
                || (rest.starts_with('[') && rest.ends_with(']') && rest.len() > 2)
        })
    })
}
