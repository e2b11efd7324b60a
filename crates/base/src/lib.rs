//! The words of the mesh: identities, host names, object names, labels, field paths, diagnostics.
//!
//! Invariant: a value of these types is well-formed; parsing is the only way to make one from outside text.
//! This crate knows nothing of Kubernetes, xDS, TLS or IO, and depends on nothing that does.

pub mod diagnostic;
pub mod host;
pub mod label;
pub mod name;
pub mod path;
pub mod spiffe;

pub use diagnostic::{Diagnostic, Severity};
pub use host::{HostPattern, Hostname};
pub use label::{Labels, Selector};
pub use name::{NamespacedName, ObjectRef};
pub use path::FieldPath;
pub use spiffe::{SpiffeId, TrustDomain};
