//! The SPIFFE Workload API (SPIFFE_Workload_API.md §3–6) beside secret discovery, on one Unix socket for applications that want their
//! identity themselves.
//!
//! Invariant: whoever is answered is in the agent's own network namespace, and is told the pod's identity and roots and nothing else:
//! no secret of a file or of the control plane. An application that was given an identity is given each next one; until there is one,
//! it waits. Tokens (JWT-SVIDs) are not issued and are refused as such.

mod callers;
mod wire;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use carrick_base::TrustDomain;
use carrick_pki::TrustBundle;
use carrick_proxy::Secrets;
use carrick_runtime::drain::Drain;
use carrick_xds::server::{ListenOptions, serve_unix_where};
use futures_util::Stream;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::names::{DEFAULT_SECRET, ROOT_SECRET};
use crate::sds::own_secret_service;
use crate::secrets::SecretStore;

use wire::{Empty, SpiffeWorkloadApi};
pub use wire::{SpiffeWorkloadApiServer, X509Bundles, X509Svid, X509Svids};

/// The header that every request must carry, so that a request that somebody was tricked into is none.
const HEADER: &str = "workload.spiffe.io";
/// Connections and streams at once: one application, or a few.
const LIMIT: usize = 256;

/// What is told, from the pod's secrets.
#[derive(Clone, Debug)]
pub struct WorkloadApi {
    secrets: watch::Receiver<Arc<Secrets>>,
    trust_domain: TrustDomain,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl WorkloadApi {
    /// Of `store`, whose roots are those of `trust_domain`.
    pub fn new(store: &SecretStore, trust_domain: TrustDomain) -> Self {
        Self { secrets: store.subscribe(), trust_domain }
    }

    /// What `tell` makes of the secrets, each time that it changes.
    fn answers<T>(
        &self,
        metadata: &MetadataMap,
        tell: impl Fn(&Self, &Secrets) -> Option<T> + Send + 'static,
    ) -> Result<Response<Answers<T>>, Status>
    where
        T: Clone + PartialEq + Send + 'static,
    {
        if metadata.get(HEADER).is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument(format!("the header {HEADER}: true is missing")));
        }
        let begin = (self.clone(), tell, None::<T>);
        let stream = futures_util::stream::unfold(begin, |(mut api, tell, last)| async move {
            loop {
                let secrets = Arc::clone(&api.secrets.borrow_and_update());
                let now = tell(&api, &secrets);
                if now.is_some() && now != last {
                    return now.clone().map(|told| (Ok(told), (api, tell, now)));
                }
                api.secrets.changed().await.ok()?;
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }

    fn svid(&self, secrets: &Secrets) -> Option<X509Svids> {
        let identity = secrets.identity(DEFAULT_SECRET)?;
        let roots = secrets.trust(ROOT_SECRET)?;
        let svid = X509Svid {
            spiffe_id: identity.spiffe.as_ref()?.to_string(),
            x509_svid: identity.chain.iter().flat_map(|der| der.to_vec()).collect(),
            x509_svid_key: identity.key.to_pkcs8_der()?,
            bundle: roots.roots().iter().flat_map(|der| der.to_vec()).collect(),
            hint: String::new(),
        };
        Some(X509Svids { svids: vec![svid], crl: roots.revocations_der(), federated_bundles: others(roots).collect() })
    }

    fn bundle(&self, secrets: &Secrets) -> Option<X509Bundles> {
        let roots = secrets.trust(ROOT_SECRET)?;
        let bundle = roots.roots().iter().flat_map(|der| der.to_vec()).collect();
        let own = (format!("spiffe://{}", self.trust_domain), bundle);
        let bundles = others(roots).chain([own]).collect();
        Some(X509Bundles { crl: roots.revocations_der(), bundles })
    }
}

/// The roots of the other trust domains, by SPIFFE ID of the domain.
fn others(roots: &TrustBundle) -> impl Iterator<Item = (String, Vec<u8>)> + '_ {
    let others = roots.domains().into_iter().flat_map(|domains| &domains.others);
    others.map(|(domain, bundle)| {
        (format!("spiffe://{domain}"), bundle.roots().iter().flat_map(|r| r.to_vec()).collect())
    })
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Answers<X509Svids>;
    type FetchX509BundlesStream = Answers<X509Bundles>;

    async fn fetch_x509_svid(&self, request: Request<Empty>) -> Result<Response<Answers<X509Svids>>, Status> {
        self.answers(request.metadata(), |api, secrets| api.svid(secrets))
    }

    async fn fetch_x509_bundles(&self, request: Request<Empty>) -> Result<Response<Answers<X509Bundles>>, Status> {
        self.answers(request.metadata(), |api, secrets| api.bundle(secrets))
    }
}

/// Listens on `path`, unless somebody else does: then `None`, and that one is left alone.
///
/// # Errors
/// The folder cannot be written.
pub fn bind(path: &Path) -> io::Result<Option<UnixListener>> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            warn!(path = %path.display(), "another answers on the Workload API's socket");
            return Ok(None);
        }
        // A predecessor's.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    // Who is let in is asked on each connection.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(Some(listener))
}

/// Serves the pod's applications until drained.
pub async fn serve(listener: UnixListener, store: Arc<SecretStore>, trust_domain: TrustDomain, drain: Drain) {
    let api = SpiffeWorkloadApiServer::new(WorkloadApi::new(&store, trust_domain));
    let routes = Routes::new(api).add_service(own_secret_service(store));
    let options = ListenOptions { max_connections: LIMIT, ..ListenOptions::default() };
    info!("the Workload API is served");
    serve_unix_where(listener, routes, options, drain, admit).await;
}

/// Whether the caller is in this network namespace, which is the pod.
fn admit(stream: &UnixStream) -> bool {
    let near = callers::is_near(stream).unwrap_or_else(|error| {
        warn!(%error, "where a caller of the Workload API is cannot be found out");
        false
    });
    if !near {
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        warn!(pid, "a process of another pod asked for this one's identity and was refused");
    }
    near
}
