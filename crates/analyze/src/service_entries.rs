//! Service entries that need addresses, or contradict each other.
//!
//! Invariant: entries contradict each other only where one namespace sees both.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::hosts::scopes;
use crate::objects::{Object, items, number, text, texts};
use crate::report::Report;

pub(crate) fn addresses(report: &mut Report<'_>) {
    let objects = report.objects;
    let metadata = objects.mesh().pointer("/defaultConfig/proxyMetadata").unwrap_or(&Value::Null);
    let on = |name: &str| match metadata.get(name) {
        Some(Value::String(text)) => text == "true",
        Some(Value::Bool(flag)) => *flag,
        _ => false,
    };
    let allocated =
        on("ISTIO_META_DNS_CAPTURE") && (on("ISTIO_META_DNS_AUTO_ALLOCATE") || on("PILOT_ENABLE_IP_AUTOALLOCATE"));
    for entry in objects.networking("ServiceEntry") {
        let has_one = entry.spec().get("addresses").is_some() || !items(entry.at("/status"), "addresses").is_empty();
        if allocated || has_one {
            continue;
        }
        for (index, port) in items(entry.spec(), "ports").iter().enumerate() {
            let protocol = text(port, "protocol");
            if protocol.is_empty() || protocol.eq_ignore_ascii_case("tcp") {
                report.add(
                    "IST0134",
                    entry,
                    &format!("spec.ports[{index}]"),
                    "ServiceEntry addresses are required for this protocol.",
                );
            }
        }
    }
}

pub(crate) fn protocols(report: &mut Report<'_>) {
    let objects = report.objects;
    // Scope, host and port; the protocols given to them, and by whom.
    type Key<'a> = (String, &'a str, i64);
    let mut index: BTreeMap<Key<'_>, Vec<(&str, &Object)>> = BTreeMap::new();
    for entry in objects.networking("ServiceEntry") {
        for scope in scopes(&texts(entry.spec(), "exportTo"), entry.namespace()) {
            for host in texts(entry.spec(), "hosts") {
                for port in items(entry.spec(), "ports") {
                    let key = (scope.clone(), host, number(port, "number"));
                    index.entry(key).or_default().push((text(port, "protocol"), entry));
                }
            }
        }
    }
    let mut told = BTreeSet::new();
    for ((scope, host, port), own) in &index {
        let mut entries = own.clone();
        if scope != "*" {
            entries.extend(index.get(&("*".to_owned(), *host, *port)).into_iter().flatten().copied());
        }
        let protocols: BTreeSet<String> = entries.iter().map(|(protocol, _)| protocol.to_uppercase()).collect();
        if protocols.len() < 2 {
            continue;
        }
        let names: BTreeSet<String> = entries.iter().map(|(_, entry)| entry.full_name()).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let protocols = protocols.into_iter().collect::<Vec<_>>().join(", ");
        for (_, entry) in entries {
            if told.insert(entry.full_name()) {
                report.add("IST0177", entry, "metadata.name", format!("Multiple ServiceEntries ({names}) define the same host {host:?} and port {port} with conflicting protocols ({protocols})."));
            }
        }
    }
}
