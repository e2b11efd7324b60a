//! `Accept` → the form of the answer.
//!
//! Invariant: the first acceptable form in the client's order wins; JSON is always acceptable to give, so a client that
//! prefers protobuf gets JSON when it lists it, or anything.
//! What it leaves to others: making the forms (`table`, `discovery`).

use crate::error::{ApiError, ApiResult};

/// Form of objects and lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Plain,
    /// `meta.k8s.io/v1 Table`.
    Table,
    /// `meta.k8s.io/v1 PartialObjectMetadata(List)`.
    Metadata,
}

/// One entry of an `Accept` header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Media<'a> {
    /// `application/json`.
    pub kind: &'a str,
    /// `as=…`.
    pub shape: Option<&'a str>,
    /// `g=…`.
    pub group: Option<&'a str>,
    /// `v=…`.
    pub version: Option<&'a str>,
}

impl<'a> Media<'a> {
    /// The entries in the client's order; quality values are not weighed, as Kubernetes' clients send none.
    pub fn list(accept: &'a str) -> Vec<Self> {
        accept.split(',').take(32).map(Self::parse).collect()
    }

    fn parse(entry: &'a str) -> Self {
        let mut pieces = entry.split(';').map(str::trim);
        let mut media = Media { kind: pieces.next().unwrap_or(""), ..Self::default() };
        for piece in pieces {
            match piece.split_once('=') {
                Some(("as", value)) => media.shape = Some(value),
                Some(("g", value)) => media.group = Some(value),
                Some(("v", value)) => media.version = Some(value),
                _ => {}
            }
        }
        media
    }

    /// Whether JSON satisfies it.
    pub fn json(&self) -> bool {
        matches!(self.kind, "application/json" | "application/*" | "*/*" | "")
    }
}

/// The form to answer objects in.
///
/// # Errors
/// `NotAcceptable` when nothing that we can give is asked for.
pub fn form(accept: &str) -> ApiResult<Form> {
    let mut other = false;
    for media in Media::list(accept) {
        let known = matches!((media.group, media.version), (Some("meta.k8s.io"), Some("v1")) | (None, None));
        match (media.json(), media.shape) {
            (true, None) => return Ok(Form::Plain),
            (true, Some("Table")) if known => return Ok(Form::Table),
            (true, Some("PartialObjectMetadata" | "PartialObjectMetadataList")) if known => return Ok(Form::Metadata),
            // Protobuf and YAML askers understand JSON.
            (false, None) => other |= matches!(media.kind, "application/vnd.kubernetes.protobuf" | "application/yaml"),
            _ => {}
        }
    }
    if other {
        return Ok(Form::Plain);
    }
    let all = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
    let shaped = Media::list(accept).iter().any(|media| media.shape.is_some());
    Err(ApiError::NotAcceptable(if shaped {
        format!("only the following media types are accepted: {all}")
    } else {
        format!("406: Not Acceptable\n\nAvailable representations: {all}")
    }))
}

/// Whether the metadata asked for is that of a list.
pub fn asks_for_list(accept: &str) -> bool {
    Media::list(accept).iter().find_map(|media| media.shape) == Some("PartialObjectMetadataList")
}

/// Whether the answer is wanted as YAML before JSON.
pub fn wants_yaml(accept: &str) -> bool {
    Media::list(accept)
        .iter()
        .find(|m| m.json() || m.kind.ends_with("/yaml"))
        .is_some_and(|m| m.kind.ends_with("/yaml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (accept, expected) in [
            ("", Some(Form::Plain)),
            ("*/*", Some(Form::Plain)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(Form::Table),
            ),
            ("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", Some(Form::Plain)),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                Some(Form::Metadata),
            ),
            ("application/vnd.kubernetes.protobuf, application/json", Some(Form::Plain)),
            ("application/vnd.kubernetes.protobuf", Some(Form::Plain)),
            ("text/html", None),
        ] {
            assert_eq!(form(accept).ok(), expected, "{accept}");
        }
    }
}
