//! Issuers: whether they can sign, and signing.
//!
//! Invariant: [`sign`] is the one place where anything is signed. An issuer that cannot be used says why in its status; a
//! request to it waits, since issuers are mended. Only what no issuer could ever sign is refused for good.

mod acme;
mod ca;
mod kubernetes;
mod mesh;
mod pkcs11;
mod self_signed;
mod vault;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use carrick_api::cert_manager::{CertificateRequest, Condition, Issuer, IssuerStatus, SecretKey};
use carrick_api::timestamp::Timestamp;
use carrick_pki::Authority;
use carrick_pki::ca::CaError;
use carrick_pki::issue::{self, Profile, Signed};

use instant_acme::Account;

use crate::challenges::Challenges;
use crate::events::Type;
use crate::http::Http;
use crate::objects::{Kind, ObjectError, Objects};
use crate::queue::Key;
use crate::secrets;

/// The life of a certificate whose request names none: 90 days.
const LIFE: Duration = Duration::from_secs(2160 * 60 * 60);
/// How long until an issuer that is not ready is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// What issuers sign with beyond what the objects say.
#[derive(Default)]
pub(crate) struct Signers {
    /// The mesh's own authority.
    mesh: Option<Arc<Authority>>,
    /// What is answered to ACME servers.
    challenges: Challenges,
    /// Whether http-01 and tls-alpn-01 are answered here.
    answers: [bool; 2],
    /// Where pods reach the listener for http-01.
    reached_at: Option<SocketAddr>,
    /// Libraries of tokens that may be loaded.
    token_modules: Vec<PathBuf>,
    /// Accounts that are in use, by server, URL and key.
    accounts: Mutex<HashMap<String, Account>>,
}

impl std::fmt::Debug for Signers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signers").field("mesh", &self.mesh).finish_non_exhaustive()
    }
}

impl Signers {
    pub(crate) fn new(
        mesh: Option<Arc<Authority>>,
        challenges: Challenges,
        answers: [bool; 2],
        reached_at: Option<SocketAddr>,
        token_modules: Vec<PathBuf>,
    ) -> Self {
        Self { mesh, challenges, answers, reached_at, token_modules, ..Self::default() }
    }

    fn account(&self, mark: &str) -> Option<Account> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).get(mark).cloned()
    }

    fn keep_account(&self, mark: String, account: Account) {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).insert(mark, account);
    }
}

/// An issuer, where its secrets are, and what it may use.
struct Place<'a> {
    objects: &'a Objects,
    signers: &'a Signers,
    issuer: &'a Issuer,
    namespace: &'a str,
}

impl Place<'_> {
    /// A text in a secret of the issuer's; else why there is none.
    async fn secret_text(
        &self,
        reference: &SecretKey,
        default_key: &str,
    ) -> Result<Result<String, String>, ObjectError> {
        let field = if reference.key.is_empty() { default_key } else { &reference.key };
        let secret = self.objects.secret(self.namespace, &reference.name).await?;
        let text = secret.as_ref().and_then(|secret| secrets::value(secret, field));
        let text = text.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok()).filter(|text| !text.is_empty());
        Ok(text.ok_or_else(|| format!("the secret {}/{} has no {field}", self.namespace, reference.name)))
    }
}

/// A client for a server that is verified by a bundle (PEM in base64), or by the machine's roots when it is empty.
fn client(bundle: &str) -> Result<Http, String> {
    if bundle.is_empty() {
        return Http::new(None);
    }
    let text = secrets::decode(bundle).ok_or("caBundle: is not base64 of a PEM text")?;
    Http::new(Some(text.as_bytes()))
}

/// What is said of an issuer that says nothing.
const NO_KIND: &str = "spec names nobody who signs";
/// How long until an issuer that cannot sign is looked at again.
const REPAIRED: Duration = Duration::from_secs(10);

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
    } else if let Some(pkcs11) = &spec.pkcs11 {
        let place = Place { objects, signers, issuer: &issuer, namespace: &secrets_namespace };
        pkcs11::sign(&place, pkcs11, order).await
    } else {
        let place = Place { objects, signers, issuer: &issuer, namespace: &secrets_namespace };
        let outcome = if let Some(acme) = &spec.acme {
            acme::sign(&place, acme, request, &order, now).await?
        } else if let Some(vault) = &spec.vault {
            vault::sign(&place, vault, &order).await?
        } else if let Some(kubernetes) = &spec.kubernetes {
            kubernetes::sign(&place, kubernetes, request, &order).await?
        } else {
            Outcome::later(NO_KIND)
        };
        Ok(from_outside(objects, &order, outcome))
    }
}

/// What is to be done once the answer to a request is written down.
pub(crate) async fn answered(
    objects: &Objects,
    signers: &Signers,
    request: &CertificateRequest,
) -> Result<(), ObjectError> {
    let found = objects.issuer_of(&request.spec.issuer_ref, &request.metadata.namespace).await?;
    match found {
        Some((issuer, namespace)) if issuer.spec.kubernetes.is_some() => {
            kubernetes::forget(&Place { objects, signers, issuer: &issuer, namespace: &namespace }, request).await
        }
        _ => Ok(()),
    }
}

/// Writes down what somebody else has signed for us, before it is handed on.
fn from_outside(objects: &Objects, order: &Order, outcome: Outcome) -> Outcome {
    let (Outcome::Signed(signed), Some(journal)) = (&outcome, objects.journal()) else { return outcome };
    match issue::received(journal, &order.profile, &signed.chain) {
        Ok(()) => outcome,
        Err(error) => failed(&error),
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
    let mut status = issuer.status.clone();
    let namespace = objects.secrets_of(kind, key);
    let place = Place { objects, signers, issuer: &issuer, namespace: &namespace };
    let readiness = readiness(&place, &mut status).await?;
    let (ready, (reason, message)) = match readiness {
        Ok(said) => (true, said),
        Err(said) => (false, said),
    };
    let again = if ready { None } else { now.checked_add(REPAIRED) };
    let now = Timestamp::from_system(now);
    let condition = Condition::new("Ready", ready, reason, &message, now).at(issuer.metadata.generation);
    condition.set_in(&mut status.conditions);
    if status != issuer.status {
        let value = serde_json::to_value(&status).map_err(|e| ObjectError::Read(e.to_string()))?;
        if objects.set_status(kind, key, &issuer.metadata.resource_version, &value).await? && !message.is_empty() {
            let type_ = if ready { Type::Normal } else { Type::Warning };
            objects.tell(kind, &issuer.metadata, type_, reason, &message, now).await;
        }
    }
    Ok(again)
}

async fn readiness(place: &Place<'_>, status: &mut IssuerStatus) -> Result<Readiness, ObjectError> {
    let Place { objects, signers, issuer, namespace } = *place;
    let spec = &issuer.spec;
    if spec.self_signed.is_some() {
        return Ok(Ok(("IsReady", String::new())));
    }
    if let Some(acme) = &spec.acme {
        return Ok(match acme::account::register(place, acme).await {
            Ok(account) => {
                status.acme = Some(account);
                Ok(("ACMEAccountRegistered", "The ACME account was registered with the ACME server".to_owned()))
            }
            Err(trouble) => Err(("ErrRegisterACMEAccount", format!("Failed to register ACME account: {trouble}"))),
        });
    }
    if let Some(vault) = &spec.vault {
        return match vault::verify(place, vault).await {
            Ok(()) => Ok(Ok(("VaultVerified", "Vault verified".to_owned()))),
            Err(vault::Trouble::Object(error)) => Err(error),
            Err(trouble) => Ok(Err(("VaultError", format!("Failed to initialize Vault client: {trouble}")))),
        };
    }
    if let Some(kubernetes) = &spec.kubernetes {
        let message = format!("Requests are made to the signer {:?}", kubernetes.signer_name);
        return Ok(Ok(("IsReady", message)));
    }
    if let Some(pkcs11) = &spec.pkcs11 {
        let verified = pkcs11::verify(place, pkcs11).await?;
        let verified = verified.map(|()| ("KeyPairVerified", "The token's key signs".to_owned()));
        return Ok(verified.map_err(|why| ("ErrGetKeyPair", why)));
    }
    let Some(ca) = &spec.ca else { return Ok(Err(("NotSupported", NO_KIND.to_owned()))) };
    if signers.mesh.is_some() && mesh::is_meant(ca, namespace, objects.root_namespace()) {
        return Ok(Ok(("KeyPairVerified", "The mesh's authority signs".to_owned())));
    }
    let verified = ca::signer(objects, ca, namespace).await?;
    Ok(verified.map(|_| ("KeyPairVerified", "Signing CA verified".to_owned())).map_err(|why| ("ErrGetKeyPair", why)))
}
