//! An issuer that has each certificate sign itself: for roots.
//!
//! Invariant: the key is the request's own, from the secret that the request names; a key that does not fit is no key.

use carrick_api::cert_manager::CertificateRequest;
use carrick_pki::issue;

use super::{Order, Outcome, failed};
use crate::certificates::KEY_SECRET;
use crate::objects::{ObjectError, Objects};
use crate::secrets;

pub(super) async fn sign(
    objects: &Objects,
    request: &CertificateRequest,
    order: Order,
) -> Result<Outcome, ObjectError> {
    let meta = &request.metadata;
    let Some(name) = meta.annotations.get(KEY_SECRET) else {
        return Ok(Outcome::Never(format!("a request to a self-signed issuer needs the annotation {KEY_SECRET}")));
    };
    let secret = objects.secret(&meta.namespace, name).await?;
    let Some(key) = secret.as_ref().and_then(secrets::key) else {
        return Ok(Outcome::later(format!("Referenced secret {}/{name} has no key", meta.namespace)));
    };
    let asked = issue::asked(&order.csr).map(|(_, digest)| digest);
    if asked.ok() != key.spki_sha256() {
        return Ok(Outcome::Never("CSR not signed by referenced private key".to_owned()));
    }
    let signed = issue::self_signed(&key, &order.profile, order.not_before, order.not_after, objects.journal());
    Ok(signed.map_or_else(|error| failed(&error), Outcome::Signed))
}
