//! One CertificateRequest, signed or refused by its issuer.
//!
//! Invariant: a request is answered once; what is signed is what its sender has shown to hold the key for. Requests to
//! issuers of other groups are left to their controllers.

use std::time::SystemTime;

use carrick_api::cert_manager::{CertificateRequest, Condition};
use carrick_api::timestamp::Timestamp;
use tracing::info;

use crate::events::Type;
use crate::issuer::{self, Outcome, Signers};
use crate::objects::{Kind, ObjectError, Objects};
use crate::queue::Key;
use crate::secrets;

/// Works on one request; tells when to look at it again.
pub(crate) async fn reconcile(
    objects: &Objects,
    signers: &Signers,
    key: &Key,
    now: SystemTime,
) -> Result<Option<SystemTime>, ObjectError> {
    let Some(mut request) = objects.request(key).await? else { return Ok(None) };
    if !request.spec.issuer_ref.is_ours() || is_answered(&request) {
        return Ok(None);
    }
    let before = request.status.clone();
    let time = Timestamp::from_system(now);
    let denied = request.status.conditions.iter().any(|c| c.type_ == "Denied" && c.status == "True");
    let mut again = None;
    let mut told = Vec::new();
    let set = |request: &mut CertificateRequest, type_, holds, reason, message: &str| {
        Condition::new(type_, holds, reason, message, time).set_in(&mut request.status.conditions);
    };
    if denied {
        let why = "The CertificateRequest was denied by an approval controller";
        set(&mut request, "Ready", false, "Denied", why);
        request.status.failure_time = Some(time);
    } else {
        // Whoever may make requests may have them signed, as in cert-manager unless its approver is turned off.
        if !request.status.conditions.iter().any(|c| c.type_ == "Approved") {
            let approved = "Certificate request has been approved by cert-manager.io";
            set(&mut request, "Approved", true, "cert-manager.io", approved);
            told.push((Type::Normal, "cert-manager.io", approved.to_owned()));
        }
        match issuer::sign(objects, signers, &request, now).await? {
            Outcome::Signed(signed) => {
                info!(namespace = key.0, name = key.1, serial = signed.serial, "certificate signed");
                request.status.certificate = secrets::encode(&signed.chain);
                request.status.ca = secrets::encode(&signed.ca);
                let done = "Certificate fetched from issuer successfully";
                set(&mut request, "Ready", true, "Issued", done);
                told.push((Type::Normal, "CertificateIssued", done.to_owned()));
            }
            Outcome::Later(why, pause) => {
                set(&mut request, "Ready", false, "Pending", &why);
                told.push((Type::Normal, "Pending", why));
                again = now.checked_add(pause);
            }
            Outcome::Never(why) => {
                set(&mut request, "Ready", false, "Failed", &why);
                told.push((Type::Warning, "Failed", why));
                request.status.failure_time = Some(time);
            }
        }
    }
    if request.status != before {
        let status = serde_json::to_value(&request.status).map_err(|e| ObjectError::Read(e.to_string()))?;
        let version = &request.metadata.resource_version;
        if !objects.set_status(Kind::Request, key, version, &status).await? {
            return Ok(Some(now));
        }
        if is_answered(&request) {
            issuer::answered(objects, signers, &request).await?;
        }
        for (type_, reason, message) in told {
            objects.tell(Kind::Request, &request.metadata, type_, reason, &message, time).await;
        }
    }
    Ok(again)
}

fn is_answered(request: &CertificateRequest) -> bool {
    let ready = request.status.conditions.iter().find(|c| c.type_ == "Ready");
    ready.is_some_and(|c| c.status == "True" || matches!(&*c.reason, "Failed" | "Denied"))
}
