//! Servers that logs and traces are sent to.
//!
//! Invariant: only clusters of ours; what would change what is sent is refused.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;

use super::bad::{At, Bad, each, only};
use super::basic::duration;
use super::{ext_authz, jwt};
use crate::model::collector::Collector;

/// An answer must come within, where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A gRPC service.
pub fn grpc(value: &core::GrpcService, path: &str) -> Result<Collector, Bad> {
    only!(value, core::GrpcService { timeout, initial_metadata, target_specifier } refuse { retry_policy });
    let envoy = match &value.target_specifier {
        Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy)) => envoy,
        _ => return Err(Bad::unsupported("target_specifier")),
    };
    only!(envoy, core::grpc_service::EnvoyGrpc { cluster_name, authority, max_receive_message_length, skip_envoy_headers } refuse {
        retry_policy,
    });
    if envoy.cluster_name.is_empty() {
        return Err(Bad::field("envoy_grpc.cluster_name", "empty"));
    }
    let authority = if envoy.authority.is_empty() { &envoy.cluster_name } else { &envoy.authority };
    Ok(Collector {
        cluster: envoy.cluster_name.as_str().into(),
        authority: authority.as_str().into(),
        path: path.into(),
        grpc: true,
        metadata: each("initial_metadata", &value.initial_metadata, ext_authz::literal)?,
        timeout: value.timeout.as_ref().map_or(Ok(TIMEOUT), duration).at("timeout")?,
        flush: Duration::from_secs(1),
        bytes: 16 * 1024,
        counters: "".into(),
    })
}

/// An HTTP service.
pub fn http(value: &core::HttpService) -> Result<Collector, Bad> {
    only!(value, core::HttpService { http_uri, request_headers_to_add } refuse { formatters });
    let uri = value.http_uri.as_ref().ok_or_else(|| Bad::field("http_uri", "missing"))?;
    let (cluster, authority, path, timeout) = jwt::http_uri(uri).at("http_uri")?;
    let headers = each("request_headers_to_add", &value.request_headers_to_add, |option| {
        let header = option.header.as_ref().ok_or_else(|| Bad::field("header", "missing"))?;
        ext_authz::literal(header).at("header")
    })?;
    Ok(Collector {
        cluster,
        authority,
        path,
        grpc: false,
        metadata: headers,
        timeout,
        flush: Duration::from_secs(1),
        bytes: 16 * 1024,
        counters: "".into(),
    })
}
