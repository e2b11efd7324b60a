//! Role-based access control: policies of permissions and principals.
//!
//! Invariant: policies are in order of their names, which is the order in which Envoy asks them; every regex is anchored and bounded;
//! no policy has a condition in CEL (such a filter was rejected). Evaluation is in `crate::rbac`.

use ipnet::IpNet;

use super::Name;
use super::matcher::{HeaderMatcher, MetadataMatcher, StringMatcher};
use crate::template::PathTemplate;

/// The filter, for HTTP and for bytes.
#[derive(Debug)]
pub struct RbacFilter {
    /// What decides; `None` = everything passes.
    pub rules: Option<Rules>,
    /// What is only looked at, for statistics and dynamic metadata.
    pub shadow: Option<Rules>,
    /// Keys of dynamic metadata: policy and result of `rules`, policy and result of `shadow`.
    pub keys: [Name; 4],
    /// How results are told: allowed, denied.
    pub results: [Name; 2],
    /// Names of the counters, in the order of [`crate::rbac::Counted`].
    pub counters: [Name; 4],
}

/// An `RBAC` message.
#[derive(Debug)]
pub struct Rules {
    /// What a match means.
    pub action: Action,
    /// By name, in order.
    pub policies: Vec<Policy>,
}

/// `RBAC.Action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A match passes, no match is denied.
    Allow,
    /// A match is denied.
    Deny,
    /// Everything passes; a match is noted.
    Log,
}

/// One policy: any permission together with any principal.
#[derive(Debug)]
pub struct Policy {
    /// Its id.
    pub name: Name,
    /// What is asked for.
    pub permissions: Vec<Condition>,
    /// Who asks.
    pub principals: Vec<Condition>,
}

/// A permission or a principal: both are conditions on the same facts.
#[derive(Debug)]
pub enum Condition {
    /// Always.
    Any,
    /// All of them.
    And(Vec<Condition>),
    /// One of them.
    Or(Vec<Condition>),
    /// The opposite.
    Not(Box<Condition>),
    /// A request header.
    Header(HeaderMatcher),
    /// The path without query.
    Path(StringMatcher),
    /// The path without query, by a template.
    Template(PathTemplate),
    /// Address of ours that was called.
    DestinationIp(IpNet),
    /// Port of ours, `start <= port < end`.
    DestinationPort(u32, u32),
    /// SNI; none is the empty text.
    ServerName(StringMatcher),
    /// Dynamic metadata.
    Metadata(MetadataMatcher),
    /// Metadata of the route.
    RouteMetadata(MetadataMatcher),
    /// The connection is TLS, and its peer (URI names, DNS names, subject) matches.
    Authenticated(Option<StringMatcher>),
    /// The peer of the connection.
    DirectRemoteIp(IpNet),
    /// The peer as the connection was announced (PROXY protocol), without looking at headers.
    SourceIp(IpNet),
    /// The client as far as x-forwarded-for is believed.
    RemoteIp(IpNet),
    /// A text in filter state.
    FilterState(Name, StringMatcher),
}
