//! One HTTP route: what a request must be, and what becomes of it (semantics §7.8, §7.9, §10.3–§10.7).
//!
//! Invariant: everything is resolved: destinations are cluster names, percentages are parts of a million, durations are milliseconds,
//! and every pattern and header value has been checked, so that no route can make a table unacceptable.

use std::sync::Arc;

use carrick_base::NamespacedName;

use crate::model::policy::HashKey;
pub use crate::model::request::{
    Abort, ClaimTest, Condition, Cors, Fault, HeaderChange, HeaderChanges, HeaderTest, PathTest, Redirect,
    RedirectPath, Retries, TextTest,
};

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// `default`, or what the VirtualService calls it.
    pub name: Arc<str>,
    /// What a request must be; the default is any.
    pub condition: Condition,
    /// What becomes of it.
    pub action: Action,
    /// For telemetry: `<fqdn>:<port>/*`.
    pub operation: Arc<str>,
    /// Headers changed whatever the destination.
    pub headers: HeaderChanges,
    /// Faults injected.
    pub fault: Option<Fault>,
    /// Cross-origin requests.
    pub cors: Option<Cors>,
    /// Prefix of the route's own statistics; empty for none.
    pub stat_prefix: Arc<str>,
    /// The VirtualService it comes from.
    pub source: Option<NamespacedName>,
}

impl Route {
    /// Answers anything with a status.
    pub fn direct(status: u16) -> Self {
        Self {
            name: "default".into(),
            condition: Condition::default(),
            action: Action::Direct { status, body: Arc::default() },
            operation: "direct/*".into(),
            headers: HeaderChanges::default(),
            fault: None,
            cors: None,
            stat_prefix: "".into(),
            source: None,
        }
    }
}

/// What becomes of a request.
#[expect(clippy::large_enum_variant, reason = "nearly every route forwards")]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    /// It goes to a cluster.
    Forward(Forward),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// It is answered at once.
    Direct {
        /// The status.
        status: u16,
        /// The body.
        body: Arc<[u8]>,
    },
}

/// Forwarding.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Where to; one at least. With one the weight means nothing.
    pub destinations: Vec<Destination>,
    /// Milliseconds for the whole request; 0 for no limit.
    pub timeout: u64,
    /// When it is tried again; `None` for never.
    pub retries: Option<Retries>,
    /// What is changed of the path.
    pub path: Option<PathRewrite>,
    /// The authority sent.
    pub authority: Option<Arc<str>>,
    /// Clusters that get a copy, with the share of requests in parts of a million.
    pub mirrors: Vec<(Arc<str>, u32)>,
    /// What the clusters hash requests by to choose endpoints.
    pub hash: Option<HashKey>,
    /// A cluster that does not exist answers 500 in place of 503, as the Gateway API asks for.
    pub missing_is_500: bool,
}

impl Forward {
    /// To one cluster, with the mesh's default retries.
    pub fn to(cluster: Arc<str>, alpn: Option<RouteAlpn>, hash: Option<HashKey>) -> Self {
        let destination =
            Destination { cluster, weight: 100, alpn, headers: HeaderChanges::default(), authority: None };
        let retries = Some(Retries::standard(hash.is_none()));
        Self {
            destinations: vec![destination],
            timeout: 0,
            retries,
            path: None,
            authority: None,
            mirrors: Vec::new(),
            hash,
            missing_is_500: false,
        }
    }
}

/// One destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The cluster; one that does not exist answers 503.
    pub cluster: Arc<str>,
    /// Its share among the weights of all.
    pub weight: u32,
    /// The ALPN list mesh TLS offers for requests of this route, where the cluster's own list is for what is not HTTP.
    pub alpn: Option<RouteAlpn>,
    /// Headers changed for this destination alone.
    pub headers: HeaderChanges,
    /// The authority sent to this destination alone.
    pub authority: Option<Arc<str>>,
}

/// The ALPN list of mesh TLS for HTTP towards a port of undeclared protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteAlpn {
    /// By what downstream spoke, since upstream speaks the same.
    ByRequest,
    /// HTTP/2 always.
    Http2,
}

/// What is changed of a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathRewrite {
    /// The matched prefix, or the matched path.
    Matched(Arc<str>),
    /// All of it.
    Whole(Arc<str>),
    /// What a pattern finds.
    Regex {
        /// The pattern.
        pattern: Arc<str>,
        /// What replaces it, with `\1` for its groups.
        with: Arc<str>,
    },
}
