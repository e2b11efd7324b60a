//! Resource types by their type URL, ordered as they are pushed (clusters before the endpoints, listeners, routes that need them).
//!
//! Invariant: `Ord` is the push order of spec §20.3; parsing and printing are inverse.

use std::fmt;
use std::sync::Arc;

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// The type of a resource. The derived order is the order of a push.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TypeUrl {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoint,
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// SDS.
    Secret,
    /// Any other type, by its full URL.
    Other(Arc<str>),
}

impl TypeUrl {
    /// The types whose order within a push matters.
    pub const ORDERED: [TypeUrl; 5] =
        [TypeUrl::Cluster, TypeUrl::Endpoint, TypeUrl::Listener, TypeUrl::Route, TypeUrl::Secret];

    /// Reads a full type URL.
    pub fn parse(text: &str) -> Self {
        match text {
            CLUSTER => Self::Cluster,
            ENDPOINT => Self::Endpoint,
            LISTENER => Self::Listener,
            ROUTE => Self::Route,
            SECRET => Self::Secret,
            other => Self::Other(Arc::from(other)),
        }
    }

    /// The full type URL.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Cluster => CLUSTER,
            Self::Endpoint => ENDPOINT,
            Self::Listener => LISTENER,
            Self::Route => ROUTE,
            Self::Secret => SECRET,
            Self::Other(url) => url,
        }
    }

    /// The short name people use: `CDS`, `EDS`, `LDS`, `RDS`, `SDS`; for others the URL after the slash.
    pub fn short(&self) -> &str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoint => "EDS",
            Self::Listener => "LDS",
            Self::Route => "RDS",
            Self::Secret => "SDS",
            Self::Other(url) => url.rsplit_once('/').map_or(url, |(_, name)| name),
        }
    }

    /// Whether a first request that names nothing asks for everything (legacy wildcard). Endpoints, routes and secrets
    /// are asked for by name only.
    pub fn legacy_wildcard(&self) -> bool {
        !matches!(self, Self::Endpoint | Self::Route | Self::Secret)
    }
}

impl fmt::Display for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_the_push_order_and_text_round_trips() {
        let mut types = vec![
            TypeUrl::parse("type.googleapis.com/istio.networking.nds.v1.NameTable"),
            TypeUrl::Secret,
            TypeUrl::Route,
            TypeUrl::Listener,
            TypeUrl::Endpoint,
            TypeUrl::Cluster,
        ];
        types.sort();
        let short: Vec<&str> = types.iter().map(TypeUrl::short).collect();
        assert_eq!(short, ["CDS", "EDS", "LDS", "RDS", "SDS", "istio.networking.nds.v1.NameTable"]);
        for t in &types {
            assert_eq!(&TypeUrl::parse(t.as_str()), t);
        }
    }
}
