//! Keys and certificates of a run: the mesh's authority, identities of callers, a stranger's, and an issuer of tokens.
//!
//! Invariant: made once for a run. That they differ from run to run decides nothing, since objects name them by what they mean.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as B64};
use carrick_base::{SpiffeId, TrustDomain};
use carrick_pki::{Authority, CaOptions, CertificateInfo, Identity, Subject, TrustBundle};
use serde_json::{Value, json};

use super::case::Token;

/// Keys of a run.
pub struct Keys {
    pub roots: TrustBundle,
    /// Those of certificates with DNS names, outside of the mesh.
    pub shop: TrustBundle,
    identities: BTreeMap<&'static str, Arc<Identity>>,
    issuer: EcdsaKeyPair,
    /// Two keys under two issuers' names; the second signs what the first did not.
    other: EcdsaKeyPair,
    _dir: tempfile::TempDir,
}

/// Names of identities: `NAMESPACE/ACCOUNT` of the mesh, and others that say what they are.
pub const IDENTITIES: [&str; 7] =
    ["web/client", "web/other", "app/server", "istio-system/gateway", "foreign", "stranger", "dns"];

/// URI names in an identity's leaf.
pub fn uris(identity: &Identity) -> Vec<String> {
    let leaf = identity.chain.first().and_then(|c| CertificateInfo::read(c).ok());
    leaf.map(|i| i.uris).unwrap_or_default()
}

impl Keys {
    /// Makes all of them.
    ///
    /// # Errors
    /// When an authority cannot be made.
    pub fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let now = SystemTime::now();
        let authority = |name: &str| Authority::load_or_create(&dir.path().join(name), CaOptions::default(), now);
        let (mesh, strange, shop) = (authority("mesh")?, authority("strange")?, authority("shop")?);
        let ttl = Some(Duration::from_secs(12 * 3600));
        let mut identities = BTreeMap::new();
        for name in IDENTITIES {
            let id = |domain: &str, namespace: &str, account: &str| -> Result<Subject> {
                let domain = TrustDomain::new(domain).ok().context("a trust domain")?;
                Ok(Subject::Workload(SpiffeId::istio(&domain, namespace, account)))
            };
            let issued = match (name, name.split_once('/')) {
                (_, Some((namespace, account))) => mesh.issue(&id("cluster.local", namespace, account)?, ttl, now)?,
                ("foreign", _) => mesh.issue(&id("partner.example", "web", "client")?, ttl, now)?,
                ("stranger", _) => strange.issue(&id("cluster.local", "web", "client")?, ttl, now)?,
                _ => {
                    let dns = ["plain.app.svc.cluster.local", "api.example.com", "shop.example.com"];
                    shop.issue(&Subject::Server { dns: dns.map(Into::into).into(), ips: Vec::new() }, ttl, now)?
                }
            };
            identities.insert(name, Arc::new(issued));
        }
        let key = || EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).ok().context("a key");
        Ok(Self {
            roots: mesh.roots().clone(),
            shop: shop.roots().clone(),
            identities,
            issuer: key()?,
            other: key()?,
            _dir: dir,
        })
    }

    /// An identity by its name.
    pub fn identity(&self, name: &str) -> Option<&Arc<Identity>> {
        self.identities.get(name)
    }

    /// All of them.
    pub fn identities(&self) -> impl Iterator<Item = (&'static str, &Arc<Identity>)> {
        self.identities.iter().map(|(name, identity)| (*name, identity))
    }

    /// The key set that objects name as `$JWKS`, and that of the other issuer, `$OTHER`.
    pub fn fill(&self, text: &str) -> String {
        let set = |kid: &str, key: &EcdsaKeyPair| {
            let point = key.public_key().as_ref();
            let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len() / 2);
            json!({"keys": [{"kty": "EC", "kid": kid, "crv": "P-256", "x": B64.encode(x), "y": B64.encode(y)}]})
                .to_string()
                .replace('"', "\\\"")
        };
        if !text.contains('$') {
            return text.to_owned();
        }
        let pem = |text: &str| STANDARD.encode(text);
        let dns = self.identities.get("dns");
        text.replace("$JWKS", &set("one", &self.issuer))
            .replace("$OTHER", &set("two", &self.other))
            .replace("$CHAIN", &pem(&dns.map(|d| d.chain_pem()).unwrap_or_default()))
            .replace("$KEY", &pem(&dns.map(|d| d.key.to_pem()).unwrap_or_default()))
            .replace("$ROOTS", &pem(&self.shop.to_pem()))
    }

    /// Signs.
    pub fn sign(&self, token: &Token) -> String {
        let spoiled = token.alg.ends_with('!');
        let alg = token.alg.trim_end_matches('!');
        let mut header = json!({"alg": alg, "typ": "JWT"});
        if let Some(kid) = &token.kid {
            header["kid"] = json!(kid);
        }
        let mut claims = token.claims.clone();
        let now =
            i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(0);
        for name in ["exp", "nbf", "iat"] {
            if let Some(seconds) = claims.get(name).and_then(Value::as_i64) {
                claims[name] = json!(now + seconds);
            }
        }
        let signed = format!("{}.{}", B64.encode(header.to_string()), B64.encode(claims.to_string()));
        let key = if token.kid.as_deref() == Some("two") { &self.other } else { &self.issuer };
        let signature = match alg {
            "none" => Vec::new(),
            _ => key.sign(&SystemRandom::new(), signed.as_bytes()).map(|s| s.as_ref().to_vec()).unwrap_or_default(),
        };
        let mut signature = B64.encode(signature);
        if spoiled {
            signature = signature.chars().rev().collect();
        }
        format!("{signed}.{signature}")
    }
}
