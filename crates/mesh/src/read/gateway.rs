//! Gateway objects (semantics §9).
//!
//! Invariant: a server whose TLS cannot be built is left out whole, so that its port never speaks plaintext or takes everybody instead.

use std::sync::Arc;

use carrick_api::{
    Protocol,
    istio::{
        gateway::{Server, ServerTls, ServerTlsMode, TlsProtocol},
        server_tls::CIPHER_SUITES,
    },
};
use carrick_base::{Diagnostic, HostPattern, Severity};

use super::{finding, origin};
use crate::{
    codes,
    gateway_api::ONLY_NAMESPACE,
    model::{
        Origin,
        gateway::{
            ClientCertificate, GatewayAlpn, GatewayRule, GatewayServer, GatewayTls, ServerPayload, ServerSecurity,
            TlsVersion,
        },
    },
    names,
};

/// Certificates of one server that are used: one of each kind of key.
const MAX_CERTIFICATES: usize = 2;

/// Bytes of a SHA-256.
const SHA256: usize = 32;

pub(crate) fn read(from: &carrick_api::Gateway, found: &mut Vec<Diagnostic>) -> GatewayRule {
    let origin = origin("Gateway", &from.metadata);
    let mut servers = Vec::new();
    for (index, server) in from.spec.servers.iter().enumerate() {
        match self::server(index, server, &origin, found) {
            Ok(server) => servers.push(server),
            Err((field, message)) => {
                let field = format!("spec.servers[{index}]{field}");
                let message = format!("{message}; the server is left out");
                found.push(finding(&origin, codes::UNREADABLE, Severity::Error, &field, message));
            }
        }
    }
    let only = from.metadata.annotations.get(ONLY_NAMESPACE).map(|n| n.as_str().into());
    GatewayRule { selector: from.spec.selector.clone(), only, servers, origin }
}

type Wrong = (&'static str, String);

fn server(index: usize, from: &Server, origin: &Origin, found: &mut Vec<Diagnostic>) -> Result<GatewayServer, Wrong> {
    let port = from.port.as_ref().ok_or((".port", "a port is required".to_owned()))?;
    let number = u16::try_from(port.number).ok().filter(|n| *n > 0);
    let number = number.ok_or((".port.number", format!("{} is no port", port.number)))?;
    let protocol = Protocol::parse(&port.protocol)
        .filter(|p| !matches!(p, Protocol::Udp))
        .ok_or((".port.protocol", format!("{:?} is not supported", port.protocol)))?;
    let hosts: Vec<_> = from.hosts.iter().filter(|h| !h.is_empty()).map(|h| host(h, origin)).collect();
    if hosts.is_empty() {
        return Err((".hosts", "a host is required".to_owned()));
    }
    if !from.bind.is_empty() && from.bind.parse::<std::net::IpAddr>().is_err() {
        return Err((".bind", format!("{:?} is no address", from.bind)));
    }
    let security = match &from.tls {
        None if protocol.is_tls() => return Err((".tls", format!("{} needs TLS settings", port.protocol))),
        None => ServerSecurity::Plain { https_redirect: false },
        Some(tls) if protocol.is_http() => ServerSecurity::Plain { https_redirect: tls.https_redirect },
        Some(_) if !protocol.is_tls() => {
            return Err((".tls", format!("{} cannot have TLS settings", port.protocol)));
        }
        Some(tls) => match tls.mode {
            ServerTlsMode::Passthrough => ServerSecurity::Passthrough,
            ServerTlsMode::AutoPassthrough => ServerSecurity::AutoPassthrough,
            _ => {
                let mut warn = |field: &str, message: String| {
                    let field = format!("spec.servers[{index}].tls.{field}");
                    found.push(finding(origin, codes::UNSUPPORTED, Severity::Warning, &field, message));
                };
                let http = protocol == Protocol::Https;
                ServerSecurity::Terminate(Box::new(terminate(tls, http, &mut warn)?))
            }
        },
    };
    let http = protocol.is_http() || (protocol == Protocol::Https && matches!(security, ServerSecurity::Terminate(_)));
    Ok(GatewayServer {
        index,
        port: number,
        port_name: port.name.as_str().into(),
        payload: if http { ServerPayload::Http } else { ServerPayload::Tcp },
        bind: from.bind.as_str().into(),
        hosts,
        security,
    })
}

fn host(text: &str, origin: &Origin) -> (Option<Arc<str>>, HostPattern) {
    match text.split_once('/') {
        None => (None, HostPattern::new(text)),
        Some(("*", host)) => (None, HostPattern::new(host)),
        Some((".", host)) => (Some(origin.namespace().clone()), HostPattern::new(host)),
        Some((namespace, host)) => (Some(namespace.into()), HostPattern::new(host)),
    }
}

fn terminate(from: &ServerTls, http: bool, warn: &mut dyn FnMut(&str, String)) -> Result<GatewayTls, Wrong> {
    let mesh = from.mode == ServerTlsMode::IstioMutual;
    let (certificates, roots) = if mesh {
        (vec![names::SECRET_WORKLOAD.into()], Some(names::SECRET_ROOTS.into()))
    } else {
        certificates(from, warn)?
    };
    let client = match from.mode {
        ServerTlsMode::Mutual | ServerTlsMode::IstioMutual => ClientCertificate::Required,
        ServerTlsMode::OptionalMutual => ClientCertificate::Optional,
        _ => ClientCertificate::None,
    };
    let accept_untrusted = from.insecure_skip_verify == Some(true) && !mesh;
    let asked = client != ClientCertificate::None;
    if asked && roots.is_none() && !accept_untrusted {
        return Err((".tls", format!("{} needs the roots of its clients", from.mode)));
    }
    let version = |from: TlsProtocol, auto: TlsVersion| match from {
        TlsProtocol::Auto => auto,
        TlsProtocol::V1_0 => TlsVersion::V1_0,
        TlsProtocol::V1_1 => TlsVersion::V1_1,
        TlsProtocol::V1_2 => TlsVersion::V1_2,
        TlsProtocol::V1_3 => TlsVersion::V1_3,
    };
    let (min, max) =
        (version(from.min_protocol_version, TlsVersion::V1_2), version(from.max_protocol_version, TlsVersion::V1_3));
    if min > max {
        // The lowest version is automatic where only a highest one below it is asked for.
        if from.min_protocol_version != TlsProtocol::Auto {
            return Err((".tls.minProtocolVersion", "is higher than maxProtocolVersion".to_owned()));
        }
    }
    for spki in &from.verify_certificate_spki {
        if carrick_api::core::decode_base64(spki).is_none_or(|hash| hash.len() != SHA256) {
            return Err((".tls.verifyCertificateSpki", format!("{spki:?} is no base64 SHA-256")));
        }
    }
    for hash in &from.verify_certificate_hash {
        let digits: Vec<u8> = hash.bytes().filter(|b| *b != b':').collect();
        if digits.len() != 2 * SHA256 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err((".tls.verifyCertificateHash", format!("{hash:?} is no hexadecimal SHA-256")));
        }
    }
    let own = |all: &[String]| -> Vec<Arc<str>> { all.iter().filter(|_| asked).map(|s| s.as_str().into()).collect() };
    Ok(GatewayTls {
        certificates,
        client,
        roots: roots.filter(|_| asked),
        crl: (asked && !from.ca_crl.is_empty()).then(|| from.ca_crl.as_str().into()),
        sans: own(&from.subject_alt_names),
        spki: own(&from.verify_certificate_spki),
        hashes: own(&from.verify_certificate_hash),
        accept_untrusted: accept_untrusted && asked,
        min: min.min(max),
        max,
        cipher_suites: suites(&from.cipher_suites, warn)?,
        alpn: match (http, mesh) {
            (true, _) => GatewayAlpn::Http,
            (false, true) => GatewayAlpn::MeshTcp,
            (false, false) => GatewayAlpn::None,
        },
    })
}

fn suites(all: &[String], warn: &mut dyn FnMut(&str, String)) -> Result<Vec<Arc<str>>, Wrong> {
    let mut out: Vec<Arc<str>> = Vec::new();
    for suite in all {
        if !CIPHER_SUITES.contains(&suite.as_str()) || out.iter().any(|s| **s == **suite) {
            warn("cipherSuites", format!("{suite:?} is unknown or there twice, and is left out"));
        } else {
            out.push(suite.as_str().into());
        }
    }
    if out.is_empty() && !all.is_empty() {
        return Err((".tls.cipherSuites", "none of them is known".to_owned()));
    }
    Ok(out)
}

/// SDS names of certificates, and of roots.
type Certificates = (Vec<Arc<str>>, Option<Arc<str>>);

/// SDS names of certificates and roots; exactly one source (§9.6).
fn certificates(from: &ServerTls, warn: &mut dyn FnMut(&str, String)) -> Result<Certificates, Wrong> {
    let files = !from.server_certificate.is_empty() || !from.private_key.is_empty();
    let several = !from.tls_certificates.is_empty();
    let named: Vec<&String> = std::iter::once(&from.credential_name)
        .filter(|name| !name.is_empty())
        .chain(from.credential_names.iter().filter(|name| !name.is_empty()))
        .collect();
    if !from.credential_name.is_empty() && !from.credential_names.is_empty() {
        return Err((".tls.credentialNames", "excludes credentialName".to_owned()));
    }
    if [files, several, !named.is_empty()].iter().filter(|set| **set).count() > 1 {
        return Err((".tls", "certificates are given in more than one way".to_owned()));
    }
    let ca_file = |path: &String| (!path.is_empty()).then(|| names::file_root(path));
    let ca_named =
        (!from.ca_cert_credential_name.is_empty()).then(|| names::cluster_roots(&from.ca_cert_credential_name));
    let (mut certificates, roots): (Vec<Arc<str>>, _) = if let Some(first) = named.first() {
        (
            named.iter().map(|name| names::cluster_secret(name)).collect(),
            ca_named.or_else(|| Some(names::cluster_roots(first))),
        )
    } else if several {
        let pair = |c: &carrick_api::istio::gateway::ServerTlsCertificate| {
            (!c.server_certificate.is_empty() && !c.private_key.is_empty())
                .then(|| names::file_cert(&c.server_certificate, &c.private_key))
                .ok_or((".tls.tlsCertificates", "serverCertificate and privateKey are required".to_owned()))
        };
        let roots = from.tls_certificates.iter().find_map(|c| ca_file(&c.ca_certificates));
        let pairs = from.tls_certificates.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
        (pairs, ca_named.or_else(|| ca_file(&from.ca_certificates)).or(roots))
    } else {
        if from.server_certificate.is_empty() {
            return Err((".tls", "a server certificate is required".to_owned()));
        }
        if from.private_key.is_empty() {
            return Err((".tls.privateKey", "a private key is required".to_owned()));
        }
        let pair = names::file_cert(&from.server_certificate, &from.private_key);
        (vec![pair], ca_named.or_else(|| ca_file(&from.ca_certificates)))
    };
    if certificates.len() > MAX_CERTIFICATES {
        warn("credentialNames", format!("only the first {MAX_CERTIFICATES} certificates are used"));
        certificates.truncate(MAX_CERTIFICATES);
    }
    Ok((certificates, roots))
}
