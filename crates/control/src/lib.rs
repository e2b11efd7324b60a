//! The control plane's IO: objects of a Kubernetes API → snapshot → one proxy's resources → xDS; certificate service; debug.
//!
//! Invariant: this crate decides nothing about the mesh. What a proxy may do is `mesh`'s, how it is written `render`'s;
//! here is who asks, when something is pushed, and what was acknowledged. A proxy gets nothing before its identity is
//! verified and equals what its node says. When this process dies, proxies keep serving and come back by themselves.

mod ads;
mod ca;
mod caller;
mod certificates;
mod connections;
mod control;
mod debug;
mod deliveries;
mod federation;
mod fold;
mod history;
pub mod injector;
mod keys;
pub mod leader;
mod ledger;
pub mod machines;
mod mesh_settings;
mod metrics;
mod names;
mod objects;
mod quarantine;
mod read;
mod remote;
mod renderer;
pub mod resident;
mod roots;
pub mod rotation;
mod seen;
mod server_cert;
pub mod source;
mod status;
mod webhooks;

pub use caller::{KubeReviewer, ReviewError, TokenReviewer};
pub use control::{Control, ControlError, ControlOptions};
pub use federation::{BundleEndpoint, FederationOptions, Profile};
pub use fold::Debounce;
pub use keys::KeyOptions;
pub use mesh_settings::MeshFile;
pub use read::Reading;
pub use resident::Resident;
pub use source::Objects;
pub use webhooks::Inject;
