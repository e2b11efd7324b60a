//! The authority's key, kept in a Secret of the control plane's namespace (spec §19.5, §19.6): plugged in as `cacerts`, or made by the
//! first replica and kept as `istio-ca-secret`.
//!
//! Invariant: all replicas sign with the same key: whoever comes second to write takes what is there.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use carrick_pki::ca::CaError;
use carrick_pki::{Authority, CaOptions, CaSet, SetTexts};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, PostParams};
use tracing::info;

pub(super) const PLUGGED: &str = "cacerts";
pub(super) const OWN: &str = "istio-ca-secret";
const OWN_TYPE: &str = "istio.io/ca-root";
const CERT: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const ROOT: &str = "root-cert.pem";

/// How often, and after which pauses, another replica's Secret is looked for.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The Secret cannot be read or written.
    #[error("Secret {namespace}/{name}: {source}")]
    Api {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: &'static str,
        /// The API's answer.
        source: Box<kube::Error>,
    },
    /// What is in it cannot sign.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// It is there, and holds nothing of the kind.
    #[error("Secret {0}: neither {CERT} and {KEY} nor tls.crt and tls.key")]
    Empty(String),
}

/// The authority whose key the cluster keeps; made if there is none.
///
/// # Errors
/// See [`KeyError`]. A Secret that is there and cannot be used is never replaced.
pub async fn authority(client: &Client, namespace: &str, options: CaOptions) -> Result<Authority, KeyError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |name: &'static str| {
        move |source| KeyError::Api { namespace: namespace.to_owned(), name, source: Box::new(source) }
    };
    if let Some((place, secret)) = found(client, namespace).await? {
        info!(place, "the signing set is in the cluster");
        return Ok(Authority::new(set(&place, secret)?, options));
    }
    let texts = SetTexts::self_signed(&options, "", SystemTime::now())?;
    let bytes = |text: &[u8]| ByteString(text.to_vec());
    let data: BTreeMap<String, ByteString> = [
        (CERT.to_owned(), bytes(&texts.cert.bytes)),
        (KEY.to_owned(), bytes(&texts.key.bytes)),
        // Istio's readers expect these to be there.
        (ROOT.to_owned(), bytes(b"")),
        ("cert-chain.pem".to_owned(), bytes(b"")),
        ("key.pem".to_owned(), bytes(b"")),
    ]
    .into();
    let mut secret = Secret { type_: Some(OWN_TYPE.to_owned()), data: Some(data), ..Default::default() };
    secret.metadata.name = Some(OWN.to_owned());
    match api.create(&PostParams::default(), &secret).await {
        Ok(secret) => {
            info!(secret = OWN, "a root was made");
            Ok(Authority::new(set(&format!("{namespace}/{OWN}"), secret)?, options))
        }
        Err(kube::Error::Api(status)) if status.code == 409 => {
            // Another replica was quicker. What it is just writing may not be readable yet.
            for _ in 0..LOOKS {
                if let Some(secret) = api.get_opt(OWN).await.map_err(failed(OWN))? {
                    return Ok(Authority::new(set(&format!("{namespace}/{OWN}"), secret)?, options));
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(failed(OWN)(kube::Error::Api(status)))
        }
        Err(error) => Err(failed(OWN)(error)),
    }
}

/// The Secret that holds the set, with its place: the one that is plugged in, or else our own.
pub(super) async fn found(client: &Client, namespace: &str) -> Result<Option<(String, Secret)>, KeyError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for name in [PLUGGED, OWN] {
        let there = api.get_opt(name).await;
        let there = there.map_err(|source| KeyError::Api {
            namespace: namespace.to_owned(),
            name,
            source: Box::new(source),
        })?;
        if let Some(secret) = there {
            return Ok(Some((format!("{namespace}/{name}"), secret)));
        }
    }
    Ok(None)
}

/// The set that a Secret holds, checked.
pub(super) fn set(place: &str, secret: Secret) -> Result<CaSet, KeyError> {
    let mut data: BTreeMap<String, Vec<u8>> =
        secret.data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, bytes.0)).collect();
    // A set that signs itself is its own root, which Istio leaves out of the Secret.
    if data.get(ROOT).is_none_or(Vec::is_empty)
        && let Some(cert) = data.get(CERT).cloned()
    {
        data.insert(ROOT.to_owned(), cert);
    }
    let texts = SetTexts::of_secret(&format!("Secret {place}"), &data)?;
    let texts = texts.ok_or_else(|| KeyError::Empty(place.to_owned()))?;
    Ok(CaSet::check(&texts, SystemTime::now())?)
}
