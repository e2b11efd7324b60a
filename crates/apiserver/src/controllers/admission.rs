//! What a write is completed with and refused for, per kind.
//!
//! Invariant: admitting an object twice changes nothing the second time. Errors are Kubernetes' own in wording and field.

use serde_json::Value;

use super::addresses::Addresses;
use crate::admission::{AdmitContext, Operation};
use crate::error::ApiResult;
use crate::store::Store;

/// Admission for all kinds. One per server.
pub struct Admission {
    #[allow(dead_code)]
    addresses: Addresses,
}

impl Admission {
    /// Admission of writes to `store`.
    pub fn new(store: Store) -> Self {
        Self { addresses: Addresses::new(store) }
    }

    /// Defaults and validates; returns warnings for the client.
    ///
    /// # Errors
    /// `Invalid` naming the fields, `Forbidden`, `BadRequest`.
    pub fn admit(
        &self,
        _object: &mut Value,
        _operation: Operation,
        _context: &AdmitContext<'_>,
    ) -> ApiResult<Vec<String>> {
        Ok(Vec::new())
    }
}
