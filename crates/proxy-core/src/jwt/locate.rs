//! Where tokens stand in a request, and how they are taken out of it.
//!
//! Invariant: headers first, then query parameters, then cookies; a provider that names no place has Envoy's two
//! (`Authorization: Bearer`, `access_token`).

use std::borrow::Cow;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderMap, HeaderName};

use crate::matching::{percent_decode, query_pairs};
use crate::model::jwt::Provider;
use crate::request::split_path;

/// A request in the part that tokens are found in and results are written to.
#[derive(Debug)]
pub struct Message<'a> {
    /// Its headers.
    pub headers: &'a mut HeaderMap,
    /// Its path with query.
    pub path: Cow<'a, str>,
}

/// A place and the issuers whose tokens may stand there.
#[derive(Debug)]
pub struct Place<'a> {
    /// The place.
    pub kind: PlaceKind<'a>,
    /// Providers that look there.
    pub providers: Vec<&'a Provider>,
}

/// A place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaceKind<'a> {
    /// A header, and what stands before the token.
    Header(HeaderName, &'a str),
    /// A query parameter.
    Param(&'a str),
    /// A cookie.
    Cookie(&'a str),
}

/// The places of providers in Envoy's order.
#[must_use]
pub fn places<'a>(providers: &[&'a Provider]) -> Vec<Place<'a>> {
    let mut out: Vec<Place<'a>> = Vec::new();
    let mut add = |kind: PlaceKind<'a>, provider: &'a Provider| match out.iter_mut().find(|p| p.kind == kind) {
        Some(place) => place.providers.push(provider),
        None => out.push(Place { kind, providers: vec![provider] }),
    };
    for provider in providers {
        if provider.from_headers.is_empty() && provider.from_params.is_empty() && provider.from_cookies.is_empty() {
            add(PlaceKind::Header(AUTHORIZATION, "Bearer "), provider);
            add(PlaceKind::Param("access_token"), provider);
        }
        for (name, prefix) in &provider.from_headers {
            add(PlaceKind::Header(name.clone(), prefix), provider);
        }
        for name in &provider.from_params {
            add(PlaceKind::Param(name), provider);
        }
        for name in &provider.from_cookies {
            add(PlaceKind::Cookie(name), provider);
        }
    }
    let rank = |kind: &PlaceKind<'_>| match kind {
        PlaceKind::Header(name, prefix) => (0, format!("{name}{prefix}")),
        PlaceKind::Param(name) => (1, (*name).to_owned()),
        PlaceKind::Cookie(name) => (2, (*name).to_owned()),
    };
    out.sort_by_key(|place| rank(&place.kind));
    out
}

impl PlaceKind<'_> {
    /// The texts of the tokens there: of a header each of its lines, since Envoy wants them all to be good; else the first.
    #[must_use]
    pub fn tokens(&self, message: &Message<'_>) -> Vec<String> {
        match self {
            Self::Header(name, prefix) => {
                let lines =
                    message.headers.get_all(name).into_iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
                let token =
                    |line: Cow<'_, str>| Some(line.get(line.find(prefix)?.saturating_add(prefix.len())..)?.to_owned());
                lines.filter_map(token).collect()
            }
            Self::Param(name) => {
                let mut pairs = query_pairs(split_path(&message.path).1.unwrap_or_default());
                let found = pairs.find(|(key, _)| key == name);
                found.map(|(_, value)| value.into_owned()).into_iter().collect()
            }
            Self::Cookie(name) => {
                let headers = message.headers.get_all(COOKIE);
                let pairs = headers.into_iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
                let found = pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(key, _)| key == name);
                let bare = |(_, value): (_, &str)| {
                    value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value).to_owned()
                };
                found.map(bare).into_iter().collect()
            }
        }
    }

    /// Takes the token out. Cookies stay, as in Envoy.
    pub fn remove(&self, message: &mut Message<'_>) {
        match self {
            Self::Header(name, _) => {
                message.headers.remove(name);
            }
            Self::Param(name) => {
                let (path, Some(query)) = split_path(&message.path) else { return };
                // Envoy writes what is left in the order of its names.
                let mut kept: Vec<(&str, &str)> = query
                    .split('&')
                    .filter(|pair| !pair.is_empty())
                    .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                    .filter(|(key, _)| percent_decode(key) != *name)
                    .collect();
                kept.sort_by_key(|(key, _)| *key);
                let kept: Vec<String> = kept.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
                let new = if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) };
                message.path = Cow::Owned(new);
            }
            Self::Cookie(_) => {}
        }
    }
}
