//! What one sidecar may see and do, in small values: the input of `carrick-render`, and what `why` and `describe` explain.
//!
//! Invariant: every part is `Eq + Hash` and complete: what is rendered from it depends on nothing else, so that a part is the
//! cache key of its resource. Parts are shared (`Arc`) between proxies that see the same.
//! How a part is written in Envoy's words is `carrick-render`'s.

pub mod cluster;
pub mod gateway;
pub mod inbound;
pub mod load;
pub mod outbound;
pub mod route;
pub mod secret;
pub use crate::model::telemetry;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

pub use cluster::{ClientSocket, Cluster, ClusterKind, Limits, MeshTls, UpstreamHttp, UserTls};
pub use gateway::{Gateway, GatewayListener};
pub use inbound::{
    Inbound, InboundCluster, InboundPort, InboundTarget, ModeSource, PassthroughPort, PortClass, ServerTls,
};
pub use load::{Load, LoadEndpoint, LoadGroup};
pub use outbound::{Bind, Outbound, OutboundListener, Rest, RouteTable, TcpChain, TcpForward, VirtualHost};
pub use route::{Route, RouteAlpn};
pub use secret::SecretPart;
pub use telemetry::Telemetry;

/// Everything one sidecar or gateway is to be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// What it does for connections to its workload.
    pub inbound: Arc<Inbound>,
    /// What it does for connections of its workload.
    pub outbound: Arc<Outbound>,
    /// Endpoints of the EDS clusters in `outbound`, by cluster name. The one part that changes with pods alone.
    pub loads: Arc<[Arc<Load>]>,
    /// What it listens for as a gateway; `None` for a sidecar.
    pub gateway: Option<Arc<Gateway>>,
    /// Secrets that its listeners and clusters name and that it may have, sorted by name.
    pub secrets: Arc<[Arc<SecretPart>]>,
    /// What names stand for, where its agent resolves them; `None` where somebody else does.
    pub names: Option<Arc<BTreeMap<Arc<str>, HostName>>>,
}

/// What a host name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostName {
    /// Addresses; never empty.
    pub addresses: Vec<IpAddr>,
    /// Name and namespace of the Kubernetes service, if it is one.
    pub kubernetes: Option<(Arc<str>, Arc<str>)>,
}

/// Settings of the mesh that every listener carries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenerSettings {
    /// Milliseconds to wait for the first bytes; 0 waits for ever.
    pub detection_timeout: u64,
    /// What is logged, traced and counted.
    pub telemetry: Arc<Telemetry>,
    /// How request paths are normalised before they are matched.
    pub paths: PathNormalization,
}

/// `meshConfig.pathNormalization`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PathNormalization {
    /// As sent.
    None,
    /// RFC 3986 dot segments.
    #[default]
    Base,
    /// And `//` is `/`.
    MergeSlashes,
    /// And `%2F`, `%5C` are decoded.
    DecodeAndMergeSlashes,
}
