//! Where join tokens are kept: one Secret each in the namespace of the control plane, replaced only in the version that was read.
//!
//! Invariant: two who show a token at the same moment cannot both be first: the API takes one of the two writes.

use std::collections::BTreeMap;

use carrick_pki::join::JoinToken;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};

use super::tokens::TokenRecord;

/// The type of these Secrets.
pub const SECRET_TYPE: &str = "carrick.dev/join-token";
/// The label that lists are made by; its value is the group's namespace.
pub const NAMESPACE_LABEL: &str = "carrick.dev/join-namespace";
const PREFIX: &str = "carrick-join-";
const KEY: &str = "record";

/// The Secrets of one mesh.
#[derive(Clone)]
pub struct TokenStore {
    api: Api<Secret>,
}

/// Why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote it in between.
    #[error("it was changed meanwhile")]
    Conflict,
    /// The API did not do it.
    #[error(transparent)]
    Api(kube::Error),
}

/// A record with the version it was read in.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The token's name.
    pub id: String,
    /// The record.
    pub record: TokenRecord,
    version: Option<String>,
}

impl TokenStore {
    /// Of the mesh whose control plane's namespace is `root`.
    pub fn new(client: kube::Client, root: &str) -> Self {
        Self { api: Api::namespaced(client, root) }
    }

    /// Keeps a new one.
    ///
    /// # Errors
    /// The API refused.
    pub async fn create(&self, token: &JoinToken, record: &TokenRecord) -> Result<(), kube::Error> {
        self.api.create(&PostParams::default(), &secret(token.id(), record, None)).await.map(drop)
    }

    /// The record of a token's name.
    ///
    /// # Errors
    /// The API did not answer.
    pub async fn get(&self, id: &str) -> Result<Option<Kept>, kube::Error> {
        Ok(self.api.get_opt(&format!("{PREFIX}{id}")).await?.and_then(kept))
    }

    /// Replaces a record, if it is still as it was read.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn replace(&self, kept: &Kept, record: &TokenRecord) -> Result<(), StoreError> {
        let secret = secret(&kept.id, record, kept.version.clone());
        match self.api.replace(&format!("{PREFIX}{}", kept.id), &PostParams::default(), &secret).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Err(StoreError::Conflict),
            Err(error) => Err(StoreError::Api(error)),
        }
    }

    /// All of them, or those for the groups of one namespace, by name.
    ///
    /// # Errors
    /// The API did not answer.
    pub async fn list(&self, namespace: Option<&str>) -> Result<Vec<Kept>, kube::Error> {
        let selector = namespace.map_or(NAMESPACE_LABEL.to_owned(), |ns| format!("{NAMESPACE_LABEL}={ns}"));
        let list = self.api.list(&ListParams::default().labels(&selector)).await?;
        Ok(list.items.into_iter().filter_map(kept).collect())
    }

    /// Forgets one; gives whether there was one.
    ///
    /// # Errors
    /// The API did not answer.
    pub async fn delete(&self, id: &str) -> Result<bool, kube::Error> {
        match self.api.delete(&format!("{PREFIX}{id}"), &DeleteParams::default()).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn secret(id: &str, record: &TokenRecord, version: Option<String>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(format!("{PREFIX}{id}")),
            labels: Some(BTreeMap::from([(NAMESPACE_LABEL.to_owned(), record.namespace.clone())])),
            resource_version: version,
            ..ObjectMeta::default()
        },
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(serde_json::to_vec(record).unwrap_or_default()))])),
        ..Secret::default()
    }
}

fn kept(secret: Secret) -> Option<Kept> {
    let id = secret.metadata.name?.strip_prefix(PREFIX)?.to_owned();
    let ours = secret.type_.as_deref() == Some(SECRET_TYPE);
    let record = secret.data?.remove(KEY)?;
    let record = serde_json::from_slice(&record.0).ok().filter(|_| ours)?;
    Some(Kept { id, record, version: secret.metadata.resource_version })
}
