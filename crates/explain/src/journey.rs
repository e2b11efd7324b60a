//! The call itself, from the caller's sidecar to the workload.
//!
//! Invariant: each end is asked with what really reaches it: the server's sidecar sees the bytes that the client's sidecar sends.

use std::net::SocketAddr;

use carrick_mesh::{
    Snapshot,
    model::{TlsMode, Workload},
    view::ModeSource,
};
use carrick_proxy_core::{
    request::RequestHead,
    simulate::{self, Caller, Connection, End, Opening, Verdict},
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    Answer, Call, Question, QuestionError, Side, Speaks,
    place::{self, From},
    proxy::Proxy,
};

/// A port a caller could have. Which one it is decides nothing.
const CALLER_PORT: u16 = 40000;
/// The draw that chooses among equals; always the same, so that equal questions have equal answers.
const DRAW: u64 = 0;

/// Answers a question.
///
/// # Errors
/// When caller or destination are unknown, or a configuration would be refused.
pub fn why(snapshot: &Snapshot, question: &Question) -> Result<Answer, QuestionError> {
    let from = place::caller(snapshot, &question.from)?;
    let namespace = from.workload.as_ref().map(|w| &*w.name.namespace);
    let to = place::destination(snapshot, namespace, &question.to)?;
    let headers = headers(&question.call)?;
    let host = headers.get(http::header::HOST).and_then(|h| h.to_str().ok()).map(str::to_owned);
    let host = host.unwrap_or_else(|| authority(&question.to.host, question.to.port));
    let request = RequestHead {
        method: &question.call.method,
        path: &question.call.path,
        authority: &host,
        scheme: "http",
        headers: &headers,
    };
    let opening = match question.call.speaks {
        Speaks::Http1 => Opening::Http11,
        Speaks::Http2 => Opening::Http2,
        Speaks::Tls => Opening::Tls { server_name: Some(&question.to.host), alpn: &[] },
        Speaks::Bytes => Opening::Opaque,
    };
    let mut answer = Answer { allowed: false, end: String::new(), steps: Vec::new() };
    let name = from.workload.as_ref().map_or_else(|| from.ip.to_string(), |w| w.name.to_string());
    let in_mesh = from.workload.as_ref().is_some_and(|w| w.tls_mode == TlsMode::Istio);
    answer.step(Side::Client, "caller", if in_mesh { name } else { format!("{name}, without a sidecar") }, None);
    if let Some(service) = &to.service {
        answer.step(Side::Client, "service", format!("{} at {}", service.hostname, to.address), None);
    }
    if let Some(workload) = from.workload.as_ref().filter(|_| in_mesh) {
        let proxy = Proxy::of(snapshot, workload)?;
        let sent = Connection {
            destination: to.address,
            source: SocketAddr::new(from.ip, CALLER_PORT),
            opening,
            captured_at: Some(snapshot.settings().outbound_port),
        };
        let verdict = simulate::outbound(&proxy.runtime, &sent, Some(&request), DRAW);
        client_steps(&mut answer, &proxy, &verdict);
        let (Some(upstream), None) = (&verdict.upstream, refusal(&verdict, Side::Client)) else {
            let end = refusal(&verdict, Side::Client);
            return Ok(answer.refused(end.unwrap_or_else(|| "the caller's sidecar does not send it on".to_owned())));
        };
        let Some(address) = upstream.address else {
            return Ok(answer.reached("sent to an address that DNS gives, outside of what the mesh knows"));
        };
        answer.step(Side::Client, "endpoint", address.to_string(), None);
        let (sni, alpn) = upstream.tls.clone().unwrap_or_default();
        let alpn: Vec<&str> = alpn.iter().map(|a| &**a).collect();
        let because = verdict.cluster.as_ref().and_then(|c| proxy.rule_of(c));
        let opening = match &upstream.tls {
            Some(_) => {
                let sni = sni.as_deref();
                answer.step(Side::Client, "TLS", format!("yes, SNI {}", sni.unwrap_or("none")), because);
                Opening::Tls { server_name: sni, alpn: &alpn }
            }
            None => {
                answer.step(Side::Client, "TLS", "none added", because);
                opening
            }
        };
        let mesh_tls = alpn.iter().any(|a| a.starts_with("istio"));
        return server(snapshot, answer, &from, address, opening, mesh_tls, &request);
    }
    let address = behind(snapshot, &to);
    answer.step(Side::Client, "endpoint", address.to_string(), None);
    server(snapshot, answer, &from, address, opening, false, &request)
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

fn server(
    snapshot: &Snapshot,
    mut answer: Answer,
    from: &From,
    address: SocketAddr,
    opening: Opening<'_>,
    mesh_tls: bool,
    request: &RequestHead<'_>,
) -> Result<Answer, QuestionError> {
    let Some(workload) = snapshot.endpoints().workload_at(address.ip()) else {
        return Ok(answer.reached(format!("{address} is outside of the mesh; nothing more is known of it")));
    };
    let workload: &Workload = workload;
    if workload.tls_mode != TlsMode::Istio {
        answer.step(Side::Server, "workload", format!("{}, without a sidecar", workload.name), None);
        if mesh_tls {
            return Ok(answer.refused("the caller speaks mutual TLS of the mesh, and nobody there can answer it"));
        }
        return Ok(answer.reached(format!("{address} takes it as it is")));
    }
    answer.step(Side::Server, "workload", workload.name.to_string(), None);
    let decided = snapshot.peer_auth().effective(&workload.name.namespace, &workload.labels);
    let port = decided.port(address.port());
    answer.step(Side::Server, "mutual TLS", port.mode.as_str(), source(&port.from));
    let proxy = Proxy::of(snapshot, workload)?;
    let arrived = Connection {
        destination: address,
        source: SocketAddr::new(from.ip, CALLER_PORT),
        opening,
        captured_at: Some(snapshot.settings().inbound_port),
    };
    let named = from.workload.as_ref().and_then(|w| w.identity.as_ref()).filter(|_| mesh_tls);
    let uris: Vec<String> = named.iter().map(|id| id.to_string()).collect();
    let caller = Caller { uris: &uris, ..Caller::default() };
    let verdict = simulate::inbound_from(&proxy.runtime, &arrived, &caller, Some(request), DRAW);
    server_steps(&mut answer, &verdict);
    if let Some(end) = refusal(&verdict, Side::Server) {
        return Ok(answer.refused(end));
    }
    if verdict.tls.as_ref().is_some_and(|tls| tls.client_certificate) && !mesh_tls {
        return Ok(answer.refused("the server's sidecar wants a certificate of the mesh, and the caller has none"));
    }
    Ok(answer.reached(format!("the workload {} gets it on port {}", workload.name, address.port())))
}

fn client_steps(answer: &mut Answer, proxy: &Proxy, verdict: &Verdict) {
    common(answer, Side::Client, verdict);
    if let Some((host, route)) = &verdict.route {
        let value = if route.is_empty() { host.to_string() } else { format!("{host}, {route}") };
        answer.step(Side::Client, "route", value, proxy.route_of(host, route));
    }
    if let Some(cluster) = &verdict.cluster {
        answer.step(Side::Client, "cluster", cluster.to_string(), proxy.rule_of(cluster));
    }
}

fn server_steps(answer: &mut Answer, verdict: &Verdict) {
    common(answer, Side::Server, verdict);
    if let Some(tls) = &verdict.tls {
        let client = if tls.client_certificate { "asks for the caller's certificate" } else { "asks for none" };
        answer.step(Side::Server, "TLS", format!("ended here with certificate {}, {client}", tls.certificate), None);
    }
    if let Some(cluster) = &verdict.cluster {
        answer.step(Side::Server, "cluster", cluster.to_string(), None);
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
    let text = match verdict.end {
        End::Http | End::Tcp => return None,
        End::NoListener => "refused: nothing listens there".to_owned(),
        End::NoChain if side == Side::Server => {
            "closed before a byte: what the caller speaks is not taken on this port (mutual TLS is required)".to_owned()
        }
        End::NoChain => "closed: nothing takes what the caller speaks".to_owned(),
        End::NotTls => "closed: TLS is required and the caller speaks something else".to_owned(),
        End::NotHttp => "closed: HTTP is required and the caller speaks something else".to_owned(),
        End::Answered(status) => format!("answered by the {side}'s sidecar with status {status}"),
        End::Refused => format!("closed by a policy in the {side}'s sidecar"),
        End::NoCluster => format!("the {side}'s sidecar knows no such destination: 503, or closed"),
        End::NoEndpoint => format!("the {side}'s sidecar knows no usable endpoint: 503, or closed"),
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
