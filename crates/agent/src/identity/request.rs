//! One request for a certificate: token or own certificate in, chain and roots out (spec §19.1, §19.2).
//!
//! Invariant: the authority is verified by the mesh roots and its name before anything is sent, and an answer is used
//! only if it is for our key and our identity.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use carrick_pki::ca_service::{CertificateClient, IstioCertificateRequest, IstioCertificateResponse};
use carrick_pki::csr::CsrError;
use carrick_pki::identity::IdentityError;
use carrick_pki::tls::{self, ServerAuth, TlsOptions};
use carrick_pki::trust::TrustError;
use carrick_pki::{Identity, KeyAlgorithm, PrivateKey, TrustBundle, csr};
use carrick_xds::client::{ConnectError, Connector, open_channel};
use rustls::pki_types::ServerName;
use tonic::{Code, Status};

use crate::config::AgentConfig;
use crate::secrets::SecretStore;

/// How long the authority may think.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no certificate. A retry is always safe.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Neither a token nor a certificate to show.
    #[error("no way to prove who we are: {path}: {reason}")]
    Token {
        /// The token's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The authority cannot be reached or is not who it should be.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The configured name of the authority is none.
    #[error("{0:?} cannot be a server's name")]
    ServerName(String),
    /// It refused.
    #[error("the certificate authority refused: {:?}: {}", .0.code(), .0.message())]
    Refused(Box<Status>),
    /// It did not answer in time.
    #[error("the certificate authority did not answer in time")]
    Timeout,
    /// Its answer is of no use.
    #[error("the certificate authority's answer: {0}")]
    Answer(String),
    /// No request could be made.
    #[error(transparent)]
    Csr(#[from] CsrError),
}

impl From<IdentityError> for FetchError {
    fn from(error: IdentityError) -> Self {
        Self::Answer(error.to_string())
    }
}

impl From<TrustError> for FetchError {
    fn from(error: TrustError) -> Self {
        Self::Answer(error.to_string())
    }
}

/// Asks for certificates of one workload.
#[derive(Debug)]
pub struct Requester {
    address: String,
    server_name: String,
    token_file: PathBuf,
    ttl_seconds: i64,
    algorithm: KeyAlgorithm,
    namespace: String,
    service_account: String,
    cluster: String,
    store: Arc<SecretStore>,
}

impl Requester {
    pub(crate) fn new(config: &AgentConfig, store: Arc<SecretStore>) -> Self {
        let cluster = config.node.metadata.get("CLUSTER_ID").and_then(|v| v.as_str()).unwrap_or("Kubernetes");
        Self {
            address: config.control_plane.ca_address.clone(),
            server_name: config.control_plane.server_name.clone(),
            token_file: config.identity.token_file.clone(),
            ttl_seconds: i64::try_from(config.identity.ttl.as_secs()).unwrap_or(i64::MAX),
            algorithm: config.identity.algorithm,
            namespace: config.node.namespace.clone(),
            service_account: config.node.service_account.clone(),
            cluster: cluster.to_owned(),
            store,
        }
    }

    /// Asks once: with the token, and where that is refused or cannot be looked at now with the certificate that is still valid. Each of the two
    /// takes no longer than `limit`.
    ///
    /// # Errors
    /// See [`FetchError`].
    pub async fn obtain(
        &self,
        current: Option<&Identity>,
        limit: Duration,
    ) -> Result<(Identity, TrustBundle), FetchError> {
        self.store.reload();
        let (key, request) = csr::new(self.algorithm)?;
        let chain = match (self.token(), current) {
            (Ok(token), current) => match (within(limit, self.ask(&request, Some(&token), None)).await, current) {
                (Err(FetchError::Refused(status)), Some(current))
                    if matches!(status.code(), Code::Unauthenticated | Code::Unavailable) =>
                {
                    within(limit, self.ask(&request, None, Some(current))).await?
                }
                (result, _) => result?,
            },
            (Err(_), Some(current)) => within(limit, self.ask(&request, None, Some(current))).await?,
            (Err(error), None) => return Err(error),
        };
        self.accept(chain, key)
    }

    fn token(&self) -> Result<String, FetchError> {
        let fail = |reason: String| FetchError::Token { path: self.token_file.clone(), reason };
        let text = std::fs::read_to_string(&self.token_file).map_err(|e| fail(e.to_string()))?;
        match text.trim() {
            "" => Err(fail("empty".to_owned())),
            token => Ok(token.to_owned()),
        }
    }

    async fn ask(
        &self,
        csr: &str,
        token: Option<&str>,
        identity: Option<&Identity>,
    ) -> Result<Vec<String>, FetchError> {
        let authority = Authority {
            address: &self.address,
            server_name: &self.server_name,
            auth: ServerAuth::Dns { roots: self.store.roots() },
        };
        let broken = |what: &str| FetchError::Token { path: self.token_file.clone(), reason: what.to_owned() };
        let message =
            IstioCertificateRequest { csr: csr.to_owned(), validity_duration: self.ttl_seconds, metadata: None };
        let mut request = tonic::Request::new(message);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", bearer(token).ok_or_else(|| broken("not a token"))?);
        }
        if let Ok(value) = self.cluster.parse() {
            request.metadata_mut().insert("clusterid", value);
        }
        Ok(authority.ask(request, identity).await?.into_inner().cert_chain)
    }

    fn accept(&self, chain: Vec<String>, key: PrivateKey) -> Result<(Identity, TrustBundle), FetchError> {
        let (identity, roots) = read_answer(chain, key)?;
        let named = identity.spiffe.as_ref().and_then(|s| Some((s.namespace()?, s.service_account()?)));
        if named != Some((self.namespace.as_str(), self.service_account.as_str())) {
            let name = identity.spiffe.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
            return Err(FetchError::Answer(format!(
                "it names {name}, not service account {} of namespace {}",
                self.service_account, self.namespace
            )));
        }
        Ok((identity, roots))
    }
}

async fn within<T>(limit: Duration, asking: impl Future<Output = Result<T, FetchError>>) -> Result<T, FetchError> {
    tokio::time::timeout(limit, asking).await.unwrap_or(Err(FetchError::Timeout))
}

/// A certificate authority, and how it is proven.
pub(crate) struct Authority<'a> {
    /// `host:port`.
    pub(crate) address: &'a str,
    /// The name in its certificate.
    pub(crate) server_name: &'a str,
    /// How it is verified.
    pub(crate) auth: ServerAuth,
}

impl Authority<'_> {
    /// Asks once, with this certificate.
    pub(crate) async fn ask(
        &self,
        request: tonic::Request<IstioCertificateRequest>,
        identity: Option<&Identity>,
    ) -> Result<tonic::Response<IstioCertificateResponse>, FetchError> {
        let config = tls::client_config(identity, self.auth.clone(), &["h2"], &TlsOptions::default());
        let config = config.map_err(|e| e.to_string());
        let server_name = ServerName::try_from(self.server_name.to_owned())
            .map_err(|_| FetchError::ServerName(self.server_name.to_owned()))?;
        let connector =
            Connector::Tls { address: self.address.to_owned(), server_name, config: Arc::new(move || config.clone()) };
        let mut client = CertificateClient::new(open_channel(&connector).await?);
        match tokio::time::timeout(TIMEOUT, client.create_certificate(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(status)) => Err(FetchError::Refused(Box::new(status))),
            Err(_) => Err(FetchError::Timeout),
        }
    }
}

/// The header of a token; `None` for what cannot be in a header.
pub(crate) fn bearer(token: &str) -> Option<tonic::metadata::AsciiMetadataValue> {
    let mut value: tonic::metadata::AsciiMetadataValue = format!("Bearer {token}").parse().ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A chain that came for our key, and the roots with it.
pub(crate) fn read_answer(mut chain: Vec<String>, key: PrivateKey) -> Result<(Identity, TrustBundle), FetchError> {
    let roots = match chain.pop() {
        Some(roots) if !chain.is_empty() => TrustBundle::from_pem(roots.as_bytes())?,
        _ => return Err(FetchError::Answer("no certificate in it".to_owned())),
    };
    let chain = carrick_pki::pem::certificates(chain.concat().as_bytes()).map_err(IdentityError::from)?;
    Ok((Identity::new(chain, key)?, roots))
}
