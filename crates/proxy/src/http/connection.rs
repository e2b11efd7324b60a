//! A downstream HTTP connection: what its requests share.
//!
//! Invariant: lives on one worker; its configuration (connection manager) is that of its chain for as long as it lives,
//! while routes, clusters and endpoints are those of the moment.

use crate::alarm::Timer;
use crate::info::Info;
use crate::lifecycle::{Lease, Phase};
use crate::message::h1::server::Line;
use crate::metrics::Memo;
use crate::stats::HttpStats;
use crate::worker::Worker;
use carrick_proxy_core::hygiene::LocalReply;
use carrick_proxy_core::hygiene::xfcc::{self, PeerCert, XFCC};
use carrick_proxy_core::model::filter::{HttpFilter, UpstreamOverrides};
use carrick_proxy_core::model::hcm::{HttpConnectionManager, XfccMode};
use carrick_proxy_core::model::listener::{ChainKind, Direction};
use carrick_proxy_core::model::route::Route;
use carrick_proxy_core::peer::Peer;
use carrick_proxy_core::rbac::Left;
use http::{HeaderMap, HeaderValue};
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// Overrides of a route and weighted entry (by address, which the route keeps its own).
pub(super) type RouteOverrides = (Arc<Route>, usize, Rc<UpstreamOverrides>);

/// See the module.
pub struct HttpConn {
    pub(crate) worker: Rc<Worker>,
    pub(crate) info: Rc<Info>,
    pub(crate) stats: Arc<HttpStats>,
    pub(super) lease: Lease,
    /// HTTP/2.
    pub(super) h2: bool,
    pub(super) outbound: bool,
    /// `istio.stats` of the chain.
    pub(super) counted: Option<Arc<carrick_proxy_core::model::stats::Stats>>,
    /// Where the latest requests were counted.
    pub(super) memo: RefCell<Memo>,
    /// The latest texts that named a peer, and hosts.
    last_peer: RefCell<Option<(HeaderValue, Option<Arc<Peer>>)>>,
    last_host: RefCell<Option<(HeaderValue, Arc<str>)>>,
    /// Our element for requests without the header.
    xfcc: OnceCell<Option<HeaderValue>>,
    /// Requests under way, and all so far.
    pub(super) active: Cell<u32>,
    pub(super) served: Cell<u32>,
    /// Overrides of the last route, where they do not depend on the request.
    pub(super) last_overrides: RefCell<Option<RouteOverrides>>,
    pub(super) plain_overrides: Rc<UpstreamOverrides>,
    /// What is left for its requests of the chain's rules about who may do what, by the place of their filter.
    left: RefCell<Vec<(usize, Rc<Left>)>>,
    /// The timer of a request that is over.
    pub(super) spare: Cell<Option<Timer>>,
    /// Its bytes, where it speaks HTTP/1.
    pub(super) line: Option<Rc<Line>>,
}

impl HttpConn {
    /// `line`: of HTTP/1; without one it is HTTP/2.
    pub(super) fn new(
        worker: Rc<Worker>,
        info: Rc<Info>,
        stats: Arc<HttpStats>,
        lease: Lease,
        line: Option<Rc<Line>>,
    ) -> Self {
        let h2 = line.is_none();
        let outbound = match info.listener.direction {
            Direction::Outbound => true,
            Direction::Inbound => false,
            Direction::Unspecified => info.tls.is_none(),
        };
        stats.downstream_cx_total.inc();
        stats.downstream_cx_active.inc();
        if h2 { &stats.downstream_cx_http2_total } else { &stats.downstream_cx_http1_total }.inc();
        if info.tls.is_some() {
            stats.downstream_cx_ssl_total.inc();
        }
        let counted = match &info.chain.kind {
            ChainKind::Http(hcm) => hcm.filters.iter().find_map(|f| match f {
                HttpFilter::Stats(stats) => Some(Arc::clone(stats)),
                _ => None,
            }),
            ChainKind::Tcp(_) => None,
        };
        HttpConn {
            worker,
            info,
            stats,
            lease,
            h2,
            outbound,
            counted,
            memo: RefCell::default(),
            last_peer: RefCell::default(),
            last_host: RefCell::default(),
            xfcc: OnceCell::new(),
            active: Cell::new(0),
            served: Cell::new(0),
            last_overrides: RefCell::new(None),
            plain_overrides: Rc::default(),
            left: RefCell::default(),
            spare: Cell::new(None),
            line,
        }
    }

    /// What is left of the rules of a filter of this chain; found out for the first request.
    pub(super) fn left(&self, at: usize, find: impl FnOnce() -> Left) -> Rc<Left> {
        let mut all = self.left.borrow_mut();
        if let Some((_, left)) = all.iter().find(|(place, _)| *place == at) {
            return Rc::clone(left);
        }
        let left = Rc::new(find());
        all.push((at, Rc::clone(&left)));
        left
    }

    /// The answer to bytes that no request can be made of; the connection ends with it.
    pub(super) fn refusal(&self) -> Option<LocalReply> {
        self.line.as_ref()?.refusal().map(|refusal| refusal.reply())
    }

    /// The chain's connection manager.
    pub fn hcm(&self) -> Option<&HttpConnectionManager> {
        match &self.info.chain.kind {
            ChainKind::Http(hcm) => Some(hcm),
            ChainKind::Tcp(_) => None,
        }
    }

    /// Whether names are exchanged with mesh peers: on the ways in and out of the workload.
    pub(super) fn exchanges(&self) -> bool {
        self.worker.peers.active() && self.info.listener.direction != Direction::Unspecified
    }

    /// The workload that a header names; the same header on the same connection is not looked up again.
    pub(super) fn peer(&self, header: HeaderValue) -> Option<Arc<Peer>> {
        let mut last = self.last_peer.borrow_mut();
        match &*last {
            Some((known, peer)) if *known == header => peer.clone(),
            _ => {
                let peer = self.worker.peers.of_header(&header);
                // A copy of its own: the header is a slice of all that was read with it.
                *last = HeaderValue::from_bytes(header.as_bytes()).ok().map(|header| (header, peer.clone()));
                peer
            }
        }
    }

    /// A host as text, shared by the requests of a connection.
    pub(super) fn host(&self, header: &HeaderValue) -> Option<Arc<str>> {
        let mut last = self.last_host.borrow_mut();
        if let Some((known, host)) = &*last
            && known == header
        {
            return Some(Arc::clone(host));
        }
        let host: Arc<str> = header.to_str().ok()?.into();
        *last = HeaderValue::from_bytes(header.as_bytes()).ok().map(|header| (header, Arc::clone(&host)));
        Some(host)
    }

    pub(super) fn begin(&self, _protocol: http::Version) {
        self.active.set(self.active.get().saturating_add(1));
        self.served.set(self.served.get().saturating_add(1));
        self.stats.downstream_rq_total.inc();
        self.stats.rq_total.inc();
        self.stats.downstream_rq_active.inc();
    }

    pub(super) fn end(&self) {
        self.active.set(self.active.get().saturating_sub(1));
        self.stats.downstream_rq_active.dec();
    }

    /// Whether the client is to be told to leave after this response.
    pub(super) fn is_leaving(&self, hcm: &HttpConnectionManager) -> bool {
        self.lease.phase() >= Phase::Draining || hcm.max_requests_per_connection.is_some_and(|m| self.served.get() >= m)
    }

    /// Writes `x-forwarded-client-cert` as configured.
    pub(super) fn forward_client_cert(&self, hcm: &HttpConnectionManager, headers: &mut HeaderMap) {
        let settings = &hcm.xfcc;
        let appends = matches!(settings.mode, XfccMode::AppendForward | XfccMode::SanitizeSet);
        // Usually there is nothing before ours, and ours is the same for all requests.
        if appends && (settings.mode == XfccMode::SanitizeSet || !headers.contains_key(XFCC)) {
            match self
                .xfcc
                .get_or_init(|| self.with_peer(|p| HeaderValue::from_str(&xfcc::element(settings, p)).ok()).flatten())
            {
                Some(value) => {
                    headers.insert(XFCC, value.clone());
                }
                None => {
                    headers.remove(XFCC);
                }
            }
            return;
        }
        if self.with_peer(|p| xfcc::apply(settings, Some(p), headers)).is_none() {
            xfcc::apply(settings, None, headers);
        }
    }

    fn with_peer<R>(&self, f: impl FnOnce(&PeerCert<'_>) -> R) -> Option<R> {
        let tls = self.info.tls.as_ref()?;
        let peer = tls.peer.as_ref()?;
        let hash = peer.sha256_hex();
        let wanted = self.hcm().is_some_and(|hcm| hcm.xfcc.cert);
        let pem = if wanted { peer.pem_encoded() } else { String::new() };
        Some(f(&PeerCert {
            local_uri: tls.local.as_deref(),
            hash: &hash,
            subject: peer.subject(),
            uris: peer.uris(),
            dns: peer.dns_names(),
            pem: &pem,
            ..PeerCert::default()
        }))
    }
}

impl Drop for HttpConn {
    fn drop(&mut self) {
        self.stats.downstream_cx_active.dec();
    }
}
