//! What a proxy's inbound filter chains say about authentication and authorization, port by port.
//!
//! Invariant: everything is read from the dump, so it is what the proxy enforces and not what somebody wished for.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::proxy_config::dump::{Dump, list, number, text};

/// One filter chain of an inbound port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The certificate shown to callers; `None` in the clear.
    pub certificate: Option<String>,
    /// Callers must show a certificate.
    pub client_certificate: bool,
    /// The route configuration.
    pub route: String,
    /// Server names it is for.
    pub sni: Vec<String>,
    /// Protocols it is for.
    pub alpn: Vec<String>,
    /// Issuers whose tokens are checked.
    pub issuers: Vec<String>,
    /// Names of RBAC rules, and the action of each.
    pub rules: Vec<(String, String)>,
}

/// The chains of each inbound port of a sidecar, those with TLS first.
pub fn inbound(dump: &Dump) -> BTreeMap<u64, Vec<Chain>> {
    let listeners = dump.resources("ListenersConfigDump", &["dynamic_listeners"], &["active_state", "listener"]);
    let mut ports: BTreeMap<u64, Vec<Chain>> = BTreeMap::new();
    for listener in listeners.into_iter().filter(|listener| text(listener, &["name"]) == "virtualInbound") {
        for found in list(listener, &["filter_chains"]) {
            let port = number(found, &["filter_chain_match", "destination_port"]);
            let Some(port) = port.filter(|_| !text(found, &["name"]).ends_with("blackhole")) else { continue };
            ports.entry(port).or_default().push(chain(found));
        }
    }
    for chains in ports.values_mut() {
        chains.sort_by_key(|chain| chain.certificate.is_none());
    }
    ports
}

/// The chains of every other listener, as `address_port`.
pub fn others(dump: &Dump) -> BTreeMap<(String, u64), Vec<Chain>> {
    let listeners = dump.resources("ListenersConfigDump", &["dynamic_listeners"], &["active_state", "listener"]);
    let mut found = BTreeMap::new();
    for listener in listeners.into_iter().filter(|listener| text(listener, &["name"]) != "virtualInbound") {
        let Some(address) = listener.pointer("/address/socket_address") else { continue };
        let chains = list(listener, &["filter_chains"]).iter().chain(listener.get("default_filter_chain")).map(chain);
        let place = (text(address, &["address"]).to_owned(), number(address, &["port_value"]).unwrap_or(0));
        found.insert(place, chains.collect());
    }
    found
}

/// How many listeners the proxy has.
pub fn listeners(dump: &Dump) -> usize {
    dump.resources("ListenersConfigDump", &["dynamic_listeners"], &["active_state", "listener"]).len()
        + dump.resources("ListenersConfigDump", &["static_listeners"], &["listener"]).len()
}

/// The mode that a port's chains come to.
pub fn mode(chains: &[Chain]) -> &'static str {
    let mesh = |chain: &Chain| chain.client_certificate && chain.certificate.as_deref() == Some("default");
    let strict = chains.iter().any(mesh);
    match (strict, chains.iter().any(|chain| chain.certificate.is_none())) {
        (true, true) => "PERMISSIVE",
        (true, false) => "STRICT",
        (false, true) => "DISABLE",
        (false, false) => "none",
    }
}

fn chain(found: &Value) -> Chain {
    let tls = found.pointer("/transport_socket/typed_config").filter(|t| t.get("common_tls_context").is_some());
    let texts = |path: &[&str]| list(found, path).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let mut chain = Chain {
        certificate: tls.map(certificate),
        client_certificate: tls.and_then(|t| t.get("require_client_certificate")?.as_bool()).unwrap_or(false),
        route: String::new(),
        sni: texts(&["filter_chain_match", "server_names"]),
        alpn: texts(&["filter_chain_match", "application_protocols"]),
        issuers: Vec::new(),
        rules: Vec::new(),
    };
    for filter in list(found, &["filters"]) {
        let config = &filter["typed_config"];
        if text(config, &["@type"]).ends_with("HttpConnectionManager") {
            let named = ["rds", "route_config"].map(|kind| {
                let key = if kind == "rds" { "route_config_name" } else { "name" };
                text(config, &[kind, key]).to_owned()
            });
            chain.route = named.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
            list(config, &["http_filters"]).iter().for_each(|filter| filter_facts(filter, &mut chain));
        } else {
            filter_facts(filter, &mut chain);
        }
    }
    chain
}

/// The name of the first certificate a TLS context shows.
pub fn certificate(context: &Value) -> String {
    let common = &context["common_tls_context"];
    let sds = list(common, &["tls_certificate_sds_secret_configs"]).first().map(|s| text(s, &["name"]).to_owned());
    let file = || {
        let first = list(common, &["tls_certificates"]).first()?;
        Some(text(first, &["certificate_chain", "filename"]).to_owned())
    };
    sds.or_else(file).filter(|name| !name.is_empty()).unwrap_or_else(|| "none".into())
}

fn filter_facts(filter: &Value, chain: &mut Chain) {
    let config = &filter["typed_config"];
    let kind = text(config, &["@type"]);
    if kind.ends_with("JwtAuthentication") {
        let providers = config.get("providers").and_then(Value::as_object);
        let issuers: BTreeSet<String> =
            providers.into_iter().flatten().map(|(_, provider)| text(provider, &["issuer"]).to_owned()).collect();
        chain.issuers.extend(issuers);
    }
    if kind.ends_with(".RBAC") {
        let action = match text(config, &["rules", "action"]) {
            "" => "ALLOW",
            action => action,
        };
        let policies = config.pointer("/rules/policies").and_then(Value::as_object);
        match policies.filter(|policies| !policies.is_empty()) {
            Some(policies) => chain.rules.extend(policies.keys().map(|name| (action.to_owned(), name.clone()))),
            None if config.get("rules").is_some() => {
                chain.rules.push((action.to_owned(), "_anonymous_match_nothing_".into()));
            }
            None => {}
        }
    }
}
