//! Every parser of bytes that come from elsewhere, as a function of bytes that must return.
//!
//! Invariant: a target may refuse its input in any way it likes, but must not panic, hang or allocate without
//! bound. `carrick-fuzz` replays the corpus and mutates it; `libfuzzer/` runs the same functions with coverage.

pub mod differential;
pub mod rehearsal;
mod tls;

use carrick_proxy_core::ConfigStore;
use envoy_types::pb::google::protobuf::Any;

/// A parser under test.
pub struct Target {
    /// Its name, and that of its corpus folder.
    pub name: &'static str,
    /// The parser.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "client_hello", run: client_hello },
    Target { name: "tls_handshake", run: tls::handshake },
    Target { name: "tls_records", run: tls::records },
    Target { name: "http_sniff", run: http_sniff },
    Target { name: "http1", run: carrick_proxy::read_anything },
    Target { name: "http2", run: carrick_proxy::talk_anything },
    Target { name: "xds_cluster", run: |data| xds("envoy.config.cluster.v3.Cluster", data) },
    Target { name: "xds_endpoints", run: |data| xds("envoy.config.endpoint.v3.ClusterLoadAssignment", data) },
    Target { name: "xds_listener", run: |data| xds("envoy.config.listener.v3.Listener", data) },
    Target { name: "xds_routes", run: |data| xds("envoy.config.route.v3.RouteConfiguration", data) },
    Target { name: "unix_authority", run: unix_authority },
    Target { name: "csr", run: csr },
    Target { name: "certificate", run: certificate },
    Target { name: "pem", run: pem },
    Target { name: "spiffe_id", run: spiffe_id },
    Target { name: "node_id", run: node_id },
    Target { name: "selector", run: selector },
    Target { name: "manifest", run: manifest },
    Target { name: "path", run: path },
    Target { name: "jwt", run: jwt },
    Target { name: "capture", run: capture },
    Target { name: "api_request", run: carrick_apiserver::parse_anything },
    Target { name: "dns_query", run: carrick_pod::parse_query },
    Target { name: "spdy", run: carrick_streams::parse_anything },
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

fn client_hello(data: &[u8]) {
    let _ = carrick_proxy::inspect::client_hello::parse(data);
}

fn http_sniff(data: &[u8]) {
    let _ = carrick_proxy::inspect::http::sniff(data);
}

/// The first byte cuts the rest in two: a resource, and an update of it.
fn xds(message: &str, data: &[u8]) {
    let type_url = format!("type.googleapis.com/{message}");
    let Some((first, rest)) = data.split_first() else { return };
    let (one, two) = rest.split_at(rest.len() * usize::from(*first) / 256);
    let mut store = ConfigStore::new();
    for body in [one, two] {
        let any = Any { type_url: type_url.clone(), value: body.to_vec() };
        let _ = store.apply(&type_url, vec![("fuzz".into(), any)], &[]);
        let _ = store.runtime();
        let _ = store.interests();
    }
}

fn csr(data: &[u8]) {
    if let Some(text) = text(data) {
        let _ = carrick_pki::csr::CertificateRequest::from_pem(text);
    }
}

fn certificate(data: &[u8]) {
    let _ = carrick_pki::CertificateInfo::read(&rustls_pki_types::CertificateDer::from(data));
}

fn pem(data: &[u8]) {
    let _ = carrick_pki::pem::certificates(data);
    let _ = carrick_pki::pem::private_key(data);
}

fn spiffe_id(data: &[u8]) {
    let Some(id) = text(data).and_then(|text| text.parse::<carrick_base::SpiffeId>().ok()) else { return };
    assert_eq!(id.as_str().parse(), Ok(id.clone()), "an accepted identity reads back as itself");
    let _ = (id.namespace(), id.service_account(), id.trust_domain());
}

fn node_id(data: &[u8]) {
    let _ = text(data).map(str::parse::<carrick_xds::NodeId>);
}

fn selector(data: &[u8]) {
    let Some(selector) = text(data).and_then(|text| carrick_base::Selector::parse(text).ok()) else { return };
    let again = carrick_base::Selector::parse(&selector.to_string());
    assert_eq!(again.as_ref(), Ok(&selector), "a selector reads back from its text");
}

fn manifest(data: &[u8]) {
    for object in carrick_api::parse::objects(data).unwrap_or_default() {
        let _ = carrick_api::validate::object(&object);
    }
}

/// A path that was accepted is normal: normalising it again changes nothing.
fn path(data: &[u8]) {
    use carrick_proxy_core::{hygiene::path::normalize, model::hcm::PathOptions};
    let Some(text) = text(data) else { return };
    for merge_slashes in [false, true] {
        let options = PathOptions { normalize: true, merge_slashes, ..Default::default() };
        if let Ok(once) = normalize(text, &options, false) {
            let twice = normalize(&once, &options, false).map(|path| path.into_owned()).ok();
            assert_eq!(twice.as_deref(), Some(&*once), "normalising is idempotent");
        }
    }
}

/// A token and a key set, cut at the first byte's share: neither reading nor checking them may panic.
fn jwt(data: &[u8]) {
    use carrick_proxy_core::jws::{keys::KeySet, token::Token};
    let Some((first, rest)) = data.split_first() else { return };
    let (one, two) = rest.split_at(rest.len() * usize::from(*first) / 256);
    let keys = KeySet::parse(two).unwrap_or_default();
    if let Some(Ok(token)) = text(one).map(Token::parse) {
        assert!(keys.is_empty() || keys.verify(&token).is_err() || !token.signature.is_empty());
    }
}

/// Pieces make no difference, and no length changes.
fn unix_authority(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else { return };
    let whole = carrick_xds::server::authority::mended(&[data]);
    assert_eq!(whole.len(), data.len());
    let (one, other) = data.split_at(usize::from(*cut).min(data.len()));
    assert_eq!(carrick_xds::server::authority::mended(&[one, other]), whole);
}

/// Annotation values that shape packet rules: what is accepted must not break out of its place in the rule text.
fn capture(data: &[u8]) {
    let Some(text) = text(data) else { return };
    for name in ["includeOutboundIPRanges", "excludeOutboundPorts", "excludeInterfaces", "includeInboundPorts"] {
        let key = format!("traffic.sidecar.istio.io/{name}");
        let _ = carrick_capture::annotations::parse(&[(key, text.to_owned())].into());
    }
}
