//! TLS contexts of chains and clusters: names of secrets, whom to accept, and parameters. Never key material.
//!
//! Invariant: secrets are referred to by SDS name only; inline or file secrets are rejected by `decode`. Whether a secret is there is
//! asked at the handshake, which fails closed.

use std::net::IpAddr;
use std::sync::Arc;

use super::Name;
use super::matcher::StringMatcher;

/// Terminate TLS from a client.
#[derive(Debug, Clone)]
pub struct DownstreamTls {
    /// SDS name of certificate and key.
    pub certificate: Name,
    /// How to check the client's certificate; `None` = none is asked for.
    pub validation: Option<Validation>,
    /// No certificate → no connection.
    pub require_client_certificate: bool,
    /// ALPN offered, in our order of preference.
    pub alpn: Arc<[Name]>,
    /// Versions, ciphers, curves.
    pub params: TlsParams,
}

/// Originate TLS to an endpoint.
#[derive(Debug, Clone)]
pub struct UpstreamTls {
    /// Server name to send, if fixed.
    pub sni: Option<Name>,
    /// SNI from the endpoint's host name.
    pub auto_host_sni: bool,
    /// The certificate must be good for the SNI sent.
    pub auto_sni_san_validation: bool,
    /// SDS name of our certificate, if one is to be presented.
    pub certificate: Option<Name>,
    /// How to check the server; `None` = not at all.
    pub validation: Option<Validation>,
    /// ALPN offered unless overridden by the request.
    pub alpn: Arc<[Name]>,
    /// Versions, ciphers, curves.
    pub params: TlsParams,
}

/// Chain and SAN requirements for a peer.
#[derive(Debug, Clone)]
pub struct Validation {
    /// SDS name of the trusted roots.
    pub trust: Name,
    /// At least one must match one SAN of the peer; empty = any name under the roots.
    pub sans: Arc<[SanMatcher]>,
}

/// One accepted name.
#[derive(Debug, Clone)]
pub struct SanMatcher {
    /// Kind of SAN it looks at.
    pub kind: SanKind,
    /// The pattern.
    pub matcher: StringMatcher,
}

/// Kind of subject alternative name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SanKind {
    /// Any of DNS, URI, IP, e-mail (the untyped matcher).
    Any,
    /// E-mail.
    Email,
    /// DNS name; an exact matcher treats a `*.` certificate name as wildcard.
    Dns,
    /// URI (SPIFFE).
    Uri,
    /// IP address text.
    Ip,
}

/// A SAN of a presented certificate, as the caller read it.
#[derive(Debug, Clone, Copy)]
pub enum PeerSan<'a> {
    /// E-mail.
    Email(&'a str),
    /// DNS name.
    Dns(&'a str),
    /// URI.
    Uri(&'a str),
    /// IP address.
    Ip(IpAddr),
}

/// Protocol parameters. Only versions and suites that rustls has are representable; others were rejected or dropped at build time
/// (CBC and static-RSA suites are in no list we send).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsParams {
    /// Lowest version.
    pub min: TlsVersion,
    /// Highest version.
    pub max: TlsVersion,
    /// OpenSSL names of TLS 1.2 suites in order; empty = default.
    pub ciphers: Arc<[Name]>,
    /// OpenSSL names of curves in order; empty = default.
    pub curves: Arc<[Name]>,
}

/// A TLS version we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// 1.2
    V12,
    /// 1.3
    V13,
}

impl Default for TlsParams {
    fn default() -> Self {
        Self { min: TlsVersion::V12, max: TlsVersion::V13, ciphers: Arc::from([]), curves: Arc::from([]) }
    }
}
