//! `/debug/clusterz`: the clusters whose services and endpoints the mesh is made of, in Istio's shape.

use super::{Pages, answer};
use carrick_runtime::admin::Response;
use http::StatusCode;
use serde_json::{Value, json};

pub(super) fn page(pages: &Pages) -> Response {
    let synced = *pages.synced.borrow();
    let own = json!({
        "id": &*pages.cluster_id, "secretName": "", "syncStatus": if synced { "synced" } else { "syncing" },
    });
    let mesh = pages.mesh_config.load();
    let root = &mesh.root_namespace;
    let clusters = pages.seen.lock().clusters.clone();
    let others = clusters.iter().map(|(id, shown)| {
        let mut all = json!({
            "id": &**id, "secretName": format!("{root}/{}", shown.secret), "syncStatus": shown.state(),
        });
        if let Some(reason) = &shown.problem {
            all["reason"] = reason.as_str().into();
        }
        all
    });
    answer(StatusCode::OK, &Value::Array(std::iter::once(own).chain(others).collect()))
}
