//! Objects from one version of their kind to another, where versions differ by more than their name.
//!
//! Invariant: objects are converted all together, once for each answer; what comes back is the same object (name, namespace, uid, kind)
//! in the version asked for, with nothing of its metadata changed but labels and annotations. One that cannot be converted is
//! an error, never shown as it is.
//! What it leaves to others: where a webhook is, and the way there (`webhooks::call`).

use super::objects::Call;
use super::patch::Patch;
use super::respond::Answer;
use super::{apply, decode};
use crate::admission::Operation;
use crate::catalog::{Conversion, Resource};
use crate::error::{ApiError, ApiResult};
use crate::store::{Store, name_of, resource_version_of};
use crate::webhooks::call::Caller;
use serde_json::{Value, json};

/// Seconds that a webhook has, as in Kubernetes.
const PATIENCE: u64 = 30;
/// How often a patch is made again because somebody else was faster.
const ATTEMPTS: usize = 5;

/// Objects as they are in `version`; those that are already stay.
///
/// # Errors
/// 500 in Kubernetes' words when a webhook does not do it.
pub async fn convert(
    store: &Store,
    resource: &Resource,
    mut objects: Vec<Value>,
    version: &str,
) -> ApiResult<Vec<Value>> {
    let wanted = resource.api_version(version);
    let webhook = match &resource.conversion {
        Conversion::Same => return Ok(objects),
        Conversion::BuiltIn(function) => {
            objects.iter_mut().for_each(|object| function(object, version));
            return Ok(objects);
        }
        Conversion::Webhook(webhook) => webhook,
    };
    let other = |object: &Value| object.get("apiVersion").and_then(Value::as_str) != Some(&wanted);
    let (places, sent): (Vec<usize>, Vec<Value>) =
        objects.iter().enumerate().filter(|(_, o)| other(o)).map(|(i, o)| (i, o.clone())).unzip();
    let Some(first) = sent.first() else { return Ok(objects) };
    let from = first.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let failed = |why: &str| {
        let message = format!("conversion webhook for {from}, Kind={} failed: {why}", resource.kind);
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": 500});
        ApiError::Told { code: 500, message, status: Box::new(status) }
    };
    let received = ask(store, webhook, &sent, &wanted).await.map_err(|why| failed(&why))?;
    if received.len() != sent.len() {
        return Err(failed(&format!("expected {} converted objects, got {}", sent.len(), received.len())));
    }
    for ((place, before), after) in places.into_iter().zip(&sent).zip(received) {
        let kept = restored(before, after, &wanted).map_err(|why| failed(&why))?;
        if let Some(slot) = objects.get_mut(place) {
            *slot = kept;
        }
    }
    Ok(objects)
}

async fn ask(store: &Store, webhook: &Value, objects: &[Value], wanted: &str) -> Result<Vec<Value>, String> {
    let versions = webhook.get("conversionReviewVersions").and_then(Value::as_array).into_iter().flatten();
    let known = versions.filter_map(Value::as_str).find(|v| matches!(*v, "v1" | "v1beta1")).unwrap_or("v1");
    let uid = uuid::Uuid::new_v4().to_string();
    let review = json!({
        "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{known}"),
        "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects},
    });
    let hook = json!({"clientConfig": webhook.get("clientConfig"), "timeoutSeconds": PATIENCE});
    let answer = Caller::default().call(store, &hook, &review).await;
    let (_, mut answer) = answer.map_err(|why| why.trim_start_matches("failed to call webhook: ").to_owned())?;
    let text = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if text("/response/uid") != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", text("/response/uid")));
    }
    if text("/response/result/status") != "Success" {
        return Err(match text("/response/result/message") {
            "" => format!("response.result.status was {:?}, not \"Success\"", text("/response/result/status")),
            message => message.to_owned(),
        });
    }
    match answer.pointer_mut("/response/convertedObjects").map(Value::take) {
        Some(Value::Array(objects)) => Ok(objects),
        _ => Err("the answer has no convertedObjects".into()),
    }
}

/// The object that came back, if it is the same, with the metadata that it had.
fn restored(before: &Value, mut after: Value, wanted: &str) -> Result<Value, String> {
    let text =
        |object: &Value, pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let version = text(&after, "/apiVersion");
    if version != wanted {
        return Err(format!("invalid converted object: invalid apiVersion {version:?}, expected {wanted:?}"));
    }
    for pointer in ["/kind", "/metadata/name", "/metadata/namespace", "/metadata/uid"] {
        if text(before, pointer) != text(&after, pointer) {
            let field = pointer.trim_start_matches('/').replace('/', ".");
            return Err(format!("invalid converted object: {field} was changed"));
        }
    }
    let mut metadata = before.get("metadata").cloned().unwrap_or_else(|| json!({}));
    let own = after.get("metadata").cloned().unwrap_or_default();
    if let (Some(map), Some(after)) = (metadata.as_object_mut(), after.as_object_mut()) {
        for field in ["labels", "annotations"] {
            match own.get(field).filter(|v| !v.is_null()) {
                Some(value) => drop(map.insert(field.into(), value.clone())),
                None => drop(map.shift_remove(field)),
            }
        }
        after.insert("metadata".into(), metadata);
    }
    Ok(after)
}

impl Call<'_> {
    /// Whether objects are not the same in all versions.
    pub(super) fn converts(&self) -> bool {
        !matches!(self.resource.conversion, Conversion::Same)
    }

    fn storage_version(&self) -> &str {
        self.resource.versions.first().map_or("v1", String::as_str)
    }

    /// The version in which an object is checked and its fields' owners are noted.
    pub(super) fn kept_version(&self) -> &str {
        if self.converts() { self.storage_version() } else { &self.path.version }
    }

    /// The path of the same object in that version.
    pub(super) fn kept_path(&self) -> super::request::ResourcePath {
        super::request::ResourcePath { version: self.kept_version().to_owned(), ..self.path.clone() }
    }

    /// Objects as they are to be shown.
    pub(super) async fn asked_for(&self, objects: Vec<Value>) -> ApiResult<Vec<Value>> {
        convert(&self.api.store, &self.resource, objects, &self.path.version).await
    }

    /// An object that a client sent, as it is to be stored.
    pub(super) async fn as_kept(&self, mut object: Value) -> ApiResult<Value> {
        if !self.converts() {
            return Ok(object);
        }
        if let Some(map) = object.as_object_mut() {
            map.insert("apiVersion".into(), json!(self.resource.api_version(&self.path.version)));
        }
        if let Some(definition) = self.resource.definition() {
            definition.default(&self.path.version, &mut object);
            let causes = definition.check(&self.path.version, &object, None);
            if !causes.is_empty() {
                return Err(ApiError::invalid(&self.resource.group, &self.resource.kind, name_of(&object), causes));
            }
        }
        self.one(object, self.storage_version()).await
    }

    async fn one(&self, object: Value, version: &str) -> ApiResult<Value> {
        let converted = convert(&self.api.store, &self.resource, vec![object], version).await?;
        converted.into_iter().next().ok_or_else(|| ApiError::Internal("a conversion gave nothing".into()))
    }

    /// PATCH of an object whose versions differ: it is patched as its version has it.
    pub(super) async fn patch_converted(&self, patch: &Patch, strictness: decode::Strictness) -> ApiResult<Answer> {
        let store = &self.api.store;
        let name = &self.path.name;
        for _ in 0..ATTEMPTS {
            let mut told = Vec::new();
            let old = store.get(&self.resource.id, &self.path.namespace, name);
            let seen = old.as_ref().and_then(resource_version_of);
            let shown = match &old {
                Some(old) => Some(self.one(old.clone(), &self.path.version).await?),
                None => None,
            };
            let new = match (patch, &shown) {
                (Patch::Apply(config, duplicates), shown) => {
                    let mut config = config.clone();
                    self.fit(&mut config)?;
                    told = decode::check(&self.resource, &self.path.version, &mut config, duplicates, strictness)?;
                    let options = apply::Options {
                        manager: self.query.get("fieldManager"),
                        force: self.query.flag("force"),
                        now: store.now(),
                    };
                    apply::apply(&self.resource, &self.path, shown.as_ref(), config, &options)?
                }
                (_, None) => return Err(ApiError::not_found(&self.resource.id, name)),
                (patch, Some(shown)) => self.patched(patch, shown, strictness, &mut told)?,
            };
            let new = self.as_kept(new).await?;
            let mut moved = false;
            let change = |now: Option<&Value>, warnings: &mut Vec<String>| {
                moved = now.and_then(resource_version_of) != seen;
                if moved {
                    return Err(ApiError::modified(&self.resource.id, name));
                }
                warnings.extend(told.iter().cloned());
                let Some(now) = now else {
                    self.api.store.check_namespace(&self.resource, &self.path.namespace, name)?;
                    let mut new = new.clone();
                    warnings.extend(self.admit(&mut new, Operation::Create, None)?);
                    return Ok(new);
                };
                let mut new = self.compose(now, new.clone())?;
                warnings.extend(self.admit(&mut new, Operation::Update, Some(now))?);
                if !matches!(patch, Patch::Apply(..)) {
                    apply::track(
                        &self.resource,
                        &self.kept_path(),
                        self.manager(),
                        now,
                        &mut new,
                        self.api.store.now(),
                    );
                }
                Ok(new)
            };
            match self.write(change).await {
                Err(_) if moved => {}
                written => {
                    let (written, warnings) = written?;
                    return self.show(if written.created { 201 } else { 200 }, written.object, &warnings).await;
                }
            }
        }
        Err(ApiError::modified(&self.resource.id, name))
    }
}
