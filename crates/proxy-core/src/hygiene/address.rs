//! Who the client is, and what is told about it: x-forwarded-for, -proto, -port, x-request-id, x-envoy-internal.
//!
//! Invariant: as Envoy's connection manager: with `use_remote_address` (edge) the connection is believed and written; without (sidecar)
//! the header is believed and not written. Only a request with exactly one, internal, address counts as internal.

use std::net::{IpAddr, SocketAddr};

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::model::hcm::{AddressOptions, HttpConnectionManager};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");

/// The connection a request came on.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The directly connected peer.
    pub remote: SocketAddr,
    /// Port the connection was made to.
    pub local_port: u16,
    /// It came over TLS.
    pub tls: bool,
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The client's address as far as it is trusted.
    pub address: SocketAddr,
    /// The request comes from inside.
    pub internal: bool,
    /// It crossed the edge here.
    pub edge: bool,
    /// `http` or `https`: as `x-forwarded-proto` says where it may, else as the connection.
    pub scheme: &'static str,
}

/// Reads and writes the forwarding headers of a request. `request_id` makes a new id (UUID v4 text) when one is needed.
pub fn apply(
    hcm: &HttpConnectionManager,
    arrival: &Arrival,
    headers: &mut HeaderMap,
    request_id: impl FnOnce() -> String,
) -> Client {
    let options = &hcm.addresses;
    let hops = usize::try_from(options.xff_num_trusted_hops).unwrap_or(usize::MAX);
    let proto = if arrival.tls { "https" } else { "http" };
    let (address, single) = if options.use_remote_address {
        let none_before = !headers.contains_key(&X_FORWARDED_FOR);
        let trusted = hops.checked_sub(1).and_then(|skip| forwarded(headers, skip));
        if !options.skip_xff_append {
            append(headers, arrival.remote.ip());
        }
        if options.xff_num_trusted_hops == 0 || !headers.contains_key(&X_FORWARDED_PROTO) {
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
        }
        if options.append_x_forwarded_port && !headers.contains_key(&X_FORWARDED_PORT) {
            headers.insert(X_FORWARDED_PORT, HeaderValue::from(arrival.local_port));
        }
        (trusted.unwrap_or(arrival.remote.ip()), none_before)
    } else {
        match forwarded(headers, hops) {
            Some(ip) => (ip, addresses(headers).count() == 1),
            None => (arrival.remote.ip(), false),
        }
    };
    let scheme = scheme(headers, proto);
    if !headers.contains_key(&X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    }
    let internal = single && is_internal(options, address);
    let edge = !internal && options.use_remote_address;
    if internal {
        headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    } else {
        headers.remove(&X_ENVOY_INTERNAL);
        if edge && let Ok(value) = HeaderValue::from_str(&address.to_string()) {
            headers.insert(X_ENVOY_EXTERNAL_ADDRESS, value);
        }
    }
    set_request_id(hcm, edge, headers, request_id);
    let port = if address == arrival.remote.ip() { arrival.remote.port() } else { 0 };
    Client { address: SocketAddr::new(address, port), internal, edge, scheme }
}

fn set_request_id(hcm: &HttpConnectionManager, edge: bool, headers: &mut HeaderMap, make: impl FnOnce() -> String) {
    let force = edge && !hcm.request_id.preserve_external;
    let missing = headers.get(&X_REQUEST_ID).is_none_or(|v| v.is_empty());
    if hcm.request_id.generate && (missing || force) {
        if let Ok(value) = HeaderValue::try_from(make()) {
            headers.insert(X_REQUEST_ID, value);
        }
    } else if force {
        headers.remove(&X_REQUEST_ID);
    } else if edge {
        crate::trace::unmark(headers);
    }
}

/// A request's `:scheme`: the one that is configured, else the one its target names (absolute form, or `:scheme` of HTTP/2), else the
/// client's. What names another than `http` and `https` names none.
#[must_use]
pub fn scheme_of(hcm: &HttpConnectionManager, target: Option<&str>, client: &Client) -> &'static str {
    let known = |scheme: &str| match scheme {
        s if s.eq_ignore_ascii_case("https") => Some("https"),
        s if s.eq_ignore_ascii_case("http") => Some("http"),
        _ => None,
    };
    hcm.scheme_overwrite.as_deref().and_then(known).or_else(|| target.and_then(known)).unwrap_or(client.scheme)
}

fn scheme(headers: &HeaderMap, connection: &'static str) -> &'static str {
    match headers.get(&X_FORWARDED_PROTO).map(HeaderValue::as_bytes) {
        Some(b"https") => "https",
        Some(b"http") => "http",
        _ => connection,
    }
}

fn addresses(headers: &HeaderMap) -> impl DoubleEndedIterator<Item = &str> {
    let values = headers.get_all(&X_FORWARDED_FOR).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim).filter(|a| !a.is_empty())
}

/// The address `skip` places from the end, if that many are there and it is one.
fn forwarded(headers: &HeaderMap, skip: usize) -> Option<IpAddr> {
    addresses(headers).rev().nth(skip)?.parse().ok()
}

fn append(headers: &mut HeaderMap, ip: IpAddr) {
    let before: Vec<&str> = headers.get_all(&X_FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok()).collect();
    let ip = ip.to_canonical();
    let text = if before.is_empty() { ip.to_string() } else { format!("{},{ip}", before.join(",")) };
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// Private or loopback, or in the configured ranges where there are any.
#[must_use]
pub fn is_internal(options: &AddressOptions, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    match &options.internal {
        Some(ranges) => ranges.iter().any(|range| range.contains(&ip)),
        // Envoy 1.40 trusts no address as internal unless ranges are configured.
        None => false,
    }
}
