//! An issuer behind ACME (RFC 8555): an order for each request, taken a step further with each look.
//!
//! Invariant: where an order is lies in the request's annotations, and everything else with the server, so that this process may
//! end anywhere. A challenge is prepared before the server is asked to look at it, and taken away before the order is
//! finished. The server sees the request's names and key, never more.

pub(super) mod account;
mod solve;

use std::time::{Duration, SystemTime};

use carrick_api::cert_manager::{AcmeIssuer, CertificateRequest};
use carrick_pki::issue::{Profile, Signed};
use carrick_pki::{CertificateInfo, pem};
use instant_acme::{AuthorizationStatus, Error, Identifier, NewOrder, OrderStatus, Problem};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use tracing::info;

use super::{Order, Outcome, Place};
use crate::objects::{Kind, ObjectError};

/// The note on a request that tells its order.
const ORDER: &str = "acme.carrick.io/order";
/// How long until an order is looked at again while the server works on it.
const SOON: Duration = Duration::from_secs(1);
/// Shortest and longest pause after the server failed.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10 * 60));

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Server(#[from] Error),
    #[error("{0}")]
    Later(String),
    #[error("{0}")]
    Never(String),
}

pub(super) async fn sign(
    place: &Place<'_>,
    acme: &AcmeIssuer,
    request: &CertificateRequest,
    order: &Order,
    now: SystemTime,
) -> Result<Outcome, ObjectError> {
    // The longer it fails, the longer the pause: a quarter of the time since the request was made.
    let since = request.metadata.creation_timestamp.and_then(|made| now.duration_since(crate::system(made)).ok());
    let pause = (since.unwrap_or_default() / 4).clamp(PAUSE.0, PAUSE.1);
    match step(place, acme, request, order, now).await {
        Ok(outcome) => Ok(outcome),
        Err(Trouble::Object(error)) => Err(error),
        Err(Trouble::Never(why)) => Ok(Outcome::Never(why)),
        Err(Trouble::Server(Error::Api(problem))) if is_final(&problem) => {
            Ok(Outcome::Never(format!("the ACME server refused: {}", words(&problem))))
        }
        Err(trouble) => Ok(Outcome::Later(format!("ACME: {trouble}"), pause)),
    }
}

async fn step(
    place: &Place<'_>,
    acme: &AcmeIssuer,
    request: &CertificateRequest,
    wanted: &Order,
    now: SystemTime,
) -> Result<Outcome, Trouble> {
    let identifiers = identifiers(&wanted.profile).map_err(Trouble::Never)?;
    let account = account::open(place, acme).await?;
    let Some(url) = request.metadata.annotations.get(ORDER) else {
        let order = account.new_order(&NewOrder::new(&identifiers)).await?;
        let key = (request.metadata.namespace.clone(), request.metadata.name.clone());
        place.objects.annotate(Kind::Request, &key, ORDER, order.url()).await?;
        info!(namespace = key.0, name = key.1, order = order.url(), "ordered from an ACME server");
        return Ok(Outcome::Later("Created an order at the ACME server".to_owned(), Duration::ZERO));
    };
    let mut order = account.order(url.clone()).await?;
    match order.state().status {
        OrderStatus::Pending => {
            let mut waiting = Vec::new();
            let mut authorizations = order.authorizations();
            while let Some(authorization) = authorizations.next().await {
                let authorization = authorization?;
                match authorization.status {
                    AuthorizationStatus::Valid => {}
                    AuthorizationStatus::Pending => {
                        waiting.push(solve::present(place, acme, request, authorization, now).await?);
                    }
                    _ => return Err(Trouble::Never(solve::reason(&authorization))),
                }
            }
            Ok(Outcome::Later(format!("Waiting for the ACME server: {}", waiting.join(", ")), SOON))
        }
        OrderStatus::Ready => {
            let mut authorizations = order.authorizations();
            while let Some(authorization) = authorizations.next().await {
                solve::clean_up(place, acme, request, authorization?).await?;
            }
            let csr = CertificateSigningRequestDer::from_pem_slice(wanted.csr.as_bytes());
            let csr = csr.map_err(|_| Trouble::Never("spec.request is no PEM request".to_owned()))?;
            order.finalize_csr(&csr).await?;
            Ok(Outcome::Later("Waiting for the ACME server: all names are proven".to_owned(), SOON))
        }
        OrderStatus::Processing => Ok(Outcome::Later("Waiting for the ACME server: it signs".to_owned(), SOON)),
        OrderStatus::Valid => match order.certificate().await? {
            Some(chain) => signed(&chain).map(Outcome::Signed).map_err(Trouble::Never),
            None => Ok(Outcome::Later("Waiting for the ACME server: it signs".to_owned(), SOON)),
        },
        OrderStatus::Invalid => {
            let mut reasons: Vec<String> = order.state().error.iter().map(words).collect();
            let mut authorizations = order.authorizations();
            while let Some(authorization) = authorizations.next().await {
                let authorization = authorization?;
                if authorization.status == AuthorizationStatus::Invalid {
                    reasons.push(solve::reason(&authorization));
                }
                solve::clean_up(place, acme, request, authorization).await?;
            }
            Err(Trouble::Never(format!("the ACME server found the order invalid: {}", reasons.join("; "))))
        }
    }
}

/// What is ordered; else why it cannot be.
fn identifiers(profile: &Profile) -> Result<Vec<Identifier>, String> {
    if profile.is_ca || !profile.uris.is_empty() || !profile.emails.is_empty() {
        return Err("ACME servers sign DNS names and addresses only: no isCA, uris or emailAddresses".to_owned());
    }
    let mut names: Vec<String> = profile.dns.iter().map(|name| name.to_ascii_lowercase()).collect();
    let common = profile.common_name.to_ascii_lowercase();
    let is_address = common.parse::<std::net::IpAddr>().is_ok_and(|ip| profile.ips.contains(&ip));
    if !common.is_empty() && !is_address {
        names.push(common);
    }
    names.sort();
    names.dedup();
    let ips = profile.ips.iter().copied().map(Identifier::Ip);
    let list: Vec<Identifier> = names.into_iter().map(Identifier::Dns).chain(ips).collect();
    if list.is_empty() { Err("there is no name to order a certificate for".to_owned()) } else { Ok(list) }
}

/// The chain as the server gave it. Its root is not in it, and a peer of the world's has it.
fn signed(chain: &str) -> Result<Signed, String> {
    let certificates = pem::certificates(chain.as_bytes()).map_err(|e| format!("the ACME server's answer: {e}"))?;
    let leaf = certificates.first().and_then(|leaf| CertificateInfo::read(leaf).ok());
    let serial = leaf.ok_or("the ACME server's answer is no certificate")?.serial;
    Ok(Signed { chain: chain.to_owned(), ca: String::new(), serial })
}

/// Whether asking again would be answered alike.
fn is_final(problem: &Problem) -> bool {
    let kind = problem.r#type.as_deref().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default();
    matches!(
        kind,
        "malformed"
            | "unauthorized"
            | "rejectedIdentifier"
            | "unsupportedIdentifier"
            | "badCSR"
            | "caa"
            | "orderNotReady"
    )
}

fn words(problem: &Problem) -> String {
    let text = problem.to_string();
    text.strip_prefix("API error: ").map(str::to_owned).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_has_each_name_once_and_refuses_what_no_server_signs() {
        let profile = Profile {
            common_name: "B.example".into(),
            dns: vec!["a.example".into(), "b.example".into()],
            ips: vec!["192.0.2.1".parse().unwrap()],
            ..Profile::default()
        };
        let dns = |name: &str| Identifier::Dns(name.to_owned());
        let ip = Identifier::Ip("192.0.2.1".parse().unwrap());
        assert_eq!(identifiers(&profile), Ok(vec![dns("a.example"), dns("b.example"), ip]));
        assert!(identifiers(&Profile { uris: vec!["spiffe://a".into()], ..profile }).is_err());
        assert!(identifiers(&Profile::default()).is_err());
    }
}
