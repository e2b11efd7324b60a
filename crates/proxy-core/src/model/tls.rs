//! TLS contexts of chains and clusters: names of secrets, whom to accept, and parameters. Never key material.
//!
//! Invariant: a file is a secret with a name (`file-cert:…`, `file-root:…`, `file-crl:…`), kept fresh by whoever provides secrets; inline
//! keys are never shown by `Debug`. Whether a secret is there is asked at the handshake, which fails closed.

use std::net::IpAddr;
use std::sync::Arc;

use super::Name;
use super::matcher::StringMatcher;

/// Terminate TLS from a client.
#[derive(Debug, Clone)]
pub struct DownstreamTls {
    /// Our certificates, at least one; which one is shown depends on SNI and on what the client can check.
    pub certificates: Arc<[CertificateSource]>,
    /// How to check the client's certificate; `None` = none is asked for.
    pub validation: Option<Validation>,
    /// No certificate → no connection.
    pub require_client_certificate: bool,
    /// No SNI → no connection.
    pub require_sni: bool,
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
    /// The same for the name of each request, by the cluster's HTTP options: bytes that are no requests are not checked so.
    pub auto_san_of_requests: bool,
    /// Our certificate, if one is to be presented.
    pub certificate: Option<CertificateSource>,
    /// How to check the server; `None` = not at all.
    pub validation: Option<Validation>,
    /// ALPN offered unless overridden by the request.
    pub alpn: Arc<[Name]>,
    /// Versions, ciphers, curves.
    pub params: TlsParams,
}

/// Where a certificate and its key come from.
#[derive(Debug, Clone)]
pub enum CertificateSource {
    /// The secret of this name.
    Secret(Name),
    /// The configuration itself.
    Inline(Arc<InlineCertificate>),
}

/// A certificate chain and its key, PEM.
#[derive(Clone)]
pub struct InlineCertificate {
    /// Chain, leaf first.
    pub chain: Box<[u8]>,
    /// Key.
    pub key: Box<[u8]>,
    /// OCSP response to staple, DER; empty = none.
    pub ocsp: Box<[u8]>,
}

impl std::fmt::Debug for InlineCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InlineCertificate").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// Where roots or revocation lists come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TrustSource {
    /// The secret of this name.
    Secret(Name),
    /// PEM in the configuration itself.
    Inline(Arc<[u8]>),
}

/// Chain, revocation, name and pin requirements for a peer.
#[derive(Debug, Clone)]
pub struct Validation {
    /// The trusted roots. `None` only with pins: then they alone say who is meant.
    pub trust: Option<TrustSource>,
    /// Revocation lists besides those that come with `trust`.
    pub revocations: Option<TrustSource>,
    /// Revocation is asked about the leaf only, not about intermediates.
    pub revoke_leaf_only: bool,
    /// SHA-256 of accepted certificates (DER).
    pub hashes: Arc<[[u8; 32]]>,
    /// SHA-256 of accepted public keys (SPKI). With `hashes`: one of either must match; both empty = any.
    pub keys: Arc<[[u8; 32]]>,
    /// Most intermediates between leaf and root.
    pub max_intermediates: Option<u32>,
    /// A certificate that fails all this is let in nevertheless, without a name (`ACCEPT_UNTRUSTED`).
    pub accept_untrusted: bool,
    /// At least one must match one SAN of the peer; empty = any name under the roots.
    pub sans: Arc<[SanMatcher]>,
}

impl Validation {
    /// Roots by name, and one of these SANs.
    #[must_use]
    pub fn of(trust: &str, sans: Arc<[SanMatcher]>) -> Self {
        Self {
            trust: Some(TrustSource::Secret(trust.into())),
            revocations: None,
            revoke_leaf_only: false,
            hashes: Arc::from([]),
            keys: Arc::from([]),
            max_intermediates: None,
            accept_untrusted: false,
            sans,
        }
    }

    /// Names of the secrets it needs.
    pub fn secret_names(&self) -> impl Iterator<Item = &Name> {
        self.trust.iter().chain(&self.revocations).filter_map(|source| match source {
            TrustSource::Secret(name) => Some(name),
            TrustSource::Inline(_) => None,
        })
    }
}

impl CertificateSource {
    /// The secret's name, if it is one.
    #[must_use]
    pub fn secret_name(&self) -> Option<&Name> {
        match self {
            Self::Secret(name) => Some(name),
            Self::Inline(_) => None,
        }
    }
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
