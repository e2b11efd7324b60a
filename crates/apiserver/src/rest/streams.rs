//! The subresources of pods that are streams: `exec`, `attach`, `portforward` and `log`.
//!
//! Invariant: whoever reads by `get` alone cannot start anything: an upgrade by GET needs `create`, too. A pod that nobody runs, and one that
//! is run elsewhere, are answered with the reason and never with silence.
//! What it leaves to others: protocols (`carrick-streams`), processes (whoever implements [`Pods`]).

use super::objects::Call;
use super::respond::{self, Answer};
use crate::error::{ApiError, ApiResult};
use bytes::Bytes;
use carrick_streams::handshake::{self, Kind};
use carrick_streams::{LogRequest, Pods, PodsError, Target, Want, forward, remote};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Words of a command, and their bytes.
const WORDS: usize = 1024;
/// Name of the annotation that names the container meant when none is.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// What a connection is used for after its last answer, `101`. Travels with that answer.
#[derive(Clone)]
pub struct Takeover(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl Takeover {
    /// Of a session.
    fn new(session: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::pin(session)))))
    }

    /// The session, for whoever asks first.
    pub fn take(&self) -> Option<BoxFuture<'static, ()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Whether a subresource of a pod is one of these.
pub fn is_stream(subresource: &str) -> bool {
    matches!(subresource, "exec" | "attach" | "portforward" | "log")
}

/// Whether a request needs `create` besides its own verb.
pub fn needs_create(subresource: &str, verb: &str, headers: &HeaderMap) -> bool {
    verb == "get" && subresource != "log" && handshake::is_websocket(headers)
}

/// Answers one of them.
///
/// # Errors
/// As for any object, and what the protocols and the pods' runner say.
pub async fn answer(call: &Call<'_>, headers: &HeaderMap, upgrade: OnUpgrade, verb: &str) -> ApiResult<Answer> {
    let sub = call.path.subresource.as_str();
    if !matches!((sub, verb), ("log", "get") | ("exec" | "attach" | "portforward", "get" | "create")) {
        return Err(ApiError::MethodNotAllowed);
    }
    let pod = call.api.store.get("pods", &call.path.namespace, &call.path.name);
    let pod = pod.ok_or_else(|| ApiError::not_found("pods", &call.path.name))?;
    let container = if sub == "portforward" { String::new() } else { container(call, &pod)? };
    let pods = runner(call, &pod, &container)?;
    let target = Target {
        namespace: call.path.namespace.clone(),
        pod: call.path.name.clone(),
        uid: text(&pod, "/metadata/uid").to_owned(),
        container,
    };
    match sub {
        "log" => log(call, pods, target).await,
        "portforward" => port_forward(call, headers, upgrade, pods, target),
        _ => guest(call, headers, upgrade, pods, target),
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn names<'a>(pod: &'a Value, field: &str) -> Vec<&'a str> {
    let list = pod.pointer(&format!("/spec/{field}")).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|c| c.get("name")?.as_str()).collect()
}

/// The container that is meant.
fn container(call: &Call<'_>, pod: &Value) -> ApiResult<String> {
    let (own, first) = (names(pod, "containers"), names(pod, "initContainers"));
    let name = &call.path.name;
    if let Some(asked) = call.query.get("container") {
        let known = own.iter().chain(&first).any(|c| *c == asked);
        return if known {
            Ok(asked.to_owned())
        } else {
            Err(ApiError::BadRequest(format!("container {asked} is not valid for pod {name}")))
        };
    }
    let annotation = pod.pointer("/metadata/annotations").and_then(|a| a.get(DEFAULT_CONTAINER)?.as_str());
    match (own.as_slice(), annotation.filter(|a| own.contains(a))) {
        ([only], _) => Ok((*only).to_owned()),
        (_, Some(named)) => Ok(named.to_owned()),
        _ => {
            let (own, first) = (own.join(" "), first.join(" "));
            let more =
                if first.is_empty() { String::new() } else { format!(" or one of the init containers: [{first}]") };
            Err(ApiError::BadRequest(format!(
                "a container name must be specified for pod {name}, choose one of: [{own}]{more}"
            )))
        }
    }
}

/// Whoever runs the pod; the error says why nobody does.
fn runner(call: &Call<'_>, pod: &Value, container: &str) -> ApiResult<Arc<dyn Pods>> {
    let name = &call.path.name;
    let hint = format!("run its process with `carrick run -n {} --as pod/{name} -- COMMAND`", call.path.namespace);
    if text(pod, "/spec/nodeName").is_empty() {
        let message = match call.path.subresource.as_str() {
            "log" => format!(
                "container {container:?} in pod {name:?} is waiting to start: there is no container runtime here; {hint}"
            ),
            _ => format!("pod {name} does not have a host assigned: there is no container runtime here; {hint}"),
        };
        return Err(ApiError::BadRequest(message));
    }
    call.api.pods.clone().ok_or_else(|| {
        ApiError::BadRequest(format!(
            "no pods are run by this API server's process: use `carrick exec {name}` where it runs"
        ))
    })
}

/// What a pod's runner says, as an API server would that talks with a kubelet.
fn refused(pod: &str, error: PodsError) -> ApiError {
    match error {
        PodsError::NotHere { .. } => ApiError::Internal(format!(
            "error dialing backend: no `carrick run` of pod {pod} is on the machine of this API server; ask where it runs (`carrick exec {pod}`)"
        )),
        PodsError::Request(message) => ApiError::BadRequest(message),
        PodsError::Failed(message) => ApiError::Internal(message),
    }
}

/// `101`, and what is served when the connection is the caller's.
fn switch<F>(
    handshake: &handshake::Handshake,
    upgrade: OnUpgrade,
    session: impl FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
) -> Answer
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut answer = Response::new(respond::full(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in handshake.headers() {
        answer.headers_mut().insert(name, value);
    }
    answer.extensions_mut().insert(Takeover::new(async move {
        match upgrade.await {
            Ok(connection) => session(TokioIo::new(connection)).await,
            Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
        }
    }));
    answer
}

fn negotiate(kind: Kind, headers: &HeaderMap) -> ApiResult<handshake::Handshake> {
    handshake::negotiate(kind, headers).map_err(|refusal| match refusal.code() {
        403 => {
            ApiError::Forbidden { subject: crate::error::Subject::default(), message: refusal.to_string(), cause: None }
        }
        _ => ApiError::BadRequest(refusal.to_string()),
    })
}

fn guest(
    call: &Call<'_>,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    pods: Arc<dyn Pods>,
    target: Target,
) -> ApiResult<Answer> {
    let attach = call.path.subresource == "attach";
    let flag = |name: &str| call.query.get(name).is_some_and(|v| matches!(v, "true" | "1" | "t" | "True"));
    let tty = flag("tty");
    let want = Want { stdin: flag("stdin"), stdout: flag("stdout"), stderr: flag("stderr") && !tty, tty };
    if !(want.stdin || want.stdout || want.stderr) {
        return Err(ApiError::BadRequest("you must specify at least 1 of stdin, stdout, stderr".into()));
    }
    let command: Vec<String> = call.query.all("command").take(WORDS).map(str::to_owned).collect();
    if command.is_empty() && !attach {
        return Err(ApiError::BadRequest("you must specify at least one command for the container".into()));
    }
    let handshake = negotiate(Kind::Remote, headers)?;
    let agreed = handshake.clone();
    Ok(switch(&handshake, upgrade, move |io| async move {
        let asked = async {
            match attach {
                true => pods.attach(&target, want).await,
                false => pods.exec(&target, &command, want).await,
            }
        };
        remote::serve(io, &agreed, want, asked).await;
    }))
}

fn port_forward(
    call: &Call<'_>,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
    pods: Arc<dyn Pods>,
    target: Target,
) -> ApiResult<Answer> {
    let lists = call.query.all("ports").flat_map(|list| list.split(','));
    let ports: Result<Vec<u16>, _> = lists.take(127).map(str::parse).collect();
    let ports = ports.map_err(|_| ApiError::BadRequest("query parameter \"ports\" is no list of ports".into()))?;
    let handshake = negotiate(Kind::Forward, headers)?;
    let agreed = handshake.clone();
    Ok(switch(&handshake, upgrade, move |io| async move {
        forward::serve(io, &agreed, &ports, pods, target).await;
    }))
}

async fn log(call: &Call<'_>, pods: Arc<dyn Pods>, target: Target) -> ApiResult<Answer> {
    let query = &call.query;
    let flag = |name: &str| query.get(name).is_some_and(|v| matches!(v, "true" | "1" | "t" | "True"));
    if flag("previous") {
        return Err(ApiError::BadRequest(format!(
            "previous terminated container {:?} in pod {:?} not found",
            target.container, target.pod
        )));
    }
    let now = call.api.store.clock().now();
    let seconds: Option<u64> = query.number("sinceSeconds")?;
    let since = match (seconds, query.get("sinceTime")) {
        (Some(_), Some(_)) => {
            return Err(ApiError::BadRequest("at most one of `sinceTime` or `sinceSeconds` may be specified".into()));
        }
        (Some(0), _) => return Err(ApiError::BadRequest("sinceSeconds must be greater than 0".into())),
        (Some(seconds), None) => now.checked_sub(Duration::from_secs(seconds)),
        (None, Some(text)) => {
            let format = &time::format_description::well_known::Rfc3339;
            let time = time::OffsetDateTime::parse(text, format);
            let time = time.map_err(|_| ApiError::BadRequest(format!("sinceTime {text:?} is no time of RFC 3339")))?;
            Some(time.into())
        }
        (None, None) => None,
    };
    let limit: Option<u64> = query.number("limitBytes")?;
    if limit == Some(0) {
        return Err(ApiError::BadRequest("limitBytes must be greater than 0".into()));
    }
    let tail: Option<i64> = query.number("tailLines")?;
    if tail.is_some_and(|lines| lines < 0) {
        return Err(ApiError::BadRequest("tailLines must be greater than or equal to 0".into()));
    }
    let request = LogRequest {
        follow: flag("follow"),
        timestamps: flag("timestamps"),
        since,
        tail: tail.map(|lines| usize::try_from(lines).unwrap_or(usize::MAX)),
        limit,
    };
    let permit = if request.follow { Some(call.api.watcher()?) } else { None };
    let pieces = pods.logs(&target, &request).await.map_err(|error| refused(&target.pod, error))?;
    let drain = call.api.drain.clone();
    let pieces = pieces.take_until(Box::pin(async move { drain.graceful().await }));
    let frames = pieces.map(move |bytes| {
        let _held = &permit;
        Ok::<_, Infallible>(Frame::data(bytes))
    });
    let mut answer = respond::text(200, "");
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    *answer.body_mut() = StreamBody::new(frames).boxed_unsync();
    Ok(answer)
}
