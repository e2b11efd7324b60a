//! The verbs on objects: get, list, watch, create, update, patch, delete.
//!
//! Invariant: every write goes decode → field validation → admission → webhooks → store, and again from the object as it is now
//! when somebody else was faster. Status and the rest of an object are written apart where the kind says so.
//! What it leaves to others: who may (before), durability (`store`), per-kind rules (`controllers::Admission`).

use super::apply;
use super::decode::{self, Strictness};
use super::negotiate::{self, Form};
use super::patch::Patch;
use super::request::{Query, ResourcePath};
use super::respond::{self, Answer};
use super::table::{ListMeta, Shape};
use super::watch::{self, WatchRequest};
use super::{Api, continuation, listing};
use crate::admission::{AdmitContext, Operation};
use crate::authorize::User;
use crate::catalog::Resource;
use crate::error::{ApiError, ApiResult, Cause};
use crate::selector::Selectors;
use crate::storage::Page;
use crate::store::{
    DeleteOptions, Deleted, Intent, WriteOptions, Written, decode_record, name_of, namespace_of, resource_version_of,
};
use crate::webhooks;
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Objects of a collection deleted at the same time.
const TOGETHER: usize = 128;
/// Addresses that are looked for anew, for a Service for which other servers were faster.
const CLAIM_ATTEMPTS: usize = 8;
/// How often a write is shown to webhooks again because somebody else was faster.
const HOOKED_ATTEMPTS: usize = 5;

/// One request for objects, authorized.
pub struct Call<'a> {
    /// The server.
    pub api: &'a Api,
    /// The resource.
    pub resource: Arc<Resource>,
    /// Parts of the path.
    pub path: ResourcePath,
    /// Parameters.
    pub query: Query,
    /// The caller.
    pub user: User,
    /// `Accept`.
    pub accept: String,
    /// First word of `User-Agent`, the field manager of those who name none.
    pub agent: String,
    /// `Content-Type` of the body.
    pub content_type: String,
}

impl Call<'_> {
    fn id(&self) -> &str {
        &self.resource.id
    }

    pub(super) fn form(&self) -> ApiResult<Form> {
        negotiate::form(&self.accept)
    }

    fn shape(&self, form: Form) -> Shape<'_> {
        Shape {
            resource: &self.resource,
            version: &self.path.version,
            form,
            include: self.query.get("includeObject"),
            now: self.api.store.clock().now(),
        }
    }

    /// The form of a list, or of one object; the metadata of the one is not that of the other.
    fn form_of(&self, list: bool) -> ApiResult<Form> {
        let form = self.form()?;
        if form == Form::Metadata && list != negotiate::asks_for_list(&self.accept) {
            let group = self.resource.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
            let kind = if self.resource.is_custom() {
                format!("unstructured.Unstructured{}", if list { "List" } else { "" })
            } else {
                format!("{group}.{}{}", self.resource.kind, if list { "List" } else { "" })
            };
            let (asked, is) =
                if list { ("PartialObjectMetadata", "a list") } else { ("PartialObjectMetadataList", "not a list") };
            let why = format!("you requested {asked}, but the requested object is {is} (*{kind})");
            return Err(ApiError::NotAcceptable(why));
        }
        let include = self.query.get("includeObject");
        if let (Form::Table, Some(other)) = (form, include.filter(|i| !matches!(*i, "Metadata" | "Object" | "None"))) {
            return Err(ApiError::BadRequest(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            )));
        }
        Ok(form)
    }

    pub(super) async fn show(&self, code: u16, object: Value, warnings: &[String]) -> ApiResult<Answer> {
        let form = self.form_of(false)?;
        let object = self.asked_for(vec![object]).await?.into_iter().next().unwrap_or_default();
        let mut answer = respond::json(code, &self.shape(form).one(object, true));
        respond::warn(&mut answer, warnings);
        Ok(answer)
    }

    fn namespace(&self) -> Option<&str> {
        (!self.path.namespace.is_empty()).then_some(self.path.namespace.as_str())
    }

    fn selectors(&self) -> ApiResult<Selectors> {
        let selectable = self.resource.definition().map_or(&[][..], |d| d.selectable(&self.path.version));
        let own = self.resource.is_custom().then_some(selectable);
        Selectors::of(self.id(), own, self.query.get("labelSelector"), self.query.get("fieldSelector"))
    }

    /// Who the written fields belong to.
    pub fn manager(&self) -> &str {
        self.query.get("fieldManager").unwrap_or(&self.agent)
    }

    /// GET of one object.
    pub async fn get(&self) -> ApiResult<Answer> {
        self.revision_parameter(true)?;
        let object = self.api.store.get(self.id(), &self.path.namespace, &self.path.name);
        let object = object.ok_or_else(|| ApiError::not_found(self.id(), &self.path.name))?;
        self.show(200, object, &[]).await
    }

    /// Waits until the store has reached the revision a client has seen elsewhere.
    async fn reach(&self, revision: u64) -> ApiResult<()> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(3);
        while self.api.store.revision() < revision {
            if tokio::time::Instant::now() >= deadline {
                return Err(watch::too_large(revision, self.api.store.revision()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Kubernetes takes a wrong one of a list for the client's mistake, and any other (`unnamed`) for its own.
    fn revision_parameter(&self, unnamed: bool) -> ApiResult<Option<u64>> {
        let Some(text) = self.query.get("resourceVersion") else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            let why = format!("resourceVersion: Invalid value: {text:?}: {}", no_number(text));
            if unnamed {
                ApiError::unnamed(500, why)
            } else {
                ApiError::BadRequest(format!("invalid resource version: {why}"))
            }
        })
    }

    /// What of a list's parameters does not go together.
    fn check_list(&self, asked: Option<u64>) -> ApiResult<()> {
        let matched = self.query.get("resourceVersionMatch");
        let cause = match (matched, asked) {
            _ if self.query.get("sendInitialEvents").is_some() => {
                Cause::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list")
            }
            (None, _) => return Ok(()),
            (Some(_), None) => {
                let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
                Cause::forbidden("resourceVersionMatch", why)
            }
            (Some("Exact"), Some(0)) => {
                let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
                Cause::forbidden("resourceVersionMatch", why)
            }
            (Some("Exact" | "NotOlderThan"), _) => return Ok(()),
            (Some(other), _) => {
                Cause::unsupported("resourceVersionMatch", &json!(other), &["Exact", "NotOlderThan", ""])
            }
        };
        Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", vec![cause]))
    }

    /// GET of a collection.
    pub async fn list(&self) -> ApiResult<Answer> {
        let form = self.form_of(true)?;
        let selectors = self.selectors()?;
        let limit = self.query.number::<i64>("limit")?.and_then(|l| usize::try_from(l).ok()).filter(|l| *l > 0);
        self.query.number::<i64>("timeoutSeconds")?;
        let asked = self.revision_parameter(false)?;
        self.check_list(asked)?;
        // What the server has at hand is given whole.
        let whole = asked == Some(0) && self.query.get("continue").is_none();
        let limit = limit.filter(|_| !whole);
        let (after, at, left) = match self.query.get("continue") {
            Some(token) => {
                let place = continuation::decode(token)?;
                (Some((place.namespace, place.name)), Some(place.revision), place.left)
            }
            None => {
                let exact = self.query.get("resourceVersionMatch") == Some("Exact");
                (None, asked.filter(|_| exact), None)
            }
        };
        if let Some(revision) = at.or(asked) {
            self.reach(revision).await?;
        }
        let after = after.as_ref().map(|(ns, name)| (ns.as_str(), name.as_str()));
        let engine = self.api.store.engine();
        let want = if selectors.is_empty() { limit } else { None };
        let page = engine.page(self.id(), self.namespace(), after, want, at);
        let mut page = page.map_err(|error| self.list_error(error))?;
        if let Some(left) = left.filter(|_| page.next.is_some()) {
            page.remaining = Some(left.saturating_sub(page.items.len() as u64));
        }
        if form == Form::Plain && selectors.is_empty() && page.items.len() > listing::LONG && !self.converts() {
            let next = page.next.map(|(ns, name)| continuation::encode(page.revision, &ns, &name, page.remaining));
            let meta = ListMeta { revision: page.revision, next, remaining: page.remaining };
            let records = page.items.into_iter().map(|(_, record)| record).collect();
            let (resource, now) = (self.resource.clone(), self.api.store.clock().now());
            return Ok(listing::answer(resource, &self.path.version, now, records, &meta));
        }
        let (objects, meta) = select(page, &selectors, limit);
        let objects = self.asked_for(objects).await?;
        Ok(respond::json(200, &self.shape(form).list(objects, &meta)))
    }

    fn list_error(&self, error: crate::storage::StorageError) -> ApiError {
        match error {
            crate::storage::StorageError::Compacted { .. } if self.query.get("continue").is_some() => {
                ApiError::Expired(
                    "The provided continue parameter is too old to display a consistent list result. \
                 You must start a new list without the continue parameter."
                        .into(),
                )
            }
            other => crate::store::storage_error(self.id(), "", other),
        }
    }

    /// GET with `watch`.
    pub async fn watch(&self) -> ApiResult<Answer> {
        let form = self.form()?;
        let mut selectors = self.selectors()?;
        if !self.path.name.is_empty() {
            selectors.fields.add_name(&self.path.name);
        }
        let asked = self.revision_parameter(true)?.filter(|r| *r != 0);
        let initial = self.query.get("sendInitialEvents");
        let exact = self.query.get("resourceVersionMatch");
        let refused = |field: &str, why: &str| {
            let cause = Cause::forbidden(field, why);
            ApiError::invalid("meta.k8s.io", "ListOptions", "", vec![cause])
        };
        match (initial, exact) {
            (Some(_), Some("NotOlderThan")) | (None, None) => {}
            (Some(_), _) => {
                let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return Err(refused("resourceVersionMatch", why));
            }
            (None, Some(_)) => {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                return Err(refused("resourceVersionMatch", why));
            }
        }
        let bookmarks = self.query.flag("allowWatchBookmarks");
        if let Some(revision) = asked {
            self.reach(revision).await?;
        }
        let since = match initial {
            Some("true") => None,
            Some(_) => Some(asked.unwrap_or_else(|| self.api.store.revision())),
            None => asked,
        };
        let seconds =
            self.query.number::<i64>("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
        // Streams end after half an hour to an hour, not all at once.
        let life = seconds.unwrap_or_else(|| rand::random_range(1800..3600)).min(24 * 3600);
        let permit = self.api.watcher()?;
        let request = WatchRequest {
            resource: self.resource.clone(),
            version: self.path.version.clone(),
            namespace: self.namespace().map(str::to_owned),
            selectors,
            form,
            include: self.query.get("includeObject").map(str::to_owned),
            since,
            bookmarks,
            mark_initial_end: initial == Some("true") && bookmarks,
            timeout: Duration::from_secs(life),
        };
        watch::start(&self.api.store, request, self.api.drain.clone(), permit)
    }

    /// Checks that a decoded object is what the URL says, and gives it the storage version.
    pub(super) fn fit(&self, object: &mut Value) -> ApiResult<()> {
        let expected = self.resource.api_version(&self.path.version);
        let map = object.as_object_mut().ok_or_else(|| ApiError::BadRequest("the body is not an object".into()))?;
        let given = |map: &serde_json::Map<String, Value>, key: &str| {
            map.get(key).and_then(Value::as_str).unwrap_or("").to_owned()
        };
        let (kind, version) = (given(map, "kind"), given(map, "apiVersion"));
        if (!version.is_empty() && version != expected) || (!kind.is_empty() && kind != self.resource.kind) {
            return Err(ApiError::BadRequest(self.misfit(&version, &kind, &expected)));
        }
        map.insert("apiVersion".into(), json!(self.resource.storage_api_version()));
        map.insert("kind".into(), json!(self.resource.kind));
        let meta = map.entry("metadata").or_insert_with(|| json!({}));
        if meta.is_null() {
            *meta = json!({});
        }
        // What is no map is the schema's to refuse.
        let Some(meta) = meta.as_object_mut() else { return Ok(()) };
        if self.resource.namespaced {
            let namespace = meta.get("namespace").and_then(Value::as_str).unwrap_or("").to_owned();
            if namespace.is_empty() {
                meta.insert("namespace".into(), json!(self.path.namespace));
            } else if namespace != self.path.namespace {
                return Err(ApiError::BadRequest(
                    "the namespace of the provided object does not match the namespace sent on the request".into(),
                ));
            }
        }
        if !self.path.name.is_empty() {
            let name = meta.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
            if name.is_empty() {
                meta.insert("name".into(), json!(self.path.name));
            } else if name != self.path.name {
                return Err(ApiError::BadRequest(format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    self.path.name
                )));
            }
        }
        Ok(())
    }

    /// Why an object of another kind or version is none of this resource's.
    fn misfit(&self, version: &str, kind: &str, expected: &str) -> String {
        let own = &self.resource.kind;
        let (kind, version) =
            (if kind.is_empty() { own } else { kind }, if version.is_empty() { expected } else { version });
        if self.resource.is_custom() {
            return if version == expected {
                format!("the kind in the data ({kind}) does not match the expected kind ({own})")
            } else {
                format!("the API version in the data ({version}) does not match the expected API version ({expected})")
            };
        }
        let (group, bare) = version.split_once('/').unwrap_or(("", version));
        let mut known = self.api.store.catalog().iter();
        let begin = format!("{kind} in version {bare:?} cannot be handled as a {own}: ");
        if known.any(|r| r.group == group && r.kind == kind && r.versions.iter().any(|v| v == bare)) {
            let package = self.resource.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
            return format!("{begin}converting ({bare}.{kind}) to ({package}.{own}): unknown conversion");
        }
        format!(
            "{begin}no kind {kind:?} is registered for version {version:?} in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\""
        )
    }

    /// Decodes and checks a body that is one object of this resource.
    pub fn body(&self, body: &Bytes) -> ApiResult<(Value, Vec<String>)> {
        let strictness = Strictness::parse(self.query.get("fieldValidation"))?;
        let own = if self.resource.is_custom() { "" } else { &self.resource.kind };
        let document = decode::object(&self.content_type, body, own)?;
        let mut object = document.value;
        self.fit(&mut object)?;
        let version = &self.path.version;
        let warnings = decode::check(&self.resource, version, &mut object, &document.duplicates, strictness)?;
        Ok((object, warnings))
    }

    pub(super) fn admit(
        &self,
        object: &mut Value,
        operation: Operation,
        old: Option<&Value>,
    ) -> ApiResult<Vec<String>> {
        let context = AdmitContext {
            store: &self.api.store,
            resource: &self.resource.id,
            kind: &self.resource.kind,
            subresource: &self.path.subresource,
            namespace: &self.path.namespace,
            user: &self.user,
            old,
            dry_run: self.query.dry_run()?,
        };
        let definition = self.resource.definition().filter(|_| operation != Operation::Delete);
        if let Some(definition) = definition {
            definition.default(self.kept_version(), object);
            // Objects are kept in the first version.
            definition.default(self.resource.versions.first().map_or("", String::as_str), object);
        }
        let warnings = self.api.admission.admit(object, operation, &context)?;
        if let Some(definition) = definition {
            let causes = definition.check(self.kept_version(), object, old);
            if !causes.is_empty() {
                return Err(ApiError::invalid(&self.resource.group, &self.resource.kind, name_of(object), causes));
            }
        }
        Ok(warnings)
    }

    fn options(&self) -> ApiResult<WriteOptions> {
        Ok(WriteOptions { dry_run: self.query.dry_run()? })
    }

    /// POST of an object.
    pub async fn create(&self, body: &Bytes) -> ApiResult<Answer> {
        let (object, mut warnings) = self.body(body)?;
        let object = self.as_kept(object).await?;
        let (created, more) = self.create_object(object).await?;
        warnings.extend(more);
        self.show(201, created, &warnings).await
    }

    async fn create_object(&self, object: Value) -> ApiResult<(Value, Vec<String>)> {
        let contested = self.id() == "services" && self.api.store.engine().is_shared();
        for _ in 0..if contested { CLAIM_ATTEMPTS } else { 0 } {
            match self.create_once(object.clone()).await {
                // Another server gave the same address to somebody else meanwhile; by now that shows here.
                Err(ApiError::Conflict { .. }) => {}
                outcome => return outcome,
            }
        }
        self.create_once(object).await
    }

    async fn create_once(&self, mut object: Value) -> ApiResult<(Value, Vec<String>)> {
        self.api.store.check_namespace(&self.resource, &self.path.namespace, name_of(&object))?;
        if self.resource.has_status
            && let Some(map) = object.as_object_mut()
        {
            map.shift_remove("status");
        }
        self.fresh_uid(&mut object);
        let sent = object.clone();
        let mut warnings = self.admit(&mut object, Operation::Create, None)?;
        apply::note_creation(
            &self.resource,
            &self.kept_path(),
            self.manager(),
            &sent,
            &mut object,
            self.api.store.now(),
        );
        let mut object = self.hooked(Operation::Create, object, None, &mut warnings).await?;
        // Held until the object is stored, so that the next one counts it.
        let _turn = self.quota_turn().await;
        self.within_quota(&object, None)?;
        if let (true, Some(map)) = (self.resource.has_status && !self.resource.is_custom(), object.as_object_mut()) {
            map.entry("status").or_insert_with(|| json!({}));
        }
        let created = self.api.store.create_with(self.id(), object, self.options()?).await?;
        Ok((created, warnings))
    }

    /// Puts together what is stored from what was and what was sent, by subresource.
    pub(super) fn compose(&self, old: &Value, mut sent: Value) -> ApiResult<Value> {
        let version = sent.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
        if !version.is_empty() && version.parse::<u64>().is_err() {
            return Err(ApiError::unnamed(500, no_number(version)));
        }
        let part = |from: &Value, key: &str| from.get(key).cloned();
        let put = |into: &mut Value, key: &str, value: Option<Value>| {
            if let Some(map) = into.as_object_mut() {
                match value {
                    Some(value) => map.insert(key.to_owned(), value),
                    None => map.shift_remove(key),
                };
            }
        };
        match self.path.subresource.as_str() {
            "" => {
                if self.resource.has_status {
                    put(&mut sent, "status", part(old, "status"));
                }
                Ok(sent)
            }
            "status" => {
                let mut new = old.clone();
                put(&mut new, "status", part(&sent, "status"));
                carry_version(&sent, &mut new);
                Ok(new)
            }
            // Whoever may approve says so, and nothing else.
            "approval" => {
                let mut new = old.clone();
                let mut status = part(old, "status").unwrap_or_else(|| json!({}));
                put(&mut status, "conditions", sent.pointer("/status/conditions").cloned());
                put(&mut new, "status", Some(status));
                carry_version(&sent, &mut new);
                Ok(new)
            }
            "finalize" => {
                let mut new = old.clone();
                put(&mut new, "spec", part(&sent, "spec"));
                carry_version(&sent, &mut new);
                Ok(new)
            }
            _ => Err(ApiError::NoSuchPath),
        }
    }

    /// A new Job's own uid, whatever was sent: its pods are named by it at admission.
    fn fresh_uid(&self, object: &mut Value) {
        let meta = object.get_mut("metadata").and_then(Value::as_object_mut);
        if let Some(meta) = meta.filter(|_| self.id() == "jobs.batch") {
            meta.insert("uid".into(), json!(uuid::Uuid::new_v4().to_string()));
        }
    }

    /// What webhooks are told of this request.
    fn review(&self, operation: Operation, dry_run: bool) -> webhooks::Request<'_> {
        let kind = match operation {
            Operation::Create => "CreateOptions",
            Operation::Delete => "DeleteOptions",
            Operation::Update if self.content_type.contains("patch") => "PatchOptions",
            Operation::Update => "UpdateOptions",
        };
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if let Some(map) = options.as_object_mut() {
            for field in ["fieldManager", "fieldValidation"] {
                if let Some(value) = self.query.get(field) {
                    map.insert(field.into(), json!(value));
                }
            }
            if dry_run {
                map.insert("dryRun".into(), json!(["All"]));
            }
        }
        webhooks::Request {
            store: &self.api.store,
            resource: &self.resource,
            version: &self.path.version,
            subresource: &self.path.subresource,
            namespace: &self.path.namespace,
            name: &self.path.name,
            operation,
            user: &self.user,
            dry_run,
            options,
        }
    }

    /// Shows a write to the webhooks; what they make of the object is checked as if the client had sent it.
    async fn hooked(
        &self,
        operation: Operation,
        object: Value,
        old: Option<&Value>,
        warnings: &mut Vec<String>,
    ) -> ApiResult<Value> {
        let request = self.review(operation, self.query.dry_run()?);
        let hooks = &self.api.webhooks;
        if !hooks.any(&request) {
            return Ok(object);
        }
        let (shown, changed) = hooks.mutate(&request, Some(object), old, warnings).await?;
        let mut object = shown.unwrap_or_default();
        if changed {
            if namespace_of(&object) != self.path.namespace {
                return Err(ApiError::Internal("a webhook moved the object to another namespace".into()));
            }
            let findings = decode::inspect(&self.resource, &self.path.version, &mut object, &[]);
            decode::refuse_wrong(&self.resource, &self.path.version, &object, findings.wrong)?;
            warnings.extend(self.admit(&mut object, operation, old)?);
        }
        hooks.validate(&request, Some(&object), old, warnings).await?;
        Ok(object)
    }

    /// Shows a deletion to the webhooks.
    async fn hooked_delete(&self, old: &Value, dry_run: bool, warnings: &mut Vec<String>) -> ApiResult<()> {
        let mut request = self.review(Operation::Delete, dry_run);
        let hooks = &self.api.webhooks;
        if !hooks.any(&request) {
            return Ok(());
        }
        request.name = name_of(old);
        request.namespace = namespace_of(old);
        hooks.mutate(&request, None, Some(old), warnings).await?;
        hooks.validate(&request, None, Some(old), warnings).await
    }

    /// Writes in a namespace that has quotas are done one after the other.
    async fn quota_turn(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let namespace = self.namespace()?;
        let any = self.api.store.engine().count(crate::quota::QUOTAS) > 0
            && !self.api.store.list(crate::quota::QUOTAS, Some(namespace)).items.is_empty();
        if any { Some(self.api.quotas.lock().await) } else { None }
    }

    fn within_quota(&self, object: &Value, old: Option<&Value>) -> ApiResult<()> {
        let none = self.namespace().is_none() || !self.path.subresource.is_empty();
        if none || self.api.store.engine().count(crate::quota::QUOTAS) == 0 {
            return Ok(());
        }
        crate::quota::check(&self.api.store, self.id(), &self.path.namespace, object, old)
    }

    /// Reads, changes and stores, again when somebody else was faster; `change` may run several times.
    pub(super) async fn write(
        &self,
        mut change: impl FnMut(Option<&Value>, &mut Vec<String>) -> ApiResult<Value>,
    ) -> ApiResult<(Written, Vec<String>)> {
        let (store, options) = (&self.api.store, self.options()?);
        let (namespace, name) = (self.path.namespace.as_str(), self.path.name.as_str());
        let mut warnings = Vec::new();
        if !self.api.webhooks.any(&self.review(Operation::Update, options.dry_run)) {
            let _turn = self.quota_turn().await;
            let change = |old: Option<&Value>| {
                warnings.clear();
                let object = change(old, &mut warnings)?;
                self.within_quota(&object, old)?;
                Ok(Intent::Put(object))
            };
            let written = store.modify(self.id(), namespace, name, options, change).await?;
            return Ok((written, warnings));
        }
        // Webhooks take their time, so what they saw is stored only if it is still about the same object.
        for _ in 0..HOOKED_ATTEMPTS {
            warnings.clear();
            let old = store.get(self.id(), namespace, name);
            let object = change(old.as_ref(), &mut warnings)?;
            let operation = if old.is_some() { Operation::Update } else { Operation::Create };
            let object = self.hooked(operation, object, old.as_ref(), &mut warnings).await?;
            // Not before: hooks may write here themselves.
            let _turn = self.quota_turn().await;
            self.within_quota(&object, old.as_ref())?;
            let seen = old.as_ref().and_then(resource_version_of);
            let (mut moved, mut asked) = (false, false);
            let put = |now: Option<&Value>| {
                // Asked again: somebody was faster, or has what this one was to have.
                moved = std::mem::replace(&mut asked, true) || now.and_then(resource_version_of) != seen;
                if moved { Err(ApiError::modified(self.id(), name)) } else { Ok(Intent::Put(object.clone())) }
            };
            match store.modify(self.id(), namespace, name, options, put).await {
                Err(_) if moved => {}
                written => return written.map(|w| (w, warnings)),
            }
        }
        Err(ApiError::modified(self.id(), name))
    }

    /// PUT of an object.
    pub async fn update(&self, body: &Bytes) -> ApiResult<Answer> {
        let (sent, told) = self.body(body)?;
        let sent = self.as_kept(sent).await?;
        let name = &self.path.name;
        let manager = self.manager();
        let change = |old: Option<&Value>, warnings: &mut Vec<String>| {
            let old = old.ok_or_else(|| ApiError::not_found(self.id(), name))?;
            let mut new = self.compose(old, sent.clone())?;
            warnings.extend(told.iter().cloned());
            warnings.extend(self.admit(&mut new, Operation::Update, Some(old))?);
            apply::track(&self.resource, &self.kept_path(), manager, old, &mut new, self.api.store.now());
            Ok(new)
        };
        let (written, warnings) = self.write(change).await?;
        self.show(200, written.object, &warnings).await
    }

    /// PATCH of an object.
    pub async fn patch(&self, body: &Bytes) -> ApiResult<Answer> {
        let strictness = Strictness::parse(self.query.get("fieldValidation"))?;
        let patch = Patch::parse(&self.resource, &self.content_type, body)?;
        if self.query.get("force").is_some() && !matches!(patch, Patch::Apply(..)) {
            let cause = Cause::forbidden("force", "may not be specified for non-apply patch");
            return Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", vec![cause]));
        }
        if self.converts() {
            return self.patch_converted(&patch, strictness).await;
        }
        let name = &self.path.name;
        let change = |old: Option<&Value>, warnings: &mut Vec<String>| {
            let mut new = match (&patch, old) {
                (Patch::Apply(config, duplicates), old) => {
                    let mut config = config.clone();
                    let named = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default();
                    if named("kind").is_empty() || named("apiVersion").is_empty() {
                        let (group, version) = named("apiVersion").split_once('/').unwrap_or(("", named("apiVersion")));
                        let why = format!("invalid object type: {group}/{version}, Kind={}", named("kind"));
                        return Err(ApiError::BadRequest(why));
                    }
                    let version = &self.path.version;
                    if let Some(refused) = apply::unfit(&self.resource, version, &config) {
                        return Err(refused);
                    }
                    self.fit(&mut config)?;
                    *warnings = decode::check(&self.resource, version, &mut config, duplicates, strictness)?;
                    let options = apply::Options {
                        manager: self.query.get("fieldManager"),
                        force: self.query.flag("force"),
                        now: self.api.store.now(),
                    };
                    apply::apply(&self.resource, &self.path, old, config, &options)?
                }
                (_, None) => return Err(ApiError::not_found(self.id(), name)),
                (patch, Some(old)) => self.patched(patch, old, strictness, warnings)?,
            };
            let Some(old) = old else {
                self.api.store.check_namespace(&self.resource, &self.path.namespace, name)?;
                if self.resource.has_status
                    && let Some(map) = new.as_object_mut()
                {
                    map.shift_remove("status");
                }
                self.fresh_uid(&mut new);
                warnings.extend(self.admit(&mut new, Operation::Create, None)?);
                return Ok(new);
            };
            let mut new = self.compose(old, new)?;
            warnings.extend(self.admit(&mut new, Operation::Update, Some(old))?);
            if !matches!(patch, Patch::Apply(..)) {
                apply::track(&self.resource, &self.path, self.manager(), old, &mut new, self.api.store.now());
            }
            Ok(new)
        };
        let (written, warnings) = self.write(change).await?;
        self.show(if written.created { 201 } else { 200 }, written.object, &warnings).await
    }

    /// The object after a patch, in the version of the URL while it is patched.
    pub(super) fn patched(
        &self,
        patch: &Patch,
        old: &Value,
        strictness: Strictness,
        warnings: &mut Vec<String>,
    ) -> ApiResult<Value> {
        let versioned = self.shape(Form::Plain).versioned(old.clone());
        let mut new = patch.run(&self.resource, &self.path.version, &versioned)?;
        // What a patch leaves is told whole, as Kubernetes tells it.
        let left = match patch {
            Patch::Strategic(patch) => json!(apply::printed(patch)),
            _ => json!(new.to_string()),
        };
        let unreadable = |why: String| ApiError::invalid("", "", "", vec![Cause::invalid("patch", &left, why)]);
        let kind = new.get("kind").and_then(Value::as_str).unwrap_or_default();
        if !self.resource.is_custom() && kind != self.resource.kind {
            let (version, own) = (&self.path.version, &self.resource.kind);
            let package = self.resource.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
            let why = format!("converting ({version}.{kind}) to ({package}.{own}): unknown conversion");
            return Err(unreadable(why));
        }
        let uid =
            new.pointer("/metadata/uid").filter(|uid| old.pointer("/metadata/uid").is_some_and(|own| own != *uid));
        if let Some(uid) = uid {
            let why = "field is immutable";
            let causes = vec![Cause::invalid("metadata.uid", uid, why), Cause::invalid("metadata.uid", uid, why)];
            return Err(ApiError::invalid(&self.resource.group, &self.resource.kind, name_of(old), causes));
        }
        self.fit(&mut new)?;
        let mut findings = decode::inspect(&self.resource, &self.path.version, &mut new, &[]);
        let wrong = std::mem::take(&mut findings.wrong);
        if !wrong.is_empty() && !self.resource.is_custom() {
            let first = wrong.first().map(|cause| decode::unread(&self.resource, &self.path.version, &new, cause));
            let from = if matches!(patch, Patch::Strategic(_)) { "error decoding from json: " } else { "" };
            let base64 = first.as_deref().is_some_and(|why| why.starts_with("illegal base64"));
            return Err(unreadable(format!("{}{}", if base64 { from } else { "" }, first.unwrap_or_default())));
        }
        decode::refuse_wrong(&self.resource, &self.path.version, &new, wrong)?;
        match strictness {
            Strictness::Strict if !findings.strict.is_empty() => {
                // Kubernetes words it so for patches; kubectl leaves the empty subject out.
                let why = format!("strict decoding error: {}", findings.strict.join(", "));
                return Err(unreadable(why));
            }
            Strictness::Warn => warnings.extend(findings.strict),
            _ => {}
        }
        Ok(new)
    }

    /// DELETE of an object.
    pub async fn delete(&self, body: &Bytes) -> ApiResult<Answer> {
        let mut options = self.delete_options(body)?;
        let store = &self.api.store;
        let mut warnings = Vec::new();
        let says = self.query.get("propagationPolicy").is_some() || body.windows(11).any(|w| w == b"propagation");
        if self.id() == "jobs.batch" && !says && options.finalizer.is_none() {
            options.finalizer = Some("orphan".into());
            warnings.push(
                "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning"
                    .to_owned(),
            );
        }
        if let Some(mut object) = store.get(self.id(), &self.path.namespace, &self.path.name) {
            let old = object.clone();
            self.admit(&mut object, Operation::Delete, Some(&old))?;
            self.hooked_delete(&old, options.dry_run, &mut warnings).await?;
        }
        match store.delete(self.id(), &self.path.namespace, &self.path.name, &options).await? {
            Deleted::Pending(object) => self.show(200, object, &warnings).await,
            Deleted::Gone(object) => {
                let mut details = json!({
                    "name": self.path.name, "group": self.resource.group, "kind": self.resource.plural,
                    "uid": object.pointer("/metadata/uid"),
                });
                if let (true, Some(details)) = (self.resource.group.is_empty(), details.as_object_mut()) {
                    details.shift_remove("group");
                }
                let mut answer = respond::json(
                    200,
                    &json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
                    }),
                );
                respond::warn(&mut answer, &warnings);
                Ok(answer)
            }
        }
    }

    /// DELETE of a collection.
    pub async fn delete_collection(&self, body: &Bytes) -> ApiResult<Answer> {
        let options = self.delete_options(body)?;
        let selectors = self.selectors()?;
        let list = self.api.store.list(self.id(), self.namespace());
        let one = async |mut object: Value| {
            let old = object.clone();
            self.admit(&mut object, Operation::Delete, Some(&old))?;
            self.hooked_delete(&old, options.dry_run, &mut Vec::new()).await?;
            match self.api.store.delete(self.id(), namespace_of(&old), name_of(&old), &options).await {
                // What is gone is shown as it was.
                Ok(Deleted::Gone(_)) => Ok(Some(old)),
                Ok(Deleted::Pending(object)) => Ok(Some(object)),
                Err(ApiError::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let mut gone = Vec::new();
        let mut chosen = list.items.into_iter().filter(|o| selectors.matches(o)).peekable();
        while chosen.peek().is_some() {
            // Together, so that they share their syncs.
            let some: Vec<_> = chosen.by_ref().take(TOGETHER).map(one).collect();
            for outcome in futures_util::future::join_all(some).await {
                gone.extend(outcome?);
            }
        }
        let meta = ListMeta { revision: self.api.store.revision(), ..ListMeta::default() };
        let form = self.form()?;
        let gone = self.asked_for(gone).await?;
        Ok(respond::json(200, &self.shape(form).list(gone, &meta)))
    }

    fn delete_options(&self, body: &Bytes) -> ApiResult<DeleteOptions> {
        let sent = if body.iter().all(u8::is_ascii_whitespace) {
            json!({})
        } else {
            decode::document(&self.content_type, body)?.value
        };
        if let Some(kind) = sent.get("kind").and_then(Value::as_str).filter(|k| !matches!(*k, "" | "DeleteOptions")) {
            let version = sent.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
            return Err(ApiError::BadRequest(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\""
            )));
        }
        let text = |pointer: &str| sent.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let policy = text("/propagationPolicy").or_else(|| self.query.get("propagationPolicy").map(str::to_owned));
        let orphan = sent.get("orphanDependents").and_then(Value::as_bool) == Some(true);
        // The garbage loop does what these finalizers ask for and takes them away.
        let finalizer = match policy.as_deref() {
            None if orphan => Some("orphan"),
            None | Some("Background") => None,
            Some("Orphan") => Some("orphan"),
            Some("Foreground") => Some("foregroundDeletion"),
            Some(other) => {
                let known = ["Foreground", "Background", "Orphan", "nil"];
                let cause = Cause::unsupported("propagationPolicy", &json!(other), &known);
                return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause]));
            }
        };
        if let (Some(policy), true) = (policy.as_deref(), sent.get("orphanDependents").is_some_and(Value::is_boolean)) {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            let cause = Cause::invalid("propagationPolicy", &json!(policy), why);
            return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", vec![cause]));
        }
        let listed = sent.pointer("/dryRun").and_then(Value::as_array).is_some_and(|l| l.iter().any(|v| v == "All"));
        Ok(DeleteOptions {
            grace_period_seconds: match sent.pointer("/gracePeriodSeconds").and_then(Value::as_i64) {
                Some(seconds) => Some(seconds),
                None => self.query.number("gracePeriodSeconds")?,
            },
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
            finalizer: finalizer.map(str::to_owned),
            dry_run: listed || self.query.dry_run()?,
        })
    }
}

/// What Go says of a text that is no number.
fn no_number(text: &str) -> String {
    format!("strconv.ParseUint: parsing {text:?}: invalid syntax")
}

/// The resourceVersion a client sent stays the condition of the write.
fn carry_version(sent: &Value, new: &mut Value) {
    let version = sent.pointer("/metadata/resourceVersion").cloned();
    if let Some(meta) = new.get_mut("metadata").and_then(Value::as_object_mut) {
        match version {
            Some(version) => meta.insert("resourceVersion".into(), version),
            None => meta.shift_remove("resourceVersion"),
        };
    }
}

/// Filters a page and cuts it to `limit`.
fn select(page: Page, selectors: &Selectors, limit: Option<usize>) -> (Vec<Value>, ListMeta) {
    let limit = limit.unwrap_or(usize::MAX);
    let (mut objects, mut last) = (Vec::new(), None);
    let mut meta = ListMeta { revision: page.revision, next: None, remaining: page.remaining };
    for (key, record) in page.items {
        let Some(object) = decode_record(&record).filter(|o| selectors.matches(o)) else { continue };
        if objects.len() >= limit {
            meta.next =
                last.map(|(ns, name): (Arc<str>, Arc<str>)| continuation::encode(page.revision, &ns, &name, None));
            return (objects, meta);
        }
        last = Some((key.namespace, key.name));
        objects.push(object);
    }
    meta.next = page.next.map(|(ns, name)| continuation::encode(page.revision, &ns, &name, page.remaining));
    (objects, meta)
}
