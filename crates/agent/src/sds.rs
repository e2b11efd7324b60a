//! Hands the pod's secrets to Envoy: secret discovery, state of the world and delta, on a Unix socket (spec §6.5, §18.4).
//!
//! Invariant: only names of this pod are answered; a name that has no secret is left open, so that Envoy waits and
//! serves nothing with it; a rotated secret is pushed, an unchanged one is not. Who may connect is decided by the
//! socket's folder.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;

use carrick_base::TrustDomain;
use carrick_pki::TrustBundle;
use carrick_proxy::{Secret, Secrets};
use carrick_xds::TypeUrl;
use carrick_xds::resource::content_version;
use envoy_types::pb::envoy::config::core::v3::{DataSource, TypedExtensionConfig, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain as TrustDomainEntry;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use envoy_types::pb::google::protobuf::Any;
use futures_util::{Stream, StreamExt};
use prost::Message;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use crate::names::{DEFAULT_SECRET, ROOT_SECRET};
use crate::secrets::SecretStore;
use crate::secrets::held;

/// The type of the configuration of Envoy's validator of SPIFFE IDs.
const SPIFFE_VALIDATOR: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
/// Names one stream may ask for.
const MAX_NAMES: usize = 1024;

/// The service over `store`.
pub fn secret_service(store: Arc<SecretStore>) -> SecretDiscoveryServiceServer<SecretService> {
    SecretDiscoveryServiceServer::new(SecretService { store, own_only: false })
}

/// The same for applications: nothing but the pod's identity and roots, whatever is asked for.
pub fn own_secret_service(store: Arc<SecretStore>) -> SecretDiscoveryServiceServer<SecretService> {
    SecretDiscoveryServiceServer::new(SecretService { store, own_only: true })
}

/// Answers from one store.
#[derive(Debug)]
pub struct SecretService {
    store: Arc<SecretStore>,
    own_only: bool,
}

/// A secret as Envoy takes it. The key is in it.
pub(crate) fn to_envoy(name: &str, secret: &Secret) -> tls::Secret {
    let bytes = |text: String| DataSource {
        specifier: Some(Specifier::InlineBytes(text.into_bytes())),
        ..DataSource::default()
    };
    let r#type = match secret {
        Secret::Identity(identity) => tls::secret::Type::TlsCertificate(tls::TlsCertificate {
            certificate_chain: Some(bytes(identity.chain_pem())),
            private_key: Some(bytes(identity.key.to_pem())),
            ocsp_staple: identity.ocsp().map(|response| DataSource {
                specifier: Some(Specifier::InlineBytes(response.to_vec())),
                ..DataSource::default()
            }),
            ..tls::TlsCertificate::default()
        }),
        Secret::Trust(roots) if roots.domains().is_some() => {
            tls::secret::Type::ValidationContext(by_domain(roots, &bytes))
        }
        Secret::Trust(roots) => tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
            trusted_ca: (!roots.is_empty()).then(|| bytes(roots.to_pem())),
            crl: Some(roots.revocations_pem()).filter(|lists| !lists.is_empty()).map(bytes),
            only_verify_leaf_cert_crl: roots.lists_leaves_only(),
            ..tls::CertificateValidationContext::default()
        }),
    };
    tls::Secret { name: name.to_owned(), r#type: Some(r#type) }
}

/// Envoy's validator of SPIFFE IDs: each trust domain by its own roots. Lists count there by being among the roots.
fn by_domain(roots: &TrustBundle, bytes: &dyn Fn(String) -> DataSource) -> tls::CertificateValidationContext {
    let entry = |domain: &TrustDomain, bundle: &TrustBundle| TrustDomainEntry {
        name: domain.to_string(),
        trust_bundle: Some(bytes(match bundle.lists_leaves_only() {
            // That validator wants whole chains to be listed.
            true => bundle.to_pem(),
            false => bundle.to_pem_with_lists(),
        })),
        ..TrustDomainEntry::default()
    };
    let domains = roots.domains();
    let own = domains.iter().flat_map(|d| &d.own).map(|domain| entry(domain, roots));
    let is_foreign = |domain: &TrustDomain| domains.is_some_and(|d| !d.own.contains(domain));
    let others = domains.iter().flat_map(|d| &d.others).filter(|(domain, _)| is_foreign(domain));
    let others = others.map(|(domain, bundle)| entry(domain, bundle));
    let config = tls::SpiffeCertValidatorConfig { trust_domains: own.chain(others).collect(), ..Default::default() };
    let typed = Any { type_url: SPIFFE_VALIDATOR.to_owned(), value: config.encode_to_vec() };
    let extension =
        TypedExtensionConfig { name: "envoy.tls.cert_validator.spiffe".to_owned(), typed_config: Some(typed) };
    tls::CertificateValidationContext { custom_validator_config: Some(extension), ..Default::default() }
}

fn to_any(name: &str, secret: &Secret) -> Any {
    Any { type_url: TypeUrl::Secret.as_str().to_owned(), value: to_envoy(name, secret).encode_to_vec() }
}

/// What one stream asked for and was given; both protocols use it.
#[derive(Debug, Default)]
struct Subscriptions {
    names: BTreeSet<String>,
    /// Versions sent, by name.
    sent: BTreeMap<String, Arc<str>>,
    nonce: u64,
    /// Names beyond the pod's own are never answered.
    own_only: bool,
}

impl Subscriptions {
    fn add(&mut self, store: &SecretStore, names: impl IntoIterator<Item = String>) -> Result<(), Status> {
        for name in names {
            if self.own_only && name != DEFAULT_SECRET && name != ROOT_SECRET {
                warn!(secret = %name, "an application asks for a secret that is not its own");
                continue;
            }
            if self.names.len() >= MAX_NAMES {
                return Err(Status::resource_exhausted("too many secrets"));
            }
            if !SecretStore::is_local(&name) {
                warn!(secret = %name, "Envoy asks for a secret that is not provided here");
            }
            store.want([name.as_str()]);
            self.names.insert(name);
        }
        Ok(())
    }

    /// What the peer does not have yet.
    fn due(&mut self, secrets: &Secrets) -> Vec<(String, Arc<str>, Any)> {
        let mut due = Vec::new();
        for name in &self.names {
            let Some(secret) = secrets.by_name.get(name) else { continue };
            let any = to_any(name, secret);
            let version = content_version(&any);
            if self.sent.get(name) != Some(&version) {
                self.sent.insert(name.clone(), Arc::clone(&version));
                due.push((name.clone(), version, any));
            }
        }
        due
    }

    fn next_nonce(&mut self) -> String {
        self.nonce = self.nonce.wrapping_add(1);
        self.nonce.to_string()
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One stream: its requests, the secrets, and how the two become answers.
struct Conversation<Q> {
    requests: Streaming<Q>,
    secrets: watch::Receiver<Arc<Secrets>>,
    store: Arc<SecretStore>,
    subscriptions: Subscriptions,
    held: held::Stream,
}

/// How a protocol reads requests and writes answers.
trait Protocol: Send + 'static {
    type Answer: Send + 'static;
    /// The nonce that is answered, and whether it is accepted.
    fn answers(&self) -> (&str, bool);
    /// Takes a request over.
    fn read(self, subscriptions: &mut Subscriptions, store: &SecretStore) -> Result<(), Status>;
    /// The answer with what is due.
    fn answer(due: Vec<(String, Arc<str>, Any)>, nonce: String) -> Self::Answer;
}

impl Protocol for DiscoveryRequest {
    type Answer = DiscoveryResponse;

    fn answers(&self) -> (&str, bool) {
        (&self.response_nonce, self.error_detail.is_none())
    }

    fn read(self, subscriptions: &mut Subscriptions, store: &SecretStore) -> Result<(), Status> {
        if let Some(error) = self.error_detail {
            warn!(names = ?self.resource_names, error = %error.message, "Envoy refused a secret");
        }
        if !self.response_nonce.is_empty() && self.response_nonce != subscriptions.nonce.to_string() {
            return Ok(());
        }
        let names: BTreeSet<String> = self.resource_names.into_iter().collect();
        subscriptions.names.retain(|name| names.contains(name));
        subscriptions.sent.retain(|name, _| names.contains(name));
        subscriptions.add(store, names)
    }

    fn answer(due: Vec<(String, Arc<str>, Any)>, nonce: String) -> DiscoveryResponse {
        // With one secret a stream, as Envoy asks, the version of the response is that of the secret.
        let version_info = due.iter().map(|(_, version, _)| version.as_ref()).collect::<Vec<_>>().join("-");
        DiscoveryResponse {
            version_info,
            resources: due.into_iter().map(|(_, _, any)| any).collect(),
            type_url: TypeUrl::Secret.as_str().to_owned(),
            nonce,
            ..DiscoveryResponse::default()
        }
    }
}

impl Protocol for DeltaDiscoveryRequest {
    type Answer = DeltaDiscoveryResponse;

    fn answers(&self) -> (&str, bool) {
        (&self.response_nonce, self.error_detail.is_none())
    }

    fn read(self, subscriptions: &mut Subscriptions, store: &SecretStore) -> Result<(), Status> {
        if let Some(error) = self.error_detail {
            warn!(error = %error.message, "Envoy refused a secret");
        }
        for name in self.resource_names_unsubscribe {
            subscriptions.names.remove(&name);
            subscriptions.sent.remove(&name);
        }
        for (name, version) in self.initial_resource_versions {
            subscriptions.sent.insert(name, version.into());
        }
        for name in &self.resource_names_subscribe {
            // Asking again is asking to be sent it again.
            if subscriptions.names.contains(name) {
                subscriptions.sent.remove(name);
            }
        }
        subscriptions.add(store, self.resource_names_subscribe)
    }

    fn answer(due: Vec<(String, Arc<str>, Any)>, nonce: String) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            resources: due
                .into_iter()
                .map(|(name, version, any)| Resource {
                    name,
                    version: version.to_string(),
                    resource: Some(any),
                    ..Resource::default()
                })
                .collect(),
            type_url: TypeUrl::Secret.as_str().to_owned(),
            nonce,
            ..DeltaDiscoveryResponse::default()
        }
    }
}

fn converse<Q: Protocol>(service: &SecretService, requests: Streaming<Q>) -> Answers<Q::Answer> {
    let conversation = Conversation {
        requests,
        secrets: service.store.subscribe(),
        store: Arc::clone(&service.store),
        subscriptions: Subscriptions { own_only: service.own_only, ..Subscriptions::default() },
        held: held::Stream::new(Arc::clone(service.store.held())),
    };
    Box::pin(futures_util::stream::unfold(Some(conversation), |conversation| async move {
        let mut conversation = conversation?;
        match conversation.next().await {
            Some(Ok(answer)) => Some((Ok(answer), Some(conversation))),
            Some(Err(status)) => Some((Err(status), None)),
            None => None,
        }
    }))
}

impl<Q: Protocol> Conversation<Q> {
    async fn next(&mut self) -> Option<Result<Q::Answer, Status>> {
        loop {
            let secrets = Arc::clone(&self.secrets.borrow_and_update());
            let due = self.subscriptions.due(&secrets);
            if !due.is_empty() {
                let nonce = self.subscriptions.next_nonce();
                let sent = due.iter().filter_map(|(name, ..)| Some((name.clone(), secrets.by_name.get(name)?.clone())));
                self.held.sent(&nonce, sent.collect());
                debug!(names = ?due.iter().map(|(name, ..)| name).collect::<Vec<_>>(), "secrets sent");
                return Some(Ok(Q::answer(due, nonce)));
            }
            tokio::select! {
                request = self.requests.next() => match request? {
                    Ok(request) => {
                        let (nonce, accepted) = request.answers();
                        self.held.answered(nonce, accepted);
                        if let Err(status) = request.read(&mut self.subscriptions, &self.store) {
                            return Some(Err(status));
                        }
                        let names = &self.subscriptions.names;
                        self.held.retain(|name| names.contains(name));
                    }
                    Err(_) => return None,
                },
                changed = self.secrets.changed() => changed.ok()?,
            }
        }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for SecretService {
    type StreamSecretsStream = Answers<DiscoveryResponse>;
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Ok(Response::new(converse(self, request.into_inner())))
    }

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Ok(Response::new(converse(self, request.into_inner())))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let mut subscriptions = Subscriptions { own_only: self.own_only, ..Subscriptions::default() };
        request.into_inner().read(&mut subscriptions, &self.store)?;
        let secrets = self.store.subscribe().borrow().clone();
        Ok(Response::new(DiscoveryRequest::answer(subscriptions.due(&secrets), "0".to_owned())))
    }
}
