//! TLS contexts of both sides (semantics §2.7, §3.8).
//!
//! Invariant: TLS 1.2 at least and 1.3 at most are written out, because Envoy's client default stops at 1.2; a mesh client and a mesh server
//! always verify against the mesh's roots.

use std::{net::IpAddr, sync::Arc};

use carrick_mesh::{
    FileCerts,
    model::sidecar::{ClientCertificates, IngressTls},
    names,
    view::{
        MeshTls, ServerTls, UpstreamHttp, UserTls,
        cluster::MeshAlpn,
        gateway::{ClientCertificate, GatewayAlpn, GatewayTls, TlsVersion},
    },
};
use envoy_types::pb::envoy::{
    config::core::v3::{ConfigSource, DataSource, TransportSocket, data_source::Specifier},
    extensions::transport_sockets::{
        raw_buffer::v3::RawBuffer,
        tls::v3::{
            CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
            SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
            certificate_validation_context::TrustChainVerification,
            common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            subject_alt_name_matcher::SanType,
            tls_parameters::TlsProtocol,
        },
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};

use crate::wire;

const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
const RAW_SOCKET: &str = "envoy.transport_sockets.raw_buffer";

/// What an inbound chain offers, whatever follows. Not `istio-peer-exchange`, as Istio's does: where both sides agree on it, Istio's Envoy
/// sends its metadata ahead of the first bytes (its filter `istio.metadata_exchange`), and nobody here would take them out again.
pub const ALPN_SERVER: [&str; 2] = ["h2", "http/1.1"];
/// What mesh TLS offers for anything but HTTP; for the same reason not `istio-peer-exchange`.
pub const ALPN_TCP: [&str; 1] = ["istio"];
/// What mesh TLS offers for HTTP/1.1.
pub const ALPN_HTTP1: [&str; 3] = ["istio-http/1.1", "istio", "http/1.1"];
/// What mesh TLS offers for HTTP/2.
pub const ALPN_HTTP2: [&str; 3] = ["istio-h2", "istio", "h2"];

/// TLS 1.2 suites a mesh server takes, unless the mesh says otherwise.
const SERVER_SUITES: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
];

/// The socket of an inbound chain that terminates mesh TLS.
pub fn server(tls: &ServerTls) -> Option<TransportSocket> {
    let default: Vec<Arc<str>> = SERVER_SUITES.iter().map(|s| Arc::from(*s)).collect();
    let suites = if tls.cipher_suites.is_empty() { &default } else { &tls.cipher_suites };
    let prefix = |td: &Arc<str>| san(SanType::Uri, MatchPattern::Prefix(format!("spiffe://{td}/")));
    let secrets = Secrets::of(tls.files.as_ref());
    let mut common = common(parameters(tls.min_tls13, suites), &ALPN_SERVER);
    common.tls_certificate_sds_secret_configs = vec![secrets.certificate];
    common.validation_context_type =
        Some(combined(tls.trust_domains.iter().map(prefix).collect(), secrets.roots, None));
    let context = DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: wire::flag(true),
        ..DownstreamTlsContext::default()
    };
    wire::transport_socket(TLS_SOCKET, wire::any(&context))
}

/// The socket of an inbound port that a Sidecar gives a certificate of its own (§2.8).
pub fn ingress(tls: &IngressTls) -> Option<TransportSocket> {
    let version = |minor| if minor == 3 { TlsProtocol::TlSv13 } else { TlsProtocol::TlSv12 };
    let parameters = TlsParameters {
        tls_minimum_protocol_version: version(tls.min_version).into(),
        tls_maximum_protocol_version: version(tls.max_version.max(tls.min_version)).into(),
        cipher_suites: tls.cipher_suites.iter().map(ToString::to_string).collect(),
        ..TlsParameters::default()
    };
    let mut common = common(parameters, &ALPN_SERVER);
    common.tls_certificate_sds_secret_configs = vec![secret(&tls.certificate)];
    let names = || tls.subject_alt_names.iter().map(|name| exact(name)).collect();
    common.validation_context_type =
        tls.roots.as_ref().map(|roots| combined(names(), secret(roots), tls.crl.as_deref()));
    let context = DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: wire::flag(tls.clients == ClientCertificates::Required),
        ..DownstreamTlsContext::default()
    };
    wire::transport_socket(TLS_SOCKET, wire::any(&context))
}

/// The socket of a gateway's chain that terminates TLS (semantics §9.5–§9.7).
pub fn gateway(tls: &GatewayTls) -> Option<TransportSocket> {
    let alpn: &[&str] = match tls.alpn {
        GatewayAlpn::Http | GatewayAlpn::MeshTcp => &ALPN_SERVER,
        GatewayAlpn::None => &[],
    };
    let version = |version: TlsVersion| match version {
        TlsVersion::V1_0 => TlsProtocol::TlSv10,
        TlsVersion::V1_1 => TlsProtocol::TlSv11,
        TlsVersion::V1_2 => TlsProtocol::TlSv12,
        TlsVersion::V1_3 => TlsProtocol::TlSv13,
    };
    let parameters = TlsParameters {
        tls_minimum_protocol_version: version(tls.min).into(),
        tls_maximum_protocol_version: version(tls.max).into(),
        cipher_suites: tls.cipher_suites.iter().map(ToString::to_string).collect(),
        ..TlsParameters::default()
    };
    let mut common = common(parameters, alpn);
    common.tls_certificate_sds_secret_configs = tls.certificates.iter().map(|name| secret(name)).collect();
    let trust = if tls.accept_untrusted {
        TrustChainVerification::AcceptUntrusted
    } else {
        TrustChainVerification::VerifyTrustChain
    };
    let validation = CertificateValidationContext {
        match_typed_subject_alt_names: tls.sans.iter().map(|s| exact(s)).collect(),
        verify_certificate_spki: tls.spki.iter().map(ToString::to_string).collect(),
        verify_certificate_hash: tls.hashes.iter().map(ToString::to_string).collect(),
        trust_chain_verification: trust.into(),
        crl: tls.crl.as_deref().map(file),
        ..CertificateValidationContext::default()
    };
    common.validation_context_type = match (tls.client, &tls.roots) {
        (ClientCertificate::None, _) => None,
        (_, Some(roots)) => Some(with_roots(validation, secret(roots))),
        (_, None) => Some(ValidationContextType::ValidationContext(validation)),
    };
    let context = DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: wire::flag(tls.client == ClientCertificate::Required),
        ..DownstreamTlsContext::default()
    };
    wire::transport_socket(TLS_SOCKET, wire::any(&context))
}

/// The socket of mesh TLS as a client.
pub fn mesh_client(tls: &MeshTls) -> Option<TransportSocket> {
    let alpn: &[&str] = match tls.alpn {
        MeshAlpn::Tcp | MeshAlpn::ByRequest => &ALPN_TCP,
        MeshAlpn::Http1 => &ALPN_HTTP1,
        MeshAlpn::Http2 => &ALPN_HTTP2,
    };
    let secrets = Secrets::of(tls.files.as_ref());
    let mut common = common(parameters(tls.min_tls13, &tls.cipher_suites), alpn);
    common.tls_certificate_sds_secret_configs = vec![secrets.certificate];
    common.validation_context_type = Some(combined(tls.sans.iter().map(|s| exact(s)).collect(), secrets.roots, None));
    client(common, &tls.sni)
}

/// The socket of a rule's own TLS as a client.
pub fn user_client(tls: &UserTls, http: UpstreamHttp) -> Option<TransportSocket> {
    let alpn: &[&str] = if http == UpstreamHttp::Http2 { &["h2"] } else { &[] };
    let mut common = common(parameters(false, &[]), alpn);
    common.tls_certificate_sds_secret_configs = tls.certificate.iter().map(|name| secret(name)).collect();
    common.validation_context_type = tls
        .roots
        .as_ref()
        .map(|roots| combined(tls.sans.iter().map(|s| exact(s)).collect(), secret(roots), tls.crl.as_deref()));
    client(common, tls.sni.as_deref().unwrap_or_default())
}

/// The socket without TLS.
pub fn plain() -> Option<TransportSocket> {
    wire::transport_socket(RAW_SOCKET, wire::any(&RawBuffer {}))
}

fn client(common: CommonTlsContext, sni: &str) -> Option<TransportSocket> {
    let context =
        UpstreamTlsContext { common_tls_context: Some(common), sni: sni.to_owned(), ..UpstreamTlsContext::default() };
    wire::transport_socket(TLS_SOCKET, wire::any(&context))
}

/// Where certificate and roots come from.
struct Secrets {
    certificate: SdsSecretConfig,
    roots: SdsSecretConfig,
}

impl Secrets {
    fn of(files: Option<&FileCerts>) -> Self {
        match files {
            Some(files) => Self {
                certificate: secret(&names::file_cert(&files.chain, &files.key)),
                roots: secret(&names::file_root(&files.root)),
            },
            None => Self { certificate: secret(names::SECRET_WORKLOAD), roots: secret(names::SECRET_ROOTS) },
        }
    }
}

/// How long Envoy waits for a secret that a person has to provide, in milliseconds. While it waits, a cluster keeps its former
/// settings, which may be plaintext, and no further change of any cluster is acknowledged; afterwards connections that need the
/// secret fail until it is there.
const PROVIDED_WAIT: u64 = 2000;

/// A secret by its name: the agent has the workload's own and files, the control plane the cluster's. Only the workload's own is
/// certain to come, and so waited for without limit.
fn secret(name: &str) -> SdsSecretConfig {
    let from_cluster =
        ["kubernetes://", "kubernetes-gateway://", "configmap://"].iter().any(|scheme| name.starts_with(scheme));
    let own = name == names::SECRET_WORKLOAD || name == names::SECRET_ROOTS;
    let source: Option<ConfigSource> = if from_cluster {
        wire::ads().map(|source| ConfigSource { initial_fetch_timeout: wire::millis(PROVIDED_WAIT), ..source })
    } else {
        wire::agent_sds(if own { 0 } else { PROVIDED_WAIT })
    };
    SdsSecretConfig { name: name.to_owned(), sds_config: source }
}

fn common(parameters: TlsParameters, alpn: &[&str]) -> CommonTlsContext {
    CommonTlsContext {
        tls_params: Some(parameters),
        alpn_protocols: alpn.iter().map(|a| (*a).to_owned()).collect(),
        ..CommonTlsContext::default()
    }
}

fn parameters(min_tls13: bool, suites: &[Arc<str>]) -> TlsParameters {
    let minimum = if min_tls13 { TlsProtocol::TlSv13 } else { TlsProtocol::TlSv12 };
    TlsParameters {
        tls_minimum_protocol_version: minimum.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        cipher_suites: suites.iter().map(ToString::to_string).collect(),
        ..TlsParameters::default()
    }
}

fn combined(names: Vec<SubjectAltNameMatcher>, roots: SdsSecretConfig, crl: Option<&str>) -> ValidationContextType {
    let default = CertificateValidationContext {
        match_typed_subject_alt_names: names,
        crl: crl.map(file),
        ..CertificateValidationContext::default()
    };
    with_roots(default, roots)
}

fn with_roots(default: CertificateValidationContext, roots: SdsSecretConfig) -> ValidationContextType {
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(default),
        validation_context_sds_secret_config: Some(roots),
        ..CombinedCertificateValidationContext::default()
    })
}

fn file(path: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::Filename(path.to_owned())), ..DataSource::default() }
}

/// An exact name, of the type its form shows.
fn exact(name: &str) -> SubjectAltNameMatcher {
    let kind = if name.contains("://") {
        SanType::Uri
    } else if name.parse::<IpAddr>().is_ok() {
        SanType::IpAddress
    } else {
        SanType::Dns
    };
    san(kind, MatchPattern::Exact(name.to_owned()))
}

fn san(kind: SanType, pattern: MatchPattern) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: kind.into(),
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }),
        ..SubjectAltNameMatcher::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_workloads_own_secrets_are_waited_for_without_limit() {
        let wait = |name: &str| secret(name).sds_config.and_then(|source| source.initial_fetch_timeout);
        for own in [names::SECRET_WORKLOAD, names::SECRET_ROOTS] {
            assert_eq!(wait(own), wire::millis(0), "{own}");
        }
        for provided in ["file-cert:/a/cert.pem~/a/key.pem", "file-root:/a/ca.pem", "kubernetes://partner"] {
            assert_eq!(wait(provided), wire::millis(PROVIDED_WAIT), "{provided}");
        }
    }
}
