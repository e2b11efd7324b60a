//! Path and host rewrites, and the location of redirects.
//!
//! Invariant: the query survives every rewrite of a path unless a redirect strips it; rewriting never makes a path without leading `/`
//! out of one that had it.

use http::StatusCode;

use crate::model::matcher::RegexRewrite;
use crate::model::route::{HostRewrite, PathMatch, PathRewrite, Redirect, RedirectPath, RouteAction};
use crate::request::{RequestHead, split_path};
use crate::routing::{ClusterChoice, split_port};

impl RegexRewrite {
    /// The text with every match replaced.
    #[must_use]
    pub fn apply(&self, text: &str) -> String {
        self.pattern.replace_all(text, &*self.substitution).into_owned()
    }
}

/// The path a route forwards, if it differs from the request's (`x-envoy-original-path` then holds the old one).
#[must_use]
pub fn path(action: &RouteAction, matched: &PathMatch, request_path: &str) -> Option<String> {
    let rewrite = action.path_rewrite.as_ref()?;
    let (only, query) = split_path(request_path);
    let new = match rewrite {
        PathRewrite::Prefix(prefix) => replace_prefix(only, matched, prefix)?,
        PathRewrite::Regex(regex) => regex.apply(only),
        PathRewrite::Full(full) => full.to_string(),
        PathRewrite::Template(rewrite) => match matched {
            PathMatch::Template(template) => rewrite.apply(template, only)?,
            _ => return None,
        },
    };
    Some(with_query(new, query))
}

fn replace_prefix(path: &str, matched: &PathMatch, prefix: &str) -> Option<String> {
    let rest = path.get(matched.matched_len(path)?..)?;
    let mut out = String::with_capacity(prefix.len().saturating_add(rest.len()));
    out.push_str(prefix);
    out.push_str(rest);
    if !out.starts_with('/') {
        out.insert(0, '/');
    }
    Some(out)
}

fn with_query(mut path: String, query: Option<&str>) -> String {
    if let Some(query) = query {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(query);
    }
    path
}

/// The host a route forwards, if it differs. `endpoint_hostname` serves automatic rewriting.
#[must_use]
pub fn host(
    action: &RouteAction,
    choice: &ClusterChoice<'_>,
    request: &RequestHead<'_>,
    endpoint_hostname: Option<&str>,
) -> Option<String> {
    if let Some(host) = choice.weighted.and_then(|w| w.host_rewrite.as_deref()) {
        return Some(host.to_owned());
    }
    match action.host_rewrite.as_ref()? {
        HostRewrite::Literal(host) => Some(host.to_string()),
        HostRewrite::Auto => endpoint_hostname.filter(|h| !h.is_empty()).map(str::to_owned),
        HostRewrite::Header(name) => {
            request.headers.get(name).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty()).map(str::to_owned)
        }
        HostRewrite::PathRegex(regex) => Some(regex.apply(request.path_only())),
    }
}

/// Status and `location` of a redirect.
#[must_use]
pub fn redirect(redirect: &Redirect, matched: &PathMatch, request: &RequestHead<'_>) -> (StatusCode, String) {
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let (request_host, request_port) = split_port(request.authority);
    let host = redirect.host.as_deref().unwrap_or(request_host);
    let port = match (redirect.port, request_port) {
        (Some(port), _) => Some(port.to_string()),
        // A change of scheme drops a port that was the old scheme's default, as Envoy does; a new host brings its own port.
        (None, Some(_)) if redirect.host.is_some() => None,
        (None, Some("80")) if request.scheme == "http" && scheme == "https" => None,
        (None, Some("443")) if request.scheme == "https" && scheme == "http" => None,
        (None, port) => port.map(str::to_owned),
    };
    let (only, query) = split_path(request.path);
    let query = query.filter(|_| !redirect.strip_query);
    let path = match &redirect.path {
        None => with_query(only.to_owned(), query),
        // A path redirect with its own query replaces the request's.
        Some(RedirectPath::Full(full)) if full.contains('?') => full.to_string(),
        Some(RedirectPath::Full(full)) => with_query(full.to_string(), query),
        Some(RedirectPath::Prefix(prefix)) => {
            with_query(replace_prefix(only, matched, prefix).unwrap_or_else(|| only.to_owned()), query)
        }
        Some(RedirectPath::Regex(regex)) => with_query(regex.apply(only), query),
    };
    let port = port.map(|p| format!(":{p}")).unwrap_or_default();
    (redirect.status, format!("{scheme}://{host}{port}{path}"))
}

/// `location` of the redirect that a virtual host with `require_tls` answers (status 301).
#[must_use]
pub fn https_location(request: &RequestHead<'_>) -> String {
    format!("https://{}{}", request.authority, request.path)
}
