//! An API server that throttles, forgets its history and drops watches: what the control plane knows afterwards is what there is.

use crate::cluster::{client, object};
use crate::fixture::{World, authority, local};
use carrick_apiserver::{ApiOptions, ApiServer};
use carrick_control::{Control, ControlOptions};
use futures_util::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// How long a watch lasts in the storm.
const WATCH: Duration = Duration::from_millis(200);

/// What an API server does to its clients.
#[derive(Default)]
struct Storm {
    blows: AtomicBool,
    requests: AtomicU32,
    watches: AtomicU32,
    throttled: AtomicU32,
    expired: AtomicU32,
    dropped: AtomicU32,
}

type Body = UnsyncBoxBody<Bytes, kube::Error>;

fn whole(status: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{value}\n"))).map_err(|never| match never {}).boxed_unsync();
    let answer = Response::builder().status(status).header("content-type", "application/json");
    let answer = if status == StatusCode::TOO_MANY_REQUESTS { answer.header("retry-after", "1") } else { answer };
    answer.body(body).expect("an answer")
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason, "code": code})
}

impl Storm {
    /// What is answered instead, and whether a watch is to end before its time.
    fn strike(&self, watches: bool) -> (Option<Response<Body>>, bool) {
        if !self.blows.load(Ordering::Relaxed) {
            return (None, false);
        }
        let count = |counter: &AtomicU32| counter.fetch_add(1, Ordering::Relaxed);
        if !watches {
            let throttles = count(&self.requests) % 3 == 0;
            return (
                throttles.then(|| {
                    (count(&self.throttled), whole(StatusCode::TOO_MANY_REQUESTS, &status(429, "TooManyRequests"))).1
                }),
                false,
            );
        }
        let gone = status(410, "Expired");
        match count(&self.watches) % 4 {
            0 => (Some((count(&self.expired), whole(StatusCode::GONE, &gone)).1), false),
            1 => (
                Some((count(&self.expired), whole(StatusCode::OK, &json!({"type": "ERROR", "object": gone}))).1),
                false,
            ),
            _ => {
                count(&self.dropped);
                (None, true)
            }
        }
    }

    async fn answer(
        self: Arc<Self>,
        behind: kube::Client,
        asked: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let watches = asked.uri().query().is_some_and(|query| query.contains("watch="));
        let (instead, ends) = self.strike(watches);
        if let Some(answer) = instead {
            return Ok(answer);
        }
        let (head, body) = asked.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let mut forwarded = Request::from_parts(head, kube::client::Body::from(body.to_vec()));
        forwarded.headers_mut().remove("host");
        Ok(match behind.send(forwarded).await {
            Ok(answer) => answer.map(|body| {
                if !ends {
                    return body.boxed_unsync();
                }
                let until = Box::pin(tokio::time::sleep(WATCH));
                StreamBody::new(body.into_data_stream().map(|data| data.map(Frame::data)).take_until(until))
                    .boxed_unsync()
            }),
            Err(error) => whole(StatusCode::BAD_GATEWAY, &status(502, &error.to_string())),
        })
    }

    /// A server in front of `behind`.
    async fn front(self: &Arc<Self>, behind: kube::Client) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind(local(0)).await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let storm = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (storm, behind) = (storm.clone(), behind.clone());
                let service = service_fn(move |asked| storm.clone().answer(behind.clone(), asked));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        address
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_in_a_storm() {
    const EACH: usize = 10;
    let dir = tempfile::tempdir().expect("tempdir");
    let server = ApiServer::start(ApiOptions::new(dir.path().join("api"), 0)).await.expect("API");
    let direct = client(&server).await;
    let namespaces: Api<Namespace> = Api::all(direct.clone());
    let create = PostParams::default();
    namespaces.create(&create, &object(json!({"metadata": {"name": "shop"}}))).await.expect("namespace");
    let services: Api<Service> = Api::namespaced(direct.clone(), "shop");
    let make = |from: usize| {
        let services = services.clone();
        async move {
            for number in from..from + EACH {
                let spec = json!({"ports": [{"name": "http", "port": 80}]});
                let service = object(json!({"metadata": {"name": format!("web-{number}")}, "spec": spec}));
                services.create(&PostParams::default(), &service).await.expect("created");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };

    let storm = Arc::new(Storm::default());
    let address = storm.front(direct.clone()).await;
    storm.blows.store(true, Ordering::Relaxed);
    let config = kube::Config::new(format!("http://{address}/").parse().expect("a URL"));
    let throttled = kube::Client::try_from(config).expect("client");
    let authority = authority(&dir.path().join("ca"));
    let mut options = ControlOptions::new(throttled, authority.clone(), Default::default());
    (options.xds_addr, options.debug_addr) = (local(0), local(0));
    make(0).await;
    let control = Control::start(options).await.expect("starts");
    tokio::time::timeout(Duration::from_secs(40), control.ready())
        .await
        .expect("everything is listed in the storm too");
    make(EACH).await;
    services.delete("web-0", &Default::default()).await.expect("deleted");
    let counts = || [&storm.throttled, &storm.expired, &storm.dropped].map(|counter| counter.load(Ordering::Relaxed));
    assert!(counts().iter().all(|count| *count > 0), "{:?}", counts());
    storm.blows.store(false, Ordering::Relaxed);
    make(2 * EACH).await;

    let world = World::of(control, authority);
    let mut known = Vec::new();
    for _ in 0..600 {
        let page = world.json("/debug/registryz").await;
        known =
            page.as_array().into_iter().flatten().filter_map(|s| s["hostname"].as_str().map(str::to_owned)).collect();
        known.retain(|name: &String| name.starts_with("web-"));
        known.sort();
        known.dedup();
        if known.len() == 3 * EACH - 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(known.len(), 3 * EACH - 1, "{known:?}");
    assert!(!known.contains(&"web-0.shop.svc.cluster.local".to_owned()));
    server.drain(Duration::from_secs(2)).await;
}
