//! The native engine's admin port, 15000 on loopback, with Envoy's paths and shapes.
//!
//! Invariant: no answer holds a private key; JSON is Envoy's own messages through reflection, so that tools for Envoy's
//! admin read it. Only loopback reaches it.

mod clusters;
mod dump;

use std::sync::Arc;

use carrick_envoy_json::{JsonError, Names, to_json};
use carrick_runtime::admin::{AdminServer, Request, Response, Router};
use carrick_runtime::telemetry::LogHandle;
use envoy_types::pb::envoy::admin::v3::{CommandLineOptions, ServerInfo, server_info};
use http::{Method, StatusCode};
use prost::{Message, Name};
use tokio::sync::Notify;

use crate::native::NativeEngine;

/// Binds the admin port.
pub async fn bind(
    port: u16,
    native: &Arc<NativeEngine>,
    logs: Option<LogHandle>,
    quit: &Arc<Notify>,
) -> std::io::Result<AdminServer> {
    AdminServer::bind(([127, 0, 0, 1], port).into(), router(native, logs, quit)).await
}

/// A message as the query asks for it: JSON, or its bytes with `format=proto`.
fn message<M: Message + Name>(request: &Request, message: &M) -> Response {
    if request.query("format").as_deref() == Some("proto") {
        return Response::typed(StatusCode::OK, "application/protobuf", message.encode_to_vec());
    }
    match json(message) {
        Ok(text) => Response::json(text),
        Err(error) => Response::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn json<M: Message + Name>(message: &M) -> Result<String, JsonError> {
    to_json(message, Names::Proto).map(|mut value| {
        redact(&mut value);
        format!("{value:#}\n")
    })
}

/// Keys may be in listeners and clusters too; wherever one is, it is replaced.
fn redact(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                if matches!(name.as_str(), "private_key" | "password" | "pkcs12") && field.is_object() {
                    *field = serde_json::json!({"inline_bytes": "W3JlZGFjdGVkXQ=="});
                } else {
                    redact(field);
                }
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

fn router(native: &Arc<NativeEngine>, logs: Option<LogHandle>, quit: &Arc<Notify>) -> Router {
    let mut router = Router::new();
    let get = |router: &mut Router, path: &str, answer: fn(&NativeEngine, &Request) -> Response| {
        let native = Arc::clone(native);
        router.get(path, move |request| {
            let native = Arc::clone(&native);
            async move { answer(&native, &request) }
        });
    };
    get(&mut router, "/ready", ready);
    get(&mut router, "/server_info", |native, request| message(request, &server_info(native)));
    get(&mut router, "/config_dump", |native, request| match dump::config_dump(native, request) {
        Ok(dump) => message(request, &dump),
        Err(reason) => Response::text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
    });
    get(&mut router, "/clusters", clusters::clusters);
    get(&mut router, "/listeners", clusters::listeners);
    get(&mut router, "/certs", |native, request| message(request, &dump::certificates(native)));
    get(&mut router, "/stats", stats);
    get(&mut router, "/stats/prometheus", |native, _| {
        Response::text(StatusCode::OK, native.engine.stats().prometheus())
    });
    router.route(Method::POST, "/logging", move |request| {
        let logs = logs.clone();
        async move { logging(logs.as_ref(), &request) }
    });
    let draining = Arc::clone(native);
    router.route(Method::POST, "/drain_listeners", move |_| {
        let native = Arc::clone(&draining);
        async move {
            native.readiness.update(|state| state.draining = true);
            tokio::spawn(async move { native.engine.drain(DRAIN_LISTENERS).await });
            Response::text(StatusCode::OK, "OK\n")
        }
    });
    let quit = Arc::clone(quit);
    router.route(Method::POST, "/quitquitquit", move |_| {
        quit.notify_one();
        async { Response::text(StatusCode::OK, "OK\n") }
    });
    let mut paths: Vec<String> = router.paths().map(str::to_owned).collect();
    paths.extend(["/".to_owned(), "/help".to_owned()]);
    paths.sort();
    let help = format!("admin commands are:\n  {}\n", paths.join("\n  "));
    for path in ["/", "/help"] {
        let help = help.clone();
        router.get(path, move |_| {
            let help = help.clone();
            async move { Response::text(StatusCode::OK, help) }
        });
    }
    router
}

/// Envoy's `--drain-time-s` where Istio starts it.
const DRAIN_LISTENERS: std::time::Duration = std::time::Duration::from_secs(45);

fn state(native: &NativeEngine) -> server_info::State {
    if native.readiness.state().draining {
        server_info::State::Draining
    } else if native.readiness.missing().is_empty() {
        server_info::State::Live
    } else {
        server_info::State::Initializing
    }
}

fn ready(native: &NativeEngine, _: &Request) -> Response {
    let state = state(native);
    let status = match state {
        server_info::State::Live => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    Response::text(status, format!("{}\n", state.as_str_name()))
}

fn server_info(native: &NativeEngine) -> ServerInfo {
    let uptime = native.clock.now().duration_since(native.started).unwrap_or_default();
    let uptime = Some(envoy_types::pb::google::protobuf::Duration {
        seconds: i64::try_from(uptime.as_secs()).unwrap_or(i64::MAX),
        nanos: 0,
    });
    ServerInfo {
        version: format!("carrick/{}", env!("CARGO_PKG_VERSION")),
        state: state(native).into(),
        uptime_current_epoch: uptime,
        uptime_all_epochs: uptime,
        hot_restart_version: "disabled".to_owned(),
        command_line_options: Some(CommandLineOptions {
            concurrency: u32::try_from(native.concurrency).unwrap_or(u32::MAX),
            disable_hot_restart: true,
            ..CommandLineOptions::default()
        }),
        node: Some(native.node.clone()),
        ..ServerInfo::default()
    }
}

fn stats(native: &NativeEngine, request: &Request) -> Response {
    let stats = native.engine.stats();
    let filter = match request.query("filter").map(|text| regex::Regex::new(&text)).transpose() {
        Ok(filter) => filter,
        Err(_) => return Response::text(StatusCode::BAD_REQUEST, "Invalid re2 regex\n"),
    };
    let used = request.flag("usedonly");
    let shown = stats
        .counters()
        .filter(|(name, value)| filter.as_ref().is_none_or(|f| f.is_match(name)) && (!used || *value > 0));
    match request.query("format").as_deref() {
        Some("prometheus") => Response::text(StatusCode::OK, stats.prometheus()),
        Some("json") => {
            let all: Vec<_> = shown.map(|(name, value)| serde_json::json!({"name": name, "value": value})).collect();
            Response::json(serde_json::json!({"stats": all}).to_string())
        }
        None | Some("text") => {
            Response::text(StatusCode::OK, shown.map(|(name, value)| format!("{name}: {value}\n")).collect::<String>())
        }
        Some(_) => Response::text(StatusCode::BAD_REQUEST, "usage: /stats?format=json|prometheus|text\n"),
    }
}

fn logging(logs: Option<&LogHandle>, request: &Request) -> Response {
    let level = match (request.query("level"), request.query("paths")) {
        (Some(level), _) => level.into_owned(),
        // Envoy's form `name:level,name:level`.
        (None, Some(paths)) => paths.replace(':', "="),
        (None, None) => return Response::text(StatusCode::BAD_REQUEST, "usage: /logging?level=LEVEL\n"),
    };
    // Envoy's words for levels that tracing names otherwise.
    let level = match level.as_str() {
        "warning" => "warn",
        "critical" => "error",
        other => other,
    };
    match logs.map(|logs| logs.set_level(level)) {
        Some(Ok(())) => Response::text(StatusCode::OK, format!("active loggers:\n  all: {level}\n")),
        Some(Err(error)) => Response::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        None => Response::text(StatusCode::NOT_IMPLEMENTED, "logging was not set up by the agent\n"),
    }
}
