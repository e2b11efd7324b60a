//! One sidecar or gateway as it would run: its rendered resources, read by the native engine's own reader.
//!
//! Invariant: the runtime configuration is what a native proxy would run; a resource it refuses makes the question unanswerable, loudly.

use std::{cell::RefCell, collections::BTreeMap, net::IpAddr, rc::Rc, sync::Arc};

use carrick_mesh::{ProxyKind, ProxyNode, Snapshot, model::Workload, view::Views};
use carrick_proxy_core::{ConfigStore, RuntimeConfig, nack_text, store::type_url};
use carrick_render::{Cache, Rendered, Resources};
use envoy_types::pb::{
    envoy::config::{cluster::v3::Cluster, core::v3::Metadata, route::v3::RouteConfiguration},
    google::protobuf::value::Kind,
};
use prost::Message;

use crate::QuestionError;

pub(crate) struct Proxy {
    pub(crate) runtime: Arc<RuntimeConfig>,
    rendered: Rendered,
}

/// The proxies that questions about the same objects meet, each made once.
pub struct Proxies<'a> {
    pub(crate) snapshot: &'a Snapshot,
    made: RefCell<BTreeMap<Key, Result<Rc<Proxy>, QuestionError>>>,
}

/// Namespace, name, addresses, and whether it is a gateway.
type Key = (Box<str>, Box<str>, Vec<IpAddr>, bool);

impl<'a> Proxies<'a> {
    /// None made yet.
    #[must_use]
    pub fn new(snapshot: &'a Snapshot) -> Self {
        Self { snapshot, made: RefCell::default() }
    }

    /// The sidecar of a workload, or the gateway that it is.
    pub(crate) fn of(&self, workload: &Workload, kind: ProxyKind) -> Result<Rc<Proxy>, QuestionError> {
        let (namespace, name) = (&*workload.name.namespace, &*workload.name.name);
        let key = (namespace.into(), name.into(), workload.ips.to_vec(), kind == ProxyKind::Router);
        let make = || Proxy::of(self.snapshot, workload, kind).map(Rc::new);
        self.made.borrow_mut().entry(key).or_insert_with(make).clone()
    }
}

impl Proxy {
    fn of(snapshot: &Snapshot, workload: &Workload, kind: ProxyKind) -> Result<Self, QuestionError> {
        let node = ProxyNode {
            id: format!("sidecar~{}", workload.name).into(),
            kind,
            name: workload.name.name.clone(),
            namespace: workload.name.namespace.clone(),
            ips: workload.ips.clone(),
            ..ProxyNode::default()
        };
        let rendered = carrick_render::resources(&Views::new(snapshot.clone()).of(&node), &mut Cache::default());
        let mut store = ConfigStore::new();
        let mut apply = |kind: &str, all: &Resources| {
            let upserts = all.iter().map(|(name, r)| (name.clone(), r.body.clone())).collect();
            store.apply(kind, upserts, &[]).map_err(|rejections| QuestionError::Refused {
                proxy: workload.name.to_string(),
                reason: nack_text(&rejections),
            })
        };
        apply(type_url::CLUSTER, &rendered.clusters)?;
        apply(type_url::ENDPOINT, &rendered.endpoints)?;
        apply(type_url::LISTENER, &rendered.listeners)?;
        apply(type_url::ROUTE, &rendered.routes)?;
        Ok(Self { runtime: store.runtime(), rendered })
    }

    /// The object a cluster was made from, besides its service: a DestinationRule.
    pub(crate) fn rule_of(&self, cluster: &str) -> Option<String> {
        let resource = self.rendered.clusters.get(cluster)?;
        let cluster = Cluster::decode(&*resource.body.value).ok()?;
        object(cluster.metadata.as_ref()?)
    }

    /// The object a route was made from: a VirtualService.
    pub(crate) fn route_of(&self, host: &str, route: &str) -> Option<String> {
        self.rendered.routes.values().find_map(|resource| {
            let table = RouteConfiguration::decode(&*resource.body.value).ok()?;
            let host = table.virtual_hosts.iter().find(|h| h.name == host)?;
            let route = host.routes.iter().find(|r| r.name == route && r.metadata.is_some())?;
            object(route.metadata.as_ref()?)
        })
    }
}

/// `filter_metadata.istio.config`, an API path, as `Kind name.namespace`.
fn object(metadata: &Metadata) -> Option<String> {
    let Some(Kind::StringValue(path)) = &metadata.filter_metadata.get("istio")?.fields.get("config")?.kind else {
        return None;
    };
    let mut parts = path.rsplit('/');
    let (name, kind, namespace) = (parts.next()?, parts.next()?, parts.next()?);
    let kind: String = kind.split('-').map(capitalized).collect();
    Some(format!("{kind} {name}.{namespace}"))
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
