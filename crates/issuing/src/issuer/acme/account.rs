//! Accounts at ACME servers.
//!
//! Invariant: an account's key lies in the secret that the issuer names and nowhere else; without it an account is made, unless
//! that is forbidden. A server whose certificate cannot be verified is not talked to.

use std::pin::Pin;

use base64::Engine as _;
use bytes::Bytes;
use carrick_api::cert_manager::{AcmeIssuer, AcmeStatus, SecretKey};
use carrick_pki::{KeyAlgorithm, PrivateKey};
use http::Request;
use http_body_util::BodyExt as _;
use instant_acme::{
    Account, AccountBuilder, BodyWrapper, BytesResponse, Error, ExternalAccountKey, HttpClient, NewAccount,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;

use super::Trouble;
use crate::http::Http;
use crate::issuer::Place;
use crate::objects::Kind;
use crate::secrets;

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let answer = client.send(Request::from_parts(parts, body)).await.map_err(|why| Error::Other(why.into()))?;
            let (parts, body) = answer.into_parts();
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}

/// The client for an issuer's server.
fn builder(acme: &AcmeIssuer) -> Result<AccountBuilder, Trouble> {
    if acme.skip_tls_verify {
        let why = "spec.acme.skipTLSVerify is not supported: put the server's authority into caBundle";
        return Err(Trouble::Later(why.to_owned()));
    }
    let http = crate::issuer::client(&acme.ca_bundle).map_err(|why| Trouble::Later(format!("spec.acme.{why}")))?;
    Ok(Account::builder_with_http(Box::new(http)))
}

/// The account of an issuer that was found ready.
pub(super) async fn open(place: &Place<'_>, acme: &AcmeIssuer) -> Result<Account, Trouble> {
    let not_ready = || Trouble::Later("the issuer has no account at the ACME server yet".to_owned());
    let status = place.issuer.status.acme.as_ref().filter(|status| !status.uri.is_empty()).ok_or_else(not_ready)?;
    let key = key(place, &acme.private_key_secret_ref).await?.ok_or_else(not_ready)?;
    let mark = format!("{} {} {:?}", acme.server, status.uri, key.spki_sha256());
    if let Some(account) = place.signers.account(&mark) {
        return Ok(account);
    }
    let account = builder(acme)?.from_parts(status.uri.clone(), pkcs8(&key)?, acme.server.clone()).await?;
    place.signers.keep_account(mark, account.clone());
    Ok(account)
}

/// Makes sure of the account; what is to be noted of it in the status.
pub(in crate::issuer) async fn register(place: &Place<'_>, acme: &AcmeIssuer) -> Result<AcmeStatus, Trouble> {
    let mailto = if acme.email.is_empty() { String::new() } else { format!("mailto:{}", acme.email) };
    let contacts: Vec<&str> = Some(mailto.as_str()).filter(|contact| !contact.is_empty()).into_iter().collect();
    let reference = &acme.private_key_secret_ref;
    let before = place.issuer.status.acme.clone().unwrap_or_default();
    let account = match key(place, reference).await? {
        Some(key) => {
            let known = !before.uri.is_empty() && before.server == acme.server;
            if known && before.last_registered_email == acme.email {
                return Ok(before);
            }
            let parts = || -> Result<_, Trouble> {
                let read = instant_acme::Key::from_pkcs8_der(pkcs8(&key)?)?;
                Ok((read, PrivateKeyDer::Pkcs8(pkcs8(&key)?)))
            };
            let (account, _) = builder(acme)?.create_from_key(parts()?, acme.server.clone()).await?;
            account.update_contacts(&contacts).await?;
            account
        }
        None if acme.disable_account_key_generation => {
            let why = format!("the secret {}/{} has no account key", place.namespace, reference.name);
            return Err(Trouble::Later(why));
        }
        None => {
            let external = external(place, acme).await?;
            let new = NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
            let made = builder(acme)?.create(&new, acme.server.clone(), external.as_ref()).await?;
            let der = PrivateKeyDer::Pkcs8(made.1.private_key().clone_key());
            let key = PrivateKey::from_der(der).map_err(|e| Trouble::Later(e.to_string()))?;
            let text = key.to_traditional_pem().unwrap_or_else(|| key.to_pem());
            let field = field(reference);
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                "metadata": {"name": reference.name, "namespace": place.namespace},
                "data": {field: secrets::encode(&text)},
            });
            // One of the same name that came up meanwhile stays; the next look goes by its key.
            place.objects.create(Kind::Secret, place.namespace, secret).await?;
            made.0
        }
    };
    Ok(AcmeStatus {
        uri: account.id().to_owned(),
        last_registered_email: acme.email.clone(),
        server: acme.server.clone(),
    })
}

fn field(reference: &SecretKey) -> &str {
    if reference.key.is_empty() { secrets::KEY } else { &reference.key }
}

async fn key(place: &Place<'_>, reference: &SecretKey) -> Result<Option<PrivateKey>, Trouble> {
    let secret = place.objects.secret(place.namespace, &reference.name).await?;
    let Some(bytes) = secret.as_ref().and_then(|secret| secrets::value(secret, field(reference))) else {
        return Ok(None);
    };
    let key = PrivateKey::from_pem(bytes).ok().filter(|key| key.algorithm() == Some(KeyAlgorithm::EcdsaP256));
    let why = || format!("the account key in {}/{} is no ECDSA P-256 key", place.namespace, reference.name);
    key.map(Some).ok_or_else(|| Trouble::Later(why()))
}

fn pkcs8(key: &PrivateKey) -> Result<PrivatePkcs8KeyDer<'static>, Trouble> {
    let der = key.to_pkcs8_der().ok_or_else(|| Trouble::Later("the account key cannot be read".to_owned()))?;
    Ok(PrivatePkcs8KeyDer::from(der))
}

/// The key by which the server knows us already.
async fn external(place: &Place<'_>, acme: &AcmeIssuer) -> Result<Option<ExternalAccountKey>, Trouble> {
    let Some(binding) = &acme.external_account_binding else { return Ok(None) };
    let reference = &binding.key_secret_ref;
    let text = place.secret_text(reference, "secret").await?.map_err(Trouble::Later)?;
    // Base64 of URLs, with or without padding, as servers hand it out.
    let text = text.trim().trim_end_matches('=').replace('+', "-").replace('/', "_");
    let key = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text);
    let key =
        key.map_err(|_| Trouble::Later(format!("the secret {}/{}: no base64", place.namespace, reference.name)))?;
    Ok(Some(ExternalAccountKey::new(binding.key_id.clone(), &key)))
}
