//! What gateways of the Gateway API need and nobody wrote: their classes, the Services in front of their pods, and in a cluster the pods.
//!
//! Invariant: an object that does not carry the controller's label is never changed, nor is one that another revision's control plane
//! made, unless its Gateway names ours; what was made goes with its Gateway, which owns it. What a gateway runs on is written in
//! `carrick-inject`.

use super::{Statuses, WRITE_LIMIT};
use crate::injector::Workloads;
use crate::source::{Kind, Name, kube::api};
use carrick_inject::gateway_api::{Wanted, laid_over};
use carrick_mesh::gateway_api::{CLASSES, CONTROLLER, GatewayService, MANAGED_LABEL};
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

/// The name under which the server remembers who set a field.
const FIELD_MANAGER: &str = "carrick-gateways";
/// How often classes are tried where the API does not have them: its definitions may come later.
const CLASSES_AGAIN: Duration = Duration::from_secs(10);

/// How gateways get pods.
#[derive(Clone)]
pub(crate) struct Deploying {
    pub(crate) workloads: Workloads,
    /// Our revision.
    pub(crate) revision: String,
    /// Whether this replica leads all revisions, and so cares for Gateways that name none.
    pub(crate) leads: Option<watch::Receiver<bool>>,
}

impl Deploying {
    /// Whether it is for this replica to begin with a Gateway.
    fn begins(&self, gateway: &GatewayService) -> bool {
        gateway.revision.is_some() || self.leads.as_ref().is_none_or(|leads| *leads.borrow())
    }
}

/// What was made.
#[derive(Debug, Default)]
pub(super) struct Deployed {
    classes: BTreeSet<&'static str>,
    /// When the API had no classes, the last time that was tried.
    classless: Option<Instant>,
    /// What was last written for each Service's name.
    objects: BTreeMap<Name, Vec<Value>>,
    /// What was told of each.
    told: BTreeMap<Name, String>,
}

/// Why an object is left as it is.
enum Left {
    /// It is not the controller's.
    Foreign,
    /// Another revision cares for it.
    OtherRevision(String),
}

impl Statuses {
    /// Makes what is missing.
    pub(super) async fn deploy(&self, deployed: &mut Deployed) {
        let Some(current) = self.renderer.current() else { return };
        let there = |kind: Kind, name: &Name| {
            self.seen.lock().versions.get(&kind).is_some_and(|versions| versions.contains_key(name))
        };
        for class in CLASSES {
            let known = there(Kind::GatewayClass, &(String::new(), class.to_owned()));
            let tried = deployed.classless.is_some_and(|at| at.elapsed() < CLASSES_AGAIN);
            // One that somebody deletes stays deleted until the next start.
            if known || tried || deployed.classes.contains(class) {
                continue;
            }
            if self.class(class).await {
                deployed.classes.insert(class);
            } else {
                deployed.classless = Some(Instant::now());
            }
        }
        let wanted: Vec<(Name, &GatewayService)> =
            current.snapshot.gateway_services().iter().map(|made| (name(&made.service), made)).collect();
        deployed.objects.retain(|name, _| wanted.iter().any(|(wanted, _)| wanted == name));
        deployed.told.retain(|name, _| wanted.iter().any(|(wanted, _)| wanted == name));
        for (name, gateway) in wanted {
            let objects = match self.objects(gateway) {
                Ok(Some(objects)) => objects,
                Ok(None) => continue,
                Err(reason) => {
                    tell(deployed, &name, reason);
                    continue;
                }
            };
            let known = deployed.objects.get(&name) == Some(&objects) && there(Kind::Service, &name);
            if known {
                continue;
            }
            let begins = self.deploying.as_ref().is_none_or(|deploying| deploying.begins(gateway));
            if !begins && !there(Kind::Service, &name) {
                continue;
            }
            match self.make(&name, gateway, &objects).await {
                Ok(()) => {
                    deployed.told.remove(&name);
                    deployed.objects.insert(name, objects);
                }
                Err(reason) => tell(deployed, &name, reason),
            }
        }
    }

    /// What a gateway needs; `None` when that is not our business.
    fn objects(&self, gateway: &GatewayService) -> Result<Option<Vec<Value>>, String> {
        let Some(deploying) = &self.deploying else {
            let service = laid_over(gateway.service.clone(), &gateway.overlays).map_err(|error| error.to_string())?;
            return Ok(Some(vec![service]));
        };
        if gateway.revision.as_ref().is_some_and(|revision| *revision != deploying.revision) {
            return Ok(None);
        }
        let GatewayService { service, account, overlays, .. } = gateway;
        (deploying.workloads)(Wanted { service, account: account.as_deref(), overlays }).map(Some)
    }

    /// Writes all of it, unless one of the objects is somebody else's.
    async fn make(&self, name: &Name, gateway: &GatewayService, objects: &[Value]) -> Result<(), String> {
        for object in objects {
            let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
            let wrong = |reason: String| format!("{kind}: {reason}");
            match timeout(WRITE_LIMIT, self.left(name, gateway, object)).await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(Left::Foreign))) => {
                    return Err(wrong("one is there already, and not ours: it is left as it is".to_owned()));
                }
                Ok(Ok(Some(Left::OtherRevision(revision)))) => {
                    return Err(wrong(format!(
                        "revision {revision} made it and keeps it until the Gateway names another"
                    )));
                }
                Ok(Err(error)) => return Err(wrong(error.to_string())),
                Err(_) => return Err(wrong("not answered in time".to_owned())),
            }
        }
        for object in objects {
            let Some((api, kind)) = api_of(&self.client, object, &name.0) else { continue };
            let (params, patch) = (PatchParams::apply(FIELD_MANAGER).force(), Patch::Apply(object));
            let write = api.patch(&name.1, &params, &patch);
            match timeout(WRITE_LIMIT, write).await {
                Ok(Ok(_)) => debug!(namespace = name.0, name = name.1, kind, "made for a gateway"),
                Ok(Err(error)) => return Err(format!("{kind}: {error}")),
                Err(_) => return Err(format!("{kind}: not answered in time")),
            }
        }
        Ok(())
    }

    /// Why an object is left as it is, if it is.
    async fn left(&self, name: &Name, gateway: &GatewayService, object: &Value) -> Result<Option<Left>, kube::Error> {
        let Some((api, kind)) = api_of(&self.client, object, &name.0) else { return Ok(None) };
        let Some(there) = api.get_opt(&name.1).await? else { return Ok(None) };
        if !there.labels().contains_key(MANAGED_LABEL) {
            return Ok(Some(Left::Foreign));
        }
        let maker = there.data.pointer("/spec/template/metadata/annotations/istio.io~1rev").and_then(Value::as_str);
        let ours = self.deploying.as_ref().map(|deploying| deploying.revision.as_str());
        let others = maker.filter(|maker| kind == "Deployment" && Some(*maker) != ours && gateway.revision.is_none());
        Ok(others.map(|maker| Left::OtherRevision(maker.to_owned())))
    }

    /// Makes a class; false when the API has none yet.
    async fn class(&self, name: &str) -> bool {
        let api = api(&self.client, Kind::GatewayClass.info(), "v1", None);
        let object = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": {"name": name},
            "spec": {"controllerName": CONTROLLER},
        });
        let Ok(object) = serde_json::from_value::<DynamicObject>(object) else { return true };
        match timeout(WRITE_LIMIT, api.create(&PostParams::default(), &object)).await {
            Ok(Ok(_)) => debug!(name, "gateway class made"),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => return false,
            // Another was quicker.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            Ok(Err(error)) => warn!(name, %error, "gateway class not made"),
            Err(_) => warn!(name, "gateway class not made in time"),
        }
        true
    }
}

/// Says once why a gateway does not have what it needs; it is tried again.
fn tell(deployed: &mut Deployed, name: &Name, reason: String) {
    if deployed.told.get(name) != Some(&reason) {
        warn!(namespace = name.0, name = name.1, %reason, "what a gateway needs is not made");
        deployed.told.insert(name.clone(), reason);
    }
}

/// Where an object is written, and its kind.
fn api_of<'a>(client: &kube::Client, object: &'a Value, namespace: &str) -> Option<(Api<DynamicObject>, &'a str)> {
    let text = |field: &str| object.get(field).and_then(Value::as_str);
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Some((Api::namespaced_with(client.clone(), namespace, &resource), kind))
}

fn name(object: &Value) -> Name {
    let field = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (field("/metadata/namespace"), field("/metadata/name"))
}
