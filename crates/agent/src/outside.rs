//! An identity that somebody else keeps: SPIRE's agent at its socket, by SDS, or files that are replaced (spec §18.4).
//!
//! Invariant: while there is one, nothing is asked of our own authority, and peers are verified with the roots that came with the identity
//! alone. The old identity stays in force until a whole new one is there, whoever fails. Whether there is one is looked at once, at the
//! start: an agent does not change whose it is. The control plane is verified by the mesh's root file as ever; it is shown the identity
//! where that leads to one of those roots, and otherwise the service account's token.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carrick_pki::{Identity, TrustBundle};
use carrick_proxy::Secret;
use carrick_runtime::backoff::Backoff;
use carrick_runtime::drain::Drain;
use carrick_xds::TypeUrl;
use carrick_xds::client::{Connector, open_channel};
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use futures_util::stream;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::metrics::AgentMetrics;
use crate::names::{DEFAULT_SECRET, ROOT_SECRET};
use crate::secrets::{FileSecret, SecretStore, read_remote};

/// Names of the files.
const FILES: [&str; 3] = ["cert-chain.pem", "key.pem", "root-cert.pem"];
/// How often files are looked at.
const LOOK: Duration = Duration::from_millis(500);
/// First and longest pause between tries to reach the socket.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Where an identity comes from that is not of our authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outside {
    /// A socket that answers SDS.
    Socket(PathBuf),
    /// A folder with `cert-chain.pem`, `key.pem` and `root-cert.pem`.
    Files(PathBuf),
}

/// What has come so far.
#[derive(Default)]
struct Coming {
    identity: Option<Arc<Identity>>,
    roots: Option<Arc<TrustBundle>>,
}

impl Outside {
    /// Whoever is there: at the socket first, then in the folder.
    pub fn find(socket: Option<&Path>, folder: Option<&Path>) -> Option<Self> {
        if let Some(socket) = socket.filter(|socket| std::os::unix::net::UnixStream::connect(socket).is_ok()) {
            return Some(Self::Socket(socket.to_owned()));
        }
        let has_all = |folder: &&Path| FILES.iter().all(|name| folder.join(name).is_file());
        folder.filter(has_all).map(|folder| Self::Files(folder.to_owned()))
    }

    /// Keeps the store's identity that which is there, until drained.
    pub async fn run(self, store: Arc<SecretStore>, metrics: Arc<AgentMetrics>, drain: Drain) {
        let keeping = async {
            match &self {
                Self::Socket(socket) => follow_socket(socket, &store, &metrics).await,
                Self::Files(folder) => follow_files(folder, &store, &metrics).await,
            }
        };
        tokio::select! {
            () = drain.graceful() => {}
            () = keeping => {}
        }
    }
}

fn take(coming: &Coming, store: &SecretStore, metrics: &AgentMetrics) {
    let (Some(identity), Some(roots)) = (&coming.identity, &coming.roots) else { return };
    let known = store.identity();
    let is_new = known.as_ref().is_none_or(|known| known.serial != identity.serial);
    if is_new {
        AgentMetrics::add(&metrics.certificates);
        metrics.certificate_until(identity.not_after);
        info!(
            serial = %identity.serial,
            spiffe = identity.spiffe.as_ref().map_or("", |s| s.as_str()),
            "a certificate of another authority"
        );
    }
    if is_new || store.roots() != **roots {
        store.set_identity(Arc::clone(identity), TrustBundle::clone(roots));
    }
}

async fn follow_files(folder: &Path, store: &SecretStore, metrics: &AgentMetrics) {
    let [chain, key, roots] = FILES.map(|name| folder.join(name));
    let (pair, roots) = (FileSecret::Pair { chain, key }, FileSecret::Roots(roots));
    let mut complaint = String::new();
    let mut seen = None;
    loop {
        let marks = (pair.mark(), roots.mark());
        if seen.as_ref() != Some(&marks) {
            match (pair.read(), roots.read()) {
                (Ok(Secret::Identity(identity)), Ok(Secret::Trust(roots))) => {
                    take(&Coming { identity: Some(identity), roots: Some(roots) }, store, metrics);
                    complaint.clear();
                    seen = Some(marks);
                }
                // Half replaced, perhaps: looked at again, and told once.
                (Err(error), _) | (_, Err(error)) => {
                    let text = error.to_string();
                    if text != complaint {
                        warn!(error = %text, "the identity's files; the one before stays");
                        complaint = text;
                    }
                }
                _ => {}
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn follow_socket(socket: &Path, store: &SecretStore, metrics: &AgentMetrics) {
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let mut told = String::new();
    loop {
        let reason = converse(socket, store, metrics, &mut backoff).await;
        if reason == told {
            debug!(reason, "the identity's socket");
        } else {
            warn!(reason, socket = %socket.display(), "the identity's socket; the identity before stays");
            told = reason;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// One stream, to its end; gives why it ended.
async fn converse(socket: &Path, store: &SecretStore, metrics: &AgentMetrics, backoff: &mut Backoff) -> String {
    let channel = match open_channel(&Connector::Unix(socket.to_owned())).await {
        Ok(channel) => channel,
        Err(error) => return error.to_string(),
    };
    // Each answer is acknowledged before the next one comes.
    let (requests, queue) = mpsc::channel(4);
    let asking = DiscoveryRequest {
        resource_names: vec![DEFAULT_SECRET.to_owned(), ROOT_SECRET.to_owned()],
        type_url: TypeUrl::Secret.as_str().to_owned(),
        ..DiscoveryRequest::default()
    };
    if requests.send(asking.clone()).await.is_err() {
        return "the stream ended".to_owned();
    }
    let queue = stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
    let mut answers = match SecretDiscoveryServiceClient::new(channel).stream_secrets(queue).await {
        Ok(response) => response.into_inner(),
        Err(status) => return format!("{:?}: {}", status.code(), status.message()),
    };
    let mut coming = Coming::default();
    loop {
        let answer = match answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return "it ended the stream".to_owned(),
            Err(status) => return format!("{:?}: {}", status.code(), status.message()),
        };
        let DiscoveryResponse { version_info, resources, nonce, .. } = answer;
        for body in &resources {
            for name in [DEFAULT_SECRET, ROOT_SECRET] {
                match read_remote(name, body) {
                    Ok(Secret::Identity(identity)) if name == DEFAULT_SECRET => coming.identity = Some(identity),
                    Ok(Secret::Trust(roots)) if name == ROOT_SECRET => coming.roots = Some(roots),
                    Ok(_) => warn!(secret = name, "of another kind than it should be"),
                    Err(error) => debug!(secret = name, %error, "not this one"),
                }
            }
        }
        take(&coming, store, metrics);
        backoff.reset();
        let acknowledged = DiscoveryRequest { version_info, response_nonce: nonce, ..asking.clone() };
        if requests.send(acknowledged).await.is_err() {
            return "the stream ended".to_owned();
        }
    }
}
