//! `x-forwarded-client-cert`.
//!
//! Invariant: unless `ALWAYS_FORWARD_ONLY`, the header never survives a connection on which no client certificate was presented: what
//! an unauthenticated client claims about certificates is not passed on (spec §25.3).

use std::fmt::Write as _;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::model::hcm::{ForwardClientCert, XfccMode};

/// The header's name.
pub const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// What the handshake told about both ends. Only from a verified connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct PeerCert<'a> {
    /// URI SAN of our own certificate.
    pub local_uri: Option<&'a str>,
    /// SHA-256 of the client's leaf, lower-case hexadecimal.
    pub hash: &'a str,
    /// Subject of the leaf in RFC 2253 form; may be empty.
    pub subject: &'a str,
    /// URI SANs of the leaf.
    pub uris: &'a [String],
    /// DNS SANs of the leaf.
    pub dns: &'a [String],
    /// The leaf as URL-encoded PEM.
    pub pem: &'a str,
    /// The chain as URL-encoded PEM.
    pub chain_pem: &'a str,
}

/// Sets, appends or removes the header. `peer` is `None` unless a client certificate was presented.
pub fn apply(settings: &ForwardClientCert, peer: Option<&PeerCert<'_>>, headers: &mut HeaderMap) {
    if settings.mode == XfccMode::AlwaysForwardOnly {
        return;
    }
    let Some(peer) = peer.filter(|_| settings.mode != XfccMode::Sanitize) else {
        headers.remove(XFCC);
        return;
    };
    let appended = match settings.mode {
        XfccMode::ForwardOnly | XfccMode::Sanitize | XfccMode::AlwaysForwardOnly => return,
        XfccMode::SanitizeSet => element(settings, peer),
        XfccMode::AppendForward => {
            let before: Vec<_> =
                headers.get_all(XFCC).iter().filter_map(|v| v.to_str().ok()).filter(|v| !v.is_empty()).collect();
            let mut all = before.join(",");
            if !all.is_empty() {
                all.push(',');
            }
            all + &element(settings, peer)
        }
    };
    match HeaderValue::from_str(&appended) {
        Ok(value) => {
            headers.insert(XFCC, value);
        }
        // Fail closed: rather none than one that lacks our element.
        Err(_) => {
            headers.remove(XFCC);
        }
    }
}

/// One element, `By=…;Hash=…;Subject="…";URI=…`.
#[must_use]
pub fn element(settings: &ForwardClientCert, peer: &PeerCert<'_>) -> String {
    let mut out = String::with_capacity(256);
    let mut put = |text: std::fmt::Arguments<'_>| {
        if !out.is_empty() {
            out.push(';');
        }
        let _ = out.write_fmt(text);
    };
    if let Some(by) = peer.local_uri.filter(|by| !by.is_empty()) {
        put(format_args!("By={by}"));
    }
    if !peer.hash.is_empty() {
        put(format_args!("Hash={}", peer.hash));
    }
    if settings.cert && !peer.pem.is_empty() {
        put(format_args!("Cert=\"{}\"", peer.pem));
    }
    if settings.chain && !peer.chain_pem.is_empty() {
        put(format_args!("Chain=\"{}\"", peer.chain_pem));
    }
    if settings.subject {
        put(format_args!("Subject=\"{}\"", peer.subject.replace('"', "\\\"")));
    }
    if settings.uri {
        if peer.uris.is_empty() {
            put(format_args!("URI="));
        }
        for uri in peer.uris {
            put(format_args!("URI={uri}"));
        }
    }
    if settings.dns {
        for name in peer.dns {
            put(format_args!("DNS={name}"));
        }
    }
    out
}
