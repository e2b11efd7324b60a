//! Cluster DNS, answered in each pod by its own runner: table, decision, sockets.

pub(crate) mod answer;
pub(crate) mod server;
pub(crate) mod table;
pub(crate) mod upstream;
