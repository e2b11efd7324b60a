//! Configuration builders, small servers and clients for the tests.

use carrick_base::{SpiffeId, TrustDomain};
use carrick_pki::{Authority, CaOptions, Identity, Subject};
use carrick_proxy::{Engine, EngineOptions, OriginalDst, Secret, Secrets};
use carrick_proxy_core::RuntimeConfig;
use carrick_proxy_core::model::cluster::*;
use carrick_proxy_core::model::endpoint::{EndpointAddress, Health, Locality, LocalityEndpoints, Priority};
use carrick_proxy_core::model::filter::{HttpFilter, Router};
use carrick_proxy_core::model::hcm::*;
use carrick_proxy_core::model::listener::*;
use carrick_proxy_core::model::matcher::{StringMatcher, Text};
use carrick_proxy_core::model::metadata::Metadata;
use carrick_proxy_core::model::retry::{RetryOn, RetryPolicy};
use carrick_proxy_core::model::route::*;
use carrick_proxy_core::model::tls::{CertificateSource, DownstreamTls, SanKind, SanMatcher, UpstreamTls, Validation};
use carrick_proxy_core::model::{Endpoint, EndpointSet, Listeners, Name};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A free port of loopback, another one each time, and below those that the kernel gives to callers, so that nobody of us takes it
/// before it is listened on. Another process could; tests then fail loudly.
pub fn free_port() -> SocketAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    const PORTS: std::ops::Range<usize> = 10_000..32_000;
    let _ = NEXT.compare_exchange(0, rand::random_range(PORTS), Ordering::SeqCst, Ordering::SeqCst);
    loop {
        let port = PORTS.start + NEXT.fetch_add(1, Ordering::SeqCst) % PORTS.len();
        let bound = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, u16::try_from(port).unwrap()));
        if let Ok(listener) = bound {
            return listener.local_addr().unwrap();
        }
    }
}

/// An engine with its secrets' sender.
pub struct Running {
    pub engine: Engine,
    pub secrets: watch::Sender<Arc<Secrets>>,
}

pub fn start(config: RuntimeConfig, secrets: Secrets) -> Running {
    start_with(
        config,
        secrets,
        EngineOptions { workers: 2, drain_time: Duration::from_secs(2), ..EngineOptions::default() },
    )
}

pub fn start_with(config: RuntimeConfig, secrets: Secrets, options: EngineOptions) -> Running {
    let (sender, receiver) = watch::channel(Arc::new(secrets));
    let engine = Engine::start(options, receiver).unwrap();
    engine.apply(Arc::new(config)).unwrap();
    Running { engine, secrets: sender }
}

/// Every connection was meant for this address.
pub fn meant_for(address: SocketAddr) -> EngineOptions {
    EngineOptions {
        workers: 1,
        drain_time: Duration::from_secs(2),
        original_dst: OriginalDst::Function(Arc::new(move |_, _| Some(address))),
        ..EngineOptions::default()
    }
}

pub fn config(listeners: Vec<Listener>, clusters: Vec<(Cluster, Option<EndpointSet>)>) -> RuntimeConfig {
    let mut c = RuntimeConfig { generation: 1, ..RuntimeConfig::default() };
    let mut all = Listeners::default();
    for l in listeners {
        let l = Arc::new(l);
        all.by_address.insert(l.address, Arc::clone(&l));
        all.by_name.insert(Arc::clone(&l.name), l);
    }
    c.listeners = all;
    for (cluster, set) in clusters {
        if let Some(set) = set {
            c.endpoints.insert(Arc::clone(&cluster.name), Arc::new(set));
        }
        c.clusters.insert(Arc::clone(&cluster.name), Arc::new(cluster));
    }
    c
}

pub fn cluster(name: &str) -> Cluster {
    Cluster {
        name: name.into(),
        stat_name: name.into(),
        discovery: Discovery::Static,
        connect_timeout: Duration::from_secs(2),
        lb: LbPolicy::LeastRequest { choices: 2, bias: 1.0 },
        panic_threshold: 50.0,
        locality_weighted: false,
        slow_start: None,
        subsets: None,
        health_checks: Vec::new(),
        http: HttpProtocol::Http1,
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        transport: Transport { matches: Vec::new(), default: Arc::new(TransportSocket::Raw) },
        auto_sni: false,
        auto_sni_header: None,
        limits: CircuitLimits::default(),
        high_limits: CircuitLimits::default(),
        outlier: None,
        max_requests_per_connection: None,
        idle_timeout: Some(Duration::from_secs(3600)),
        max_connection_duration: None,
        max_stream_duration: None,
        tcp_keepalive: None,
        bind: None,
        bind_additional: Vec::new(),
        socket_options: Vec::new(),
        pool_per_downstream: false,
        dns: DnsOptions::default(),
        original_dst: carrick_proxy_core::model::cluster::OriginalDst::default(),
        metadata: Metadata::default(),
    }
}

pub fn endpoints(addresses: &[SocketAddr]) -> EndpointSet {
    let hosts: Vec<usize> = (0..addresses.len()).collect();
    EndpointSet {
        endpoints: addresses
            .iter()
            .map(|a| Endpoint {
                address: EndpointAddress::Socket(*a),
                hostname: "".into(),
                weight: 1,
                health: Health::Healthy,
                priority: 0,
                locality: 0,
                transport: TransportIndex::DEFAULT,
                metadata: Metadata::default(),
            })
            .collect(),
        priorities: vec![Priority {
            localities: vec![LocalityEndpoints { locality: Locality::default(), weight: None, hosts: hosts.clone() }],
            hosts,
            uniform: true,
        }],
        overprovisioning_factor: 140,
    }
}

pub fn listener(name: &str, address: SocketAddr, direction: Direction, chains: Vec<FilterChain>) -> Listener {
    let chains: Vec<Arc<FilterChain>> = chains.into_iter().map(Arc::new).collect();
    let tls = chains.iter().any(|c| &*c.matching.transport_protocol == "tls");
    let http = chains.iter().any(|c| c.matching.application_protocols.iter().any(|p| &**p == "http/1.1"));
    let on = |yes: bool| yes.then(Inspector::default);
    Listener {
        name: name.into(),
        address,
        additional_addresses: Vec::new(),
        bind_to_port: true,
        use_original_dst: false,
        restore_original_dst: false,
        direction,
        inspectors: Inspectors { tls: on(tls), http: on(http), proxy: None },
        listener_filters_timeout: None,
        continue_on_listener_filters_timeout: true,
        index: index(&chains),
        chains,
        default_chain: None,
        backlog: None,
        transparent: false,
        original_src: None,
        freebind: false,
        tcp_keepalive: None,
        access_logs: Vec::new(),
        metadata: Metadata::default(),
    }
}

/// An index by transport protocol and application protocols only.
fn index(chains: &[Arc<FilterChain>]) -> ChainIndex {
    let any = || ipnet::IpNet::V4(ipnet::Ipv4Net::default());
    let mut transports: Vec<(Box<str>, TextLevel<SourceLevel>)> = Vec::new();
    for (i, c) in chains.iter().enumerate() {
        let source = || {
            let ports = IpLevel(vec![(any(), vec![(0u16, i)])]);
            IpLevel(vec![(any(), SourceTypes { any: Some(ports), ..SourceTypes::default() })])
        };
        let protocols = if c.matching.application_protocols.is_empty() {
            vec!["".into()]
        } else {
            c.matching.application_protocols.clone()
        };
        let entries = protocols.into_iter().map(|p| (p, source()));
        match transports.iter_mut().find(|(t, _)| *t == c.matching.transport_protocol) {
            Some((_, level)) => level.0.extend(entries),
            None => transports.push((c.matching.transport_protocol.clone(), TextLevel(entries.collect()))),
        }
    }
    let names = NameLevel { any: Some(TextLevel(transports)), ..NameLevel::default() };
    ChainIndex { ports: HashMap::from([(0u16, IpLevel(vec![(any(), names)]))]) }
}

pub fn chain(name: &str, kind: ChainKind) -> FilterChain {
    FilterChain {
        name: name.into(),
        matching: ChainMatch::default(),
        tls: None,
        transport_socket_connect_timeout: None,
        on_new_connection: Vec::new(),
        sni_port: None,
        rbac: Vec::new(),
        ext_authz: Vec::new(),
        stats: None,
        kind,
        metadata: Metadata::default(),
    }
}

pub fn tcp(cluster: &str) -> ChainKind {
    ChainKind::Tcp(TcpProxy {
        tunnel: None,
        subset: None,
        cluster: TcpTarget::Cluster(cluster.into()),
        stat_prefix: cluster.into(),
        idle_timeout: Some(Duration::from_secs(3600)),
        max_connect_attempts: 1,
        max_connection_duration: None,
        hash_source_ip: false,
        access_logs: Vec::new(),
    })
}

pub fn http(table: RouteTable) -> ChainKind {
    ChainKind::Http(Box::new(hcm(table)))
}

pub fn hcm(table: RouteTable) -> HttpConnectionManager {
    HttpConnectionManager {
        codec: Codec::Auto,
        stat_prefix: "test".into(),
        routes: RouteSource::Inline(Arc::new(table)),
        filters: vec![HttpFilter::Router(Router::default())],
        server_name: http::HeaderValue::from_static("istio-envoy"),
        server_header: ServerHeader::Overwrite,
        via: "".into(),
        xfcc: ForwardClientCert {
            mode: XfccMode::AppendForward,
            subject: true,
            cert: false,
            chain: false,
            dns: true,
            uri: true,
        },
        path: PathOptions { normalize: true, ..PathOptions::default() },
        host: HostOptions::default(),
        addresses: AddressOptions::default(),
        request_id: RequestIdOptions { generate: true, preserve_external: false, always_set_in_response: false },
        scheme_overwrite: None,
        stream_idle_timeout: None,
        request_headers_timeout: None,
        idle_timeout: Some(Duration::from_secs(3600)),
        max_connection_duration: None,
        max_stream_duration: None,
        max_requests_per_connection: None,
        max_headers_count: 100,
        max_request_headers_bytes: 60 * 1024,
        underscores: Underscores::Allow,
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        upgrades: vec![Upgrade { kind: "websocket".into(), enabled: true }],
        proxy_100_continue: false,
        access_logs: Vec::new(),
        tracing: None,
    }
}

/// Everything to one cluster.
pub fn all_to(cluster: &str) -> RouteTable {
    route_table(forward(cluster))
}

pub fn forward(cluster: &str) -> RouteAction {
    RouteAction {
        target: Target::Cluster(cluster.into()),
        cluster_not_found: http::StatusCode::SERVICE_UNAVAILABLE,
        timeout: None,
        idle_timeout: None,
        grpc_timeout: None,
        max_stream_duration: None,
        retry: None,
        path_rewrite: None,
        host_rewrite: None,
        append_x_forwarded_host: false,
        high_priority: false,
        hash: Vec::new(),
        upgrades: Vec::new(),
        terminate_connect: None,
        mirrors: Arc::from([]),
        subset: None,
    }
}

pub fn route_table(action: RouteAction) -> RouteTable {
    let route = Route {
        name: "default".into(),
        matching: RouteMatch {
            path: PathMatch::Prefix { value: "/".into(), ignore_case: false },
            headers: Vec::new(),
            query: Vec::new(),
            cookies: Vec::new(),
            grpc: false,
            tls_presented: None,
            tls_validated: None,
            fraction: None,
            metadata: Vec::new(),
        },
        action: Action::Forward(Box::new(action)),
        request: Default::default(),
        response: Default::default(),
        per_filter: PerFilter::default(),
        metadata: Metadata::default(),
        stat_prefix: "".into(),
        tracing: Default::default(),
    };
    let host = VirtualHost {
        name: "all".into(),
        domains: vec!["*".into()],
        routes: vec![Arc::new(route)],
        require_tls: RequireTls::None,
        request: Default::default(),
        response: Default::default(),
        include_request_attempt_count: false,
        include_attempt_count_in_response: false,
        retry: None,
        per_filter: PerFilter::default(),
        metadata: Metadata::default(),
    };
    RouteTable {
        name: "table".into(),
        virtual_hosts: vec![Arc::new(host)],
        domains: Domains { any: Some(0), ..Domains::default() },
        ..RouteTable::default()
    }
}

pub fn retry_policy() -> RetryPolicy {
    RetryPolicy {
        on: RetryOn::CONNECT_FAILURE.with(RetryOn::REFUSED_STREAM),
        num_retries: 2,
        per_try_timeout: None,
        avoid_previous_hosts: true,
        host_selection_attempts: 5,
        status_codes: Vec::new(),
        retriable_headers: Vec::new(),
        retriable_request_headers: Vec::new(),
        backoff_base: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        per_try_idle_timeout: None,
        previous_priorities: None,
        rate_limited: None,
    }
}

/// A plain HTTP listener that sends everything to `to`.
pub fn plain_proxy(at: SocketAddr, to: &[SocketAddr]) -> RuntimeConfig {
    config(
        vec![listener("l", at, Direction::Outbound, vec![chain("c", http(all_to("app")))])],
        vec![(cluster("app"), Some(endpoints(to)))],
    )
}

// ---- certificates

pub struct Mesh {
    pub authority: Authority,
    _dir: tempfile::TempDir,
}

impl Mesh {
    pub fn new() -> Mesh {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path(), CaOptions::default(), SystemTime::now()).unwrap();
        Mesh { authority, _dir: dir }
    }

    pub fn identity(&self, account: &str) -> Identity {
        let td = TrustDomain::new("cluster.local").unwrap();
        let id = SpiffeId::istio(&td, "test", account);
        self.authority.issue(&Subject::Workload(id), None, SystemTime::now()).unwrap()
    }

    pub fn secrets(&self, account: &str) -> Secrets {
        Secrets {
            by_name: HashMap::from([
                ("default".into(), Secret::Identity(Arc::new(self.identity(account)))),
                ("ROOTCA".into(), Secret::Trust(Arc::new(self.authority.roots()))),
            ]),
            ..Secrets::default()
        }
    }
}

fn san(matcher: fn(Text) -> StringMatcher, value: &str) -> SanMatcher {
    SanMatcher { kind: SanKind::Uri, matcher: matcher(Text { value: value.into(), ignore_case: false }) }
}

pub fn server_tls(alpn: &[&str]) -> DownstreamTls {
    DownstreamTls {
        certificates: [CertificateSource::Secret("default".into())].into(),
        validation: Some(Validation::of("ROOTCA", [san(StringMatcher::Prefix, "spiffe://cluster.local/")].into())),
        require_client_certificate: true,
        require_sni: false,
        alpn: alpn.iter().map(|a| Name::from(*a)).collect(),
        params: Default::default(),
    }
}

pub fn client_tls(account: &str, alpn: &[&str]) -> TransportSocket {
    TransportSocket::Tls(UpstreamTls {
        sni: Some("outbound_.80_._.app.test.svc.cluster.local".into()),
        auto_host_sni: false,
        auto_sni_san_validation: false,
        auto_san_of_requests: false,
        certificate: Some(CertificateSource::Secret("default".into())),
        validation: Some(Validation::of(
            "ROOTCA",
            [san(StringMatcher::Exact, &format!("spiffe://cluster.local/ns/test/sa/{account}"))].into(),
        )),
        alpn: alpn.iter().map(|a| Name::from(*a)).collect(),
        params: Default::default(),
    })
}

// ---- applications and clients

/// An HTTP/1 and HTTP/2 application that answers with what it saw.
pub async fn echo_app() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
                let _ = builder.serve_connection_with_upgrades(TokioIo::new(tcp), service_fn(echo)).await;
            });
        }
    });
    (address, connections)
}

async fn echo(
    mut request: Request<Incoming>,
) -> Result<Response<http_body_util::combinators::BoxBody<bytes::Bytes, hyper::Error>>, Infallible> {
    let text = |s: String| Full::new(bytes::Bytes::from(s)).map_err(|e| match e {}).boxed();
    if request.headers().contains_key("upgrade") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut buf = [0; 1024];
            while let Ok(n @ 1..) = io.read(&mut buf).await {
                io.write_all(&buf[..n]).await.unwrap();
            }
        });
        return Ok(Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(text(String::new()))
            .unwrap());
    }
    let path = request.uri().path().to_string();
    if path == "/mirror" {
        // Streams back what comes, trailers included, as gRPC does.
        return Ok(Response::builder()
            .header("content-type", "application/grpc")
            .body(request.into_body().boxed())
            .unwrap());
    }
    if path == "/slow" {
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    if path == "/fail" {
        return Ok(Response::builder().status(503).body(text("no".into())).unwrap());
    }
    let mut seen = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (k, v) in request.headers() {
        seen += &format!("{k}: {}\n", String::from_utf8_lossy(v.as_bytes()));
    }
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    seen += &format!("\n{}", String::from_utf8_lossy(&body));
    Ok(Response::builder()
        .header("server", "app")
        .header("connection", "keep-alive, x-hop")
        .header("x-hop", "1")
        .body(text(seen))
        .unwrap())
}

/// Answers the requests of one connection at a time through `handle`, byte for byte.
pub async fn raw_server<F, R>(handle: F) -> SocketAddr
where
    F: Fn(usize, TcpStream) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut n = 0;
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tokio::spawn(handle(n, tcp));
            n += 1;
        }
    });
    address
}

/// Reads one HTTP/1 request head (no body) from a socket; false at its end.
pub async fn read_head(tcp: &mut TcpStream) -> bool {
    let mut seen = Vec::new();
    let mut byte = [0; 1];
    while !seen.ends_with(b"\r\n\r\n") {
        match tcp.read(&mut byte).await {
            Ok(1..) => seen.push(byte[0]),
            _ => return false,
        }
    }
    true
}

/// A keep-alive HTTP/1 client connection.
pub struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<bytes::Bytes>>,
}

impl Client {
    pub async fn connect(to: SocketAddr) -> Client {
        let tcp = TcpStream::connect(to).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.unwrap();
        tokio::spawn(connection);
        Client { sender }
    }

    pub async fn send(
        &mut self,
        request: http::request::Builder,
        body: &str,
    ) -> Result<(http::response::Parts, String), hyper::Error> {
        self.sender.ready().await?;
        let request = request.header("host", "app.test").body(Full::new(bytes::Bytes::from(body.to_string()))).unwrap();
        let (parts, body) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok((parts, String::from_utf8_lossy(&body).into_owned()))
    }

    pub async fn get(&mut self, path: &str) -> Result<(http::response::Parts, String), hyper::Error> {
        self.send(Request::get(path), "").await
    }
}

/// One request on a connection of its own.
pub async fn get(to: SocketAddr, path: &str) -> (u16, String) {
    let (parts, body) = Client::connect(to).await.get(path).await.unwrap();
    (parts.status.as_u16(), body)
}

/// Waits for a condition, at most five seconds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not reached: {what}");
}
