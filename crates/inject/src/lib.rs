//! Sidecar injection: whether a pod gets a proxy, why, and what the pod then is.
//!
//! Invariant: pure, and exactly what Istio's webhook selectors plus its server-side check decide, and what its templates give (spec
//! §16). Whoever calls knows the cluster: the webhook, `kube-inject`, and `pod`, which starts processes and shows them as pods.

pub mod admission;
mod annotations;
mod decide;
pub mod gateway_api;
mod lists;
pub mod manifest;
mod metadata;
pub mod openshift;
mod overlay;
mod owner;
mod patch;
mod pod;
mod probes;
mod prometheus;
mod proxy;
pub mod proxy_config;
mod quantity;
mod settings;
mod template;
mod values;
mod written;

pub use self::annotations::{AnnotationError, validate as validate_annotations};
pub use self::decide::{Config, Decision, IGNORED_NAMESPACES, PodFacts, Why, decide, required};
pub use self::metadata::{Added, MetadataFacts, added};
pub use self::overlay::OverlayError;
pub use self::owner::{Owner, of_pod};
pub use self::patch::diff;
pub use self::pod::{InjectError, Injection, inject};
pub use self::proxy::{CONTAINER_NAME, ProxyFacts, container as proxy_container};
pub use self::settings::{Settings, SettingsError};
pub use self::template::{BUILT_IN, Own, Program};
pub use self::values::{Values, defaults as default_values, lay};
pub use self::written::sorted;

pub use self::decide::DEFAULT_REVISION;

/// User and group that the proxy runs as, and that capture exempts.
pub const PROXY_UID: u32 = 1337;
