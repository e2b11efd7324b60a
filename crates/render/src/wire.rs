//! Small words of Envoy's messages: packing, filters, durations, wrappers, addresses, configuration sources, and messages with maps.
//!
//! Invariant: byte-stable. The generated types hold maps with a random order, so a map with more than one entry is written with
//! the types of this file instead; a map with one entry is stable as it is.

use std::{collections::BTreeMap, net::IpAddr};

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{
                Address, AggregatedConfigSource, ApiConfigSource, ApiVersion, CidrRange, ConfigSource, GrpcService,
                Pipe, SocketAddress, TransportSocket, TypedExtensionConfig, address::Address as Choice,
                api_config_source::ApiType, config_source::ConfigSourceSpecifier, grpc_service,
                socket_address::PortSpecifier, transport_socket,
            },
            listener::v3::{Filter, filter},
        },
        extensions::filters::network::http_connection_manager::v3::{HttpFilter, http_filter},
    },
    google::protobuf::{Any, BoolValue, Duration, UInt32Value, UInt64Value},
};
use prost::{Message, Name};

/// The static cluster of the agent's secret service.
pub const SDS_CLUSTER: &str = "sds-grpc";

/// A message with its type.
pub fn any<T: Name>(message: &T) -> Any {
    Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

/// A message of [`stable`] under the type it stands for.
pub fn any_as(type_name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{type_name}"), value: message.encode_to_vec() }
}

/// An HTTP filter under its name.
pub fn http_filter(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..HttpFilter::default()
    }
}

/// A network filter under its name.
pub fn network_filter(name: &str, config: Any) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(config)) }
}

pub fn millis(ms: u64) -> Option<Duration> {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    let nanos = i32::try_from((ms % 1000) * 1_000_000).unwrap_or(0);
    Some(Duration { seconds, nanos })
}

pub fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub fn long(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

pub fn flag(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

pub fn socket_address(host: &str, port: u16) -> SocketAddress {
    SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(u32::from(port))),
        ..SocketAddress::default()
    }
}

pub fn address(host: &str, port: u16) -> Option<Address> {
    Some(Address { address: Some(Choice::SocketAddress(socket_address(host, port))) })
}

/// A path of a Unix domain socket.
pub fn pipe(path: &str) -> Option<Address> {
    Some(Address { address: Some(Choice::Pipe(Pipe { path: path.to_owned(), ..Pipe::default() })) })
}

/// Where an endpoint is.
pub fn endpoint(at: &carrick_mesh::model::Address) -> Option<Address> {
    use carrick_mesh::model::Address as At;
    match at {
        At::Ip(ip, port) => address(&host(*ip), *port),
        At::Name(name, port) => address(name, *port),
        At::Unix(path) => pipe(path),
    }
}

/// Every address of a family.
pub fn everything(v6: bool) -> CidrRange {
    CidrRange { address_prefix: wildcard(v6).to_owned(), prefix_len: number(0) }
}

/// The unspecified address of a family.
pub fn wildcard(v6: bool) -> &'static str {
    if v6 { "::" } else { "0.0.0.0" }
}

pub fn host(ip: IpAddr) -> String {
    ip.to_string()
}

/// From the same stream this resource came by.
pub fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        initial_fetch_timeout: millis(0),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    })
}

/// From the agent beside the proxy, which holds the keys. `wait` (milliseconds, 0: for ever) is how long Envoy keeps
/// what uses the secret from taking effect.
pub fn agent_sds(wait: u64) -> Option<ConfigSource> {
    let target = grpc_service::EnvoyGrpc { cluster_name: SDS_CLUSTER.to_owned(), ..Default::default() };
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        initial_fetch_timeout: millis(wait),
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
            api_type: ApiType::Grpc.into(),
            transport_api_version: ApiVersion::V3.into(),
            set_node_on_first_message_only: true,
            grpc_services: vec![GrpcService {
                target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)),
                ..GrpcService::default()
            }],
            ..ApiConfigSource::default()
        })),
        ..ConfigSource::default()
    })
}

pub fn transport_socket(name: &str, config: Any) -> Option<TransportSocket> {
    Some(TransportSocket {
        name: name.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(config)),
    })
}

pub fn extension(name: &str, config: Any) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(config) }
}

/// Messages with maps, wire-compatible with Envoy's, in a stable order.
pub mod stable {
    use super::{Address, BTreeMap, Message, UInt32Value};

    /// `google.protobuf.Struct`.
    #[derive(Clone, PartialEq, Message)]
    pub struct Struct {
        #[prost(btree_map = "string, message", tag = "1")]
        pub fields: BTreeMap<String, Value>,
    }

    /// `google.protobuf.Value`, without its null.
    #[derive(Clone, PartialEq, Message)]
    pub struct Value {
        #[prost(oneof = "Kind", tags = "2, 3, 4, 5, 6")]
        pub kind: Option<Kind>,
    }

    /// What a value is.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        #[prost(double, tag = "2")]
        Number(f64),
        #[prost(string, tag = "3")]
        Text(String),
        #[prost(bool, tag = "4")]
        Flag(bool),
        #[prost(message, tag = "5")]
        Struct(Struct),
        #[prost(message, tag = "6")]
        List(List),
    }

    /// `google.protobuf.ListValue`.
    #[derive(Clone, PartialEq, Message)]
    pub struct List {
        #[prost(message, repeated, tag = "1")]
        pub values: Vec<Value>,
    }

    impl From<Kind> for Value {
        fn from(kind: Kind) -> Self {
            Self { kind: Some(kind) }
        }
    }

    impl From<&str> for Value {
        fn from(text: &str) -> Self {
            Kind::Text(text.to_owned()).into()
        }
    }

    impl<const N: usize> From<[(&str, Value); N]> for Struct {
        fn from(fields: [(&str, Value); N]) -> Self {
            Self { fields: fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect() }
        }
    }

    /// `envoy.config.core.v3.Metadata`.
    #[derive(Clone, PartialEq, Message)]
    pub struct Metadata {
        #[prost(btree_map = "string, message", tag = "1")]
        pub filter_metadata: BTreeMap<String, Struct>,
    }

    /// The virtual hosts of `envoy.config.route.v3.RouteConfiguration`, as bytes, to be appended to the rest of the message.
    #[derive(Clone, PartialEq, Message)]
    pub struct TableHosts {
        #[prost(bytes = "vec", repeated, tag = "2")]
        pub virtual_hosts: Vec<Vec<u8>>,
    }

    /// The routes of `envoy.config.route.v3.VirtualHost`, likewise.
    #[derive(Clone, PartialEq, Message)]
    pub struct HostRoutes {
        #[prost(bytes = "vec", repeated, tag = "3")]
        pub routes: Vec<Vec<u8>>,
    }

    /// The filters' settings of `envoy.config.route.v3.Route`, likewise.
    #[derive(Clone, PartialEq, Message)]
    pub struct PerFilter {
        #[prost(btree_map = "string, message", tag = "13")]
        pub typed_per_filter_config: BTreeMap<String, envoy_types::pb::google::protobuf::Any>,
    }

    /// The metadata and endpoints of `envoy.config.cluster.v3.Cluster`, to be appended to the rest of the message.
    #[derive(Clone, PartialEq, Message)]
    pub struct ClusterMetadata {
        #[prost(message, optional, tag = "33")]
        pub load_assignment: Option<ClusterLoadAssignment>,
        #[prost(message, optional, tag = "25")]
        pub metadata: Option<Metadata>,
    }

    /// `envoy.config.endpoint.v3.ClusterLoadAssignment`.
    #[derive(Clone, PartialEq, Message)]
    pub struct ClusterLoadAssignment {
        #[prost(string, tag = "1")]
        pub cluster_name: String,
        #[prost(message, repeated, tag = "2")]
        pub endpoints: Vec<LocalityLbEndpoints>,
    }

    /// `envoy.config.endpoint.v3.LocalityLbEndpoints`.
    #[derive(Clone, PartialEq, Message)]
    pub struct LocalityLbEndpoints {
        #[prost(message, optional, tag = "1")]
        pub locality: Option<envoy_types::pb::envoy::config::core::v3::Locality>,
        #[prost(message, repeated, tag = "2")]
        pub lb_endpoints: Vec<LbEndpoint>,
        #[prost(message, optional, tag = "3")]
        pub load_balancing_weight: Option<UInt32Value>,
        #[prost(uint32, tag = "5")]
        pub priority: u32,
    }

    /// `envoy.config.endpoint.v3.LbEndpoint`.
    #[derive(Clone, PartialEq, Message)]
    pub struct LbEndpoint {
        #[prost(message, optional, tag = "1")]
        pub endpoint: Option<Endpoint>,
        #[prost(int32, tag = "2")]
        pub health_status: i32,
        #[prost(message, optional, tag = "3")]
        pub metadata: Option<Metadata>,
        #[prost(message, optional, tag = "4")]
        pub load_balancing_weight: Option<UInt32Value>,
    }

    /// `envoy.config.endpoint.v3.Endpoint`.
    #[derive(Clone, PartialEq, Message)]
    pub struct Endpoint {
        #[prost(message, optional, tag = "1")]
        pub address: Option<Address>,
        #[prost(string, tag = "3")]
        pub hostname: String,
    }

    /// `envoy.config.core.v3.SubstitutionFormatString` with a JSON format.
    #[derive(Clone, PartialEq, Message)]
    pub struct JsonFormat {
        #[prost(message, optional, tag = "2")]
        pub json_format: Option<Struct>,
        #[prost(bool, tag = "3")]
        pub omit_empty_values: bool,
        #[prost(message, repeated, tag = "6")]
        pub formatters: Vec<envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig>,
    }

    /// `xds.type.v3.TypedStruct`.
    #[derive(Clone, PartialEq, Message)]
    pub struct TypedStruct {
        #[prost(string, tag = "1")]
        pub type_url: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<Struct>,
    }

    /// `envoy.extensions.access_loggers.file.v3.FileAccessLog` with a JSON format.
    #[derive(Clone, PartialEq, Message)]
    pub struct JsonFileAccessLog {
        #[prost(string, tag = "1")]
        pub path: String,
        #[prost(message, optional, tag = "5")]
        pub log_format: Option<JsonFormat>,
    }
}
