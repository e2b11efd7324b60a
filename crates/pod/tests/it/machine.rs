//! An API, a pod network and runners as processes of their own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use carrick_apiserver::{ApiOptions, ApiServer};
use carrick_pod::{HostOptions, ManifestRef, Network, RunOptions, host};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

/// The environment variable that makes this test binary a runner.
const RUN: &str = "CARRICK_POD_TEST_RUN";

pub struct Machine {
    pub data: tempfile::TempDir,
    pub client: Client,
    pub host: HostOptions,
    api: Option<ApiServer>,
    _roots: tokio::sync::watch::Sender<Option<std::sync::Arc<str>>>,
    stop: CancellationToken,
    sync: Option<tokio::task::JoinHandle<()>>,
    number: u8,
}

/// Runs a test on a host of its own: a network namespace that only the threads and children of this test are in. So neither tests nor a live
/// mesh on this machine meet each other's links, rules and cluster IPs.
pub fn on_a_host(test: impl Future<Output = ()>) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success());
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test);
}

/// Only the names of namespaces are seen by everybody.
pub fn network(number: u8, process: u32) -> Network {
    Network { netns_prefix: format!("cki{process}n{number}"), ..Network::default() }
}

impl Machine {
    pub async fn new(number: u8) -> Machine {
        log();
        let data = tempfile::tempdir().unwrap();
        let (roots, root_pem) =
            tokio::sync::watch::channel(Some("-----BEGIN CERTIFICATE-----\nroot of the test\n".into()));
        let mut api = ApiOptions::new(data.path(), 0);
        api.root_pem = root_pem;
        api.pods = Some(std::sync::Arc::new(carrick_pod::LocalPods::start(data.path()).unwrap()));
        let api = ApiServer::start(api).await.unwrap();
        let kubeconfig = kube::config::Kubeconfig::read_from(api.kubeconfig()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let hosts = data.path().join("hosts");
        std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
        let mut host = HostOptions::new(data.path());
        host.network = network(number, std::process::id());
        host.hosts_file = Some(hosts);
        host.node_name = Some(format!("node-{number}"));
        let std::net::SocketAddr::V4(address) = api.address() else { unreachable!() };
        host.api_address = Some(address);
        host::setup(&host).await.unwrap();
        host::setup(&host).await.unwrap();
        let stop = CancellationToken::new();
        let sync = tokio::spawn(host::sync(host.clone(), client.clone(), stop.clone()));
        Machine { data, client, host, api: Some(api), _roots: roots, stop, sync: Some(sync), number }
    }

    pub async fn namespace(&self, name: &str, labels: Value) {
        let object: Namespace = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap();
        Api::all(self.client.clone()).create(&PostParams::default(), &object).await.unwrap();
        // Its default service account comes from a controller.
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(self.client.clone(), name);
        eventually("a default service account", async || accounts.get_opt("default").await.unwrap().is_some()).await;
    }

    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub fn run(&self, namespace: &str, name: &str, script: &str) -> Run {
        Run {
            value: json!({
                "data": self.data.path(), "number": self.number, "process": std::process::id(),
                "namespace": namespace, "name": name, "command": ["sh", "-c", script],
                "labels": {"app": name}, "ports": [],
            }),
        }
    }

    /// A service for the pods of label `app: name`.
    pub async fn service(&self, namespace: &str, name: &str, port: u16, target: u16) -> Ipv4Addr {
        let services: Api<k8s_openapi::api::core::v1::Service> = Api::namespaced(self.client.clone(), namespace);
        let service = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": port, "targetPort": target}]},
        }))
        .unwrap();
        let made = services.create(&PostParams::default(), &service).await.unwrap();
        made.spec.unwrap().cluster_ip.unwrap().parse().unwrap()
    }

    pub fn dns(&self) -> Value {
        let text = std::fs::read(self.data.path().join("run/dns.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Pod folders that are left.
    pub fn folders(&self) -> usize {
        std::fs::read_dir(self.data.path().join("run/pods")).map_or(0, Iterator::count)
    }

    /// Ends everything and checks that nothing is left of it.
    pub async fn end(mut self) {
        self.stop.cancel();
        self.sync.take().unwrap().await.unwrap();
        host::teardown(&self.host).await.unwrap();
        let links =
            String::from_utf8(std::process::Command::new("ip").args(["-o", "link"]).output().unwrap().stdout).unwrap();
        assert!(!links.contains(&self.host.network.bridge), "{links}");
        assert!(!links.contains(&self.host.network.link_prefix), "{links}");
        let tables =
            String::from_utf8(std::process::Command::new("nft").args(["list", "tables"]).output().unwrap().stdout)
                .unwrap();
        assert_eq!(tables, "");
        let names = carrick_capture::netns::NetNs::names().unwrap();
        assert!(!names.iter().any(|name| name.starts_with(&self.host.network.netns_prefix)), "{names:?}");
        let hosts = std::fs::read_to_string(self.host.hosts_file.as_ref().unwrap()).unwrap();
        assert_eq!(hosts, "127.0.0.1 localhost\n");
        self.api.take().unwrap().drain(Duration::from_secs(1)).await;
    }
}

/// After a failure too.
impl Drop for Machine {
    fn drop(&mut self) {
        for name in carrick_capture::netns::NetNs::names().unwrap_or_default() {
            if name.starts_with(&self.host.network.netns_prefix)
                && let Ok(namespace) = carrick_capture::netns::NetNs::open(&name)
            {
                let _ = namespace.delete();
            }
        }
    }
}

/// A run to be.
pub struct Run {
    value: Value,
}

impl Run {
    pub fn port(mut self, port: u16) -> Self {
        self.value["ports"] = json!([port.to_string()]);
        self
    }

    pub fn proxy(mut self, program: &Path) -> Self {
        self.value["proxy"] = json!(program);
        self
    }

    /// As a workload that the API has.
    pub fn of(mut self, workload: &str) -> Self {
        self.value["as"] = json!(workload);
        self
    }

    pub fn start(self) -> Child {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        command.args(["--exact", "machine::as_a_runner", "--nocapture"]).env(RUN, self.value.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        // Who wants to see more wants to see it as it comes.
        let watched = std::env::var_os("CARRICK_LOG").is_some();
        command.stderr(if watched { Stdio::inherit() } else { Stdio::piped() });
        command.spawn().unwrap()
    }

    /// Runs to its end: exit code and output.
    pub async fn output(self) -> (Option<i32>, String) {
        let output = self.start().wait_with_output().await.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }
}

/// Not a test of its own: with the variable set, this process is `carrick run`.
#[test]
fn as_a_runner() {
    let Ok(text) = std::env::var(RUN) else { return };
    let value: Value = serde_json::from_str(&text).unwrap();
    let text = |key: &str| value[key].as_str().unwrap().to_owned();
    let command: Vec<OsString> =
        value["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().into()).collect();
    let process = u32::try_from(value["process"].as_u64().unwrap()).unwrap();
    let network = network(u8::try_from(value["number"].as_u64().unwrap()).unwrap(), process);
    let options = RunOptions {
        name: Some(text("name")),
        data_dir: PathBuf::from(text("data")),
        labels: serde_json::from_value::<BTreeMap<String, String>>(value["labels"].clone()).unwrap(),
        ports: value["ports"].as_array().unwrap().iter().map(|port| port.as_str().unwrap().parse().unwrap()).collect(),
        manifest: value["as"].as_str().map(|workload| ManifestRef { path: None, workload: Some(workload.to_owned()) }),
        proxy_binary: value["proxy"].as_str().unwrap_or("/nonexistent").into(),
        sidecar_timeout: Duration::from_secs(10),
        ca_address: format!("{}:15012", network.gateway),
        network,
        ..RunOptions::new(text("namespace"), command)
    };
    log();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let code = match runtime.block_on(carrick_pod::run(options)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    };
    std::process::exit(code);
}

/// What the code under test has to say, at the level of `CARRICK_LOG`.
fn log() {
    let level = std::env::var("CARRICK_LOG").unwrap_or_else(|_| "warn".into());
    // Another test of this process may have been first.
    let _ = carrick_runtime::telemetry::init(&level, false);
}

/// Waits for a condition; a test that never meets it fails with its name.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < end, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// `READY` and `STATUS` as kubectl shows them.
pub fn summary(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let ready = containers.iter().filter(|container| container.ready).count();
    format!("{ready}/{} {}", containers.len(), status.phase.unwrap_or_default())
}

/// A server for `sh -c`: answers every connection on `port` with one line of text.
pub fn server(port: u16, line: &str) -> String {
    format!(
        r#"exec perl -MIO::Socket::INET -e '$SIG{{PIPE}}="IGNORE"; my $l = IO::Socket::INET->new(LocalPort => {port}, Listen => 64, ReuseAddr => 1) or die "listen: $!"; while (my $c = $l->accept) {{ my $r = ""; while ($r !~ /\r\n\r\n/) {{ sysread($c, $r, 4096, length($r)) or last }} my $b = "{line}\n"; print $c "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " . length($b) . "\r\n\r\n" . $b; close $c }}'"#
    )
}

/// A client for `bash -c`: prints what the server says.
pub fn fetch(host: &str, port: u16) -> String {
    format!(
        r#"bash -c 'exec 3<>/dev/tcp/{host}/{port} && printf "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" >&3 && tail -n 1 <&3'"#
    )
}
