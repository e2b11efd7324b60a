//! An issuer with a signing certificate in a secret: `kubernetes.io/tls`, or the names that a mesh's authority is plugged in with.
//!
//! Invariant: key and certificate are read for each signature, so that a changed secret counts at once.

use carrick_api::cert_manager::CaIssuer;
use carrick_pki::issue::Signer;

use super::{Order, Outcome, failed};
use crate::objects::{ObjectError, Objects};
use crate::secrets;

/// Names of the certificate, what leads from it to its root, and the key.
const FORMS: [[&str; 3]; 2] =
    [[secrets::CERTIFICATE, secrets::CA, secrets::KEY], ["ca-cert.pem", "root-cert.pem", "ca-key.pem"]];

/// The signer in an issuer's secret; else why there is none.
pub(super) async fn signer(
    objects: &Objects,
    issuer: &CaIssuer,
    namespace: &str,
) -> Result<Result<Signer, String>, ObjectError> {
    let name = &issuer.secret_name;
    let Some(secret) = objects.secret(namespace, name).await? else {
        return Ok(Err(format!("Error getting keypair for CA issuer: secret \"{namespace}/{name}\" not found")));
    };
    for [certificate, root, key] in FORMS {
        let (Some(certificate), Some(key)) = (secrets::value(&secret, certificate), secrets::value(&secret, key))
        else {
            continue;
        };
        let mut chain = certificate.to_vec();
        if let Some(root) = secrets::value(&secret, root).filter(|root| !contains(certificate, root)) {
            chain.extend_from_slice(b"\n");
            chain.extend_from_slice(root);
        }
        return Ok(Signer::read(&chain, key).map_err(|e| format!("Error getting keypair for CA issuer: {e}")));
    }
    Ok(Err(format!("Error getting keypair for CA issuer: secret \"{namespace}/{name}\" has no tls.crt and tls.key")))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    let (text, part) = (text.trim_ascii(), part.trim_ascii());
    !part.is_empty() && text.windows(part.len()).any(|window| window == part)
}

pub(super) async fn sign(
    objects: &Objects,
    issuer: &CaIssuer,
    namespace: &str,
    order: Order,
) -> Result<Outcome, ObjectError> {
    let signer = match signer(objects, issuer, namespace).await? {
        Ok(signer) => signer,
        Err(why) => return Ok(Outcome::later(why)),
    };
    let signer = signer.recorded(objects.journal().cloned());
    let signed = signer.sign(&order.csr, &order.profile, order.not_before, order.not_after);
    Ok(signed.map_or_else(|error| failed(&error), Outcome::Signed))
}
