//! The same configuration given to a real Envoy and to our engine, the same requests to both, and what differs.
//!
//! How to use it: describe listeners in Envoy's own JSON with [`Setup`] (filters, virtual hosts, more clusters; cluster `app` echoes
//! what it saw), requests with [`Ask`], and call [`compare`] with pairs of both. It panics with every difference in status, headers
//! and body, and returns what both answered, so that a test can say what it expected. One Envoy serves all setups of a call, so
//! put many into one. Envoy is found by `CARRICK_ENVOY`, then as `envoy` in `PATH`; without it these tests fail.
//!
//! Invariant: what is different each time (dates, request ids, service times) is taken out before comparing, and nothing else but the
//! header that `app` nominates in `connection`: Envoy passes it on, and we do not (RFC 9110 §7.6.1).

use crate::support::*;
use carrick_envoy_json::from_json;
use carrick_proxy::{EngineOptions, Secrets};
use carrick_proxy_core::store::type_url;
use carrick_proxy_core::{ConfigStore, Rejection};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::google::protobuf::Any;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A listener with one HTTP connection manager.
#[derive(Clone)]
pub struct Setup {
    /// For the report.
    pub name: &'static str,
    /// HTTP filters before the router.
    pub filters: Vec<Value>,
    /// Virtual hosts; by default everything goes to `app`.
    pub hosts: Value,
    /// More fields of the connection manager.
    pub manager: Value,
    /// More fields of the route configuration.
    pub routes: Value,
    /// Network filters before the connection manager.
    pub network: Vec<Value>,
    /// More fields of the listener.
    pub more: Value,
    /// More clusters; one name means one cluster in all setups of a call.
    pub clusters: Vec<Value>,
}

impl Setup {
    pub fn new(name: &'static str) -> Self {
        let all = json!([{"name": "all", "domains": ["*"], "routes": [
            {"name": "default", "match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]);
        Self {
            name,
            filters: Vec::new(),
            hosts: all,
            manager: json!({}),
            routes: json!({}),
            network: Vec::new(),
            more: json!({}),
            clusters: Vec::new(),
        }
    }

    /// With one more HTTP filter: its name (after `envoy.filters.http.`), its type (after `envoy.extensions.filters.http.`), its fields.
    pub fn filter(mut self, name: &str, kind: &str, config: Value) -> Self {
        let typed = typed(&format!("envoy.extensions.filters.http.{kind}"), config);
        self.filters.push(json!({"name": format!("envoy.filters.http.{name}"), "typed_config": typed}));
        self
    }

    pub fn hosts(mut self, hosts: Value) -> Self {
        self.hosts = hosts;
        self
    }

    pub fn cluster(mut self, cluster: Value) -> Self {
        self.clusters.push(cluster);
        self
    }

    /// As a listener resource.
    pub fn listener(&self, at: SocketAddr) -> Value {
        let mut filters = self.filters.clone();
        let router = typed("envoy.extensions.filters.http.router.v3.Router", json!({}));
        filters.push(json!({"name": "envoy.filters.http.router", "typed_config": router}));
        let routes = merged(json!({"name": "routes", "virtual_hosts": self.hosts}), &self.routes);
        let manager = json!({
            "stat_prefix": "lab", "server_name": "lab", "normalize_path": true,
            "route_config": routes, "http_filters": filters,
        });
        let manager = merged(manager, &self.manager);
        let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let mut network = self.network.clone();
        network.push(json!({
            "name": "envoy.filters.network.http_connection_manager", "typed_config": typed(kind, manager)}));
        let listener = json!({
            "name": self.name,
            "address": {"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}},
            "filter_chains": [{"filters": network}],
        });
        merged(listener, &self.more)
    }
}

/// A message with its type.
pub fn typed(kind: &str, fields: Value) -> Value {
    merged(json!({"@type": format!("type.googleapis.com/{kind}")}), &fields)
}

fn merged(mut base: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        base[key] = value.clone();
    }
    base
}

/// A cluster with fixed addresses.
pub fn static_cluster(name: &str, to: SocketAddr) -> Value {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address":
            {"socket_address": {"address": to.ip().to_string(), "port_value": to.port()}}}}]}]},
    })
}

/// The same, spoken to in HTTP/2.
pub fn h2_cluster(name: &str, to: SocketAddr) -> Value {
    let options = typed(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        json!({"explicit_http_config": {"http2_protocol_options": {}}}),
    );
    let more = json!({"typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}});
    merged(static_cluster(name, to), &more)
}

/// A request.
#[derive(Debug, Clone)]
pub struct Ask {
    pub method: &'static str,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Ask {
    pub fn get(path: &str) -> Self {
        Self::with("GET", path)
    }

    pub fn with(method: &'static str, path: &str) -> Self {
        Self { method, path: path.to_owned(), headers: Vec::new(), body: String::new() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: &str) -> Self {
        self.body = body.to_owned();
        self
    }
}

/// An answer, or status 0 and the reason why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// Runs every request against both, and panics with what differs. The answers come back in the same order.
pub async fn compare(cases: &[(Setup, Vec<Ask>)]) -> Vec<Vec<Seen>> {
    let (app, _) = echo_app().await;
    let setups: Vec<&Setup> = cases.iter().map(|(setup, _)| setup).collect();
    let envoy = Envoy::start(&setups, app).await;
    let (_native, ports) = native(&setups, app);
    let mut differences = Vec::new();
    let mut answers = Vec::new();
    for (i, (setup, asks)) in cases.iter().enumerate() {
        let mut seen = Vec::new();
        for ask in asks {
            let (theirs, ours) = (send(envoy.ports[i], ask).await, send(ports[i], ask).await);
            if theirs != ours {
                differences.push(format!("{}: {ask:?}\n  Envoy: {theirs:?}\n  ours:  {ours:?}", setup.name));
            }
            seen.push(theirs);
        }
        answers.push(seen);
    }
    assert!(
        differences.is_empty(),
        "{} differences\n{}\n{}",
        differences.len(),
        differences.join("\n"),
        envoy.log_text()
    );
    answers
}

/// Our engine with these setups, and where each listens.
pub fn native(setups: &[&Setup], app: SocketAddr) -> (Running, Vec<SocketAddr>) {
    native_as(setups, app, EngineOptions { workers: 2, drain_time: Duration::from_secs(2), ..EngineOptions::default() })
}

/// The same, under a name of its own.
pub fn native_as(setups: &[&Setup], app: SocketAddr, options: EngineOptions) -> (Running, Vec<SocketAddr>) {
    let ports: Vec<SocketAddr> = setups.iter().map(|_| free_port()).collect();
    let mut store = ConfigStore::new();
    let listeners: Vec<Value> = setups.iter().zip(&ports).map(|(s, at)| s.listener(*at)).collect();
    let text = |e: Vec<Rejection>| panic!("refused: {}", carrick_proxy_core::nack_text(&e));
    apply::<Cluster>(&mut store, type_url::CLUSTER, &clusters(setups, app)).unwrap_or_else(text);
    apply::<Listener>(&mut store, type_url::LISTENER, &listeners).unwrap_or_else(text);
    let config = carrick_proxy_core::RuntimeConfig::clone(&store.runtime());
    (start_with(config, Secrets { by_name: HashMap::new(), ..Secrets::default() }, options), ports)
}

/// What our engine says to a setup that it does not take.
pub fn refused(setup: &Setup) -> String {
    let mut store = ConfigStore::new();
    let result = apply::<Listener>(&mut store, type_url::LISTENER, &[setup.listener(free_port())]);
    result.map_or_else(|e| carrick_proxy_core::nack_text(&e), |()| String::new())
}

fn apply<M: prost::Name + Default>(store: &mut ConfigStore, kind: &str, all: &[Value]) -> Result<(), Vec<Rejection>> {
    let resources = all.iter().map(|json| {
        let message: M = from_json(json).unwrap_or_else(|e| panic!("{e}\n{json:#}"));
        let name = json["name"].as_str().expect("a name");
        (name.into(), Any { type_url: M::type_url(), value: message.encode_to_vec() })
    });
    store.apply(kind, resources.collect(), &[])
}

fn clusters(setups: &[&Setup], app: SocketAddr) -> Vec<Value> {
    let mut all = BTreeMap::from([("app".to_owned(), static_cluster("app", app))]);
    for cluster in setups.iter().flat_map(|s| &s.clusters) {
        all.insert(cluster["name"].as_str().expect("a name").to_owned(), cluster.clone());
    }
    all.into_values().collect()
}

/// A running Envoy.
pub struct Envoy {
    child: Child,
    pub ports: Vec<SocketAddr>,
    dir: tempfile::TempDir,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Envoy {
    pub async fn start(setups: &[&Setup], app: SocketAddr) -> Self {
        let ports: Vec<SocketAddr> = setups.iter().map(|_| free_port()).collect();
        let dir = tempfile::tempdir().expect("tempdir");
        let listeners: Vec<Value> = setups.iter().zip(&ports).map(|(s, at)| s.listener(*at)).collect();
        let bootstrap = json!({
            "node": {"id": "lab", "cluster": "lab"},
            // Spans are sent at once.
            "layered_runtime": {"layers": [{"name": "lab", "static_layer": {"tracing.opentelemetry.min_flush_spans": 1}}]},
            "static_resources": {"listeners": listeners, "clusters": clusters(setups, app)},
        });
        let config = dir.path().join("bootstrap.json");
        std::fs::write(&config, bootstrap.to_string()).expect("write bootstrap");
        let output = std::fs::File::create(dir.path().join("log")).expect("log file");
        let binary = std::env::var_os("CARRICK_ENVOY").unwrap_or_else(|| "envoy".into());
        let child = Command::new(binary)
            .args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--file-flush-interval-msec",
                "50",
                "-l",
                "warning",
                "-c",
            ])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .expect("Envoy: set CARRICK_ENVOY or put it into PATH");
        let mut envoy = Self { child, ports, dir };
        let start = Instant::now();
        for at in envoy.ports.clone() {
            while tokio::net::TcpStream::connect(at).await.is_err() {
                let ended = envoy.child.try_wait().expect("a child");
                let late = start.elapsed() > Duration::from_secs(20);
                assert!(ended.is_none() && !late, "Envoy does not serve: {ended:?}\n{}", envoy.log_text());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        envoy
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// Sends a request on a connection of its own.
pub async fn send(to: SocketAddr, ask: &Ask) -> Seen {
    let mut request = http::Request::builder().method(ask.method).uri(&ask.path);
    for (name, value) in &ask.headers {
        request = request.header(name, value);
    }
    let result = Client::connect(to).await.send(request, &ask.body).await;
    match result {
        Err(_) => Seen { status: 0, headers: BTreeMap::new(), body: "no answer".to_owned() },
        Ok((parts, body)) => {
            let mut headers: BTreeMap<String, String> = BTreeMap::new();
            for (name, value) in &parts.headers {
                if !["date", "x-envoy-upstream-service-time", "x-request-id", "x-hop"].contains(&name.as_str()) {
                    let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                    headers.entry(name.to_string()).and_modify(|v| *v += &format!(", {value}")).or_insert(value);
                }
            }
            // Where our engine and Envoy frame differently the body says enough.
            if headers.remove("transfer-encoding").is_none() && !body.is_empty() {
                headers.remove("content-length");
            }
            Seen { status: parts.status.as_u16(), headers, body: stable(&body) }
        }
    }
}

/// An echoed request in a fixed order, without its id and without the length that Envoy writes on some requests without a body.
fn stable(body: &str) -> String {
    let mut lines: Vec<&str> =
        body.lines().filter(|l| !l.starts_with("x-request-id: ") && *l != "content-length: 0").collect();
    if lines.len() > 1 {
        lines.sort_unstable();
    }
    lines.join("\n").trim().to_owned()
}
