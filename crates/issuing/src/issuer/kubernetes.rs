//! An issuer behind Kubernetes' own CertificateSigningRequests: somebody approves, a signer of the cluster signs.
//!
//! Invariant: nothing is approved here: who may is the cluster's rule. The object is taken away when its answer is written down.

use carrick_api::cert_manager::{CertificateRequest, KubernetesIssuer};
use carrick_pki::issue::Signed;
use carrick_pki::{CertificateInfo, pem};
use serde_json::{Value, json};

use super::{Order, Outcome, Place};
use crate::objects::ObjectError;
use crate::secrets;

const KIND: (&str, &str, &str) = ("certificates.k8s.io", "v1", "CertificateSigningRequest");
/// The shortest life that Kubernetes lets one ask for, in seconds.
const LEAST: u64 = 600;

pub(super) async fn sign(
    place: &Place<'_>,
    spec: &KubernetesIssuer,
    request: &CertificateRequest,
    order: &Order,
) -> Result<Outcome, ObjectError> {
    if order.profile.is_ca {
        return Ok(Outcome::Never("spec.isCA: Kubernetes' signers sign no authorities".to_owned()));
    }
    let meta = &request.metadata;
    let name = format!("carrick-{}", meta.uid);
    let Some(object) = place.objects.get_any(KIND, "", &name).await? else {
        let life = order.not_after.duration_since(order.not_before).unwrap_or_default().as_secs().max(LEAST);
        let object = json!({
            "metadata": {"name": name, "annotations": {"carrick.io/certificate-request": format!("{}/{}", meta.namespace, meta.name)}},
            "spec": {
                "request": request.spec.request, "signerName": spec.signer_name, "usages": order.profile.usages,
                "expirationSeconds": i32::try_from(life).unwrap_or(i32::MAX),
            },
        });
        place.objects.create_any(KIND, "", object).await?;
        return Ok(Outcome::later(waiting(&name)));
    };
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let refused = conditions.into_iter().find(|c| matches!(c["type"].as_str(), Some("Denied" | "Failed")));
    let outcome = match refused {
        Some(condition) => {
            let text = |field: &str| condition.get(field).and_then(Value::as_str).unwrap_or_default();
            Outcome::Never(format!("CertificateSigningRequest {name}: {}: {}", text("type"), text("message")))
        }
        None => match object.pointer("/status/certificate").and_then(Value::as_str).filter(|text| !text.is_empty()) {
            None => return Ok(Outcome::later(waiting(&name))),
            Some(text) => match signed(text) {
                Ok(signed) => Outcome::Signed(signed),
                Err(why) => Outcome::Never(format!("CertificateSigningRequest {name}: {why}")),
            },
        },
    };
    Ok(outcome)
}

/// Takes away the object of a request whose answer is written down.
pub(super) async fn forget(place: &Place<'_>, request: &CertificateRequest) -> Result<(), ObjectError> {
    place.objects.delete_any(KIND, "", &format!("carrick-{}", request.metadata.uid)).await
}

fn waiting(name: &str) -> String {
    format!("Waiting for CertificateSigningRequest {name} to be approved and signed")
}

/// What the cluster signed. Which root it leads to is not said.
fn signed(text: &str) -> Result<Signed, String> {
    let chain = secrets::decode(text).ok_or("status.certificate is not base64 of a PEM text")?;
    let certificates = pem::certificates(chain.as_bytes()).map_err(|e| e.to_string())?;
    let leaf = certificates.first().and_then(|leaf| CertificateInfo::read(leaf).ok());
    let serial = leaf.ok_or("status.certificate is no certificate")?.serial;
    Ok(Signed { chain: pem::encode_certificates(&certificates), ca: String::new(), serial })
}
