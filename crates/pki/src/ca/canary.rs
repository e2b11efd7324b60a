//! A throw-away leaf: signed by a set, verified as a proxy would, and forgotten.
//!
//! Invariant: the key signs, the chain as it would be sent leads to the trust as it is published, and both a workload's and
//! a server's names are allowed. Neither the leaf nor its key leaves this module, so no journal is told of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use carrick_base::SpiffeId;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::{CaError, CaSet, Subject, leaf};
use crate::csr::{self, CertificateRequest};
use crate::key::KeyAlgorithm;
use crate::pem;
use crate::trust::TrustBundle;

const NAME: &str = "istiod.istio-system.svc";
const LIFE: Duration = Duration::from_secs(60);

pub(super) fn prove(set: &CaSet, trust: &TrustBundle, now: SystemTime) -> Result<(), CaError> {
    let id: SpiffeId = "spiffe://cluster.local/ns/istio-system/sa/canary"
        .parse()
        .map_err(|_| CaError::Sign("the throw-away leaf has no name".to_owned()))?;
    for subject in [Subject::Workload(id), Subject::Server { dns: vec![NAME.to_owned()], ips: Vec::new() }] {
        one(set, &subject, trust, now)?;
    }
    Ok(())
}

fn one(set: &CaSet, subject: &Subject, trust: &TrustBundle, now: SystemTime) -> Result<(), CaError> {
    let (_, request) = csr::new(KeyAlgorithm::EcdsaP256)?;
    let request = CertificateRequest::from_pem(&request)?;
    let signed = leaf::sign(&set.issuer, request.public_key(), subject, LIFE, now, set.info().not_after, None)?;
    let chain = pem::certificates(signed.pem.as_bytes()).map_err(|e| CaError::Sign(e.to_string()))?;
    let leaf = chain.first().ok_or_else(|| CaError::Sign("nothing was signed".to_owned()))?;
    is_trusted(leaf, set.path(), trust, now).map_err(|e| CaError::Canary(e.to_string()))?;
    if matches!(subject, Subject::Server { .. }) {
        let name = ServerName::try_from(NAME).map_err(|_| CaError::Name(NAME.to_owned()))?;
        EndEntityCert::try_from(leaf)
            .and_then(|leaf| leaf.verify_is_valid_for_subject_name(&name))
            .map_err(|e| CaError::Canary(e.to_string()))?;
    }
    Ok(())
}

/// Verifies a chain by the verifier that judges peers, for both ends of a connection.
fn is_trusted(
    leaf: &CertificateDer<'_>,
    path: &[CertificateDer<'_>],
    trust: &TrustBundle,
    now: SystemTime,
) -> Result<(), webpki::Error> {
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let leaf = EndEntityCert::try_from(leaf)?;
    let time = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        leaf.verify_for_usage(algorithms.all, trust.anchors(), path, time, usage, None, None)?;
    }
    Ok(())
}
