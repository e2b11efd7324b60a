//! The call itself, from the caller's sidecar over any gateways to the workload.
//!
//! Invariant: each proxy is asked with what really reaches it: the server's sidecar sees the request that the client's sidecar sends.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use carrick_mesh::{
    ProxyKind, Snapshot,
    model::{TlsMode, Workload},
    view::ModeSource,
};
use carrick_proxy_core::{
    model::Name,
    request::RequestHead,
    routing::without_port,
    simulate::{self, Caller, Connection, End, Opening, Verdict},
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    Answer, Call, Question, QuestionError, Side, Speaks,
    place::{self, From},
    proxy::{Proxies, Proxy},
};

/// A port a caller could have. Which one it is decides nothing.
const CALLER_PORT: u16 = 40000;
/// The draw that chooses among equals; always the same, so that equal questions have equal answers.
const DRAW: u64 = 0;
/// Somebody outside of the mesh (RFC 5737).
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Gateways that a call passes at most, so that one that leads to itself has an end.
const HOPS: usize = 4;

/// Answers a question.
///
/// # Errors
/// When caller or destination are unknown, or a configuration would be refused.
pub fn why(snapshot: &Snapshot, question: &Question) -> Result<Answer, QuestionError> {
    why_of(&Proxies::new(snapshot), question)
}

/// Answers one of several questions about the same objects.
///
/// # Errors
/// As [`why`].
pub fn why_of(proxies: &Proxies<'_>, question: &Question) -> Result<Answer, QuestionError> {
    let snapshot = proxies.snapshot;
    let from = place::caller(snapshot, &question.from)?;
    let call = Travelling::of(question)?;
    let mut journey = Journey {
        snapshot,
        proxies,
        now: question.now,
        answer: Answer { allowed: false, end: String::new(), steps: Vec::new() },
        hops: 0,
    };
    if let Some(gateway) = from.workload.clone().filter(|w| place::is_gateway(snapshot, w)) {
        // Whoever called it is not told, and is nobody the mesh knows.
        let outside = From { workload: None, ip: OUTSIDE };
        let port = place::gateway_port(snapshot, &gateway, question.to.port);
        journey.step(Side::Client, "caller", "somebody outside of the mesh".to_owned(), None);
        let arrived = Arrived { address: SocketAddr::new(from.ip, port), tls: None, opening: question.call.speaks };
        return journey.gateway(&outside, &gateway, &arrived, &call);
    }
    let namespace = from.workload.as_ref().map(|w| &*w.name.namespace);
    let to = place::destination(snapshot, namespace, &question.to)?;
    let name = from.workload.as_ref().map_or_else(|| from.ip.to_string(), |w| w.name.to_string());
    let sidecar = from.workload.clone().filter(|w| w.tls_mode == TlsMode::Istio);
    let caller = if sidecar.is_some() { name } else { format!("{name}, without a sidecar") };
    journey.step(Side::Client, "caller", caller, None);
    if let Some(service) = &to.service {
        journey.step(Side::Client, "service", format!("{} at {}", service.hostname, to.address), None);
    }
    let arrived = Arrived { address: to.address, tls: None, opening: question.call.speaks };
    match sidecar {
        Some(workload) => journey.client(&from, &workload, &arrived, &call),
        None => {
            let address = behind(snapshot, &to);
            journey.step(Side::Client, "endpoint", address.to_string(), None);
            journey.arrive(&from, &Arrived { address, ..arrived }, &call)
        }
    }
}

/// A request on its way: each proxy gets what the one before it sent.
struct Travelling {
    method: String,
    path: String,
    host: String,
    headers: HeaderMap,
    server_name: String,
}

impl Travelling {
    fn of(question: &Question) -> Result<Self, QuestionError> {
        let headers = headers(&question.call)?;
        let told = headers.get(http::header::HOST).and_then(|h| h.to_str().ok()).map(str::to_owned);
        let host = told.clone().unwrap_or_else(|| authority(&question.to.host, question.to.port));
        let server_name = told.map_or_else(|| question.to.host.clone(), |host| without_port(&host).to_owned());
        Ok(Self { method: question.call.method.clone(), path: question.call.path.clone(), host, headers, server_name })
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            path: &self.path,
            authority: &self.host,
            scheme: "http",
            headers: &self.headers,
        }
    }

    /// As a proxy sends it on.
    fn after(&self, verdict: &Verdict) -> Self {
        let (path, host, headers) = match verdict.sent.as_deref() {
            Some(sent) => (sent.path.clone(), sent.authority.clone(), sent.headers.clone()),
            None => (self.path.clone(), self.host.clone(), self.headers.clone()),
        };
        Self { method: self.method.clone(), path, host, headers, server_name: self.server_name.clone() }
    }
}

/// A connection as it reaches somebody.
struct Arrived {
    address: SocketAddr,
    /// TLS that a proxy put around it: server name and protocols.
    tls: Option<(Option<Name>, Vec<Name>)>,
    /// What the caller itself speaks.
    opening: Speaks,
}

impl Arrived {
    /// Asks `f` with the first bytes.
    fn opened<R>(&self, call: &Travelling, f: impl FnOnce(Opening<'_>) -> R) -> R {
        if let Some((server_name, alpn)) = &self.tls {
            let alpn: Vec<&str> = alpn.iter().map(|a| &**a).collect();
            return f(Opening::Tls { server_name: server_name.as_deref(), alpn: &alpn });
        }
        f(match self.opening {
            Speaks::Http1 => Opening::Http11,
            Speaks::Http2 => Opening::Http2,
            Speaks::Tls => Opening::Tls { server_name: Some(&call.server_name), alpn: &[] },
            Speaks::Bytes => Opening::Opaque,
        })
    }

    /// Whether a sidecar put the mesh's TLS around it.
    fn is_mesh(&self) -> bool {
        self.tls.as_ref().is_some_and(|(_, alpn)| alpn.iter().any(|a| a.starts_with("istio")))
    }
}

struct Journey<'a> {
    snapshot: &'a Snapshot,
    proxies: &'a Proxies<'a>,
    now: u64,
    answer: Answer,
    hops: usize,
}

impl Journey<'_> {
    fn step(&mut self, side: Side, what: &'static str, value: String, because: Option<String>) {
        self.answer.step(side, what, value, because);
    }

    /// Through the caller's sidecar.
    fn client(
        mut self,
        from: &From,
        workload: &Workload,
        arrived: &Arrived,
        call: &Travelling,
    ) -> Result<Answer, QuestionError> {
        let proxy = self.proxies.of(workload, ProxyKind::Sidecar)?;
        let captured_at = Some(self.snapshot.settings().outbound_port);
        let caller = Caller { now: self.now, ..Caller::default() };
        let verdict = arrived.opened(call, |opening| {
            let source = SocketAddr::new(from.ip, CALLER_PORT);
            let sent = Connection { destination: arrived.address, source, opening, captured_at };
            simulate::outbound_from(&proxy.runtime, &sent, &caller, Some(&call.head()), DRAW)
        });
        forwarding(&mut self.answer, Side::Client, &proxy, &verdict);
        self.onwards(from, Side::Client, &proxy, verdict, arrived, call)
    }

    /// Through a gateway.
    fn gateway(
        mut self,
        from: &From,
        workload: &Arc<Workload>,
        arrived: &Arrived,
        call: &Travelling,
    ) -> Result<Answer, QuestionError> {
        self.step(Side::Gateway, "gateway", workload.name.to_string(), None);
        self.hops = self.hops.saturating_add(1);
        if self.hops > HOPS {
            return Ok(self.answer.refused(format!("it goes in circles: {HOPS} gateways were passed")));
        }
        let proxy = self.proxies.of(workload, ProxyKind::Router)?;
        let uris = self.names(from, arrived);
        let caller = Caller { uris: &uris, now: self.now, ..Caller::default() };
        let verdict = arrived.opened(call, |opening| {
            let source = SocketAddr::new(from.ip, CALLER_PORT);
            let sent = Connection { destination: arrived.address, source, opening, captured_at: None };
            simulate::outbound_from(&proxy.runtime, &sent, &caller, Some(&call.head()), DRAW)
        });
        forwarding(&mut self.answer, Side::Gateway, &proxy, &verdict);
        ended(&mut self.answer, Side::Gateway, &verdict);
        if verdict.tls.as_ref().is_some_and(|tls| tls.client_certificate) && !arrived.is_mesh() {
            let what = "the caller's certificate decides, which is not known here; it is taken to be good";
            self.step(Side::Gateway, "TLS", what.to_owned(), None);
        }
        // What the caller's TLS held goes on without it, where the gateway ended it.
        let inner = match (&verdict.tls, arrived.opening) {
            (Some(_), Speaks::Tls) if verdict.end == End::Http => Speaks::Http1,
            (_, spoken) => spoken,
        };
        let own = From { workload: Some(workload.clone()), ip: arrived.address.ip() };
        let passed = Arrived { address: arrived.address, tls: None, opening: inner };
        self.onwards(&own, Side::Gateway, &proxy, verdict, &passed, call)
    }

    /// From a proxy to what it chose.
    fn onwards(
        mut self,
        from: &From,
        side: Side,
        proxy: &Proxy,
        verdict: Verdict,
        arrived: &Arrived,
        call: &Travelling,
    ) -> Result<Answer, QuestionError> {
        let (Some(upstream), None) = (&verdict.upstream, refusal(&verdict, side)) else {
            let end = refusal(&verdict, side);
            return Ok(self.answer.refused(end.unwrap_or_else(|| format!("the {side} does not send it on"))));
        };
        let sent = call.after(&verdict);
        if verdict.sent.is_some() && (sent.path != call.path || sent.host != call.host) {
            self.step(side, "rewritten", format!("{}{}", sent.host, sent.path), None);
        }
        let Some(address) = upstream.address else {
            return Ok(self.answer.reached("sent to an address that DNS gives, outside of what the mesh knows"));
        };
        self.step(side, "endpoint", address.to_string(), None);
        let because = verdict.cluster.as_ref().and_then(|c| proxy.rule_of(c));
        let added = match &upstream.tls {
            Some((name, _)) => format!("yes, SNI {}", name.as_deref().unwrap_or("none")),
            None => "none added".to_owned(),
        };
        self.step(side, "TLS", added, because);
        let next = Arrived { address, tls: upstream.tls.clone(), opening: arrived.opening };
        self.arrive(from, &next, &sent)
    }

    /// At an address.
    fn arrive(mut self, from: &From, arrived: &Arrived, call: &Travelling) -> Result<Answer, QuestionError> {
        let (snapshot, address) = (self.snapshot, arrived.address);
        let Some(workload) = snapshot.endpoints().workload_at(address.ip()) else {
            return Ok(self.answer.reached(format!("{address} is outside of the mesh; nothing more is known of it")));
        };
        if place::is_gateway(snapshot, workload) {
            return self.gateway(from, workload, arrived, call);
        }
        if workload.tls_mode != TlsMode::Istio {
            self.step(Side::Server, "workload", format!("{}, without a sidecar", workload.name), None);
            if arrived.is_mesh() {
                let end = "the caller speaks mutual TLS of the mesh, and nobody there can answer it";
                return Ok(self.answer.refused(end));
            }
            return Ok(self.answer.reached(format!("{address} takes it as it is")));
        }
        self.step(Side::Server, "workload", workload.name.to_string(), None);
        let decided = snapshot.peer_auth().effective(&workload.name.namespace, &workload.labels);
        let port = decided.port(address.port());
        self.step(Side::Server, "mutual TLS", port.mode.as_str().to_owned(), source(&port.from));
        let proxy = self.proxies.of(workload, ProxyKind::Sidecar)?;
        let uris = self.names(from, arrived);
        let caller = Caller { uris: &uris, now: self.now, ..Caller::default() };
        let captured_at = Some(snapshot.settings().inbound_port);
        let verdict = arrived.opened(call, |opening| {
            let sent = Connection {
                destination: address,
                source: SocketAddr::new(from.ip, CALLER_PORT),
                opening,
                captured_at,
            };
            simulate::inbound_from(&proxy.runtime, &sent, &caller, Some(&call.head()), DRAW)
        });
        common(&mut self.answer, Side::Server, &verdict);
        ended(&mut self.answer, Side::Server, &verdict);
        if let Some(cluster) = &verdict.cluster {
            self.step(Side::Server, "cluster", cluster.to_string(), None);
        }
        if let Some(end) = refusal(&verdict, Side::Server) {
            return Ok(self.answer.refused(end));
        }
        if arrived.is_mesh() && verdict.tls.is_none() {
            let end = "the caller speaks mutual TLS of the mesh, and the server's sidecar hands it on unopened";
            return Ok(self.answer.refused(end));
        }
        if verdict.tls.as_ref().is_some_and(|tls| tls.client_certificate) && !arrived.is_mesh() {
            let end = "the server's sidecar wants a certificate of the mesh, and the caller has none";
            return Ok(self.answer.refused(end));
        }
        Ok(self.answer.reached(format!("the workload {} gets it on port {}", workload.name, address.port())))
    }

    /// The names in the certificate that the caller's proxy shows.
    fn names(&self, from: &From, arrived: &Arrived) -> Vec<String> {
        let named = from.workload.as_ref().and_then(|w| w.identity.as_ref()).filter(|_| arrived.is_mesh());
        named.iter().map(|id| id.to_string()).collect()
    }
}

/// Where the kernel leads a connection to a service's address: the first ready endpoint.
fn behind(snapshot: &Snapshot, to: &place::Destination) -> SocketAddr {
    let found = to.service.as_ref().and_then(|service| {
        let port = service.port(to.address.port())?;
        let all = snapshot.endpoints().of(&service.id, &port.slot);
        all.iter().find(|e| e.ready).and_then(|e| Some(SocketAddr::new(e.address.ip()?, e.address.port())))
    });
    found.unwrap_or(to.address)
}

fn forwarding(answer: &mut Answer, side: Side, proxy: &Proxy, verdict: &Verdict) {
    common(answer, side, verdict);
    if let Some((host, route)) = &verdict.route {
        let value = if route.is_empty() { host.to_string() } else { format!("{host}, {route}") };
        answer.step(side, "route", value, proxy.route_of(host, route));
    }
    if let Some(cluster) = &verdict.cluster {
        answer.step(side, "cluster", cluster.to_string(), proxy.rule_of(cluster));
    }
}

fn ended(answer: &mut Answer, side: Side, verdict: &Verdict) {
    if let Some(tls) = &verdict.tls {
        let client = if tls.client_certificate { "asks for the caller's certificate" } else { "asks for none" };
        answer.step(side, "TLS", format!("ended here with certificate {}, {client}", tls.certificate), None);
    }
}

fn common(answer: &mut Answer, side: Side, verdict: &Verdict) {
    if let Some(listener) = &verdict.listener {
        answer.step(side, "listener", listener.to_string(), None);
    }
    if let Some(chain) = &verdict.chain {
        answer.step(side, "filter chain", chain.to_string(), None);
    }
    for decided in &verdict.decided {
        answer.step(side, "policy", format!("{}: {}", decided.filter, decided.what), None);
    }
}

/// Why a proxy does not send a connection on, if it does not.
fn refusal(verdict: &Verdict, side: Side) -> Option<String> {
    let proxy = match side {
        Side::Gateway => "the gateway".to_owned(),
        Side::Client | Side::Server => format!("the {side}'s sidecar"),
    };
    let text = match verdict.end {
        End::Http | End::Tcp => return None,
        End::NoListener => "refused: nothing listens there".to_owned(),
        End::NoChain if side == Side::Server => {
            "closed before a byte: what the caller speaks is not taken on this port (mutual TLS is required)".to_owned()
        }
        End::NoChain => "closed: nothing takes what the caller speaks".to_owned(),
        End::NotTls => "closed: TLS is required and the caller speaks something else".to_owned(),
        End::NotHttp => "closed: HTTP is required and the caller speaks something else".to_owned(),
        End::Answered(status) => format!("answered by {proxy} with status {status}"),
        End::Refused => format!("closed by a policy in {proxy}"),
        End::NoCluster => format!("{proxy} knows no such destination: 503, or closed"),
        End::NoEndpoint => format!("{proxy} knows no usable endpoint: 503, or closed"),
    };
    Some(text)
}

fn source(from: &ModeSource) -> Option<String> {
    match from {
        ModeSource::Default => None,
        ModeSource::Mesh(name) | ModeSource::Namespace(name) | ModeSource::Workload(name) | ModeSource::Port(name) => {
            Some(format!("PeerAuthentication {}.{}", name.name, name.namespace))
        }
        ModeSource::Service(name) => Some(format!("Policy {}.{}", name.name, name.namespace)),
    }
}

fn authority(host: &str, port: u16) -> String {
    if port == 80 { host.to_owned() } else { format!("{host}:{port}") }
}

fn headers(call: &Call) -> Result<HeaderMap, QuestionError> {
    let mut out = HeaderMap::new();
    for (name, value) in &call.headers {
        let bad = || QuestionError::Header(name.clone());
        let key = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|_| bad())?;
        out.append(key, HeaderValue::from_str(value).map_err(|_| bad())?);
    }
    Ok(out)
}
