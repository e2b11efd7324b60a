//! A connection and a request, from end to end, without a socket: what would happen.
//!
//! Invariant: the same functions decide here as in the proxy; this module only puts them in order and writes the verdict down.

mod filters;
mod prepare;

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::balance::{Balancer, Choice};
use crate::chain::{ConnFacts, RAW_BUFFER, TLS};
use crate::facts::Facts;
use crate::format::Values;
use crate::hygiene::hop;
use crate::model::cluster::{Cluster, Discovery, TransportIndex};
use crate::model::filter::UpstreamOverrides;
use crate::model::hcm::HttpConnectionManager;
use crate::model::listener::{ChainKind, Direction, FilterChain, Listener};
use crate::model::route::Action;
use crate::model::{Name, RuntimeConfig};
use crate::mutate::Levels;
use crate::request::RequestHead;
use crate::rewrite;
use crate::routing::{RouteFacts, RouteLookup, choose_tcp_cluster};

/// A connection as its first bytes show it.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Where the client wanted to go.
    pub destination: SocketAddr,
    /// The client.
    pub source: SocketAddr,
    /// What it sends first.
    pub opening: Opening<'a>,
    /// The port it was redirected to (15001, 15006); `None` = not captured.
    pub captured_at: Option<u16>,
}

/// The first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening<'a> {
    /// Nothing: the server speaks first.
    Silent,
    /// Bytes that are neither TLS nor HTTP.
    Opaque,
    /// An HTTP/1.1 request line.
    Http11,
    /// An HTTP/1.0 request line.
    Http10,
    /// The HTTP/2 preface.
    Http2,
    /// A ClientHello.
    Tls {
        /// SNI.
        server_name: Option<&'a str>,
        /// ALPN offered.
        alpn: &'a [&'a str],
    },
}

/// What would happen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Listener that serves the connection.
    pub listener: Option<Name>,
    /// Filter chain; with `listener` and without this the connection is closed.
    pub chain: Option<Name>,
    /// TLS is terminated like this.
    pub tls: Option<Terminated>,
    /// Virtual host and route.
    pub route: Option<(Name, Name)>,
    /// Cluster.
    pub cluster: Option<Name>,
    /// Endpoint and how it is reached.
    pub upstream: Option<Upstream>,
    /// The request as it is sent on, after rewrites and mutations.
    pub sent: Option<Box<Sent>>,
    /// What filters said, in their order; the last one decided if it has a status.
    pub decided: Vec<Decided>,
    /// How it ends.
    pub end: End,
}

/// What one filter said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// The filter.
    pub filter: Name,
    /// What it said, with the policy that made it.
    pub what: String,
    /// It answered with this status; 0 = it closed the connection.
    pub status: Option<u16>,
}

/// Who calls, as far as filters ask, and when.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller<'a> {
    /// URI names in the certificate shown on TLS.
    pub uris: &'a [String],
    /// The client as x-forwarded-for tells, where that is believed.
    pub client: Option<SocketAddr>,
    /// Unix time in seconds, for tokens.
    pub now: u64,
}

/// Terms of the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminated {
    /// Secret with the certificate, the first of several; `inline` for one in the configuration.
    pub certificate: Name,
    /// Secret with the roots for clients.
    pub trust: Option<Name>,
    /// A client certificate is demanded.
    pub client_certificate: bool,
    /// Negotiated ALPN.
    pub alpn: Option<Name>,
}

/// The way to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Its address; `None` for a name that DNS would have to resolve.
    pub address: Option<SocketAddr>,
    /// Its own name, where the cluster gives one.
    pub hostname: Option<Name>,
    /// TLS towards it: SNI and ALPN.
    pub tls: Option<(Option<Name>, Vec<Name>)>,
}

/// A request as it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Path with query.
    pub path: String,
    /// Host.
    pub authority: String,
    /// All other headers.
    pub headers: HeaderMap,
}

/// How it ends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum End {
    /// No listener stands there: refused.
    #[default]
    NoListener,
    /// No filter chain: closed without a byte.
    NoChain,
    /// The chain terminates TLS and the bytes are not TLS: closed.
    NotTls,
    /// HTTP chain, and the bytes are not HTTP: 400 or closed.
    NotHttp,
    /// Answered here with this status.
    Answered(u16),
    /// Forwarded as HTTP.
    Http,
    /// Forwarded as bytes.
    Tcp,
    /// Closed by policy.
    Refused,
    /// The cluster is not known: 503 (HTTP) or closed.
    NoCluster,
    /// The cluster has no usable endpoint: 503 (HTTP) or closed.
    NoEndpoint,
}

/// A connection that was captured on its way in. `request` is what comes after TLS, for HTTP chains.
#[must_use]
pub fn inbound(
    runtime: &RuntimeConfig,
    connection: &Connection<'_>,
    request: Option<&RequestHead<'_>>,
    random: u64,
) -> Verdict {
    inbound_from(runtime, connection, &Caller::default(), request, random)
}

/// The same, from a caller that filters know. A token is in the request's headers, as always.
#[must_use]
pub fn inbound_from(
    runtime: &RuntimeConfig,
    connection: &Connection<'_>,
    caller: &Caller<'_>,
    request: Option<&RequestHead<'_>>,
    random: u64,
) -> Verdict {
    run(runtime, Direction::Inbound, connection, caller, request, random)
}

/// A connection that was captured on its way out.
#[must_use]
pub fn outbound(
    runtime: &RuntimeConfig,
    connection: &Connection<'_>,
    request: Option<&RequestHead<'_>>,
    random: u64,
) -> Verdict {
    outbound_from(runtime, connection, &Caller::default(), request, random)
}

/// The same, from a caller that filters know; a gateway's listeners are among these.
#[must_use]
pub fn outbound_from(
    runtime: &RuntimeConfig,
    connection: &Connection<'_>,
    caller: &Caller<'_>,
    request: Option<&RequestHead<'_>>,
    random: u64,
) -> Verdict {
    run(runtime, Direction::Outbound, connection, caller, request, random)
}

fn run(
    runtime: &RuntimeConfig,
    direction: Direction,
    connection: &Connection<'_>,
    caller: &Caller<'_>,
    request: Option<&RequestHead<'_>>,
    random: u64,
) -> Verdict {
    let mut verdict = Verdict::default();
    // Names are read in lower case.
    let lower;
    let mut connection = *connection;
    if let Opening::Tls { server_name: Some(name), alpn } = connection.opening {
        lower = name.to_ascii_lowercase();
        connection.opening = Opening::Tls { server_name: Some(&lower), alpn };
    }
    let connection = &connection;
    let Some(listener) = listener(runtime, direction, connection) else { return verdict };
    verdict.listener = Some(Arc::clone(&listener.name));
    verdict.end = End::NoChain;
    let Some(chain) = chain(listener, connection) else { return verdict };
    verdict.chain = Some(chain.display_name());
    if let Some(tls) = &chain.tls {
        let Opening::Tls { alpn, .. } = connection.opening else {
            verdict.end = End::NotTls;
            return verdict;
        };
        verdict.tls = Some(Terminated {
            certificate: tls
                .certificates
                .first()
                .and_then(|c| c.secret_name())
                .cloned()
                .unwrap_or_else(|| "inline".into()),
            trust: tls.validation.as_ref().and_then(|v| v.secret_names().next().cloned()),
            client_certificate: tls.require_client_certificate,
            alpn: tls.alpn.iter().find(|ours| alpn.contains(&&***ours)).cloned(),
        });
    }
    if !filters::admits(chain, connection, caller, &mut verdict) {
        verdict.end = End::Refused;
        return verdict;
    }
    match &chain.kind {
        ChainKind::Tcp(proxy) => {
            let facts = Facts { local: Some(connection.destination), ..Facts::default() };
            let mut overrides = UpstreamOverrides::default();
            overrides.apply(&chain.on_new_connection, &facts);
            let cluster = overrides.tcp_cluster.clone().or_else(|| choose_tcp_cluster(&proxy.cluster, random).cloned());
            finish(runtime, verdict, cluster, &overrides, connection, random, End::Tcp)
        }
        ChainKind::Http(manager) => http(runtime, verdict, chain, manager, connection, caller, request, random),
    }
}

fn listener<'a>(
    runtime: &'a RuntimeConfig,
    direction: Direction,
    connection: &Connection<'_>,
) -> Option<&'a Arc<Listener>> {
    let Some(port) = connection.captured_at else { return runtime.listeners.lookup(connection.destination) };
    let bound = runtime.listeners.by_name.values().filter(|l| l.bind_to_port && l.direction == direction);
    let acceptor = bound.into_iter().find(|l| l.address.port() == port)?;
    Some(runtime.listeners.hand_off(acceptor, Some(connection.destination)))
}

fn chain<'a>(listener: &'a Listener, connection: &Connection<'_>) -> Option<&'a Arc<FilterChain>> {
    let port = connection.destination.port();
    let mut facts = ConnFacts::raw(connection.destination, connection.source);
    let seen: &[&str];
    match connection.opening {
        Opening::Tls { server_name, alpn } if listener.inspectors.tls_on(port) => {
            facts.transport_protocol = TLS;
            facts.server_name = server_name;
            facts.application_protocols = alpn;
        }
        opening if listener.inspectors.http_on(port) => {
            seen = match opening {
                Opening::Http11 => &["http/1.1"],
                Opening::Http10 => &["http/1.0"],
                Opening::Http2 => &["h2c"],
                _ => &[],
            };
            facts.application_protocols = seen;
        }
        _ => facts.transport_protocol = RAW_BUFFER,
    }
    listener.find_chain(&facts)
}

#[allow(clippy::too_many_arguments)]
fn http(
    runtime: &RuntimeConfig,
    mut verdict: Verdict,
    chain: &FilterChain,
    manager: &HttpConnectionManager,
    connection: &Connection<'_>,
    caller: &Caller<'_>,
    request: Option<&RequestHead<'_>>,
    random: u64,
) -> Verdict {
    let terminated = chain.tls.is_some();
    let speaks_http = matches!(connection.opening, Opening::Http11 | Opening::Http10 | Opening::Http2) || terminated;
    let Some(request) = request.filter(|_| speaks_http) else {
        verdict.end = End::NotHttp;
        return verdict;
    };
    let h2 = connection.opening == Opening::Http2
        || verdict.tls.as_ref().and_then(|t| t.alpn.as_deref()).is_some_and(|alpn| alpn == "h2");
    let protocol = Some(if h2 { "HTTP/2" } else { "HTTP/1.1" });
    let ready = match prepare::prepare(manager, connection, terminated, h2, request) {
        Ok(ready) => ready,
        Err(status) => {
            verdict.end = End::Answered(status);
            return verdict;
        }
    };
    let facts = RouteFacts {
        random,
        tls_presented: terminated,
        tls_validated: terminated,
        internal: ready.internal,
        ..RouteFacts::default()
    };
    let Some(table) = runtime.route_table(&manager.routes) else {
        verdict.end = End::Answered(404);
        return verdict;
    };
    let head = ready.head(request.method);
    let mut passing = filters::Passing {
        chain,
        table,
        connection,
        caller,
        client: caller.client.unwrap_or(ready.client),
        lookup: table.find(&head, &facts),
        request: head,
        headers: ready.headers.clone(),
        path: ready.path.clone(),
        facts,
        metadata: crate::model::metadata::Metadata::default(),
    };
    if let RouteLookup::Found { virtual_host, route } = passing.lookup {
        verdict.route = Some((Arc::clone(&virtual_host.name), Arc::clone(&route.name)));
    }
    if let Some(status) = passing.all(manager, &mut verdict) {
        verdict.end = End::Answered(status);
        return verdict;
    }
    let (request, lookup) = (&passing.head(), passing.lookup);
    let values = Facts {
        request: Some(*request),
        protocol,
        local: Some(connection.destination),
        remote: Some(connection.source),
        ..Facts::default()
    };
    let (virtual_host, route) = match lookup {
        RouteLookup::Found { virtual_host, route } => (virtual_host, route),
        RouteLookup::RequiresTls { .. } => {
            verdict.end = End::Answered(301);
            return verdict;
        }
        RouteLookup::NotFound => {
            verdict.end = End::Answered(404);
            return verdict;
        }
    };
    verdict.route = Some((Arc::clone(&virtual_host.name), Arc::clone(&route.name)));
    let action = match &route.action {
        Action::Forward(action) => action,
        Action::Redirect(redirect) => {
            verdict.end = End::Answered(redirect.status.as_u16());
            return verdict;
        }
        Action::Direct(direct) => {
            verdict.end = End::Answered(direct.status.as_u16());
            return verdict;
        }
    };
    let choice = action.choose_cluster(request, random);
    let levels = Levels { table, virtual_host, route, weighted: choice.and_then(|c| c.weighted) };
    let overrides = levels.upstream_overrides(&manager.filters, &values as &dyn Values);
    let cluster = choice.as_ref().map(|c| Name::from(c.name));
    let mut headers = request.headers.clone();
    let values = Facts { dynamic_metadata: Some(&passing.metadata), ..values };
    levels.mutate_request(&mut headers, &values);
    let path = rewrite::path(action, &route.matching.path, request.path);
    if path.is_some()
        && let Ok(old) = HeaderValue::from_str(request.path)
    {
        headers.insert(HeaderName::from_static("x-envoy-original-path"), old);
    }
    hop::strip_request(&mut headers, false);
    let mut verdict = finish(runtime, verdict, cluster, &overrides, connection, random, End::Http);
    let endpoint = verdict.upstream.as_ref().and_then(|u| u.hostname.as_deref());
    let after = RequestHead { headers: &headers, ..*request };
    let host = choice.and_then(|choice| rewrite::host(action, &choice, &after, endpoint));
    let path = path.unwrap_or_else(|| request.path.to_owned());
    let authority = host.unwrap_or_else(|| request.authority.to_owned());
    verdict.sent = Some(Box::new(Sent { path, authority, headers }));
    verdict
}

fn finish(
    runtime: &RuntimeConfig,
    mut verdict: Verdict,
    cluster: Option<Name>,
    overrides: &UpstreamOverrides,
    connection: &Connection<'_>,
    random: u64,
    end: End,
) -> Verdict {
    verdict.end = End::NoCluster;
    let Some(cluster) = cluster.as_ref().and_then(|name| runtime.clusters.get(name)) else {
        verdict.cluster = cluster;
        return verdict;
    };
    verdict.cluster = Some(Arc::clone(&cluster.name));
    verdict.upstream = upstream(runtime, cluster, overrides, connection, random);
    verdict.end = if verdict.upstream.is_some() { end } else { End::NoEndpoint };
    verdict
}

fn upstream(
    runtime: &RuntimeConfig,
    cluster: &Cluster,
    overrides: &UpstreamOverrides,
    connection: &Connection<'_>,
    random: u64,
) -> Option<Upstream> {
    let mut hostname = None;
    let (address, index) = if cluster.discovery == Discovery::DynamicForward {
        (None, TransportIndex::DEFAULT)
    } else if cluster.discovery == Discovery::OriginalDst {
        let port = cluster.original_dst.port_override.unwrap_or(connection.destination.port());
        (Some(SocketAddr::new(connection.destination.ip(), port)), TransportIndex::DEFAULT)
    } else {
        let set = runtime.endpoints.get(&cluster.name)?;
        let mut balancer = Balancer::new(Arc::clone(set), cluster);
        let mut next = random;
        let mut draw = || {
            next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            next >> 16
        };
        let chosen = balancer.choose(&mut Choice::at_random(&mut draw))?;
        let endpoint = set.endpoints.get(chosen)?;
        hostname = Some(Arc::clone(&endpoint.hostname)).filter(|name| !name.is_empty());
        (set.socket(chosen), endpoint.transport)
    };
    let tls = cluster.transport.get(index).tls().map(|tls| {
        let alpn = overrides.alpn.clone().unwrap_or_else(|| tls.alpn.to_vec());
        (overrides.sni.clone().or_else(|| tls.sni.clone()), alpn)
    });
    Some(Upstream { address, hostname, tls })
}
