//! The Gateway API's objects (gateway.networking.k8s.io, v1.6) in the typed form that the mesh reads.
//!
//! Invariant: defaults of the specification are not filled in here, but where absent and default mean the same; references are kept as written.

pub mod gateway;
pub mod policy;
pub mod route;

pub use gateway::{GatewayClass, K8sGateway, ListenerSet};
pub use policy::{BackendTlsPolicy, ReferenceGrant};
pub use route::{GrpcRoute, HttpRoute, TcpRoute, TlsRoute, UdpRoute};

use serde::{Deserialize, Serialize};

use crate::scalar::nullable;

/// The API's group.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// A reference to an object; `None` where the specification has a default.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reference {
    pub group: Option<String>,
    pub kind: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    pub namespace: Option<String>,
    pub port: Option<u16>,
    pub section_name: Option<String>,
}

impl Reference {
    /// Whether it names an object of a kind, given the defaults.
    pub fn is(&self, group: &str, kind: &str, default_group: &str, default_kind: &str) -> bool {
        self.group.as_deref().unwrap_or(default_group) == group && self.kind.as_deref().unwrap_or(default_kind) == kind
    }
}
