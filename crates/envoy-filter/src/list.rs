//! One operation on a list: filters of a chain, chains of a listener, routes of a virtual host.
//!
//! Invariant: an element that must be the last one stays the last one.

use carrick_api::istio::envoy_filter::{Patch, PatchOperation as Op};
use prost::{Message, Name};

use crate::value;

/// Does what a patch says. `matched` says which elements it is about (`None`: the patch names none), `last` which element nothing may
/// follow. Gives whether anything changed.
pub(crate) fn edit<T: Message + Name + Default + Clone>(
    list: &mut Vec<T>,
    patch: &Patch,
    matched: Option<&dyn Fn(&T) -> bool>,
    last: &dyn Fn(&T) -> bool,
) -> Result<bool, String> {
    let first = |list: &[T]| matched.and_then(|m| list.iter().position(m));
    let end = |list: &[T]| list.iter().position(last).unwrap_or(list.len());
    match patch.operation {
        Op::Merge | Op::MergeAndReplaceList => {
            let mut changed = false;
            for element in list.iter_mut().filter(|e| matched.is_none_or(|m| m(e))) {
                *element = value::merged(element, patch)?;
                changed = true;
            }
            Ok(changed)
        }
        Op::Remove => {
            let before = list.len();
            list.retain(|e| !matched.is_none_or(|m| m(e)));
            Ok(list.len() != before)
        }
        Op::Replace => {
            let Some(at) = first(list) else { return Ok(false) };
            let new = value::message(patch)?;
            if let Some(slot) = list.get_mut(at) {
                *slot = new;
            }
            Ok(true)
        }
        Op::Add => insert(list, end(list), patch),
        Op::InsertFirst => insert(list, 0, patch),
        Op::InsertBefore if matched.is_none() => insert(list, 0, patch),
        Op::InsertAfter if matched.is_none() => insert(list, end(list), patch),
        Op::InsertBefore => first(list).map_or(Ok(false), |at| insert(list, at, patch)),
        Op::InsertAfter => {
            first(list).map_or(Ok(false), |at| insert(list, at.saturating_add(1).min(end(list).max(at)), patch))
        }
        Op::Invalid => Err("patch.operation: missing".to_owned()),
    }
}

fn insert<T: Message + Name + Default>(list: &mut Vec<T>, at: usize, patch: &Patch) -> Result<bool, String> {
    list.insert(at.min(list.len()), value::message(patch)?);
    Ok(true)
}
