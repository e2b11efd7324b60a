//! An issuer behind Vault's PKI API: `PATH/sign/ROLE`, with a token, an AppRole or a service account.
//!
//! Invariant: each signature shows who we are anew, with what the issuer's secrets hold at that moment; no token is kept. Vault
//! gets the request and the names in it, never a key.

use bytes::Bytes;
use carrick_api::cert_manager::{Condition, SecretKey, VaultAuth, VaultIssuer};
use carrick_pki::issue::Signed;
use carrick_pki::{CertificateInfo, pem};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use super::{Order, Outcome, Place, client};
use crate::http::Http;
use crate::objects::ObjectError;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("{0}")]
    Later(String),
    #[error("{0}")]
    Never(String),
}

/// Vault, as somebody who may sign.
struct Vault<'a> {
    spec: &'a VaultIssuer,
    http: Http,
    token: String,
}

/// Finds out whether Vault is there, unsealed, and takes us for who we say we are.
pub(super) async fn verify(place: &Place<'_>, spec: &VaultIssuer) -> Result<(), Trouble> {
    let vault = Vault { spec, http: http(place, spec).await?, token: String::new() };
    // Standby servers and those in recovery sign, or lead to who does.
    let health = vault.call(Method::GET, "/v1/sys/health?standbyok=true&perfstandbyok=true", None).await?;
    let is = |field: &str| health.get(field).and_then(Value::as_bool);
    if is("initialized") == Some(false) || is("sealed") == Some(true) {
        return Err(Trouble::Later("Vault is not initialized, or sealed".to_owned()));
    }
    // Each login leaves a token at Vault for a while: one that worked is not tried again with every look.
    let meta = &place.issuer.metadata;
    let worked =
        |c: &Condition| c.type_ == "Ready" && c.status == "True" && c.observed_generation == Some(meta.generation);
    if place.issuer.status.conditions.iter().any(worked) {
        return Ok(());
    }
    log_in(place, spec).await.map(drop)
}

pub(super) async fn sign(place: &Place<'_>, spec: &VaultIssuer, order: &Order) -> Result<Outcome, ObjectError> {
    match ask(place, spec, order).await {
        Ok(signed) => Ok(Outcome::Signed(signed)),
        Err(Trouble::Object(error)) => Err(error),
        Err(Trouble::Never(why)) => Ok(Outcome::Never(why)),
        Err(Trouble::Later(why)) => Ok(Outcome::later(why)),
    }
}

async fn ask(place: &Place<'_>, spec: &VaultIssuer, order: &Order) -> Result<Signed, Trouble> {
    let profile = &order.profile;
    if profile.is_ca {
        return Err(Trouble::Never("spec.isCA: a role of Vault signs no authorities".to_owned()));
    }
    let vault = log_in(place, spec).await?;
    let life = order.not_after.duration_since(order.not_before).unwrap_or_default();
    let names: Vec<&String> = profile.dns.iter().chain(&profile.emails).collect();
    let list = |items: Vec<String>| items.join(",");
    let body = json!({
        "csr": order.csr, "common_name": profile.common_name, "exclude_cn_from_sans": "true",
        "alt_names": list(names.into_iter().cloned().collect()),
        "ip_sans": list(profile.ips.iter().map(ToString::to_string).collect()),
        "uri_sans": list(profile.uris.clone()), "ttl": format!("{}s", life.as_secs()),
    });
    let path = format!("/v1/{}", spec.path.trim_matches('/'));
    let answer = vault.call(Method::POST, &path, Some(body)).await?;
    signed(answer.get("data").unwrap_or(&Value::Null)).map_err(Trouble::Later)
}

/// Leaf and intermediates, and the highest certificate there is.
fn signed(data: &Value) -> Result<Signed, String> {
    let text = |value: &Value| value.as_str().map(|text| format!("{}\n", text.trim()));
    let leaf = data.get("certificate").and_then(text).ok_or("Vault's answer has no certificate")?;
    let above: Vec<String> = match data.get("ca_chain").and_then(Value::as_array) {
        Some(chain) if !chain.is_empty() => chain.iter().filter_map(text).collect(),
        _ => data.get("issuing_ca").and_then(text).into_iter().collect(),
    };
    let all = [leaf].into_iter().chain(above).collect::<String>();
    let mut chain = pem::certificates(all.as_bytes()).map_err(|e| format!("Vault's answer: {e}"))?;
    let info = |der: &_| CertificateInfo::read(der).map_err(|e| format!("Vault's answer: {e}"));
    let serial = info(chain.first().ok_or("Vault's answer is empty")?)?.serial;
    let top = chain.last().filter(|_| chain.len() > 1).cloned();
    let ca = top.as_ref().map(|der| pem::encode_certificate(der)).unwrap_or_default();
    // A root is what peers have already.
    if let Some(top) = &top {
        let top = info(top)?;
        if top.subject == top.issuer {
            chain.pop();
        }
    }
    Ok(Signed { chain: pem::encode_certificates(&chain), ca, serial })
}

async fn http(place: &Place<'_>, spec: &VaultIssuer) -> Result<Http, Trouble> {
    let bundle = match &spec.ca_bundle_secret_ref {
        Some(reference) => {
            let text = place.secret_text(reference, "ca.crt").await?.map_err(Trouble::Later)?;
            return Http::new(Some(text.as_bytes())).map_err(|why| Trouble::Later(format!("spec.vault.{why}")));
        }
        None => &spec.ca_bundle,
    };
    client(bundle).map_err(|why| Trouble::Later(format!("spec.vault.{why}")))
}

async fn log_in<'a>(place: &Place<'_>, spec: &'a VaultIssuer) -> Result<Vault<'a>, Trouble> {
    let mut vault = Vault { spec, http: http(place, spec).await?, token: String::new() };
    let VaultAuth { token_secret_ref, app_role, kubernetes } = &spec.auth;
    let secret = async |reference: &SecretKey| -> Result<String, Trouble> {
        let text = place.secret_text(reference, "token").await?.map_err(Trouble::Later)?;
        Ok(text.trim().to_owned())
    };
    let (path, body) = if let Some(reference) = token_secret_ref {
        vault.token = secret(reference).await?;
        return Ok(vault);
    } else if let Some(role) = app_role {
        let mount = if role.path.is_empty() { "approle" } else { role.path.trim_matches('/') };
        let own = secret(&role.secret_ref).await?;
        (format!("/v1/auth/{mount}/login"), json!({"role_id": role.role_id, "secret_id": own}))
    } else if let Some(account) = kubernetes {
        let mount = if account.mount_path.is_empty() {
            "/v1/auth/kubernetes"
        } else {
            account.mount_path.trim_end_matches('/')
        };
        let token = match (&account.secret_ref, &account.service_account_ref) {
            (Some(reference), _) => secret(reference).await?,
            (None, Some(own)) => {
                let meta = &place.issuer.metadata;
                // The audience that cert-manager asks for, so that a role made for it fits.
                let whom = match meta.namespace.as_str() {
                    "" => format!("vault://{}", meta.name),
                    namespace => format!("vault://{namespace}/{}", meta.name),
                };
                let audiences: Vec<String> = own.audiences.iter().cloned().chain([whom]).collect();
                place.objects.service_account_token(place.namespace, &own.name, &audiences).await?
            }
            (None, None) => {
                return Err(Trouble::Later("spec.vault.auth.kubernetes: names no service account".to_owned()));
            }
        };
        (format!("{mount}/login"), json!({"role": account.role, "jwt": token}))
    } else {
        return Err(Trouble::Later(
            "spec.vault.auth: one of tokenSecretRef, appRole, kubernetes is needed here".to_owned(),
        ));
    };
    let answer = vault.call(Method::POST, &path, Some(body)).await.map_err(|trouble| match trouble {
        // That we are not let in is mended by whoever set it up, not by another request.
        Trouble::Never(why) => Trouble::Later(why),
        other => other,
    })?;
    let token = answer.pointer("/auth/client_token").and_then(Value::as_str);
    vault.token = token.ok_or_else(|| Trouble::Later("Vault let us in without a token".to_owned()))?.to_owned();
    Ok(vault)
}

impl Vault<'_> {
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Trouble> {
        let url = format!("{}{path}", self.spec.server.trim_end_matches('/'));
        let mut request = Request::builder().method(method).uri(url).header("x-vault-request", "true");
        if !self.token.is_empty() {
            request = request.header("x-vault-token", &self.token);
        }
        if !self.spec.namespace.is_empty() {
            request = request.header("x-vault-namespace", &self.spec.namespace);
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        // What is wrong with it may be the token, which is shown to nobody.
        let request = request.body(body).map_err(|_| Trouble::Later("Vault's URL or token is none".to_owned()))?;
        let answer = self.http.send(request).await.map_err(|why| Trouble::Later(format!("Vault: {why}")))?;
        let value: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        let errors = || {
            let list = value.get("errors").and_then(Value::as_array).into_iter().flatten();
            let words: Vec<&str> = list.filter_map(Value::as_str).collect();
            format!("Vault: status {}: {}", answer.status().as_u16(), words.join("; "))
        };
        match answer.status() {
            status if status.is_success() => Ok(value),
            // A role that does not allow what is asked for says so with this.
            StatusCode::BAD_REQUEST => Err(Trouble::Never(errors())),
            _ => Err(Trouble::Later(errors())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carrick_pki::issue::{self, Profile, Signer};
    use carrick_pki::{KeyAlgorithm, PrivateKey};
    use std::time::{Duration, SystemTime};

    #[test]
    fn the_root_is_told_apart_from_what_is_sent() {
        let now = SystemTime::now();
        let end = now + Duration::from_secs(60);
        let keys = [(); 3].map(|()| PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap());
        let named = |name: &str| Profile { common_name: name.into(), is_ca: name != "leaf", ..Profile::default() };
        let root = issue::self_signed(&keys[0], &named("root"), now, end, None).unwrap();
        let by_root = Signer::read(root.chain.as_bytes(), keys[0].to_pem().as_bytes()).unwrap();
        let middle = by_root.sign(&issue::request(&keys[1], &named("m")).unwrap(), &named("m"), now, end).unwrap();
        let by_middle = Signer::read(middle.chain.as_bytes(), keys[1].to_pem().as_bytes()).unwrap();
        let leaf =
            by_middle.sign(&issue::request(&keys[2], &named("leaf")).unwrap(), &named("leaf"), now, end).unwrap();
        let only = &leaf.chain[..leaf.chain[1..].find("-----BEGIN").unwrap() + 1];
        let both = signed(&json!({"certificate": only, "ca_chain": [middle.chain, root.chain]})).unwrap();
        assert_eq!((both.chain, both.ca), (format!("{only}{}", middle.chain), root.chain.clone()));
        // Vault tells of the signer only.
        let one = signed(&json!({"certificate": only.trim(), "issuing_ca": middle.chain})).unwrap();
        assert_eq!((one.chain, one.ca), (format!("{only}{}", middle.chain), middle.chain.clone()));
        assert!(signed(&json!({"certificate": "junk"})).is_err());
    }
}
