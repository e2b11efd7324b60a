//! What a pod proves itself with: service account tokens and the mesh's root, fetched before the start and kept fresh until the end.
//!
//! Invariant: a token is replaced at half of its life; while the API is away the old one stays and the fetch is repeated.

use std::time::{Duration, Instant};

use carrick_runtime::backoff::Backoff;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};

use super::files::PodFiles;
use crate::options::PROXY_ID;
use crate::{PodError, api};

/// Life asked for.
const LIFE: Duration = Duration::from_secs(3600);
/// The ConfigMap that holds the mesh's root in every namespace.
const ROOT: &str = "istio-ca-root-cert";
/// How long a new namespace may take to get it.
const ROOT_PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to get its account.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(5);
/// How often the root is read again.
const ROOT_PERIOD: Duration = Duration::from_secs(15);

/// Whom the credentials are for.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) client: Client,
    pub(crate) files: PodFiles,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    /// Name and uid of the Pod object, which the tokens are bound to.
    pub(crate) pod: (String, String),
    pub(crate) injected: bool,
}

/// One token file.
#[derive(Clone, Copy)]
struct Kind {
    file: &'static str,
    audience: Option<&'static str>,
    mode: u32,
    owner: u32,
}

const API: Kind = Kind { file: "secrets/kubernetes.io/serviceaccount/token", audience: None, mode: 0o644, owner: 0 };
const MESH: Kind =
    Kind { file: "secrets/tokens/istio-token", audience: Some("istio-ca"), mode: 0o600, owner: PROXY_ID };

impl Credentials {
    /// Writes everything for the first time.
    pub(crate) async fn fetch(&self, ca_pem: &str) -> Result<(), PodError> {
        self.files.write("secrets/kubernetes.io/serviceaccount/ca.crt", ca_pem.as_bytes(), 0o644, 0)?;
        self.files.write("secrets/kubernetes.io/serviceaccount/namespace", self.namespace.as_bytes(), 0o644, 0)?;
        self.first_token(API).await?;
        if self.injected {
            self.first_token(MESH).await?;
            let root = tokio::time::timeout(ROOT_PATIENCE, self.wait_for_root()).await;
            let root = root.map_err(|_| {
                PodError::Request(format!(
                    "no ConfigMap {ROOT} in namespace {} after {} s: is the control plane running?",
                    self.namespace,
                    ROOT_PATIENCE.as_secs()
                ))
            })?;
            self.write_root(&root)?;
        }
        Ok(())
    }

    /// A namespace's own account is made a moment after the namespace.
    async fn first_token(&self, kind: Kind) -> Result<(), PodError> {
        let begun = Instant::now();
        loop {
            match self.token(kind).await {
                Ok(_) => return Ok(()),
                Err(PodError::Api { source, .. })
                    if api::not_found(&source)
                        && self.service_account == "default"
                        && begun.elapsed() < ACCOUNT_PATIENCE => {}
                Err(error) => return Err(self.explain(error)),
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Keeps everything fresh; never returns.
    pub(crate) async fn keep(self) {
        let mesh = async {
            if self.injected {
                tokio::join!(self.keep_token(MESH), self.keep_root());
            }
        };
        tokio::join!(self.keep_token(API), mesh);
    }

    async fn keep_token(&self, kind: Kind) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        let mut life = LIFE;
        loop {
            tokio::time::sleep(life / 2).await;
            life = loop {
                match self.token(kind).await {
                    Ok(life) => break life,
                    Err(error) => tracing::warn!(%error, file = kind.file, "token not refreshed"),
                }
                backoff.wait().await;
            };
            backoff.reset();
        }
    }

    async fn keep_root(&self) {
        let mut known = String::new();
        loop {
            tokio::time::sleep(ROOT_PERIOD).await;
            match self.root().await {
                Ok(Some(root)) if root != known => match self.write_root(&root) {
                    Ok(()) => known = root,
                    Err(error) => tracing::warn!(%error, "mesh root not written"),
                },
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "mesh root not read"),
            }
        }
    }

    /// Fetches and writes one token; returns how long it lives.
    async fn token(&self, kind: Kind) -> Result<Duration, PodError> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: kind.audience.map(str::to_owned).into_iter().collect(),
                expiration_seconds: i64::try_from(LIFE.as_secs()).ok(),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(self.pod.0.clone()),
                    uid: Some(self.pod.1.clone()),
                }),
            },
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
        let answer = accounts
            .create_token_request(&self.service_account, &PostParams::default(), &request)
            .await
            .map_err(PodError::api(format!("get a token for service account {}", self.service_account)))?;
        let status = answer.status.ok_or_else(|| PodError::Request("the API gave no token".into()))?;
        self.files.write(kind.file, status.token.as_bytes(), kind.mode, kind.owner)?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let expires = u64::try_from(status.expiration_timestamp.0.as_second()).unwrap_or_default();
        // A clock that jumped must not make this spin, nor sleep for days.
        Ok(Duration::from_secs(expires.saturating_sub(now)).clamp(Duration::from_secs(20), LIFE))
    }

    async fn wait_for_root(&self) -> String {
        let mut backoff = Backoff::new(Duration::from_millis(25), Duration::from_millis(500));
        loop {
            if let Ok(Some(root)) = self.root().await {
                return root;
            }
            backoff.wait().await;
        }
    }

    async fn root(&self) -> Result<Option<String>, kube::Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let map = maps.get_opt(ROOT).await?;
        Ok(map.and_then(|map| map.data?.remove("root-cert.pem")).filter(|root| !root.is_empty()))
    }

    fn write_root(&self, root: &str) -> Result<(), PodError> {
        self.files.write("secrets/istio/root-cert.pem", root.as_bytes(), 0o644, 0)
    }

    fn explain(&self, error: PodError) -> PodError {
        match &error {
            PodError::Api { source, .. } if api::not_found(source) => PodError::Request(format!(
                "service account {:?} does not exist in namespace {:?}",
                self.service_account, self.namespace
            )),
            _ => error,
        }
    }
}
