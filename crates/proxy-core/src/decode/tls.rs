//! TLS contexts and transport sockets.
//!
//! Invariant: a context whose versions, suites or curves leave nothing that rustls speaks is refused, and so is one that would accept
//! whoever shows any certificate, unless it says so. What only widens what Envoy accepts (old versions, CBC suites) is left out.

mod source;

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::bad::{At, Bad, decode, each, given, only, type_name};
use super::basic::{number, truth};
use super::matcher;
use crate::model::Name;
use crate::model::cluster::TransportSocket;
use crate::model::matcher::StringMatcher;
use crate::model::tls::{
    CertificateSource, DownstreamTls, SanKind, SanMatcher, TlsParams, TlsVersion, TrustSource, UpstreamTls, Validation,
};

const DOWNSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
/// The operating system's roots, as the agent names them.
const SYSTEM_ROOTS: &str = "file-root:system";
const UPSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const RAW: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";

/// TLS 1.2 suites that we speak, by OpenSSL name.
const SUITES: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

/// Suites that Envoy knows and we leave out of a list: no forward secrecy, or CBC. Leaving them out only ever narrows what is accepted.
const DROPPED_SUITES: [&str; 10] = [
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
    "AES256-SHA",
    "AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA",
    "PSK-AES128-CBC-SHA",
    "DES-CBC3-SHA",
];

const CURVES: [&str; 4] = ["X25519MLKEM768", "X25519", "P-256", "P-384"];

/// Curves that Envoy knows and we leave out of a list that has others too.
const DROPPED_CURVES: [&str; 3] = ["P-521", "P-224", "X25519Kyber768Draft00"];

fn typed(socket: &core::TransportSocket) -> Option<&envoy_types::pb::google::protobuf::Any> {
    socket.config_type.as_ref().map(|core::transport_socket::ConfigType::TypedConfig(any)| any)
}

/// The socket of a filter chain; `None` = raw.
pub fn downstream_socket(socket: &core::TransportSocket) -> Result<Option<DownstreamTls>, Bad> {
    match typed(socket) {
        None if socket.name == "envoy.transport_sockets.raw_buffer" => Ok(None),
        None => Err(Bad::field("typed_config", "missing")),
        Some(any) if type_name(any) == RAW => Ok(None),
        Some(any) if type_name(any) == DOWNSTREAM => {
            decode::<pb::DownstreamTlsContext>(any).and_then(|c| downstream(&c)).at("typed_config").map(Some)
        }
        Some(any) => Err(Bad::field("typed_config", format_args!("unsupported transport socket {}", type_name(any)))),
    }
}

/// The socket of a cluster.
pub fn upstream_socket(socket: &core::TransportSocket) -> Result<Arc<TransportSocket>, Bad> {
    match typed(socket) {
        None if socket.name == "envoy.transport_sockets.raw_buffer" => Ok(Arc::new(TransportSocket::Raw)),
        None => Err(Bad::field("typed_config", "missing")),
        Some(any) if type_name(any) == RAW => Ok(Arc::new(TransportSocket::Raw)),
        Some(any) if type_name(any) == UPSTREAM => {
            let tls = decode::<pb::UpstreamTlsContext>(any).and_then(|c| upstream(&c)).at("typed_config")?;
            Ok(Arc::new(TransportSocket::Tls(tls)))
        }
        Some(any) => Err(Bad::field("typed_config", format_args!("unsupported transport socket {}", type_name(any)))),
    }
}

/// `DownstreamTlsContext`.
pub fn downstream(context: &pb::DownstreamTlsContext) -> Result<DownstreamTls, Bad> {
    only!(context, pb::DownstreamTlsContext {
        common_tls_context, require_client_certificate, session_ticket_keys_type, require_sni
    } refuse {
        disable_stateful_session_resumption, session_timeout, ocsp_staple_policy, full_scan_certs_on_sni_mismatch,
        prefer_client_ciphers,
    });
    use pb::downstream_tls_context::SessionTicketKeysType as K;
    match &context.session_ticket_keys_type {
        None | Some(K::DisableStatelessSessionResumption(_)) => {}
        Some(K::SessionTicketKeys(_)) => return Err(Bad::unsupported("session_ticket_keys")),
        Some(K::SessionTicketKeysSdsSecretConfig(_)) => {
            return Err(Bad::unsupported("session_ticket_keys_sds_secret_config"));
        }
    }
    let common = context.common_tls_context.as_ref().ok_or_else(|| Bad::field("common_tls_context", "missing"))?;
    let parts = common_context(common).at("common_tls_context")?;
    if parts.certificates.is_empty() {
        return Err(Bad::field(
            "common_tls_context.tls_certificate_sds_secret_configs",
            "a server needs a certificate",
        ));
    }
    let require = truth(&context.require_client_certificate).unwrap_or(false);
    if require && parts.validation.is_none() {
        return Err(Bad::field("require_client_certificate", "no validation context to check certificates with"));
    }
    Ok(DownstreamTls {
        certificates: parts.certificates.into(),
        validation: parts.validation,
        require_client_certificate: require,
        require_sni: truth(&context.require_sni).unwrap_or(false),
        alpn: parts.alpn,
        params: parts.params,
    })
}

/// `UpstreamTlsContext`.
pub fn upstream(context: &pb::UpstreamTlsContext) -> Result<UpstreamTls, Bad> {
    only!(context, pb::UpstreamTlsContext { common_tls_context, sni, auto_host_sni, auto_sni_san_validation } refuse {
        allow_renegotiation, max_session_keys, enforce_rsa_key_usage,
    });
    let parts = match &context.common_tls_context {
        Some(common) => common_context(common).at("common_tls_context")?,
        None => Parts::default(),
    };
    if context.auto_sni_san_validation && parts.validation.is_none() {
        return Err(Bad::field("auto_sni_san_validation", "no validation context"));
    }
    Ok(UpstreamTls {
        sni: (!context.sni.is_empty()).then(|| context.sni.as_str().into()),
        auto_host_sni: context.auto_host_sni,
        auto_sni_san_validation: context.auto_sni_san_validation,
        auto_san_of_requests: false,
        certificate: only_one(parts.certificates)?,
        validation: parts.validation,
        alpn: parts.alpn,
        params: parts.params,
    })
}

/// A client shows one certificate.
fn only_one(certificates: Vec<CertificateSource>) -> Result<Option<CertificateSource>, Bad> {
    match certificates.len() {
        0 | 1 => Ok(certificates.into_iter().next()),
        _ => Err(Bad::field("common_tls_context.tls_certificates", "a client can show one certificate only")),
    }
}

struct Parts {
    certificates: Vec<CertificateSource>,
    validation: Option<Validation>,
    alpn: Arc<[Name]>,
    params: TlsParams,
}

impl Default for Parts {
    fn default() -> Self {
        Self { certificates: Vec::new(), validation: None, alpn: Arc::from([]), params: TlsParams::default() }
    }
}

fn common_context(common: &pb::CommonTlsContext) -> Result<Parts, Bad> {
    only!(common, pb::CommonTlsContext {
        tls_params, tls_certificates, tls_certificate_sds_secret_configs, alpn_protocols, validation_context_type
    } refuse {
        tls_certificate_provider_instance, custom_tls_certificate_selector, tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance, custom_handshaker, key_log,
    });
    use pb::common_tls_context::ValidationContextType as V;
    let mut certificates = each("tls_certificates", &common.tls_certificates, source::certificate)?;
    let named = each("tls_certificate_sds_secret_configs", &common.tls_certificate_sds_secret_configs, secret)?;
    if !certificates.is_empty() && !named.is_empty() {
        return Err(Bad::field("tls_certificate_sds_secret_configs", "not together with tls_certificates"));
    }
    certificates.extend(named.into_iter().map(CertificateSource::Secret));
    let validation = match &common.validation_context_type {
        None => None,
        Some(V::ValidationContextSdsSecretConfig(config)) => {
            let trust = secret(config).at("validation_context_sds_secret_config")?;
            Some(Validation::of(&trust, Arc::from([])))
        }
        Some(V::CombinedValidationContext(combined)) => Some(validation(combined).at("combined_validation_context")?),
        Some(V::ValidationContext(context)) => Some(plain_validation(context).at("validation_context")?),
        Some(V::ValidationContextCertificateProvider(_)) => {
            return Err(Bad::unsupported("validation_context_certificate_provider"));
        }
        Some(V::ValidationContextCertificateProviderInstance(_)) => {
            return Err(Bad::unsupported("validation_context_certificate_provider_instance"));
        }
    };
    let alpn = each("alpn_protocols", &common.alpn_protocols, |protocol| match protocol.len() {
        1..=255 => Ok(Name::from(protocol.as_str())),
        _ => Err(Bad::new("must have 1 to 255 bytes")),
    })?;
    Ok(Parts {
        certificates,
        validation,
        alpn: alpn.into(),
        params: given("tls_params", &common.tls_params, params)?.unwrap_or_default(),
    })
}

fn secret(config: &pb::SdsSecretConfig) -> Result<Name, Bad> {
    only!(config, pb::SdsSecretConfig { name } refuse { sds_config });
    if config.name.is_empty() { Err(Bad::field("name", "empty")) } else { Ok(config.name.as_str().into()) }
}

fn validation(combined: &pb::common_tls_context::CombinedCertificateValidationContext) -> Result<Validation, Bad> {
    only!(combined, pb::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context, validation_context_sds_secret_config
    } refuse { validation_context_certificate_provider, validation_context_certificate_provider_instance });
    let config = combined.validation_context_sds_secret_config.as_ref();
    let config = config.ok_or_else(|| Bad::field("validation_context_sds_secret_config", "missing"))?;
    let name = secret(config).at("validation_context_sds_secret_config")?;
    let context = combined.default_validation_context.clone().unwrap_or_default();
    let mut validation = validation_context(&context).at("default_validation_context")?;
    if validation.trust.is_some() {
        // In Envoy those of the secret win; whoever writes both means something else.
        return Err(Bad::field("default_validation_context.trusted_ca", "not together with roots by secret"));
    }
    validation.trust = Some(TrustSource::Secret(name));
    Ok(validation)
}

/// A context without SDS: roots, or else pins, must say who is meant.
fn plain_validation(context: &pb::CertificateValidationContext) -> Result<Validation, Bad> {
    let validation = validation_context(context)?;
    let pinned = !validation.hashes.is_empty() || !validation.keys.is_empty();
    if validation.trust.is_none() && (!pinned || !validation.sans.is_empty() || validation.revocations.is_some()) {
        return Err(Bad::field("trusted_ca", "missing"));
    }
    Ok(validation)
}

fn validation_context(context: &pb::CertificateValidationContext) -> Result<Validation, Bad> {
    use pb::certificate_validation_context::TrustChainVerification as T;
    only!(context, pb::CertificateValidationContext {
        match_typed_subject_alt_names, match_subject_alt_names, trusted_ca, verify_certificate_spki, verify_certificate_hash, crl,
        trust_chain_verification, only_verify_leaf_cert_crl, max_verify_depth, system_root_certs
    } refuse {
        ca_certificate_provider_instance, watched_directory, require_signed_certificate_timestamp, allow_expired_certificate,
        custom_validator_config, suppress_client_ca_list,
    });
    let mut sans = each("match_typed_subject_alt_names", &context.match_typed_subject_alt_names, typed_san)?;
    sans.extend(each("match_subject_alt_names", &context.match_subject_alt_names, |m| {
        Ok(SanMatcher { kind: SanKind::Any, matcher: matcher::string(m)? })
    })?);
    let mut trust = given("trusted_ca", &context.trusted_ca, |data| source::trust(data, "file-root:"))?;
    if context.system_root_certs.is_some() && trust.is_none() {
        trust = Some(TrustSource::Secret(SYSTEM_ROOTS.into()));
    }
    Ok(Validation {
        trust,
        revocations: given("crl", &context.crl, |data| source::trust(data, "file-crl:"))?,
        revoke_leaf_only: context.only_verify_leaf_cert_crl,
        hashes: each("verify_certificate_hash", &context.verify_certificate_hash, |text| source::hex_digest(text))?
            .into(),
        keys: each("verify_certificate_spki", &context.verify_certificate_spki, |text| source::base64_digest(text))?
            .into(),
        max_intermediates: number(&context.max_verify_depth),
        accept_untrusted: match T::try_from(context.trust_chain_verification) {
            Ok(T::VerifyTrustChain) => false,
            Ok(T::AcceptUntrusted) => true,
            Err(_) => return Err(Bad::field("trust_chain_verification", "unknown value")),
        },
        sans: sans.into(),
    })
}

fn typed_san(san: &pb::SubjectAltNameMatcher) -> Result<SanMatcher, Bad> {
    use pb::subject_alt_name_matcher::SanType as T;
    let kind = match T::try_from(san.san_type) {
        Ok(T::Dns) => SanKind::Dns,
        Ok(T::Uri) => SanKind::Uri,
        Ok(T::Email) => SanKind::Email,
        Ok(T::IpAddress) => SanKind::Ip,
        Ok(T::OtherName) => return Err(Bad::field("san_type", "OTHER_NAME is not supported")),
        Ok(T::Unspecified) | Err(_) => return Err(Bad::field("san_type", "unknown value")),
    };
    let matcher = san.matcher.as_ref().ok_or_else(|| Bad::field("matcher", "missing"))?;
    let matcher: StringMatcher = matcher::string(matcher).at("matcher")?;
    Ok(SanMatcher { kind, matcher })
}

fn params(params: &pb::TlsParameters) -> Result<TlsParams, Bad> {
    use pb::tls_parameters::TlsProtocol as P;
    only!(params, pb::TlsParameters { tls_minimum_protocol_version, tls_maximum_protocol_version, cipher_suites, ecdh_curves } refuse {
        signature_algorithms, compliance_policies,
    });
    let min = match P::try_from(params.tls_minimum_protocol_version) {
        // Older versions are not spoken: the range only becomes narrower.
        Ok(P::TlSv10 | P::TlSv11) => TlsVersion::V12,
        _ => version(params.tls_minimum_protocol_version, TlsVersion::V12).at("tls_minimum_protocol_version")?,
    };
    // Envoy's automatic maximum for clients is 1.2; ours is 1.3, which any peer may decline.
    let max = version(params.tls_maximum_protocol_version, TlsVersion::V13).at("tls_maximum_protocol_version")?;
    if min > max {
        return Err(Bad::field("tls_maximum_protocol_version", "below the minimum"));
    }
    let mut ciphers: Vec<Name> = Vec::new();
    for group in &params.cipher_suites {
        for suite in group.trim_matches(['[', ']']).split('|') {
            match suite {
                suite if SUITES.contains(&suite) => ciphers.push(suite.into()),
                suite if DROPPED_SUITES.contains(&suite) => {}
                other => return Err(Bad::field("cipher_suites", format_args!("unsupported cipher suite `{other}`"))),
            }
        }
    }
    if ciphers.is_empty() && !params.cipher_suites.is_empty() && min == TlsVersion::V12 {
        return Err(Bad::field("cipher_suites", "none of them is supported"));
    }
    let known = each("ecdh_curves", &params.ecdh_curves, |curve| match curve.as_str() {
        curve if CURVES.contains(&curve) => Ok(Some(Name::from(curve))),
        curve if DROPPED_CURVES.contains(&curve) => Ok(None),
        curve => Err(Bad::new(format_args!("unsupported curve `{curve}`"))),
    })?;
    let curves: Vec<Name> = known.into_iter().flatten().collect();
    if curves.is_empty() && !params.ecdh_curves.is_empty() {
        return Err(Bad::field("ecdh_curves", "none of them is supported"));
    }
    Ok(TlsParams { min, max, ciphers: ciphers.into(), curves: curves.into() })
}

fn version(value: i32, automatic: TlsVersion) -> Result<TlsVersion, Bad> {
    use pb::tls_parameters::TlsProtocol as P;
    match P::try_from(value) {
        Ok(P::TlsAuto) => Ok(automatic),
        Ok(P::TlSv12) => Ok(TlsVersion::V12),
        Ok(P::TlSv13) => Ok(TlsVersion::V13),
        Ok(P::TlSv10 | P::TlSv11) => Err(Bad::new("TLS before 1.2 is not supported")),
        Err(_) => Err(Bad::new("unknown value")),
    }
}
