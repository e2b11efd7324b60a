//! `/debug/registryz`, `/debug/endpointz`, `/debug/findings`: what the newest snapshot holds.

use super::{Pages, answer};
use crate::renderer::Current;
use carrick_runtime::admin::Response;
use http::StatusCode;
use serde_json::{Value, json};

fn with(pages: &Pages, show: impl FnOnce(&Current) -> Value) -> Response {
    match pages.renderer.current() {
        Some(current) => answer(StatusCode::OK, &show(&current)),
        None => Response::text(StatusCode::SERVICE_UNAVAILABLE, "no snapshot yet\n"),
    }
}

pub(super) fn services(pages: &Pages) -> Response {
    with(pages, |current| {
        current
            .snapshot
            .services()
            .iter()
            .map(|s| {
                json!({
                    "hostname": s.hostname.as_str(),
                    "name": s.origin.name.to_string(),
                    "detail": format!("{s:?}"),
                })
            })
            .collect()
    })
}

pub(super) fn endpoints(pages: &Pages) -> Response {
    with(pages, |current| {
        current
            .snapshot
            .services()
            .iter()
            .map(|s| {
                let endpoints: Vec<Value> = current
                    .snapshot
                    .endpoints()
                    .of_service(&s.id)
                    .map(|(port, e)| {
                        json!({
                            "port": &**port,
                            "address": e.address.to_string(),
                            "ready": e.ready,
                            "cluster": &*e.cluster,
                            "network": &*e.network,
                            "workload": e.workload.as_ref().map(|w| w.name.to_string()),
                            "identity": e.workload.as_ref().and_then(|w| Some(w.identity.as_ref()?.as_str().to_owned())),
                        })
                    })
                    .collect();
                json!({ "service": s.hostname.as_str(), "endpoints": endpoints })
            })
            .collect()
    })
}

pub(super) fn findings(pages: &Pages) -> Response {
    with(pages, |current| {
        current
            .diagnostics
            .iter()
            .map(|d| {
                json!({
                    "code": d.code,
                    "severity": format!("{:?}", d.severity),
                    "kind": &*d.object.kind,
                    "object": d.object.name.to_string(),
                    "field": d.field.as_str(),
                    "message": d.message,
                })
            })
            .collect()
    })
}
