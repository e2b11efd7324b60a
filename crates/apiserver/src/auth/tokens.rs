//! Service-account tokens: signed by us, bound to a service account and perhaps a pod, for an audience, for a time.
//!
//! Invariant: a token is good only while its signature, time, audience and issuer hold *and* the service account (and
//! pod) it is bound to are still there with the same uid.
//! What it leaves to others: who may ask for one (`authorize`), the objects of the request (`rest::reviews`).

use super::certs::{self, CertError};
use crate::authorize::User;
use crate::store::Store;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;
use time::OffsetDateTime;

/// Issuer, and the audience of tokens for this API.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// Longest token we look at, bytes.
const TOKEN_LIMIT: usize = 16 << 10;

/// Signs and verifies.
pub struct Tokens {
    signing: EncodingKey,
    verifying: DecodingKey,
    key_id: String,
    /// Affine coordinates of the public key, for the key set.
    point: (String, String),
    store: Store,
}

/// A token that was found good.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Who it is.
    pub user: User,
    /// Which of the wanted audiences the token is for.
    pub audiences: Vec<String>,
}

/// What a token is to say.
#[derive(Debug, Clone)]
pub struct TokenSpec {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// For whom; empty = this API.
    pub audiences: Vec<String>,
    /// Lifetime in seconds.
    pub seconds: i64,
    /// Pod it is bound to: name, uid.
    pub pod: Option<(String, String)>,
}

/// Why a token is refused.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Signature, time, issuer, audience or form.
    #[error("invalid token: {0}")]
    Invalid(String),
    /// What it is bound to is gone.
    #[error("{0}")]
    Unbound(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Bound {
    name: String,
    uid: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Binding {
    namespace: String,
    serviceaccount: Bound,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Bound>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    nbf: i64,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    binding: Binding,
}

impl Tokens {
    /// Reads `service-account-key.pem` in `folder`, or makes it.
    ///
    /// # Errors
    /// `CertError` when the key cannot be read, made or used.
    pub fn load_or_create(folder: &Path, store: Store) -> Result<Self, CertError> {
        let key = certs::load_or_create_key(&folder.join(certs::TOKEN_KEY))?;
        let content = |e: jsonwebtoken::errors::Error| CertError::Content(format!("service-account key: {e}"));
        let signing = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).map_err(content)?;
        let raw = key.public_key_raw();
        let half = |from: usize, to: usize| raw.get(from..to).map(|b| URL_SAFE_NO_PAD.encode(b));
        let (Some(x), Some(y), 65) = (half(1, 33), half(33, 65), raw.len()) else {
            return Err(CertError::Content("the service-account key is not an ECDSA P-256 key".into()));
        };
        let verifying = DecodingKey::from_ec_components(&x, &y).map_err(content)?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(raw));
        Ok(Self { signing, verifying, key_id, point: (x, y), store })
    }

    /// Makes a token; also returns when it expires.
    ///
    /// # Errors
    /// `Invalid` when signing fails.
    pub fn issue(&self, spec: &TokenSpec) -> Result<(String, OffsetDateTime), TokenError> {
        let now = self.store.now();
        let expires = now.checked_add(time::Duration::seconds(spec.seconds)).unwrap_or(now);
        let claims = Claims {
            iss: ISSUER.into(),
            sub: format!("system:serviceaccount:{}:{}", spec.namespace, spec.name),
            aud: if spec.audiences.is_empty() { vec![ISSUER.into()] } else { spec.audiences.clone() },
            exp: expires.unix_timestamp(),
            iat: now.unix_timestamp(),
            nbf: now.unix_timestamp(),
            jti: uuid::Uuid::new_v4().to_string(),
            binding: Binding {
                namespace: spec.namespace.clone(),
                serviceaccount: Bound { name: spec.name.clone(), uid: spec.uid.clone() },
                pod: spec.pod.clone().map(|(name, uid)| Bound { name, uid }),
            },
        };
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        let token =
            jsonwebtoken::encode(&header, &claims, &self.signing).map_err(|e| TokenError::Invalid(e.to_string()))?;
        Ok((token, expires))
    }

    /// Checks a token for one of `audiences` (empty: for this API).
    ///
    /// # Errors
    /// `TokenError`.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Result<Verified, TokenError> {
        if token.len() > TOKEN_LIMIT {
            return Err(TokenError::Invalid("too long".into()));
        }
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_issuer(&[ISSUER]);
        // Times are compared below with our own clock.
        rules.validate_exp = false;
        rules.validate_aud = false;
        rules.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.verifying, &rules);
        let claims = decoded.map_err(|e| TokenError::Invalid(e.to_string()))?.claims;
        let now = self.store.now().unix_timestamp();
        if claims.exp <= now {
            return Err(TokenError::Invalid("expired".into()));
        }
        // A minute for clocks that were set back.
        if claims.nbf > now.saturating_add(60) {
            return Err(TokenError::Invalid("not valid yet".into()));
        }
        let own = [ISSUER.to_owned()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let matched: Vec<String> = wanted.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if matched.is_empty() {
            return Err(TokenError::Invalid("for another audience".into()));
        }
        self.check_binding(&claims)?;
        Ok(Verified { user: user(&claims), audiences: matched })
    }

    fn check_binding(&self, claims: &Claims) -> Result<(), TokenError> {
        let binding = &claims.binding;
        let check = |resource: &str, bound: &Bound| {
            let object = self.store.get(resource, &binding.namespace, &bound.name);
            let uid = object.as_ref().and_then(|o| o.pointer("/metadata/uid")).and_then(Value::as_str);
            if uid == Some(bound.uid.as_str()) {
                Ok(())
            } else {
                Err(TokenError::Unbound(format!("{resource} {}/{} is gone", binding.namespace, bound.name)))
            }
        };
        let account = &binding.serviceaccount;
        if claims.sub != format!("system:serviceaccount:{}:{}", binding.namespace, account.name) {
            return Err(TokenError::Invalid("subject and binding differ".into()));
        }
        check("serviceaccounts", account)?;
        binding.pod.as_ref().map_or(Ok(()), |pod| check("pods", pod))
    }

    /// `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        let (x, y) = &self.point;
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.key_id, "alg": "ES256", "crv": "P-256", "x": x, "y": y}]})
    }

    /// `/.well-known/openid-configuration`.
    pub fn discovery() -> Value {
        json!({
            "issuer": ISSUER,
            "jwks_uri": format!("{ISSUER}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

fn user(claims: &Claims) -> User {
    let binding = &claims.binding;
    let mut extra = BTreeMap::new();
    extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={}", claims.jti)]);
    if let Some(pod) = &binding.pod {
        extra.insert("authentication.kubernetes.io/pod-name".to_owned(), vec![pod.name.clone()]);
        extra.insert("authentication.kubernetes.io/pod-uid".to_owned(), vec![pod.uid.clone()]);
    }
    User {
        name: claims.sub.clone(),
        uid: binding.serviceaccount.uid.clone(),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{}", binding.namespace),
            super::AUTHENTICATED.into(),
        ],
        extra,
    }
}
