//! What is wrong with a configuration, as data: bad configuration never is an error that stops its neighbours.
//!
//! Invariant: a diagnostic names its object, and its field where there is one. How it is shown (a Status, an
//! `analyze` line, a log line) is decided by who shows it.

use std::fmt;

use crate::{name::ObjectRef, path::FieldPath};

/// How bad a finding is, in the words and order of `istioctl analyze`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; works as written.
    Info,
    /// Probably not what was meant.
    Warning,
    /// Does not work as written.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        })
    }
}

/// One finding about one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Diagnostic {
    /// A stable code, Istio's where Istio has one (`IST0106`).
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The object it is about.
    pub object: ObjectRef,
    /// The field it is about; the root when it is about the whole object.
    pub field: FieldPath,
    /// What is wrong, for a person; does not repeat object and field.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] ({})", self.severity, self.code, self.object)?;
        if !self.field.as_str().is_empty() {
            write!(f, " {}:", self.field)?;
        }
        write!(f, " {}", self.message)
    }
}
