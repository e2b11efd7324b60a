//! A secret of the cluster, as a proxy is given it: a certificate with its key, or roots (semantics §6.5–§6.7).
//!
//! Invariant: bytes are never shown; `Debug` tells lengths only. Whoever holds a view that has one may have it.

use std::{fmt, sync::Arc};

/// One secret under the name it is asked for by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretPart {
    /// `kubernetes://[<namespace>/]<name>[-cacert]`, or `kubernetes-gateway://…` and `configmap://…` with a namespace.
    pub name: Arc<str>,
    /// What it is.
    pub value: SecretValue,
}

/// What a secret is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretValue {
    /// A certificate and its key, PEM.
    Certificate {
        /// The chain, leaf first.
        chain: Bytes,
        /// The key.
        key: Bytes,
        /// An OCSP response to show, DER.
        staple: Option<Bytes>,
    },
    /// Roots, PEM.
    Roots {
        /// The roots.
        roots: Bytes,
        /// Revocation lists, PEM.
        crl: Option<Bytes>,
    },
}

/// Bytes that are not to be shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Bytes(pub Arc<[u8]>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}
