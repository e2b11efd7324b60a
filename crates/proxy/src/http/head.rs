//! A request's head made fit to be routed: refusals, hygiene, client address.
//!
//! Invariant: what two parsers could read differently does not get past here; rules and texts are `proxy-core`'s.

use super::connection::HttpConn;
use super::reply::Failure;
use crate::message::h2;
use crate::names::details;
use carrick_proxy_core::hygiene::address::{self, Arrival};
use carrick_proxy_core::hygiene::reject::{self, Version};
use carrick_proxy_core::hygiene::{LocalReply, hop, path};
use carrick_proxy_core::model::hcm::HttpConnectionManager;
use carrick_proxy_core::model::route::{Route, RouteAction, RouteTable, Target, VirtualHost, WeightedCluster};
use carrick_proxy_core::mutate::Levels;
use carrick_proxy_core::request::{RequestHead, is_grpc};
use http::header::{HOST, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Uri};
use std::net::SocketAddr;
use std::sync::Arc;

/// A request's head after hygiene, with what does not stand in its parts.
pub(super) struct Head {
    pub parts: Parts,
    /// Host as routed.
    pub authority: HeaderValue,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// It comes from inside.
    pub internal: bool,
    /// The client, as far as it is trusted.
    pub client: SocketAddr,
    /// Asked for: lower-case protocol, `connect` for plain CONNECT.
    pub upgrade: Option<String>,
}

impl Head {
    /// As the decisions see it.
    pub fn view(&self) -> RequestHead<'_> {
        RequestHead {
            method: self.parts.method.as_str(),
            path: self.parts.uri.path_and_query().map_or("", PathAndQuery::as_str),
            authority: self.authority.to_str().unwrap_or_default(),
            scheme: self.scheme,
            headers: &self.parts.headers,
        }
    }
}

/// The route of a request, owned, so that it outlives a change of configuration.
pub(super) struct Routed {
    pub table: Arc<RouteTable>,
    pub virtual_host: Arc<VirtualHost>,
    pub route: Arc<Route>,
}

impl Routed {
    /// Whose changes of headers apply, with the weighted entry that was chosen.
    pub fn levels<'a>(&'a self, weighted: Option<&'a WeightedCluster>) -> Levels<'a> {
        Levels { table: &self.table, virtual_host: &self.virtual_host, route: &self.route, weighted }
    }
}

/// The weighted entry that was chosen, by the cluster's name.
pub(super) fn weighted<'a>(action: &'a RouteAction, cluster: &str) -> Option<&'a WeightedCluster> {
    match &action.target {
        Target::Weighted(w) => w.clusters.iter().find(|c| &*c.name == cluster),
        _ => None,
    }
}

/// Refusals and hygiene, up to the point where the request can be routed.
pub(super) fn prepare(conn: &HttpConn, hcm: &HttpConnectionManager, mut parts: Parts) -> Result<Head, Failure> {
    if let Some(reply) = conn.refusal() {
        conn.stats.downstream_cx_protocol_error.inc();
        return Err(Failure::Refused(reply));
    }
    let version = match parts.version {
        http::Version::HTTP_10 => Version::Http10,
        http::Version::HTTP_2 => Version::Http2,
        _ => Version::Http11,
    };
    if !conn.h2 {
        let refused = |_| Failure::Refused(LocalReply::Status(400, details::NOMINATED));
        hop::drop_nominated(&mut parts.headers).map_err(refused)?;
    }
    // Absolute-form and :authority go before Host (RFC 9112 §3.2.2).
    let authority = match parts.uri.authority() {
        Some(a) => HeaderValue::from_str(a.as_str()).ok(),
        None => parts.headers.get(HOST).cloned(),
    };
    let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let text = authority.as_ref().and_then(|a| a.to_str().ok());
    reject::head(hcm, version, parts.method.as_str(), path, text, &parts.headers).map_err(Failure::Refused)?;
    let mut authority = authority
        .or_else(|| HeaderValue::from_str(&hcm.http1.default_host_for_http_10).ok())
        .unwrap_or_else(|| HeaderValue::from_static(""));
    if let Some(new) = authority.to_str().ok().and_then(|a| reject::clean_authority(hcm, a, conn.info.local.port()))
        && let Ok(new) = HeaderValue::from_str(&new)
    {
        authority = new;
    }
    hop::join_repeated(&mut parts.headers);
    let upgrade = if parts.method == Method::CONNECT {
        let protocol = parts.extensions.get::<h2::Protocol>().map(|p| p.as_str().to_ascii_lowercase());
        Some(protocol.unwrap_or_else(|| "connect".into()))
    } else if conn.h2 {
        None
    } else {
        hop::requested_upgrade(&parts.headers)
    };
    let o = &hcm.path;
    if (o.normalize || o.merge_slashes || o.escaped_slashes != Default::default()) && !path.is_empty() && path != "*" {
        match path::normalize(path, o, is_grpc(&parts.headers)).map_err(Failure::Refused)? {
            std::borrow::Cow::Owned(new) if new != path => set_path(&mut parts, &new)?,
            _ => {}
        }
    }
    if hcm.underscores == carrick_proxy_core::model::hcm::Underscores::Drop {
        let bad: Vec<HeaderName> = parts.headers.keys().filter(|k| k.as_str().contains('_')).cloned().collect();
        for name in bad {
            parts.headers.remove(name);
        }
    }
    // We answer expectations ourselves (the codec does, when the body is first asked for).
    if !hcm.proxy_100_continue {
        parts.headers.remove(http::header::EXPECT);
    }
    let arrival = Arrival { remote: conn.info.peer, local_port: conn.info.local.port(), tls: conn.info.tls.is_some() };
    let client =
        address::apply(hcm, &arrival, &mut parts.headers, || request_id(conn.worker.random(), conn.worker.random()));
    let scheme = address::scheme_of(hcm, parts.uri.scheme_str(), &client);
    Ok(Head { parts, authority, scheme, internal: client.internal, client: client.address, upgrade })
}

pub(super) fn set_path(parts: &mut Parts, new: &str) -> Result<(), Failure> {
    let bad = || Failure::Refused(LocalReply::Status(400, details::BAD_PATH));
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(PathAndQuery::try_from(new).map_err(|_| bad())?);
    parts.uri = Uri::from_parts(uri).map_err(|_| bad())?;
    Ok(())
}

/// A number as a header's value. Small ones, which most are, need no memory.
pub(super) fn decimal(number: u64) -> HeaderValue {
    const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let digit = usize::try_from(number).ok().and_then(|at| DIGITS.get(at));
    digit.map_or_else(|| HeaderValue::from(number), |digit| HeaderValue::from_static(digit))
}

/// A version 4 UUID's text.
fn request_id(a: u64, b: u64) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let a = (a & 0xffff_ffff_ffff_0fff) | 0x4000;
    let b = (b & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000;
    let bytes = (u128::from(a) << 64) | u128::from(b);
    let mut text = String::with_capacity(36);
    for at in 0..32_u32 {
        if matches!(at, 8 | 12 | 16 | 20) {
            text.push('-');
        }
        let digit = bytes.wrapping_shr(124_u32.saturating_sub(at.saturating_mul(4))) & 0xf;
        text.push(usize::try_from(digit).ok().and_then(|d| DIGITS.get(d)).map_or('0', |d| char::from(*d)));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_uuids() {
        assert_eq!([0, 9, 10, 443].map(|n| super::decimal(n).to_str().unwrap().to_owned()), ["0", "9", "10", "443"]);
        let id = super::request_id(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);
        assert_eq!(id, "01234567-89ab-4def-bedc-ba9876543210");
    }
}
