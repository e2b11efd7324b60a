//! Issuers: whether they can sign, and signing.
//!
//! Invariant: [`sign`] is the one place where anything is signed. An issuer that cannot be used says why in its status; a
//! request to it waits, since issuers are mended. Only what no issuer could ever sign is refused for good.

mod ca;
mod mesh;
mod self_signed;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carrick_api::cert_manager::{CertificateRequest, Condition, Issuer};
use carrick_api::timestamp::Timestamp;
use carrick_pki::Authority;
use carrick_pki::ca::CaError;
use carrick_pki::issue::{self, Profile, Signed};

use crate::events::Type;
use crate::objects::{Kind, ObjectError, Objects};
use crate::queue::Key;
use crate::secrets;

/// The life of a certificate whose request names none: 90 days.
const LIFE: Duration = Duration::from_secs(2160 * 60 * 60);
/// How long until an issuer that is not ready is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// What issuers sign with beyond what the objects say.
#[derive(Debug, Default)]
pub(crate) struct Signers {
    /// The mesh's own authority.
    pub(crate) mesh: Option<Arc<Authority>>,
}

/// What came of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is signed.
    Signed(Signed),
    /// Not yet: why, and when to ask again.
    Later(String, Duration),
    /// It will never be; in words.
    Never(String),
}

impl Outcome {
    /// Not yet, since something has to be mended.
    fn later(why: impl Into<String>) -> Self {
        Self::Later(why.into(), AGAIN)
    }
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
    signers: &Signers,
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
        return Ok(Outcome::later(format!("Referenced {:?} {:?} not found", reference.kind(), reference.name)));
    };
    let spec = &issuer.spec;
    if spec.self_signed.is_some() {
        self_signed::sign(objects, request, order).await
    } else if let Some(ca) = &spec.ca {
        match &signers.mesh {
            Some(authority) if mesh::is_meant(ca, &secrets_namespace, objects.root_namespace()) => {
                Ok(mesh::sign(authority, request, &order, now))
            }
            _ => ca::sign(objects, ca, &secrets_namespace, order).await,
        }
    } else {
        Ok(Outcome::later(not_built(&issuer)))
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
    if error.is_callers_fault() { Outcome::Never(error.to_string()) } else { Outcome::later(error.to_string()) }
}

/// Whether an issuer can sign: reason and message.
type Readiness = Result<(&'static str, String), (&'static str, String)>;

/// Works on one issuer: says whether it can sign.
pub(crate) async fn reconcile(
    objects: &Objects,
    signers: &Signers,
    kind: Kind,
    key: &Key,
    now: SystemTime,
) -> Result<Option<SystemTime>, ObjectError> {
    let Some(issuer) = objects.issuer(kind, key).await? else { return Ok(None) };
    let readiness = readiness(objects, signers, &issuer, &objects.secrets_of(kind, key)).await?;
    let (ready, (reason, message)) = match readiness {
        Ok(said) => (true, said),
        Err(said) => (false, said),
    };
    let now = Timestamp::from_system(now);
    let mut status = issuer.status.clone();
    let condition = Condition::new("Ready", ready, reason, &message, now).at(issuer.metadata.generation);
    condition.set_in(&mut status.conditions);
    if status != issuer.status {
        let value = serde_json::to_value(&status).map_err(|e| ObjectError::Read(e.to_string()))?;
        if objects.set_status(kind, key, &issuer.metadata.resource_version, &value).await? && !message.is_empty() {
            let type_ = if ready { Type::Normal } else { Type::Warning };
            objects.tell(kind, &issuer.metadata, type_, reason, &message, now).await;
        }
    }
    Ok(None)
}

async fn readiness(
    objects: &Objects,
    signers: &Signers,
    issuer: &Issuer,
    namespace: &str,
) -> Result<Readiness, ObjectError> {
    let spec = &issuer.spec;
    if spec.self_signed.is_some() {
        return Ok(Ok(("IsReady", String::new())));
    }
    let Some(ca) = &spec.ca else { return Ok(Err(("NotSupported", not_built(issuer)))) };
    if signers.mesh.is_some() && mesh::is_meant(ca, namespace, objects.root_namespace()) {
        return Ok(Ok(("KeyPairVerified", "The mesh's authority signs".to_owned())));
    }
    let verified = ca::signer(objects, ca, namespace).await?;
    Ok(verified.map(|_| ("KeyPairVerified", "Signing CA verified".to_owned())).map_err(|why| ("ErrGetKeyPair", why)))
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
