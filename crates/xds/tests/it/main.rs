//! Tests of the xDS transport: sessions driven directly, random interleavings, gRPC on loopback, and a real Envoy.

mod converge;
mod delta;
mod envoy;
mod grpc;
mod sotw;

use carrick_xds::{Any, Resource, ResourceSet, TypeUrl};

/// A resource with a few bytes as its body.
fn resource(type_url: &TypeUrl, name: &str, body: u8) -> Resource {
    Resource::new(name, Any { type_url: type_url.as_str().to_owned(), value: vec![body] })
}

/// A set at a generation.
fn set(generation: u64, resources: &[(TypeUrl, &str, u8)]) -> ResourceSet {
    ResourceSet::from_resources(
        generation,
        format!("v/{generation}"),
        resources.iter().map(|(t, name, body)| (t.clone(), resource(t, name, *body))),
    )
}
