//! `/debug/syncz`: per proxy and type, what was sent, acknowledged, refused.

use super::{Pages, answer, time};
use carrick_runtime::admin::Response;
use http::StatusCode;
use serde_json::{Value, json};

pub(super) fn page(pages: &Pages) -> Response {
    let proxies: Vec<Value> = pages
        .connections
        .all()
        .iter()
        .map(|c| {
            let types: Vec<Value> = c
                .status
                .types
                .iter()
                .map(|(type_url, s)| {
                    let mut value = json!({
                        "type": type_url.as_str(),
                        "sentNonce": &*s.sent_nonce,
                        "sentVersion": &*s.sent_version,
                        "ackedNonce": &*s.acked_nonce,
                        "ackedVersion": &*s.acked_version,
                        "wildcard": s.wildcard,
                        "names": s.names,
                        "resources": s.resources,
                        "pushes": s.pushes,
                        "rejects": s.rejects,
                    });
                    if let (Some(nack), Some(map)) = (&s.nack, value.as_object_mut()) {
                        map.insert("error".to_owned(), json!(nack.message));
                        map.insert("errorNonce".to_owned(), json!(&*nack.nonce));
                    }
                    value
                })
                .collect();
            json!({
                "name": c.name(),
                "proxyID": &*c.node.id,
                "cluster": c.cluster,
                "version": c.version,
                "controlPlane": pages.name,
                "identity": c.identity.as_str(),
                "address": c.address.map(|a| a.to_string()),
                "delta": c.delta,
                "connected": time(c.connected),
                "target": c.status.target,
                "acknowledged": c.status.acknowledged,
                "types": types,
            })
        })
        .collect();
    answer(StatusCode::OK, &json!({ "proxies": proxies }))
}
