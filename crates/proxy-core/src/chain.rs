//! Which listener serves a connection, which inspectors look at it, which filter chain takes it.
//!
//! Invariant: Envoy's order of precedence (`FilterChainMatch`): destination port, destination prefix, server name, transport protocol,
//! application protocols, directly connected prefix, source type, source prefix, source port. Each step is final: the most specific
//! entry is followed and there is no way back. A port that has chains of its own never falls back to chains without a port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::model::listener::{
    FilterChain, Inspector, Inspectors, IpLevel, Listener, NameLevel, PortPredicate, SourceTypes, TextLevel,
};
use crate::model::{Listeners, Name};

/// Transport protocol of a connection on which no TLS was seen.
pub const RAW_BUFFER: &str = "raw_buffer";
/// Transport protocol of a connection that begins with a ClientHello.
pub const TLS: &str = "tls";

/// What is known of a connection when its chain is chosen.
#[derive(Debug, Clone, Copy)]
pub struct ConnFacts<'a> {
    /// Local address, restored to the original destination where it was redirected.
    pub destination: SocketAddr,
    /// The peer (as PROXY protocol or `original_src` would tell it).
    pub source: SocketAddr,
    /// The directly connected peer.
    pub direct_source: SocketAddr,
    /// SNI, lower case.
    pub server_name: Option<&'a str>,
    /// [`TLS`] or [`RAW_BUFFER`]; empty counts as the latter.
    pub transport_protocol: &'a str,
    /// ALPN of the ClientHello, or what the HTTP inspector saw (`http/1.0`, `http/1.1`, `h2c`).
    pub application_protocols: &'a [&'a str],
}

impl<'a> ConnFacts<'a> {
    /// A plain connection about whose bytes nothing is known.
    #[must_use]
    pub fn raw(destination: SocketAddr, source: SocketAddr) -> Self {
        Self {
            destination,
            source,
            direct_source: source,
            server_name: None,
            transport_protocol: RAW_BUFFER,
            application_protocols: &[],
        }
    }
}

impl Listeners {
    /// The listener that serves a connection accepted by `acceptor`: with `use_original_dst`, the one standing for the restored
    /// destination — exact address, else any address with that port — else the acceptor itself.
    ///
    /// `restored` is the original destination, `None` if the connection was not redirected.
    #[must_use]
    pub fn hand_off<'a>(&'a self, acceptor: &'a Arc<Listener>, restored: Option<SocketAddr>) -> &'a Arc<Listener> {
        let Some(destination) = restored.filter(|_| acceptor.use_original_dst) else { return acceptor };
        self.lookup(destination).unwrap_or(acceptor)
    }

    /// The listener standing for a destination: exact, then the unspecified address of its family, then `[::]` for IPv4.
    #[must_use]
    pub fn lookup(&self, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let port = destination.port();
        let any4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        let any6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        let exact = self.by_address.get(&destination);
        match destination {
            SocketAddr::V4(_) => exact.or_else(|| self.by_address.get(&any4)).or_else(|| self.by_address.get(&any6)),
            SocketAddr::V6(_) => exact.or_else(|| self.by_address.get(&any6)),
        }
    }
}

impl PortPredicate {
    /// Whether it holds for a port.
    #[must_use]
    pub fn holds(&self, port: u16) -> bool {
        match self {
            Self::Never => false,
            Self::Always => true,
            Self::Range { start, end } => (*start..*end).contains(&u32::from(port)),
            Self::Or(rules) => rules.iter().any(|r| r.holds(port)),
            Self::And(rules) => rules.iter().all(|r| r.holds(port)),
            Self::Not(rule) => !rule.holds(port),
        }
    }
}

impl Inspectors {
    /// Whether the TLS inspector looks at connections to this (original) destination port.
    #[must_use]
    pub fn tls_on(&self, port: u16) -> bool {
        on(self.tls.as_ref(), port)
    }

    /// Whether the HTTP inspector looks at connections to this (original) destination port.
    #[must_use]
    pub fn http_on(&self, port: u16) -> bool {
        on(self.http.as_ref(), port)
    }
}

fn on(inspector: Option<&Inspector>, port: u16) -> bool {
    inspector.is_some_and(|i| !i.disabled.holds(port))
}

impl Listener {
    /// The chain for a connection; the default chain if none matches; `None` = close without a byte.
    #[must_use]
    pub fn find_chain(&self, facts: &ConnFacts<'_>) -> Option<&Arc<FilterChain>> {
        self.search(facts).and_then(|i| self.chains.get(i)).or(self.default_chain.as_ref())
    }

    fn search(&self, facts: &ConnFacts<'_>) -> Option<usize> {
        let ports = &self.index.ports;
        let level = ports.get(&facts.destination.port()).or_else(|| ports.get(&0))?;
        let names: &NameLevel = level.find(facts.destination.ip())?;
        let transports = names.find(facts.server_name.unwrap_or_default())?;
        let transport = if facts.transport_protocol.is_empty() { RAW_BUFFER } else { facts.transport_protocol };
        let protocols = transports.find(&[transport])?;
        let sources = protocols.find(facts.application_protocols)?;
        let types: &SourceTypes = sources.find(facts.direct_source.ip())?;
        let prefixes = types.find(facts)?;
        let by_port = prefixes.find(facts.source.ip())?;
        let wanted = facts.source.port();
        let found =
            by_port.iter().find(|(port, _)| *port == wanted).or_else(|| by_port.iter().find(|(port, _)| *port == 0));
        found.map(|(_, index)| *index)
    }
}

impl<T> IpLevel<T> {
    /// The entry of the longest prefix that holds the address.
    fn find(&self, ip: IpAddr) -> Option<&T> {
        let ip = ip.to_canonical();
        self.0.iter().find(|(net, _)| net.contains(&ip)).map(|(_, next)| next)
    }
}

impl NameLevel {
    fn find(&self, name: &str) -> Option<&TextLevel<TextLevel<crate::model::listener::SourceLevel>>> {
        if !name.is_empty() {
            if let Some(found) = self.exact.get(name) {
                return Some(found);
            }
            if !self.suffix.is_empty() {
                // The longest suffix is the one after the first dot.
                for (dot, _) in name.match_indices('.').filter(|(at, _)| *at > 0) {
                    if let Some(found) = name.get(dot..).filter(|s| s.len() > 1).and_then(|s| self.suffix.get(s)) {
                        return Some(found);
                    }
                }
            }
        }
        self.any.as_ref()
    }
}

impl<T> TextLevel<T> {
    /// The first of `wanted` that has an entry, else the entry without requirement.
    fn find(&self, wanted: &[&str]) -> Option<&T> {
        let entry = |text: &str| self.0.iter().find(|(have, _)| **have == *text).map(|(_, next)| next);
        wanted.iter().filter(|w| !w.is_empty()).find_map(|w| entry(w)).or_else(|| entry(""))
    }
}

impl SourceTypes {
    fn find(&self, facts: &ConnFacts<'_>) -> Option<&IpLevel<Vec<(u16, usize)>>> {
        let specific = if is_local(facts) { &self.local } else { &self.external };
        specific.as_ref().or(self.any.as_ref())
    }
}

fn is_local(facts: &ConnFacts<'_>) -> bool {
    let source = facts.source.ip().to_canonical();
    source.is_loopback() || source == facts.destination.ip().to_canonical()
}

impl FilterChain {
    /// Name for people: the chain's, or a placeholder.
    #[must_use]
    pub fn display_name(&self) -> Name {
        if self.name.is_empty() { Name::from("(unnamed)") } else { Arc::clone(&self.name) }
    }
}
