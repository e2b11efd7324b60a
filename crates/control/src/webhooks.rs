//! Port 15017: what the API server asks before it takes an object.
//!
//! Invariant: a question that cannot be understood is answered by an error, never by consent. What is wrong with an object is judged by
//! `carrick-api`; what a pod is given, by whoever is passed in as [`Inject`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use carrick_api::kinds::{registry, split_api_version};
use carrick_api::validate;
use carrick_base::Severity;
use carrick_runtime::drain::Drain;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

/// Answers the `request` of an AdmissionReview asked at a path that begins with `/inject`; gives the `response` without its `uid`.
pub type Inject = Arc<dyn Fn(&str, &Value) -> Value + Send + Sync>;

/// The API server sends an object, and the old one, of 1.5 MiB each at most.
const LARGEST: usize = 8 << 20;
/// How long a handshake and a question may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose certificate is shown, asked anew for each connection.
pub(crate) type Tls = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// Answers until drained.
pub(crate) async fn serve(listener: TcpListener, tls: Tls, inject: Option<Inject>, drain: Drain) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = drain.graceful() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let (tls, inject, drain) = (tls(), inject.clone(), drain.clone());
                connections.spawn(async move { connection(stream, tls, inject, drain).await });
            }
            Err(error) => {
                debug!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: TcpStream, tls: Arc<ServerConfig>, inject: Option<Inject>, drain: Drain) {
    // The API server speaks either; the certificate's own configuration is for gRPC alone.
    let mut tls = ServerConfig::clone(&tls);
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = match tokio::time::timeout(PATIENCE, TlsAcceptor::from(Arc::new(tls)).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "webhook handshake"),
        Err(_) => return debug!("webhook handshake timed out"),
    };
    let service = service_fn(move |request| {
        let inject = inject.clone();
        async move { Ok::<_, Infallible>(answer(request, inject.as_ref()).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let served = tokio::select! {
        served = &mut serving => served,
        () = drain.graceful() => {
            serving.as_mut().graceful_shutdown();
            tokio::select! { served = &mut serving => served, () = drain.forced() => Ok(()) }
        }
    };
    if let Err(error) = served {
        debug!(%error, "webhook connection");
    }
}

async fn answer(request: Request<Incoming>, inject: Option<&Inject>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if path == "/ready" && head.method == Method::GET {
        return said(StatusCode::OK, "text/plain", "ready\n".to_owned());
    }
    if head.method != Method::POST {
        return said(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "POST an AdmissionReview\n".to_owned());
    }
    let read = tokio::time::timeout(PATIENCE, Limited::new(body, LARGEST).collect()).await;
    let bytes = match read {
        Ok(Ok(body)) => body.to_bytes(),
        _ => return said(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "too large, or too slow\n".to_owned()),
    };
    let asked: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let Some(uid) = asked.pointer("/request/uid").filter(|_| asked["kind"] == "AdmissionReview") else {
        return said(StatusCode::BAD_REQUEST, "text/plain", "no AdmissionReview\n".to_owned());
    };
    let question = &asked["request"];
    let mut response = match inject {
        _ if path == "/validate" || path.starts_with("/validate/") => judge(question),
        Some(inject) if path == "/inject" || path.starts_with("/inject/") => inject(path, question),
        _ => return said(StatusCode::NOT_FOUND, "text/plain", "/inject or /validate\n".to_owned()),
    };
    response["uid"] = uid.clone();
    let version = asked.get("apiVersion").cloned().unwrap_or_else(|| "admission.k8s.io/v1".into());
    let review = json!({"apiVersion": version, "kind": "AdmissionReview", "response": response});
    said(StatusCode::OK, "application/json", review.to_string())
}

fn said(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// Whether an object may be stored.
pub(crate) fn judge(question: &Value) -> Value {
    let object = &question["object"];
    if matches!(question["operation"].as_str(), Some("DELETE" | "CONNECT")) || object.is_null() {
        return json!({"allowed": true});
    }
    // A status is reported, not wished for.
    if question["subResource"].as_str().is_some_and(|sub| !sub.is_empty()) {
        return json!({"allowed": true});
    }
    let Some(kind) = registry().of_object(object).filter(|kind| kind.custom) else {
        let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
        return refused(format!("{} {} is not known here", text("apiVersion"), text("kind")));
    };
    let (_, version) = split_api_version(object["apiVersion"].as_str().unwrap_or_default());
    let wrong: Vec<String> = kind.schema(version).check(object).iter().map(ToString::to_string).collect();
    if !wrong.is_empty() {
        return refused(wrong.join("; "));
    }
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for finding in validate::object(object) {
        let field = finding.field.as_str();
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        let list = if finding.severity == Severity::Error { &mut errors } else { &mut warnings };
        list.push(format!("{field}{}", finding.message));
    }
    let mut response = if errors.is_empty() {
        json!({"allowed": true})
    } else {
        refused(format!("configuration is invalid: {}", errors.join("; ")))
    };
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    response
}

fn refused(message: String) -> Value {
    json!({"allowed": false, "status": {"message": message, "reason": "Invalid", "code": 422}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_judged() {
        let ask = |kind: &str, spec: Value| {
            judge(&json!({"operation": "CREATE", "object": {
                "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": "x", "namespace": "y"}, "spec": spec}}))
        };
        assert_eq!(ask("PeerAuthentication", json!({"mtls": {"mode": "STRICT"}}))["allowed"], true);
        for (kind, spec, word) in [
            ("PeerAuthentication", json!({"mtls": {"mode": "LOOSE"}}), "mode"),
            ("PeerAuthentication", json!({"mtlss": {}}), "mtlss"),
            ("PeerAuthentication", json!({"portLevelMtls": {"80": {"mode": "STRICT"}}}), "portLevelMtls"),
            ("Nothing", json!({}), "Nothing"),
        ] {
            let answer = ask(kind, spec);
            assert_eq!(answer["allowed"], false, "{answer}");
            assert!(answer["status"]["message"].as_str().unwrap().contains(word), "{answer}");
        }
        assert_eq!(judge(&json!({"operation": "DELETE", "object": null}))["allowed"], true);
    }
}
