//! TLS contexts and transport sockets.
//!
//! Invariant: secrets by SDS name only; a context whose versions or suites leave nothing that rustls speaks is refused.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::bad::{At, Bad, decode, each, given, only, type_name};
use super::basic::truth;
use super::matcher;
use crate::model::Name;
use crate::model::cluster::TransportSocket;
use crate::model::matcher::StringMatcher;
use crate::model::tls::{DownstreamTls, SanKind, SanMatcher, TlsParams, TlsVersion, UpstreamTls, Validation};

const DOWNSTREAM: &str = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
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
    only!(context, pb::DownstreamTlsContext { common_tls_context, require_client_certificate, session_ticket_keys_type } refuse {
        require_sni, disable_stateful_session_resumption, session_timeout, ocsp_staple_policy, full_scan_certs_on_sni_mismatch,
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
    let missing =
        || Bad::field("common_tls_context.tls_certificate_sds_secret_configs", "a server needs a certificate");
    let require = truth(&context.require_client_certificate).unwrap_or(false);
    if require && parts.validation.is_none() {
        return Err(Bad::field("require_client_certificate", "no validation context to check certificates with"));
    }
    Ok(DownstreamTls {
        certificate: parts.certificate.ok_or_else(missing)?,
        validation: parts.validation,
        require_client_certificate: require,
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
        certificate: parts.certificate,
        validation: parts.validation,
        alpn: parts.alpn,
        params: parts.params,
    })
}

struct Parts {
    certificate: Option<Name>,
    validation: Option<Validation>,
    alpn: Arc<[Name]>,
    params: TlsParams,
}

impl Default for Parts {
    fn default() -> Self {
        Self { certificate: None, validation: None, alpn: Arc::from([]), params: TlsParams::default() }
    }
}

fn common_context(common: &pb::CommonTlsContext) -> Result<Parts, Bad> {
    only!(common, pb::CommonTlsContext { tls_params, tls_certificate_sds_secret_configs, alpn_protocols, validation_context_type } refuse {
        tls_certificates, tls_certificate_provider_instance, custom_tls_certificate_selector, tls_certificate_certificate_provider,
        tls_certificate_certificate_provider_instance, custom_handshaker, key_log,
    });
    use pb::common_tls_context::ValidationContextType as V;
    if common.tls_certificate_sds_secret_configs.len() > 1 {
        return Err(Bad::field("tls_certificate_sds_secret_configs", "more than one certificate is not supported"));
    }
    let names = each("tls_certificate_sds_secret_configs", &common.tls_certificate_sds_secret_configs, secret)?;
    let validation = match &common.validation_context_type {
        None => None,
        Some(V::ValidationContextSdsSecretConfig(config)) => {
            let trust = secret(config).at("validation_context_sds_secret_config")?;
            Some(Validation { trust, sans: Arc::from([]) })
        }
        Some(V::CombinedValidationContext(combined)) => Some(validation(combined).at("combined_validation_context")?),
        Some(V::ValidationContext(_)) => {
            return Err(Bad::field("validation_context", "only trust from SDS is supported"));
        }
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
        certificate: names.into_iter().next(),
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
    let sans = given("default_validation_context", &combined.default_validation_context, sans)?.unwrap_or_default();
    Ok(Validation { trust: secret(config).at("validation_context_sds_secret_config")?, sans: sans.into() })
}

fn sans(context: &pb::CertificateValidationContext) -> Result<Vec<SanMatcher>, Bad> {
    only!(context, pb::CertificateValidationContext { match_typed_subject_alt_names, match_subject_alt_names } refuse {
        trusted_ca, ca_certificate_provider_instance, system_root_certs, watched_directory, verify_certificate_spki,
        verify_certificate_hash, require_signed_certificate_timestamp, crl, allow_expired_certificate, trust_chain_verification,
        custom_validator_config, only_verify_leaf_cert_crl, max_verify_depth, suppress_client_ca_list,
    });
    let mut all = each("match_typed_subject_alt_names", &context.match_typed_subject_alt_names, typed_san)?;
    all.extend(each("match_subject_alt_names", &context.match_subject_alt_names, |m| {
        Ok(SanMatcher { kind: SanKind::Any, matcher: matcher::string(m)? })
    })?);
    Ok(all)
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
    only!(params, pb::TlsParameters { tls_minimum_protocol_version, tls_maximum_protocol_version, cipher_suites, ecdh_curves } refuse {
        signature_algorithms, compliance_policies,
    });
    let min = version(params.tls_minimum_protocol_version, TlsVersion::V12).at("tls_minimum_protocol_version")?;
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
    let curves = each("ecdh_curves", &params.ecdh_curves, |curve| {
        if CURVES.contains(&curve.as_str()) {
            Ok(Name::from(curve.as_str()))
        } else {
            Err(Bad::new(format_args!("unsupported curve `{curve}`")))
        }
    })?;
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
