//! Errors with field paths, exhaustive field checks, and typed `Any`s.
//!
//! Invariant: a [`Bad`] names the innermost field that is wrong, with the way to it.

use std::fmt::Display;

use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::inert;

/// What is wrong with a resource, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Bad {
    /// Path from the resource, `a.b[2].c`; empty for the resource itself.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

impl Bad {
    /// Wrong in itself; callers add the path.
    pub fn new(reason: impl Display) -> Self {
        Self { field: String::new(), reason: reason.to_string() }
    }

    /// Wrong at a field.
    pub fn field(field: impl Display, reason: impl Display) -> Self {
        Self { field: field.to_string(), reason: reason.to_string() }
    }

    /// A field that is set and not supported.
    pub fn unsupported(field: impl Display) -> Self {
        Self::field(field, "unsupported field")
    }
}

/// Adds a step to the path of an error.
pub trait At: Sized {
    /// Below this field.
    #[must_use]
    fn at(self, field: &str) -> Self;
    /// Below this entry of a list.
    #[must_use]
    fn at_index(self, field: &str, index: usize) -> Self;
}

impl<T> At for Result<T, Bad> {
    fn at(self, field: &str) -> Self {
        self.map_err(|bad| prefix(bad, field))
    }

    fn at_index(self, field: &str, index: usize) -> Self {
        self.map_err(|bad| prefix(bad, &format!("{field}[{index}]")))
    }
}

fn prefix(mut bad: Bad, step: &str) -> Bad {
    bad.field = match bad.field.as_str() {
        "" => step.to_owned(),
        inner if inner.starts_with('[') => format!("{step}{inner}"),
        inner => format!("{step}.{inner}"),
    };
    bad
}

/// Runs `f` over a list, adding positions to errors.
pub fn each<T, U>(field: &str, items: &[T], mut f: impl FnMut(&T) -> Result<U, Bad>) -> Result<Vec<U>, Bad> {
    items.iter().enumerate().map(|(i, item)| f(item).at_index(field, i)).collect()
}

/// Runs `f` on a field that is set, adding its name to errors.
pub fn given<T, U>(field: &str, item: &Option<T>, f: impl FnOnce(&T) -> Result<U, Bad>) -> Result<Option<U>, Bad> {
    item.as_ref().map(|item| f(item).at(field)).transpose()
}

/// An error if a field without support has other than its default value, unless the inert table has it.
pub fn refuse<T: Default + PartialEq>(message: &str, field: &str, value: &T) -> Result<(), Bad> {
    let field = field.strip_prefix("r#").unwrap_or(field);
    if *value == T::default() || inert::is_inert(message, field) { Ok(()) } else { Err(Bad::unsupported(field)) }
}

/// Takes a message apart: `use`d fields are the caller's business, all others must be unset or inert. A field in neither list is a
/// compile error, so an upgrade of the protocol cannot slip past.
macro_rules! only {
    ($value:expr, $($ty:ident)::+ { $($used:ident),* $(,)? } refuse { $($rest:ident),* $(,)? }) => {{
        let $($ty)::+ { $($used: _,)* $($rest,)* } = $value;
        let message = only!(@last $($ty)::+);
        let _ = message;
        $( $crate::decode::bad::refuse(message, stringify!($rest), $rest)?; )*
    }};
    (@last $ty:ident) => { stringify!($ty) };
    (@last $first:ident :: $($ty:ident)::+) => { only!(@last $($ty)::+) };
}
pub(crate) use only;

/// The message's name in a type URL.
#[must_use]
pub fn type_name(any: &Any) -> &str {
    any.type_url.rsplit_once('/').map_or(any.type_url.as_str(), |(_, name)| name)
}

/// Decodes an `Any` whose type was checked already.
pub fn decode<T: Message + Default>(any: &Any) -> Result<T, Bad> {
    T::decode(any.value.as_slice()).map_err(|e| Bad::new(format_args!("not a valid {}: {e}", type_name(any))))
}

/// Decodes an `Any` that must hold this type.
pub fn unpack<T: Message + Default>(any: &Any, name: &str) -> Result<T, Bad> {
    if type_name(any) != name {
        return Err(Bad::new(format_args!("expected {name}, found {}", type_name(any))));
    }
    decode(any)
}
