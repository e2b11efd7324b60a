//! Generates client and server of the gRPC service by which agents report deliveries. Its messages are written by hand, in
//! `src/delivery.rs`.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let report = Method::builder()
        .name("report")
        .route_name("Report")
        .comment("Takes them from the proven caller; extensions and metadata of the request say who that is.")
        .input_type("crate::delivery::ReportRequest")
        .output_type("crate::delivery::ReportResponse")
        .codec_path("tonic_prost::ProstCodec")
        .build();
    let deliveries = Service::builder().package("carrick.delivery.v1").name("Deliveries").method(report);
    Builder::new().build_transport(false).compile(&[deliveries.build()]);
}
