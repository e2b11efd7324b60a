//! An agent that keeps files: pushed, placed, reloaded, and looked at, with a control plane that comes and goes.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use carrick_agent::config::EngineKind;
use carrick_agent::delivery::{self, Board, RunningDelivery};
use carrick_pki::tls::{self, ClientAuth, TlsOptions};
use carrick_pki::{Identity, Subject};
use carrick_runtime::clock::SystemClock;
use carrick_xds::delivery::Verdict;
use carrick_xds::{Any, Resource, TypeUrl};
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{GenericSecret, Secret, secret::Type};
use prost::Message as _;

use crate::lab::{Plane, http, until};

/// What a Secret of a certificate holds.
pub fn parts(plane: &Plane, identity: &Identity) -> BTreeMap<String, Vec<u8>> {
    let roots = plane.ca.authority.roots().to_pem();
    [
        ("tls.crt", identity.chain_pem().into_bytes()),
        ("tls.key", identity.key.to_pem().into_bytes()),
        ("ca.crt", roots.into_bytes()),
        ("keystore.p12", b"sealed".to_vec()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

pub fn server(plane: &Plane) -> Identity {
    let subject = Subject::Server { dns: vec!["web.example.com".into()], ips: vec![] };
    plane.ca.authority.issue(&subject, None, SystemTime::now()).unwrap()
}

fn resource(name: &str, parts: BTreeMap<String, Vec<u8>>) -> (TypeUrl, Resource) {
    let source = |bytes| DataSource { specifier: Some(Specifier::InlineBytes(bytes)), ..DataSource::default() };
    let secrets = parts.into_iter().map(|(key, bytes)| (key, source(bytes))).collect();
    let name = format!("files://{name}");
    let generic = GenericSecret { secrets, ..GenericSecret::default() };
    let secret = Secret { name: name.clone(), r#type: Some(Type::GenericSecret(generic)) };
    let body = Any { type_url: TypeUrl::Secret.as_str().to_owned(), value: secret.encode_to_vec() };
    (TypeUrl::Secret, Resource::new(name, body))
}

/// A consumer in this process, which serves what it was given last.
struct Consumer {
    address: std::net::SocketAddr,
    serves: Arc<Mutex<Identity>>,
}

impl Consumer {
    async fn start(first: Identity) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serves = Arc::new(Mutex::new(first));
        let shown = Arc::clone(&serves);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let own = shown.lock().unwrap().clone();
                let alpn: [&str; 0] = [];
                let config = tls::server_config(&own, ClientAuth::None, &alpn, &TlsOptions::default()).unwrap();
                let _ = tokio_rustls::TlsAcceptor::from(config).accept(stream).await;
            }
        });
        Self { address, serves }
    }
}

async fn start(plane: &Plane, yaml: &str) -> RunningDelivery {
    let config = delivery::parse(yaml).unwrap();
    delivery::start(plane.config(EngineKind::Native), config, SystemClock::shared()).await.unwrap()
}

pub fn delivered(board: &Board, consumer: &str) -> Verdict {
    board.all()[consumer].report.delivered.clone().unwrap_or_default()
}

pub fn served(board: &Board, consumer: &str) -> Verdict {
    board.all()[consumer].report.served.clone().unwrap_or_default()
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn delivered_and_served_are_told_apart() {
    let mut plane = Plane::start().await;
    let [one, two, three] = [0; 3].map(|_| server(&plane));
    let dir = plane.folder.path().join("certs");
    let log = plane.folder.path().join("reloads");
    let consumer = Consumer::start(one.clone()).await;
    let yaml = format!(
        "metrics: 127.0.0.1:0\ncertificates:\n- secret: web\n  directory: {}\n  files:\n  - {{content: chain, name: tls.crt}}\n  \
         - {{content: key, name: tls.key}}\n  - {{content: pkcs12, path: {}}}\n  reload: {{command: [sh, -c, 'echo x >> {}']}}\n  \
         proof: {{address: '{}', serverName: web.example.com, period: 2s}}\n",
        dir.display(),
        plane.folder.path().join("web.p12").display(),
        log.display(),
        consumer.address,
    );
    let running = start(&plane, &yaml).await;
    let board = Arc::clone(running.board());
    let page = running.page().unwrap();
    assert_eq!(http(page, "GET", "/healthz/ready").await.unwrap().0, 503, "nothing is there yet");

    plane.publish(1, vec![resource("web", parts(&plane, &one))]);
    until("the first is served", async || served(&board, "web").serial == one.serial).await;
    assert_eq!((delivered(&board, "web").status, served(&board, "web").status), ("True".into(), "True".into()));
    assert_eq!(std::fs::read(dir.join("tls.key")).unwrap(), one.key.to_pem().into_bytes());
    assert_eq!(std::fs::metadata(dir.join("tls.key")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read(plane.folder.path().join("web.p12")).unwrap(), b"sealed");
    assert_eq!(lines(&log), 1);

    // Its reload does nothing for it: within a period that is told, with what it serves instead.
    let renewed = std::time::Instant::now();
    plane.publish(2, vec![resource("web", parts(&plane, &two))]);
    until("told", async || served(&board, "web").reason == "ConsumerDidNotReload").await;
    assert!(renewed.elapsed() < Duration::from_secs(4), "{:?}", renewed.elapsed());
    assert_eq!(served(&board, "web").serial, one.serial);
    assert!(served(&board, "web").message.contains(&two.serial), "{}", served(&board, "web").message);
    assert_eq!(delivered(&board, "web").serial, two.serial, "delivered it was");
    let metrics = http(page, "GET", "/metrics").await.unwrap().1;
    assert!(metrics.contains("carrick_agent_served{consumer=\"web\",secret=\"web\"} 0"), "{metrics}");
    *consumer.serves.lock().unwrap() = two.clone();
    until("it came round", async || served(&board, "web").status == "True").await;

    // What does not fit together is refused, and nothing is touched.
    let mut broken = parts(&plane, &three);
    broken.insert("tls.key".into(), one.key.to_pem().into_bytes());
    plane.publish(3, vec![resource("web", broken)]);
    until("refused", async || {
        let status = plane.xds.status.lock().unwrap().clone();
        let nack = status.types.values().find_map(|t| t.nack.clone());
        nack.is_some_and(|n| n.message.contains("files://web: the private key does not belong"))
    })
    .await;
    assert_eq!(std::fs::read(dir.join("tls.crt")).unwrap(), two.chain_pem().into_bytes());

    // After a restart without a control plane it goes on looking; files and consumer are left alone.
    let reloads = lines(&log);
    let inode = std::fs::metadata(dir.join("tls.crt")).unwrap().ino();
    running.shut_down().await;
    plane.stop().await;
    let running = start(&plane, &yaml).await;
    let board = Arc::clone(running.board());
    until("served, offline", async || served(&board, "web").serial == two.serial).await;
    plane.listen().await;
    plane.publish(4, vec![resource("web", parts(&plane, &two))]);
    until("told again", async || http(page_of(&running), "GET", "/healthz/ready").await.is_some_and(|r| r.0 == 200))
        .await;
    assert_eq!((lines(&log), std::fs::metadata(dir.join("tls.crt")).unwrap().ino()), (reloads, inode));

    // Renewed while it was away: found on its own.
    plane.publish(5, vec![resource("web", parts(&plane, &three))]);
    *consumer.serves.lock().unwrap() = three.clone();
    until("the third", async || served(&board, "web").serial == three.serial).await;
    assert_eq!(lines(&log), reloads + 1);
    running.shut_down().await;
}

fn page_of(running: &RunningDelivery) -> std::net::SocketAddr {
    running.page().unwrap()
}

#[tokio::test]
async fn a_failing_reload_is_tried_again() {
    let plane = Plane::start().await;
    let one = server(&plane);
    let (dir, gate, log) =
        (plane.folder.path().join("certs"), plane.folder.path().join("gate"), plane.folder.path().join("log"));
    let yaml = format!(
        "certificates:\n- secret: web\n  files: [{{content: combined, path: {}/both.pem}}]\n  reload: {{command: [sh, -c, 'test -e {} && \
         echo x >> {}']}}\n",
        dir.display(),
        gate.display(),
        log.display()
    );
    let running = start(&plane, &yaml).await;
    let board = Arc::clone(running.board());
    plane.publish(1, vec![resource("web", parts(&plane, &one))]);
    until("it failed", async || board.all()["web"].reload_failures > 0).await;
    assert_eq!(delivered(&board, "web").status, "True", "the files are there all the same");
    std::fs::write(&gate, "").unwrap();
    until("it went through", async || lines(&log) == 1).await;
    let both = std::fs::read_to_string(dir.join("both.pem")).unwrap();
    assert!(both.starts_with("-----BEGIN CERTIFICATE") && both.contains("PRIVATE KEY"));
    running.shut_down().await;
}

#[tokio::test]
async fn what_cannot_be_written_is_said() {
    let plane = Plane::start().await;
    let one = server(&plane);
    let file = plane.folder.path().join("a-file");
    std::fs::write(&file, "x").unwrap();
    let yaml = format!(
        "certificates:\n- {{secret: web, files: [{{content: chain, path: {0}/x.pem}}]}}\n- {{name: store, secret: web, files: [{{content: jks, path: \
         /tmp/unused.jks}}]}}\n",
        file.display()
    );
    let running = start(&plane, &yaml).await;
    let board = Arc::clone(running.board());
    plane.publish(1, vec![resource("web", parts(&plane, &one))]);
    until("said", async || delivered(&board, "web").reason == "WriteFailed").await;
    until("said", async || delivered(&board, "store").reason == "Incomplete").await;
    assert!(delivered(&board, "store").message.contains("keystore.jks"), "{}", delivered(&board, "store").message);
    running.shut_down().await;
    let nobody = delivery::parse("certificates: [{secret: a, owner: no-such-user, files: [{content: ca, path: /x}]}]");
    let config = plane.config(EngineKind::Native);
    let refused = delivery::start(config, nobody.unwrap(), SystemClock::shared()).await.unwrap_err().to_string();
    assert_eq!(refused, "certificates[0].files[0].owner: there is no user \"no-such-user\" on this machine");
}
