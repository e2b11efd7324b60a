//! Tests of the rule texts against their golden files, and of the rules against a kernel: these need root and nft, and fail without.

mod check;
mod golden;
mod host_traffic;
mod service_traffic;
mod sidecar_traffic;
mod topology;
