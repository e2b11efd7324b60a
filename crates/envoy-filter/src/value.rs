//! Messages out of a patch's value.
//!
//! Invariant: a value that is not the message its place asks for is an error that names the field.

use carrick_api::istio::envoy_filter::{Patch, PatchOperation};
use carrick_envoy_json::{Lists, bytes_from_json, merge};
use prost::{Message, Name};

/// The patch's value as a message.
pub(crate) fn message<T: Message + Name + Default>(patch: &Patch) -> Result<T, String> {
    if !patch.value.is_object() {
        return Err("patch.value: missing".to_owned());
    }
    let bytes = bytes_from_json(&T::full_name(), &patch.value).map_err(|e| format!("patch.value: {e}"))?;
    T::decode(&*bytes).map_err(|e| format!("patch.value: {e}"))
}

/// A message with the patch's value merged into it.
pub(crate) fn merged<T: Message + Name + Default>(base: &T, patch: &Patch) -> Result<T, String> {
    let lists = if patch.operation == PatchOperation::MergeAndReplaceList { Lists::Replace } else { Lists::Append };
    let value = bytes_from_json(&T::full_name(), &patch.value).map_err(|e| format!("patch.value: {e}"))?;
    let all = merge(&T::full_name(), &base.encode_to_vec(), &value, lists).map_err(|e| e.to_string())?;
    T::decode(&*all).map_err(|e| e.to_string())
}

/// Whether the operation merges.
pub(crate) fn merges(operation: PatchOperation) -> bool {
    matches!(operation, PatchOperation::Merge | PatchOperation::MergeAndReplaceList)
}
