//! Keys, signing requests, certificates, the certificate authority, SPIFFE verification and TLS configurations.
//!
//! Invariants: a private key shows itself only to the file or socket it is meant for (never in `Debug` or an error);
//! the names in a leaf come from the caller's proven identity, never from its CSR; a [`tls::VerifiedPeer`] exists only
//! for a peer whose chain was verified. This crate does not know who may ask for which identity, nor how a
//! certificate reaches a proxy.

pub mod ca;
pub mod ca_service;
pub mod certificate;
pub mod challenge;
pub mod csr;
mod der;
pub mod identity;
pub mod issue;
pub mod join;
pub mod journal;
pub mod key;
pub mod keystore;
pub mod pem;
pub mod quarantine;
pub mod spiffe_bundle;
pub mod tls;
pub mod trust;
pub mod trust_service;

pub use ca::{Authority, CaOptions, CaSet, IssuedChain, SetTexts, Subject};
pub use certificate::CertificateInfo;
pub use identity::Identity;
pub use key::{KeyAlgorithm, PrivateKey};
pub use quarantine::Quarantine;
pub use trust::TrustBundle;
