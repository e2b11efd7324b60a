//! Names of the mesh on a machine: the table that the control plane tells, answered on loopback (spec §21).
//!
//! Invariant: a name that the table does not have is asked of the machine's own servers and passed on as it comes; without a table everything
//! is. Packets are brought here by the capture rules, those of the agent's own user excepted, so that a question never comes back.

mod answer;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use carrick_xds::name_table::NameTable;
use tokio::sync::watch;

pub use answer::Table;
pub use server::Server;

/// Where names are answered, and who is asked for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// Of UDP and TCP.
    pub address: SocketAddr,
    /// The machine's resolver configuration.
    pub resolv_conf: PathBuf,
}

/// The table as it is now; written by whoever follows the control plane.
#[derive(Debug, Clone)]
pub struct Names {
    table: Arc<watch::Sender<Arc<Table>>>,
    namespace: Arc<str>,
}

impl Names {
    /// An empty table, for a machine of this namespace.
    pub fn new(namespace: &str) -> Self {
        Self { table: Arc::new(watch::Sender::new(Arc::default())), namespace: namespace.into() }
    }

    /// Takes a new table over.
    pub fn set(&self, table: &NameTable) {
        self.table.send_replace(Arc::new(Table::of(table, &self.namespace)));
    }

    /// The newest table.
    pub fn current(&self) -> Arc<Table> {
        self.table.borrow().clone()
    }
}
