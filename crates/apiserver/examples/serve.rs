//! The API server alone, in the foreground: `cargo run -p carrick-apiserver --example serve -- DIR PORT`.
//!
//! Nothing of the mesh runs; for trying kubectl and for looking at the storage.

use carrick_apiserver::{ApiOptions, ApiServer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(port)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve DIR PORT".into());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = ApiServer::start(ApiOptions::new(folder, port.parse()?)).await?;
        println!("export KUBECONFIG={}", server.kubeconfig().display());
        tokio::signal::ctrl_c().await?;
        server.drain(std::time::Duration::from_secs(5)).await;
        Ok(())
    })
}
