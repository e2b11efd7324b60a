//! The small part of the Common Expression Language that log filters and metric labels are written in.
//!
//! Invariant: an expression that parses evaluates without fail to a value or to "error" (a missing key, types that do not fit), as CEL
//! has it: errors end in `false` for filters and in nothing for labels. Attributes that are not known are refused when parsing.
//! Grammar: literals, `request.…`, `response.…`, `connection.…`, `source.…`, `destination.…`, `upstream.…`, `xds.…`, `== != < <= > >= &&
//! || ! + ?: in`, lists, `has()`, `size()`, `startsWith`, `endsWith`, `contains`, `matches`.

mod eval;
mod parse;

pub use eval::Val;
pub use parse::{ExprError, parse};
