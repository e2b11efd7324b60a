//! Sidecar injection as a decision and a description: whether a pod gets a proxy, why, and what its object then says.
//!
//! Invariant: pure, and exactly what Istio's webhook selectors plus its server-side check decide (spec §16). Starting the
//! proxy and capturing its traffic belong to `pod` and `capture`.

mod annotations;
mod decide;
mod metadata;
mod proxy;

pub use self::annotations::{AnnotationError, validate as validate_annotations};
pub use self::decide::{Config, Decision, PodFacts, Why, decide};
pub use self::metadata::{Added, MetadataFacts, added};
pub use self::proxy::{CONTAINER_NAME, ProxyFacts, container as proxy_container};

/// User and group that the proxy runs as, and that capture exempts.
pub const PROXY_UID: u32 = 1337;
