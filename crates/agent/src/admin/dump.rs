//! `/config_dump` and `/certs`: what is in force, as Envoy's messages.
//!
//! Invariant: private keys are replaced as Envoy replaces them, before anything is encoded.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use carrick_envoy_json::Names;
use carrick_pki::CertificateInfo;
use carrick_proxy::Secret;
use carrick_runtime::admin::Request;
use carrick_xds::{Any, TypeUrl};
use envoy_types::pb::envoy::admin::v3::{
    BootstrapConfigDump, Certificate, CertificateDetails, Certificates, ClustersConfigDump, ConfigDump,
    EndpointsConfigDump, ListenersConfigDump, RoutesConfigDump, SecretsConfigDump, SubjectAlternateName,
    UpdateFailureState, clusters_config_dump, endpoints_config_dump, listeners_config_dump, routes_config_dump,
    secrets_config_dump, subject_alternate_name,
};
use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::config::listener::v3::{Listener, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::google::protobuf::Timestamp;
use prost::{Message, Name};

use crate::native::{Entry, NativeEngine};
use crate::sds;

const REDACTED: &[u8] = b"[redacted]";

/// The sections of `/config_dump`, narrowed by `resource`, `name_regex` and `include_eds`.
pub fn config_dump(native: &NativeEngine, request: &Request) -> Result<ConfigDump, String> {
    let names = match request.query("name_regex") {
        Some(text) => Some(regex::Regex::new(&text).map_err(|e| e.to_string())?),
        None => None,
    };
    let keep = |name: &str| names.as_ref().is_none_or(|regex| regex.is_match(name));
    let wanted = request.query("resource");
    let section = |name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let mut configs = Vec::new();
    if section("bootstrap") {
        configs.push(pack(&bootstrap(native)));
    }
    if section("static_clusters") || section("dynamic_active_clusters") || section("dynamic_warming_clusters") {
        configs.push(pack(&clusters(native, &keep)));
    }
    let endpoints = request.flag("include_eds") || wanted.as_deref().is_some_and(|w| w.ends_with("_endpoint_configs"));
    if endpoints && (wanted.is_none() || wanted.as_deref().is_some_and(|w| w.ends_with("_endpoint_configs"))) {
        configs.push(pack(&endpoint_configs(native, &keep)));
    }
    if section("static_listeners") || section("dynamic_listeners") {
        configs.push(pack(&listeners(native, &keep)));
    }
    if section("static_route_configs") || section("dynamic_route_configs") {
        configs.push(pack(&routes(native, &keep)));
    }
    if section("dynamic_active_secrets") || section("dynamic_warming_secrets") {
        configs.push(pack(&secrets(native, &keep)));
    }
    if configs.is_empty() {
        return Err(format!("{} not found in config dump", wanted.unwrap_or(Cow::Borrowed(""))));
    }
    Ok(ConfigDump { configs })
}

fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(super) fn timestamp(time: SystemTime) -> Option<Timestamp> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp {
        seconds: i64::try_from(since.as_secs()).ok()?,
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    })
}

fn bootstrap(native: &NativeEngine) -> BootstrapConfigDump {
    let bootstrap = Bootstrap { node: Some(native.node.clone()), ..Bootstrap::default() };
    BootstrapConfigDump { bootstrap: Some(bootstrap), last_updated: timestamp(native.started) }
}

fn clusters(native: &NativeEngine, keep: &dyn Fn(&str) -> bool) -> ClustersConfigDump {
    let all = native.book(|book| book.resources(&TypeUrl::Cluster));
    ClustersConfigDump {
        dynamic_active_clusters: all
            .into_iter()
            .filter(|(name, ..)| keep(name))
            .map(|(_, body, entry)| clusters_config_dump::DynamicCluster {
                version_info: entry.version.to_string(),
                cluster: Some(body),
                last_updated: timestamp(entry.at),
                ..Default::default()
            })
            .collect(),
        ..ClustersConfigDump::default()
    }
}

fn endpoint_configs(native: &NativeEngine, keep: &dyn Fn(&str) -> bool) -> EndpointsConfigDump {
    let all = native.book(|book| book.resources(&TypeUrl::Endpoint));
    EndpointsConfigDump {
        dynamic_endpoint_configs: all
            .into_iter()
            .filter(|(name, ..)| keep(name))
            .map(|(_, body, entry)| endpoints_config_dump::DynamicEndpointConfig {
                version_info: entry.version.to_string(),
                endpoint_config: Some(body),
                last_updated: timestamp(entry.at),
                ..Default::default()
            })
            .collect(),
        ..EndpointsConfigDump::default()
    }
}

fn listeners(native: &NativeEngine, keep: &dyn Fn(&str) -> bool) -> ListenersConfigDump {
    let (all, names, failures) = native.book(|book| {
        let failures: Vec<_> =
            book.failures(&TypeUrl::Listener).map(|(name, failure)| (name.clone(), failure.clone())).collect();
        (book.resources(&TypeUrl::Listener), book.names(&TypeUrl::Listener), failures)
    });
    let state = |body: Any, entry: Entry| listeners_config_dump::DynamicListenerState {
        version_info: entry.version.to_string(),
        listener: Some(body),
        last_updated: timestamp(entry.at),
    };
    let mut dynamic_listeners = Vec::new();
    for name in names.iter().filter(|name| keep(name)) {
        let active = all.iter().find(|(n, ..)| n == name).map(|(_, body, entry)| state(body.clone(), entry.clone()));
        let error = failures.iter().find(|(n, _)| n == name).map(|(_, failure)| UpdateFailureState {
            // A refused resource may be unreadable; it must not take the dump with it.
            failed_configuration: Some(failure.body.clone())
                .filter(|body| carrick_envoy_json::any_to_json(&body.type_url, &body.value, Names::Proto).is_ok()),
            last_update_attempt: timestamp(failure.at),
            details: failure.details.clone(),
            version_info: failure.version.to_string(),
        });
        dynamic_listeners.push(listeners_config_dump::DynamicListener {
            name: name.to_string(),
            active_state: active,
            error_state: error,
            ..Default::default()
        });
    }
    ListenersConfigDump { dynamic_listeners, ..ListenersConfigDump::default() }
}

/// Envoy shows the tables written into listeners as static ones.
fn inline_routes(native: &NativeEngine) -> Vec<(String, Any, Entry)> {
    let mut found = Vec::new();
    for (_, body, entry) in native.book(|book| book.resources(&TypeUrl::Listener)) {
        let Ok(listener) = Listener::decode(body.value.as_slice()) else { continue };
        let chains = listener.filter_chains.into_iter().chain(listener.default_filter_chain);
        for filter in chains.flat_map(|chain| chain.filters) {
            let Some(filter::ConfigType::TypedConfig(config)) = filter.config_type else { continue };
            if config.type_url != HttpConnectionManager::type_url() {
                continue;
            }
            let Ok(manager) = HttpConnectionManager::decode(config.value.as_slice()) else { continue };
            if let Some(RouteSpecifier::RouteConfig(table)) = manager.route_specifier {
                found.push((table.name.clone(), pack(&table), entry.clone()));
            }
        }
    }
    found
}

fn routes(native: &NativeEngine, keep: &dyn Fn(&str) -> bool) -> RoutesConfigDump {
    let all = native.book(|book| book.resources(&TypeUrl::Route));
    RoutesConfigDump {
        static_route_configs: inline_routes(native)
            .into_iter()
            .filter(|(name, ..)| keep(name))
            .map(|(_, body, entry)| routes_config_dump::StaticRouteConfig {
                route_config: Some(body),
                last_updated: timestamp(entry.at),
            })
            .collect(),
        dynamic_route_configs: all
            .into_iter()
            .filter(|(name, ..)| keep(name))
            .map(|(_, body, entry)| routes_config_dump::DynamicRouteConfig {
                version_info: entry.version.to_string(),
                route_config: Some(body),
                last_updated: timestamp(entry.at),
                ..Default::default()
            })
            .collect(),
    }
}

fn secrets(native: &NativeEngine, keep: &dyn Fn(&str) -> bool) -> SecretsConfigDump {
    let current = native.store.subscribe().borrow().clone();
    let mut all: Vec<_> = current.by_name.iter().filter(|(name, _)| keep(name)).collect();
    all.sort_by_key(|(name, _)| name.as_str());
    SecretsConfigDump {
        dynamic_active_secrets: all
            .into_iter()
            .map(|(name, secret)| {
                let mut shown = sds::to_envoy(name, secret);
                redact(&mut shown);
                let version = match secret {
                    Secret::Identity(identity) => identity.serial.clone(),
                    Secret::Trust(_) => String::new(),
                };
                let since = match secret {
                    Secret::Identity(identity) => timestamp(identity.not_before),
                    Secret::Trust(_) => timestamp(native.started),
                };
                secrets_config_dump::DynamicSecret {
                    name: name.clone(),
                    version_info: version,
                    last_updated: since,
                    secret: Some(pack(&shown)),
                    ..Default::default()
                }
            })
            .collect(),
        ..SecretsConfigDump::default()
    }
}

fn redact(secret: &mut tls::Secret) {
    if let Some(tls::secret::Type::TlsCertificate(pair)) = &mut secret.r#type {
        pair.private_key =
            Some(DataSource { specifier: Some(Specifier::InlineBytes(REDACTED.to_vec())), ..DataSource::default() });
    }
}

/// `/certs`.
pub fn certificates(native: &NativeEngine) -> Certificates {
    let current = native.store.subscribe().borrow().clone();
    let now = native.clock.now();
    let details = |ders: &[rustls::pki_types::CertificateDer<'static>]| -> Vec<CertificateDetails> {
        ders.iter().filter_map(|der| CertificateInfo::read(der).ok()).map(|info| detail(&info, now)).collect()
    };
    let mut names: Vec<_> = current.by_name.keys().collect();
    names.sort();
    let (mut ca_cert, mut cert_chain) = (Vec::new(), Vec::new());
    for name in names {
        match current.by_name.get(name) {
            Some(Secret::Identity(identity)) => cert_chain.extend(details(&identity.chain)),
            Some(Secret::Trust(roots)) => ca_cert.extend(details(roots.roots())),
            None => {}
        }
    }
    Certificates { certificates: vec![Certificate { ca_cert, cert_chain }] }
}

fn detail(info: &CertificateInfo, now: SystemTime) -> CertificateDetails {
    use subject_alternate_name::Name as San;
    let uris = info.uris.iter().map(|n| San::Uri(n.clone()));
    let names = uris
        .chain(info.dns.iter().map(|n| San::Dns(n.clone())))
        .chain(info.ips.iter().map(|n| San::IpAddress(n.to_string())));
    let left = info.not_after.duration_since(now).unwrap_or_default();
    CertificateDetails {
        path: "<inline>".to_owned(),
        serial_number: info.serial.clone(),
        subject_alt_names: names.map(|name| SubjectAlternateName { name: Some(name) }).collect(),
        days_until_expiration: left.as_secs().checked_div(86_400).unwrap_or(0),
        valid_from: timestamp(info.not_before),
        expiration_time: timestamp(info.not_after),
        ocsp_details: None,
    }
}
