//! Services and endpoints, followed from the API into rules and names.
//!
//! Invariant: nothing is written from half a list: both kinds must have been listed once. A change is written within a few milliseconds, many
//! changes at once are written once, and what did not change is not written at all.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;

use carrick_capture::nft::{self, Table};
use carrick_capture::services::{ServiceTable, ruleset};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::entries::{Entries, follow_entries};
use super::{empty_table, hosts_file};
use crate::cluster::{self, ServiceView};
use crate::dns::table::{self, DnsHost, DnsTable};
use crate::options::CLUSTER_DOMAIN;
use crate::state::write_atomic;
use crate::{HostOptions, PodError};

/// What more may come within this time is waited for.
const QUIET: Duration = Duration::from_millis(5);
/// After a failed write.
const AGAIN: Duration = Duration::from_secs(1);

/// Follows for ever.
pub(crate) async fn follow(options: &HostOptions, client: &Client) {
    let changed = Notify::new();
    let (services, services_writer) = store::<Service>();
    let (slices, slices_writer) = store::<EndpointSlice>();
    let entries = Entries::default();
    tokio::join!(
        follow_entries(client, &entries, &changed),
        list_and_watch(client, services_writer, &changed),
        list_and_watch(client, slices_writer, &changed),
        write(options, services, slices, &entries, &changed),
    );
}

async fn list_and_watch<K>(client: &Client, mut writer: Writer<K>, changed: &Notify)
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Send
        + Sync
        + serde::de::DeserializeOwned
        + 'static,
{
    let api: Api<K> = Api::all(client.clone());
    let mut events = Box::pin(watcher(api, watcher::Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                writer.apply_watcher_event(&event);
                changed.notify_one();
            }
            Err(error) => tracing::debug!(%error, "watch interrupted"),
        }
    }
}

/// What has been written.
#[derive(Default)]
struct Written {
    rules: Option<ServiceTable>,
    dns: Option<DnsTable>,
    names: Option<Vec<(Ipv4Addr, String)>>,
}

async fn write(
    options: &HostOptions,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    entries: &Entries,
    changed: &Notify,
) -> Infallible {
    // Stores are ready with the end of their first list; they cannot be dropped before, being owned next door.
    let _ = tokio::join!(services.wait_until_ready(), slices.wait_until_ready());
    entries.listed().await;
    let mut written = Written::default();
    loop {
        let (services, slices) = (services.state(), slices.state());
        let views =
            cluster::view(services.iter().map(AsRef::as_ref), slices.iter().map(AsRef::as_ref), options.api_address);
        match bring_up_to_date(options, &views, cluster::hosts(&entries.all()), &mut written).await {
            Ok(()) => changed.notified().await,
            Err(error) => {
                tracing::error!(%error, "service rules or names not written");
                sleep(AGAIN).await;
            }
        }
        sleep(QUIET).await;
    }
}

async fn bring_up_to_date(
    options: &HostOptions,
    views: &[ServiceView],
    hosts: BTreeMap<String, Vec<DnsHost>>,
    written: &mut Written,
) -> Result<(), PodError> {
    let mut rules = empty_table(options)?;
    rules.ports = cluster::ports(views);
    rules.node_ports = cluster::node_ports(views);
    if written.rules.as_ref() != Some(&rules) {
        let (name, text) = (rules.table.clone(), ruleset(&rules));
        let apply = move || nft::transaction(Table { family: "ip", name: &name }, &text);
        tokio::task::spawn_blocking(apply).await.map_err(|error| PodError::Request(error.to_string()))??;
        written.rules = Some(rules);
    }
    let dns = DnsTable { hosts, ..cluster::dns(views) };
    if written.dns.as_ref() != Some(&dns) {
        let path = table::path(&options.data_dir);
        let text = serde_json::to_vec(&dns).map_err(std::io::Error::other);
        text.and_then(|text| write_atomic(&path, &text, 0o644))
            .map_err(PodError::io(format!("write {}", path.display())))?;
        written.dns = Some(dns);
    }
    let Some(path) = &options.hosts_file else { return Ok(()) };
    let names: Vec<(Ipv4Addr, String)> = views
        .iter()
        .flat_map(|view| {
            let name = format!("{}.svc.{CLUSTER_DOMAIN}", view.key());
            view.addresses().into_iter().map(move |ip| (ip, name.clone()))
        })
        .collect();
    if written.names.as_ref() != Some(&names) {
        hosts_file::write(path, &names).map_err(PodError::io(format!("write {}", path.display())))?;
        written.names = Some(names);
    }
    Ok(())
}
