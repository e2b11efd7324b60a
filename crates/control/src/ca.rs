//! The certificate service of the mesh's workloads (spec §19.1–19.3).
//!
//! Invariant: the name in a certificate is the caller's proven identity, whatever the request asks for. Keys are never
//! seen here.

use crate::caller::Callers;
use crate::metrics::ControlMetrics;
use crate::quarantine::Board;
use carrick_pki::ca::{Authority, CaError, Subject};
use carrick_pki::ca_service::{CertificateService, IstioCertificateRequest, IstioCertificateResponse};
use carrick_pki::journal::JournalError;
use carrick_xds::server::{Bearer, Peer};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::{Request, Response, Status};
use tracing::{debug, error, info};

/// The service.
pub(crate) struct Certificates {
    pub(crate) callers: Arc<Callers>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) metrics: ControlMetrics,
    pub(crate) quarantine: Arc<Board>,
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
        let caller = self.callers.prove(&peer, bearer.as_ref()).await.inspect_err(|status| {
            self.metrics.unauthenticated.inc();
            info!(address = ?peer.address, reason = status.message(), "signing request refused");
        })?;
        let request = request.into_inner();
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
        Ok(Response::new(IstioCertificateResponse { cert_chain: issued.into_wire() }))
    }
}

impl Certificates {
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
