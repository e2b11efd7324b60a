//! A proxy that is none: one delta stream that asks for what a sidecar asks for, acknowledges everything at once and keeps nothing.
//!
//! Invariant: a response is acknowledged before it is told of; a stream that ends is told as such, never opened again.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, bail};
use carrick_xds::client::{Connector, open_channel};
use carrick_xds::node::text;
use carrick_xds::{Node, TypeUrl};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// The namespace all of them live in.
pub const NAMESPACE: &str = "sim";
/// The names of routes: one for each port that services have.
const ROUTES: [&str; 1] = ["8080"];
/// Largest response.
const LARGEST: usize = 64 << 20;

/// What all proxies are told by and count into.
#[derive(Debug, Default)]
pub struct Tally {
    /// Responses.
    pub responses: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
}

/// A response that was acknowledged.
#[derive(Debug)]
pub struct Acked {
    /// Whose; the proxy's number.
    pub proxy: u32,
    /// Of what.
    pub type_url: TypeUrl,
    /// Names of the resources in it, where there are few.
    pub names: Vec<String>,
    /// When.
    pub at: Instant,
}

/// Whose stream.
pub struct Proxy {
    /// Its number, which makes its name and address.
    pub number: u32,
    /// The control plane.
    pub connector: Connector,
    /// Who it is.
    pub token: Arc<str>,
    /// Where it counts.
    pub tally: Arc<Tally>,
    /// Who wants to know.
    pub acked: mpsc::UnboundedSender<Acked>,
}

impl Proxy {
    fn node(&self) -> Node {
        // 10.128.0.0/9: nobody's addresses.
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)).wrapping_add(self.number));
        let mut node = Node {
            id: format!("sidecar~{address}~sim-{}.{NAMESPACE}~{NAMESPACE}.svc.cluster.local", self.number),
            ..Default::default()
        };
        let fields = &mut node.metadata.get_or_insert_default().fields;
        for (key, value) in [("NAMESPACE", NAMESPACE), ("SERVICE_ACCOUNT", "default"), ("CARRICK_ENGINE", "native")] {
            fields.insert(key.to_owned(), text(value));
        }
        node
    }

    /// Runs until the stream ends, which is an error.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn run(self) -> Result<()> {
        let channel = open_channel(&self.connector).await?;
        let (requests, queue) = mpsc::channel(16);
        let ask = |type_url: TypeUrl, names: Vec<String>| DeltaDiscoveryRequest {
            type_url: type_url.as_str().to_owned(),
            resource_names_subscribe: names,
            ..Default::default()
        };
        let first = DeltaDiscoveryRequest { node: Some(self.node()), ..ask(TypeUrl::Cluster, Vec::new()) };
        for request in [first, ask(TypeUrl::Listener, Vec::new())] {
            requests.send(request).await?;
        }
        let mut call = tonic::Request::new(ReceiverStream::new(queue));
        call.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse()?);
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(LARGEST);
        let mut responses = client.delta_aggregated_resources(call).await?.into_inner();
        let mut asked_routes = false;
        while let Some(response) = responses.message().await? {
            let type_url = TypeUrl::parse(&response.type_url);
            let acknowledgement = DeltaDiscoveryRequest {
                type_url: response.type_url.clone(),
                response_nonce: response.nonce.clone(),
                ..Default::default()
            };
            requests.send(acknowledgement).await.context("the request stream was closed")?;
            let at = Instant::now();
            match type_url {
                TypeUrl::Cluster => {
                    let names = endpoints(&response);
                    if !names.is_empty() {
                        requests.send(ask(TypeUrl::Endpoint, names)).await?;
                    }
                }
                TypeUrl::Listener if !asked_routes => {
                    asked_routes = true;
                    requests.send(ask(TypeUrl::Route, ROUTES.map(str::to_owned).to_vec())).await?;
                }
                _ => {}
            }
            self.tally.responses.fetch_add(1, Ordering::Relaxed);
            self.tally.bytes.fetch_add(u64::try_from(response.encoded_len()).unwrap_or(u64::MAX), Ordering::Relaxed);
            let few = response.resources.iter().take(8).map(|resource| resource.name.clone());
            let _ = self.acked.send(Acked { proxy: self.number, type_url, names: few.collect(), at });
        }
        bail!("the server closed the stream of proxy {}", self.number)
    }
}

/// Clusters that get their endpoints by themselves.
fn endpoints(response: &DeltaDiscoveryResponse) -> Vec<String> {
    let names = response.resources.iter().map(|resource| &resource.name);
    names.filter(|name| name.starts_with("outbound|")).cloned().collect()
}
