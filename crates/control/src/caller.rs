//! Who calls: from a verified client certificate, else from a service account token that the API reviewed.
//!
//! Invariant: a [`Caller`] is proven; nothing in it comes from what the caller says of itself. No proof, no caller.

mod reviewers;

pub(crate) use reviewers::Reviewers;

use crate::quarantine::Board;
use carrick_base::{SpiffeId, TrustDomain};
use carrick_xds::server::{Bearer, Peer};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::{Api, PostParams};
use std::sync::Arc;
use tonic::Status;

/// The audience a token for the control plane must have (spec §19.2).
pub const AUDIENCE: &str = "istio-ca";

/// Why a token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    /// The token is wrong, expired, or not for us. The caller's fault.
    #[error("{0}")]
    Refused(String),
    /// The API could not be asked. A retry is safe.
    #[error("{0}")]
    Unavailable(String),
}

/// Says whose a service account token is.
#[tonic::async_trait]
pub trait TokenReviewer: Send + Sync + 'static {
    /// The namespace and name of the service account.
    ///
    /// # Errors
    /// See [`ReviewError`].
    async fn review(&self, token: &str) -> Result<(String, String), ReviewError>;
}

/// Asks the Kubernetes API.
pub struct KubeReviewer {
    api: Api<TokenReview>,
}

impl KubeReviewer {
    /// Reviews through this client, which must be allowed to create TokenReviews.
    pub fn new(client: kube::Client) -> Self {
        Self { api: Api::all(client) }
    }
}

#[tonic::async_trait]
impl TokenReviewer for KubeReviewer {
    async fn review(&self, token: &str) -> Result<(String, String), ReviewError> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) },
            ..Default::default()
        };
        let answer = self
            .api
            .create(&PostParams::default(), &review)
            .await
            .map_err(|error| ReviewError::Unavailable(format!("token review: {error}")))?;
        let status = answer.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Err(ReviewError::Refused(
                status.error.unwrap_or_else(|| "the token is not authenticated".to_owned()),
            ));
        }
        // An API that knows no audiences answers without them; that token could be for anybody.
        if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
            return Err(ReviewError::Refused(format!("the token is not for {AUDIENCE}")));
        }
        let user = status.user.and_then(|user| user.username).unwrap_or_default();
        service_account(&user).ok_or_else(|| ReviewError::Refused(format!("{user:?} is not a service account")))
    }
}

fn service_account(user: &str) -> Option<(String, String)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then(|| (namespace.to_owned(), name.to_owned()))
}

/// A proven workload identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) spiffe: SpiffeId,
}

/// Proves callers.
pub(crate) struct Callers {
    pub(crate) reviewer: Arc<dyn TokenReviewer>,
    /// Whoever says that its token is of another cluster is believed by that cluster's API.
    pub(crate) others: Reviewers,
    /// What the own cluster is called.
    pub(crate) cluster: Arc<str>,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) aliases: Vec<TrustDomain>,
    pub(crate) quarantine: Arc<Board>,
}

impl Callers {
    /// The caller behind a connection.
    ///
    /// # Errors
    /// `Unauthenticated` without proof, `PermissionDenied` for an identity that is no workload of this mesh or is quarantined,
    /// `Unavailable` when the proof cannot be checked now.
    pub(crate) async fn prove(&self, peer: &Peer, bearer: Option<&Bearer>) -> Result<Caller, Status> {
        let caller = self.identify(peer, bearer).await?;
        match self.quarantine.refuses(&caller.spiffe) {
            Some(reason) => Err(Status::permission_denied(reason)),
            None => Ok(caller),
        }
    }

    async fn identify(&self, peer: &Peer, bearer: Option<&Bearer>) -> Result<Caller, Status> {
        if let Some(spiffe) = &peer.identity {
            let domain = spiffe.trust_domain();
            if domain != self.trust_domain && !self.aliases.contains(&domain) {
                return Err(Status::permission_denied(format!("trust domain {domain} is not served here")));
            }
            return match (spiffe.namespace(), spiffe.service_account()) {
                (Some(namespace), Some(account)) => Ok(Caller {
                    namespace: namespace.to_owned(),
                    service_account: account.to_owned(),
                    spiffe: spiffe.clone(),
                }),
                _ => Err(Status::permission_denied(format!("{spiffe} is no workload's identity"))),
            };
        }
        let Some(bearer) = bearer else {
            return Err(Status::unauthenticated("neither a client certificate nor a token"));
        };
        let other = bearer.cluster.as_deref().filter(|cluster| **cluster != *self.cluster);
        // A cluster that nobody knows proves nothing either way; the own API then says whether the token is its own.
        let reviewer = other.and_then(|cluster| self.others.of(cluster)).unwrap_or_else(|| self.reviewer.clone());
        let (namespace, service_account) = reviewer.review(&bearer.token).await.map_err(|error| match error {
            ReviewError::Refused(reason) => Status::unauthenticated(reason),
            ReviewError::Unavailable(reason) => Status::unavailable(reason),
        })?;
        let spiffe = SpiffeId::istio(&self.trust_domain, &namespace, &service_account);
        Ok(Caller { namespace, service_account, spiffe })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names() {
        assert_eq!(service_account("system:serviceaccount:ns:sa"), Some(("ns".into(), "sa".into())));
        for user in ["admin", "system:serviceaccount:ns", "system:serviceaccount::sa", "system:serviceaccount:a:b:c"] {
            assert_eq!(service_account(user), None, "{user}");
        }
    }
}
