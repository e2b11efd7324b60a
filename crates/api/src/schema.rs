//! The shape of a kind: one tree from which strict decoding, pruning, OpenAPI and strategic merge all read.
//!
//! Invariant: a schema is complete in itself: every reference it holds names one of its own definitions (a test walks all
//! of them). Trees come from two places, `dsl` (Istio's kinds, written by us) and `kubernetes` (converted from
//! k8s-openapi's JSON schemas); readers cannot tell which.

pub mod check;
mod dsl;
mod kubernetes;
mod merge_keys;
mod openapi;
mod structural;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use self::check::{FieldError, Reason};
pub(crate) use self::dsl::{PREFIX as ISTIO_PREFIX, istio_definitions};
pub(crate) use self::kubernetes::{Converted, definitions_of};

/// Definitions by name, e.g. `io.k8s.api.core.v1.Container`.
pub type Definitions = BTreeMap<Arc<str>, Type>;

/// The schema of one kind at one version.
#[derive(Debug, Clone)]
pub struct Schema {
    root: Arc<str>,
    definitions: Arc<Definitions>,
}

/// The type of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    Object(ObjectType),
    Map {
        keys: Keys,
        values: Box<Type>,
    },
    List {
        items: Box<Type>,
        merge: ListMerge,
    },
    String,
    Bool,
    Int(IntRange),
    Number,
    /// An integer or a string, as `targetPort`.
    IntOrString,
    /// A Kubernetes quantity: a string such as `100m`, or a number.
    Quantity,
    /// A length of time in Go's notation.
    Duration,
    /// An RFC 3339 time.
    Time,
    /// Base64 text.
    Bytes,
    Enum(EnumType),
    /// Anything; unknown fields below it are kept.
    Any,
    /// Another definition of the same schema.
    Ref(Arc<str>),
}

/// What keys of a map may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    Text,
    /// Whole numbers, written as text in JSON.
    Number,
}

/// An object with named fields.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObjectType {
    pub description: Option<Arc<str>>,
    pub fields: BTreeMap<Arc<str>, Field>,
    pub required: Vec<Arc<str>>,
    /// Whether a missing required field is an error of the schema. Not so for Kubernetes' own kinds, whose defaulting runs
    /// between decoding and validation.
    pub enforce_required: bool,
    /// Whether fields that are not named here are kept, whatever they hold.
    pub open: bool,
    /// Whether server-side apply takes it as one value.
    pub whole: bool,
}

/// One field of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub description: Option<Arc<str>>,
    pub ty: Type,
}

/// An enum: names, and for protobuf enums their numbers, which are accepted in place of the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnumType {
    pub values: Vec<(Arc<str>, Option<i64>)>,
}

/// The values an integer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntRange {
    pub min: i64,
    /// Exceeds `i64` for unsigned 64-bit fields.
    pub max: i128,
    /// 64-bit protobuf fields are also accepted as decimal strings.
    pub as_text: bool,
    /// The OpenAPI format.
    pub format: &'static str,
}

/// How two versions of a list merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListMerge {
    /// The new list replaces the old one.
    Atomic,
    /// Scalars, merged as a set.
    Set,
    /// Objects identified by these fields; the first one is the strategic merge patch's key.
    Map(Vec<Arc<str>>),
}

impl Schema {
    pub(crate) fn new(root: &str, definitions: Arc<Definitions>) -> Self {
        Self { root: root.into(), definitions }
    }

    /// The name of the definition that describes the kind itself.
    pub fn root_name(&self) -> &str {
        &self.root
    }

    /// A cursor at the root of the tree.
    pub fn cursor(&self) -> Cursor<'_> {
        static ANY: Type = Type::Any;
        let ty = self.definitions.get(&self.root).unwrap_or(&ANY);
        Cursor { definitions: &self.definitions, ty, name: &self.root, whole: false, always: false, omitted: false }
            .resolved()
    }

    /// All definitions that the kind needs (and possibly others of the same family).
    pub fn definitions(&self) -> &Definitions {
        &self.definitions
    }
}

/// A place in a schema, to walk it beside a value.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    definitions: &'a Definitions,
    ty: &'a Type,
    /// The definition that this is, empty for a part of one.
    name: &'a str,
    whole: bool,
    always: bool,
    omitted: bool,
}

impl<'a> Cursor<'a> {
    fn resolved(mut self) -> Self {
        static ANY: Type = Type::Any;
        let mut ty = self.ty;
        // Definitions never form a cycle of bare references; the bound keeps a mistake from hanging a server.
        for _ in 0..8 {
            let Type::Ref(name) = ty else {
                self.whole |= matches!(ty, Type::Object(object) if object.whole);
                return Self { ty, ..self };
            };
            ty = self.definitions.get(name).unwrap_or(&ANY);
            self.name = name;
            self.whole |= merge_keys::is_whole(name);
        }
        Self { ty: &ANY, ..self }
    }

    /// The type here, references resolved.
    pub fn ty(self) -> &'a Type {
        self.ty
    }

    fn at(self, ty: &'a Type) -> Self {
        Self { ty, name: "", whole: false, always: false, omitted: false, ..self }.resolved()
    }

    /// The place of a field of an object, or of a value of a map. `None` when there is no such field, or inside a value
    /// of any shape.
    pub fn field(self, name: &str) -> Option<Self> {
        match self.ty {
            Type::Object(object) => {
                let mut place = self.at(&object.fields.get(name)?.ty);
                place.whole |= merge_keys::is_whole_field(self.name, name);
                let required = object.required.iter().any(|r| &**r == name);
                let own = self.name.starts_with(merge_keys::KUBERNETES);
                // What Kubernetes keeps as it came is one value.
                place.whole |= own && matches!(place.ty, Type::Any);
                place.always = own && (required || merge_keys::is_always(name));
                place.omitted = own && !required && matches!(place.ty, Type::List { .. } | Type::Map { .. });
                Some(place)
            }
            Type::Map { values, .. } => Some(self.at(values)),
            _ => None,
        }
    }

    /// Whether a map here belongs to one manager as a whole, as a label selector does.
    pub fn is_whole(self) -> bool {
        self.whole
    }

    /// Whether Kubernetes' own type has the field in every object, be it empty, so that nobody has put it there.
    pub fn is_always(self) -> bool {
        self.always
    }

    /// Whether Kubernetes' own type leaves the field out where it holds nothing.
    pub fn is_omitted(self) -> bool {
        self.omitted
    }

    /// The place of the items of a list.
    pub fn items(self) -> Option<Self> {
        match self.ty {
            Type::List { items, .. } => Some(self.at(items)),
            _ => None,
        }
    }

    /// How two lists merge here; `None` when this is not a list.
    pub fn list_merge(self) -> Option<&'a ListMerge> {
        match self.ty {
            Type::List { merge, .. } => Some(merge),
            _ => None,
        }
    }

    /// The key of a strategic merge patch over the list here: the field that identifies an item.
    pub fn patch_merge_key(self) -> Option<&'a str> {
        match self.list_merge() {
            Some(ListMerge::Map(keys)) => keys.first().map(|k| &**k),
            _ => None,
        }
    }
}
