//! Key sets from a real HTTPS server.

use super::fetch::Fetcher;
use super::{KeyOptions, Keys, Wanted, task};
use crate::metrics::ControlMetrics;
use crate::renderer::Renderer;
use carrick_mesh::KeySource;
use carrick_pki::ca::{Authority, CaOptions, Subject};
use carrick_pki::tls::{ClientAuth, TlsOptions, server_config};
use carrick_runtime::drain;
use carrick_runtime::metrics::Metrics;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const KEYS: &str = r#"{"keys":[{"kty":"EC"}]}"#;

/// A server that counts what it was asked for, and its roots.
struct Server {
    address: SocketAddr,
    roots: String,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let (config, roots) = certificate();
        let acceptor = TlsAcceptor::from(config);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let count = count.clone();
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    count.fetch_add(1, Ordering::SeqCst);
                    async move { Ok::<_, std::convert::Infallible>(answer(request.uri().path(), address).await) }
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        });
        Self { address, roots, asked, task }
    }

    fn uri(&self, path: &str) -> KeySource {
        KeySource::Uri(format!("https://localhost:{}{path}", self.address.port()).into())
    }

    fn options(&self) -> KeyOptions {
        KeyOptions {
            roots: vec![self.roots.clone()],
            retry: Duration::from_millis(20),
            max_bytes: 1000,
            ..KeyOptions::default()
        }
    }
}

async fn answer(path: &str, address: SocketAddr) -> Response<Full<Bytes>> {
    let body = match path {
        "/jwks" => KEYS.to_owned(),
        "/issuer/.well-known/openid-configuration" => {
            format!("{{\"jwks_uri\": \"https://localhost:{}/jwks\"}}", address.port())
        }
        "/large" => format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(2000)),
        "/no-keys" => "{}".to_owned(),
        "/moved" | "/downgrade" | "/loop" => {
            let place = match path {
                "/moved" => "/jwks".to_owned(),
                "/loop" => "/loop".to_owned(),
                _ => format!("http://localhost:{}/jwks", address.port()),
            };
            return Response::builder()
                .status(302)
                .header("location", place)
                .body(Full::default())
                .expect("a response");
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(30)).await;
            KEYS.to_owned()
        }
        _ => return Response::builder().status(404).body(Full::default()).expect("a response"),
    };
    Response::new(body.into())
}

fn fetcher(options: &KeyOptions) -> Fetcher {
    Fetcher::new(options, Renderer::new(ControlMetrics::new(&Metrics::new())))
}

#[tokio::test]
async fn fetches_by_url_and_by_discovery_and_refuses_the_rest() {
    let server = Server::start().await;
    let fetcher = fetcher(&server.options());
    let by_discovery =
        |slash: &str| KeySource::Issuer(format!("https://localhost:{}/issuer{slash}", server.address.port()).into());
    for good in [server.uri("/jwks"), server.uri("/moved"), by_discovery(""), by_discovery("/")] {
        assert_eq!(fetcher.keys(&good).await.as_deref(), Ok(KEYS), "{good:?}");
    }
    let plain = KeySource::Uri(format!("http://localhost:{}/jwks", server.address.port()).into());
    let bad = [
        (server.uri("/large"), "limit"),
        (server.uri("/no-keys"), "no key set"),
        (server.uri("/missing"), "404"),
        (server.uri("/loop"), "redirects"),
        (server.uri("/downgrade"), "not secured"),
        (plain, ""),
        (KeySource::Uri("ftp://localhost/".into()), "neither"),
        (KeySource::Uri("https://169.254.169.254/keys".into()), "not called"),
        (KeySource::Uri("http://[::ffff:169.254.169.254]/keys".into()), "not called"),
    ];
    for (source, reason) in bad {
        let error = fetcher.keys(&source).await.expect_err("refused");
        assert!(error.contains(reason), "{source:?}: {error}");
    }
    let stranger = KeyOptions { roots: Vec::new(), ..server.options() };
    let error = self::fetcher(&stranger).keys(&server.uri("/jwks")).await.expect_err("an unknown authority");
    assert!(error.contains("UnknownIssuer"), "{error}");
}

async fn until(keys: &mut Keys, what: impl Fn(&mut Keys) -> bool) {
    let wait = async {
        while !what(keys) {
            keys.changed().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time");
}

#[tokio::test]
async fn keys_outlive_their_server() {
    let server = Server::start().await;
    let options = KeyOptions { refresh: Duration::from_millis(50), ..server.options() };
    let (trigger, drain) = drain::channel();
    let (mut keys, run) = task(&options, Renderer::new(ControlMetrics::new(&Metrics::new())), drain);
    let running = tokio::spawn(run);
    let (good, missing, slow) = (server.uri("/jwks"), server.uri("/missing"), server.uri("/slow"));
    let limit = Duration::from_secs(5);
    keys.want(Wanted::from([(good.clone(), limit), (missing, limit), (slow, Duration::from_millis(100))]));
    assert!(keys.outstanding());
    until(&mut keys, |k| !k.outstanding()).await;
    assert_eq!(keys.now().keys().collect::<Vec<_>>(), [&good]);

    // Fetched again and again, and still there when nobody answers any more.
    let before = server.asked.load(Ordering::SeqCst);
    let again = async {
        while server.asked.load(Ordering::SeqCst) < before + 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.expect("refreshed");
    server.task.abort();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(keys.now().get(&good).map(|k| &**k), Some(KEYS));

    keys.want(Wanted::new());
    until(&mut keys, |k| k.now().is_empty()).await;
    trigger.drain(Duration::from_secs(1)).await;
    running.await.expect("ends");
}

/// A server configuration for `localhost`, and the root that signed it.
fn certificate() -> (Arc<rustls::ServerConfig>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let now = SystemTime::now();
    let authority = Authority::load_or_create(folder.path(), CaOptions::default(), now).expect("an authority");
    let subject = Subject::Server { dns: vec!["localhost".to_owned()], ips: Vec::new() };
    let identity = authority.issue(&subject, None, now).expect("a certificate");
    let config =
        server_config(&identity, ClientAuth::None, &[b"http/1.1"], &TlsOptions::default()).expect("a configuration");
    (config, authority.roots().to_pem())
}
