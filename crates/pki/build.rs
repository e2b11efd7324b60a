//! Generates client and server of the authority's two gRPC services: Istio's, and the one by which roots are exchanged.
//! Their messages are written by hand, beside what they mean.

use tonic_build::manual::{Builder, Method, Service};

const CODEC: &str = "tonic_prost::ProstCodec";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let create = Method::builder()
        .name("create_certificate")
        .route_name("CreateCertificate")
        .comment("Signs for the proven caller; extensions and metadata of the request say who that is.")
        .input_type("crate::ca_service::IstioCertificateRequest")
        .output_type("crate::ca_service::IstioCertificateResponse")
        .codec_path(CODEC)
        .build();
    let certificates = Service::builder().package("istio.v1.auth").name("IstioCertificateService").method(create);
    let follow = Method::builder()
        .name("follow")
        .route_name("Follow")
        .comment("Takes the reports of the proven caller and gives orders, until either side ends.")
        .input_type("crate::trust_service::Report")
        .output_type("crate::trust_service::Order")
        .codec_path(CODEC)
        .client_streaming()
        .server_streaming()
        .build();
    let trust = Service::builder().package("carrick.ca.v1").name("Trust").method(follow);
    Builder::new().build_transport(false).compile(&[certificates.build(), trust.build()]);
}
