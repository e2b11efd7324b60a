//! URL → what is asked for.
//!
//! Invariant: every path parses to exactly one [`Target`] without panicking; names are percent-decoded once.
//! What it leaves to others: whether the resource exists (`catalog`) and may be touched (`authorize`).

use crate::authorize::Attributes;
use crate::error::{ApiError, ApiResult, Cause};
use http::Method;
use serde_json::json;
use std::borrow::Cow;

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Anything that is not an object: discovery, health, OpenAPI, …
    Path(String),
    /// A collection or an object.
    Resource(ResourcePath),
}

/// Parts of a resource path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourcePath {
    /// Group, empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// Namespace, empty when the path names none.
    pub namespace: String,
    /// Name, empty for collections.
    pub name: String,
    /// Subresource, or empty.
    pub subresource: String,
    /// The old way of watching, `/api/v1/watch/…`.
    pub watch: bool,
}

/// Parses a URL path.
pub fn target(path: &str) -> Target {
    let bare = || Target::Path(path.trim_end_matches('/').to_owned());
    let mut parts: Vec<Cow<'_, str>> = Vec::new();
    for part in path.split('/').filter(|p| !p.is_empty()) {
        match percent(part) {
            Some(part) if !part.contains('/') && !part.contains('\0') => parts.push(part),
            _ => return bare(),
        }
    }
    let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return bare(),
    };
    let (watch, rest) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        _ => (false, rest),
    };
    let (namespace, rest) = match rest {
        // The namespace object itself and its subresources.
        ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
        ["namespaces", namespace, rest @ ..] => (*namespace, rest),
        _ => ("", rest),
    };
    let (resource, name, subresource) = match rest {
        [resource] => (*resource, "", ""),
        [resource, name] => (*resource, *name, ""),
        [resource, name, subresource] => (*resource, *name, *subresource),
        _ => return bare(),
    };
    Target::Resource(ResourcePath {
        group: group.into(),
        version: version.into(),
        resource: resource.into(),
        namespace: namespace.into(),
        name: name.into(),
        subresource: subresource.into(),
        watch,
    })
}

/// The authorization verb of a request.
pub fn verb(method: &Method, path: &ResourcePath, query: &Query) -> ApiResult<&'static str> {
    Ok(match *method {
        Method::GET | Method::HEAD if path.watch => "watch",
        // An object is not watched by its path.
        Method::GET | Method::HEAD if path.name.is_empty() && query.flag("watch") => "watch",
        Method::GET | Method::HEAD if path.name.is_empty() => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if path.name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ => return Err(ApiError::MethodNotAllowed),
    })
}

impl ResourcePath {
    /// For the authorizer.
    pub fn attributes(&self, verb: &str) -> Attributes {
        // A request about one namespace is a request in it.
        let own = self.group.is_empty() && self.resource == "namespaces" && self.namespace.is_empty();
        Attributes {
            verb: verb.to_owned(),
            group: self.group.clone(),
            version: self.version.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone(),
            namespace: if own { self.name.clone() } else { self.namespace.clone() },
            name: self.name.clone(),
            path: String::new(),
        }
    }
}

/// `%41` → `A`; `None` for bad escapes or bytes that are no UTF-8.
fn percent(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

/// The key of an extra of somebody to act as, out of a header's name; one that does not decode is taken as it is.
pub fn unescaped(text: &str) -> String {
    percent(text).map_or_else(|| text.to_owned(), Cow::into_owned)
}

/// Query parameters, decoded.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `a=b&c`; pieces that do not decode are left out.
    pub fn parse(text: &str) -> Self {
        let decode = |part: &str| percent(&part.replace('+', " ")).map(Cow::into_owned);
        let pairs = text.split('&').filter(|p| !p.is_empty()).take(1280).filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key)?, decode(value)?))
        });
        Self(pairs.collect())
    }

    /// First value of `name`, empty counting as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, v)| k == name && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    /// All values of `name`, in their order; empty ones, too.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// Present, and neither `false` nor `0`.
    pub fn flag(&self, name: &str) -> bool {
        let mut values = self.0.iter().filter(|(k, _)| k == name).map(|(_, v)| v.as_str());
        values.next().is_some_and(|v| !v.eq_ignore_ascii_case("false") && v != "0")
    }

    /// A number.
    ///
    /// # Errors
    /// `BadRequest` for anything else.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> ApiResult<Option<T>> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let wrong = |_| ApiError::BadRequest(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
        text.parse().map(Some).map_err(wrong)
    }

    /// What of a write's parameters is wrong; `options` is the kind that Kubernetes reads them into.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn check_options(&self, options: &str) -> ApiResult<()> {
        let mut causes = Vec::new();
        let manager = self.get("fieldManager").unwrap_or("");
        if manager.len() > 128 {
            let message = "Too long: may not be more than 128 bytes".to_owned();
            causes.push(Cause { reason: "FieldValueTooLong", message, field: "fieldManager".into() });
        }
        if let Some((at, letter)) = manager.chars().enumerate().find(|(_, c)| c.is_control()) {
            let why = format!("invalid character U+{:04X} (at position {at})", u32::from(letter));
            causes.push(Cause::invalid("fieldManager", &json!(manager), why));
        }
        let runs: Vec<&str> = self.all("dryRun").filter(|v| !v.is_empty()).collect();
        if runs.iter().any(|run| *run != "All") {
            causes.push(Cause::unsupported("dryRun", &json!(runs), &["All"]));
        }
        let strictness = self.get("fieldValidation").unwrap_or("");
        if options != "DeleteOptions" && !matches!(strictness, "" | "Ignore" | "Strict" | "Warn") {
            causes.push(Cause::unsupported("fieldValidation", &json!(strictness), &["", "Ignore", "Strict", "Warn"]));
        }
        if causes.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", options, "", causes)) }
    }

    /// Whether `dryRun=All`.
    ///
    /// # Errors
    /// `BadRequest` for other values.
    pub fn dry_run(&self) -> ApiResult<bool> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => {
                Err(ApiError::BadRequest(format!("invalid dryRun value {other:?}: supported values: \"All\"")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(path: &str) -> String {
        match target(path) {
            Target::Path(path) => format!("path {path}"),
            Target::Resource(r) => {
                format!("{}|{}|{}|{}|{}|{}", r.group, r.version, r.namespace, r.resource, r.name, r.subresource)
            }
        }
    }

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/api/v1/pods", "|v1||pods||"),
            ("/api/v1/namespaces", "|v1||namespaces||"),
            ("/api/v1/namespaces/a", "|v1||namespaces|a|"),
            ("/api/v1/namespaces/a/status", "|v1||namespaces|a|status"),
            ("/api/v1/namespaces/a/finalize", "|v1||namespaces|a|finalize"),
            ("/api/v1/namespaces/a/pods", "|v1|a|pods||"),
            ("/api/v1/namespaces/a/pods/p/status", "|v1|a|pods|p|status"),
            ("/apis/apps/v1/namespaces/a/deployments/d", "apps|v1|a|deployments|d|"),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "rbac.authorization.k8s.io|v1||clusterroles|system:node|",
            ),
            ("/api", "path /api"),
            ("/api/v1", "path /api/v1"),
            ("/apis/apps/v1/", "path /apis/apps/v1"),
            ("/api/v1/a/b/c/d/e", "path /api/v1/a/b/c/d/e"),
            ("/api/v1/pods/%zz", "path /api/v1/pods/%zz"),
            ("/api/v1/pods/a%2fb", "path /api/v1/pods/a%2fb"),
            ("/api/v1/watch/namespaces/a/pods/p", "|v1|a|pods|p|"),
            ("//", "path "),
        ] {
            assert_eq!(show(path), expected, "{path}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse("watch=1&labelSelector=a%3Db%2Cc&x&limit=5&bad=%f&empty=");
        assert!(query.flag("watch") && query.flag("x") && !query.flag("y"));
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert_eq!(query.get("bad"), None);
        assert_eq!(query.get("empty"), None);
        assert_eq!(query.number::<usize>("limit").unwrap(), Some(5));
        assert!(query.number::<usize>("labelSelector").is_err());
        for (path, query, expected) in [
            ("/api/v1/pods", "watch=1", "watch"),
            ("/api/v1/namespaces/a/pods/p", "watch=1", "get"),
            ("/api/v1/watch/namespaces/a/pods/p", "", "watch"),
        ] {
            let Target::Resource(path) = target(path) else { panic!("{path}") };
            assert_eq!(verb(&Method::GET, &path, &Query::parse(query)).unwrap(), expected);
        }
    }
}
