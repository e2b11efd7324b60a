//! One Certificate, brought a step nearer to what it asks for, again and again until nothing is left to do.
//!
//! Invariant: what a step makes has a name that follows from the certificate and its revision, so a step that is taken twice
//! makes one thing. The secret is written before the status says so.

use std::time::{Duration, SystemTime};

use carrick_api::cert_manager::{Certificate, CertificateRequest, CertificateStatus, Condition};
use carrick_api::timestamp::Timestamp;
use carrick_certs::{Decision, Facts, Held, Key as KeyFacts, Reply, Request, Step, Wish, decide};
use carrick_pki::{PrivateKey, issue};
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use serde_json::json;
use tracing::info;

use crate::events::Type;
use crate::keystores;
use crate::objects::{Kind, ObjectError, Objects};
use crate::queue::Key;
use crate::secrets::{self, Material};

/// Steps in a row before others have their turn.
const TURNS: usize = 8;
/// Notes on a request: which certificate and which revision it is for.
pub(crate) const FOR_CERTIFICATE: &str = "cert-manager.io/certificate-name";
const FOR_REVISION: &str = "cert-manager.io/certificate-revision";
/// Where a self-signed request's key is.
pub(crate) const KEY_SECRET: &str = "cert-manager.io/private-key-secret-name";
/// Requests that are kept beside the newest, unless the certificate says otherwise.
const HISTORY: i64 = 1;

/// Everything about one certificate.
struct Scene {
    certificate: Certificate,
    wish: Wish,
    secret: Option<Secret>,
    held: Option<Held>,
    next: Option<(PrivateKey, KeyFacts)>,
    request: Option<(CertificateRequest, Request)>,
}

/// Works on one certificate; tells when to look at it again.
pub(crate) async fn reconcile(
    objects: &Objects,
    key: &Key,
    now: SystemTime,
) -> Result<Option<SystemTime>, ObjectError> {
    for _ in 0..TURNS {
        let Some(certificate) = objects.certificate(key).await? else { return Ok(None) };
        if certificate.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let wish = match Wish::read(&certificate.spec) {
            Ok(wish) if secrets::algorithm(wish.key).is_some() => wish,
            Ok(_) => return refuse(objects, key, &certificate, now, "keys of this algorithm are not made here").await,
            Err(error) => return refuse(objects, key, &certificate, now, &error.to_string()).await,
        };
        let scene = look(objects, key, certificate, wish).await?;
        let decision = decide(&Facts {
            now: Timestamp::from_system(now),
            wish: &scene.wish,
            generation: scene.certificate.metadata.generation,
            status: &scene.certificate.status,
            held: scene.held.as_ref(),
            next_key: scene.next.as_ref().map(|(_, facts)| *facts),
            request: scene.request.as_ref().map(|(_, request)| request),
        });
        let after = matches!(decision.step, Step::Deliver { .. });
        if !after && !say(objects, key, &scene, &decision).await? {
            continue;
        }
        if decision.step == Step::Rest {
            touch_up(objects, key, &scene, &decision, now).await?;
            return Ok(decision.wake.map(crate::system));
        }
        take(objects, key, &scene, &decision, now).await?;
        if after {
            say(objects, key, &scene, &decision).await?;
        }
    }
    Ok(now.checked_add(Duration::from_secs(1)))
}

async fn look(objects: &Objects, key: &Key, certificate: Certificate, wish: Wish) -> Result<Scene, ObjectError> {
    let secret = objects.secret(&key.0, &certificate.spec.secret_name).await?;
    let held = secret.as_ref().map(secrets::held);
    let revision = certificate.status.revision.unwrap_or(0).saturating_add(1);
    let next = objects.secret(&key.0, &next_key_name(&key.1, revision)).await?;
    let next = next.as_ref().and_then(secrets::key).and_then(|key| secrets::facts(&key).map(|facts| (key, facts)));
    let request = objects.request(&(key.0.clone(), request_name(&key.1, revision))).await?;
    let request = request.and_then(|request| summary(&request).map(|summary| (request, summary)));
    Ok(Scene { certificate, wish, secret, held, next, request })
}

/// What a request asks for, and what came of it. One that nobody can read has failed.
fn summary(request: &CertificateRequest) -> Option<Request> {
    let (profile, digest) = issue::asked(&secrets::decode(&request.spec.request)?).ok()?;
    let condition = |type_: &str| request.status.conditions.iter().find(|c| c.type_ == type_);
    let is = |type_: &str, status: &str| condition(type_).is_some_and(|c| c.status == status);
    let failed = condition("Ready").filter(|c| c.status == "False" && matches!(&*c.reason, "Failed" | "Denied"));
    let reply = if is("Ready", "True") {
        let chain = secrets::decode(&request.status.certificate).unwrap_or_default();
        match secrets::leaf(chain.as_bytes()) {
            Some(leaf) => Reply::Signed(leaf),
            None => Reply::Failed("the issuer's answer is no certificate".to_owned()),
        }
    } else if let Some(failed) = failed {
        Reply::Failed(failed.message.clone())
    } else if is("Denied", "True") || is("InvalidRequest", "True") {
        Reply::Failed("the request was denied".to_owned())
    } else {
        Reply::Pending
    };
    Some(Request { digest, names: secrets::names(&profile), issuer: request.spec.issuer_ref.clone(), reply })
}

/// Takes the step, and tells of it.
async fn take(
    objects: &Objects,
    key: &Key,
    scene: &Scene,
    decision: &Decision,
    now: SystemTime,
) -> Result<(), ObjectError> {
    perform(objects, key, scene, &decision.step, now).await?;
    let revision = scene.certificate.status.revision.unwrap_or(0).saturating_add(1);
    let (type_, reason, message) = match &decision.step {
        Step::StoreNextKey { reuse: false } => {
            let name = next_key_name(&key.1, revision);
            (Type::Normal, "Generated", format!("Stored new private key in temporary Secret resource {name:?}"))
        }
        Step::StoreNextKey { reuse: true } => {
            let name = next_key_name(&key.1, revision);
            (Type::Normal, "Reused", format!("Reusing private key, stored in temporary Secret resource {name:?}"))
        }
        Step::Ask { revision } => {
            let name = request_name(&key.1, *revision);
            (Type::Normal, "Requested", format!("Created new CertificateRequest resource {name:?}"))
        }
        Step::Deliver { .. } => (Type::Normal, "Issuing", "The certificate has been successfully issued".to_owned()),
        Step::GiveUp { .. } => {
            let said = decision.status.conditions.iter().find(|c| c.type_ == "Issuing");
            (Type::Warning, "Failed", said.map(|c| c.message.clone()).unwrap_or_default())
        }
        Step::Rest | Step::DropNextKey | Step::Withdraw => return Ok(()),
    };
    let meta = &scene.certificate.metadata;
    objects.tell(Kind::Certificate, meta, type_, reason, &message, Timestamp::from_system(now)).await;
    Ok(())
}

async fn perform(objects: &Objects, key: &Key, scene: &Scene, step: &Step, now: SystemTime) -> Result<(), ObjectError> {
    let (namespace, name) = key;
    let status = &scene.certificate.status;
    let revision = status.revision.unwrap_or(0).saturating_add(1);
    let next_key = (namespace.clone(), next_key_name(name, revision));
    let request = (namespace.clone(), request_name(name, revision));
    match step {
        Step::Rest => Ok(()),
        Step::StoreNextKey { reuse } => {
            let used = scene.secret.as_ref().filter(|_| *reuse).and_then(secrets::key);
            let made = match (used, secrets::algorithm(scene.wish.key)) {
                (Some(used), _) => used,
                (None, Some(algorithm)) => {
                    // RSA keys take a while; others go on meanwhile.
                    let made = tokio::task::spawn_blocking(move || PrivateKey::generate(algorithm)).await;
                    made.map_err(|e| ObjectError::Read(e.to_string()))?.map_err(|e| ObjectError::Read(e.to_string()))?
                }
                (None, None) => return Err(ObjectError::Read("no such keys are made here".to_owned())),
            };
            let object = json!({
                "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                "metadata": {"name": next_key.1, "namespace": namespace, "ownerReferences": [owned(scene)],
                    "labels": {secrets::NEXT_KEY_LABEL: "true"}},
                "data": {secrets::KEY: secrets::encode(&made.to_pem())},
            });
            objects.create(Kind::Secret, namespace, object).await
        }
        Step::DropNextKey => {
            // A key of a revision that was delivered may be left too, when this process ended in between.
            let left = (namespace.clone(), next_key_name(name, revision.saturating_sub(1)));
            objects.delete(Kind::Secret, &left).await?;
            objects.delete(Kind::Secret, &next_key).await
        }
        Step::Ask { revision } => ask(objects, key, scene, *revision).await,
        Step::Withdraw | Step::GiveUp { .. } => objects.delete(Kind::Request, &request).await,
        Step::Deliver { revision } => deliver(objects, key, scene, *revision, now).await,
    }
}

async fn ask(objects: &Objects, key: &Key, scene: &Scene, revision: i64) -> Result<(), ObjectError> {
    let Some((next, _)) = &scene.next else { return Ok(()) };
    let csr = issue::request(next, &secrets::profile(&scene.wish)).map_err(|e| ObjectError::Read(e.to_string()))?;
    let spec = &scene.certificate.spec;
    let object = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest",
        "metadata": {
            "name": request_name(&key.1, revision), "namespace": key.0, "ownerReferences": [owned(scene)],
            "labels": scene.certificate.metadata.labels,
            "annotations": {
                FOR_CERTIFICATE: key.1, FOR_REVISION: revision.to_string(),
                KEY_SECRET: next_key_name(&key.1, revision),
            },
        },
        "spec": {
            "request": secrets::encode(&csr), "issuerRef": spec.issuer_ref, "isCA": spec.is_ca,
            "duration": go(scene.wish.duration), "usages": scene.wish.usages,
        },
    });
    objects.create(Kind::Request, &key.0, object).await
}

async fn deliver(
    objects: &Objects,
    key: &Key,
    scene: &Scene,
    revision: i64,
    now: SystemTime,
) -> Result<(), ObjectError> {
    let (Some((next, _)), Some((request, _))) = (&scene.next, &scene.request) else { return Ok(()) };
    let text = |field: &str| secrets::decode(field).unwrap_or_default();
    let (chain, ca) = (text(&request.status.certificate), text(&request.status.ca));
    let secret = compose(objects, key, scene, (next, &chain, &ca), now).await?;
    let (api, params) = (objects.secrets(&key.0), PostParams::default());
    // One that somebody else wrote meanwhile is looked at anew.
    match scene.secret.is_some() {
        true => api.replace(&scene.certificate.spec.secret_name, &params, &secret).await?,
        false => api.create(&params, &secret).await?,
    };
    info!(namespace = key.0, name = key.1, revision, "certificate delivered");
    objects.delete(Kind::Secret, &(key.0.clone(), next_key_name(&key.1, revision))).await?;
    forget(objects, key, scene, revision).await
}

/// The secret as it is to be.
async fn compose(
    objects: &Objects,
    key: &Key,
    scene: &Scene,
    (own, chain, ca): (&PrivateKey, &str, &str),
    now: SystemTime,
) -> Result<Secret, ObjectError> {
    let certificate = &scene.certificate;
    let stores = keystores::wanted(objects, &key.0, &certificate.spec.keystores).await?;
    let secret = stores.and_then(|stores| {
        let material = Material { key: own, chain, ca, stores: &stores };
        secrets::filled(certificate, scene.secret.clone(), &material, now)
    });
    match secret {
        Ok(secret) => Ok(secret),
        Err(why) => {
            let (meta, now) = (&certificate.metadata, Timestamp::from_system(now));
            objects.tell(Kind::Certificate, meta, Type::Warning, "SecretError", &why, now).await;
            Err(ObjectError::Read(why))
        }
    }
}

/// Brings what is beside a certificate that is as wished for to what is asked now: labels, notes, further forms.
async fn touch_up(
    objects: &Objects,
    key: &Key,
    scene: &Scene,
    decision: &Decision,
    now: SystemTime,
) -> Result<(), ObjectError> {
    let is = |type_: &str| decision.status.conditions.iter().any(|c| c.type_ == type_ && c.status == "True");
    let Some(secret) = scene.secret.as_ref().filter(|_| is("Ready") && !is("Issuing")) else { return Ok(()) };
    let Some(own) = secrets::key(secret) else { return Ok(()) };
    let (chain, ca) = (secrets::text(secret, secrets::CERTIFICATE), secrets::text(secret, secrets::CA));
    let wanted = compose(objects, key, scene, (&own, &chain, &ca), now).await?;
    if wanted != *secret {
        let params = PostParams::default();
        objects.secrets(&key.0).replace(&scene.certificate.spec.secret_name, &params, &wanted).await?;
    }
    Ok(())
}

/// Deletes requests of long ago.
async fn forget(objects: &Objects, key: &Key, scene: &Scene, revision: i64) -> Result<(), ObjectError> {
    let kept = scene.certificate.spec.revision_history_limit.map_or(HISTORY, i64::from).max(1);
    for request in objects.requests_in(&key.0).await? {
        let notes = &request.metadata.annotations;
        let number = notes.get(FOR_REVISION).and_then(|n| n.parse::<i64>().ok());
        if notes.get(FOR_CERTIFICATE) == Some(&key.1) && number.is_some_and(|n| n <= revision.saturating_sub(kept)) {
            objects.delete(Kind::Request, &(key.0.clone(), request.metadata.name.clone())).await?;
        }
    }
    Ok(())
}

/// Writes what is to be said, if it is new. Returns false when the certificate has changed since it was read.
async fn say(objects: &Objects, key: &Key, scene: &Scene, decision: &Decision) -> Result<bool, ObjectError> {
    let mut status = decision.status.clone();
    let revision = scene.certificate.status.revision.unwrap_or(0).saturating_add(1);
    let waiting = scene.next.is_some() || matches!(decision.step, Step::StoreNextKey { .. });
    let waiting = waiting && !matches!(decision.step, Step::Deliver { .. } | Step::DropNextKey);
    status.next_private_key_secret_name = waiting.then(|| next_key_name(&key.1, revision));
    if status == scene.certificate.status {
        return Ok(true);
    }
    // After a delivery the object is as it was read: nobody but this controller writes its status.
    let version = &scene.certificate.metadata.resource_version;
    let value = serde_json::to_value(&status).map_err(|e| ObjectError::Read(e.to_string()))?;
    let written = objects.set_status(Kind::Certificate, key, version, &value).await?;
    let begun = |status: &CertificateStatus| {
        status.conditions.iter().find(|c| c.type_ == "Issuing" && c.status == "True").cloned()
    };
    if let (true, None, Some(condition)) = (written, begun(&scene.certificate.status), begun(&status)) {
        let (meta, now) = (&scene.certificate.metadata, condition.last_transition_time.unwrap_or_default());
        objects.tell(Kind::Certificate, meta, Type::Normal, "Issuing", &condition.message, now).await;
    }
    Ok(written)
}

/// Says why a certificate cannot be had at all.
async fn refuse(
    objects: &Objects,
    key: &Key,
    certificate: &Certificate,
    now: SystemTime,
    why: &str,
) -> Result<Option<SystemTime>, ObjectError> {
    let now = Timestamp::from_system(now);
    let mut status = certificate.status.clone();
    let generation = certificate.metadata.generation;
    Condition::new("Ready", false, "InvalidSpec", why, now).at(generation).set_in(&mut status.conditions);
    status.conditions.retain(|condition| condition.type_ == "Ready");
    if status != certificate.status {
        let value = serde_json::to_value(&status).map_err(|e| ObjectError::Read(e.to_string()))?;
        let meta = &certificate.metadata;
        if objects.set_status(Kind::Certificate, key, &meta.resource_version, &value).await? {
            objects.tell(Kind::Certificate, meta, Type::Warning, "InvalidSpec", why, now).await;
        }
    }
    Ok(None)
}

fn owned(scene: &Scene) -> serde_json::Value {
    let meta = &scene.certificate.metadata;
    json!({"apiVersion": "cert-manager.io/v1", "kind": "Certificate", "name": meta.name, "uid": meta.uid,
        "controller": true, "blockOwnerDeletion": true})
}

/// The secret of the key of a certificate to come.
fn next_key_name(name: &str, revision: i64) -> String {
    format!("{name}-{revision}-key")
}

fn request_name(name: &str, revision: i64) -> String {
    format!("{name}-{revision}")
}

/// A duration in Go's notation.
fn go(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}
