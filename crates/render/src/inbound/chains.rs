//! The chains of each port: the table of semantics §2.6, and the passthrough chains of §2.4.
//!
//! Invariant: under STRICT every chain terminates mesh TLS; under DISABLE none does; only PERMISSIVE has both. TLS of the workload's own
//! replaces the whole set of its port.

use carrick_mesh::{
    model::MtlsMode,
    names,
    view::{Inbound, InboundPort, PortClass},
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch};

use crate::{filters, route, security, stats::Side, tls, wire};

/// ALPN lists that a mesh client offers for HTTP.
const ISTIO_HTTP: &[&str] = &["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// ALPN lists that a mesh client offers for anything else.
const ISTIO_TCP: &[&str] = &["istio-peer-exchange", "istio"];
/// All of them.
const ISTIO_ANY: &[&str] = &["istio-http/1.0", "istio-http/1.1", "istio-h2", "istio-peer-exchange", "istio"];
/// What the HTTP inspector says of plaintext.
pub const PLAIN_HTTP: &[&str] = &["http/1.1", "h2c"];

/// What follows in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Payload {
    Http,
    Tcp,
}

/// One row of the table: what a connection must look like, and what is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Starts with a ClientHello.
    pub tls: bool,
    /// ALPN, by the ClientHello or by the HTTP inspector; empty for any.
    pub alpn: &'static [&'static str],
    payload: Payload,
    /// TLS is terminated, the mesh's or the workload's own; else it goes on as it is.
    terminate: bool,
}

const fn mesh(alpn: &'static [&'static str], payload: Payload) -> Shape {
    Shape { tls: true, alpn, payload, terminate: true }
}

const fn plain(alpn: &'static [&'static str], payload: Payload) -> Shape {
    Shape { tls: false, alpn, payload, terminate: false }
}

/// TLS of the workload's own.
const fn own(payload: Payload) -> Shape {
    Shape { tls: true, alpn: &[], payload, terminate: true }
}

const OPAQUE_TLS: Shape = Shape { tls: true, alpn: &[], payload: Payload::Tcp, terminate: false };

/// The table.
fn shapes(mode: MtlsMode, class: PortClass) -> &'static [Shape] {
    use Payload::{Http, Tcp};
    match (mode, class) {
        (MtlsMode::Permissive, PortClass::Auto) => {
            const { &[mesh(ISTIO_HTTP, Http), plain(PLAIN_HTTP, Http), mesh(ISTIO_TCP, Tcp), plain(&[], Tcp), OPAQUE_TLS] }
        }
        (MtlsMode::Permissive, PortClass::Http { .. }) => const { &[mesh(ISTIO_ANY, Http), plain(&[], Http)] },
        (MtlsMode::Permissive, PortClass::Tcp) => const { &[mesh(ISTIO_ANY, Tcp), OPAQUE_TLS, plain(&[], Tcp)] },
        (MtlsMode::Strict, PortClass::Auto) => const { &[mesh(ISTIO_HTTP, Http), mesh(&[], Tcp)] },
        (MtlsMode::Strict, PortClass::Http { .. }) => const { &[mesh(&[], Http)] },
        (MtlsMode::Strict, PortClass::Tcp) => const { &[mesh(&[], Tcp)] },
        (MtlsMode::Disable, PortClass::Auto) => const { &[plain(PLAIN_HTTP, Http), plain(&[], Tcp)] },
        (MtlsMode::Disable, PortClass::Http { .. }) => const { &[plain(&[], Http)] },
        (MtlsMode::Disable, PortClass::Tcp) => const { &[plain(&[], Tcp)] },
    }
}

/// The chains of one port, or of all that have none of their own.
pub struct Set<'a> {
    /// `None` for all that have none of their own.
    pub port: Option<u16>,
    /// What they look like.
    pub shapes: &'static [Shape],
    service: Option<&'a InboundPort>,
}

/// All sets, in the listener's order: passthrough, ports that only a policy names, then services' ports.
pub fn sets(view: &Inbound) -> Vec<Set<'_>> {
    let passthrough = |port, mode| Set { port, shapes: shapes(mode, PortClass::Auto), service: None };
    std::iter::once(passthrough(None, view.mode))
        .chain(view.passthrough_ports.iter().map(|p| passthrough(Some(p.port), p.mode)))
        .chain(view.ports.iter().filter(|p| p.bind.is_none()).map(set))
        .collect()
}

/// The chains of a port that is named.
pub fn set(port: &InboundPort) -> Set<'_> {
    let shapes = match (&port.tls, port.class) {
        (None, class) => shapes(port.mode, class),
        (Some(_), PortClass::Http { .. } | PortClass::Auto) => const { &[own(Payload::Http)] },
        (Some(_), PortClass::Tcp) => const { &[own(Payload::Tcp)] },
    };
    Set { port: Some(port.target), shapes, service: Some(port) }
}

impl Set<'_> {
    /// The filter chains.
    pub fn render(&self, view: &Inbound) -> Vec<FilterChain> {
        self.shapes.iter().map(|shape| self.chain(view, shape)).collect()
    }

    fn chain(&self, view: &Inbound, shape: &Shape) -> FilterChain {
        let mut prefix_ranges = Vec::new();
        if self.port.is_none() {
            prefix_ranges.extend(view.families.v4.then(|| wire::everything(false)));
            prefix_ranges.extend(view.families.v6.then(|| wire::everything(true)));
        }
        FilterChain {
            name: self.name(shape.payload, view),
            filter_chain_match: Some(FilterChainMatch {
                destination_port: self.port.and_then(|p| wire::number(u32::from(p))),
                prefix_ranges,
                transport_protocol: if shape.tls { "tls" } else { "raw_buffer" }.to_owned(),
                application_protocols: shape.alpn.iter().map(|a| (*a).to_owned()).collect(),
                ..FilterChainMatch::default()
            }),
            filters: self.filters(shape.payload, view),
            transport_socket: match self.service.and_then(|p| p.tls.as_ref()) {
                _ if !shape.terminate => None,
                Some(own) => tls::ingress(own),
                None => tls::server(&view.tls),
            },
            ..FilterChain::default()
        }
    }

    fn name(&self, payload: Payload, view: &Inbound) -> String {
        match (self.service, payload) {
            (Some(port), _) => format!("{}_{}", stat_host(view), port.target),
            (None, Payload::Http) => "virtualInbound-catchall-http".to_owned(),
            (None, Payload::Tcp) => "virtualInbound".to_owned(),
        }
    }

    fn filters(&self, payload: Payload, view: &Inbound) -> Vec<Filter> {
        let cluster = self.service.map_or(names::INBOUND_PASSTHROUGH, |p| &p.cluster.name);
        let idle = self.service.and_then(|p| p.cluster.pool.as_ref()).and_then(|p| p.tcp_idle_timeout);
        match (payload, self.service) {
            (Payload::Tcp, _) => {
                let mut all = security::network_filters(&view.security);
                all.extend(filters::tcp_counted(&view.settings, Side::Server, cluster, idle));
                all
            }
            (Payload::Http, Some(port)) => {
                let operation = format!("{}:{}/*", port.service, port.service_port);
                // Retrying on the server's side is for plain HTTP; a gRPC client knows better.
                let grpc = port.class == PortClass::Http { h2: true };
                let routes = route::inbound(cluster, port.service_port, Some(operation), grpc);
                let stat = format!("inbound_{}_{};", stat_host(view), port.target);
                vec![filters::inbound_http(&view.settings, &stat, routes, &view.security)]
            }
            (Payload::Http, None) => {
                let routes = route::inbound(cluster, 0, None, false);
                vec![filters::inbound_http(&view.settings, &format!("{cluster};"), routes, &view.security)]
            }
        }
    }
}

fn stat_host(view: &Inbound) -> &'static str {
    if view.families.v4 { "0.0.0.0" } else { "[::]" }
}
