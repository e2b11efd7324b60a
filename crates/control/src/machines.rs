//! Machines that are no pods: how they are let in, their WorkloadEntries while they are connected, and what they tell of their health.
//!
//! Invariant: an entry is made for a proven identity only, that of the WorkloadGroup; what this control plane did not register it neither
//! changes nor deletes. Decisions are in `tokens`, `entry` and `book`; here they meet the API.

mod book;
mod entry;
mod store;
mod tokens;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use carrick_api::timestamp::Timestamp;
use carrick_base::{SpiffeId, TrustDomain};
use carrick_pki::csr::CertificateRequest;
use carrick_pki::join::JoinToken;
use carrick_runtime::clock::{SharedClock, SystemClock};
use carrick_runtime::drain::Drain;
use carrick_xds::health::Health;
use carrick_xds::node::{instance_ips, metadata_map, metadata_text};
use carrick_xds::{Node, NodeId};
use envoy_types::pb::google::protobuf::value::Kind as NodeValue;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tonic::Status;
use tracing::{debug, info, warn};

use crate::caller::Caller;
use book::Book;
pub(crate) use book::EntryKey;
use entry::{CONNECTED, CONTROLLER, DISCONNECTED, Facts, GROUP};
pub use store::{Kept, NAMESPACE_LABEL, SECRET_TYPE, StoreError, TokenStore};
use tokens::Outcome;
pub use tokens::{TokenRecord, TokenRefusal, Use};

/// How long an entry stays after its machine's last stream (spec §11.8).
pub const GRACE: Duration = Duration::from_secs(10);
/// How often entries of machines that are nobody's are looked for.
const SWEEP: Duration = Duration::from_secs(100);
/// After a start, machines are given this long to come back before their entries count as left.
const RETURN: Duration = Duration::from_secs(60);
/// Tries where others write the same object.
const TRIES: usize = 5;
/// Things told and not yet done.
const QUEUE: usize = 4096;

/// What the streams tell.
enum Told {
    /// The last stream ended.
    Left(EntryKey),
    Health {
        key: EntryKey,
        health: Health,
    },
}

/// The machines of this control plane.
pub(crate) struct Machines {
    client: kube::Client,
    tokens: TokenStore,
    /// What this control plane is called in entries.
    name: String,
    place: Place,
    book: Mutex<Book>,
    clock: SharedClock,
    grace: Duration,
    told: mpsc::Sender<Told>,
}

/// The mesh, as machines are told of it.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) cluster: String,
    pub(crate) domain: String,
    pub(crate) root_namespace: String,
}

/// A machine that was let in by its token.
pub(crate) struct Joined {
    pub(crate) caller: Caller,
    /// What it is told of its group.
    pub(crate) profile: Value,
}

impl Machines {
    /// The machines, and the task that cleans up after them.
    pub(crate) fn task(
        client: kube::Client,
        name: &str,
        place: Place,
        grace: Duration,
        drain: Drain,
    ) -> (Arc<Self>, impl Future<Output = ()> + use<>) {
        let (told, heard) = mpsc::channel(QUEUE);
        let machines = Arc::new(Self {
            tokens: TokenStore::new(client.clone(), &place.root_namespace),
            client,
            name: name.to_owned(),
            place,
            book: Mutex::default(),
            clock: SystemClock::shared(),
            grace,
            told,
        });
        (machines.clone(), machines.run(heard, drain))
    }

    /// Lets a machine in: the token is used up for the request's key before anything is signed.
    ///
    /// # Errors
    /// `Unauthenticated` for a token that is not good, with the reason; `InvalidArgument` for what is no request; `Unavailable` when the API
    /// does not answer.
    pub(crate) async fn join(&self, token: &str, csr: &str, from: Option<IpAddr>) -> Result<Joined, Status> {
        let token = JoinToken::parse(token).map_err(|error| Status::unauthenticated(error.to_string()))?;
        let request = CertificateRequest::from_pem(csr).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (key, from) = (request.key_digest(), from.map(|ip| ip.to_string()).unwrap_or_default());
        for _ in 0..TRIES {
            let kept = self.tokens.get(token.id()).await.map_err(away)?;
            let kept = kept.ok_or_else(|| Status::unauthenticated(TokenRefusal::Unknown.to_string()))?;
            let outcome = kept.record.judge(&token, &key, &from, self.clock.now());
            let outcome = outcome.map_err(|refusal| Status::unauthenticated(refusal.to_string()))?;
            let group = self.group_of(&kept.record).await?;
            if let Outcome::Take(record) = outcome {
                match self.tokens.replace(&kept, &record).await {
                    Ok(()) => info!(token = kept.id, group = record.group, from, "join token used"),
                    Err(StoreError::Conflict) => continue,
                    Err(StoreError::Api(error)) => return Err(away(error)),
                }
            }
            let (namespace, service_account) = (kept.record.namespace, kept.record.service_account);
            let spiffe = SpiffeId::istio(&self.place.trust_domain, &namespace, &service_account);
            let place = &self.place;
            let profile = entry::profile(&group, place.trust_domain.as_str(), &place.cluster, &place.domain);
            return Ok(Joined { caller: Caller { namespace, service_account, spiffe }, profile });
        }
        Err(Status::unavailable("the join token's record is being written by others"))
    }

    /// The group of a token, as long as it still is what the token was made for.
    async fn group_of(&self, record: &TokenRecord) -> Result<Value, Status> {
        let refuse = |text: String| Err(Status::unauthenticated(TokenRefusal::Group(text).to_string()));
        let (namespace, name) = (&record.namespace, &record.group);
        match self.group(namespace, name).await? {
            None => refuse(format!("the join token is for WorkloadGroup {namespace}/{name}, which is gone")),
            Some(group) if entry::account(&group) != record.service_account => refuse(format!(
                "the join token is for service account {}, but WorkloadGroup {namespace}/{name} has {} by now",
                record.service_account,
                entry::account(&group),
            )),
            Some(group) => Ok(group),
        }
    }

    async fn group(&self, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
        let found = self.api("WorkloadGroup", "workloadgroups", namespace).get_opt(name).await.map_err(away)?;
        Ok(found.and_then(|object| serde_json::to_value(object).ok()))
    }

    /// Makes the entry of a node that asks for it. `None` when it does not.
    ///
    /// # Errors
    /// `FailedPrecondition` without its group, `PermissionDenied` for another identity than the group's, `AlreadyExists` when somebody else
    /// has written an entry of that name, `Unavailable` when the API does not answer.
    pub(crate) async fn register(&self, id: &NodeId, node: &Node, caller: &Caller) -> Result<Option<EntryKey>, Status> {
        let Some(group_name) = metadata_text(node, "AUTO_REGISTER_GROUP").filter(|g| !g.is_empty()) else {
            return Ok(None);
        };
        let namespace = &caller.namespace;
        let group = self.group(namespace, group_name).await?.ok_or_else(|| {
            Status::failed_precondition(format!("there is no WorkloadGroup {namespace}/{group_name}"))
        })?;
        if entry::account(&group) != caller.service_account {
            return Err(Status::permission_denied(format!(
                "{} may not register for WorkloadGroup {namespace}/{group_name}, whose service account is {}",
                caller.spiffe,
                entry::account(&group),
            )));
        }
        let facts = facts(id, node);
        let ip = facts.ip.ok_or_else(|| Status::invalid_argument("the node tells no address"))?;
        let network = if facts.network.is_empty() {
            group.pointer("/spec/template/network").and_then(Value::as_str).unwrap_or_default()
        } else {
            &facts.network
        };
        let key = (namespace.clone(), entry::name(group_name, ip, network));
        let mut wanted = entry::entry(&group, &key.1, &facts);
        self.mark(&mut wanted, &[(CONTROLLER, Some(self.name.clone())), (CONNECTED, Some(self.now()))]);
        self.write(&key, group_name, &wanted).await?;
        Ok(Some(key))
    }

    async fn write(&self, key: &EntryKey, group: &str, wanted: &Value) -> Result<(), Status> {
        let api = self.entries(&key.0);
        for _ in 0..TRIES {
            let known = api.get_opt(&key.1).await.map_err(away)?;
            let Some(known) = known else {
                let object: DynamicObject =
                    serde_json::from_value(wanted.clone()).map_err(|error| Status::internal(error.to_string()))?;
                match api.create(&PostParams::default(), &object).await {
                    Ok(_) => {
                        info!(namespace = key.0, entry = key.1, group, "machine registered");
                        return Ok(());
                    }
                    Err(kube::Error::Api(status)) if status.code == 409 => continue,
                    Err(kube::Error::Api(status)) if status.code == 422 || status.code == 400 => {
                        return Err(Status::failed_precondition(format!(
                            "the API refuses WorkloadEntry {}/{}: {}",
                            key.0, key.1, status.message
                        )));
                    }
                    Err(error) => return Err(away(error)),
                }
            };
            if annotation(&known, GROUP) != Some(group) {
                return Err(Status::already_exists(format!(
                    "WorkloadEntry {}/{} is there already, and no machine of group {group} made it",
                    key.0, key.1
                )));
            }
            let mut patch = wanted.clone();
            self.mark(&mut patch, &[(DISCONNECTED, None)]);
            match api.patch(&key.1, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => {
                    debug!(namespace = key.0, entry = key.1, group, "machine is back");
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.code == 404 => continue,
                Err(error) => return Err(away(error)),
            }
        }
        Err(Status::unavailable("the WorkloadEntry is being written by others"))
    }

    /// A stream of a registered machine is open.
    pub(crate) fn came(&self, key: &EntryKey, stream: u64) {
        self.book().came(key, stream);
    }

    /// It ended.
    pub(crate) fn left(&self, key: &EntryKey, stream: u64) {
        let due = self.clock.monotonic().saturating_add(self.grace);
        if self.book().left(key, stream, due) {
            // When too much is told at once the entry goes without having been marked.
            let _ = self.told.try_send(Told::Left(key.clone()));
        }
    }

    /// The machine tells of its health.
    pub(crate) fn health(&self, key: &EntryKey, health: Health) {
        if self.told.try_send(Told::Health { key: key.clone(), health }).is_err() {
            warn!(entry = key.1, "too much is told at once; a machine's health is not taken");
        }
    }

    async fn run(self: Arc<Self>, mut heard: mpsc::Receiver<Told>, drain: Drain) {
        let mut sweep = self.clock.monotonic().saturating_add(RETURN);
        loop {
            let now = self.clock.monotonic();
            let next = self.book().next().map_or(sweep, |due| due.min(sweep));
            tokio::select! {
                () = drain.graceful() => return,
                told = heard.recv() => match told {
                    Some(Told::Left(key)) => self.disconnect(&key).await,
                    Some(Told::Health { key, health }) => self.report(&key, &health).await,
                    None => return,
                },
                () = self.clock.sleep(next.saturating_sub(now)) => {
                    let now = self.clock.monotonic();
                    if sweep <= now {
                        self.sweep().await;
                        sweep = now.saturating_add(SWEEP);
                    }
                    let due = self.book().due(now);
                    for key in due {
                        if !self.remove(&key).await {
                            self.book().again(key, now.saturating_add(self.grace));
                        }
                    }
                }
            }
        }
    }

    async fn disconnect(&self, key: &EntryKey) {
        if self.book().is_live(key) {
            return;
        }
        let mut patch = json!({});
        self.mark(&mut patch, &[(DISCONNECTED, Some(self.now()))]);
        match self.entries(&key.0).patch(&key.1, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => info!(namespace = key.0, entry = key.1, "machine disconnected"),
            Err(error) => debug!(entry = key.1, %error, "not marked as disconnected; it is removed all the same"),
        }
    }

    /// Deletes an entry whose machine stayed away; gives whether nothing is left to do.
    async fn remove(&self, key: &EntryKey) -> bool {
        let api = self.entries(&key.0);
        let known = match api.get_opt(&key.1).await {
            Ok(Some(known)) => known,
            Ok(None) => return true,
            Err(error) => {
                debug!(entry = key.1, %error, "not removed; it is tried again");
                return false;
            }
        };
        // Another control plane has it by now, or it is nobody's machine.
        let ours = annotation(&known, CONTROLLER) == Some(&self.name) && annotation(&known, GROUP).is_some();
        if !ours || self.book().is_live(key) {
            return true;
        }
        let preconditions =
            Preconditions { resource_version: known.metadata.resource_version, uid: known.metadata.uid };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match api.delete(&key.1, &params).await {
            Ok(_) => {
                info!(namespace = key.0, entry = key.1, "machine stayed away; its entry is removed");
                true
            }
            Err(kube::Error::Api(status)) => status.code == 404,
            Err(_) => false,
        }
    }

    /// Entries of machines that left while no control plane looked: nobody else would remove them.
    async fn sweep(&self) {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource("WorkloadEntry", "workloadentries"));
        let list = match api.list(&ListParams::default()).await {
            Ok(list) => list,
            Err(error) => return debug!(%error, "WorkloadEntries not listed"),
        };
        let due = self.clock.monotonic().saturating_add(self.grace);
        for object in list.items {
            let key = (
                object.metadata.namespace.clone().unwrap_or_default(),
                object.metadata.name.clone().unwrap_or_default(),
            );
            let ours = annotation(&object, CONTROLLER) == Some(&self.name) && annotation(&object, GROUP).is_some();
            if ours {
                self.book().again(key, due);
            }
        }
    }

    /// Writes what a machine says of its health.
    async fn report(&self, key: &EntryKey, health: &Health) {
        let api = self.entries(&key.0);
        for _ in 0..TRIES {
            let mut known = match api.get_opt(&key.1).await {
                Ok(Some(known)) => known,
                Ok(None) => return,
                Err(error) => return warn!(entry = key.1, %error, "a machine's health is not written"),
            };
            let before =
                known.data.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
            let conditions = conditions(before, health, &self.now());
            if let Some(fields) = known.data.as_object_mut() {
                let status = fields.entry("status").or_insert_with(|| json!({}));
                if !status.is_object() {
                    *status = json!({});
                }
                if let Some(status) = status.as_object_mut() {
                    status.insert("conditions".to_owned(), Value::Array(conditions));
                }
            }
            // The version that was read goes along: somebody else's conditions are not overwritten.
            let written = api.replace_status(&key.1, &PostParams::default(), &known).await;
            match written {
                Ok(_) => {
                    info!(namespace = key.0, entry = key.1, ?health, "machine's health");
                    return;
                }
                Err(kube::Error::Api(status)) if status.code == 409 => continue,
                Err(error) => return warn!(entry = key.1, %error, "a machine's health is not written"),
            }
        }
        warn!(entry = key.1, "a machine's health is not written: others write the same status");
    }

    fn mark(&self, object: &mut Value, marks: &[(&str, Option<String>)]) {
        let Some(object) = object.as_object_mut() else { return };
        let metadata = object.entry("metadata").or_insert_with(|| json!({}));
        let Some(metadata) = metadata.as_object_mut() else { return };
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        let Some(annotations) = annotations.as_object_mut() else { return };
        for (key, value) in marks {
            annotations.insert((*key).to_owned(), json!(value));
        }
    }

    fn now(&self) -> String {
        timestamp(self.clock.now())
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self, namespace: &str) -> Api<DynamicObject> {
        self.api("WorkloadEntry", "workloadentries", namespace)
    }

    fn api(&self, kind: &str, plural: &str, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &resource(kind, plural))
    }
}

fn timestamp(time: SystemTime) -> String {
    Timestamp::from_system(time).to_string()
}

fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: "networking.istio.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "networking.istio.io/v1".to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

fn annotation<'a>(object: &'a DynamicObject, key: &str) -> Option<&'a str> {
    object.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn away(error: kube::Error) -> Status {
    Status::unavailable(format!("the API: {error}"))
}

/// What a node tells of its machine.
fn facts(id: &NodeId, node: &Node) -> Facts {
    let text = |key: &str| metadata_text(node, key).unwrap_or_default().to_owned();
    let locality = node.locality.as_ref().map(|l| {
        let parts = [l.region.as_str(), l.zone.as_str(), l.sub_zone.as_str()];
        parts.into_iter().take_while(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    });
    let mut labels = metadata_map(node, "LABELS").unwrap_or_default();
    labels.remove("istio-locality");
    let config = node.metadata.as_ref().and_then(|m| m.fields.get("PROXY_CONFIG")).and_then(|v| v.kind.as_ref());
    let checked = match config {
        Some(NodeValue::StructValue(config)) => config.fields.contains_key("readinessProbe"),
        _ => false,
    };
    Facts {
        ip: instance_ips(node, id).first().copied(),
        network: text("NETWORK"),
        labels,
        locality: locality.unwrap_or_default(),
        checked,
    }
}

/// The conditions with this one among them.
fn conditions(mut before: Vec<Value>, health: &Health, now: &str) -> Vec<Value> {
    let (status, message) = match health {
        Health::Healthy => ("True", None),
        Health::Ill(message) => ("False", Some(message)),
    };
    let is_health = |condition: &Value| condition["type"] == "Healthy";
    let known = before.iter().find(|c| is_health(c) && c["status"] == status);
    let since = known.and_then(|c| c["lastTransitionTime"].as_str()).unwrap_or(now).to_owned();
    let mut own = json!({"type": "Healthy", "status": status, "lastProbeTime": now, "lastTransitionTime": since});
    if let (Some(message), Some(own)) = (message, own.as_object_mut()) {
        own.insert("message".to_owned(), json!(message));
    }
    before.retain(|condition| !is_health(condition));
    before.push(own);
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_one_condition_among_others() {
        let other = json!({"type": "Accepted", "status": "True"});
        let ill = conditions(vec![other.clone()], &Health::Ill("refused".into()), "t1");
        assert_eq!(ill[0], other);
        assert_eq!((&ill[1]["status"], &ill[1]["message"]), (&json!("False"), &json!("refused")));
        let still = conditions(ill.clone(), &Health::Ill("again".into()), "t2");
        assert_eq!((&still[1]["lastTransitionTime"], &still[1]["lastProbeTime"]), (&json!("t1"), &json!("t2")));
        let well = conditions(still, &Health::Healthy, "t3");
        assert_eq!((well.len(), &well[1]["status"], &well[1]["lastTransitionTime"]), (2, &json!("True"), &json!("t3")));
        assert!(well[1].get("message").is_none());
    }

    #[test]
    fn a_node_tells_of_its_machine() {
        let id: NodeId = "sidecar~192.0.2.7~ledger-1.gopay~gopay.svc.cluster.local".parse().expect("valid");
        let mut node = Node { id: id.to_string(), ..Node::default() };
        node.metadata.get_or_insert_default().fields.insert("NETWORK".into(), carrick_xds::node::text("dc"));
        let locality = node.locality.get_or_insert_default();
        (locality.region, locality.zone) = ("eu".into(), "a".into());
        let told = facts(&id, &node);
        assert_eq!((told.network.as_str(), told.locality.as_str(), told.checked), ("dc", "eu/a", false));
        assert_eq!(told.ip.map(|ip| ip.to_string()).as_deref(), Some("192.0.2.7"));
    }
}
