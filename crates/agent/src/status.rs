//! The ports that others in and around the pod look at: 15020 status, 15021 health, 15090 metrics (spec §18.1, §18.2).
//!
//! Invariant: what changes anything is answered to the pod itself only (loopback). What the engine says is asked of it,
//! not remembered.

use std::sync::Arc;

use bytes::Bytes;
use carrick_runtime::admin::{AdminServer, Request, Response, Router};
use carrick_runtime::clock::SharedClock;
use http::{Method, StatusCode};
use tokio::sync::Notify;

use crate::config::Ports;
use crate::engine::EngineHandle;
use crate::metrics::AgentMetrics;

/// Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the ports show.
#[derive(Clone)]
pub struct Status {
    pub engine: EngineHandle,
    pub metrics: Arc<AgentMetrics>,
    pub clock: SharedClock,
    /// Asks the agent to end.
    pub quit: Arc<Notify>,
}

/// The three servers, bound.
pub struct StatusServers {
    pub status: AdminServer,
    pub health: AdminServer,
    pub prometheus: AdminServer,
}

impl StatusServers {
    /// Binds all three.
    pub async fn bind(ports: &Ports, status: &Status) -> std::io::Result<Self> {
        let mut health = Router::new();
        status.ready(&mut health);
        let mut prometheus = Router::new();
        let shown = status.clone();
        prometheus.get("/stats/prometheus", move |_| {
            let shown = shown.clone();
            async move { Response::typed(StatusCode::OK, PROMETHEUS, shown.engine.prometheus().await) }
        });
        Ok(Self {
            status: AdminServer::bind((ports.bind, ports.status).into(), status.router()).await?,
            health: AdminServer::bind((ports.bind, ports.health).into(), health).await?,
            prometheus: AdminServer::bind((ports.bind, ports.prometheus).into(), prometheus).await?,
        })
    }
}

impl Status {
    fn ready(&self, router: &mut Router) {
        let engine = self.engine.clone();
        router.get("/healthz/ready", move |_| {
            let engine = engine.clone();
            async move {
                match engine.not_ready().await {
                    reasons if reasons.is_empty() => Response::text(StatusCode::OK, "ready\n"),
                    reasons => {
                        let text = format!("not ready: {}\n", reasons.join("; "));
                        Response::text(StatusCode::SERVICE_UNAVAILABLE, text)
                    }
                }
            }
        });
    }

    fn router(&self) -> Router {
        let mut router = Router::new();
        self.ready(&mut router);
        for path in ["/stats/prometheus", "/metrics"] {
            let shown = self.clone();
            router.get(path, move |_| {
                let shown = shown.clone();
                async move { Response::typed(StatusCode::OK, PROMETHEUS, shown.merged().await) }
            });
        }
        let quit = Arc::clone(&self.quit);
        router.route(Method::POST, "/quitquitquit", move |request| {
            let quit = Arc::clone(&quit);
            async move {
                local(&request, || {
                    quit.notify_one();
                    "ending\n"
                })
            }
        });
        let engine = self.engine.clone();
        router.route(Method::POST, "/drain", move |request| {
            let engine = engine.clone();
            async move {
                if request.peer.ip().is_loopback() {
                    engine.start_drain().await;
                }
                local(&request, || "draining\n")
            }
        });
        router
    }

    async fn merged(&self) -> Bytes {
        let mut text = self.metrics.render(self.clock.now()).into_bytes();
        text.extend_from_slice(&self.engine.prometheus().await);
        text.into()
    }
}

fn local(request: &Request, act: impl FnOnce() -> &'static str) -> Response {
    if request.peer.ip().is_loopback() {
        Response::text(StatusCode::OK, act())
    } else {
        Response::text(StatusCode::FORBIDDEN, "only from within the pod\n")
    }
}
