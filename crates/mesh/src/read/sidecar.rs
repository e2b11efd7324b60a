//! Sidecar objects (semantics §2.8, §2.9, §8).
//!
//! Invariant: an ingress listener that cannot be honoured closes its port, with a finding; it never takes less than was asked for.

use std::sync::Arc;

use carrick_api::{
    Protocol, Sidecar,
    istio::{
        server_tls::{ServerTls, ServerTlsMode, TlsProtocol},
        sidecar::{CaptureMode, OutboundMode, OutboundTrafficPolicy, SidecarEgress, SidecarIngress, SidecarPort},
    },
    protocol::Class,
};
use carrick_base::{Diagnostic, HostPattern, Severity};

use super::{finding, origin, traffic};
use crate::{
    Settings, codes,
    model::{
        Origin, SidecarConfig,
        sidecar::{
            ClientCertificates, Egress, EgressBind, EgressPort, HostSelector, Ingress, IngressTarget, IngressTls,
            NamespaceSelector, OutboundPolicy,
        },
    },
    names,
};

pub(crate) fn read(from: &Sidecar, settings: &Settings, found: &mut Vec<Diagnostic>) -> SidecarConfig {
    let origin = origin("Sidecar", &from.metadata);
    let spec = &from.spec;
    let mut ingress: Vec<Ingress> = Vec::new();
    for (index, listener) in spec.ingress.iter().enumerate() {
        let at = format!("spec.ingress[{index}]");
        match read_ingress(listener) {
            Ok(one) if ingress.iter().any(|i| i.port == one.port) => {
                let message = format!("port {} is there twice; the second is left out", one.port);
                found.push(finding(&origin, codes::UNREADABLE, Severity::Error, &format!("{at}.port"), message));
            }
            Ok(one) => ingress.push(one),
            Err((field, message)) => {
                let closed = listener.port.as_ref().and_then(|p| u16::try_from(p.number).ok()).filter(|p| *p > 0);
                if let Some(port) = closed.filter(|p| ingress.iter().all(|i| i.port != *p)) {
                    ingress.push(Ingress {
                        port,
                        protocol: Protocol::Auto,
                        bind: None,
                        captured: true,
                        to: IngressTarget::Nowhere,
                        tls: None,
                        pool: None,
                    });
                }
                found.push(finding(&origin, codes::UNREADABLE, Severity::Error, &format!("{at}.{field}"), message));
            }
        }
    }
    let mut egress: Vec<Egress> = Vec::new();
    for (index, listener) in spec.egress.iter().enumerate() {
        let at = format!("spec.egress[{index}]");
        egress.extend(read_egress(listener, &origin, &at, found));
    }
    if spec.egress.is_empty() {
        egress.push(Egress { port: None, bind: None, captured: true, hosts: vec![everything()] });
    }
    let outbound = spec.outbound_traffic_policy.as_ref().map(|p| outbound(p, &origin, settings, found));
    SidecarConfig {
        selector: spec.workload_selector.as_ref().map(|s| s.labels.clone()).filter(|l| !l.is_empty()),
        inbound_pool: spec.inbound_connection_pool.as_ref().map(traffic::connection_pool),
        ingress,
        egress,
        outbound,
        origin,
    }
}

/// `*/*`.
pub(crate) fn everything() -> HostSelector {
    HostSelector { namespace: NamespaceSelector::Any, host: HostPattern::Any, exclude: false }
}

type Wrong = (&'static str, String);

fn read_ingress(from: &SidecarIngress) -> Result<Ingress, Wrong> {
    let none = SidecarPort::default();
    let given = from.port.as_ref().unwrap_or(&none);
    let port = u16::try_from(given.number).ok().filter(|n| *n > 0);
    let port = port.ok_or_else(|| ("port.number", format!("{} is not a port", given.number)))?;
    let tls = from.tls.as_ref().map(ingress_tls).transpose()?;
    let declared = Protocol::parse(&given.protocol);
    let protocol = match (declared, &tls) {
        (None, Some(_)) => Protocol::Https,
        (Some(other), Some(_)) if !matches!(other, Protocol::Https | Protocol::Tls) => {
            return Err(("port.protocol", format!("{} cannot be with tls; HTTPS or TLS can", other.as_str())));
        }
        (declared, _) => declared.unwrap_or(Protocol::Auto),
    };
    if protocol.class() == Class::Udp {
        return Err(("port.protocol", "UDP is not proxied".to_owned()));
    }
    let bind = match from.bind.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| ("bind", format!("{text:?} is no address")))?),
    };
    Ok(Ingress {
        port,
        protocol,
        bind,
        captured: from.capture_mode != CaptureMode::None,
        to: target(&from.default_endpoint)?,
        tls,
        pool: from.connection_pool.as_ref().map(traffic::connection_pool),
    })
}

fn target(text: &str) -> Result<IngressTarget, Wrong> {
    let wrong = || {
        (
            "defaultEndpoint",
            format!("{text:?} is none of 127.0.0.1:port, 0.0.0.0:port, [::1]:port, [::]:port and unix:///path"),
        )
    };
    if text.is_empty() {
        return Ok(IngressTarget::AsSent);
    }
    if let Some(path) = text.strip_prefix("unix://") {
        return if path.starts_with('/') { Ok(IngressTarget::Unix(path.into())) } else { Err(wrong()) };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    match host {
        "127.0.0.1" | "[::1]" => Ok(IngressTarget::Loopback(port)),
        "0.0.0.0" | "[::]" => Ok(IngressTarget::Pod(port)),
        _ => Err(wrong()),
    }
}

fn ingress_tls(from: &ServerTls) -> Result<IngressTls, Wrong> {
    let clients = match from.mode {
        ServerTlsMode::Simple => ClientCertificates::None,
        ServerTlsMode::OptionalMutual => ClientCertificates::Optional,
        ServerTlsMode::Mutual => ClientCertificates::Required,
        other => {
            return Err(("tls.mode", format!("{other} is not for a sidecar; SIMPLE, MUTUAL and OPTIONAL_MUTUAL are")));
        }
    };
    if from.server_certificate.is_empty() || from.private_key.is_empty() {
        return Err(("tls", "serverCertificate and privateKey are required".to_owned()));
    }
    let asked = clients != ClientCertificates::None;
    if asked && from.ca_certificates.is_empty() {
        return Err(("tls.caCertificates", format!("{} needs caCertificates", from.mode)));
    }
    let version = |v: TlsProtocol, default| match v {
        TlsProtocol::V1_3 => 3,
        TlsProtocol::Auto => default,
        // Older ones are not spoken any more.
        TlsProtocol::V1_0 | TlsProtocol::V1_1 | TlsProtocol::V1_2 => 2,
    };
    let text = |t: &String| -> Arc<str> { t.as_str().into() };
    Ok(IngressTls {
        clients,
        certificate: names::file_cert(&from.server_certificate, &from.private_key),
        roots: asked.then(|| names::file_root(&from.ca_certificates)),
        crl: (asked && !from.ca_crl.is_empty()).then(|| text(&from.ca_crl)),
        subject_alt_names: if asked { from.subject_alt_names.iter().map(text).collect() } else { Vec::new() },
        min_version: version(from.min_protocol_version, 2),
        max_version: version(from.max_protocol_version, 3),
        cipher_suites: from.cipher_suites.iter().map(text).collect(),
    })
}

fn read_egress(from: &SidecarEgress, origin: &Origin, at: &str, found: &mut Vec<Diagnostic>) -> Option<Egress> {
    let mut wrong = |field: &str, message: String| {
        found.push(finding(origin, codes::UNREADABLE, Severity::Error, &format!("{at}.{field}"), message));
    };
    let bind = match (from.bind.as_str(), from.bind.strip_prefix("unix://")) {
        ("", _) => None,
        (_, Some(path)) => Some(EgressBind::Unix(path.into())),
        (text, None) => match text.parse() {
            Ok(ip) => Some(EgressBind::Ip(ip)),
            Err(_) => {
                wrong("bind", format!("{text:?} is neither an address nor unix:// and a path"));
                return None;
            }
        },
    };
    let port = match &from.port {
        None => None,
        Some(port) => {
            let unix = matches!(bind, Some(EgressBind::Unix(_)));
            let Some(number) = u16::try_from(port.number).ok().filter(|n| *n > 0 || unix) else {
                wrong("port.number", format!("{} is not a port", port.number));
                return None;
            };
            Some(EgressPort {
                number,
                protocol: Protocol::parse(&port.protocol).unwrap_or(Protocol::Auto),
                proxy: port.protocol.eq_ignore_ascii_case("HTTP_PROXY"),
            })
        }
    };
    let mut hosts = Vec::new();
    for (index, text) in from.hosts.iter().enumerate() {
        match host_selector(text) {
            Some(selector) => hosts.push(selector),
            None => wrong(&format!("hosts[{index}]"), format!("{text:?} is not <namespace>/<host>")),
        }
    }
    let captured = from.capture_mode != CaptureMode::None && !matches!(bind, Some(EgressBind::Unix(_)));
    Some(Egress { port, bind, captured, hosts })
}

/// `<ns>/<host>`, where the namespace may be `.`, `*`, `~`, a name, or a name after `~` to take services out again.
fn host_selector(text: &str) -> Option<HostSelector> {
    let (namespace, host) = text.split_once('/')?;
    let (exclude, namespace) = match namespace.strip_prefix('~') {
        Some("") | None => (false, namespace),
        Some(rest) => (true, rest),
    };
    let namespace = match namespace {
        "" => return None,
        "*" => NamespaceSelector::Any,
        "~" => NamespaceSelector::None,
        "." => NamespaceSelector::Own,
        name => NamespaceSelector::Named(name.into()),
    };
    if host.is_empty() {
        return None;
    }
    Some(HostSelector { namespace, host: HostPattern::new(host), exclude })
}

fn outbound(
    from: &OutboundTrafficPolicy,
    origin: &Origin,
    settings: &Settings,
    found: &mut Vec<Diagnostic>,
) -> OutboundPolicy {
    let mut wrong = |field: &str, message: &str| {
        let at = format!("spec.outboundTrafficPolicy.{field}");
        found.push(finding(origin, codes::UNREADABLE, Severity::Error, &at, message));
    };
    match (from.mode, &from.egress_proxy) {
        (OutboundMode::RegistryOnly, _) => OutboundPolicy::RegistryOnly,
        (OutboundMode::AllowAnyDynamicDns, _) => {
            wrong("mode", "ALLOW_ANY_DYNAMIC_DNS is for the mesh only; traffic to undeclared destinations is refused");
            OutboundPolicy::RegistryOnly
        }
        (OutboundMode::AllowAny, None) => OutboundPolicy::AllowAny,
        (OutboundMode::AllowAny, Some(proxy)) => {
            let port = proxy.port.as_ref().and_then(|p| u16::try_from(p.number).ok()).filter(|p| *p > 0);
            let host = match HostPattern::resolve(&proxy.host, origin.namespace(), &settings.domain_suffix) {
                HostPattern::Exact(host) if !proxy.host.is_empty() => Some(host),
                _ => None,
            };
            match (host, port) {
                (Some(host), Some(port)) => OutboundPolicy::Proxy { host, port, subset: proxy.subset.as_str().into() },
                _ => {
                    wrong(
                        "egressProxy",
                        "a host and a port are required; traffic to undeclared destinations is refused",
                    );
                    OutboundPolicy::RegistryOnly
                }
            }
        }
    }
}
