//! An issuer whose key is in a PKCS#11 token.
//!
//! Invariant: the key stays in the token. Only libraries that the control plane was started with are loaded: loading one runs its
//! code here, and whoever writes an issuer must not choose what that is.

use std::path::PathBuf;

use carrick_api::cert_manager::Pkcs11Issuer;
use carrick_pki::ca::CaKey;
use carrick_pki::issue::Signer;
use carrick_pki::{CertificateInfo, pem};
use carrick_token::{Location, TokenKey};

use super::{Order, Outcome, Place, failed};
use crate::objects::ObjectError;

/// Everything that opens the key.
struct Opening {
    location: Location,
    pin: String,
    chain: String,
}

impl Opening {
    /// Blocks.
    fn open(&self) -> Result<Signer, String> {
        let chain = pem::certificates(self.chain.as_bytes()).map_err(|e| e.to_string())?;
        let first = chain.first().ok_or("there is no certificate")?;
        let public = CertificateInfo::public_key(first).ok_or("the certificate cannot be read")?;
        let key = TokenKey::open(self.location.clone(), &self.pin, &public).map_err(|e| e.to_string())?;
        Signer::with_key(self.chain.as_bytes(), CaKey::new(key)).map_err(|e| e.to_string())
    }
}

async fn opening(place: &Place<'_>, spec: &Pkcs11Issuer) -> Result<Result<Opening, String>, ObjectError> {
    let module = PathBuf::from(&spec.module);
    if !place.signers.token_modules.contains(&module) {
        let why = "is not among the libraries that the control plane may load: start it with --pkcs11-module";
        return Ok(Err(format!("spec.pkcs11.module: {:?} {why}", spec.module)));
    }
    let pin = place.secret_text(&spec.pin_secret_ref, "pin").await?;
    let chain = place.secret_text(&spec.certificate_secret_ref, crate::secrets::CERTIFICATE).await?;
    let location = Location { module, token: spec.token_label.clone(), key: spec.key_label.clone() };
    Ok(pin.and_then(|pin| Ok(Opening { location, pin: pin.trim().to_owned(), chain: chain? })))
}

/// Finds out whether the key is there and signs.
pub(super) async fn verify(place: &Place<'_>, spec: &Pkcs11Issuer) -> Result<Result<(), String>, ObjectError> {
    let opening = match opening(place, spec).await? {
        Ok(opening) => opening,
        Err(why) => return Ok(Err(why)),
    };
    let opened = tokio::task::spawn_blocking(move || opening.open().map(drop)).await;
    Ok(opened.unwrap_or_else(|error| Err(error.to_string())))
}

pub(super) async fn sign(place: &Place<'_>, spec: &Pkcs11Issuer, order: Order) -> Result<Outcome, ObjectError> {
    let opening = match opening(place, spec).await? {
        Ok(opening) => opening,
        Err(why) => return Ok(Outcome::later(why)),
    };
    let journal = place.objects.journal().cloned();
    let signed = tokio::task::spawn_blocking(move || {
        let signer = match opening.open() {
            Ok(signer) => signer.recorded(journal),
            Err(why) => return Outcome::later(why),
        };
        let signed = signer.sign(&order.csr, &order.profile, order.not_before, order.not_after);
        signed.map_or_else(|error| failed(&error), Outcome::Signed)
    });
    Ok(signed.await.unwrap_or_else(|error| Outcome::later(error.to_string())))
}
