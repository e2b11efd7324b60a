//! Secret discovery on a Unix socket, asked as Envoy asks.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carrick_agent::secret_service;
use carrick_agent::secrets::SecretStore;
use carrick_pki::Subject;
use carrick_runtime::drain;
use carrick_xds::TypeUrl;
use carrick_xds::client::{Connector, open_channel};
use carrick_xds::server::{ListenOptions, serve_unix};
use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use envoy_types::pb::google::protobuf::Any;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Channel;

use crate::lab::{Plane, workload};

const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(200);

struct Served {
    plane: Plane,
    store: Arc<SecretStore>,
    client: SecretDiscoveryServiceClient<Channel>,
    _trigger: drain::DrainTrigger,
}

async fn serve() -> Served {
    let plane = Plane::start().await;
    let store = SecretStore::new(plane.folder.path().join("root.pem"));
    let path = plane.folder.path().join("SDS");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let (trigger, drain) = drain::channel();
    let routes = Routes::new(secret_service(Arc::clone(&store)));
    tokio::spawn(serve_unix(listener, routes, ListenOptions::default(), drain.clone()));
    tokio::spawn(Arc::clone(&store).watch_files(drain));
    let channel = open_channel(&Connector::Unix(path)).await.unwrap();
    Served { plane, store, client: SecretDiscoveryServiceClient::new(channel), _trigger: trigger }
}

impl Served {
    fn issue(&self) -> String {
        let identity = self.plane.ca.authority.issue(&Subject::Workload(workload()), None, SystemTime::now()).unwrap();
        let chain = identity.chain_pem();
        self.store.set_identity(Arc::new(identity), self.plane.ca.authority.roots());
        chain
    }
}

fn secret(any: &Any) -> Secret {
    assert_eq!(any.type_url, TypeUrl::Secret.as_str());
    Secret::decode(any.value.as_slice()).unwrap()
}

fn chain(secret: &Secret) -> String {
    match &secret.r#type {
        Some(secret::Type::TlsCertificate(pair)) => {
            assert!(pair.private_key.is_some());
            text(pair.certificate_chain.as_ref().unwrap().specifier.as_ref())
        }
        Some(secret::Type::ValidationContext(context)) => text(context.trusted_ca.as_ref().unwrap().specifier.as_ref()),
        other => panic!("{other:?}"),
    }
}

fn text(specifier: Option<&Specifier>) -> String {
    match specifier {
        Some(Specifier::InlineBytes(bytes)) => String::from_utf8(bytes.clone()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn state_of_the_world() {
    let mut served = serve().await;
    let (requests, queue) = mpsc::channel(8);
    let ask = |names: &[&str], nonce: &str| DiscoveryRequest {
        type_url: TypeUrl::Secret.as_str().to_owned(),
        resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    };
    requests.send(ask(&["default"], "")).await.unwrap();
    let mut answers = served.client.stream_secrets(ReceiverStream::new(queue)).await.unwrap().into_inner();
    // Nothing yet: the stream waits instead of answering with nothing.
    assert!(tokio::time::timeout(SHORT, answers.message()).await.is_err());
    let first = served.issue();
    let answer = tokio::time::timeout(LONG, answers.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.resources.len(), 1);
    assert_eq!(chain(&secret(&answer.resources[0])), first);
    // An acknowledgement is not answered; a rotation is pushed.
    requests.send(ask(&["default"], &answer.nonce)).await.unwrap();
    assert!(tokio::time::timeout(SHORT, answers.message()).await.is_err());
    let second = served.issue();
    let pushed = tokio::time::timeout(LONG, answers.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(chain(&secret(&pushed.resources[0])), second);
    assert_ne!(pushed.version_info, answer.version_info);
    // A late acknowledgement of the first is ignored; more names are answered with what is new.
    requests.send(ask(&[], &answer.nonce)).await.unwrap();
    requests.send(ask(&["default", "ROOTCA"], &pushed.nonce)).await.unwrap();
    let more = tokio::time::timeout(LONG, answers.message()).await.unwrap().unwrap().unwrap();
    let names: Vec<_> = more.resources.iter().map(|r| secret(r).name).collect();
    assert_eq!(names, ["ROOTCA"]);
    assert_eq!(chain(&secret(&more.resources[0])), served.plane.ca.authority.roots().to_pem());
}

#[tokio::test]
async fn delta_with_files() {
    let mut served = serve().await;
    served.issue();
    let identity = served.plane.other("files");
    let path = |name: &str| served.plane.folder.path().join(name);
    let name = format!("file-cert:{}~{}", path("c.pem").display(), path("k.pem").display());
    let (requests, queue) = mpsc::channel(8);
    let request = DeltaDiscoveryRequest {
        type_url: TypeUrl::Secret.as_str().to_owned(),
        resource_names_subscribe: vec![name.clone(), "kubernetes://nobody".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(request).await.unwrap();
    let mut answers = served.client.delta_secrets(ReceiverStream::new(queue)).await.unwrap().into_inner();
    assert!(tokio::time::timeout(SHORT, answers.message()).await.is_err(), "no such files, no such secrets");
    std::fs::write(path("c.pem"), identity.chain_pem()).unwrap();
    std::fs::write(path("k.pem"), identity.key.to_pem()).unwrap();
    let answer = tokio::time::timeout(LONG, answers.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.resources.len(), 1);
    assert_eq!(answer.resources[0].name, name);
    assert_eq!(chain(&secret(answer.resources[0].resource.as_ref().unwrap())), identity.chain_pem());
}
