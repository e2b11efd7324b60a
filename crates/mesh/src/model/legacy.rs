//! Policies of the old API (semantics §14), said in today's words.
//!
//! Invariant: which of several counts is not decided here (`crate::legacy`).

use std::sync::Arc;

use super::{MtlsMode, Origin, Port, authz::AuthzRule, jwt::JwtRule};

/// One policy of the old API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Legacy {
    /// The object.
    pub origin: Origin,
    /// Services it is about; none is the whole namespace, or the mesh.
    pub targets: Vec<LegacyTarget>,
    /// What servers take.
    pub mode: MtlsMode,
    /// Whose tokens they take.
    pub jwt: Vec<Arc<JwtRule>>,
    /// What is denied for want of a token; `None` when tokens are optional.
    pub demand: Option<AuthzRule>,
}

/// A service that a policy is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyTarget {
    /// The service's short name.
    pub service: Arc<str>,
    /// Its ports; none is all.
    pub ports: Vec<LegacyPort>,
}

/// A service port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LegacyPort {
    /// By number.
    Number(u16),
    /// By name.
    Name(Arc<str>),
}

impl LegacyPort {
    /// Whether it is this port.
    pub fn is(&self, port: &Port) -> bool {
        match self {
            Self::Number(number) => *number == port.number,
            Self::Name(name) => *name == port.name,
        }
    }
}
