//! `carrick demo`: whole scenarios on real processes, packets and certificates, one checked line a row.
//!
//! Invariant: a row passes only on what real traffic did (an exit code, a status, bytes on the wire); nothing
//! here is told by our own logs. The scenarios live in files of their own; `mesh` is what they drive.

mod authority;
pub mod banknext;
pub mod call;
mod cases;
pub mod certificates;
pub mod curl;
pub mod engines;
pub mod frozen;
pub mod gopay_partners;
pub mod grpc;
mod held;
mod hipster;
pub mod intuit_gateway;
pub mod issuer;
pub mod link;
pub mod load;
pub mod mesh;
pub mod observer;
mod ocsp;
pub mod product_stock;
mod quarantine;
mod renewals;
pub mod rows;
pub mod serve;
pub mod stage;
mod streams;
pub mod vm;
pub mod websocket;
pub mod wire;

use std::path::Path;

use anyhow::Result;
use clap::Subcommand;

/// Scenarios, and the small programs they run as workloads.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// A bank switches mutual TLS on and off by configuration, under load.
    Banknext(banknext::Options),
    /// Three services that ask one another: levels of mutual TLS, and tokens of end users.
    ProductStock(product_stock::Options),
    /// A shop with manifests of Istio's first API, and the four TLS modes of a client.
    Hipster(hipster::Options),
    /// TLS that ends at the workload's own sidecar, behind an API gateway in the mesh.
    IntuitGateway(intuit_gateway::Options),
    /// Partners that call in with their certificates, and are called out with ours.
    GopayPartners(gopay_partners::Options),
    /// An identity is revoked while it holds connections.
    Quarantine(quarantine::Options),
    /// Certificates that live for a minute in hundreds of sidecars, under load.
    Renewals(renewals::Options),
    /// Roots, issuers and the control plane itself change and go away under load.
    Authority(authority::Options),
    /// Every case file, with every pair of data planes.
    Cases(cases::Options),
    /// An HTTP service for examples: answers with its name, may call others first.
    Serve(serve::Options),
    /// Certificates for examples: an authority, servers and clients, good ones and bad ones, as files in a folder.
    Certificates(certificates::Options),
    /// An issuer of tokens for examples: serves its key set, and any token that is asked for.
    Issuer(issuer::Options),
    /// An open-loop HTTP load generator for examples: prints one JSON line of counts and latencies.
    Load(load::Options),
    /// One WebSocket for examples, kept open until standard input is closed: prints how many messages came back.
    Held(held::Options),
    /// Connections that are held open, for scenarios in which they are cut.
    #[command(hide = true)]
    Streams(streams::Options),
    /// curl on command: a line of JSON arguments in, a line of what came out.
    #[command(hide = true)]
    Curls,
}

/// Runs a demo command; 0 only when every row passed.
///
/// # Errors
/// When the scenario could not be run at all.
pub async fn run(command: Command, data_dir: &Path) -> Result<u8> {
    match command {
        Command::Banknext(options) => banknext::run(&options, data_dir).await,
        Command::ProductStock(options) => product_stock::run(&options, data_dir).await,
        Command::Issuer(options) => issuer::run(options).await,
        Command::Hipster(options) => hipster::run(&options, data_dir).await,
        Command::Certificates(options) => certificates::run(&options).map(|()| 0),
        Command::IntuitGateway(options) => intuit_gateway::run(&options, data_dir).await,
        Command::GopayPartners(options) => gopay_partners::run(&options, data_dir).await,
        Command::Quarantine(options) => quarantine::run(&options, data_dir).await,
        Command::Renewals(options) => renewals::run(&options, data_dir).await,
        Command::Authority(options) => authority::run(&options, data_dir).await,
        Command::Streams(options) => streams::run(options).await,
        Command::Cases(options) => cases::run(&options, data_dir).await,
        Command::Curls => tokio::task::spawn_blocking(curl::serve).await?,
        Command::Serve(options) => serve::run(options).await,
        Command::Load(options) => load::run(options).await,
        Command::Held(options) => held::run(options).await,
    }
}
