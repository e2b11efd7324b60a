//! Filters of rules and backends in Istio's words.
//!
//! Invariant: a filter that is not known makes its rule answer 500, as the specification asks; it is never left out.

use carrick_api::{
    gateway_api::route::{Cors, Filter, HeaderModifier, PathModifier, Redirect},
    istio::virtual_service::{
        CorsPolicy, DerivePort, HeaderOperations, Headers, HttpMirror, HttpRedirect, HttpRewrite, Percent,
        RegexRewrite, StringMatch,
    },
    scalar::{Duration, Number},
};

use crate::names::REST_OF_PATH;

use super::references::{Backends, Unresolved};

/// What filters come to.
#[derive(Debug, Clone, Default)]
pub(super) struct Filters {
    pub(super) headers: Option<Headers>,
    pub(super) mirrors: Vec<HttpMirror>,
    pub(super) redirect: Option<Redirect>,
    pub(super) rewrite_host: String,
    pub(super) rewrite_path: Option<PathModifier>,
    pub(super) cors: Option<CorsPolicy>,
    /// The first reference that leads nowhere.
    pub(super) unresolved: Option<Unresolved>,
    /// A filter that is not known.
    pub(super) unknown: Option<String>,
}

impl Filters {
    pub(super) fn of(all: &[Filter], kind: &str, namespace: &str, backends: &Backends<'_>) -> Self {
        let mut out = Self::default();
        for filter in all {
            match filter.kind.as_str() {
                "RequestHeaderModifier" => {
                    out.headers.get_or_insert_default().request =
                        filter.request_header_modifier.as_ref().map(operations);
                }
                "ResponseHeaderModifier" => {
                    out.headers.get_or_insert_default().response =
                        filter.response_header_modifier.as_ref().map(operations);
                }
                "RequestMirror" => {
                    let Some(mirror) = &filter.request_mirror else { continue };
                    match backends.destination(kind, namespace, &mirror.backend_ref) {
                        Ok(destination) => {
                            let share = match (&mirror.fraction, mirror.percent) {
                                (Some(f), _) => {
                                    100.0 * f64::from(f.numerator) / f64::from(f.denominator.unwrap_or(100).max(1))
                                }
                                (None, Some(percent)) => f64::from(percent),
                                (None, None) => 100.0,
                            };
                            let percentage = Some(Percent { value: Number(share) });
                            out.mirrors.push(HttpMirror { destination: Some(destination), percentage });
                        }
                        Err(reason) => out.unresolved = out.unresolved.take().or(Some(reason)),
                    }
                }
                "RequestRedirect" => out.redirect.clone_from(&filter.request_redirect),
                "URLRewrite" => {
                    if let Some(rewrite) = &filter.url_rewrite {
                        out.rewrite_host = rewrite.hostname.clone().unwrap_or_default();
                        out.rewrite_path.clone_from(&rewrite.path);
                    }
                }
                "CORS" => out.cors = filter.cors.as_ref().map(cors),
                other => out.unknown = out.unknown.take().or_else(|| Some(other.to_owned())),
            }
        }
        out
    }

    /// Filters of a backend beside headers, which are its own: they are the rule's where it is the only one, and not known otherwise.
    pub(super) fn take_backends(&mut self, own: &Self, alone: bool) {
        let rewrites = !own.rewrite_host.is_empty() || own.rewrite_path.is_some();
        if !rewrites && own.redirect.is_none() && own.mirrors.is_empty() && own.cors.is_none() && own.unknown.is_none()
        {
            return;
        }
        let taken = (rewrites && (!self.rewrite_host.is_empty() || self.rewrite_path.is_some()))
            || (own.redirect.is_some() && self.redirect.is_some())
            || (own.cors.is_some() && self.cors.is_some());
        if !alone || taken || own.unknown.is_some() {
            let word = own.unknown.clone().unwrap_or_else(|| "of one of several backends".to_owned());
            self.unknown = self.unknown.take().or(Some(word));
            return;
        }
        if rewrites {
            self.rewrite_host.clone_from(&own.rewrite_host);
            self.rewrite_path.clone_from(&own.rewrite_path);
        }
        self.redirect = self.redirect.take().or_else(|| own.redirect.clone());
        self.cors = self.cors.take().or_else(|| own.cors.clone());
        self.mirrors.extend(own.mirrors.iter().cloned());
    }

    /// Whether routes differ by how the path was matched.
    pub(super) fn by_prefix(&self) -> bool {
        let replaces = |p: &Option<PathModifier>| p.as_ref().is_some_and(|p| p.kind == "ReplacePrefixMatch");
        replaces(&self.rewrite_path) || self.redirect.as_ref().is_some_and(|r| replaces(&r.path))
    }

    /// The rewrite for requests whose path begins with `prefix` (an exact match when it has no final slash).
    pub(super) fn rewrite(&self, prefix: &str) -> Option<HttpRewrite> {
        if self.rewrite_host.is_empty() && self.rewrite_path.is_none() {
            return None;
        }
        let mut out = HttpRewrite { authority: self.rewrite_host.clone(), ..HttpRewrite::default() };
        match &self.rewrite_path {
            Some(path) if path.kind == "ReplaceFullPath" => {
                let full = path.replace_full_path.clone().unwrap_or_default().replace('\\', "\\\\");
                out.uri_regex_rewrite = Some(RegexRewrite { pattern: "/.*".to_owned(), rewrite: full });
            }
            Some(path) => out.uri = replaced(path.replace_prefix_match.as_deref().unwrap_or_default(), prefix),
            None => {}
        }
        Some(out)
    }

    /// The redirect for requests whose path begins with `prefix`; `port` is the listener's.
    pub(super) fn redirect(&self, prefix: &str, port: u16) -> Option<HttpRedirect> {
        let redirect = self.redirect.as_ref()?;
        let mut out = HttpRedirect {
            authority: redirect.hostname.clone().unwrap_or_default(),
            scheme: redirect.scheme.clone().unwrap_or_default(),
            redirect_code: u32::from(redirect.status_code.unwrap_or(302)),
            ..HttpRedirect::default()
        };
        match (redirect.port, &redirect.scheme) {
            (Some(number), _) => out.port = Some(u32::from(number)),
            (None, Some(_)) => out.derive_port = Some(DerivePort::FromProtocolDefault),
            (None, None) if port != 80 && port != 443 && port != 0 => out.port = Some(u32::from(port)),
            (None, None) => {}
        }
        match &redirect.path {
            Some(path) if path.kind == "ReplaceFullPath" => {
                out.uri = path.replace_full_path.clone().unwrap_or_default()
            }
            Some(path) => {
                let new = replaced(path.replace_prefix_match.as_deref().unwrap_or_default(), prefix);
                out.uri = format!("{REST_OF_PATH}{new}");
            }
            None => {}
        }
        Some(out)
    }
}

/// What stands for a matched prefix: its final slash is kept, so that segments stay apart.
fn replaced(new: &str, prefix: &str) -> String {
    let bare = new.trim_end_matches('/');
    if prefix.ends_with('/') {
        format!("{bare}/")
    } else if bare.is_empty() {
        "/".to_owned()
    } else {
        bare.to_owned()
    }
}

fn operations(modifier: &HeaderModifier) -> HeaderOperations {
    let pairs = |all: &[carrick_api::gateway_api::route::Named]| {
        all.iter().map(|h| (h.name.clone(), h.value.clone())).collect()
    };
    HeaderOperations { set: pairs(&modifier.set), add: pairs(&modifier.add), remove: modifier.remove.clone() }
}

fn cors(cors: &Cors) -> CorsPolicy {
    let origin = |text: &String| match text.split_once('*') {
        _ if text == "*" => StringMatch { regex: Some(".*".to_owned()), ..StringMatch::default() },
        Some((before, after)) => {
            let pattern = format!("{}.+{}", escaped(before), escaped(after));
            StringMatch { regex: Some(pattern), ..StringMatch::default() }
        }
        None => StringMatch { exact: Some(text.clone()), ..StringMatch::default() },
    };
    CorsPolicy {
        allow_origins: cors.allow_origins.iter().map(origin).collect(),
        allow_methods: cors.allow_methods.clone(),
        allow_headers: cors.allow_headers.clone(),
        expose_headers: cors.expose_headers.clone(),
        allow_credentials: cors.allow_credentials,
        max_age: Some(Duration::from_secs(u64::from(cors.max_age.unwrap_or(5)))),
        ..CorsPolicy::default()
    }
}

/// Text as a regular expression that matches it alone.
pub(super) fn escaped(text: &str) -> String {
    let special =
        |c: char| matches!(c, '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$' | '\\');
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain(Some(c))).collect()
}
