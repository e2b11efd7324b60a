//! Two meshes of different trust domains: one reads the other's bundle endpoints, in both profiles.

use crate::fixture::{World, local, node};
use carrick_api::MeshConfig;
use carrick_base::TrustDomain;
use carrick_control::{BundleEndpoint, ControlOptions, FederationOptions, Profile};
use carrick_pki::ca::{Authority, CaKey, CaOptions};
use carrick_pki::issue::{self, Profile as Names};
use carrick_pki::{CaSet, KeyAlgorithm, PrivateKey, SetTexts};
use carrick_runtime::drain;
use carrick_xds::TypeUrl;
use carrick_xds::client::{ClientOptions, Handler, Interest, Nack, Update, run};
use carrick_xds::node::text;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(20);
const ID: &str = "spiffe://partner.example/ns/istio-system/sa/istiod";

/// Keeps what is said of other domains.
struct Ear(watch::Sender<String>);

impl Handler for Ear {
    fn interests(&self) -> Vec<(TypeUrl, Interest)> {
        vec![(TypeUrl::Secret, Interest::Names(BTreeSet::from(["carrick-federation".into()])))]
    }

    fn apply(&mut self, update: Update) -> Result<(), Nack> {
        for resource in update.upserts {
            self.0.send_replace(String::from_utf8_lossy(&resource.body.value).into_owned());
        }
        Ok(())
    }
}

fn authority(domain: &str) -> Arc<Authority> {
    let options = CaOptions { trust_domain: TrustDomain::new(domain).expect("a domain"), ..CaOptions::default() };
    let texts = SetTexts::self_signed(&options, "", SystemTime::now()).expect("a set");
    Arc::new(Authority::new(CaSet::check(&texts, SystemTime::now()).expect("a set"), options))
}

/// An authority of the web, and the files of a server of its.
fn web(dir: &Path) -> (String, Profile) {
    let now = SystemTime::now();
    let end = now + Duration::from_secs(3600);
    let root = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key");
    let ca = Names { common_name: "the web".into(), is_ca: true, ..Names::default() };
    let root_pem = issue::self_signed(&root, &ca, now, end, None).expect("signed").chain;
    let signer =
        issue::Signer::with_key(root_pem.as_bytes(), CaKey::in_memory(&root).expect("a key")).expect("a signer");
    let own = PrivateKey::generate(KeyAlgorithm::EcdsaP256).expect("a key");
    let names = Names { dns: vec!["localhost".into()], ..Names::default() };
    let request = issue::request(&own, &names).expect("a request");
    let (certificate, key) = (dir.join("tls.crt"), dir.join("tls.key"));
    let chain = signer.sign(&request, &names, now, end).expect("signed").chain;
    std::fs::write(&certificate, chain).expect("written");
    std::fs::write(&key, own.to_pem()).expect("written");
    (root_pem, Profile::Web { certificate, key })
}

async fn reader(dir: &Path, certificates: &Value) -> World {
    let mesh = json!({"caCertificates": certificates});
    let mesh = MeshConfig::read(&mesh).expect("a mesh configuration");
    let federation = FederationOptions { dir: Some(dir.to_owned()), ..FederationOptions::default() };
    let world = World::with(authority("cluster.local"), |options: &mut ControlOptions| {
        (options.mesh_config, options.federation) = (mesh, federation);
    })
    .await;
    world.list().await;
    world
}

async fn until(world: &World, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let begin = Instant::now();
    loop {
        let page = world.json("/debug/federation").await;
        if is(&page) {
            return page;
        }
        assert!(begin.elapsed() < LIMIT, "{what}: {page:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn of<'a>(page: &'a Value, list: &str, domain: &str) -> &'a Value {
    let all = page[list].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().find(|entry| entry["trustDomain"] == domain).unwrap_or(&Value::Null)
}

fn roots(page: &Value, domain: &str) -> BTreeSet<String> {
    let all = of(page, "trustDomains", domain)["roots"].as_array().cloned().unwrap_or_default();
    all.iter().filter_map(|root| root.as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_are_read_in_both_profiles_and_kept_while_their_endpoint_is_away() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (web_root, web) = web(dir.path());
    let partner = authority("partner.example");
    let endpoints = [Profile::Spiffe, web].map(|profile| BundleEndpoint { address: local(0), profile }).to_vec();
    let served = World::with(partner.clone(), |options| {
        options.mesh_config.trust_domain = "partner.example".into();
        options.federation = FederationOptions { dir: None, endpoints, refresh: Duration::from_secs(1) };
    })
    .await;
    let [spiffe, web] = [0, 1].map(|at: usize| served.control.bundle_addrs()[at].port());

    let first = partner.roots();
    let mallory = authority("partner.example").roots().to_pem();
    let certificates = json!([
        {"pem": web_root},
        {"pem": first.to_pem(), "trustDomains": ["partner.example"]},
        {"spiffeBundleUrl": format!("https://127.0.0.1:{spiffe}/#{ID}"), "trustDomains": ["partner.example"]},
        {"spiffeBundleUrl": format!("https://localhost:{web}/bundle"), "trustDomains": ["web.example"]},
        // Who is there has neither this identity nor one of these roots.
        {"pem": first.to_pem(), "spiffeBundleUrl": format!("https://127.0.0.1:{spiffe}/#spiffe://other.example/x"),
            "trustDomains": ["other.example"]},
        {"spiffeBundleUrl": format!("https://127.0.0.1:{spiffe}/"), "trustDomains": ["stranger.example"]},
        {"pem": mallory, "trustDomains": ["cluster.local"]},
    ]);
    let kept = dir.path().join("kept");
    std::fs::create_dir(&kept).expect("a folder");
    let world = reader(&kept, &certificates).await;
    let fetched = |page: &Value| {
        ["partner.example", "web.example"].iter().all(|d| of(page, "trustDomains", d)["sequence"].is_u64())
            && ["other.example", "stranger.example"].iter().all(|d| of(page, "endpoints", d)["problem"].is_string())
    };
    let page = until(&world, "both profiles are read", fetched).await;
    for domain in ["partner.example", "web.example"] {
        assert_eq!(roots(&page, domain), first.fingerprints(), "{domain}");
    }
    assert_eq!(roots(&page, "stranger.example"), BTreeSet::new(), "nobody is trusted for what was never read");
    let told = of(&page, "endpoints", "other.example")["problem"].as_str().unwrap_or_default();
    assert!(told.contains("NotAccepted") && told.contains(ID), "{told}");
    let told = page["problems"].to_string();
    assert!(told.contains("cluster.local is our own"), "{told}");

    // A proxy is told.
    let mut stream = node("shop", "web", IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1)));
    let fields = &mut stream.metadata.get_or_insert_default().fields;
    fields.insert("GENERATOR".into(), text("carrick-trust"));
    let (sender, mut heard) = watch::channel(String::new());
    let (trigger, end) = drain::channel();
    let options = ClientOptions::new(world.connector(Some(world.identity("shop", "web"))), stream);
    let following = tokio::spawn(async move { drop(run(options, Ear(sender), end).await) });
    let pem = first.to_pem();
    let both = heard.wait_for(|told| told.contains("partner.example") && told.contains(&pem));
    tokio::time::timeout(LIMIT, both).await.expect("told").expect("open");

    // Another root there is another one here, at the proxies too.
    let next = authority("partner.example").roots();
    partner.publish(first.union(&next), SystemTime::now()).expect("published");
    let both = first.union(&next).fingerprints();
    let page = until(&world, "the new root", |page| roots(page, "partner.example") == both).await;
    let pem = next.to_pem();
    let new = heard.wait_for(|told| told.contains(&pem));
    tokio::time::timeout(LIMIT, new).await.expect("told").expect("open");
    let sequence = of(&page, "trustDomains", "partner.example")["sequence"].clone();

    // The endpoint goes away: what was read stays, also for the next process.
    served.control.drain(Duration::from_secs(1)).await;
    let away = |page: &Value| of(page, "endpoints", "partner.example")["problem"].is_string();
    let page = until(&world, "it is away", away).await;
    assert_eq!(roots(&page, "partner.example"), both);
    trigger.drain(Duration::from_secs(2)).await;
    following.await.expect("ends");
    world.control.drain(Duration::from_secs(1)).await;
    let world = reader(&kept, &certificates).await;
    let page = until(&world, "away again", away).await;
    assert_eq!(roots(&page, "partner.example"), both);
    assert_eq!(of(&page, "trustDomains", "partner.example")["sequence"], sequence);
}
