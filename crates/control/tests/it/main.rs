//! Tests of the control plane in one process: objects told, real TLS and gRPC on loopback, real proxies where it matters.

mod admission;
mod certificates;
mod cluster;
mod deliveries;
mod envoy;
mod federation;
mod fixture;
mod istio;
mod machines;
mod pushes;
mod quarantine;
mod remote;
mod resident;
mod roots;
mod storms;
mod token;
