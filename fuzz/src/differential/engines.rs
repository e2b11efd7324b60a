//! The two engines with the resources of a batch: a real Envoy as a child, and ours in this process.
//!
//! Invariant: both get the same bytes, but for the network. A resource that an engine refuses is told with its reason, and costs its case
//! only. Dropping a value ends its engine.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carrick_pki::{Identity, TrustBundle};
use carrick_proxy::{Engine, EngineOptions, OriginalDst, Secret as EngineSecret, Secrets};
use carrick_proxy_core::{ConfigStore, Rejection, store::type_url};
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::keys::Keys;
use super::moved::{Moved, elsewhere};
use super::world;

/// A case of a batch: its network and its resources.
pub struct Placed<'a> {
    pub network: String,
    pub moved: &'a Moved,
}

fn all<'a>(cases: &[Placed<'a>], kind: impl Fn(&'a Moved) -> &'a [(String, Any)]) -> Vec<(String, Any)> {
    let of = |case: &Placed<'a>| -> Vec<(String, Any)> {
        kind(case.moved)
            .iter()
            .map(|(name, body)| (name.replace(world::HOME, &case.network), elsewhere(body, &case.network)))
            .collect()
    };
    cases.iter().flat_map(of).collect()
}

/// What was refused, by the case's number.
pub type Refused = BTreeMap<usize, Vec<String>>;

/// Our engine.
pub struct Native {
    _engine: Engine,
    pub refused: Refused,
    _secrets: watch::Sender<Arc<Secrets>>,
}

impl Native {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(cases: &[Placed<'_>], keys: &Keys) -> Result<Self> {
        let mut by_name: HashMap<String, EngineSecret> =
            keys.identities().map(|(name, i)| (name.to_owned(), EngineSecret::Identity(Arc::clone(i)))).collect();
        by_name.insert("ROOTCA".to_owned(), EngineSecret::Trust(Arc::new(keys.roots.clone())));
        by_name.insert("shop".to_owned(), EngineSecret::Trust(Arc::new(keys.shop.clone())));
        let mut refused = Refused::new();
        for secret in cases.iter().flat_map(|c| &c.moved.secrets) {
            match taken(secret) {
                Some(read) => drop(by_name.insert(secret.name.clone(), read)),
                None => note(&mut refused, &secret.name, format!("{}: not a usable secret", secret.name)),
            }
        }
        let mut store = ConfigStore::new();
        for (kind, resources) in
            [(type_url::CLUSTER, all(cases, |m| &m.clusters)), (type_url::LISTENER, all(cases, |m| &m.listeners))]
        {
            let upserts = resources.into_iter().map(|(name, body)| (Arc::from(name), body)).collect();
            let rejections: Vec<Rejection> = store.apply(kind, upserts, &[]).err().unwrap_or_default();
            for rejection in rejections {
                note(&mut refused, &rejection.resource, rejection.to_string());
            }
        }
        let (sender, receiver) = watch::channel(Arc::new(Secrets { by_name, ..Secrets::default() }));
        let options = EngineOptions {
            workers: 2,
            drain_time: Duration::from_millis(100),
            original_dst: OriginalDst::Function(Arc::new(|_, _| None)),
            ..EngineOptions::default()
        };
        let engine = Engine::start(options, receiver)?;
        if let Err(errors) = engine.apply(store.runtime()) {
            for error in errors {
                note(&mut refused, &error.listener, error.to_string());
            }
        }
        Ok(Self { _engine: engine, refused, _secrets: sender })
    }
}

/// A real Envoy.
pub struct Envoy {
    child: Child,
    dir: tempfile::TempDir,
    pub refused: Refused,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Envoy {
    /// Starts it, and waits until it serves.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(cases: &[Placed<'_>], keys: &Keys) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut secrets: Vec<Value> = keys
            .identities()
            .map(|(name, i)| {
                json!({"name": name, "tls_certificate": {
                    "certificate_chain": {"inline_string": i.chain_pem()}, "private_key": {"inline_string": &*i.key.to_pem()}}})
            })
            .collect();
        for (name, roots) in [("ROOTCA", &keys.roots), ("shop", &keys.shop)] {
            secrets
                .push(json!({"name": name, "validation_context": {"trusted_ca": {"inline_string": roots.to_pem()}}}));
        }
        secrets.extend(cases.iter().flat_map(|c| &c.moved.secrets).map(secret));
        let file = |kind: &str, of: &str, resources: Vec<(String, Any)>| -> Result<Value> {
            let path = dir.path().join(format!("{of}.pb"));
            let response = DiscoveryResponse {
                version_info: "1".to_owned(),
                type_url: kind.to_owned(),
                resources: resources.into_iter().map(|(_, body)| body).collect(),
                ..DiscoveryResponse::default()
            };
            std::fs::write(&path, response.encode_to_vec())?;
            if let Some(kept) = std::env::var_os("CARRICK_FUZZ_KEEP") {
                std::fs::copy(&path, PathBuf::from(kept).join(format!("{of}.pb")))?;
            }
            Ok(
                json!({"path_config_source": {"path": path}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}),
            )
        };
        let admin = free_port()?;
        let bootstrap = json!({
            "node": {"id": "fuzz", "cluster": "fuzz"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
            "static_resources": {"secrets": secrets},
            "dynamic_resources": {
                "cds_config": file(type_url::CLUSTER, "clusters", all(cases, |m| &m.clusters))?,
                "lds_config": file(type_url::LISTENER, "listeners", all(cases, |m| &m.listeners))?,
            },
        });
        let config = dir.path().join("bootstrap.json");
        std::fs::write(&config, bootstrap.to_string())?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let child = Command::new(binary())
            .args(["--concurrency", "1", "--disable-hot-restart", "-l", "warning", "-c"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("Envoy: set CARRICK_ENVOY or put it into PATH")?;
        let mut envoy = Self { child, dir, refused: Refused::new() };
        let start = Instant::now();
        while !ready(admin).await {
            let ended = envoy.child.try_wait()?;
            let late = start.elapsed() > Duration::from_secs(60);
            anyhow::ensure!(ended.is_none() && !late, "Envoy does not serve: {ended:?}\n{}", envoy.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for line in envoy.log().lines().filter(|l| l.contains("rejected")) {
            refusals(line, &mut envoy.refused);
        }
        Ok(envoy)
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// The version of the Envoy that is used.
pub fn version() -> String {
    let output = Command::new(binary()).arg("--version").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    // `envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`, after the program's path.
    let version = text.rsplit_once("version:").map(|(_, version)| version.to_owned()).unwrap_or_default();
    version.split('/').nth(1).unwrap_or("unknown").to_owned()
}

fn binary() -> PathBuf {
    std::env::var_os("CARRICK_ENVOY").map_or_else(|| "envoy".into(), PathBuf::from)
}

/// Names in a line that tells of refused resources begin with the case's number: `012c|outbound…: reason`.
fn refusals(line: &str, into: &mut Refused) {
    let starts: Vec<usize> = line
        .match_indices('|')
        .filter_map(|(at, _)| at.checked_sub(4))
        .filter(|start| {
            let name = line.get(*start..).unwrap_or_default().as_bytes();
            name.iter().take(3).all(u8::is_ascii_digit) && name.get(3).is_some_and(u8::is_ascii_lowercase)
        })
        .collect();
    for (i, start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(line.len());
        let text = line.get(*start..end).unwrap_or_default();
        note(into, text, text.trim_end_matches([',', ' ']).to_owned());
    }
}

fn note(refused: &mut Refused, name: &str, reason: String) {
    if let Some(slot) = name.get(..3).and_then(|n| n.parse().ok()) {
        refused.entry(slot).or_default().push(reason);
    }
}

fn inline(source: &Option<DataSource>) -> Option<&[u8]> {
    match source.as_ref()?.specifier.as_ref()? {
        Specifier::InlineBytes(bytes) => Some(bytes),
        _ => None,
    }
}

/// A secret of the cluster as Envoy's bootstrap has it.
fn secret(from: &Secret) -> Value {
    let bytes = |source| json!({"inline_bytes": STANDARD.encode(inline(source).unwrap_or_default())});
    match &from.r#type {
        Some(Type::TlsCertificate(pair)) => json!({"name": from.name, "tls_certificate": {
            "certificate_chain": bytes(&pair.certificate_chain), "private_key": bytes(&pair.private_key)}}),
        Some(Type::ValidationContext(roots)) => {
            json!({"name": from.name, "validation_context": {"trusted_ca": bytes(&roots.trusted_ca)}})
        }
        _ => json!({"name": from.name}),
    }
}

/// The same as our engine has it.
fn taken(from: &Secret) -> Option<EngineSecret> {
    match from.r#type.as_ref()? {
        Type::TlsCertificate(pair) => {
            let identity = Identity::from_pem(inline(&pair.certificate_chain)?, inline(&pair.private_key)?).ok()?;
            Some(EngineSecret::Identity(Arc::new(identity)))
        }
        Type::ValidationContext(roots) => {
            Some(EngineSecret::Trust(Arc::new(TrustBundle::from_pem(inline(&roots.trusted_ca)?).ok()?)))
        }
        _ => None,
    }
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

async fn ready(port: u16) -> bool {
    let asked = async {
        let mut tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        tcp.write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with("HTTP/1.1 200"))
    };
    asked.await.unwrap_or(false)
}
