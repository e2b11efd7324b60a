//! Our own bundle endpoints: whoever asks gets our roots as a SPIFFE bundle, in either profile of SPIFFE Federation.
//!
//! Invariant: only roots are served, to everybody, whatever the path; the sequence number grows whenever they change, also across a
//! restart. By https_spiffe the certificate is one of our own authority, renewed at half of its life and when the authority changes; by
//! https_web it is that of two files, read anew for each connection, of which the last good pair counts.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use carrick_base::SpiffeId;
use carrick_pki::ca::texts;
use carrick_pki::spiffe_bundle::SpiffeBundle;
use carrick_pki::tls::{ClientAuth, TlsOptions, server_config};
use carrick_pki::{Authority, Identity, Subject, TrustBundle};
use carrick_runtime::drain::Drain;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, warn};
use zeroize::Zeroizing;

use super::FederationOptions;

/// Connections at once; more are closed.
const LIMIT: usize = 64;
/// How long a connection may take in all.
const PATIENCE: Duration = Duration::from_secs(10);
/// Life of the certificate of https_spiffe.
const LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// What was served last.
const FILE: &str = "bundle.json";

/// How an endpoint shows who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Profile {
    /// `https_spiffe`: by an identity of our own trust domain, that of the control plane.
    Spiffe,
    /// `https_web`: by a certificate (PEM, the chain) and its key, of an authority that others trust anyway.
    Web {
        /// The chain's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleEndpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it shows who it is.
    pub profile: Profile,
}

/// What was served last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Served {
    roots: Vec<String>,
    sequence: u64,
}

/// A configuration, when to make another, and what it was made of.
type Made = (Arc<ServerConfig>, SystemTime, (String, TrustBundle));

/// What all endpoints have in common.
pub(crate) struct Certificates {
    authority: Arc<Authority>,
    id: SpiffeId,
    path: Option<PathBuf>,
    refresh: Duration,
    served: Mutex<Served>,
    made: Mutex<Option<Made>>,
}

impl Certificates {
    pub(crate) fn new(authority: Arc<Authority>, id: SpiffeId, options: &FederationOptions) -> Self {
        let path = options.dir.as_ref().map(|dir| dir.join(FILE));
        let read = path.as_ref().and_then(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok());
        Self {
            authority,
            id,
            path,
            refresh: options.refresh,
            served: Mutex::new(read.unwrap_or_default()),
            made: Mutex::default(),
        }
    }

    /// Our bundle as it is now.
    fn bundle(&self) -> String {
        let roots = self.authority.roots();
        let fingerprints: Vec<String> = roots.fingerprints().into_iter().collect();
        let mut served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        if served.roots != fingerprints {
            // The time, so that it grows even where what was served last is lost.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            served.sequence = served.sequence.saturating_add(1).max(now);
            served.roots = fingerprints;
            let text = serde_json::to_vec(&*served).unwrap_or_default();
            if let Some(Err(error)) = self.path.as_ref().map(|path| texts::write(path, &text)) {
                error!(%error, "the bundle's sequence number is not kept");
            }
        }
        SpiffeBundle { roots, sequence: Some(served.sequence), refresh: Some(self.refresh) }.to_json()
    }

    /// The configuration of https_spiffe.
    fn own(&self) -> Result<Arc<ServerConfig>, String> {
        let now = SystemTime::now();
        let of = (self.authority.set().id().to_owned(), self.authority.roots());
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((config, renew, made_of)) = &*made
            && now < *renew
            && *made_of == of
        {
            return Ok(Arc::clone(config));
        }
        let ttl = LIFE.min(self.authority.options().max_ttl);
        let subject = Subject::Workload(self.id.clone());
        let identity = self.authority.issue(&subject, Some(ttl), now).map_err(|e| e.to_string())?;
        let config = configured(&identity)?;
        let life = identity.not_after.duration_since(now).unwrap_or_default();
        *made = Some((Arc::clone(&config), now.checked_add(life / 2).unwrap_or(now), of));
        Ok(config)
    }
}

fn configured(identity: &Identity) -> Result<Arc<ServerConfig>, String> {
    server_config(identity, ClientAuth::None, &[b"http/1.1"], &TlsOptions::default()).map_err(|e| e.to_string())
}

/// Serves until drained.
pub(crate) async fn serve(listener: TcpListener, profile: Profile, certificates: Arc<Certificates>, drain: Drain) {
    let mut open = JoinSet::new();
    let mut last: Option<Arc<ServerConfig>> = None;
    loop {
        let stream = tokio::select! {
            () = drain.graceful() => break,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    debug!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        if open.len() >= LIMIT {
            continue;
        }
        let made = match &profile {
            Profile::Spiffe => certificates.own(),
            Profile::Web { certificate, key } => of_files(certificate, key).await,
        };
        match made {
            Ok(config) => last = Some(config),
            Err(reason) => warn!(reason, "the bundle endpoint's certificate"),
        }
        if let Some(config) = last.clone() {
            let answering = answer(stream, config, Arc::clone(&certificates));
            open.spawn(async move { tokio::time::timeout(PATIENCE, answering).await });
        }
    }
    open.shutdown().await;
}

async fn of_files(certificate: &PathBuf, key: &PathBuf) -> Result<Arc<ServerConfig>, String> {
    let read = async |path: &PathBuf| tokio::fs::read(path).await.map_err(|e| format!("{}: {e}", path.display()));
    let (chain, key) = (read(certificate).await?, Zeroizing::new(read(key).await?));
    configured(&Identity::from_pem(&chain, &key).map_err(|e| e.to_string())?)
}

async fn answer(stream: TcpStream, config: Arc<ServerConfig>, certificates: Arc<Certificates>) {
    let stream = match TlsAcceptor::from(config).accept(stream).await {
        Ok(stream) => stream,
        Err(error) => return debug!(%error, "bundle endpoint"),
    };
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(&request, &certificates);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    let serving = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = serving.await {
        debug!(%error, "bundle endpoint");
    }
}

fn respond(request: &Request<Incoming>, certificates: &Certificates) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        return response;
    }
    *response.body_mut() = Full::from(certificates.bundle());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}
