//! Issuers: whether they can sign, and signing.
//!
//! Invariant: an issuer that cannot be used says why in its status; a request to it waits, since issuers are mended. Only
//! what no issuer could ever sign is refused for good.

mod ca;
mod self_signed;

use std::time::{Duration, SystemTime};

use carrick_api::cert_manager::{CertificateRequest, Condition, Issuer};
use carrick_api::timestamp::Timestamp;
use carrick_pki::ca::CaError;
use carrick_pki::issue::{self, Profile, Signed};

use crate::objects::{Kind, ObjectError, Objects};
use crate::queue::Key;
use crate::secrets;

/// The life of a certificate whose request names none: 90 days.
const LIFE: Duration = Duration::from_secs(2160 * 60 * 60);

/// What came of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is signed.
    Signed(Signed),
    /// Not yet; in words.
    Later(String),
    /// It will never be; in words.
    Never(String),
}

/// What is to be signed.
struct Order {
    csr: String,
    profile: Profile,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Has a request signed by its issuer.
pub(crate) async fn sign(
    objects: &Objects,
    request: &CertificateRequest,
    now: SystemTime,
) -> Result<Outcome, ObjectError> {
    let order = match order(request, now) {
        Ok(order) => order,
        Err(why) => return Ok(Outcome::Never(why)),
    };
    let namespace = &request.metadata.namespace;
    let reference = &request.spec.issuer_ref;
    let Some((issuer, secrets_namespace)) = objects.issuer_of(reference, namespace).await? else {
        return Ok(Outcome::Later(format!("Referenced {:?} {:?} not found", reference.kind(), reference.name)));
    };
    let spec = &issuer.spec;
    if spec.self_signed.is_some() {
        self_signed::sign(objects, request, order).await
    } else if let Some(ca) = &spec.ca {
        ca::sign(objects, ca, &secrets_namespace, order).await
    } else {
        Ok(Outcome::Later(not_built(&issuer)))
    }
}

fn order(request: &CertificateRequest, now: SystemTime) -> Result<Order, String> {
    let csr = secrets::decode(&request.spec.request).ok_or("spec.request is not base64 of a PEM text")?;
    let (mut profile, _) = issue::asked(&csr).map_err(|e| format!("spec.request: {e}"))?;
    profile.is_ca = request.spec.is_ca;
    profile.usages = match request.spec.usages.is_empty() {
        true => ["digital signature", "key encipherment"].map(str::to_owned).to_vec(),
        false => request.spec.usages.clone(),
    };
    profile.asked_by = format!("CertificateRequest {}/{}", request.metadata.namespace, request.metadata.name);
    let life = request.spec.duration.map_or(LIFE, |d| d.get());
    let not_after = now.checked_add(life).ok_or("spec.duration is too long")?;
    Ok(Order { csr, profile, not_before: now, not_after })
}

/// Turns what went wrong at signing into an outcome.
fn failed(error: &CaError) -> Outcome {
    if error.is_callers_fault() { Outcome::Never(error.to_string()) } else { Outcome::Later(error.to_string()) }
}

/// Works on one issuer: says whether it can sign.
pub(crate) async fn reconcile(
    objects: &Objects,
    kind: Kind,
    key: &Key,
    now: SystemTime,
) -> Result<Option<SystemTime>, ObjectError> {
    let Some(issuer) = objects.issuer(kind, key).await? else { return Ok(None) };
    let namespace = objects.secrets_of(kind, key);
    let (ready, reason, message) = if issuer.spec.self_signed.is_some() {
        (true, "IsReady", String::new())
    } else if let Some(ca) = &issuer.spec.ca {
        match ca::signer(objects, ca, &namespace).await? {
            Ok(_) => (true, "KeyPairVerified", "Signing CA verified".to_owned()),
            Err(why) => (false, "ErrGetKeyPair", why),
        }
    } else {
        (false, "NotSupported", not_built(&issuer))
    };
    let status = if ready { "True" } else { "False" };
    let before = issuer.status.conditions.iter().find(|c| c.type_ == "Ready");
    let since = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time);
    let condition = Condition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        last_transition_time: since.or(Some(Timestamp::from_system(now))),
        reason: reason.to_owned(),
        message,
        observed_generation: Some(issuer.metadata.generation),
    };
    if before != Some(&condition) {
        let status = serde_json::json!({"conditions": [condition]});
        objects.set_status(kind, key, &issuer.metadata.resource_version, &status).await?;
    }
    Ok(None)
}

fn not_built(issuer: &Issuer) -> String {
    let spec = &issuer.spec;
    let kinds = [
        ("acme", spec.acme.is_some()),
        ("vault", spec.vault.is_some()),
        ("pkcs11", spec.pkcs11.is_some()),
        ("kubernetes", spec.kubernetes.is_some()),
    ];
    let kind = kinds.iter().find(|(_, set)| *set).map_or("nothing", |(name, _)| name);
    format!("spec.{kind}: this control plane does not sign by it")
}
