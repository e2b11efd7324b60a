//! Admission by others: webhooks, called as Kubernetes calls them, and policies in CEL.
//!
//! Invariant: mutating hooks run one after the other, in the order of their configurations' names, then validating ones
//! see what is going to be stored; a hook that cannot be asked refuses the write unless its `failurePolicy` is `Ignore`.
//! Objects of `admissionregistration.k8s.io` are never shown to hooks, so that a broken hook can always be removed.
//! What it leaves to others: the configurations' own rules (`controllers::admission`), when to ask (`rest`).

pub(crate) mod call;
mod conditions;
mod matching;
pub mod policies;
mod review;

use crate::admission::Operation;
use crate::authorize::User;
use crate::catalog::Resource;
use crate::error::{ApiError, ApiResult};
use crate::store::{Store, name_of};
use call::Caller;
use review::Verdict;
use serde_json::{Value, json};

/// The configurations whose hooks may change objects.
pub const MUTATING: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
/// The configurations whose hooks only say yes or no.
pub const VALIDATING: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";
const GROUP: &str = "admissionregistration.k8s.io";

/// The write that hooks are asked about.
pub struct Request<'a> {
    /// Every stored object.
    pub store: &'a Store,
    /// The resource.
    pub resource: &'a Resource,
    /// Version in the URL.
    pub version: &'a str,
    /// `""`, `status`, …
    pub subresource: &'a str,
    /// Namespace, empty for cluster scope.
    pub namespace: &'a str,
    /// Name in the URL; empty for a creation.
    pub name: &'a str,
    /// The kind of write.
    pub operation: Operation,
    /// Who asks.
    pub user: &'a User,
    /// Nothing is going to be stored.
    pub dry_run: bool,
    /// The request's parameters: `CreateOptions` and the like.
    pub options: Value,
}

/// One hook of a configuration.
struct Hook {
    /// The whole entry of `webhooks`.
    entry: Value,
    mutating: bool,
}

impl Hook {
    fn text(&self, field: &str) -> &str {
        self.entry.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.text("name")
    }

    fn ignores_failures(&self) -> bool {
        self.text("failurePolicy") == "Ignore"
    }

    fn again(&self) -> bool {
        self.text("reinvocationPolicy") == "IfNeeded"
    }
}

/// A hook that a write matches, and the version of the resource that it wants to see.
struct Chosen {
    hook: Hook,
    version: String,
}

/// Asks hooks. One per server.
#[derive(Default)]
pub struct Webhooks {
    caller: Caller,
}

impl Webhooks {
    /// Whether any configuration is stored; cheap, and mostly the end of the matter.
    pub fn any(&self, request: &Request<'_>) -> bool {
        let engine = request.store.engine();
        let stored = [MUTATING, VALIDATING, policies::BINDINGS].iter().any(|r| engine.count(r) > 0);
        request.resource.group != GROUP && stored
    }

    /// The object after the mutating hooks, and whether one of them changed it. `object` is in its storage version, and
    /// `None` when it goes away.
    ///
    /// # Errors
    /// What a hook says, or why it could not be asked.
    pub async fn mutate(
        &self,
        request: &Request<'_>,
        object: Option<Value>,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> ApiResult<(Option<Value>, bool)> {
        let mut object = object;
        let mut changed = false;
        // A hook that wants to see what later hooks did, and the object as it left it.
        let mut watching: Vec<(Hook, Option<Value>)> = Vec::new();
        for hook in hooks(request.store, MUTATING, true) {
            let Some(chosen) = choose(request, hook, object.as_ref(), old)? else { continue };
            let before = object.clone();
            object = self.ask(request, &chosen, object, old, warnings).await?;
            changed |= object != before;
            if chosen.hook.again() {
                watching.push((chosen.hook, object.clone()));
            }
        }
        for (hook, left) in watching {
            if left == object {
                continue;
            }
            let Some(chosen) = choose(request, hook, object.as_ref(), old)? else { continue };
            let before = object.clone();
            object = self.ask(request, &chosen, object, old, warnings).await?;
            changed |= object != before;
        }
        Ok((object, changed))
    }

    /// Holds a write against the policies, then asks the validating hooks, all at the same time.
    ///
    /// # Errors
    /// What the first refusing hook says, or why one could not be asked.
    pub async fn validate(
        &self,
        request: &Request<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> ApiResult<()> {
        policies::validate(request, object, old, warnings)?;
        let mut chosen = Vec::new();
        for hook in hooks(request.store, VALIDATING, false) {
            chosen.extend(choose(request, hook, object, old)?);
        }
        let asked = chosen.iter().map(|chosen| async move {
            let mut told = Vec::new();
            let outcome = self.ask(request, chosen, object.cloned(), old, &mut told).await;
            (outcome, told)
        });
        let mut refused = None;
        for (outcome, told) in futures_util::future::join_all(asked).await {
            warnings.extend(told);
            if let Err(error) = outcome {
                refused.get_or_insert(error);
            }
        }
        refused.map_or(Ok(()), Err)
    }

    async fn ask(
        &self,
        request: &Request<'_>,
        chosen: &Chosen,
        object: Option<Value>,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> ApiResult<Option<Value>> {
        let hook = &chosen.hook;
        if request.dry_run && !matches!(hook.text("sideEffects"), "None" | "NoneOnDryRun") {
            let why = format!("admission webhook {:?} does not support dry run", hook.name());
            return Err(ApiError::BadRequest(why));
        }
        let (uid, sent) = review::request(request, chosen, object.as_ref(), old);
        let verdict = self
            .caller
            .call(request.store, &hook.entry, &sent)
            .await
            .and_then(|answer| review::read(&answer, &uid, hook.mutating));
        match verdict {
            Err(why) => {
                let message = format!("failed calling webhook {:?}: {why}", hook.name());
                if hook.ignores_failures() {
                    tracing::warn!(hook = hook.name(), %why, "an admission webhook was not reached and is passed over");
                    return Ok(object);
                }
                Err(ApiError::Internal(message))
            }
            Ok(Verdict { allowed, status, patch, warnings: told, annotations }) => {
                warnings.extend(told);
                for (key, value) in annotations {
                    tracing::info!(hook = hook.name(), key, %value, "audit annotation of an admission webhook");
                }
                if !allowed {
                    return Err(review::refusal(hook.name(), status));
                }
                match (object, patch) {
                    (Some(object), Some(patch)) => patched(request, chosen, object, &patch).map(Some),
                    (None, Some(_)) => {
                        Err(ApiError::Internal("admission webhook attempted to modify the object being deleted".into()))
                    }
                    (object, None) => Ok(object),
                }
            }
        }
    }
}

/// The object after a hook's patch, back in its storage version.
fn patched(request: &Request<'_>, chosen: &Chosen, object: Value, patch: &json_patch::Patch) -> ApiResult<Value> {
    let mut shown = review::versioned(request.resource, &chosen.version, object);
    for operation in &patch.0 {
        let done = json_patch::patch(&mut shown, std::slice::from_ref(operation));
        done.map_err(|error| ApiError::Internal(misfit(operation, &shown, &error)))?;
    }
    let kept = shown.get("kind").and_then(Value::as_str) == Some(request.resource.kind.as_str());
    if !kept {
        let why = format!("webhook {:?} made an object of another kind", chosen.hook.name());
        return Err(ApiError::Internal(why));
    }
    if let Some(map) = shown.as_object_mut() {
        map.insert("apiVersion".into(), json!(request.resource.storage_api_version()));
    }
    Ok(shown)
}

/// Why an operation of a patch does not fit an object, in the words of Kubernetes' library where it is missing something.
fn misfit(operation: &json_patch::PatchOperation, object: &Value, error: &json_patch::PatchError) -> String {
    use json_patch::PatchOperation::{Add, Remove, Replace, Test};
    let (name, path) = match operation {
        Add(add) => ("add", add.path.to_string()),
        Remove(remove) => ("remove", remove.path.to_string()),
        Replace(replace) => ("replace", replace.path.to_string()),
        Test(test) => return format!("testing value {} failed: test failed", test.path),
        _ => return error.to_string(),
    };
    let (parent, key) = path.rsplit_once('/').unwrap_or(("", path.as_str()));
    match object.pointer(parent) {
        Some(Value::Object(_)) if name == "remove" => {
            format!("error in remove for path: '{path}': Unable to remove nonexistent key: {key}: missing value")
        }
        Some(Value::Object(_)) if name == "replace" => {
            format!("replace operation does not apply: doc is missing key: {path}: missing value")
        }
        Some(Value::Array(_) | Value::Object(_)) => format!("error in {name} for path: '{path}': {error}"),
        _ if name == "replace" => {
            format!("replace operation does not apply: doc is missing path: {path}: missing value")
        }
        _ => format!("{name} operation does not apply: doc is missing path: {path:?}: missing value"),
    }
}

/// All hooks of one sort, in the order in which they are asked.
fn hooks(store: &Store, resource: &str, mutating: bool) -> Vec<Hook> {
    let mut configurations = store.list(resource, None).items;
    configurations.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    configurations
        .iter_mut()
        .filter_map(|c| c.get_mut("webhooks").and_then(Value::as_array_mut))
        .flat_map(std::mem::take)
        .map(|entry| Hook { entry, mutating })
        .collect()
}

/// Whether a hook is to see this write.
fn choose(request: &Request<'_>, hook: Hook, object: Option<&Value>, old: Option<&Value>) -> ApiResult<Option<Chosen>> {
    let Some(version) = matching::version(request, &hook.entry) else { return Ok(None) };
    if !matching::selected(request, &hook.entry, object, old)? {
        return Ok(None);
    }
    let chosen = Chosen { hook, version };
    match conditions::hold(request, &chosen, object, old) {
        Ok(true) => Ok(Some(chosen)),
        Ok(false) => Ok(None),
        Err(why) if chosen.hook.ignores_failures() => {
            tracing::warn!(hook = chosen.hook.name(), %why, "a match condition failed and its webhook is passed over");
            Ok(None)
        }
        Err(why) => {
            let subject = if request.name.is_empty() { object.map_or("", name_of) } else { request.name };
            Err(ApiError::forbidden(&request.resource.id, subject, why))
        }
    }
}
