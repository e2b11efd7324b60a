//! The certificate service of the mesh's workloads (spec §19.1–19.3).
//!
//! Invariant: the name in a certificate is the caller's proven identity, whatever the request asks for. Keys are never
//! seen here.

use crate::caller::Callers;
use crate::machines::{Joined, Machines};
use crate::metrics::ControlMetrics;
use crate::quarantine::Board;
use carrick_pki::ca::{Authority, CaError, Subject};
use carrick_pki::ca_service::{CertificateService, IstioCertificateRequest, IstioCertificateResponse, PROFILE, ROOTS};
use carrick_pki::join::JoinToken;
use carrick_pki::journal::JournalError;
use carrick_xds::server::{Bearer, Peer};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status};
use tracing::{debug, error, info};

/// The service.
pub(crate) struct Certificates {
    pub(crate) callers: Arc<Callers>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) metrics: ControlMetrics,
    pub(crate) quarantine: Arc<Board>,
    /// Lets machines in by join tokens; `None` where there is no API to keep them in.
    pub(crate) machines: Option<Arc<Machines>>,
}

#[tonic::async_trait]
impl CertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.csrs.inc();
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let bearer = Bearer::of(request.metadata());
        let request = request.into_inner();
        let proven = match bearer.as_ref().filter(|bearer| JoinToken::is_one(&bearer.token)) {
            Some(token) => self.join(&token.token, &request.csr, &peer).await.map(|j| (j.caller, Some(j.profile))),
            None => self.callers.prove(&peer, bearer.as_ref()).await.map(|caller| (caller, None)),
        };
        let (caller, profile) = proven.map_err(|status| {
            self.metrics.unauthenticated.inc();
            info!(address = ?peer.address, reason = status.message(), "signing request refused");
            self.with_roots(status, bearer.is_none())
        })?;
        if asks_for_another(&request) {
            self.metrics.csr_errors.inc();
            return Err(Status::permission_denied("certificates for other identities are not issued here"));
        }
        // The ledger refuses too, whoever signs; this is for a control plane without one.
        if let Some(reason) = self.quarantine.refuses(&caller.spiffe) {
            return Err(self.refused(&JournalError::Refused(reason).into()));
        }
        let ttl = u64::try_from(request.validity_duration).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let subject = Subject::Workload(caller.spiffe);
        let authority = self.authority.clone();
        // Signing waits until the ledger is on disk.
        let signing = tokio::task::spawn_blocking(move || {
            authority.sign(&request.csr, &subject, ttl, SystemTime::now()).map(|issued| (issued, subject))
        });
        let (issued, subject) = signing
            .await
            .map_err(|_| Status::internal("the certificate could not be signed"))?
            .map_err(|e| self.refused(&e))?;
        self.metrics.issued.inc();
        debug!(?subject, serial = issued.serial, "certificate issued");
        let mut response = Response::new(IstioCertificateResponse { cert_chain: issued.into_wire() });
        if let Some(profile) = profile {
            let value = MetadataValue::from_bytes(profile.to_string().as_bytes());
            response.metadata_mut().insert_bin(PROFILE, value);
        }
        Ok(response)
    }
}

impl Certificates {
    async fn join(&self, token: &str, csr: &str, peer: &Peer) -> Result<Joined, Status> {
        let machines =
            self.machines.as_ref().ok_or_else(|| Status::unauthenticated("join tokens are not taken here"))?;
        machines.join(token, csr, peer.address.map(|address| address.ip())).await
    }

    /// Who comes with nothing is told the mesh's roots, which are no secret: a machine that knows a root's fingerprint finds the root by it,
    /// before it shows its token.
    fn with_roots(&self, mut status: Status, bare: bool) -> Status {
        if bare && status.code() == Code::Unauthenticated {
            let roots = self.authority.roots().to_pem();
            status.metadata_mut().insert_bin(ROOTS, MetadataValue::from_bytes(roots.as_bytes()));
        }
        status
    }

    fn refused(&self, error: &CaError) -> Status {
        if let CaError::Journal(JournalError::Refused(reason)) = error {
            self.metrics.csr_errors.inc();
            info!(reason, "signing request refused");
            Status::permission_denied(reason)
        } else if error.is_callers_fault() {
            self.metrics.csr_errors.inc();
            Status::invalid_argument(error.to_string())
        } else {
            error!(%error, "signing");
            Status::internal("the certificate could not be signed")
        }
    }
}

/// `ImpersonatedIdentity` is for node proxies, which are not served: silently issuing the caller's own name instead
/// would be an answer to another question.
fn asks_for_another(request: &IstioCertificateRequest) -> bool {
    request.metadata.as_ref().is_some_and(|m| m.fields.contains_key("ImpersonatedIdentity"))
}
