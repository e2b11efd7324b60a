//! Puts the control plane together: what it is told, what it starts, how it ends.
//!
//! Invariant: sockets are bound and the server certificate is signed before anything runs; every task has an owner and
//! ends with [`Control::drain`] or when [`Control`] is dropped.

use crate::ads::Ads;
use crate::ca::Certificates;
use crate::caller::{Callers, KubeReviewer, Reviewers, TokenReviewer};
use crate::certificates;
use crate::connections::Connections;
use crate::debug::{self, Pages};
use crate::deliveries::Deliveries;
use crate::federation::{self, Federation, FederationOptions};
use crate::fold::{Debounce, Fold};
use crate::keys::{self, KeyOptions};
use crate::leader::while_leading;
use crate::machines::{self, Machines, Place};
use crate::mesh_settings::{CONFIG_MAP, MeshFile, MeshSettings};
use crate::metrics::ControlMetrics;
use crate::quarantine::Board;
use crate::remote;
use crate::renderer::Renderer;
use crate::resident::{
    Resident,
    bundle::{self, Webhooks},
    maps,
    reload::Reload,
};
use crate::roots::Published;
use crate::rotation::{Around, Driver, Population, RotationOptions, Trust};
use crate::seen::Seen;
use crate::server_cert::{ServerCert, ServerCertError};
use crate::source::{self, KINDS, Objects};
use crate::status::{Deploying, Statuses};
use crate::webhooks;
use carrick_api::istio::mesh_config::CaCertificate;
use carrick_api::{MeshConfig, MeshNetworks};
use carrick_base::{SpiffeId, TrustDomain};
use carrick_ledger::Ledger;
use carrick_mesh::networks::DEFAULT_CLUSTER;
use carrick_pki::ca::{Authority, Subject};
use carrick_pki::ca_service::CertificateServer;
use carrick_pki::tls::VerifiedPeer;
use carrick_pki::trust_service::{Order, TrustServer};
use carrick_runtime::admin::AdminServer;
use carrick_runtime::drain::{self, DrainTrigger};
use carrick_runtime::metrics::Metrics;
use carrick_runtime::tasks::TaskSet;
use carrick_xds::delivery::DeliveryServer;
use carrick_xds::server::{ListenOptions, ads_service, serve_plain, serve_tls};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// Changes that wait for the fold; watches pause when there are more.
const EVENTS: usize = 4096;

/// What the control plane is told.
pub struct ControlOptions {
    /// Where objects come from.
    pub objects: Objects,
    /// Who says whose a token is.
    pub reviewer: Arc<dyn TokenReviewer>,
    /// Who signs certificates.
    pub authority: Arc<Authority>,
    /// Where certificates and revocations are written down; without one revocations last as long as this process.
    pub ledger: Option<Arc<Ledger>>,
    /// How its roots and signing set may change; `None` keeps them as they are.
    pub rotation: Option<RotationOptions>,
    /// The mesh's settings: trust domain, root namespace and the rest.
    pub mesh_config: MeshConfig,
    /// The file that `mesh_config` was read from, to be followed.
    pub mesh_file: Option<MeshFile>,
    /// The ConfigMap of the root namespace that lays settings over it, and is followed.
    pub mesh_map: String,
    /// Where xDS and the certificate service are; port 0 takes a free one.
    pub xds_addr: SocketAddr,
    /// Where xDS is in the clear, for gRPC libraries. They prove nothing, so they get no secrets.
    pub plain_xds: Option<SocketAddr>,
    /// Where metrics and debug pages are.
    pub debug_addr: SocketAddr,
    /// What this control plane is called in `proxy-status`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// More DNS names for the server certificate.
    pub server_names: Vec<String>,
    /// Addresses for the server certificate.
    pub server_ips: Vec<IpAddr>,
    /// Life of the server certificate.
    pub server_cert_ttl: Duration,
    /// What the cluster is called; other control planes know it by this name.
    pub cluster_id: String,
    /// Networks, and the gateways between them, as far as labels do not tell.
    pub mesh_networks: MeshNetworks,
    /// When changes are published.
    pub debounce: Debounce,
    /// How keys of token issuers are fetched. The mesh's `caCertificates` are among the roots anyway.
    pub keys: KeyOptions,
    /// How long a machine's WorkloadEntry stays after it was last connected.
    pub machine_grace: Duration,
    /// Other trust domains, and our roots for theirs.
    pub federation: FederationOptions,
    /// Whether this replica writes what only one may; without it, it always does.
    pub leading: Option<watch::Receiver<bool>>,
    /// What it does besides when it lives in a cluster.
    pub resident: Option<Resident>,
    /// Where metrics are registered.
    pub metrics: Metrics,
}

impl ControlOptions {
    /// Options for a Kubernetes API, with the usual ports and names.
    pub fn new(client: kube::Client, authority: Arc<Authority>, mesh_config: MeshConfig) -> Self {
        let reviewer = Arc::new(KubeReviewer::new(client.clone()));
        Self {
            objects: Objects::Kube(client),
            reviewer,
            authority,
            rotation: None,
            ledger: None,
            mesh_config,
            mesh_file: None,
            mesh_map: CONFIG_MAP.to_owned(),
            xds_addr: (Ipv4Addr::UNSPECIFIED, 15012).into(),
            plain_xds: None,
            debug_addr: (Ipv4Addr::LOCALHOST, 15014).into(),
            name: "carrick".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            server_names: Vec::new(),
            server_ips: Vec::new(),
            server_cert_ttl: Duration::from_secs(24 * 60 * 60),
            cluster_id: DEFAULT_CLUSTER.to_owned(),
            mesh_networks: MeshNetworks::default(),
            debounce: Debounce::default(),
            keys: KeyOptions::default(),
            machine_grace: machines::GRACE,
            federation: FederationOptions::default(),
            leading: None,
            resident: None,
            metrics: Metrics::new(),
        }
    }
}

/// The service account whose identity our bundle endpoint shows.
const ENDPOINT_ACCOUNT: &str = "istiod";

/// Why the control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The trust domain is not one.
    #[error("trust domain {0:?} cannot be used")]
    TrustDomain(String),
    /// No server certificate.
    #[error("server certificate: {0}")]
    Certificate(#[from] ServerCertError),
    /// No thread.
    #[error("cannot start the rendering thread: {0}")]
    Thread(std::io::Error),
}

/// A running control plane.
pub struct Control {
    xds_addr: SocketAddr,
    plain_xds_addr: Option<SocketAddr>,
    debug_addr: SocketAddr,
    bundle_addrs: Vec<SocketAddr>,
    synced: watch::Receiver<bool>,
    renderer: Arc<Renderer>,
    thread: Option<JoinHandle<()>>,
    trigger: Option<DrainTrigger>,
    tasks: Option<TaskSet>,
}

impl Control {
    /// Binds, signs, starts.
    ///
    /// # Errors
    /// See [`ControlError`]; nothing is left running then.
    pub async fn start(options: ControlOptions) -> Result<Self, ControlError> {
        let bind = |address: SocketAddr| async move {
            TcpListener::bind(address).await.map_err(|source| ControlError::Bind { address, source })
        };
        let xds = bind(options.xds_addr).await?;
        let plain = match options.plain_xds {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let debug = bind(options.debug_addr).await?;
        let mut bundles = Vec::new();
        for endpoint in &options.federation.endpoints {
            bundles.push((bind(endpoint.address).await?, endpoint.profile.clone()));
        }
        let bundle_addrs = bundles.iter().filter_map(|(listener, _)| listener.local_addr().ok()).collect();
        let asked = match &options.resident {
            Some(resident) => Some(bind(resident.webhooks).await?),
            None => None,
        };
        let local = |listener: &TcpListener, address| {
            listener.local_addr().map_err(|source| ControlError::Bind { address, source })
        };
        let (xds_addr, debug_addr) = (local(&xds, options.xds_addr)?, local(&debug, options.debug_addr)?);
        let plain_xds_addr = plain.as_ref().and_then(|listener| listener.local_addr().ok());
        let quarantine = Board::new(options.ledger.clone(), options.authority.clone());
        let reviewers = Reviewers::default();
        let callers = Arc::new(callers(&options, reviewers.clone(), quarantine.clone())?);
        let domains = std::iter::once(&callers.trust_domain).chain(&callers.aliases).map(ToString::to_string).collect();
        let certificate = ServerCert::issue(
            options.authority.clone(),
            server_subject(&options),
            domains,
            options.server_cert_ttl.min(options.authority.options().max_ttl),
            quarantine.refused(),
        )?;

        let metrics = ControlMetrics::new(&options.metrics);
        let expiry = options.authority.not_after().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        metrics.root_expiry.set(i64::try_from(expiry).unwrap_or(i64::MAX));
        let (seen, connections, renderer) =
            (Arc::new(Seen::default()), Connections::new(), Renderer::new(metrics.clone()));
        let (synced_tx, synced) = watch::channel(false);
        let (trigger, drain) = drain::channel();
        let mut tasks = TaskSet::new();

        let (client, events) = match options.objects {
            Objects::Told(events) => (None, events),
            Objects::Kube(client) => {
                let (sender, events) = mpsc::channel(EVENTS);
                for info in &KINDS {
                    let watch = source::kube::watch(client.clone(), info, sender.clone());
                    tasks.spawn(format!("watch {}", info.plural), watch);
                }
                (Some(client), events)
            }
        };
        let mut key_options = options.keys;
        let of_web = |certificate: &&CaCertificate| certificate.trust_domains.is_empty();
        key_options.roots.extend(options.mesh_config.ca_certificates.iter().filter(of_web).map(|c| c.pem.clone()));
        let (keys, fetching) = keys::task(&key_options, renderer.clone(), drain.clone());
        tasks.spawn("keys", fetching);
        let fetched_keys = keys.follow();
        let root = Arc::from(options.mesh_config.root_namespace.as_str());
        let (remotes, following) = remote::task(root, client.clone(), reviewers, drain.clone());
        tasks.spawn("other clusters", following);
        let cluster_id: Arc<str> = options.cluster_id.into();
        let mesh = MeshSettings::new(options.mesh_config.clone(), options.mesh_file, options.mesh_map);
        let mesh_config = mesh.shared();
        renderer.bar(quarantine.barrier(&options.mesh_config.root_namespace));
        let counting = certificates::count(options.ledger.clone(), quarantine.clone(), metrics.clone(), drain.clone());
        tasks.spawn("certificates", counting);
        let own = std::iter::once(&callers.trust_domain).chain(&callers.aliases).cloned().collect();
        let federation = Federation::new(own, mesh.shared(), &options.federation, quarantine.clone(), renderer.clone());
        let federated = federation.shown();
        tasks.spawn("federation", federation.run(synced.clone(), drain.clone()));
        let id = SpiffeId::istio(&callers.trust_domain, &options.mesh_config.root_namespace, ENDPOINT_ACCOUNT);
        let bundle_certificates =
            Arc::new(federation::Certificates::new(options.authority.clone(), id, &options.federation));
        for (listener, profile) in bundles {
            let serving = federation::serve(listener, profile, bundle_certificates.clone(), drain.clone());
            tasks.spawn("bundle endpoint", serving);
        }
        let fold = Fold {
            keys,
            quarantine: quarantine.clone(),
            remotes,
            cluster_id: cluster_id.clone(),
            mesh_networks: options.mesh_networks,
            mesh,
            debounce: options.debounce,
            renderer: renderer.clone(),
            seen: seen.clone(),
            metrics: metrics.clone(),
            synced: synced_tx,
        };
        tasks.spawn("fold", fold.run(events, drain.clone()));
        let known = options.rotation.as_ref().map(|rotation| rotation.slots.known()).unwrap_or_default();
        let population = Population::new(known, SystemTime::now());
        let order = Order { roots: options.authority.roots().to_pem(), ..Order::default() };
        let (published, following) = watch::channel(Published { epoch: 0, order });
        tasks.spawn("server certificate", certificate.clone().rotate(following.clone(), drain.clone()));
        let mut idle = None;
        if let Some(rotation) = options.rotation {
            let around = Around {
                authority: options.authority.clone(),
                population: population.clone(),
                published,
                certificate: certificate.clone(),
                quarantine: quarantine.clone(),
                connections: connections.clone(),
                client: client.clone(),
                namespace: options.mesh_config.root_namespace.clone(),
                metrics: metrics.clone(),
            };
            tasks.spawn("roots", Driver::new(rotation, around).run(drain.clone()));
        } else if let (Some(client), true) = (client.clone(), options.resident.is_some()) {
            let reload = Reload {
                client,
                namespace: options.mesh_config.root_namespace.clone(),
                authority: options.authority.clone(),
                published,
                quarantine: quarantine.clone(),
                metrics: metrics.clone(),
            };
            tasks.spawn("signing set", reload.run(drain.clone()));
        } else {
            idle = Some(published);
        }

        if let Some(client) = client.clone() {
            let deploying = options.resident.as_ref().and_then(|resident| {
                let (revision, leads) = (resident.revision.clone(), options.leading.clone());
                Some(Deploying { workloads: resident.workloads.clone()?, revision, leads })
            });
            let statuses = Statuses {
                client,
                seen: seen.clone(),
                connections: connections.clone(),
                renderer: renderer.clone(),
                deploying,
            };
            let deploys = match &options.resident {
                Some(resident) => resident.deploys.clone(),
                None => options.leading.clone(),
            };
            let (deploying, making) = (statuses.clone(), drain.clone());
            let work = move || deploying.clone().run_gateways(making.clone());
            tasks.spawn("gateways", while_leading(deploys, drain.clone(), work));
            let writing = drain.clone();
            let work = move || statuses.clone().run(writing.clone());
            tasks.spawn("statuses", while_leading(options.leading.clone(), drain.clone(), work));
        }

        if let (Some(resident), Some(listener), Some(client)) = (options.resident, asked, client.clone()) {
            let tls = certificate.clone();
            let answers = webhooks::serve(listener, Arc::new(move || tls.config()), resident.inject, drain.clone());
            tasks.spawn("webhooks", answers);
            for which in [Webhooks::Mutating, Webhooks::Validating] {
                let (client, revision) = (client.clone(), resident.revision.clone());
                let keeping = bundle::keep(client, which, revision, following.clone(), drain.clone());
                tasks.spawn(format!("{which:?} webhooks"), keeping);
            }
            let (roots, writing) = (following.clone(), drain.clone());
            let work = move || maps::furnish(client.clone(), roots.clone(), writing.clone());
            tasks.spawn("roots in namespaces", while_leading(options.leading, drain.clone(), work));
        }

        let deliveries = Deliveries::new(client.clone(), renderer.clone(), callers.clone());
        tasks.spawn("deliveries", deliveries.clone().run(drain.clone()));
        let machines = client.clone().map(|client| {
            let place = Place {
                trust_domain: callers.trust_domain.clone(),
                cluster: cluster_id.to_string(),
                domain: options.mesh_config.domain_suffix.clone(),
                root_namespace: options.mesh_config.root_namespace.clone(),
            };
            let (machines, cleaning) =
                Machines::task(client, &options.name, place, options.machine_grace, drain.clone());
            tasks.spawn("machines", cleaning);
            machines
        });
        let turns = carrick_xds::server::turns();
        let ads = Ads {
            turns: turns.clone(),
            machines: machines.clone(),
            callers: callers.clone(),
            connections: connections.clone(),
            renderer: renderer.clone(),
            seen: seen.clone(),
            metrics: metrics.clone(),
            quarantine: quarantine.clone(),
            deliveries: Some(deliveries.clone()),
            unproven: false,
        };
        if let Some(listener) = plain {
            let ads = Ads {
                turns,
                machines: None,
                callers: callers.clone(),
                connections: connections.clone(),
                renderer: renderer.clone(),
                seen: seen.clone(),
                metrics: metrics.clone(),
                quarantine: quarantine.clone(),
                deliveries: None,
                unproven: true,
            };
            let routes = tonic::service::Routes::new(ads_service(Arc::new(ads)));
            tasks.spawn("plain xds", serve_plain(listener, routes, ListenOptions::default(), drain.clone()));
        }
        let trust = Trust {
            callers: callers.clone(),
            authority: options.authority.clone(),
            population,
            published: following,
            _idle: idle,
        };
        let certificates =
            Certificates { callers, authority: options.authority, metrics, quarantine: quarantine.clone(), machines };
        let routes = tonic::service::Routes::new(ads_service(Arc::new(ads)))
            .add_service(CertificateServer::new(certificates))
            .add_service(TrustServer::new(trust))
            .add_service(DeliveryServer::from_arc(deliveries));
        let server = serve_tls(
            xds,
            routes,
            Arc::new(move || certificate.config()),
            Arc::new(|connection| Ok(VerifiedPeer::of_client(connection).and_then(|peer| peer.spiffe().cloned()))),
            ListenOptions::default(),
            drain.clone(),
        );
        tasks.spawn("xds", server);

        let pages = Pages {
            name: options.name,
            version: options.version,
            cluster_id,
            metrics: options.metrics,
            seen,
            connections,
            renderer: renderer.clone(),
            client,
            synced: synced.clone(),
            keys: fetched_keys,
            mesh_config,
            started: SystemTime::now(),
            ledger: options.ledger,
            quarantine,
            federated,
        };
        let admin = AdminServer::from_listener(debug, debug::router(Arc::new(pages)))
            .map_err(|source| ControlError::Bind { address: debug_addr, source })?;
        tasks.spawn("debug", admin.run(drain));

        let thread = {
            let renderer = renderer.clone();
            std::thread::Builder::new()
                .name("render".to_owned())
                .spawn(move || renderer.run())
                .map_err(ControlError::Thread)?
        };
        Ok(Self {
            xds_addr,
            plain_xds_addr,
            debug_addr,
            bundle_addrs,
            synced,
            renderer,
            thread: Some(thread),
            trigger: Some(trigger),
            tasks: Some(tasks),
        })
    }

    /// Where xDS and the certificate service are.
    pub fn xds_addr(&self) -> SocketAddr {
        self.xds_addr
    }

    /// Where xDS for gRPC libraries is, if anywhere.
    pub fn plain_xds_addr(&self) -> Option<SocketAddr> {
        self.plain_xds_addr
    }

    /// Where our bundle is served, in the order of the options.
    pub fn bundle_addrs(&self) -> &[SocketAddr] {
        &self.bundle_addrs
    }

    /// Where metrics and debug pages are.
    pub fn debug_addr(&self) -> SocketAddr {
        self.debug_addr
    }

    /// Whether all objects were listed once.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.clone()
    }

    /// Waits until all objects were listed once. Cancel safe.
    pub async fn ready(&self) {
        let mut synced = self.synced.clone();
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Ends everything: streams are told to go elsewhere, at most until the deadline.
    pub async fn drain(mut self, deadline: Duration) {
        if let Some(trigger) = self.trigger.take() {
            trigger.drain(deadline).await;
        }
        if let Some(tasks) = self.tasks.take() {
            tasks.abort().await;
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.renderer.stop();
        if let Some(thread) = self.thread.take() {
            // It stops after the push it is at; nobody needs to wait for that.
            drop(thread);
        }
    }
}

fn callers(options: &ControlOptions, others: Reviewers, quarantine: Arc<Board>) -> Result<Callers, ControlError> {
    let parse =
        |text: &str| TrustDomain::new(&text.replace('@', ".")).map_err(|_| ControlError::TrustDomain(text.to_owned()));
    Ok(Callers {
        reviewer: options.reviewer.clone(),
        others,
        cluster: options.cluster_id.as_str().into(),
        trust_domain: parse(&options.mesh_config.trust_domain)?,
        aliases: options.mesh_config.trust_domain_aliases.iter().map(|a| parse(a)).collect::<Result<_, _>>()?,
        quarantine,
    })
}

/// The names of Istio's control plane (spec §19.9), so that its agents verify ours.
fn server_subject(options: &ControlOptions) -> Subject {
    let (root, domain) = (&options.mesh_config.root_namespace, &options.mesh_config.domain_suffix);
    let mut dns: Vec<String> = ["istiod", "istiod-remote", "istio-pilot"]
        .iter()
        .flat_map(|name| [format!("{name}.{root}.svc"), format!("{name}.{root}.svc.{domain}")])
        .collect();
    if root != "istio-system" {
        dns.push("istiod.istio-system.svc".to_owned());
    }
    dns.push("localhost".to_owned());
    dns.extend(options.server_names.iter().cloned());
    dns.sort_unstable();
    dns.dedup();
    Subject::Server { dns, ips: options.server_ips.clone() }
}
