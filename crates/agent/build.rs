//! Generates the server of SPIFFE's Workload API, as far as X.509 goes. Its messages are written by hand, in
//! `src/workload_api/wire.rs`.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let method = |name: &str, route: &str, answer: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type("crate::workload_api::wire::Empty")
            .output_type(format!("crate::workload_api::wire::{answer}"))
            .codec_path("tonic_prost::ProstCodec")
            .server_streaming()
            .build()
    };
    let api = Service::builder()
        .package("")
        .name("SpiffeWorkloadAPI")
        .method(method("fetch_x509_svid", "FetchX509SVID", "X509Svids"))
        .method(method("fetch_x509_bundles", "FetchX509Bundles", "X509Bundles"));
    Builder::new().build_client(false).build_transport(false).compile(&[api.build()]);
}
