//! AuthorizationPolicy and external authorizers, parsed (semantics §12).
//!
//! Invariant: a term is one field of a rule, its values parsed into what they match; values of one attribute all have the form that the
//! attribute takes. A rule that could not be read whole was made stricter while it was read, never wider.

use std::{net::IpAddr, sync::Arc};

use carrick_base::Labels;

use super::Origin;

/// What happens to what matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Let through; with one such policy, what none matches is denied.
    Allow,
    /// Denied, whatever else says.
    Deny,
    /// Marked only.
    Audit,
    /// An external authorizer is asked.
    Custom,
}

impl Action {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        }
    }
}

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AuthzPolicy {
    /// The object.
    pub origin: Origin,
    /// Labels it selects; empty selects the namespace, or the mesh from the root namespace.
    pub selector: Labels,
    /// Names of the Gateways (Gateway API) it is attached to. `None` when it has no target references; those that are no Gateways are
    /// left out.
    pub gateways: Option<Vec<Arc<str>>>,
    /// What happens.
    pub action: Action,
    /// Only told of, not done.
    pub dry_run: bool,
    /// Says nothing of connections that are no HTTP.
    pub requests_only: bool,
    /// Who is asked; empty unless the action is CUSTOM.
    pub provider: Arc<str>,
    /// What matches; none matches nothing.
    pub rules: Vec<AuthzRule>,
}

/// One rule: any source, any operation, all conditions. An empty list of alternatives is met by everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AuthzRule {
    /// Its place in the object.
    pub index: usize,
    /// Alternatives about the peer.
    pub from: Vec<Vec<Term>>,
    /// Alternatives about what is asked for.
    pub to: Vec<Vec<Term>>,
    /// What must hold besides.
    pub when: Vec<Term>,
}

impl AuthzRule {
    /// All terms.
    pub fn terms(&self) -> impl Iterator<Item = &Term> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }

    /// The rule as it holds for a connection that is no HTTP (§12.10). An ALLOW rule about a request is gone; any other loses what it
    /// says of requests.
    pub fn for_tcp(&self, action: Action) -> Option<Self> {
        if !self.terms().any(|t| t.attribute.is_http()) {
            return Some(self.clone());
        }
        if action == Action::Allow {
            return None;
        }
        let keep =
            |terms: &Vec<Term>| -> Vec<Term> { terms.iter().filter(|t| !t.attribute.is_http()).cloned().collect() };
        Some(Self {
            index: self.index,
            from: self.from.iter().map(keep).collect(),
            to: self.to.iter().map(keep).collect(),
            when: keep(&self.when),
        })
    }
}

/// One field: any of `any` (unless there are none), and none of `none`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    /// What is looked at.
    pub attribute: Attribute,
    /// One of these must match; empty demands nothing.
    pub any: Vec<Value>,
    /// None of these may match.
    pub none: Vec<Value>,
}

/// What a term looks at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// The peer's identity, without `spiffe://`.
    SourcePrincipal,
    /// The namespace in the peer's identity.
    SourceNamespace,
    /// Namespace and service account in the peer's identity.
    SourceAccount,
    /// The trust domain of the peer's identity.
    SourceTrustDomain,
    /// The peer's address.
    SourceIp,
    /// The first client's address, as forwarded headers or the PROXY protocol tell.
    RemoteIp,
    /// `issuer/subject` of the token.
    RequestPrincipal,
    /// The token's audiences.
    Audiences,
    /// The token's authorized presenter.
    Presenter,
    /// A claim of the token, by its path.
    Claim(Vec<Arc<str>>),
    /// A header of the request.
    Header(Arc<str>),
    /// The request's authority.
    Host,
    /// The request's method.
    Method,
    /// The request's path without its query.
    Path,
    /// The address that was called.
    DestinationIp,
    /// The port that was called.
    DestinationPort,
    /// The server name of the TLS handshake.
    Sni,
    /// What another filter left behind.
    FilterMetadata {
        /// The filter's name.
        filter: Arc<str>,
        /// The key below it.
        key: Arc<str>,
    },
}

impl Attribute {
    /// Whether only a request has it (§12.10).
    pub fn is_http(&self) -> bool {
        match self {
            Self::RequestPrincipal
            | Self::Audiences
            | Self::Presenter
            | Self::Claim(_)
            | Self::Header(_)
            | Self::Host
            | Self::Method
            | Self::Path => true,
            Self::SourcePrincipal
            | Self::SourceNamespace
            | Self::SourceAccount
            | Self::SourceTrustDomain
            | Self::SourceIp
            | Self::RemoteIp
            | Self::DestinationIp
            | Self::DestinationPort
            | Self::Sni
            | Self::FilterMetadata { .. } => false,
        }
    }

    /// Whether it tells who asks, rather than for what.
    pub fn is_source(&self) -> bool {
        matches!(
            self,
            Self::SourcePrincipal
                | Self::SourceNamespace
                | Self::SourceAccount
                | Self::SourceTrustDomain
                | Self::SourceIp
                | Self::RemoteIp
                | Self::RequestPrincipal
                | Self::Audiences
                | Self::Presenter
                | Self::Claim(_)
        )
    }
}

/// One value of a term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// A text.
    Text(Text),
    /// Addresses.
    Network(Cidr),
    /// A port.
    Port(u16),
    /// A path with `{*}` for one segment and `{**}` for any number.
    Template(Arc<str>),
    /// A namespace, in which `*` stands for any text.
    Namespace(Arc<str>),
    /// A service account of a namespace.
    Account {
        /// The namespace.
        namespace: Arc<str>,
        /// The name.
        name: Arc<str>,
    },
    /// An element of a list.
    Element(Text),
    /// The token's issuer and subject.
    Subject {
        /// `iss`.
        issuer: Text,
        /// `sub`.
        subject: Text,
    },
}

/// How a text is compared (§12.7).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Text {
    /// Equal.
    Exact(Arc<str>),
    /// Starts with.
    Prefix(Arc<str>),
    /// Ends with.
    Suffix(Arc<str>),
    /// Anything but nothing.
    Present,
}

impl Text {
    /// `*`, `*suffix`, `prefix*` or the text itself.
    pub fn parse(text: &str) -> Self {
        if text == "*" {
            Self::Present
        } else if let Some(suffix) = text.strip_prefix('*') {
            Self::Suffix(suffix.into())
        } else if let Some(prefix) = text.strip_suffix('*') {
            Self::Prefix(prefix.into())
        } else {
            Self::Exact(text.into())
        }
    }
}

/// Addresses with a common beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// The first address.
    pub ip: IpAddr,
    /// Bits in common.
    pub length: u8,
}

impl Cidr {
    /// `address` or `address/bits`; `None` when it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (ip, length) = match text.split_once('/') {
            Some((ip, length)) => (ip, Some(length)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().ok()?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let length = match length {
            Some(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok().filter(|l| *l <= most)?,
            Some(_) => return None,
            None => most,
        };
        Some(Self { ip, length })
    }
}

/// An external authorizer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authorizer {
    /// Its name in the mesh's configuration.
    pub name: Arc<str>,
    /// The cluster it is reached by.
    pub cluster: Arc<str>,
    /// Its full name.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
    /// Milliseconds it may take.
    pub timeout: u64,
    /// Let through when it does not answer.
    pub fail_open: bool,
    /// Choose the route anew after it answered.
    pub clear_route_cache: bool,
    /// The status when it does not answer.
    pub status_on_error: u16,
    /// How much of the body it sees.
    pub body: Option<AuthorizerBody>,
    /// How it is spoken to.
    pub kind: AuthorizerKind,
}

/// How an authorizer is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AuthorizerKind {
    /// `envoy.service.auth.v3`.
    Grpc,
    /// The request again, without its body unless told.
    Http(HttpAuthorizer),
}

/// An authorizer that is asked by HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpAuthorizer {
    /// Put before the path.
    pub path_prefix: Arc<str>,
    /// Headers of the request it sees, besides a few that it always does.
    pub request_headers: Vec<Text>,
    /// Headers added for it, by name.
    pub more_headers: Vec<(Arc<str>, Arc<str>)>,
    /// Headers of its answer that go on with the request.
    pub to_upstream: Vec<Text>,
    /// Headers of its refusal that go back.
    pub to_downstream_on_deny: Vec<Text>,
    /// Headers of its consent that go back.
    pub to_downstream_on_allow: Vec<Text>,
}

/// How much of a request's body is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AuthorizerBody {
    /// Most bytes.
    pub max_bytes: u32,
    /// Whether a longer body is shown in part.
    pub partial: bool,
    /// Whether it is shown as bytes rather than text.
    pub as_bytes: bool,
}
