//! The certificate service: whose name, for how long, and who gets none.

use crate::fixture::{World, authority, connector};
use carrick_pki::ca_service::{CertificateClient, IstioCertificateRequest};
use carrick_pki::{Identity, KeyAlgorithm, csr};
use carrick_xds::client::{Connector, open_channel};
use std::time::{Duration, SystemTime};
use tonic::{Code, Request, Status};

async fn ask(connector: &Connector, token: Option<&str>, csr: &str, seconds: i64) -> Result<Vec<String>, Status> {
    let channel = open_channel(connector).await.expect("connects");
    let mut request =
        Request::new(IstioCertificateRequest { csr: csr.to_owned(), validity_duration: seconds, metadata: None });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("header"));
    }
    Ok(CertificateClient::new(channel).create_certificate(request).await?.into_inner().cert_chain)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_is_the_callers() {
    let dir = tempfile::tempdir().expect("tempdir");
    let world = World::new(authority(dir.path())).await;
    let anonymous = world.connector(None);
    let (key, csr) = csr::new(KeyAlgorithm::default()).expect("key and request");

    let chain = ask(&anonymous, Some("shop/web"), &csr, 3600).await.expect("issued");
    let identity = Identity::from_pem(chain[0].as_bytes(), key.to_pem().as_bytes()).expect("fits the key");
    assert_eq!(identity.spiffe.as_ref().map(|s| s.as_str()), Some("spiffe://cluster.local/ns/shop/sa/web"));
    let life = identity.not_after.duration_since(SystemTime::now()).expect("in the future");
    assert!(life <= Duration::from_secs(3600) && life > Duration::from_secs(3500), "{life:?}");
    assert!(chain.last().is_some_and(|root| root.contains("BEGIN CERTIFICATE")));

    // Renewal with the certificate itself, without a token.
    let renewing = connector(&world.authority, world.control.xds_addr(), Some(identity));
    let (key, csr) = csr::new(KeyAlgorithm::default()).expect("key and request");
    let chain = ask(&renewing, None, &csr, 0).await.expect("issued");
    let identity = Identity::from_pem(chain[0].as_bytes(), key.to_pem().as_bytes()).expect("fits the key");
    assert_eq!(identity.spiffe.as_ref().map(|s| s.as_str()), Some("spiffe://cluster.local/ns/shop/sa/web"));
    let life = identity.not_after.duration_since(SystemTime::now()).expect("in the future");
    assert!(life > Duration::from_secs(23 * 3600), "the default: {life:?}");

    for (what, token, csr, seconds, expected) in [
        ("no proof", None, csr.as_str(), 3600, Code::Unauthenticated),
        ("a wrong token", Some("nobody"), csr.as_str(), 3600, Code::Unauthenticated),
        ("too long", Some("shop/web"), csr.as_str(), 91 * 24 * 3600, Code::InvalidArgument),
        ("no request", Some("shop/web"), "hello", 3600, Code::InvalidArgument),
        ("the reviewer is away", Some("down"), csr.as_str(), 3600, Code::Unavailable),
    ] {
        let status = ask(&anonymous, token, csr, seconds).await.expect_err(what);
        assert_eq!(status.code(), expected, "{what}: {status:?}");
    }
    let (_, metrics) = world.get("/metrics").await;
    for line in [
        "citadel_server_csr_count 7",
        "citadel_server_success_cert_issuance_count 2",
        "citadel_server_authentication_failure_count 3",
        "citadel_server_csr_parsing_err_count 2",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }
}
