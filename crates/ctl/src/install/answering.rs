//! An API server of canned answers, for tests of what a command asks and makes of it.

use http::{Request, Response};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// A client whose requests (method, path, query, body) are answered by a function with a status and a body; where the status is an
/// error, by a Status of it.
pub(super) fn client(answer: impl Fn(&str, &str, &str, &Value) -> (u16, Value) + Clone + Send + 'static) -> Client {
    let service = move |request: Request<Body>| {
        let answer = answer.clone();
        async move {
            let (head, body) = request.into_parts();
            let sent = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let sent = serde_json::from_slice(&sent).unwrap_or(Value::Null);
            let query = head.uri.query().unwrap_or_default();
            let (code, mut body) = answer(head.method.as_str(), head.uri.path(), query, &sent);
            if code >= 400 {
                let reason = if code == 404 { "NotFound" } else { "Forbidden" };
                body = json!({"kind": "Status", "status": "Failure", "reason": reason, "code": code});
            }
            Response::builder().status(code).body(Body::from(body.to_string().into_bytes()))
        }
    };
    Client::new(tower::service_fn(service), "default")
}
