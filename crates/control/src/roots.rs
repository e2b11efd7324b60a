//! What is in force of the mesh's roots and signing sets, for those who follow it.
//!
//! Invariant: only told here; changed by `rotation` alone.

use carrick_pki::trust_service::Order;

/// A number that grows with every change, and what proxies are told.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Published {
    pub(crate) epoch: u64,
    pub(crate) order: Order,
}
