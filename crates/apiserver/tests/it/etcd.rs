//! Servers over a real etcd: what one writes the other shows; a cut, a compaction, client certificates, leases.

use crate::bench::Bench;
use crate::http::{Access, config_map};
use carrick_apiserver::backup::Snapshot;
use carrick_apiserver::check::{Options, StoreAccess, run};
use carrick_apiserver::storage::etcd::EtcdOptions;
use carrick_apiserver::storage::{Claims, Engine, EngineOptions, Expect, Key, Op, StorageError};
use carrick_apiserver::store::{DeleteOptions, held};
use http::Method;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// A real etcd of one member.
struct Etcd {
    process: Child,
    folder: TempDir,
    address: SocketAddr,
    tls: bool,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Etcd {
    fn start(tls: bool) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (address, peer) = (free(), free());
        let scheme = if tls { "https" } else { "http" };
        let (url, peers) = (format!("{scheme}://{address}"), format!("http://{peer}"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(folder.path().join("data")).arg("--unsafe-no-fsync");
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &format!("default={peers}"), "--log-level", "error"]);
        if tls {
            certificates(folder.path());
            let file = |name: &str| folder.path().join(name);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(file("ca.pem"));
            command.arg("--cert-file").arg(file("leaf.pem")).arg("--key-file").arg(file("leaf-key.pem"));
        }
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.expect("etcd is there (tools/install test brings it)");
        let until = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < until, "etcd does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, folder, address, tls }
    }

    fn options(&self) -> EtcdOptions {
        self.through(self.address)
    }

    /// Reached at another address.
    fn through(&self, address: SocketAddr) -> EtcdOptions {
        let scheme = if self.tls { "https" } else { "http" };
        let mut options = EtcdOptions::new(vec![format!("{scheme}://{address}").parse().unwrap()]);
        if self.tls {
            let file = |name: &str| Some(self.folder.path().join(name));
            (options.ca_file, options.cert_file, options.key_file) =
                (file("ca.pem"), file("leaf.pem"), file("leaf-key.pem"));
        }
        options
    }
}

/// An authority, and one certificate that serves and calls.
fn certificates(folder: &Path) {
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca.pem", ca.self_signed(&ca_key).unwrap().pem());
    let leaf = CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
    write("leaf.pem", leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap().pem());
    write("leaf-key.pem", key.serialize_pem());
}

/// A link to etcd that can be cut: nothing passes then, and nobody is told.
struct Link {
    address: SocketAddr,
    whole: watch::Sender<bool>,
}

impl Link {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let whole = watch::Sender::new(true);
        let told = whole.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let mut told = told.subscribe();
                tokio::spawn(async move {
                    told.wait_for(|whole| *whole).await.unwrap();
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::join!(pass(near_in, far_out, told.clone()), pass(far_in, near_out, told));
                });
            }
        });
        Self { address, whole }
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut whole: watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut bytes = vec![0; 16 << 10];
    loop {
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        if whole.wait_for(|whole| *whole).await.is_err() || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_over_one_etcd_are_one_api_also_when_a_link_is_cut() {
    let etcd = Etcd::start(false);
    let link = Link::to(etcd.address).await;
    let first = Bench::with(|o| o.etcd = Some(etcd.options())).await;
    let second = Bench::with(|o| o.etcd = Some(etcd.through(link.address))).await;
    let (one, two) = (Access::of(first.server.kubeconfig()), Access::of(second.server.kubeconfig()));
    let (mut one, mut two) = (one.admin().await.unwrap(), two.admin().await.unwrap());

    // Written at one, read at the other at once, and the other way; revisions are the same everywhere.
    for round in 0..20 {
        let name = format!("both-{round}");
        let (code, made) = one.post(PATH, &config_map(&name, round)).await;
        assert_eq!(code, 201, "{made}");
        let (code, seen) = two.get(&format!("{PATH}/{name}")).await;
        assert_eq!((code, &seen["metadata"]["resourceVersion"]), (200, &made["metadata"]["resourceVersion"]));
        let (code, changed) =
            two.call(Method::PATCH, &format!("{PATH}/{name}"), Some(&json!({"data": {"n": "x"}}))).await.unwrap();
        assert_eq!(code, 200, "{changed}");
        let (code, _) = one.call(Method::PUT, &format!("{PATH}/{name}"), Some(&made)).await.unwrap();
        assert_eq!(code, 409, "an old version was taken");
        assert_eq!(one.post(PATH, &config_map(&name, round)).await.0, 409);
    }
    let (_, list) = one.get(PATH).await;
    assert_eq!(list["items"].as_array().unwrap().iter().filter(|o| o["data"]["n"] == "x").count(), 20);

    // The checker over both, with the second server's link cut for a while in the middle.
    let access = |bench: &Bench| StoreAccess::new(bench.server.store().clone(), "checked-");
    let both = [access(&first), access(&second)];
    let options = Options { events: 2_500, writers: 6, watchers: 6, stretch: 100, ..Options::default() };
    let checked = tokio::spawn(async move { run(&both, &both, options).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    link.whole.send_replace(false);
    let begun = Instant::now();
    let (code, status) = two.post(PATH, &config_map("cut", 0)).await;
    assert!(matches!(code, 503 | 504) && begun.elapsed() < Duration::from_secs(10), "{code} {status}");
    assert!(status["message"].as_str().unwrap().contains("storage"), "{status}");
    let (code, _) = two.get(&format!("{PATH}?resourceVersion=0")).await;
    assert_eq!(code, 200, "what is known is shown to whoever asks for no more");
    assert_eq!(one.post(PATH, &config_map("not-cut", 0)).await.0, 201);
    link.whole.send_replace(true);
    let outcome = checked.await.unwrap().unwrap();
    assert_eq!(outcome.findings, []);
    assert!(outcome.doubtful > 0 && outcome.relists == 0, "{outcome:?}");
    assert_eq!(two.get(&format!("{PATH}/not-cut")).await.0, 200);

    // What both hold is one backup, and a data file can take it over.
    let snapshot = Snapshot::of(first.server.store().engine());
    let folder = tempfile::tempdir().unwrap();
    snapshot.restore_folder(folder.path(), false).unwrap();
    assert_eq!(Snapshot::of_folder(folder.path()).unwrap().records, snapshot.records);
    let mut elsewhere = etcd.options();
    elsewhere.prefix = "/elsewhere".into();
    let (records, target) = (snapshot.records.clone(), elsewhere.clone());
    tokio::task::spawn_blocking(move || {
        snapshot.restore_etcd(&target, false).unwrap();
        assert!(snapshot.restore_etcd(&target, false).unwrap_err().to_string().contains("--force"));
        snapshot.restore_etcd(&target, true).unwrap();
    })
    .await
    .unwrap();
    let restored = tokio::task::spawn_blocking(move || Snapshot::of_etcd(elsewhere)).await.unwrap().unwrap();
    let shown = |records: &[(Key, _)]| -> Vec<Key> { records.iter().map(|(key, _)| key.clone()).collect() };
    let values =
        |s: &[(Key, carrick_apiserver::storage::Record)]| s.iter().map(|(_, r)| r.value.clone()).collect::<Vec<_>>();
    assert_eq!((shown(&restored.records), values(&restored.records)), (shown(&records), values(&records)));
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loops_of_a_server_that_is_gone_are_taken_over() {
    let etcd = Etcd::start(false);
    let start = || Bench::with(|o| (o.etcd, o.turn) = (Some(etcd.options()), Duration::from_millis(1500)));
    let first = start().await;
    furnished(&first, "early").await;
    let second = start().await;
    // As if killed: nothing is given back.
    drop(first);
    furnished(&second, "late").await;
    second.stop().await;
}

/// A new namespace gets what the loops put into it.
async fn furnished(bench: &Bench, name: &str) {
    let mut client = Access::of(bench.server.kubeconfig()).admin().await.unwrap();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    assert_eq!(client.post("/api/v1/namespaces", &namespace).await.0, 201);
    let until = Instant::now() + Duration::from_secs(15);
    while client.get(&format!("/api/v1/namespaces/{name}/serviceaccounts/default")).await.0 != 200 {
        assert!(Instant::now() < until, "nobody furnishes {name}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn put(name: &str, ttl: Option<Duration>) -> Vec<Op> {
    let key = Key::new("events", "default", name);
    vec![Op { key, expect: Expect::Absent, value: Some(r#"{"kind":"Event"}"#.into()), ttl, claims: Claims::default() }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_certificates_leases_and_a_compacted_history() {
    let etcd = Etcd::start(true);
    let open = |mut options: EtcdOptions| {
        options.compact_every = Duration::from_millis(300);
        tokio::task::spawn_blocking(move || Engine::over_etcd(options, EngineOptions::default()))
    };
    let mut nobody = etcd.options();
    (nobody.cert_file, nobody.key_file) = (None, None);
    assert!(matches!(open(nobody).await.unwrap(), Err(StorageError::Unreachable(_) | StorageError::Unanswered(_))));
    let mut wrong = etcd.options();
    wrong.ca_file = Some(PathBuf::from("/nowhere/ca.pem"));
    assert!(open(wrong).await.unwrap().err().unwrap().to_string().contains("/nowhere/ca.pem"));

    let engine = open(etcd.options()).await.unwrap().unwrap();
    let start = engine.revision();
    for size in [1_700_000, 2_500_000] {
        let mut large = put("large", None);
        large[0].value = Some(vec![b'x'; size].into());
        let outcome = engine.commit(large).await;
        assert!(matches!(outcome, Err(StorageError::TooLarge(_))), "etcd takes 1.5 MiB: {outcome:?}");
    }
    let kept = engine.commit(put("kept", None)).await.unwrap()[0].revision;
    for name in ["a", "b"] {
        engine.commit(put(name, Some(Duration::from_secs(1)))).await.unwrap();
    }
    let mut news = engine.subscribe("events", None);
    let gone = async {
        while engine.count("events") > 1 {
            news.changed().await.unwrap()
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("leases end");
    // Both went at one revision, and are told of together even when fewer are asked for.
    let tail = engine.tail("events", None, start, 4).unwrap();
    assert_eq!(tail.changes.len(), 5, "{:?}", tail.changes);
    assert_eq!(tail.changes[3].revision, tail.changes[4].revision);

    // Another server cannot know what was forgotten before it started.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let late = open(etcd.options()).await.unwrap().unwrap();
        assert_eq!(late.get(&Key::new("events", "default", "kept")).unwrap().revision, kept);
        match late.tail("events", None, start, 9) {
            Err(StorageError::Compacted { .. }) => break,
            Ok(tail) => assert_eq!(tail.changes.first().unwrap().revision, kept, "history is whole or refused"),
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < until, "history is never forgotten");
        // Rounds in which nothing was written forget nothing.
        engine.commit(put(&format!("more-{}", engine.revision()), None)).await.ok();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_one_may_have_is_given_once_by_whichever_server() {
    let etcd = Etcd::start(false);
    let first = Bench::with(|o| o.etcd = Some(etcd.options())).await;
    let second = Bench::with(|o| o.etcd = Some(etcd.options())).await;
    let (one, two) = (first.server.store(), second.server.store());
    let service = |name: &str, ip: &str, port: u16| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"type": "NodePort", "clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "nodePort": port}]}})
    };
    // Past admission, which looks at what shows: etcd itself refuses the second, and has nothing of it.
    let made = one.create("services", service("made", "10.96.9.1", 30_901)).await.unwrap();
    for (ip, port) in [("10.96.9.1", 30_999), ("10.96.9.9", 30_901)] {
        let refused = two.create("services", service("refused", ip, port)).await;
        assert_eq!(refused.unwrap_err().code(), 409, "{ip} {port}");
        assert!(!one.exists("services", "default", "refused"));
    }
    // Given back by a change, by a deletion.
    let mut moved = made.clone();
    moved["spec"]["ports"][0]["nodePort"] = json!(30_902);
    two.fresh().await.unwrap();
    two.update("services", moved).await.unwrap();
    two.create("services", service("second", "10.96.9.2", 30_901)).await.unwrap();
    let refused = one.create("services", service("third", "10.96.9.3", 30_902)).await;
    assert_eq!(refused.unwrap_err().code(), 409);
    two.delete("services", "default", "made", &DeleteOptions::default()).await.unwrap();
    one.create("services", service("third", "10.96.9.1", 30_902)).await.unwrap();

    // Both servers are asked at the same moment: for one address, for one port, for any.
    let path = "/api/v1/namespaces/default/services";
    let mut one = Access::of(first.server.kubeconfig()).admin().await.unwrap();
    let mut two = Access::of(second.server.kubeconfig()).admin().await.unwrap();
    for round in 0..30_u16 {
        let body = |who: &str| {
            let mut spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
            match round % 3 {
                0 => spec["clusterIP"] = json!(format!("10.96.8.{round}")),
                1 => spec["ports"][0]["nodePort"] = json!(31_000 + round),
                _ => {}
            }
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("{who}-{round}")}, "spec": spec})
        };
        let (ours, theirs) = (body("one"), body("two"));
        let (a, b) = tokio::join!(one.post(path, &ours), two.post(path, &theirs));
        let (mut codes, answers) = ([a.0, b.0], [a.1, b.1]);
        codes.sort_unstable();
        assert_eq!(codes, if round % 3 == 2 { [201, 201] } else { [201, 422] }, "{round}: {answers:?}");
        let told =
            |answer: &serde_json::Value| answer["message"].as_str().is_some_and(|m| m.contains("already allocated"));
        assert!(round % 3 == 2 || answers.iter().any(told), "{answers:?}");
    }
    let (_, all) = one.get(path).await;
    let mut claims: Vec<_> = all["items"].as_array().unwrap().iter().flat_map(held).collect();
    let count = claims.len();
    claims.sort_unstable();
    claims.dedup();
    assert_eq!(claims.len(), count, "something is held twice");
    second.stop().await;
    first.stop().await;
}
