//! The ports that others in and around the pod look at: 15020 status, 15021 health, 15090 metrics (spec §18.1, §18.2).
//!
//! Invariant: what changes anything is answered to the pod itself only (loopback). What the engine says is asked of it,
//! not remembered.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use carrick_runtime::admin::{AdminServer, Request, Response, Router};
use carrick_runtime::clock::SharedClock;
use http::{Method, StatusCode};
use tokio::sync::Notify;

use crate::app_probes::AppProbes;
use crate::config::Ports;
use crate::engine::EngineHandle;
use crate::http_client;
use crate::metrics::AgentMetrics;

/// Prometheus' text format.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the ports show.
#[derive(Clone)]
pub struct Status {
    pub engine: EngineHandle,
    pub metrics: Arc<AgentMetrics>,
    pub clock: SharedClock,
    /// Where the application shows its own metrics, if it does.
    pub application: Option<(SocketAddr, String)>,
    /// Probes of the application.
    pub app_probes: AppProbes,
    /// Asks the agent to end.
    pub quit: Arc<Notify>,
}

/// Where the application shows its metrics, as the pod's annotations say (`prometheus.io/scrape`, `port`, `path`).
pub fn application(annotations: &BTreeMap<String, String>, own: &Ports) -> Option<(SocketAddr, String)> {
    let get = |key: &str| annotations.get(&format!("prometheus.io/{key}")).map(String::as_str);
    if get("scrape") != Some("true") {
        return None;
    }
    let port = get("port").map_or(Some(80), |p| p.parse::<u16>().ok())?;
    // Injection points the annotations at us; we are not our own application.
    if [own.status, own.prometheus, own.health, own.admin].contains(&port) {
        return None;
    }
    let path = get("path").filter(|p| p.starts_with('/')).unwrap_or("/metrics");
    Some(((Ipv4Addr::LOCALHOST, port).into(), path.to_owned()))
}

/// The same, as injection wrote it down before it pointed the annotations at us; `scrape` has only to be not false, as at injection.
pub fn injected_application(told: &serde_json::Value, own: &Ports) -> Option<(SocketAddr, String)> {
    let text = |field: &str| told.get(field).and_then(serde_json::Value::as_str).filter(|text| !text.is_empty());
    let mut annotations =
        BTreeMap::from([("prometheus.io/scrape".to_owned(), text("scrape").unwrap_or("true").to_owned())]);
    for field in ["port", "path"] {
        if let Some(value) = text(field) {
            annotations.insert(format!("prometheus.io/{field}"), value.to_owned());
        }
    }
    application(&annotations, own)
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
        self.app_probes.serve(&mut router);
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
        if let Some((address, path)) = &self.application {
            match http_client::get(*address, path).await {
                Ok((StatusCode::OK, shown)) => {
                    if !text.ends_with(b"\n") {
                        text.push(b'\n');
                    }
                    // OpenMetrics' end would hide what comes before it.
                    text.extend_from_slice(shown.strip_suffix(b"# EOF\n").unwrap_or(&shown));
                }
                result => {
                    AgentMetrics::add(&self.metrics.scrape_failures);
                    tracing::debug!(%address, path, "the application's metrics: {:?}", result.map(|(status, _)| status));
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_say_where_the_application_shows_its_metrics() {
        let ports =
            Ports { bind: Ipv4Addr::LOCALHOST.into(), admin: 15000, status: 15020, health: 15021, prometheus: 15090 };
        let shown = |all: &[(&str, &str)]| {
            let all = all.iter().map(|(k, v)| (format!("prometheus.io/{k}"), (*v).to_owned())).collect();
            application(&all, &ports).map(|(address, path)| format!("{address}{path}"))
        };
        assert_eq!(shown(&[]), None);
        assert_eq!(shown(&[("scrape", "false"), ("port", "1")]), None);
        assert_eq!(shown(&[("scrape", "true")]).as_deref(), Some("127.0.0.1:80/metrics"));
        assert_eq!(shown(&[("scrape", "true"), ("port", "9"), ("path", "/m")]).as_deref(), Some("127.0.0.1:9/m"));
        assert_eq!(shown(&[("scrape", "true"), ("port", "15020")]), None);
        assert_eq!(shown(&[("scrape", "true"), ("port", "x")]), None);
        let told = serde_json::json!({"scrape": "", "path": "/m", "port": "9"});
        let found = injected_application(&told, &ports).map(|(address, path)| format!("{address}{path}"));
        assert_eq!(found.as_deref(), Some("127.0.0.1:9/m"));
    }
}
