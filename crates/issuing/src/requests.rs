//! One CertificateRequest, signed or refused by its issuer.
//!
//! Invariant: a request is answered once; what is signed is what its sender has shown to hold the key for. Requests to
//! issuers of other groups are left to their controllers.

use std::time::{Duration, SystemTime};

use carrick_api::cert_manager::{CertificateRequest, Condition};
use carrick_api::timestamp::Timestamp;
use tracing::info;

use crate::issuer::{self, Outcome};
use crate::objects::{Kind, ObjectError, Objects};
use crate::queue::Key;
use crate::secrets;

/// How long until an issuer that is not ready, or has not answered, is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// Works on one request; tells when to look at it again.
pub(crate) async fn reconcile(
    objects: &Objects,
    key: &Key,
    now: SystemTime,
) -> Result<Option<SystemTime>, ObjectError> {
    let Some(mut request) = objects.request(key).await? else { return Ok(None) };
    if !request.spec.issuer_ref.is_ours() || is_answered(&request) {
        return Ok(None);
    }
    let before = request.status.clone();
    let denied = request.status.conditions.iter().any(|c| c.type_ == "Denied" && c.status == "True");
    let mut again = None;
    if denied {
        condition(
            &mut request,
            now,
            "Ready",
            "False",
            "Denied",
            "The CertificateRequest was denied by an approval controller",
        );
        request.status.failure_time = Some(Timestamp::from_system(now));
    } else {
        // Whoever may make requests may have them signed, as in cert-manager unless its approver is turned off.
        condition(
            &mut request,
            now,
            "Approved",
            "True",
            "cert-manager.io",
            "Certificate request has been approved by cert-manager.io",
        );
        match issuer::sign(objects, &request, now).await? {
            Outcome::Signed(signed) => {
                info!(namespace = key.0, name = key.1, serial = signed.serial, "certificate signed");
                request.status.certificate = secrets::encode(&signed.chain);
                request.status.ca = secrets::encode(&signed.ca);
                condition(&mut request, now, "Ready", "True", "Issued", "Certificate fetched from issuer successfully");
            }
            Outcome::Later(why) => {
                condition(&mut request, now, "Ready", "False", "Pending", &why);
                again = now.checked_add(AGAIN);
            }
            Outcome::Never(why) => {
                condition(&mut request, now, "Ready", "False", "Failed", &why);
                request.status.failure_time = Some(Timestamp::from_system(now));
            }
        }
    }
    if request.status != before {
        let status = serde_json::to_value(&request.status).map_err(|e| ObjectError::Read(e.to_string()))?;
        let version = &request.metadata.resource_version;
        if !objects.set_status(Kind::Request, key, version, &status).await? {
            return Ok(Some(now));
        }
    }
    Ok(again)
}

fn is_answered(request: &CertificateRequest) -> bool {
    let ready = request.status.conditions.iter().find(|c| c.type_ == "Ready");
    ready.is_some_and(|c| c.status == "True" || matches!(&*c.reason, "Failed" | "Denied"))
}

fn condition(
    request: &mut CertificateRequest,
    now: SystemTime,
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
) {
    let list = &mut request.status.conditions;
    let same = list.iter().find(|c| c.type_ == type_ && c.status == status);
    let since = same.and_then(|c| c.last_transition_time).unwrap_or(Timestamp::from_system(now));
    let new = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        last_transition_time: Some(since),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: None,
    };
    match list.iter_mut().find(|c| c.type_ == type_) {
        Some(old) => *old = new,
        None => list.push(new),
    }
}
