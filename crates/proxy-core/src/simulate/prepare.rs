//! A request's head made fit to be routed, as the connection manager does before any filter sees it.
//!
//! Invariant: the same functions in the same order as in the proxy; only the request's id is a fixed one, since nothing here is random.

use std::borrow::Cow;
use std::net::SocketAddr;

use http::HeaderMap;

use super::Connection;
use crate::hygiene::address::{self, Arrival};
use crate::hygiene::reject::{self, Version};
use crate::hygiene::wire::METHODS;
use crate::hygiene::{LocalReply, hop, path};
use crate::model::hcm::{HttpConnectionManager, PathOptions};
use crate::request::{RequestHead, is_grpc};

/// The id of a request that brings none.
const REQUEST_ID: &str = "00000000-0000-4000-8000-000000000000";

pub(super) struct Ready {
    pub path: String,
    pub authority: String,
    pub scheme: &'static str,
    pub headers: HeaderMap,
    pub client: SocketAddr,
    pub internal: bool,
}

impl Ready {
    pub fn head<'a>(&'a self, method: &'a str) -> RequestHead<'a> {
        RequestHead {
            method,
            path: &self.path,
            authority: &self.authority,
            scheme: self.scheme,
            headers: &self.headers,
        }
    }
}

/// The request, or the status it is refused with.
pub(super) fn prepare(
    manager: &HttpConnectionManager,
    connection: &Connection<'_>,
    tls: bool,
    h2: bool,
    request: &RequestHead<'_>,
) -> Result<Ready, u16> {
    let version = match (h2, connection.opening) {
        (true, _) => Version::Http2,
        (false, super::Opening::Http10) => Version::Http10,
        _ => Version::Http11,
    };
    let status = |reply: LocalReply| match reply {
        LocalReply::Status(status, _) => status,
        LocalReply::Redirect(_) => 307,
    };
    let mut headers = request.headers.clone();
    let (named, authority, target) = match absolute(request.path) {
        Some((scheme, authority, target)) => (Some(scheme), authority, target),
        None => (None, request.authority, request.path),
    };
    // What the codec refuses comes to no policy.
    if !h2 && (!METHODS.contains(&request.method.as_bytes()) || target.contains('#')) {
        return Err(400);
    }
    reject::head(manager, version, request.method, target, Some(authority), &headers).map_err(status)?;
    if !h2 {
        hop::drop_nominated(&mut headers).map_err(|_| 400_u16)?;
    }
    hop::join_repeated(&mut headers);
    let port = connection.destination.port();
    let cleaned = reject::clean_authority(manager, authority, port);
    let cleans = manager.path != PathOptions::default() && !target.is_empty();
    let path = match target {
        path if cleans => path::normalize(path, &manager.path, is_grpc(&headers)).map_err(status)?,
        path => Cow::Borrowed(path),
    };
    let arrival = Arrival { remote: connection.source, local_port: port, tls };
    let client = address::apply(manager, &arrival, &mut headers, || REQUEST_ID.to_owned());
    if !client.internal && headers.keys().any(|name| name.as_str().starts_with("x-envoy-")) {
        hop::strip_internal(&mut headers, manager.addresses.use_remote_address, &[]);
    }
    let scheme = address::scheme_of(manager, named, &client);
    Ok(Ready {
        path: path.into_owned(),
        authority: cleaned.unwrap_or_else(|| authority.to_owned()),
        scheme,
        headers,
        client: client.address,
        internal: client.internal,
    })
}

/// Scheme, host and path of a target in absolute form (RFC 9112 §3.2.2).
fn absolute(target: &str) -> Option<(&str, &str, &str)> {
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    Some((scheme, authority, if path.is_empty() { "/" } else { path }))
}
