//! From typed API objects to the mesh's own types.
//!
//! Invariant: reading one object looks at no other; what is wrong in it is a finding about it, and leaves out as little as is safe.

pub mod authorization_policy;
pub mod authorizer;
pub mod destination_rule;
pub mod gateway;
pub mod legacy_policy;
pub mod peer_authentication;
pub mod pod;
pub(crate) mod provider;
pub(crate) mod proxy_config;
pub mod request_authentication;
pub mod service;
pub mod service_entry;
pub mod sidecar;
pub(crate) mod telemetry;
pub mod traffic;
pub mod virtual_service;
pub mod workload_entry;

use std::sync::Arc;

use carrick_api::{Meta, istio::TargetReference};
use carrick_base::{Diagnostic, FieldPath, NamespacedName, Severity};

use crate::model::{ExportTo, Origin};

/// Where an object comes from. One that no server stored yet counts as newest.
pub(crate) fn origin(kind: &'static str, meta: &Meta) -> Origin {
    Origin {
        kind,
        name: NamespacedName::new(&meta.namespace, &meta.name),
        created: meta.creation_timestamp.map_or(i64::MAX, carrick_api::timestamp::Timestamp::seconds),
    }
}

/// Who may see an object (semantics §0.3): its own list, else the mesh's default.
pub(crate) fn export_to<'a>(
    own: impl Iterator<Item = &'a str>,
    default: &'a [String],
    namespace: &Arc<str>,
) -> ExportTo {
    let mut tokens: Vec<&str> = own.map(str::trim).filter(|t| !t.is_empty()).collect();
    if tokens.is_empty() {
        tokens = default.iter().map(String::as_str).collect();
    }
    if tokens.is_empty() || tokens.contains(&"*") {
        return ExportTo::All;
    }
    let place = |token: &str| if token == "." { namespace.clone() } else { token.into() };
    ExportTo::Namespaces(tokens.into_iter().filter(|t| *t != "~").map(place).collect())
}

/// Names of the Gateways (Gateway API) among target references; `None` without references.
pub(crate) fn targets<'a>(all: impl Iterator<Item = &'a TargetReference>) -> Option<Vec<Arc<str>>> {
    let mut all = all.peekable();
    all.peek()?;
    let gateways = all.filter(|t| t.group == "gateway.networking.k8s.io" && t.kind == "Gateway");
    Some(gateways.map(|t| t.name.as_str().into()).collect())
}

/// Whether a text is a header's name (RFC 9110 §5.1).
pub(crate) fn is_header_name(text: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(token)
}

/// A finding about an object.
pub(crate) fn finding(
    origin: &Origin,
    code: &'static str,
    severity: Severity,
    field: &str,
    message: impl Into<String>,
) -> Diagnostic {
    Diagnostic { code, severity, object: origin.object(), field: FieldPath::new(field), message: message.into() }
}
