//! The agent against a certificate authority and an xDS server on loopback, and with Envoy as its engine.

mod consumers;
mod delivery;
mod envoy;
mod identity;
mod join;
mod lab;
mod library;
mod native;
mod outside;
mod sds;
mod workload_api;
