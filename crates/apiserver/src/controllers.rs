//! (stand-in until the controllers land) Defaulting, validation and the few controllers.

use crate::admission::{AdmitContext, Operation};
use crate::error::ApiResult;
use serde_json::Value;

/// Defaults and validates; returns warnings for the client.
pub fn admit(_object: &mut Value, _operation: Operation, _context: &AdmitContext<'_>) -> ApiResult<Vec<String>> {
    Ok(Vec::new())
}
