//! The options that say which etcd the embedded API's objects are in; their names are kube-apiserver's.
//!
//! Invariant: without `--etcd-servers` there is no etcd, and the others may not be given.

use std::{path::PathBuf, time::Duration};

use carrick_apiserver::storage::etcd::{EtcdOptions, Server};
use clap::Args;

use crate::output::Format;

/// What every command about the embedded API's storage takes.
#[derive(Debug, Clone, Args)]
pub struct StorageFlags {
    #[command(flatten)]
    pub etcd: EtcdFlags,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    pub output: Format,
}

/// Which etcd.
#[derive(Debug, Clone, Default, Args)]
pub struct EtcdFlags {
    /// Keep the API's objects in this etcd instead of the data folder: endpoints of one cluster, http://HOST:PORT or
    /// https://HOST:PORT. Several servers may share it.
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    etcd_servers: Vec<Server>,
    /// Whom to believe about an https endpoint (PEM).
    #[arg(long, requires = "etcd_servers", value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// Our certificate for etcd (PEM), if it asks for one; read anew for each connection.
    #[arg(long, requires = "etcd_keyfile", requires = "etcd_servers", value_name = "FILE")]
    etcd_certfile: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "etcd_certfile", value_name = "FILE")]
    etcd_keyfile: Option<PathBuf>,
    /// What all keys in etcd begin with.
    #[arg(long, requires = "etcd_servers", default_value = "/registry", value_name = "PREFIX")]
    etcd_prefix: String,
    /// How often etcd's history is forgotten, and how old it is then at least; 0s leaves that to others.
    #[arg(long, requires = "etcd_servers", default_value = "5m", value_parser = crate::duration::parse, value_name = "DURATION")]
    etcd_compaction_interval: Duration,
}

impl EtcdFlags {
    /// The etcd, if one was named.
    pub fn resolve(self) -> Option<EtcdOptions> {
        if self.etcd_servers.is_empty() {
            return None;
        }
        let mut options = EtcdOptions::new(self.etcd_servers);
        options.ca_file = self.etcd_cafile;
        options.cert_file = self.etcd_certfile;
        options.key_file = self.etcd_keyfile;
        options.prefix = self.etcd_prefix;
        options.compact_every = self.etcd_compaction_interval;
        Some(options)
    }
}
