//! Which protocol a service port speaks: declared by `appProtocol` or the port's name, or to be detected.
//!
//! Source: spec §22. Invariant: `appProtocol` wins over the name; the name wins over the well-known server-first ports.
//! What a listener does with the answer is `mesh`'s business.

use crate::core::ServicePort;

/// Protocol of a port as Istio distinguishes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Http,
    Http2,
    Grpc,
    GrpcWeb,
    /// TLS carrying HTTP, opaque to a sidecar.
    Https,
    Tls,
    Hbone,
    Mongo,
    Redis,
    MySql,
    /// Not declared: to be detected from the first bytes.
    Auto,
}

/// What a protocol means for listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    Http,
    Tcp,
    Auto,
    Udp,
}

/// Ports whose servers speak first, so that detection would wait for ever: SMTP, DNS, MySQL, MongoDB.
const SERVER_FIRST_PORTS: [u32; 4] = [25, 53, 3306, 27017];

impl Protocol {
    /// Parses a protocol word, ignoring case; `None` when it is not one of Istio's words.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "grpc" => Self::Grpc,
            "grpc-web" => Self::GrpcWeb,
            "http" => Self::Http,
            "http_proxy" => Self::Http,
            "http2" => Self::Http2,
            "https" => Self::Https,
            "tls" => Self::Tls,
            "hbone" => Self::Hbone,
            "mongo" => Self::Mongo,
            "redis" => Self::Redis,
            "mysql" => Self::MySql,
            _ => return None,
        })
    }

    /// How listeners treat it.
    pub const fn class(self) -> Class {
        match self {
            Self::Http | Self::Http2 | Self::Grpc | Self::GrpcWeb => Class::Http,
            Self::Udp => Class::Udp,
            Self::Auto => Class::Auto,
            Self::Tcp | Self::Https | Self::Tls | Self::Hbone | Self::Mongo | Self::Redis | Self::MySql => Class::Tcp,
        }
    }

    /// Handled by the HTTP filters.
    pub const fn is_http(self) -> bool {
        matches!(self.class(), Class::Http)
    }

    /// TLS that a sidecar does not terminate.
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Tls)
    }

    /// Needs HTTP/2 towards the workload.
    pub const fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::GrpcWeb)
    }

    /// The word Istio prints.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Http => "HTTP",
            Self::Http2 => "HTTP2",
            Self::Grpc => "GRPC",
            Self::GrpcWeb => "GRPC-Web",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
            Self::Hbone => "HBONE",
            Self::Mongo => "Mongo",
            Self::Redis => "Redis",
            Self::MySql => "MySQL",
            Self::Auto => "UnsupportedProtocol",
        }
    }
}

/// The protocol of a Kubernetes service port.
pub fn of_service_port(port: &ServicePort) -> Protocol {
    select(u32::from(port.port), &port.protocol, port.app_protocol.as_deref(), &port.name)
}

/// The protocol of a port from its number, transport, `appProtocol` and name.
pub fn select(number: u32, transport: &str, app_protocol: Option<&str>, name: &str) -> Protocol {
    if transport == "UDP" {
        return Protocol::Udp;
    }
    let declared = match app_protocol {
        // A declared but unknown application protocol is not looked up by name: it says the name is not the place.
        Some("kubernetes.io/h2c") => Some(Protocol::Http2),
        Some("kubernetes.io/ws") => Some(Protocol::Http),
        Some("kubernetes.io/wss") => Some(Protocol::Https),
        Some(word) => declared_by(word),
        None => declared_by(name),
    };
    match declared {
        Some(protocol) => protocol,
        None if SERVER_FIRST_PORTS.contains(&number) => Protocol::Tcp,
        None => Protocol::Auto,
    }
}

fn declared_by(name: &str) -> Option<Protocol> {
    const GRPC_WEB: &str = "grpc-web";
    let is_grpc_web = name.get(..GRPC_WEB.len()).is_some_and(|head| head.eq_ignore_ascii_case(GRPC_WEB));
    if is_grpc_web {
        return Some(Protocol::GrpcWeb);
    }
    let word = name.split('-').next().unwrap_or(name);
    Protocol::parse(word)
}
