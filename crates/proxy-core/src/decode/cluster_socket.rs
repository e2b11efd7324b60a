//! Transport sockets of clusters that wrap another one.
//!
//! Invariant: at most one wrapper; what it wraps is raw or TLS.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;

use super::bad::{At, Bad, decode, given, only, type_name};
use super::tls;
use crate::model::cluster::{ProxyProtocol, TransportSocket};

const PROXY_PROTOCOL: &str = "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport";

/// The socket of a cluster.
pub fn upstream(socket: &core::TransportSocket) -> Result<Arc<TransportSocket>, Bad> {
    match &socket.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) if type_name(any) == PROXY_PROTOCOL => {
            decode(any).and_then(|wrapper| wrapped(&wrapper)).at("typed_config").map(Arc::new)
        }
        _ => tls::upstream_socket(socket),
    }
}

fn wrapped(value: &ProxyProtocolUpstreamTransport) -> Result<TransportSocket, Bad> {
    // Without a client's address the header says so in either case.
    only!(value, ProxyProtocolUpstreamTransport { config, transport_socket, allow_unspecified_address } refuse { tlv_as_pool_key });
    let inner = value.transport_socket.as_ref().ok_or_else(|| Bad::field("transport_socket", "missing"))?;
    Ok(TransportSocket::ProxyProtocol {
        version: given("config", &value.config, proxy_protocol)?.unwrap_or(ProxyProtocol::V1),
        inner: tls::upstream_socket(inner).at("transport_socket")?,
    })
}

/// `ProxyProtocolConfig`.
pub fn proxy_protocol(value: &core::ProxyProtocolConfig) -> Result<ProxyProtocol, Bad> {
    only!(value, core::ProxyProtocolConfig { version } refuse { pass_through_tlvs, added_tlvs });
    match core::proxy_protocol_config::Version::try_from(value.version) {
        Ok(core::proxy_protocol_config::Version::V1) => Ok(ProxyProtocol::V1),
        Ok(core::proxy_protocol_config::Version::V2) => Ok(ProxyProtocol::V2),
        Err(_) => Err(Bad::field("version", "unknown value")),
    }
}
