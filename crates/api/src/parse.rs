//! Manifests as text → JSON values.

/// Placeholder
pub const MAX_BYTES: usize = 8 << 20;
