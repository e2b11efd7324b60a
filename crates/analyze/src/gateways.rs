//! Gateways: pods that do not exist, ports nobody serves, secrets that are missing, and gateways in each other's way.
//!
//! Invariant: a gateway runs on pods of any namespace; its secrets are in the namespace of those pods.

use std::collections::BTreeMap;

use carrick_api::core::decode_base64;
use carrick_api::timestamp::Timestamp;
use serde_json::Value;
use x509_parser::pem::Pem;

use crate::objects::{Labels, Object, items, labels, number, selector_text, selects, text, texts};
use crate::report::Report;

fn selector(gateway: &Object) -> Labels<'_> {
    labels(gateway.at("/spec/selector"))
}

pub(crate) fn certificates(report: &mut Report<'_>) {
    let objects = report.objects;
    let all = objects.networking("Gateway");
    for gateway in all {
        let own = selector(gateway);
        let same = |a: &Labels<'_>, b: &Labels<'_>| a.iter().all(|(key, value)| b.get(key) == Some(value));
        let others = all.iter().filter(|other| other.origin != gateway.origin && same(&own, &selector(other)));
        for other in others {
            let mut pairs = tls(gateway).flat_map(|a| tls(other).map(move |b| (a, b)));
            if pairs.any(|(a, b)| same_certificate(a, b)) {
                report.add("IST0138", gateway, "metadata.name", format!(
                    "Duplicate certificate in multiple gateways [{} {}] may cause 404s if clients re-use HTTP2 connections.",
                    gateway.full_name(),
                    other.full_name()
                ));
            }
        }
    }
}

fn tls(gateway: &Object) -> impl Iterator<Item = &Value> {
    items(gateway.spec(), "servers").iter().filter_map(|server| server.get("tls"))
}

fn same_certificate(a: &Value, b: &Value) -> bool {
    let equal = |field: &str| !text(a, field).is_empty() && text(a, field) == text(b, field);
    let by_name = !text(a, "credentialName").is_empty() || !text(b, "credentialName").is_empty();
    if by_name { equal("credentialName") } else { equal("serverCertificate") && equal("privateKey") }
}

pub(crate) fn conflicts(report: &mut Report<'_>) {
    let objects = report.objects;
    let all = objects.networking("Gateway");
    for gateway in all {
        let own = selector(gateway);
        let shares_pods = |other: &Object| {
            let theirs = selector(other);
            let (a, b) = (selector_text(&own), selector_text(&theirs));
            a == b
                || ((a.contains(&b) || b.contains(&a))
                    && objects.pods().iter().any(|p| selects(&own, &p.labels()) && selects(&theirs, &p.labels())))
        };
        let others: Vec<&Object> =
            all.iter().filter(|other| other.origin != gateway.origin && shares_pods(other)).collect();
        for (index, server) in items(gateway.spec(), "servers").iter().enumerate() {
            let mut names: Vec<String> =
                others.iter().filter(|other| collides(server, other)).map(|other| other.full_name()).collect();
            if names.is_empty() {
                continue;
            }
            names.sort();
            report.add(
                "IST0145",
                gateway,
                &format!("spec.servers[{index}]"),
                format!(
                    "Conflict with gateways {} (workload selector {}, port {}, hosts {}).",
                    names.join(","),
                    selector_text(&own),
                    number(server.get("port").unwrap_or(&Value::Null), "number"),
                    texts(server, "hosts").join(",")
                ),
            );
        }
    }
}

/// Whether one of the other's servers takes a host of this server on the same port and address.
fn collides(server: &Value, other: &Object) -> bool {
    let port = |server: &Value| number(server.get("port").unwrap_or(&Value::Null), "number");
    let hosts = texts(server, "hosts");
    items(other.spec(), "servers").iter().any(|theirs| {
        port(theirs) == port(server)
            && text(theirs, "bind") == text(server, "bind")
            && texts(theirs, "hosts").iter().any(|host| hosts.contains(host))
    })
}

pub(crate) fn ports(report: &mut Report<'_>) {
    let objects = report.objects;
    for gateway in objects.networking("Gateway") {
        let own = selector(gateway);
        let shown = selector_text(&own);
        let pods: Vec<&Object> = objects.pods().iter().filter(|pod| selects(&own, &pod.labels())).collect();
        if pods.is_empty() {
            report.not_found(gateway, "spec.selector", "selector", &shown);
            continue;
        }
        let mut offered = std::collections::BTreeSet::new();
        for pod in &pods {
            let labels_of_pod = pod.labels();
            let services = objects.of("", "Service").iter().filter(|service| {
                service.namespace() == pod.namespace() && selects(&labels(service.at("/spec/selector")), &labels_of_pod)
            });
            for port in services.flat_map(|service| items(service.spec(), "ports")) {
                if !matches!(text(port, "protocol"), "" | "TCP") {
                    continue;
                }
                offered.insert(number(port, "port"));
                offered.insert(number(port, "targetPort"));
            }
        }
        for server in items(gateway.spec(), "servers") {
            let Some(port) = server.get("port") else { continue };
            let number = number(port, "number");
            if !offered.contains(&number) {
                report.add("IST0162", gateway, "spec.selector", format!("The gateway is listening on a target port (port {number}) that is not defined in the Service associated with its workload instances (Pod selector {shown}). If you need to access the gateway port through the gateway Service, it will not be available."));
            }
        }
    }
}

pub(crate) fn secrets(report: &mut Report<'_>) {
    let objects = report.objects;
    for gateway in objects.networking("Gateway") {
        let own = selector(gateway);
        let Some(pod) = objects.pods().iter().find(|pod| selects(&own, &pod.labels())) else {
            report.not_found(gateway, "spec.selector", "selector", &selector_text(&own));
            continue;
        };
        for (index, server) in items(gateway.spec(), "servers").iter().enumerate() {
            let credential = server.get("tls").map(|tls| text(tls, "credentialName")).unwrap_or_default();
            if credential.is_empty() || credential.contains("://") {
                continue;
            }
            let field = format!("spec.servers[{index}].tls.credentialName");
            match objects.find("", "Secret", pod.namespace(), credential) {
                None => report.not_found(gateway, &field, "credentialName", credential),
                Some(secret) if !is_certificate(secret, report.now) => {
                    report.add("IST0161", gateway, &field, format!(
                        "The credential referenced by the Gateway {} in namespace {} is invalid, which can cause the traffic not to work as expected.",
                        gateway.name(),
                        pod.namespace()
                    ));
                }
                Some(_) => {}
            }
        }
    }
}

/// Whether a secret holds a key and certificates, the first of them in its time, in one of the forms gateways read.
fn is_certificate(secret: &Object, now: Timestamp) -> bool {
    let mut data: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (key, value) in labels(secret.at("/data")) {
        data.insert(key.to_owned(), decode_base64(value).unwrap_or_default());
    }
    for (key, value) in labels(secret.at("/stringData")) {
        data.insert(key.to_owned(), value.as_bytes().to_owned());
    }
    let usable = |certificate: &str, key: &str| {
        data.get(certificate).is_some_and(|pem| is_valid(pem, now)) && data.get(key).is_some_and(|pem| is_key(pem))
    };
    usable("tls.crt", "tls.key") || usable("cert", "key")
}

/// Whether every PEM block is a certificate, and the first one is neither too young nor too old.
fn is_valid(pem: &[u8], now: Timestamp) -> bool {
    let blocks: Result<Vec<Pem>, _> = Pem::iter_from_buffer(pem).collect();
    let Ok(blocks) = blocks else { return false };
    let mut chain =
        blocks.iter().map(|block| block.parse_x509().ok().map(|certificate| certificate.validity().clone()));
    let Some(Some(leaf)) = chain.next() else { return false };
    let lives = (leaf.not_before.timestamp()..=leaf.not_after.timestamp()).contains(&now.seconds());
    lives && chain.all(|certificate| certificate.is_some())
}

fn is_key(pem: &[u8]) -> bool {
    Pem::iter_from_buffer(pem)
        .flatten()
        .any(|block| block.label.ends_with("PRIVATE KEY") && block.contents.first() == Some(&0x30))
}
