//! What gateways of the Gateway API need and nobody wrote: their classes, and the Services in front of their pods.
//!
//! Invariant: an object that does not carry the controller's label is never changed; what was made goes with its Gateway, which owns it.

use super::{Statuses, WRITE_LIMIT};
use crate::source::{Kind, Name, kube::api};
use carrick_mesh::gateway_api::{CLASSES, CONTROLLER, MANAGED_LABEL};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::timeout;
use tracing::{debug, warn};

/// The name under which the server remembers who set a field.
const FIELD_MANAGER: &str = "carrick-gateways";

/// What was made.
#[derive(Debug, Default)]
pub(super) struct Deployed {
    classes: BTreeSet<&'static str>,
    services: BTreeMap<Name, Value>,
}

impl Statuses {
    /// Makes what is missing.
    pub(super) async fn deploy(&self, deployed: &mut Deployed) {
        let Some(current) = self.renderer.current() else { return };
        let there = |kind: Kind, name: &Name| {
            self.seen.lock().versions.get(&kind).is_some_and(|versions| versions.contains_key(name))
        };
        for class in CLASSES {
            // One that somebody deletes stays deleted until the next start.
            if !there(Kind::GatewayClass, &(String::new(), class.to_owned())) && deployed.classes.insert(class) {
                self.class(class).await;
            }
        }
        let wanted: Vec<(Name, &Value)> = current.snapshot.gateway_services().iter().map(|s| (name(s), s)).collect();
        deployed.services.retain(|name, _| wanted.iter().any(|(wanted, _)| wanted == name));
        for (name, service) in wanted {
            let known = deployed.services.get(&name) == Some(service) && there(Kind::Service, &name);
            if !known && self.service(&name, service).await {
                deployed.services.insert(name, service.clone());
            }
        }
    }

    async fn class(&self, name: &str) {
        let api = api(&self.client, Kind::GatewayClass.info(), None);
        let object = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": {"name": name},
            "spec": {"controllerName": CONTROLLER},
        });
        let Ok(object) = serde_json::from_value::<DynamicObject>(object) else { return };
        match timeout(WRITE_LIMIT, api.create(&PostParams::default(), &object)).await {
            Ok(Ok(_)) => debug!(name, "gateway class made"),
            // Another was quicker, or the API has no such kind.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {}
            Ok(Err(error)) => warn!(name, %error, "gateway class not made"),
            Err(_) => warn!(name, "gateway class not made in time"),
        }
    }

    /// Whether it is there as wanted, or is somebody else's.
    async fn service(&self, (namespace, name): &Name, service: &Value) -> bool {
        let api = api(&self.client, Kind::Service.info(), Some(namespace));
        let work = async {
            let there = api.get_opt(name).await?;
            if there.is_some_and(|s| !s.metadata.labels.is_some_and(|l| l.contains_key(MANAGED_LABEL))) {
                warn!(namespace, name, "a gateway's service is there already, and not ours: it is left as it is");
                return Ok(());
            }
            api.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(service)).await.map(drop)
        };
        match timeout(WRITE_LIMIT, work).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                let error: kube::Error = error;
                warn!(namespace, name, %error, "a gateway's service is not made; it is tried again");
                false
            }
            Err(_) => {
                warn!(namespace, name, "a gateway's service is not made in time; it is tried again");
                false
            }
        }
    }
}

fn name(object: &Value) -> Name {
    let field = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (field("/metadata/namespace"), field("/metadata/name"))
}
