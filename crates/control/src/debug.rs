//! The pages of port 15014: metrics, readiness, and what the control plane knows of proxies and services.
//!
//! Invariant: reading only. Shapes are Istio's where people or tools read them (`syncz`), our own elsewhere. Nothing
//! secret is shown: certificates and tokens are not kept here at all.

mod clusters;
mod distribution;
mod dump;
pub(crate) mod keys_page;
mod registry;
mod syncz;

use crate::certificates;
use crate::connections::Connections;
use crate::federation;
use crate::keys::Fetched;
use crate::quarantine::Board;
use crate::renderer::Renderer;
use crate::seen::Seen;
use carrick_api::timestamp::Timestamp;
use carrick_ledger::Ledger;
use carrick_runtime::admin::{Request, Response, Router};
use carrick_runtime::metrics::{CONTENT_TYPE, Metrics};
use http::StatusCode;
use serde_json::{Value, json};
use std::future::Future;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;
use tokio::sync::watch;

/// What the pages read.
pub(crate) struct Pages {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) cluster_id: Arc<str>,
    pub(crate) metrics: Metrics,
    pub(crate) seen: Arc<Seen>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) renderer: Arc<Renderer>,
    /// To compare what was seen with what there is; none when objects are told.
    pub(crate) client: Option<kube::Client>,
    pub(crate) synced: watch::Receiver<bool>,
    pub(crate) keys: watch::Receiver<Fetched>,
    pub(crate) mesh_config: Arc<arc_swap::ArcSwap<carrick_api::MeshConfig>>,
    pub(crate) started: SystemTime,
    pub(crate) ledger: Option<Arc<Ledger>>,
    pub(crate) quarantine: Arc<Board>,
    pub(crate) federated: federation::Shown,
}

/// The table of pages.
pub(crate) fn router(pages: Arc<Pages>) -> Router {
    let mut router = Router::new();
    page(&mut router, "/ready", &pages, |pages, _| async move {
        if *pages.synced.borrow() {
            Response::text(StatusCode::OK, "ready\n")
        } else {
            Response::text(StatusCode::SERVICE_UNAVAILABLE, "objects are not listed yet\n")
        }
    });
    page(&mut router, "/version", &pages, |pages, _| async move {
        answer(StatusCode::OK, &json!({"name": pages.name, "version": pages.version, "started": time(pages.started)}))
    });
    page(&mut router, "/metrics", &pages, |pages, _| async move {
        Response::typed(StatusCode::OK, CONTENT_TYPE, pages.metrics.render())
    });
    page(&mut router, "/debug/syncz", &pages, |pages, _| async move { syncz::page(&pages) });
    page(&mut router, "/debug/config_dump", &pages, |pages, request| async move {
        dump::page(&pages, request.query("proxyID").as_deref())
    });
    page(&mut router, "/debug/registryz", &pages, |pages, _| async move { registry::services(&pages) });
    page(&mut router, "/debug/endpointz", &pages, |pages, _| async move { registry::endpoints(&pages) });
    page(&mut router, "/debug/clusterz", &pages, |pages, _| async move { clusters::page(&pages) });
    page(&mut router, "/debug/mesh", &pages, |pages, _| async move {
        answer(StatusCode::OK, &serde_json::to_value(&**pages.mesh_config.load()).unwrap_or_default())
    });
    page(&mut router, "/debug/keys", &pages, |pages, _| async move {
        answer(StatusCode::OK, &keys_page::write(&pages.keys.borrow().keys))
    });
    page(&mut router, "/debug/quarantine", &pages, |pages, _| async move {
        answer(StatusCode::OK, &pages.quarantine.page())
    });
    page(&mut router, "/debug/federation", &pages, |pages, _| async move {
        answer(StatusCode::OK, &pages.federated.lock().unwrap_or_else(PoisonError::into_inner))
    });
    page(&mut router, "/debug/crl", &pages, |pages, _| async move {
        match pages.quarantine.list() {
            Ok(Some(pem)) => Response::typed(StatusCode::OK, "application/x-pem-file", pem),
            Ok(None) => Response::text(StatusCode::NOT_FOUND, "the authority makes no list of its own\n"),
            Err(problem) => Response::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{problem}\n")),
        }
    });
    page(&mut router, "/debug/certificates", &pages, |pages, _| async move {
        answer(StatusCode::OK, &certificates::page(pages.ledger.as_deref(), &pages.quarantine))
    });
    page(&mut router, "/debug/findings", &pages, |pages, _| async move { registry::findings(&pages) });
    page(&mut router, "/debug/distribution", &pages, |pages, request| async move {
        let number = |name: &str| request.query(name).map(|text| text.parse::<u64>());
        match (number("resourceVersion").transpose(), number("wait").transpose()) {
            (Ok(version), Ok(wait)) => distribution::page(&pages, version, wait.unwrap_or(0)).await,
            _ => Response::text(StatusCode::BAD_REQUEST, "resourceVersion and wait are numbers\n"),
        }
    });
    router
}

fn page<F, R>(router: &mut Router, path: &str, pages: &Arc<Pages>, f: F)
where
    F: Fn(Arc<Pages>, Request) -> R + Send + Sync + 'static,
    R: Future<Output = Response> + Send + 'static,
{
    let pages = pages.clone();
    router.get(path, move |request| f(pages.clone(), request));
}

fn answer(status: StatusCode, value: &Value) -> Response {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    Response::typed(status, "application/json", text)
}

fn time(time: SystemTime) -> String {
    Timestamp::from_system(time).micro_string()
}
