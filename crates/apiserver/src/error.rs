//! What can go wrong with an API request, as Kubernetes words it.
//!
//! Invariant: every error a client sees is made here, so reason, code and details always belong together.
//! What it leaves to others: writing the `Status` on the wire (`rest::respond`).

use serde_json::{Value, json};

/// One field-level reason of a [`ApiError::Invalid`], as in `status.details.causes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, `FieldValueNotSupported`, …
    pub reason: &'static str,
    /// `Invalid value: "x": why`, without the field.
    pub message: String,
    /// Path of the field, `spec.ports[0].port`.
    pub field: String,
}

impl Cause {
    /// A wrong value in `field`.
    pub fn invalid(field: impl Into<String>, value: &Value, why: impl std::fmt::Display) -> Self {
        Self { reason: "FieldValueInvalid", message: format!("Invalid value: {value}: {why}"), field: field.into() }
    }

    /// A missing value.
    pub fn required(field: impl Into<String>, why: impl std::fmt::Display) -> Self {
        let why = why.to_string();
        let message = if why.is_empty() { "Required value".to_owned() } else { format!("Required value: {why}") };
        Self { reason: "FieldValueRequired", message, field: field.into() }
    }

    /// A value that is none of those allowed.
    pub fn unsupported(field: impl Into<String>, value: &Value, known: &[&str]) -> Self {
        let listed: Vec<String> = known.iter().map(|k| format!("{k:?}")).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", listed.join(", "));
        Self { reason: "FieldValueNotSupported", message, field: field.into() }
    }

    /// A change where none is allowed, or a value that may not be given.
    pub fn forbidden(field: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self { reason: "FieldValueForbidden", message: format!("Forbidden: {why}"), field: field.into() }
    }
}

/// Which object an error is about; `resource` is `plural` or `plural.group`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// Group, empty for the core group.
    pub group: String,
    /// Plural for most errors, the kind for `Invalid`.
    pub kind: String,
    /// The object's name; may be empty.
    pub name: String,
}

impl Subject {
    /// Splits `plural.group` (or `plural`) and names one object of it.
    pub fn of(resource: &str, name: &str) -> Self {
        let (kind, group) = resource.split_once('.').unwrap_or((resource, ""));
        Self { group: group.to_owned(), kind: kind.to_owned(), name: name.to_owned() }
    }

    fn qualified(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }
}

/// A failed API request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// 404 for an object.
    #[error("{} \"{}\" not found", .0.qualified(), .0.name)]
    NotFound(Subject),
    /// 404 for a path that belongs to no group: not even a `Status`.
    #[error("404 page not found")]
    NoSuchPage,
    /// 404 for a path.
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    /// 409: create of something that is there.
    #[error("{} \"{}\" already exists", .0.qualified(), .0.name)]
    AlreadyExists(Subject),
    /// 409: optimistic concurrency, apply conflicts. Retry after reading again.
    #[error("Operation cannot be fulfilled on {} \"{}\": {why}", subject.qualified(), subject.name)]
    Conflict {
        /// The object.
        subject: Subject,
        /// The reason, a clause.
        why: String,
    },
    /// 409 of server-side apply: other managers own the fields.
    #[error("{message}")]
    ApplyConflict {
        /// The whole message.
        message: String,
        /// One per field.
        causes: Vec<Cause>,
    },
    /// 422: well-formed, but not acceptable.
    #[error("{} \"{}\" is invalid: {}", subject.qualified(), subject.name, join_causes(causes))]
    Invalid {
        /// The object, `kind` being the kind here.
        subject: Subject,
        /// Why, per field.
        causes: Vec<Cause>,
    },
    /// 400.
    #[error("{0}")]
    BadRequest(String),
    /// 401.
    #[error("Unauthorized")]
    Unauthorized,
    /// 403 with the whole message.
    #[error("{message}")]
    Forbidden {
        /// The object.
        subject: Subject,
        /// The whole message.
        message: String,
        /// Optional cause (`NamespaceTerminating`).
        cause: Option<Box<Cause>>,
    },
    /// 410: the revision asked for is no longer kept. List again.
    #[error("{0}")]
    Expired(String),
    /// 405.
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    /// 406.
    #[error("{0}")]
    NotAcceptable(String),
    /// 415.
    #[error("the body of the request was in an unknown format - accepted media types include: {0}")]
    UnsupportedMediaType(String),
    /// 413.
    #[error("{0}")]
    TooLarge(String),
    /// 429. Retry after a second.
    #[error("{0}")]
    TooManyRequests(String),
    /// 429 of an eviction that a budget does not allow now; whoever asks decides when to ask again.
    #[error("{message}")]
    Evicting {
        /// The message.
        message: String,
        /// Which budget, and what it needs.
        cause: Cause,
    },
    /// 504. Retry.
    #[error("{message}")]
    Timeout {
        /// The message.
        message: String,
        /// Machine-readable cause (`ResourceVersionTooLarge`).
        cause: Option<Cause>,
    },
    /// 503: the server is going away or its storage refuses. Retry.
    #[error("{0}")]
    Unavailable(String),
    /// A refusal in the words of somebody else: an admission webhook.
    #[error("{message}")]
    Told {
        /// HTTP status.
        code: u16,
        /// The whole message.
        message: String,
        /// The whole `Status`.
        status: Box<Value>,
    },
    /// 500: our fault.
    #[error("Internal error occurred: {0}")]
    Internal(String),
}

/// Result of an API operation.
pub type ApiResult<T> = Result<T, ApiError>;

fn shown(cause: &Cause) -> Value {
    let mut shown = json!({"reason": cause.reason, "message": cause.message, "field": cause.field});
    if let (true, Some(map)) = (cause.field.is_empty(), shown.as_object_mut()) {
        map.shift_remove("field");
    }
    shown
}

fn join_causes(causes: &[Cause]) -> String {
    let line = |c: &Cause| if c.field.is_empty() { c.message.clone() } else { format!("{}: {}", c.field, c.message) };
    match causes {
        [] => String::new(),
        [one] => line(one),
        many => {
            // What is found twice is told once.
            let mut lines: Vec<String> = Vec::new();
            for line in many.iter().map(line) {
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
            if let [one] = lines.as_slice() { one.clone() } else { format!("[{}]", lines.join(", ")) }
        }
    }
}

impl ApiError {
    /// An error that Kubernetes does not name: no reason, no details.
    pub fn unnamed(code: u16, message: impl Into<String>) -> Self {
        let message = message.into();
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code,
        });
        Self::Told { code, message, status: Box::new(status) }
    }

    /// 404 for `name` of `resource` (`plural` or `plural.group`).
    pub fn not_found(resource: &str, name: &str) -> Self {
        Self::NotFound(Subject::of(resource, name))
    }

    /// 422 for an object of `kind`.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        Self::Invalid { subject: Subject { group: group.into(), kind: kind.into(), name: name.into() }, causes }
    }

    /// 403 with a free message, for admission.
    pub fn forbidden(resource: &str, name: &str, why: impl std::fmt::Display) -> Self {
        let subject = Subject::of(resource, name);
        let message = format!("{} \"{}\" is forbidden: {why}", subject.qualified(), subject.name);
        Self::Forbidden { subject, message, cause: None }
    }

    /// 409 that a writer resolves by reading again.
    pub fn modified(resource: &str, name: &str) -> Self {
        Self::Conflict {
            subject: Subject::of(resource, name),
            why: "the object has been modified; please apply your changes to the latest version and try again".into(),
        }
    }

    /// HTTP status.
    pub fn code(&self) -> u16 {
        match self {
            Self::NotFound(_) | Self::NoSuchPath | Self::NoSuchPage => 404,
            Self::AlreadyExists(_) | Self::Conflict { .. } | Self::ApplyConflict { .. } => 409,
            Self::Invalid { .. } => 422,
            Self::BadRequest(_) => 400,
            Self::Unauthorized => 401,
            Self::Forbidden { .. } => 403,
            Self::Expired(_) => 410,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable(_) => 406,
            Self::UnsupportedMediaType(_) => 415,
            Self::TooLarge(_) => 413,
            Self::TooManyRequests(_) | Self::Evicting { .. } => 429,
            Self::Timeout { .. } => 504,
            Self::Unavailable(_) => 503,
            Self::Told { code, .. } => *code,
            Self::Internal(_) => 500,
        }
    }

    /// Kubernetes' one-word reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound(_) | Self::NoSuchPath | Self::NoSuchPage => "NotFound",
            Self::AlreadyExists(_) => "AlreadyExists",
            Self::Conflict { .. } | Self::ApplyConflict { .. } => "Conflict",
            Self::Invalid { .. } => "Invalid",
            Self::BadRequest(_) => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::Expired(_) => "Expired",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable(_) => "NotAcceptable",
            Self::UnsupportedMediaType(_) => "UnsupportedMediaType",
            Self::TooLarge(_) => "RequestEntityTooLarge",
            Self::TooManyRequests(_) | Self::Evicting { .. } => "TooManyRequests",
            Self::Timeout { .. } => "Timeout",
            Self::Unavailable(_) => "ServiceUnavailable",
            Self::Told { .. } => "Unknown",
            Self::Internal(_) => "InternalError",
        }
    }

    /// The `v1 Status` object.
    pub fn to_status(&self) -> Value {
        if let Self::Told { status, .. } = self {
            return (**status).clone();
        }
        let (subject, causes, retry) = match self {
            Self::NotFound(s) | Self::AlreadyExists(s) | Self::Conflict { subject: s, .. } => {
                (Some(s), Vec::new(), None)
            }
            Self::Invalid { subject, causes } => (Some(subject), causes.iter().collect(), None),
            Self::ApplyConflict { causes, .. } => (None, causes.iter().collect(), None),
            Self::Forbidden { subject, cause, .. } => (Some(subject), cause.as_deref().into_iter().collect(), None),
            Self::Timeout { cause, .. } => (None, cause.iter().collect(), Some(1)),
            Self::Evicting { cause, .. } => (None, vec![cause], None),
            Self::TooManyRequests(_) | Self::Unavailable(_) => (None, Vec::new(), Some(1)),
            _ => (None, Vec::new(), None),
        };
        let mut details = serde_json::Map::new();
        if let Some(s) = subject {
            for (key, value) in [("name", &s.name), ("group", &s.group), ("kind", &s.kind)] {
                if !value.is_empty() {
                    details.insert(key.into(), json!(value));
                }
            }
        }
        if !causes.is_empty() {
            let list: Vec<Value> = causes.iter().map(|cause| shown(cause)).collect();
            details.insert("causes".into(), Value::Array(list));
        }
        if let Some(seconds) = retry {
            details.insert("retryAfterSeconds".into(), json!(seconds));
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": self.reason(),
        });
        if let Some(map) = status.as_object_mut() {
            let empty = match self {
                Self::NoSuchPath | Self::MethodNotAllowed => true,
                Self::NotAcceptable(why) => why.starts_with("406"),
                _ => false,
            };
            if !details.is_empty() || subject.is_some() || empty {
                map.insert("details".into(), Value::Object(details));
            }
            map.insert("code".into(), json!(self.code()));
        }
        status
    }
}
