//! The types of rules' values, and which fits which.
//!
//! Invariant: what is `Dyn` fits everything, since it is decided only when a rule runs; an empty list or map takes the type of
//! what it is put beside.

use super::declared::{Declared, Is};
use super::table::Shape;

/// A type.
#[derive(Debug, Clone)]
pub enum Type<'a> {
    Dyn,
    /// Of an empty list: not known yet.
    Free,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    Bytes,
    Duration,
    Timestamp,
    /// A type as a value.
    OfTypes,
    Named(&'static str),
    List(Box<Type<'a>>),
    Map(Box<Type<'a>>, Box<Type<'a>>),
    Optional(Box<Type<'a>>),
    Object(&'a Declared),
}

impl PartialEq for Type<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Object(a), Self::Object(b)) => std::ptr::eq(*a, *b),
            (Self::Named(a), Self::Named(b)) => a == b,
            (Self::List(a), Self::List(b)) | (Self::Optional(a), Self::Optional(b)) => a == b,
            (Self::Map(a, b), Self::Map(c, d)) => a == c && b == d,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl Eq for Type<'_> {}

impl std::fmt::Display for Type<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dyn | Self::Free => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::Text => f.write_str("string"),
            Self::Bytes => f.write_str("bytes"),
            Self::Duration => f.write_str("google.protobuf.Duration"),
            Self::Timestamp => f.write_str("google.protobuf.Timestamp"),
            Self::OfTypes => f.write_str("type"),
            Self::Named(name) => f.write_str(name),
            Self::List(item) => write!(f, "list({item})"),
            Self::Map(key, value) => write!(f, "map({key}, {value})"),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Object(_) => f.write_str("object"),
        }
    }
}

impl<'a> Type<'a> {
    /// Of a schema.
    pub fn of(declared: &'a Declared) -> Self {
        let element = || declared.element.as_deref().map_or(Type::Dyn, Type::of);
        match declared.is {
            Is::Dyn => Self::Dyn,
            Is::Bool => Self::Bool,
            Is::Int => Self::Int,
            Is::Double => Self::Double,
            Is::Text => Self::Text,
            Is::Bytes => Self::Bytes,
            Is::Duration => Self::Duration,
            Is::Timestamp => Self::Timestamp,
            Is::List => Self::List(Box::new(element())),
            Is::Map => Self::Map(Box::new(Self::Text), Box::new(element())),
            Is::Object => Self::Object(declared),
        }
    }

    /// The type of something that may be either; nothing when there is none.
    pub fn join(&self, other: &Self) -> Option<Self> {
        let boxed = |a: &Self, b: &Self| a.join(b).map(Box::new);
        match (self, other) {
            (Self::Free, known) | (known, Self::Free) => Some(known.clone()),
            (Self::Dyn, _) | (_, Self::Dyn) => Some(Self::Dyn),
            (Self::List(a), Self::List(b)) => Some(Self::List(boxed(a, b)?)),
            (Self::Optional(a), Self::Optional(b)) => Some(Self::Optional(boxed(a, b)?)),
            (Self::Map(a, b), Self::Map(c, d)) => Some(Self::Map(boxed(a, c)?, boxed(b, d)?)),
            (Self::Null, known @ (Self::Object(_) | Self::Duration | Self::Timestamp | Self::Optional(_)))
            | (known @ (Self::Object(_) | Self::Duration | Self::Timestamp | Self::Optional(_)), Self::Null) => {
                Some(known.clone())
            }
            _ if self == other => Some(self.clone()),
            _ => None,
        }
    }

    /// Whether its size is one, whatever it is.
    pub fn is_scalar(&self) -> bool {
        matches!(
            self,
            Self::Bool | Self::Double | Self::Duration | Self::Int | Self::Timestamp | Self::OfTypes | Self::Uint
        )
    }
}

/// What the parameters of a function stand for in one call.
#[derive(Default)]
pub struct Bound<'a>([Option<Type<'a>>; 2]);

impl<'a> Bound<'a> {
    fn slot(&mut self, parameter: u8) -> &mut Option<Type<'a>> {
        let [a, b] = &mut self.0;
        if parameter == b'A' { a } else { b }
    }

    /// Whether a value can be what a function takes.
    pub fn takes(&mut self, shape: &Shape, given: &Type<'a>) -> bool {
        match (shape, given) {
            (Shape::Exact(wanted), given) => wanted.join(given).is_some(),
            (Shape::Parameter(parameter), given) => {
                let slot = self.slot(*parameter);
                let joined = slot.as_ref().map_or_else(|| Some(given.clone()), |known| known.join(given));
                let fits = joined.is_some();
                *slot = joined.or_else(|| slot.take());
                fits
            }
            (Shape::List(inner), Type::List(item)) => self.takes(inner, item),
            (Shape::Optional(inner), Type::Optional(item)) => self.takes(inner, item),
            (Shape::Map(key, value), Type::Map(k, v)) => self.takes(key, k) && self.takes(value, v),
            (_, Type::Dyn | Type::Free) => true,
            _ => false,
        }
    }

    /// What a function gives in this call.
    pub fn gives(&mut self, shape: &Shape) -> Type<'a> {
        match shape {
            Shape::Exact(exact) => exact.clone(),
            Shape::Parameter(parameter) => self.slot(*parameter).clone().unwrap_or(Type::Dyn),
            Shape::List(inner) => Type::List(Box::new(self.gives(inner))),
            Shape::Optional(inner) => Type::Optional(Box::new(self.gives(inner))),
            Shape::Map(key, value) => Type::Map(Box::new(self.gives(key)), Box::new(self.gives(value))),
        }
    }
}
