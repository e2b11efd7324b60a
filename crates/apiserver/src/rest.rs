//! HTTP: from a request to an answer.
//!
//! Invariant: the order is fixed: parse the path, find out who calls, ask the authorizer, only then read the body. Every
//! failure is a `Status`; nothing a client sends makes this panic or grow without bound.
//! What it leaves to others: connections (`serve`), rules (`rbac`, `controllers`), objects (`store`).

mod apply;
mod continuation;
mod convert;
mod decode;
mod discovery;
mod eviction;
mod health;
mod listing;
mod negotiate;
mod objects;
mod openapi;
mod patch;
mod protobuf;
mod request;
mod respond;
mod reviews;
mod scale;
mod streams;
mod table;
pub mod version;
mod watch;

pub use respond::Answer;

use crate::auth;
use crate::auth::tokens::Tokens;
use crate::authorize::{Attributes, Authorizer, Decision, User};
use crate::catalog::Resource;
use crate::controllers::Admission;
use crate::error::{ApiError, ApiResult, Subject};
use crate::metrics::{self, Metrics};
use crate::store::Store;
use crate::webhooks::Webhooks;
use bytes::Bytes;
use carrick_runtime::drain::Drain;
use carrick_streams::Pods;
use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderMap, Method, Request};
use objects::Call;
use openapi::OpenApi;
use request::{Query, ResourcePath, Target};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
pub use streams::Takeover;
use tokio::sync::Semaphore;

/// Watches open at once.
const WATCHES: usize = 8192;
/// Requests other than watches take no longer.
const REQUEST_TIME: Duration = Duration::from_secs(60);
/// Paths that tell nothing and are for everybody.
const OPEN_PATHS: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// Everything a request needs.
pub struct Api {
    /// Objects.
    pub store: Store,
    /// Rules of who may do what.
    pub authorizer: Arc<dyn Authorizer>,
    /// Rules of what is good.
    pub admission: Admission,
    /// Whoever else is asked.
    pub webhooks: Webhooks,
    /// Service-account tokens.
    pub tokens: Tokens,
    /// Counters.
    pub metrics: Metrics,
    /// Whoever runs pods, where anybody does.
    pub pods: Option<Arc<dyn Pods>>,
    /// Ends watches when the server goes.
    pub drain: Drain,
    /// Turns of writes that quotas count.
    quotas: tokio::sync::Mutex<()>,
    ready: AtomicBool,
    watchers: Arc<Semaphore>,
    openapi: OpenApi,
}

impl Api {
    /// A server's state; not ready until told so.
    pub fn new(
        store: Store,
        authorizer: Arc<dyn Authorizer>,
        admission: Admission,
        tokens: Tokens,
        drain: Drain,
    ) -> Self {
        Self {
            store,
            authorizer,
            admission,
            webhooks: Webhooks::default(),
            tokens,
            metrics: Metrics::default(),
            pods: None,
            drain,
            quotas: tokio::sync::Mutex::new(()),
            ready: AtomicBool::new(false),
            watchers: Arc::new(Semaphore::new(WATCHES)),
            openapi: OpenApi::default(),
        }
    }

    /// `/readyz` says yes from now on.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// One of the long-lived streams that there may be.
    fn watcher(&self) -> ApiResult<tokio::sync::OwnedSemaphorePermit> {
        let permit = self.watchers.clone().try_acquire_owned();
        permit.map_err(|_| ApiError::TooManyRequests("too many watches are open, please try again later".into()))
    }

    /// Prometheus text.
    pub fn metrics_text(&self) -> String {
        let watches = WATCHES.saturating_sub(self.watchers.available_permits());
        let objects = self.store.catalog().iter().map(|r| self.store.engine().count(&r.id)).sum::<usize>();
        self.metrics.text(&[
            (metrics::WATCHES, watches as u64),
            (metrics::REVISION, self.store.revision()),
            (metrics::OBJECTS, objects as u64),
        ])
    }

    /// Answers one request; `peer` is the user of the connection's client certificate.
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>, peer: Option<&User>) -> Answer
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let started = self.store.clock().monotonic();
        let mut audit = Audit::default();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let yaml = negotiate::wants_yaml(header(request.headers(), ACCEPT));
        let answer = match tokio::time::timeout(REQUEST_TIME, self.route(request, peer, &mut audit)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => respond::error(&error),
            Err(_) => {
                let message = "Timeout: request did not complete within the allotted timeout".to_owned();
                respond::error(&ApiError::Timeout { message, cause: None })
            }
        };
        let answer = if yaml && audit.verb != "watch" { respond::as_yaml(answer).await } else { answer };
        let took = self.store.clock().monotonic().saturating_sub(started);
        let code = answer.status().as_u16();
        self.metrics.record(audit.verb, &audit.resource, code, took);
        tracing::debug!(user = %audit.user, verb = audit.verb, %method, %path, code, ?took, "request");
        answer
    }

    async fn route<B>(
        self: &Arc<Self>,
        mut request: Request<B>,
        peer: Option<&User>,
        audit: &mut Audit,
    ) -> ApiResult<Answer>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        let query = Query::parse(head.uri.query().unwrap_or(""));
        audit.verb = path_verb(&head.method);
        let target = request::target(head.uri.path());
        let user = auth::authenticate(&head.headers, peer, &self.tokens)?;
        let user = self.impersonated(&head.headers, user)?;
        audit.user.clone_from(&user.name);
        let path = match target {
            Target::Path(path) => return self.bare(&head.method, &path, &query, &head.headers, &user).await,
            Target::Resource(path) => path,
        };
        let resource = self.store.catalog().find(&path.group, &path.version, &path.resource);
        let verb = request::verb(&head.method, &path, &query)?;
        audit.verb = verb;
        if let Some(resource) = &resource {
            audit.resource = resource.id.to_string();
        }
        self.authorize(&user, &path.attributes(verb))?;
        let resource = resource.ok_or_else(|| {
            let served = path.group.is_empty() || self.store.catalog().groups().iter().any(|(g, _)| *g == path.group);
            if served { ApiError::NoSuchPath } else { ApiError::NoSuchPage }
        })?;
        let streaming = &*resource.id == "pods" && !path.name.is_empty() && streams::is_stream(&path.subresource);
        if streaming {
            if streams::needs_create(&path.subresource, verb, &head.headers) {
                self.authorize(&user, &path.attributes("create"))?;
            }
            if path.namespace.is_empty() {
                return Err(ApiError::NoSuchPath);
            }
        } else {
            check_scope(&resource, &path, verb)?;
        }
        let call = Call {
            api: self,
            resource,
            path,
            query,
            user,
            accept: header(&head.headers, ACCEPT).to_owned(),
            agent: agent(&head.headers),
            content_type: decode::content_type(&head.headers).to_owned(),
        };
        // Reads that name a revision, be it 0, ask for nothing newer.
        if call.query.get("resourceVersion").is_none_or(|v| v.is_empty()) && call.query.get("continue").is_none() {
            self.store.fresh().await?;
        }
        if streaming {
            return streams::answer(&call, &head.headers, upgrade, verb).await;
        }
        if matches!(verb, "get" | "list" | "watch") {
            let answer = match verb {
                "get" if call.path.subresource == "scale" => call.scale(),
                "get" => call.get().await,
                "list" => call.list().await,
                _ => call.watch().await,
            };
            return answer.map(|answer| outdated(&call, answer));
        }
        let body = decode::read(body).await?;
        call.query.check_options(match verb {
            "create" => "CreateOptions",
            "update" => "UpdateOptions",
            "patch" => "PatchOptions",
            _ => "DeleteOptions",
        })?;
        if call.path.subresource == "scale" {
            return call.write_scale(verb, &body).await;
        }
        if call.path.subresource == "eviction" {
            return call.evict(&body).await;
        }
        if !call.resource.stored || call.path.subresource == "token" {
            return reviews::answer(&call, &body);
        }
        let answer = match verb {
            "create" => call.create(&body).await,
            "update" => call.update(&body).await,
            "patch" => call.patch(&body).await,
            "delete" => call.delete(&body).await,
            _ => call.delete_collection(&body).await,
        };
        answer.map(|answer| outdated(&call, answer))
    }

    /// Asks the authorizer; the error says who may not do what.
    fn authorize(&self, user: &User, attributes: &Attributes) -> ApiResult<()> {
        match self.authorizer.authorize(user, attributes) {
            Decision::Allow { .. } => Ok(()),
            Decision::Deny { reason } => Err(forbidden(user, attributes, &reason)),
        }
    }

    /// `Impersonate-User`, `-Uid`, `-Group` and `-Extra-…`, for those who may.
    fn impersonated(&self, headers: &HeaderMap, user: User) -> ApiResult<User> {
        let all = |name: &str| {
            headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect::<Vec<_>>()
        };
        let (names, groups) = (all("impersonate-user"), all("impersonate-group"));
        let uid = all("impersonate-uid").into_iter().next().unwrap_or_default();
        let extra: std::collections::BTreeMap<String, Vec<String>> = headers
            .keys()
            .filter_map(|name| Some((name, name.as_str().strip_prefix("impersonate-extra-")?)))
            .map(|(name, key)| (request::unescaped(key), all(name.as_str())))
            .collect();
        let Some(name) = names.into_iter().next().filter(|n| !n.is_empty()) else {
            if groups.is_empty() && uid.is_empty() && extra.is_empty() {
                return Ok(user);
            }
            return Err(ApiError::BadRequest(format!(
                "requested &user.DefaultInfo{{Name:\"\", UID:{uid:?}, Groups:{}, Extra:map[string][]string{}}} without impersonating a user name",
                go_list(&groups),
                if extra.is_empty() {
                    "(nil)".to_owned()
                } else {
                    let pairs: Vec<String> =
                        extra.iter().map(|(key, all)| format!("{key:?}:{}", go_list(all))).collect();
                    format!("{{{}}}", pairs.join(", "))
                }
            )));
        };
        let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
            let attributes = Attributes {
                verb: "impersonate".into(),
                group: group.into(),
                subresource: subresource.into(),
                resource: resource.into(),
                namespace: namespace.into(),
                name: name.into(),
                version: "v1".into(),
                ..Attributes::default()
            };
            self.authorize(&user, &attributes)
        };
        let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        match account {
            Some((namespace, account)) => may("", "serviceaccounts", "", namespace, account)?,
            None => may("", "users", "", "", &name)?,
        }
        for group in &groups {
            may("", "groups", "", "", group)?;
        }
        for (key, value) in extra.iter().flat_map(|(key, all)| all.iter().map(move |value| (key, value))) {
            may("authentication.k8s.io", "userextras", key, "", value)?;
        }
        if !uid.is_empty() {
            may("authentication.k8s.io", "uids", "", "", &uid)?;
        }
        let mut groups = groups;
        if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
            groups.extend(["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]);
        }
        if name != "system:anonymous" && !groups.iter().any(|g| g == auth::AUTHENTICATED) {
            groups.push(auth::AUTHENTICATED.into());
        }
        Ok(User { name, uid, groups, extra })
    }

    /// Everything that is not an object.
    async fn bare(
        self: &Arc<Self>,
        method: &Method,
        path: &str,
        query: &Query,
        headers: &HeaderMap,
        user: &User,
    ) -> ApiResult<Answer> {
        let open = OPEN_PATHS.iter().any(|p| path == *p || path.strip_prefix(p).is_some_and(|r| r.starts_with('/')));
        if !open {
            let attributes =
                Attributes { verb: path_verb(method).into(), path: path.to_owned(), ..Attributes::default() };
            let root = Attributes { path: "/".into(), ..attributes.clone() };
            self.authorize(user, if path.is_empty() { &root } else { &attributes })?;
        }
        // Paths of health and the list of groups answer whatever they are asked.
        let any = (open && path != "/version") || path == "/apis";
        if !any && !matches!(*method, Method::GET | Method::HEAD) {
            let known = open || path.starts_with("/api");
            return Err(if known { ApiError::MethodNotAllowed } else { ApiError::NoSuchPage });
        }
        if open && path != "/version" {
            let state = health::State {
                storage: self.store.healthy(),
                started: self.ready.load(Ordering::Relaxed),
                ending: self.drain.is_draining(),
            };
            return health::answer(path, query, &state);
        }
        match path {
            "/version" => Ok(respond::json(200, &version::value())),
            "/metrics" => Ok(respond::raw(200, "text/plain; version=0.0.4; charset=utf-8", self.metrics_text())),
            "/openid/v1/jwks" => Ok(respond::json(200, &self.tokens.key_set())),
            "/.well-known/openid-configuration" => Ok(respond::json(200, &Tokens::discovery())),
            "" => Ok(respond::json(
                200,
                &serde_json::json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]}),
            )),
            // For `carrick backup` beside a running server; only for those who may read every path.
            "/carrick/backup" => {
                self.store.fresh().await?;
                let (store, taken) = (self.store.clone(), crate::store::rfc3339(self.store.now()));
                let written = tokio::task::spawn_blocking(move || {
                    let mut out = Vec::new();
                    crate::backup::Snapshot::of(store.engine()).write(&mut out, &taken).map(|_| out)
                });
                let written = written.await.map_err(|e| ApiError::Internal(e.to_string()))?;
                let bytes = written.map_err(|e| ApiError::Internal(e.to_string()))?;
                Ok(respond::raw(200, "application/octet-stream", bytes))
            }
            "/openapi/v2" => {
                let (api, accept) = (self.clone(), header(headers, ACCEPT).to_owned());
                let answer =
                    tokio::task::spawn_blocking(move || api.openapi.second(api.store.catalog(), &accept)).await;
                answer.map_err(|e| ApiError::Internal(e.to_string()))
            }
            _ if path == "/openapi/v3" || path.starts_with("/openapi/v3/") => {
                let (api, path) = (self.clone(), path.to_owned());
                // The first call builds every document.
                let answer = tokio::task::spawn_blocking(move || api.openapi.answer(api.store.catalog(), &path)).await;
                answer.map_err(|e| ApiError::Internal(e.to_string()))?.ok_or(ApiError::NoSuchPath)
            }
            _ => discovery::answer(self.store.catalog(), path, header(headers, ACCEPT)).ok_or_else(|| {
                let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
                let groups = self.store.catalog().groups();
                match parts.as_slice() {
                    ["api", ..] => ApiError::NoSuchPath,
                    ["apis", group, ..] if groups.iter().any(|(g, _)| g == group) => ApiError::NoSuchPath,
                    _ => ApiError::NoSuchPage,
                }
            }),
        }
    }
}

/// Feeds every parser of request bytes, for fuzzing; nothing may panic or grow beyond its input by much.
#[doc(hidden)]
pub fn parse_anything(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    drop(request::target(&text));
    let query = Query::parse(&text);
    drop(crate::selector::Selectors::parse("pods", Some(&text), Some(&text)));
    drop((query.number::<u64>("limit"), continuation::decode(&text), negotiate::form(&text)));
    let documents = [decode::json(bytes), decode::yaml(bytes)];
    drop(protobuf::decode(bytes));
    let catalog = crate::catalog::Catalog::of(carrick_api::kinds::registry());
    let Some(pods) = &catalog.get("pods") else { return };
    let base =
        serde_json::json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"containers": [{"name": "c"}]}});
    for kind in ["json-patch+json", "merge-patch+json", "strategic-merge-patch+json"] {
        if let Ok(patch) = patch::Patch::parse(pods, &format!("application/{kind}"), bytes) {
            drop(patch.run(pods, "v1", &base));
        }
    }
    for mut document in documents.into_iter().flatten().map(|d| d.value).filter(serde_json::Value::is_object) {
        drop(decode::check(pods, "v1", &mut document, &[], decode::Strictness::Strict));
        let path = ResourcePath { version: "v1".into(), resource: "pods".into(), ..ResourcePath::default() };
        let options = apply::Options { manager: Some("fuzz"), force: true, now: time::OffsetDateTime::UNIX_EPOCH };
        drop(apply::apply(pods, &path, Some(&base), document, &options));
    }
}

/// A list of texts as Go prints it.
fn go_list(texts: &[String]) -> String {
    if texts.is_empty() {
        return "[]string(nil)".to_owned();
    }
    let quoted: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
    format!("[]string{{{}}}", quoted.join(", "))
}

/// What is known of a request for the log and the counters.
#[derive(Default)]
struct Audit {
    verb: &'static str,
    resource: String,
    user: String,
}

fn path_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

fn header(headers: &HeaderMap, name: http::HeaderName) -> &str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
}

/// `kubectl` of `kubectl/v1.35.0 (linux/amd64)`.
fn agent(headers: &HeaderMap) -> String {
    let first = header(headers, USER_AGENT).split('/').next().unwrap_or("");
    let clean: String = first.chars().filter(|c| !c.is_control()).take(128).collect();
    if clean.is_empty() { "unknown".into() } else { clean }
}

/// Tells those who use a kind that has a successor.
fn outdated(call: &Call<'_>, mut answer: Answer) -> Answer {
    if let Some(why) = call.resource.outdated(&call.path.version) {
        respond::warn(&mut answer, &[why]);
    }
    answer
}

/// Whether the path fits the resource's scope and what it serves.
fn check_scope(resource: &Resource, path: &ResourcePath, verb: &str) -> ApiResult<()> {
    if !resource.namespaced && !path.namespace.is_empty() {
        return Err(ApiError::NoSuchPath);
    }
    let across = path.namespace.is_empty() && resource.namespaced;
    if across && (!path.name.is_empty() || !matches!(verb, "list" | "watch")) {
        return Err(if path.name.is_empty() { ApiError::MethodNotAllowed } else { ApiError::NoSuchPath });
    }
    let sub = path.subresource.as_str();
    if sub == "ephemeralcontainers" && resource.kind == "Pod" {
        return Err(ApiError::BadRequest(format!(
            "pods/ephemeralcontainers is not served: there is no container runtime here; look around in the pod with \
             `kubectl exec -it {name} -n {namespace} -- sh` or `carrick exec {name} -n {namespace} -- COMMAND`",
            name = path.name,
            namespace = path.namespace,
        )));
    }
    if !sub.is_empty() && !resource.subresources.iter().any(|s| s == sub) {
        return Err(ApiError::NoSuchPath);
    }
    let allowed = match (sub, verb) {
        ("", _) => resource.verbs().contains(&verb),
        ("token" | "eviction", verb) => verb == "create",
        ("finalize", verb) => verb == "update",
        (_, verb) => matches!(verb, "get" | "update" | "patch"),
    };
    let named = match verb {
        "create" => path.name.is_empty() || !sub.is_empty(),
        "update" | "patch" => !path.name.is_empty(),
        _ => true,
    };
    if allowed && named { Ok(()) } else { Err(ApiError::MethodNotAllowed) }
}

/// The 403, as Kubernetes words it.
fn forbidden(user: &User, attributes: &Attributes, reason: &str) -> ApiError {
    let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if !attributes.is_resource() {
        let message =
            format!("forbidden: User {:?} cannot {} path {:?}{why}", user.name, attributes.verb, attributes.path);
        return ApiError::Forbidden { subject: Subject::default(), message, cause: None };
    }
    let Attributes { verb, group, resource, subresource, namespace, name, .. } = attributes;
    let qualified = if group.is_empty() { resource.clone() } else { format!("{resource}.{group}") };
    let full = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    let object = if name.is_empty() { String::new() } else { format!(" {name:?}") };
    let message = format!(
        "{qualified}{object} is forbidden: User {:?} cannot {verb} resource {full:?} in API group {group:?} {place}{why}",
        user.name,
    );
    ApiError::Forbidden { subject: Subject::of(&qualified, name), message, cause: None }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, RngCore, SeedableRng};

    #[test]
    fn no_bytes_make_a_parser_panic() {
        let seeds = [
            r#"{"metadata":{"managedFields":[{"manager":"a","operation":"Apply","fieldsV1":{"f:a":{"k:{\"b\":1}":{".":{}}}}}]},"spec":{"containers":[{"name":"c","ports":[{"containerPort":1}]}]}}"#,
            r#"[{"op":"copy","from":"/metadata","path":"/spec/containers/0/x"},{"op":"remove","path":"/a~1b"}]"#,
            "a: &x [1, {b: c}]\nd: *x\n",
            "/apis/networking.istio.io/v1/namespaces/a%20b/gateways/x?watch=1&labelSelector=a in (b,c),!d",
            "k8s\0\n\x0c\n\x02v1\x12\x06Secret\x12\x10\n\x08\n\x04name\x12\0\x12\x04\n\x01a\x12\0",
        ];
        let mut random = StdRng::seed_from_u64(1);
        for round in 0..400 {
            let mut bytes = seeds[round % seeds.len()].as_bytes().to_vec();
            for _ in 0..random.random_range(0..5) {
                let at = random.random_range(0..bytes.len());
                match random.random_range(0..3) {
                    0 => bytes[at] = random.next_u32().to_le_bytes()[0],
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, b"{}[]\",:/$&*0"[random.random_range(0..12)]),
                }
            }
            super::parse_anything(&bytes);
        }
    }
}
