//! Admits proxies to xDS: proves who calls and compares it with what the node says (spec §20.1, §20.2).
//!
//! Invariant: a node gets the resources of its own namespace and service account only; everything else of its
//! description is taken as told.

use crate::caller::{Caller, Callers};
use crate::connections::{Connection, Connections, Follower};
use crate::deliveries::Deliveries;
use crate::machines::Machines;
use crate::metrics::ControlMetrics;
use crate::quarantine::{self, Board};
use crate::renderer::{Join, Renderer};
use crate::seen::Seen;
use carrick_base::SpiffeId;
use carrick_envoy_filter::Target;
use carrick_mesh::{
    Counting, FileCerts, Interception, ProxyKind, ProxyNode,
    view::gateway::{ClientCertHeader, Topology},
};
use carrick_xds::delivery;
use carrick_xds::node::{instance_ips, metadata_map, metadata_text};
use carrick_xds::server::{Hello, Opened, SessionStatus, Source};
use carrick_xds::{Node, NodeId, NodeIdError, NodeType, ResourceSet};
use envoy_types::pb::google::protobuf::{Struct, value::Kind};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::{Semaphore, watch};
use tonic::Status;
use tracing::info;

/// The source behind the aggregated discovery service.
pub(crate) struct Ads {
    /// Registers machines; `None` where there is no API to do it in.
    pub(crate) machines: Option<Arc<Machines>>,
    pub(crate) callers: Arc<Callers>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) renderer: Arc<Renderer>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) metrics: ControlMetrics,
    pub(crate) quarantine: Arc<Board>,
    /// Serves agents that keep files; nobody on a port without proof.
    pub(crate) deliveries: Option<Arc<Deliveries>>,
    /// Pushes wait for these.
    pub(crate) turns: Arc<Semaphore>,
    /// Served in the clear on loopback, to gRPC libraries alone: they say themselves who they are, and get nothing secret.
    pub(crate) unproven: bool,
}

impl Source for Ads {
    async fn open(&self, hello: Hello) -> Result<Opened, Status> {
        match self.admit(hello).await {
            Ok(opened) => Ok(opened),
            Err(status) => {
                self.metrics.refused.inc();
                info!(code = ?status.code(), reason = status.message(), "xDS stream refused");
                Err(status)
            }
        }
    }
}

impl Ads {
    async fn admit(&self, hello: Hello) -> Result<Opened, Status> {
        let id: NodeId = match hello.id {
            Some(id) => id,
            None => hello.node.id.parse().map_err(|error: NodeIdError| Status::invalid_argument(error.to_string()))?,
        };
        if !matches!(id.node_type, NodeType::Sidecar | NodeType::Router) {
            return Err(Status::unimplemented(format!("nodes of type {} are not served yet", id.node_type.as_str())));
        }
        let grpc = metadata_text(&hello.node, "GENERATOR") == Some("grpc");
        let caller = match (self.unproven, grpc) {
            (false, _) => self.callers.prove(&hello.peer, hello.bearer.as_ref()).await?,
            (true, true) => told(&id, &hello.node, &self.callers),
            (true, false) => return Err(Status::unauthenticated("this port is for gRPC libraries (GENERATOR: grpc)")),
        };
        check(&id, &hello.node, &caller)?;
        if metadata_text(&hello.node, "GENERATOR") == Some(quarantine::GENERATOR) {
            return Ok(self.quarantine.open(&id, &hello.node, caller.spiffe.to_string()));
        }
        if metadata_text(&hello.node, "GENERATOR") == Some(delivery::GENERATOR) {
            let none = || Status::unimplemented("files are not delivered on this port");
            return self.deliveries.as_ref().ok_or_else(none)?.open(&hello.node, &id.name, &caller);
        }
        let machine = match self.machines.as_ref().filter(|_| !grpc) {
            Some(machines) => machines.register(&id, &hello.node, &caller).await?.map(|key| (machines.clone(), key)),
            None => None,
        };
        let node = proxy_node(&id, &hello.node, &caller);
        let (sender, receiver) = watch::channel(ResourceSet::default());
        let text = |key: &str| metadata_text(&hello.node, key).unwrap_or_default().to_owned();
        let number = self.connections.add(Connection {
            id: 0,
            node: node.clone(),
            cluster: text("CLUSTER_ID"),
            version: text("ISTIO_VERSION"),
            identity: caller.spiffe,
            address: hello.peer.address,
            delta: hello.delta,
            secured: !self.unproven,
            connected: SystemTime::now(),
            sets: receiver.clone(),
            status: SessionStatus::default(),
            acks: VecDeque::new(),
        });
        // From here on the connection is in the table, and the follower takes it out again.
        if let Some((machines, key)) = &machine {
            machines.came(key, number);
        }
        let follower = Follower {
            id: number,
            connections: self.connections.clone(),
            renderer: self.renderer.clone(),
            seen: self.seen.clone(),
            metrics: self.metrics.clone(),
            machine,
        };
        self.metrics.connected.set(i64::try_from(self.connections.len()).unwrap_or(i64::MAX));
        info!(proxy = id.workload(), delta = hello.delta, "proxy connected");
        let target = target(&hello.node, &id);
        self.renderer.join(Join { id: number, node, target, grpc, sets: sender });
        Ok(Opened { sets: receiver, observer: Box::new(follower), turns: Some(self.turns.clone()) })
    }
}

/// Who an unproven caller says it is.
fn told(id: &NodeId, node: &Node, callers: &Callers) -> Caller {
    let service_account = metadata_text(node, "SERVICE_ACCOUNT").unwrap_or("default").to_owned();
    let spiffe = SpiffeId::istio(&callers.trust_domain, &id.namespace, &service_account);
    Caller { namespace: id.namespace.clone(), service_account, spiffe }
}

/// The verified identity must be that of the node's namespace and, when it names one, service account.
fn check(id: &NodeId, node: &Node, caller: &Caller) -> Result<(), Status> {
    let told = metadata_text(node, "NAMESPACE").unwrap_or(&id.namespace);
    if told != caller.namespace || id.namespace != caller.namespace {
        return Err(Status::permission_denied(format!(
            "{} may not connect as a node of namespace {told:?} (node id {id})",
            caller.spiffe
        )));
    }
    match metadata_text(node, "SERVICE_ACCOUNT") {
        Some(account) if account != caller.service_account => Err(Status::permission_denied(format!(
            "{} may not connect as a node of service account {account:?}",
            caller.spiffe
        ))),
        _ => Ok(()),
    }
}

/// How EnvoyFilters match a node.
fn target(node: &Node, id: &NodeId) -> Target {
    let text = |key: &str| metadata_text(node, key).unwrap_or_default();
    let fields = node.metadata.iter().flat_map(|m| m.fields.keys());
    Target {
        gateway: id.node_type == NodeType::Router,
        native: text("CARRICK_ENGINE") == "native",
        version: text("ISTIO_VERSION").into(),
        metadata: fields.filter_map(|k| Some((k.as_str().into(), metadata_text(node, k)?.into()))).collect(),
    }
}

fn proxy_node(id: &NodeId, node: &Node, caller: &Caller) -> ProxyNode {
    let files = |side: &str| {
        let file = |what: &str| metadata_text(node, &format!("TLS_{side}_{what}")).map(Arc::<str>::from);
        Some(FileCerts { chain: file("CERT_CHAIN")?, key: file("KEY")?, root: file("ROOT_CERT")? })
    };
    ProxyNode {
        id: Arc::from(node.id.as_str()),
        kind: if id.node_type == NodeType::Router { ProxyKind::Router } else { ProxyKind::Sidecar },
        name: Arc::from(id.name.as_str()),
        namespace: Arc::from(caller.namespace.as_str()),
        ips: instance_ips(node, id),
        labels: metadata_map(node, "LABELS").unwrap_or_default(),
        service_account: Arc::from(caller.service_account.as_str()),
        network: Arc::from(metadata_text(node, "NETWORK").unwrap_or_default()),
        dns_capture: metadata_text(node, "DNS_CAPTURE") == Some("true"),
        // Beside our own proxies somebody else resolves, unless they say that they do it themselves; Istio's agents always do.
        resolves: metadata_text(node, "DNS_CAPTURE") == Some("true")
            && (metadata_text(node, "CARRICK_ENGINE").is_none()
                || metadata_text(node, "CARRICK_NAMES") == Some("true")),
        interception: match metadata_text(node, "INTERCEPTION_MODE") {
            Some("TPROXY") => Interception::Tproxy,
            Some("NONE") => Interception::None,
            _ => Interception::Redirect,
        },
        server_certs: files("SERVER"),
        client_certs: files("CLIENT"),
        topology: topology(node),
        counting: match (metadata_text(node, "CARRICK_ENGINE"), metadata_text(node, "CARRICK_COUNTS")) {
            (Some("native"), _) => Counting::Engine,
            (_, Some("true")) => Counting::Agent,
            _ => Counting::Nobody,
        },
        // Kubernetes' labels and annotations in metadata are texts, and so is this.
        unprivileged: matches!(metadata_text(node, "UNPRIVILEGED_POD"), Some("true" | "1")),
        blind_reuse: metadata_text(node, "CARRICK_ENGINE") != Some("native"),
    }
}

/// `gatewayTopology` of the proxy's configuration, which the node tells as `PROXY_CONFIG` (spec §15, §25.3).
fn topology(node: &Node) -> Option<Topology> {
    fn field<'a>(from: &'a Struct, name: &str) -> Option<&'a Kind> {
        from.fields.get(name)?.kind.as_ref()
    }
    fn within<'a>(from: &'a Struct, name: &str) -> Option<&'a Struct> {
        match field(from, name)? {
            Kind::StructValue(inner) => Some(inner),
            _ => None,
        }
    }
    let found = within(within(node.metadata.as_ref()?, "PROXY_CONFIG")?, "gatewayTopology")?;
    let trusted_proxies = match field(found, "numTrustedProxies") {
        // At most 2^32 and no fraction, as the field's type has it.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Some(Kind::NumberValue(n)) if *n >= 0.0 && *n <= f64::from(u32::MAX) => *n as u32,
        _ => 0,
    };
    let client_cert = match field(found, "forwardClientCertDetails") {
        Some(Kind::StringValue(text)) => ClientCertHeader::named(text),
        _ => ClientCertHeader::SanitizeSet,
    };
    Some(Topology { trusted_proxies, client_cert, proxy_protocol: field(found, "proxyProtocol").is_some() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use carrick_base::TrustDomain;
    use carrick_xds::node::text;

    fn node(namespace: Option<&str>, account: Option<&str>) -> (NodeId, Node) {
        let id: NodeId = "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local".parse().expect("valid");
        let mut node = Node { id: id.to_string(), ..Default::default() };
        let fields = &mut node.metadata.get_or_insert_default().fields;
        fields.extend(namespace.map(|v| ("NAMESPACE".to_owned(), text(v))));
        fields.extend(account.map(|v| ("SERVICE_ACCOUNT".to_owned(), text(v))));
        (id, node)
    }

    #[test]
    fn the_node_must_be_what_its_identity_is() {
        let caller = |namespace: &str, account: &str| Caller {
            namespace: namespace.into(),
            service_account: account.into(),
            spiffe: SpiffeId::istio(&TrustDomain::default(), namespace, account),
        };
        for (namespace, account, caller, allowed) in [
            (None, None, caller("shop", "web"), true),
            (Some("shop"), Some("web"), caller("shop", "web"), true),
            (None, None, caller("bank", "web"), false),
            (Some("bank"), None, caller("bank", "web"), false),
            (Some("bank"), None, caller("shop", "web"), false),
            (Some("shop"), Some("other"), caller("shop", "web"), false),
        ] {
            let (id, node) = node(namespace, account);
            assert_eq!(check(&id, &node, &caller).is_ok(), allowed, "{namespace:?} {account:?} {caller:?}");
        }
    }
}
