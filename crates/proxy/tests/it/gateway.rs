//! What gateways are asked for: certificates by name, clients' certificates in every mode, PROXY headers; with certificates that OpenSSL
//! made and with the reasons of refusals in the log.

use crate::support::*;
use carrick_pki::tls::{ServerAuth, TlsOptions, TlsVersion, client_config};
use carrick_pki::{Identity, TrustBundle};
use carrick_proxy::{Secret, Secrets};
use carrick_proxy_core::model::access_log::{AccessLog, LogFormat, LogSink};
use carrick_proxy_core::model::listener::{Direction, Listener, ProxyHeader};
use carrick_proxy_core::model::matcher::{StringMatcher, Text};
use carrick_proxy_core::model::tls::{
    CertificateSource, DownstreamTls, InlineCertificate, SanKind, SanMatcher, TrustSource, Validation,
};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Roots and leaves of OpenSSL's in a folder.
struct Office(tempfile::TempDir);

impl Office {
    fn new() -> Self {
        let office = Office(tempfile::tempdir().unwrap());
        office.root("ca");
        office.root("other");
        office
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, line: &str) {
        let output = Command::new("openssl").args(line.split_whitespace()).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn root(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem -subj /CN={name} -days 9 -addext keyUsage=critical,keyCertSign,cRLSign"
        ));
    }

    fn leaf(&self, name: &str, issuer: &str, san: &str, days: i32) -> Identity {
        std::fs::write(self.path(&format!("{name}.ext")), format!("subjectAltName={san}\n")).unwrap();
        self.openssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial -out {name}.pem -extfile {name}.ext -days {days}"
        ));
        Identity::from_pem(&self.read(&format!("{name}.pem")), &self.read(&format!("{name}.key"))).unwrap()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn revoke(&self, name: &str) -> Vec<u8> {
        std::fs::write(
            self.path("ca.cnf"),
            "[ca]\ndefault_ca=d\n[d]\ndatabase=index\ncrlnumber=number\ndefault_md=sha256\ndefault_crl_days=3\n",
        )
        .unwrap();
        std::fs::write(self.path("index"), "").unwrap();
        std::fs::write(self.path("number"), "01").unwrap();
        self.openssl(&format!("ca -config ca.cnf -keyfile ca.key -cert ca.pem -revoke {name}.pem"));
        self.openssl("ca -config ca.cnf -keyfile ca.key -cert ca.pem -gencrl -out crl.pem");
        self.read("crl.pem")
    }

    fn secrets(&self, server: &Identity) -> Secrets {
        let roots = TrustBundle::from_pem(&self.read("ca.pem")).unwrap();
        let by_name = [
            ("kubernetes://edge".to_owned(), Secret::Identity(Arc::new(server.clone()))),
            ("kubernetes://edge-cacert".to_owned(), Secret::Trust(Arc::new(roots))),
        ];
        Secrets { by_name: by_name.into(), ..Secrets::default() }
    }
}

fn simple() -> DownstreamTls {
    DownstreamTls {
        certificates: [CertificateSource::Secret("kubernetes://edge".into())].into(),
        validation: None,
        require_client_certificate: false,
        require_sni: false,
        alpn: ["h2".into(), "http/1.1".into()].into(),
        params: Default::default(),
    }
}

fn dns(name: &str) -> SanMatcher {
    SanMatcher { kind: SanKind::Dns, matcher: StringMatcher::Exact(Text { value: name.into(), ignore_case: false }) }
}

fn gateway(at: SocketAddr, tls: DownstreamTls, log: &Path) -> Listener {
    let mut c = chain("edge", http(all_to("app")));
    c.tls = Some(tls);
    c.matching.transport_protocol = "tls".into();
    let mut l = listener("0.0.0.0_443", at, Direction::Outbound, vec![c]);
    let line = "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%\n";
    l.access_logs = vec![AccessLog {
        omit_empty: false,
        filter: None,
        format: LogFormat::Text(carrick_proxy_core::format::parse(line).unwrap()),
        sink: LogSink::File(log.display().to_string().into()),
    }];
    l
}

async fn ask(at: SocketAddr, client: Option<&Identity>, version: TlsVersion) -> Result<String, String> {
    let options = TlsOptions { min_version: version, max_version: version, ..TlsOptions::default() };
    let config = client_config(client, ServerAuth::None, &["http/1.1"], &options).unwrap();
    let exchange = async {
        let name = rustls::pki_types::ServerName::try_from("edge.test").unwrap();
        let tcp = TcpStream::connect(at).await?;
        let mut tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
        tls.write_all(b"GET / HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n").await?;
        let mut text = String::new();
        tls.read_to_string(&mut text).await?;
        std::io::Result::Ok(text)
    };
    exchange.await.map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_lets_in_whom_it_should_and_says_why_not() {
    let office = Office::new();
    let server = office.leaf("server", "ca", "DNS:edge.test", 3);
    let good = office.leaf("good", "ca", "DNS:good.test", 3);
    let wrong = office.leaf("wrong", "ca", "DNS:wrong.test", 3);
    let alien = office.leaf("alien", "other", "DNS:good.test", 3);
    let expired = office.leaf("expired", "ca", "DNS:good.test", -1);
    let gone = office.leaf("gone", "ca", "DNS:good.test", 3);
    let crl = office.revoke("gone");
    let (app, _) = echo_app().await;
    let check = |tls: DownstreamTls, expect: Vec<(&'static str, Option<Identity>, &'static str)>| {
        let (secrets, log) = (office.secrets(&server), office.path(&format!("log-{}", rand_name())));
        async move {
            let at = free_port();
            let running =
                start(config(vec![gateway(at, tls, &log)], vec![(cluster("app"), Some(endpoints(&[app])))]), secrets);
            for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
                for (what, client, reason) in &expect {
                    let before = std::fs::read_to_string(&log).unwrap_or_default().len();
                    let answer = ask(at, client.as_ref(), version).await;
                    assert_eq!(
                        answer.is_ok_and(|a| a.starts_with("HTTP/1.1 200")),
                        reason.is_empty(),
                        "{what} {version:?}"
                    );
                    if !reason.is_empty() {
                        until(what, || std::fs::read_to_string(&log).unwrap_or_default().len() > before).await;
                        let text = std::fs::read_to_string(&log).unwrap();
                        assert!(text[before..].contains(reason), "{what} {version:?}: {}", &text[before..]);
                    }
                }
            }
            drop(running);
        }
    };
    const UNKNOWN: &str = "TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_X509_verify_cert:_certificate_verification_error_at_depth_0:_unable_to_get_local_issuer_certificate:TLS_error_end";
    const MISSING: &str = "TLS_error:|268435648:SSL_routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE:peer_did_not_provide_required_client_certificate:TLS_error_end";
    check(simple(), vec![("SIMPLE, nobody", None, ""), ("SIMPLE, anybody", Some(alien.clone()), "")]).await;
    let mutual = DownstreamTls {
        validation: Some(Validation {
            revocations: Some(TrustSource::Inline(crl.into())),
            ..Validation::of("kubernetes://edge-cacert", [dns("good.test")].into())
        }),
        require_client_certificate: true,
        ..simple()
    };
    check(
        mutual.clone(),
        vec![
            ("MUTUAL, good", Some(good.clone()), ""),
            ("MUTUAL, nobody", None, MISSING),
            ("MUTUAL, another root", Some(alien.clone()), UNKNOWN),
            (
                "MUTUAL, another name",
                Some(wrong.clone()),
                "verify_cert_failed:_SAN_matcher,_certificate_SANs_are_[wrong.test]",
            ),
            ("MUTUAL, expired", Some(expired.clone()), "certificate_has_expired"),
            (
                "MUTUAL, revoked",
                Some(gone),
                "certificate_revocation_check_against_provided_CRLs_failed:_certificate_revoked",
            ),
        ],
    )
    .await;
    let optional = DownstreamTls { require_client_certificate: false, ..mutual.clone() };
    check(
        optional,
        vec![
            ("OPTIONAL_MUTUAL, nobody", None, ""),
            ("OPTIONAL_MUTUAL, good", Some(good.clone()), ""),
            ("OPTIONAL_MUTUAL, another root", Some(alien.clone()), UNKNOWN),
        ],
    )
    .await;
    let mut open = mutual.clone();
    if let Some(v) = &mut open.validation {
        v.accept_untrusted = true;
    }
    check(open, vec![("insecure, another root", Some(alien), ""), ("insecure, nobody", None, MISSING)]).await;
    // All of it inline, the key too.
    let inline = InlineCertificate {
        chain: office.read("server.pem").into(),
        key: office.read("server.key").into(),
        ocsp: Box::default(),
    };
    assert!(!format!("{inline:?}").contains("key"), "a key is shown");
    let mut all_inline = mutual;
    all_inline.certificates = [CertificateSource::Inline(Arc::new(inline))].into();
    if let Some(v) = &mut all_inline.validation {
        v.trust = Some(TrustSource::Inline(office.read("ca.pem").into()));
    }
    check(all_inline, vec![("inline, good", Some(good), ""), ("inline, expired", Some(expired), "expired")]).await;
}

fn rand_name() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_says_who_the_client_is() {
    let (app, _) = echo_app().await;
    for optional in [false, true] {
        let at = free_port();
        let mut manager = hcm(all_to("app"));
        manager.addresses.use_remote_address = true;
        let kind = carrick_proxy_core::model::listener::ChainKind::Http(Box::new(manager));
        let mut l = listener("edge", at, Direction::Outbound, vec![chain("c", kind)]);
        l.inspectors.proxy = Some(ProxyHeader { optional, v1: true, v2: true });
        l.listener_filters_timeout = Some(std::time::Duration::from_millis(300));
        let _running = start(config(vec![l], vec![(cluster("app"), Some(endpoints(&[app])))]), Default::default());
        let ask = |start: Vec<u8>| async move {
            let mut tcp = TcpStream::connect(at).await.unwrap();
            let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            // One byte behind the header first: what follows it must not be lost.
            tcp.write_all(&[&start[..], &request[..1]].concat()).await.unwrap();
            let _ = tcp.write_all(&request[1..]).await;
            let mut text = String::new();
            let _ = tcp.read_to_string(&mut text).await;
            text
        };
        let v2 =
            [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(), &[192, 0, 2, 7, 10, 0, 0, 1, 0, 9, 1, 187]].concat();
        for header in [b"PROXY TCP4 192.0.2.7 10.0.0.1 9 443\r\n".to_vec(), v2] {
            let text = ask(header).await;
            assert!(text.contains("x-forwarded-for: 192.0.2.7\n"), "{text}");
        }
        assert!(ask(b"PROXY UNKNOWN\r\n".to_vec()).await.contains("x-forwarded-for: 127.0.0.1\n"));
        assert_eq!(ask(b"PROXY TCP4 192.0.2.7\r\n".to_vec()).await, "");
        assert_eq!(ask(Vec::new()).await.contains("x-forwarded-for: 127.0.0.1\n"), optional);
        // Silence, or half a header, is no client.
        let mut tcp = TcpStream::connect(at).await.unwrap();
        tcp.write_all(b"PROXY TC").await.unwrap();
        assert!(tcp.read(&mut [0; 8]).await.map_or(true, |n| n == 0));
    }
}

/// A ClientHello as the library writes it, with the version and length that a test gives it.
fn hello(version: Option<[u8; 2]>, more: usize) -> Vec<u8> {
    let config = client_config(None, ServerAuth::None, &["http/1.1"], &TlsOptions::default()).unwrap();
    let name = rustls::pki_types::ServerName::try_from("edge.test").unwrap();
    let mut client = rustls::ClientConnection::new(config, name).unwrap();
    let mut record = Vec::new();
    client.write_tls(&mut record).unwrap();
    let mut message = record.split_off(5);
    if let Some(version) = version {
        message[4..6].copy_from_slice(&version);
    }
    if more > 0 {
        // One more extension, of a kind that nobody knows; it must not follow a pre-shared key, and there is none.
        let session = usize::from(message[38]);
        let suites = usize::from(u16::from_be_bytes([message[39 + session], message[40 + session]]));
        let at = 41 + session + suites + 2;
        let length = usize::from(u16::from_be_bytes([message[at], message[at + 1]])) + 4 + more;
        message[at..at + 2].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        message.splice(at + 2..at + 2, {
            let head = [&[0xfa, 0xfb][..], &u16::try_from(more).unwrap().to_be_bytes()].concat();
            head.into_iter().chain(std::iter::repeat_n(0, more))
        });
        let size = u32::try_from(message.len() - 4).unwrap().to_be_bytes();
        message[1..4].copy_from_slice(&size[1..]);
    }
    message
        .chunks(16 * 1024)
        .flat_map(|part| [&[22, 3, 1][..], &u16::try_from(part.len()).unwrap().to_be_bytes(), part].concat())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hellos_that_the_library_would_take_and_must_not_are_refused() {
    let office = Office::new();
    let server = office.leaf("server", "ca", "DNS:edge.test", 3);
    let looked_at = free_port();
    let listener = gateway(looked_at, simple(), &office.path("log"));
    let at = free_port();
    let mut plain = gateway(at, simple(), &office.path("log"));
    plain.name = "0.0.0.0_444".into();
    plain.inspectors = Default::default();
    plain.default_chain = plain.chains.first().cloned();
    let _running = start(config(vec![listener, plain], vec![(cluster("app"), None)]), office.secrets(&server));
    for (what, bytes, taken, alert) in [
        ("as it is", hello(None, 0), true, 0),
        ("TLS 1.0 as the old version, which says nothing", hello(Some([3, 1]), 0), true, 0),
        ("SSL 3.0", hello(Some([3, 0]), 0), false, 70),
        ("SSL 2.0", hello(Some([2, 0]), 0), false, 70),
        ("long", hello(None, 14_000), true, 0),
        ("too long", hello(None, 17_000), false, 47),
    ] {
        for (at, inspected) in [(looked_at, true), (at, false)] {
            let mut tcp = TcpStream::connect(at).await.unwrap();
            // It may be refused before all of it is written.
            let _ = tcp.write_all(&bytes).await;
            let mut head = [0; 7];
            let read = tcp.read_exact(&mut head).await.is_ok();
            assert_eq!(read && head[0] == 22 && head[5] == 2, taken, "{what} {inspected}");
            if !taken && !inspected && alert == 70 {
                assert_eq!((read, head[0], head[6]), (true, 21, alert), "{what}");
            }
        }
    }
}

/// Offers for TLS 1.3 what only certificates may be signed with (RFC 8446 §4.2.3).
#[derive(Debug)]
struct OldSignatures;

impl rustls::client::danger::ServerCertVerifier for OldSignatures {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::RSA_PKCS1_SHA256]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_hello_before_the_alert_accepts_nobody() {
    let office = Office::new();
    let server = office.leaf("server", "ca", "DNS:edge.test", 3);
    let at = free_port();
    let listener = gateway(at, simple(), &office.path("log"));
    let _running = start(config(vec![listener], vec![(cluster("app"), None)]), office.secrets(&server));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().dangerous();
    let client = builder.with_custom_certificate_verifier(Arc::new(OldSignatures)).with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from("edge.test").unwrap();
    let tcp = TcpStream::connect(at).await.unwrap();
    let ended = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, tcp).await;
    let words = ended.map(|_| ()).unwrap_err().to_string();
    assert!(words.contains("HandshakeFailure"), "{words}");
}
