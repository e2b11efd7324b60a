//! Names of clusters, server names and SDS secrets, as Istio writes them (semantics §6).
//!
//! Invariant: two different things never get the same name.

use std::sync::Arc;

use carrick_base::Hostname;

/// The cluster that forwards to where the client wanted to go.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// The same, on the server side.
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// The cluster without endpoints.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// SDS: the workload's own certificate and key.
pub const SECRET_WORKLOAD: &str = "default";
/// SDS: the mesh's roots.
pub const SECRET_ROOTS: &str = "ROOTCA";
/// SDS: the operating system's roots.
pub const SECRET_SYSTEM_ROOTS: &str = "file-root:system";

/// `outbound|<port>|<subset>|<fqdn>`.
pub fn outbound_cluster(port: u16, subset: &str, host: &Hostname) -> Arc<str> {
    format!("outbound|{port}|{subset}|{host}").into()
}

/// `inbound|<target port>||`.
pub fn inbound_cluster(target: u16) -> Arc<str> {
    format!("inbound|{target}||").into()
}

/// `outbound_.<port>_.<subset>_.<fqdn>`: the server name of mesh TLS.
pub fn server_name(port: u16, subset: &str, host: &Hostname) -> Arc<str> {
    format!("outbound_.{port}_.{subset}_.{host}").into()
}

/// SDS: a certificate and key in files.
pub fn file_cert(certificate: &str, key: &str) -> Arc<str> {
    format!("file-cert:{certificate}~{key}").into()
}

/// SDS: roots in a file.
pub fn file_root(path: &str) -> Arc<str> {
    format!("file-root:{path}").into()
}

/// SDS: a secret of the cluster by what a rule calls it, which may be a full resource name.
pub fn cluster_secret(name: &str) -> Arc<str> {
    if name.contains("://") { name.into() } else { format!("kubernetes://{name}").into() }
}

/// SDS: the roots in a secret of the cluster.
pub fn cluster_roots(name: &str) -> Arc<str> {
    let name = cluster_secret(name);
    if name.ends_with(ROOTS_SUFFIX) { name } else { format!("{name}{ROOTS_SUFFIX}").into() }
}

/// What follows a secret's name when its roots are meant.
pub const ROOTS_SUFFIX: &str = "-cacert";

/// Server names of a filter chain: sorted, once each, none when any will do.
pub(crate) fn server_names<'a>(all: impl Iterator<Item = &'a str>) -> Vec<Arc<str>> {
    let mut out: Vec<Arc<str>> = all.map(|name| name.to_ascii_lowercase().into()).collect();
    if out.iter().any(|name| **name == *"*") {
        return Vec::new();
    }
    out.sort();
    out.dedup();
    out
}

/// The part of a redirect's path that stands for the rest of the request's path. No path that people write holds it.
pub const REST_OF_PATH: &str = "%PREFIX()%";

/// The host of a backend that is not there. Nobody can have it as a name (RFC 6761 §6.4).
pub const NOWHERE: &str = "backend-not-found.invalid";
