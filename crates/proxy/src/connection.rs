//! A downstream connection from accept to its chain: original destination, listener, first bytes, chain, handshake.
//!
//! Invariant: nothing is served before a chain is found and, where the chain has TLS, before its handshake proved the
//! peer. Whoever finds no chain is reset, without a byte. What a chain does is in `http` and `tcp`.

use crate::info::Info;
use crate::inspect::{MAX_INSPECT, Verdict, client_hello, http as http_sniff, proxy_header};
use crate::io::socket::Socket;
use crate::io::stream::{Kind, Stream};
use crate::io::sys;
use crate::lifecycle::{Lease, Phase};
use crate::options::OriginalDst;
use crate::stats::ListenerStats;
use crate::tls;
use crate::worker::Worker;
use bytes::BytesMut;
use carrick_proxy_core::chain::{ConnFacts, RAW_BUFFER, TLS};
use carrick_proxy_core::model::listener::{ChainKind, Listener, ProxyHeader};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

/// A handshake takes at most so long where the chain does not say.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

struct Hello {
    server_name: Option<String>,
    transport: &'static str,
    protocols: Vec<String>,
}

/// Serves one accepted connection to its end.
pub async fn run(worker: Rc<Worker>, bound: SocketAddr, tcp: TcpStream, peer: SocketAddr) {
    let root = worker.life.lease();
    let ready = {
        let prepare = Box::pin(prepare(&worker, bound, tcp, peer));
        tokio::select! {
            ready = prepare => ready,
            () = root.reached(Phase::Closing) => None,
        }
    };
    let Some((stream, info, lease, _open)) = ready else { return };
    drop(root);
    match &info.chain.kind {
        ChainKind::Http(_) => crate::http::serve(worker, stream, Rc::new(info), lease).await,
        ChainKind::Tcp(_) => crate::tcp::serve(worker, stream, info, lease).await,
    }
}

/// Counts a connection as open on its listener for as long as it lives.
struct Open(Arc<ListenerStats>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.downstream_cx_active.dec();
        self.0.downstream_cx_destroy.inc();
    }
}

async fn prepare(
    worker: &Rc<Worker>,
    bound: SocketAddr,
    tcp: TcpStream,
    peer: SocketAddr,
) -> Option<(Stream, Info, Lease, Open)> {
    let live = worker.live();
    let acceptor = live.config.listeners.by_address.get(&bound)?;
    let _ = tcp.set_nodelay(true);
    let accepted = tcp.local_addr().ok()?;
    let restored = if acceptor.transparent && accepted.port() != bound.port() {
        // Taken by a rule that turns nothing around (TPROXY): the socket's own address is the one that was dialled.
        Some(accepted)
    } else if acceptor.restore_original_dst || acceptor.use_original_dst {
        original_dst(worker, &tcp, accepted, peer).filter(|d| *d != accepted)
    } else {
        None
    };
    let listener = live.config.listeners.hand_off(acceptor, restored);
    let stats = worker.listener_stats(&listener.name);
    stats.downstream_cx_total.inc();
    stats.downstream_cx_active.inc();
    let open = Open(Arc::clone(&stats));
    let destination = restored.unwrap_or(accepted);
    if is_own_port(&live.config, restored, accepted) {
        // Following it would connect us to ourselves, for ever.
        stats.loop_refused.inc();
        sys::reset_on_close(&tcp);
        return None;
    }
    if let Some(k) = &listener.tcp_keepalive {
        crate::upstream::connect::keepalive(&tcp, k);
    }
    let mut socket = Socket::new(tcp);
    let mut seen = BytesMut::new();
    let direct = peer;
    let (peer, destination) = match listener.inspectors.proxy {
        None => (peer, destination),
        Some(wanted) => match proxied(listener, wanted, &mut socket, &mut seen).await {
            Ok(addresses) => addresses.unwrap_or((peer, destination)),
            Err(rejected) => {
                if matches!(rejected, Rejected::Reset) {
                    stats.downstream_pre_cx_timeout.inc();
                }
                tracing::debug!(listener = %listener.name, %peer, "no PROXY header that could be believed");
                sys::reset_on_close(socket.tcp());
                return None;
            }
        },
    };
    let hello = match inspect(listener, destination.port(), &mut socket, seen).await {
        Ok(h) => h,
        Err(Rejected::Reset) => {
            stats.downstream_pre_cx_timeout.inc();
            sys::reset_on_close(socket.tcp());
            return None;
        }
        Err(Rejected::Gone) => return None,
    };
    // The configuration may have changed while the client was silent; what counts is what is in force now.
    let live = worker.live();
    let acceptor = live.config.listeners.by_address.get(&bound)?;
    let listener = live.config.listeners.hand_off(acceptor, restored);
    let protocols: Vec<&str> = hello.protocols.iter().map(String::as_str).collect();
    let facts = ConnFacts {
        destination,
        source: peer,
        direct_source: direct,
        server_name: hello.server_name.as_deref(),
        transport_protocol: hello.transport,
        application_protocols: &protocols,
    };
    let Some(chain) = listener.find_chain(&facts) else {
        stats.no_filter_chain_match.inc();
        worker.log_no_chain(listener, destination, peer, hello.server_name.as_deref());
        sys::reset_on_close(socket.tcp());
        return None;
    };
    let lease = worker.chain_life(listener, chain).lease();
    let (stream, proof) = match &chain.tls {
        None => (Kind::Plain(socket).into(), None),
        Some(settings) => {
            let config = match worker.tls.server(chain, settings) {
                Ok(c) => c,
                Err(e) => {
                    tracing::warn!(listener = %listener.name, chain = %chain.name, "connection refused: {e}");
                    stats.ssl_connection_error.inc();
                    sys::reset_on_close(socket.tcp());
                    return None;
                }
            };
            let limit = chain.transport_socket_connect_timeout.unwrap_or(HANDSHAKE_TIMEOUT);
            match tokio::time::timeout(limit, Box::pin(tls::accept(&config, socket, &worker.ties))).await {
                Ok(Ok((stream, proof))) => {
                    let named = settings.validation.as_ref().is_none_or(|v| !v.accept_untrusted);
                    if settings.require_client_certificate && named && proof.peer.is_none() {
                        // The verifier has said so already; without the proof value there is no way on.
                        stats.ssl_no_certificate.inc();
                        return None;
                    }
                    stats.ssl_handshake.inc();
                    stats.ssl_session_reused.add(u64::from(stream.resumed()));
                    (stream, Some(proof))
                }
                Ok(Err(e)) => {
                    stats.ssl_connection_error.inc();
                    worker.log_tls_failure(
                        listener,
                        destination,
                        peer,
                        hello.server_name.as_deref(),
                        &tls::describe(&e),
                    );
                    return None;
                }
                Err(_) => {
                    stats.ssl_connection_error.inc();
                    return None;
                }
            }
        }
    };
    let info = Info {
        local: destination,
        restored,
        peer,
        direct,
        server_name: hello.server_name,
        tls: proof,
        id: worker.next_id(),
        listener: Arc::clone(listener),
        chain: Arc::clone(chain),
    };
    Some((stream, info, lease, open))
}

fn original_dst(worker: &Worker, tcp: &TcpStream, local: SocketAddr, peer: SocketAddr) -> Option<SocketAddr> {
    match &worker.shared.options.original_dst {
        OriginalDst::Kernel => sys::original_dst(tcp, local.is_ipv6()).ok(),
        OriginalDst::Function(f) => f(local, peer),
    }
}

/// A redirected connection that was meant for one of our own redirect ports on this address.
fn is_own_port(config: &carrick_proxy_core::RuntimeConfig, restored: Option<SocketAddr>, accepted: SocketAddr) -> bool {
    restored.is_some_and(|d| {
        d.ip() == accepted.ip()
            && config.listeners.lookup(d).is_some_and(|l| l.bind_to_port && l.restore_original_dst | l.use_original_dst)
    })
}

enum Rejected {
    /// Took too long or sent too much.
    Reset,
    /// Left.
    Gone,
}

/// Takes the PROXY header off the front; what was read behind it stays in `seen`.
async fn proxied(
    listener: &Listener,
    wanted: ProxyHeader,
    socket: &mut Socket,
    seen: &mut BytesMut,
) -> Result<Option<proxy_header::Addresses>, Rejected> {
    let read = socket.inspect(MAX_INSPECT * 2, seen, |bytes| match proxy_header::parse(bytes, wanted) {
        proxy_header::Verdict::NeedMore => None,
        decided => Some(decided),
    });
    let result = match listener.listener_filters_timeout {
        None => read.await,
        // Going on without the header would believe the load balancer to be the client.
        Some(limit) => tokio::time::timeout(limit, Box::pin(read)).await.map_err(|_| Rejected::Reset)?,
    };
    match result {
        Ok(Some(proxy_header::Verdict::Found(length, addresses))) => {
            let _ = seen.split_to(length.min(seen.len()));
            Ok(addresses)
        }
        Ok(Some(proxy_header::Verdict::Absent)) if wanted.optional => Ok(None),
        _ => Err(Rejected::Gone),
    }
}

async fn inspect(listener: &Listener, port: u16, socket: &mut Socket, mut seen: BytesMut) -> Result<Hello, Rejected> {
    let (tls, http) = (listener.inspectors.tls_on(port), listener.inspectors.http_on(port));
    let raw = || Hello { server_name: None, transport: RAW_BUFFER, protocols: Vec::new() };
    if !tls && !http {
        socket.replay(seen.freeze());
        return Ok(raw());
    }
    let result = {
        let read = socket.inspect(MAX_INSPECT * 2, &mut seen, |bytes| decide(tls, http, bytes));
        match listener.listener_filters_timeout {
            None => Ok(read.await),
            Some(limit) => tokio::time::timeout(limit, Box::pin(read)).await,
        }
    };
    let hello = match result {
        Ok(Ok(Some(Verdict::Yes(hello)))) => Ok(hello),
        Ok(Ok(Some(_))) => Err(Rejected::Reset),
        // Ended before a decision: what came is passed on if the end was orderly and bytes are there.
        Ok(Ok(None)) if seen.is_empty() => Err(Rejected::Gone),
        Ok(Ok(None)) if seen.len() >= MAX_INSPECT * 2 => Err(Rejected::Reset),
        Ok(Ok(None)) => Ok(raw()),
        Ok(Err(_)) => Err(Rejected::Gone),
        Err(_) if listener.continue_on_listener_filters_timeout => Ok(raw()),
        Err(_) => Err(Rejected::Reset),
    };
    socket.replay(seen.freeze());
    hello
}

/// Both inspectors in Envoy's order: HTTP is looked for only where TLS was not found.
fn decide(tls: bool, http: bool, bytes: &[u8]) -> Option<Verdict<Hello>> {
    if tls {
        match client_hello::parse(bytes) {
            Verdict::NeedMore => return None,
            Verdict::TooLarge => return Some(Verdict::TooLarge),
            Verdict::Yes(h) => {
                return Some(Verdict::Yes(Hello { server_name: h.server_name, transport: TLS, protocols: h.alpn }));
            }
            Verdict::No => {}
        }
    }
    let protocols = if http {
        match http_sniff::sniff(bytes) {
            Verdict::NeedMore => return None,
            Verdict::TooLarge => return Some(Verdict::TooLarge),
            Verdict::Yes(v) => vec![v.alpn().to_string()],
            Verdict::No => Vec::new(),
        }
    } else {
        Vec::new()
    };
    Some(Verdict::Yes(Hello { server_name: None, transport: RAW_BUFFER, protocols }))
}
