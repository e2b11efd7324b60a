//! The Workload API, asked by the `spiffe` package of PyPI and by hand.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carrick_agent::secrets::SecretStore;
use carrick_agent::workload_api;
use carrick_base::TrustDomain;
use carrick_pki::Subject;
use carrick_runtime::drain::{self, DrainTrigger};
use carrick_xds::client::{Connector, open_channel};
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::lab::{Plane, workload};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/workload_api.py");

struct Served {
    plane: Plane,
    store: Arc<SecretStore>,
    socket: std::path::PathBuf,
    _trigger: DrainTrigger,
}

async fn serve() -> Served {
    let plane = Plane::start().await;
    let store = SecretStore::new(plane.folder.path().join("root.pem"));
    let socket = plane.folder.path().join("api");
    let listener = workload_api::bind(&socket).unwrap().expect("nobody else is there");
    let (trigger, drain) = drain::channel();
    tokio::spawn(workload_api::serve(listener, Arc::clone(&store), TrustDomain::default(), drain));
    Served { plane, store, socket, _trigger: trigger }
}

impl Served {
    /// A new identity, and its serial number.
    fn issue(&self) -> String {
        let identity = self.plane.ca.authority.issue(&Subject::Workload(workload()), None, SystemTime::now()).unwrap();
        let serial = identity.serial.clone();
        self.store.set_identity(Arc::new(identity), self.plane.ca.authority.roots().clone());
        serial
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spiffe_package_of_python_is_told_each_identity() {
    let served = serve().await;
    let mut command = tokio::process::Command::new("python3");
    command.arg(SCRIPT).arg(&served.socket).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    if let Some(path) = std::env::var_os("CARRICK_PYTHONPATH") {
        command.env("PYTHONPATH", path);
    }
    // It asks before there is anything to be told, and waits.
    let mut child = command.spawn().expect("python3");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = async || -> Value {
        let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await.expect("in time").unwrap();
        serde_json::from_str(&line.expect("a line: is the package there? make test, or tools/install test")).unwrap()
    };
    for _ in 0..3 {
        let serial = served.issue();
        let wanted = serde_json::json!({"id": workload().to_string(), "serial": serial, "key": true});
        assert_eq!(told().await, wanted);
    }
    drop(child.stdin.take());
    assert_eq!(told().await["jwt"], "FetchJwtSvidError", "tokens are refused");
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn an_application_is_told_no_secret_but_its_own() {
    let served = serve().await;
    served.issue();
    let key = served.plane.folder.path().join("token");
    let names = [
        "default".to_owned(),
        "ROOTCA".to_owned(),
        format!("file-root:{}", key.display()),
        "kubernetes://x".to_owned(),
    ];
    let channel = open_channel(&Connector::Unix(served.socket.clone())).await.unwrap();
    let mut client = SecretDiscoveryServiceClient::new(channel);
    let request = DiscoveryRequest { resource_names: names.to_vec(), ..DiscoveryRequest::default() };
    let answer = client.fetch_secrets(request).await.unwrap().into_inner();
    assert_eq!(answer.resources.len(), 2, "identity and roots");
}

#[tokio::test]
async fn another_pod_is_refused() {
    let served = serve().await;
    served.issue();
    let ask = async |program: &str, args: &[&str]| {
        let text = "import socket,sys;s=socket.socket(socket.AF_UNIX);s.settimeout(5);s.connect(sys.argv[1]);\
                    s.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'+bytes(3)+b'\\4'+bytes(5));print(len(s.recv(9)))";
        let mut command = tokio::process::Command::new(program);
        command.args(args).args(["-c", text]).arg(&served.socket).kill_on_drop(true);
        let output = command.output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(ask("python3", &[]).await, "9", "the server's settings");
    assert_ne!(ask("unshare", &["--net", "python3"]).await, "9", "a process in another network namespace");
}

#[tokio::test]
async fn a_request_without_the_header_is_none() {
    let served = serve().await;
    served.issue();
    let channel = open_channel(&Connector::Unix(served.socket.clone())).await.unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchX509SVID");
    let codec = tonic_prost::ProstCodec::<(), workload_api::X509Svids>::default();
    let refused = client.server_streaming(tonic::Request::new(()), path, codec).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
}

#[test]
fn a_socket_that_somebody_answers_on_is_left_alone() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let folder = crate::lab::Folder::new();
    let path = folder.path().join("sub").join("socket");
    let first = workload_api::bind(&path).unwrap();
    assert!(first.is_some());
    assert!(workload_api::bind(&path).unwrap().is_none());
    drop(first);
    assert!(workload_api::bind(&path).unwrap().is_some(), "what a predecessor left is replaced");
}
