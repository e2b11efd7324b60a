//! Secrets for agents that keep them as files on machines, and what those agents say became of them.
//!
//! Invariant: an agent is given a Secret only if the API says, asked for that agent's service account, that it may get it, and only of
//! the account's own namespace; where the API cannot be asked, nothing new is given. Reports count for granted Secrets alone. What the
//! reports come to is decided in `verdict`.

mod permission;
mod verdict;
mod write;

use crate::caller::{Caller, Callers};
use crate::renderer::Renderer;
use carrick_runtime::drain::Drain;
use carrick_xds::delivery::{self, DeliveryService, MAX_SECRETS, Report, ReportRequest, ReportResponse};
use carrick_xds::node::metadata_text;
use carrick_xds::server::{Bearer, Observer, Opened, Peer, SessionStatus};
use carrick_xds::{Any, Node, Resource, ResourceSet, TypeMap, TypeUrl};
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    GenericSecret, Secret as SdsSecret, secret::Type as SdsType,
};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use permission::{Answer, Permissions};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};
use tonic::{Request, Response, Status};
use tracing::{debug, info, warn};
use verdict::Told;
use write::Written;

/// After this long all is looked at again, even if nothing was heard: permissions that were given or taken, agents that fell silent.
const REST: Duration = Duration::from_secs(3);
/// After this long a Secret is read again even if no change of it was heard of.
const REREAD: Duration = Duration::from_secs(30);
/// How long the API may take.
const LIMIT: Duration = Duration::from_secs(5);
/// What of a Secret is delivered; anything else in it stays where it is.
const PARTS: [&str; 12] = [
    "tls.crt",
    "tls.key",
    "ca.crt",
    "ca.crl",
    "cert",
    "key",
    "cacert",
    "crl",
    "keystore.p12",
    "keystore.jks",
    "truststore.p12",
    "truststore.jks",
];
/// The certificate that a Secret belongs to.
const CERTIFICATE: &str = "cert-manager.io/certificate-name";
/// Reports taken at once from one agent.
const MAX_REPORTS: usize = MAX_SECRETS;

/// Namespace and name.
pub(super) type Key = (String, String);

/// Agents, Secrets and reports.
pub(crate) struct Deliveries {
    client: Option<kube::Client>,
    renderer: Arc<Renderer>,
    callers: Arc<Callers>,
    inner: Mutex<Inner>,
    wake: Notify,
}

#[derive(Default)]
struct Inner {
    next: u64,
    agents: BTreeMap<u64, Agent>,
    /// Namespace, service account and Secret of everything that was last allowed to somebody.
    granted: BTreeSet<(String, String, String)>,
    /// By Secret, then by agent and consumer.
    told: BTreeMap<Key, BTreeMap<(String, String), Told>>,
}

#[derive(Clone)]
struct Agent {
    name: String,
    namespace: String,
    service_account: String,
    secrets: BTreeSet<String>,
    sets: watch::Sender<ResourceSet>,
}

/// A Secret as it was last read.
#[derive(Clone)]
pub(super) struct Known {
    version: String,
    read: SystemTime,
    /// The certificate whose Secret it is, if any.
    pub(super) certificate: Option<String>,
    /// The certificate's serial number, if readable.
    pub(super) serial: Option<String>,
    /// When this serial number was first seen.
    pub(super) since: SystemTime,
    resource: Arc<Resource>,
}

/// What the task remembers between rounds.
#[derive(Default)]
struct Memory {
    permissions: Permissions,
    known: BTreeMap<Key, Known>,
    written: BTreeMap<Key, Written>,
    generation: u64,
}

impl Deliveries {
    pub(crate) fn new(client: Option<kube::Client>, renderer: Arc<Renderer>, callers: Arc<Callers>) -> Arc<Self> {
        Arc::new(Self { client, renderer, callers, inner: Mutex::default(), wake: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A stream of an agent that was admitted as `caller`.
    ///
    /// # Errors
    /// `InvalidArgument` when it does not say which Secrets it keeps.
    pub(crate) fn open(self: &Arc<Self>, node: &Node, name: &str, caller: &Caller) -> Result<Opened, Status> {
        let named = metadata_text(node, delivery::SECRETS).unwrap_or_default();
        let secrets: BTreeSet<String> =
            named.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect();
        if secrets.is_empty() || secrets.len() > MAX_SECRETS {
            let wants = format!("{} must name 1 to {MAX_SECRETS} Secrets", delivery::SECRETS);
            return Err(Status::invalid_argument(wants));
        }
        info!(agent = name, namespace = caller.namespace, account = caller.service_account, "agent connected");
        let (sets, receiver) = watch::channel(ResourceSet::default());
        let mut inner = self.lock();
        inner.next = inner.next.wrapping_add(1);
        let id = inner.next;
        let agent = Agent {
            name: name.to_owned(),
            namespace: caller.namespace.clone(),
            service_account: caller.service_account.clone(),
            secrets,
            sets,
        };
        inner.agents.insert(id, agent);
        drop(inner);
        self.wake.notify_one();
        Ok(Opened { sets: receiver, observer: Box::new(Leaving { id, deliveries: self.clone() }), turns: None })
    }

    /// Runs until drained.
    pub(crate) async fn run(self: Arc<Self>, drain: Drain) {
        let mut published = self.renderer.published();
        let mut memory = Memory::default();
        loop {
            tokio::select! {
                () = drain.graceful() => return,
                changed = published.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(REST) => {}
            }
            tokio::select! {
                () = drain.graceful() => return,
                () = self.round(&mut memory, SystemTime::now()) => {}
            }
        }
    }

    async fn round(&self, memory: &mut Memory, now: SystemTime) {
        let (agents, told) = {
            let inner = self.lock();
            (inner.agents.clone(), inner.told.keys().cloned().collect::<BTreeSet<_>>())
        };
        let wanted: BTreeSet<Key> = agents
            .values()
            .flat_map(|a| a.secrets.iter().map(|s| (a.namespace.clone(), s.clone())))
            .chain(told)
            .collect();
        memory.known.retain(|key, _| wanted.contains(key));
        memory.written.retain(|key, _| wanted.contains(key));
        let (Some(client), false) = (&self.client, wanted.is_empty()) else { return };
        if self.renderer.current().is_none() {
            return;
        }
        for key in &wanted {
            self.read(client, memory, key, now).await;
        }
        let mut granted = BTreeSet::new();
        memory.permissions.forget(now);
        for agent in agents.values() {
            self.give(client, memory, agent, &mut granted, now).await;
        }
        self.lock().granted = granted;
        self.write(client, memory, now).await;
    }

    /// Reads a Secret, if it has changed.
    async fn read(&self, client: &kube::Client, memory: &mut Memory, key: &Key, now: SystemTime) {
        let current = self.renderer.current();
        let Some(version) = current.as_ref().and_then(|c| c.snapshot.secrets().version(&key.0, &key.1)) else {
            memory.known.remove(key);
            return;
        };
        let before = memory.known.get(key);
        let late = |read: SystemTime| now.duration_since(read).is_ok_and(|since| since >= REREAD);
        if before.is_some_and(|known| known.version == version && !late(known.read)) {
            return;
        }
        let api: Api<Secret> = Api::namespaced(client.clone(), &key.0);
        match tokio::time::timeout(LIMIT, api.get_opt(&key.1)).await {
            Ok(Ok(Some(secret))) => {
                let known = known(&key.1, &secret, before, now);
                memory.known.insert(key.clone(), known);
            }
            Ok(Ok(None)) => {
                memory.known.remove(key);
            }
            Ok(Err(error)) => debug!(namespace = key.0, name = key.1, %error, "the Secret cannot be read now"),
            Err(_) => debug!(namespace = key.0, name = key.1, "the API does not give the Secret in time"),
        }
    }

    /// Gives an agent what it may have.
    async fn give(
        &self,
        client: &kube::Client,
        memory: &mut Memory,
        agent: &Agent,
        granted: &mut BTreeSet<(String, String, String)>,
        now: SystemTime,
    ) {
        let mut resources = TypeMap::new();
        let before = agent.sets.borrow().clone();
        for secret in &agent.secrets {
            let whole = (agent.namespace.clone(), agent.service_account.clone(), secret.clone());
            let (answer, fresh) = memory.permissions.ask(client, &whole, now).await;
            let name: Arc<str> = format!("{}{secret}", delivery::SCHEME).into();
            if fresh && answer != Answer::Allowed {
                let account = format!("{}/{}", agent.namespace, agent.service_account);
                warn!(agent = agent.name, %account, secret, ?answer, "the Secret is not given: get on it is not allowed");
            }
            let resource = match answer {
                Answer::Allowed => {
                    granted.insert(whole);
                    memory.known.get(&(agent.namespace.clone(), secret.clone())).map(|known| known.resource.clone())
                }
                Answer::Denied => None,
                // What it has been given before stays with it; anything newer waits.
                Answer::Unknown => before.get(&TypeUrl::Secret, &name).cloned(),
            };
            if let Some(resource) = resource {
                resources.insert(name, resource);
            }
        }
        memory.generation = memory.generation.wrapping_add(1).max(1);
        let types = [(TypeUrl::Secret, Arc::new(resources))].into();
        let set = ResourceSet::new(memory.generation, memory.generation.to_string(), types);
        if before.generation() == 0 || !before.same_content(&set) {
            agent.sets.send_replace(set);
        }
    }
}

/// A Secret as it goes to agents.
fn known(name: &str, secret: &Secret, before: Option<&Known>, now: SystemTime) -> Known {
    let data = secret.data.iter().flatten();
    let parts = data.filter(|(key, _)| PARTS.contains(&key.as_str())).map(|(key, bytes)| {
        let source = DataSource { specifier: Some(Specifier::InlineBytes(bytes.0.clone())), ..DataSource::default() };
        (key.clone(), source)
    });
    // Bytes in the order of keys: equal Secrets have equal versions.
    let parts: BTreeMap<String, DataSource> = parts.collect();
    let mut version = Vec::new();
    for (key, source) in &parts {
        version.extend_from_slice(key.as_bytes());
        version.push(0);
        version.extend_from_slice(&source.encode_length_delimited_to_vec());
    }
    let sds_name = format!("{}{name}", delivery::SCHEME);
    let generic = GenericSecret { secrets: parts.into_iter().collect(), ..GenericSecret::default() };
    let body = SdsSecret { name: sds_name.clone(), r#type: Some(SdsType::GenericSecret(generic)) };
    let hash = carrick_xds::resource::content_version(&Any { type_url: sds_name.clone(), value: version });
    let body = Any { type_url: TypeUrl::Secret.as_str().to_owned(), value: body.encode_to_vec() };
    let data = |key: &str| secret.data.as_ref()?.get(key).map(|bytes| bytes.0.as_slice());
    let serial = data("tls.crt").or_else(|| data("cert")).and_then(serial);
    let since = before.filter(|known| known.serial == serial).map_or(now, |known| known.since);
    Known {
        version: secret.metadata.resource_version.clone().unwrap_or_default(),
        read: now,
        certificate: secret.metadata.annotations.as_ref().and_then(|a| a.get(CERTIFICATE)).cloned(),
        serial,
        since,
        resource: Arc::new(Resource::with_version(sds_name, hash, body)),
    }
}

fn serial(text: &[u8]) -> Option<String> {
    let chain = carrick_pki::pem::certificates(text).ok()?;
    Some(carrick_pki::CertificateInfo::read(chain.first()?).ok()?.serial)
}

#[tonic::async_trait]
impl DeliveryService for Deliveries {
    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let bearer = Bearer::of(request.metadata());
        let caller = self.callers.prove(&peer, bearer.as_ref()).await?;
        let reports = request.into_inner().reports;
        if reports.len() > MAX_REPORTS {
            return Err(Status::invalid_argument(format!("more than {MAX_REPORTS} reports at once")));
        }
        self.take(&caller, reports, SystemTime::now())?;
        self.wake.notify_one();
        Ok(Response::new(ReportResponse {}))
    }
}

impl Deliveries {
    fn take(&self, caller: &Caller, reports: Vec<Report>, now: SystemTime) -> Result<(), Status> {
        let mut inner = self.lock();
        for report in &reports {
            let whole = (caller.namespace.clone(), caller.service_account.clone(), report.secret.clone());
            if !inner.granted.contains(&whole) {
                let message = format!("{} has not been given the Secret {:?}", caller.spiffe, report.secret);
                return Err(Status::permission_denied(message));
            }
        }
        for report in reports {
            let key = (caller.namespace.clone(), report.secret.clone());
            let told = inner.told.entry(key).or_default();
            let consumer = (report.agent.clone(), report.consumer.clone());
            if told.len() >= MAX_REPORTS && !told.contains_key(&consumer) {
                return Err(Status::resource_exhausted("too many consumers of one Secret"));
            }
            told.insert(consumer, Told { report, at: now });
        }
        Ok(())
    }
}

/// Takes an agent out of the table when its stream ends.
struct Leaving {
    id: u64,
    deliveries: Arc<Deliveries>,
}

impl Observer for Leaving {
    fn changed(&mut self, status: &SessionStatus) {
        for (type_url, now) in &status.types {
            if let Some(nack) = &now.nack {
                debug!(r#type = type_url.short(), reason = nack.message, "refused by an agent");
            }
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(agent) = self.deliveries.lock().agents.remove(&self.id) {
            info!(agent = agent.name, namespace = agent.namespace, "agent disconnected");
        }
    }
}
