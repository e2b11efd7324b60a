//! The third voice: what the simulator says will come of a request.
//!
//! Invariant: nothing is decided here. Calls by pods and by strangers are asked of `explain`, as `carrick why` does; callers with
//! certificates of their own, and gateways, of `proxy-core`'s simulation over the same resources.

use std::net::SocketAddr;
use std::sync::Arc;

use carrick_base::NamespacedName;
use carrick_explain::{Call, Caller, Proxies, Question, Speaks, Target};
use carrick_proxy_core::request::RequestHead;
use carrick_proxy_core::simulate::{self, Connection, End, Opening};
use carrick_proxy_core::{ConfigStore, RuntimeConfig, nack_text, store::type_url};
use carrick_render::Rendered;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::case::{Ask, Request, Says};
use super::client::Outcome;
use super::keys::{self, Keys};
use super::prepare::{Prepared, upserts};
use super::world::{self, Part};

/// What is foreseen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Foreseen {
    /// The application at this address sees it.
    Reaches(u8),
    /// A proxy answers.
    Status(u16),
    /// Neither: closed, or nobody to send it to.
    Fails(String),
    /// The simulator has no opinion.
    Unknown(String),
}

impl Foreseen {
    /// Whether this came true.
    pub fn fits(&self, outcome: &Outcome) -> bool {
        match (self, outcome.by(), outcome) {
            // Whom a handshake reached that was not for it answers with something else.
            (Self::Reaches(_), None, Outcome::Closed(Some(alert))) => alert.contains("InvalidContentType"),
            (Self::Reaches(last), by, _) => by == Some(*last),
            // In gRPC every answer is a 200.
            (Self::Status(_), None, Outcome::Answer { headers, .. }) if headers.contains_key("grpc-status") => true,
            (Self::Status(status), None, Outcome::Answer { status: seen, .. }) => status == seen,
            (Self::Status(_), ..) => false,
            (Self::Fails(_), by, _) => by.is_none(),
            (Self::Unknown(_), ..) => true,
        }
    }
}

/// What is made once for all requests of a case: the proxies, as they would run.
pub struct Seer<'a> {
    case: &'a Prepared,
    proxies: Proxies<'a>,
    doors: Vec<(Part, Option<Arc<RuntimeConfig>>)>,
}

impl<'a> Seer<'a> {
    /// For a case.
    pub fn new(case: &'a Prepared) -> Self {
        let doors = case.rendered.iter().filter(|(part, _)| *part != Part::Client);
        let doors = doors.map(|(part, rendered)| (*part, runtime(rendered).ok())).collect();
        Self { case, proxies: Proxies::new(&case.snapshot), doors }
    }
}

/// Foresees.
pub fn foresee(case: &Seer<'_>, ask: &Ask, tokens: &[String], keys: &Keys, now: u64) -> Foreseen {
    let request = match &ask.says {
        Says::Http(request) => Some(request),
        Says::Bytes(_) => None,
    };
    let Some(headers) = request.map_or(Some(HeaderMap::new()), |r| headers(r, tokens)) else {
        return Foreseen::Unknown("headers that are none".to_owned());
    };
    if ask.tls.is_none() && ask.to.0 != world::GATEWAY {
        return explained(case, ask, request, tokens, now);
    }
    at_the_door(case, ask, request, headers, tokens, keys, now)
}

/// A call as `carrick why` answers it.
fn explained(case: &Seer<'_>, ask: &Ask, request: Option<&Request>, tokens: &[String], now: u64) -> Foreseen {
    let from = match ask.from {
        world::CLIENT => Caller::Pod(NamespacedName::new("web", "client")),
        last => match world::at(last).parse() {
            Ok(ip) => Caller::Address(ip),
            Err(_) => return Foreseen::Unknown("no caller".to_owned()),
        },
    };
    let mut call = Call::default();
    match request {
        None => call.speaks = Speaks::Bytes,
        Some(request) => {
            call.method.clone_from(&request.method);
            call.path = request.filled(&request.target, tokens);
            call.headers = request.headers.iter().map(|(n, v)| (n.clone(), request.filled(v, tokens))).collect();
        }
    }
    let to = Target { host: world::at(ask.to.0), port: ask.to.1 };
    let answer = match carrick_explain::why_of(&case.proxies, &Question { from, to, call, now }) {
        Ok(answer) => answer,
        Err(error) => return Foreseen::Fails(error.to_string()),
    };
    let path: Vec<String> = answer.steps.iter().map(|s| format!("{} {}: {}", s.side, s.what, s.value)).collect();
    let told = format!("{} [{}]", answer.end, path.join("; "));
    let beyond = |s: &carrick_explain::Step| s.what == "cluster" && s.value == "PassthroughCluster";
    if answer.allowed && answer.steps.iter().any(beyond) {
        return Foreseen::Reaches(world::BEYOND);
    }
    if answer.allowed {
        // What the other end's certificate is worth is for the handshake to say.
        let tls = format!(":{}", world::ECHO_TLS);
        if answer.steps.iter().any(|s| s.what == "endpoint" && s.value.ends_with(&tls)) {
            return Foreseen::Unknown(told);
        }
        let last =
            answer.steps.iter().rev().find(|s| s.what == "endpoint").and_then(|s| s.value.parse::<SocketAddr>().ok());
        return last.and_then(last_part).map_or(Foreseen::Unknown(told), Foreseen::Reaches);
    }
    match answer.end.rsplit_once("with status ").and_then(|(_, status)| status.trim().parse().ok()) {
        Some(status) => Foreseen::Status(status),
        None => Foreseen::Fails(told),
    }
}

fn last_part(address: SocketAddr) -> Option<u8> {
    address.ip().to_string().strip_prefix(world::HOME)?.parse().ok()
}

/// A caller with TLS of its own before a server's sidecar, or anybody before a gateway.
fn at_the_door(
    case: &Seer<'_>,
    ask: &Ask,
    request: Option<&Request>,
    headers: HeaderMap,
    tokens: &[String],
    keys: &Keys,
    now: u64,
) -> Foreseen {
    let part = if ask.to.0 == world::GATEWAY { Part::Gateway } else { Part::Server };
    let Some(runtime) = case.doors.iter().find(|(p, _)| *p == part).and_then(|(_, runtime)| runtime.as_ref()) else {
        return Foreseen::Unknown("refused resources".to_owned());
    };
    let alpn: Vec<&str> = ask.tls.iter().flat_map(|t| &t.alpn).map(String::as_str).collect();
    let opening = match &ask.tls {
        Some(own) => Opening::Tls { server_name: own.sni.as_deref(), alpn: &alpn },
        None if request.is_some() => Opening::Http11,
        None => Opening::Opaque,
    };
    let (Ok(destination), Ok(source)) =
        (format!("{}:{}", world::at(ask.to.0), ask.to.1).parse(), format!("{}:40000", world::at(ask.from)).parse())
    else {
        return Foreseen::Unknown("no addresses".to_owned());
    };
    let captured_at = (part == Part::Server).then(|| case.case.snapshot.settings().inbound_port);
    let connection = Connection { destination, source, opening, captured_at };
    let identity = ask.tls.as_ref().and_then(|t| t.identity.as_deref());
    let uris: Vec<String> = identity.and_then(|name| keys.identity(name)).map(|i| keys::uris(i)).unwrap_or_default();
    let path = request.map(|r| r.filled(&r.target, tokens)).unwrap_or_default();
    let host = headers.get("host").and_then(|h| h.to_str().ok()).unwrap_or_default().to_owned();
    let scheme = if ask.tls.is_some() { "https" } else { "http" };
    let head =
        request.map(|r| RequestHead { method: &r.method, path: &path, authority: &host, scheme, headers: &headers });
    let caller = simulate::Caller { uris: &uris, now, ..simulate::Caller::default() };
    let verdict = simulate::inbound_from(runtime, &connection, &caller, head.as_ref(), 0);
    if let Some(tls) = &verdict.tls {
        let aliases = &case.case.snapshot.settings().trust_domain_aliases;
        let trusted = |name: &str| match (tls.trust.as_deref(), name) {
            (None, _) => true,
            (Some("ROOTCA"), "foreign") => {
                part == Part::Gateway || aliases.iter().any(|a| a.as_ref() == "partner.example")
            }
            (Some("ROOTCA"), name) => name.contains('/'),
            (Some(_), name) => name == "dns",
        };
        if identity.is_none() && tls.client_certificate || identity.is_some_and(|name| !trusted(name)) {
            return Foreseen::Fails("no certificate that is trusted".to_owned());
        }
    }
    let told = format!("{:?} {:?} {:?}", verdict.end, verdict.chain, verdict.decided);
    match verdict.end {
        End::Answered(status) => Foreseen::Status(status),
        End::Http | End::Tcp if part == Part::Server => Foreseen::Reaches(ask.to.0),
        // What comes after a gateway is the server's affair.
        End::Http | End::Tcp => Foreseen::Unknown(told),
        _ => Foreseen::Fails(told),
    }
}

/// The configuration of a proxy as it would run.
fn runtime(rendered: &Rendered) -> Result<Arc<RuntimeConfig>, String> {
    let mut store = ConfigStore::new();
    for (kind, resources) in [
        (type_url::CLUSTER, &rendered.clusters),
        (type_url::ENDPOINT, &rendered.endpoints),
        (type_url::LISTENER, &rendered.listeners),
        (type_url::ROUTE, &rendered.routes),
    ] {
        store.apply(kind, upserts(resources), &[]).map_err(|r| nack_text(&r))?;
    }
    Ok(store.runtime())
}

fn headers(request: &Request, tokens: &[String]) -> Option<HeaderMap> {
    let mut out = HeaderMap::new();
    for (name, value) in &request.headers {
        let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok()?;
        out.append(name, HeaderValue::from_str(&request.filled(value, tokens)).ok()?);
    }
    Some(out)
}
