//! Roots that change under proxies that follow, one that does not, and a control plane that ends in between.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use carrick_base::{SpiffeId, TrustDomain};
use carrick_control::rotation::{Opening, RotationOptions, Slots, Tokens};
use carrick_pki::trust_service::{Report, TrustClient};
use carrick_pki::{Authority, CaOptions, Identity, SetTexts, Subject, TrustBundle};
use carrick_xds::client::{Connector, open_channel};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use crate::fixture::{World, connector};
use crate::quarantine::request;

const LIMIT: Duration = Duration::from_secs(20);

/// A control plane over a folder.
pub(crate) async fn start(dir: &Path) -> (World, watch::Receiver<Option<Arc<str>>>) {
    let plugged = dir.join("cacerts");
    let opening = Opening {
        dir: &dir.join("ca"),
        plugged: plugged.exists().then_some(plugged),
        token: None,
        tokens: Tokens::new([crate::token::MODULE.into()]),
        options: CaOptions::default(),
    };
    let (slots, authority) = Slots::open(opening, SystemTime::now()).expect("authority");
    let (roots, published) = watch::channel(None);
    let rotation = RotationOptions { slots, roots, lists: watch::channel(None).0, socket: dir.join("ca.sock") };
    (World::rotating(Arc::new(authority), rotation).await, published)
}

pub(crate) async fn command(dir: &Path, command: Value) -> Value {
    let begin = Instant::now();
    let stream = loop {
        match UnixStream::connect(dir.join("ca.sock")).await {
            Ok(stream) => break stream,
            Err(error) => assert!(begin.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let (read, mut write) = stream.into_split();
    write.write_all(format!("{command}\n").as_bytes()).await.expect("asked");
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await.expect("answered");
    serde_json::from_str(&line).expect("JSON")
}

pub(crate) async fn until(dir: &Path, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let begin = Instant::now();
    loop {
        let now = command(dir, json!({"command": "status"})).await;
        if is(&now) {
            return now;
        }
        assert!(begin.elapsed() < LIMIT, "{what}: {now:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn leaf(authority: &Authority, name: &str) -> Identity {
    let id = SpiffeId::istio(&TrustDomain::default(), "shop", name);
    authority.issue(&Subject::Workload(id), None, SystemTime::now()).expect("signed")
}

/// A proxy that does as it is told, while it is not frozen.
pub(crate) fn proxy(world: &World, name: &'static str, frozen: watch::Receiver<bool>) -> tokio::task::JoinHandle<()> {
    let (authority, address) = (world.authority.clone(), world.control.xds_addr());
    tokio::spawn(async move {
        let mut identity = leaf(&authority, name);
        let way: Connector = connector(&authority, address, Some(identity.clone()));
        let (reports, queue) = mpsc::channel::<Report>(8);
        let channel = open_channel(&way).await.expect("connects");
        let queue = futures_util::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
        let mut trust = authority.roots();
        let report = |trust: &TrustBundle, identity: &Identity| Report {
            name: name.into(),
            trusts: trust.fingerprints().into_iter().collect(),
            chain: identity.chain_pem(),
            engine: "native".into(),
        };
        reports.send(report(&trust, &identity)).await.expect("queued");
        let mut orders = TrustClient::new(channel).follow(queue).await.expect("follows").into_inner();
        while let Ok(Some(order)) = orders.message().await {
            let mut frozen = frozen.clone();
            let _ = frozen.wait_for(|frozen| !frozen).await;
            trust = TrustBundle::from_pem(order.roots.as_bytes()).expect("roots");
            let led_to = trust.led_to(&identity.chain);
            if !order.renew_unless.is_empty() && !order.renew_unless.iter().any(|root| led_to.contains(root)) {
                identity = leaf(&authority, name);
            }
            if reports.send(report(&trust, &identity)).await.is_err() {
                return;
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_goes_through_waits_for_the_frozen_one_and_survives_its_process() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (world, published) = start(dir.path()).await;
    let (_running, awake) = watch::channel(false);
    let (freeze, second) = watch::channel(false);
    let proxies = [proxy(&world, "web", awake.clone()), proxy(&world, "db", second.clone())];
    let first =
        until(dir.path(), "both report", |now| now["proxies"].as_array().is_some_and(|all| all.len() == 2)).await;

    assert!(command(dir.path(), json!({"command": "rotate"})).await.get("error").is_none());
    let refused = command(dir.path(), json!({"command": "rotate"})).await;
    assert_eq!(refused["error"], "a rotation is under way already");
    let done = until(dir.path(), "done", |now| now["rotation"].is_null()).await;
    assert_ne!(done["issuer"]["id"], first["issuer"]["id"]);
    assert_eq!(done["roots"].as_array().map(Vec::len), Some(1));
    let root = &done["roots"][0]["fingerprint"];
    for proxy in done["proxies"].as_array().expect("proxies") {
        assert_eq!((&proxy["trusts"], &proxy["leadsTo"]), (&json!([root]), &json!([root])));
    }
    assert_eq!(published.borrow().as_deref(), Some(world.authority.roots().to_pem().as_str()));
    // The port itself serves under the new root alone: a client that knows nothing else gets through.
    open_channel(&connector(&world.authority, world.control.xds_addr(), None)).await.expect("the new root");

    freeze.send_replace(true);
    command(dir.path(), json!({"command": "rotate"})).await;
    let held = |now: &Value| now["rotation"]["heldBy"].as_array().is_some_and(|all| all.len() == 1);
    let now = until(dir.path(), "held up", held).await;
    assert_eq!(now["rotation"]["step"], "prove");
    assert_eq!(now["rotation"]["heldBy"][0]["proxy"], "db.shop");
    assert_eq!(now["issuer"]["id"], done["issuer"]["id"]);
    let (_, metrics) = world.get("/metrics").await;
    for line in ["carrick_ca_rotation_step 3", "carrick_ca_rotation_held_by 1", "carrick_ca_roots 2"] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }

    // The process ends. The next one is at the same step, and waits for those it has not heard of.
    for proxy in proxies {
        proxy.abort();
    }
    world.control.drain(Duration::from_secs(2)).await;
    let (world, _published) = start(dir.path()).await;
    assert_eq!(world.authority.roots().roots().len(), 2);
    let now =
        until(dir.path(), "known again", |now| now["rotation"]["heldBy"].as_array().is_some_and(|a| !a.is_empty()))
            .await;
    let reasons = now["rotation"]["heldBy"].to_string();
    assert!(reasons.contains("db.shop") && reasons.contains("not connected for"), "{reasons}");
    let _web = proxy(&world, "web", awake);
    let until_date = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs() + 3600;
    let unknown = command(dir.path(), json!({"command": "waive", "proxy": "x.y", "until": until_date})).await;
    assert_eq!(unknown["error"], "no proxy \"x.y\" is known");
    command(dir.path(), json!({"command": "waive", "proxy": "db.shop", "until": until_date})).await;
    let last = until(dir.path(), "done without db.shop", |now| now["rotation"].is_null()).await;
    assert_ne!(last["issuer"]["id"], done["issuer"]["id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugged_in_sets_are_followed_and_broken_ones_are_told() {
    let dir = tempfile::tempdir().expect("tempdir");
    let cacerts = dir.path().join("cacerts");
    let make = |name: &str| SetTexts::self_signed(&CaOptions::default(), name, SystemTime::now()).expect("a set");
    make("one").write(&cacerts).expect("written");
    let (world, _published) = start(dir.path()).await;
    let first = world.authority.set().id().to_owned();

    // Half of another set: refused, with the file, and the first stays.
    let other = make("two");
    std::fs::write(cacerts.join("ca-key.pem"), &other.key.bytes).expect("written");
    let now = until(dir.path(), "refused", |now| !now["problem"].is_null()).await;
    let told = now["problem"]["text"].as_str().unwrap_or_default();
    assert!(told.contains("ca-key.pem: the key is not that of the certificate in ca-cert.pem"), "{told}");
    assert_eq!(world.authority.set().id(), first);
    let (_, metrics) = world.get("/metrics").await;
    assert!(metrics.lines().any(|l| l == "carrick_ca_refused_sets 1"), "{metrics}");

    // The whole of it: another root, which waits to be asked for.
    other.write(&cacerts).expect("written");
    let now = until(dir.path(), "waits", |now| !now["pending"].is_null()).await;
    assert_eq!(now["pending"]["reason"], "it leads to a root that is not published yet");
    assert!(now["problem"].is_null(), "{now:#}");
    assert_eq!(world.authority.set().id(), first);
    command(dir.path(), json!({"command": "rotate"})).await;
    until(dir.path(), "done", |now| now["rotation"].is_null() && now["pending"].is_null()).await;
    assert!(world.authority.set().info().subject.contains("cluster.local two"));

    // A revocation list that comes later is followed too: whoever is on it gets no connection.
    let web = leaf(&world.authority, "web");
    let way = connector(&world.authority, world.control.xds_addr(), Some(web.clone()));
    request(&way, None).await.expect("a certificate");
    let revoked = [(web.serial.clone(), SystemTime::now())];
    let list = world.authority.revocation_list(&revoked, 1, SystemTime::now()).expect("signed").expect("a list");
    std::fs::write(cacerts.join("ca-crl.pem"), list).expect("written");
    let begin = Instant::now();
    while request(&way, None).await.is_ok() {
        assert!(begin.elapsed() < LIMIT, "the list is not followed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let other = leaf(&world.authority, "db");
    request(&connector(&world.authority, world.control.xds_addr(), Some(other)), None).await.expect("let in");
    std::fs::remove_file(cacerts.join("ca-crl.pem")).expect("removed");
    let begin = Instant::now();
    while let Err(error) = request(&way, None).await {
        assert!(begin.elapsed() < LIMIT, "a list that is gone: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // Without another one there is nothing to rotate to: a plugged-in authority makes no roots here.
    let refused = command(dir.path(), json!({"command": "rotate"})).await;
    assert!(refused["error"].as_str().is_some_and(|e| e.starts_with("the signing set comes from folder")), "{refused}");
}
