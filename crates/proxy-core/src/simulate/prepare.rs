//! A request's head made fit to be routed, as the connection manager does before any filter sees it.
//!
//! Invariant: the same functions in the same order as in the proxy; only the request's id is a fixed one, since nothing here is random.

use std::borrow::Cow;
use std::net::SocketAddr;

use http::HeaderMap;

use super::Connection;
use crate::hygiene::address::{self, Arrival};
use crate::hygiene::reject::{self, Version};
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
    reject::head(manager, version, request.method, request.path, Some(request.authority), &headers).map_err(status)?;
    let port = connection.destination.port();
    let authority = reject::clean_authority(manager, request.authority, port);
    let cleans = manager.path != PathOptions::default() && !matches!(request.path, "" | "*");
    let path = match request.path {
        path if cleans => path::normalize(path, &manager.path, is_grpc(&headers)).map_err(status)?,
        path => Cow::Borrowed(path),
    };
    let arrival = Arrival { remote: connection.source, local_port: port, tls };
    let client = address::apply(manager, &arrival, &mut headers, || REQUEST_ID.to_owned());
    if !client.internal && headers.keys().any(|name| name.as_str().starts_with("x-envoy-")) {
        hop::strip_internal(&mut headers, manager.addresses.use_remote_address, &[]);
    }
    let scheme = match manager.scheme_overwrite.as_deref() {
        Some("https") => "https",
        Some("http") => "http",
        _ => client.scheme,
    };
    Ok(Ready {
        path: path.into_owned(),
        authority: authority.map_or_else(|| request.authority.to_owned(), |a| a.to_string()),
        scheme,
        headers,
        client: client.address,
        internal: client.internal,
    })
}
