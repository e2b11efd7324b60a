//! Small values: durations, wrapped numbers, addresses, prefixes, fractions, metadata.
//!
//! Invariant: numbers are in range for the model's type or refused.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::r#type::v3 as kind;
use envoy_types::pb::google::protobuf as wkt;
use ipnet::IpNet;

use super::bad::{At, Bad, only};
use crate::model::cluster::TcpKeepalive;
use crate::model::metadata::{Metadata, Value};

/// A non-negative duration.
pub fn duration(value: &wkt::Duration) -> Result<Duration, Bad> {
    let seconds = u64::try_from(value.seconds).map_err(|_| Bad::new("negative duration"))?;
    let nanos = u32::try_from(value.nanos).ok().filter(|n| *n < 1_000_000_000);
    let nanos = nanos.ok_or_else(|| Bad::new("bad nanoseconds"))?;
    // The protocol's own bound, 10 000 years.
    if seconds > 315_576_000_000 {
        return Err(Bad::new("duration out of range"));
    }
    Ok(Duration::new(seconds, nanos))
}

/// A duration field: unset → `default`; zero → `None` (no limit).
pub fn limit(field: &str, value: &Option<wkt::Duration>, default: Option<Duration>) -> Result<Option<Duration>, Bad> {
    match value {
        None => Ok(default),
        Some(value) => duration(value).at(field).map(|d| (!d.is_zero()).then_some(d)),
    }
}

/// A duration field that must be positive: unset → `default`.
pub fn positive(field: &str, value: &Option<wkt::Duration>, default: Duration) -> Result<Duration, Bad> {
    match limit(field, value, Some(default))? {
        Some(duration) => Ok(duration),
        None => Err(Bad::field(field, "must be greater than zero")),
    }
}

/// A wrapped number.
#[must_use]
pub fn number(value: &Option<wkt::UInt32Value>) -> Option<u32> {
    value.as_ref().map(|v| v.value)
}

/// A wrapped truth value.
#[must_use]
pub fn truth(value: &Option<wkt::BoolValue>) -> Option<bool> {
    value.as_ref().map(|v| v.value)
}

/// A switch that can only be off here.
pub fn refuse_true(field: &str, value: &Option<wkt::BoolValue>) -> Result<(), Bad> {
    if truth(value) == Some(true) { Err(Bad::unsupported(field)) } else { Ok(()) }
}

/// A switch that can only be on here.
pub fn refuse_false(field: &str, value: &Option<wkt::BoolValue>) -> Result<(), Bad> {
    if truth(value) == Some(false) { Err(Bad::field(field, "cannot be switched off")) } else { Ok(()) }
}

/// A TCP port.
pub fn port(value: u32) -> Result<u16, Bad> {
    u16::try_from(value).map_err(|_| Bad::new(format_args!("port {value} out of range")))
}

/// An address in its forms.
pub enum Place {
    /// IP and port.
    Socket(SocketAddr),
    /// Host name and port.
    Name(String, u16),
    /// Unix socket.
    Pipe(String),
}

/// Any address.
pub fn place(address: &core::Address) -> Result<Place, Bad> {
    match &address.address {
        Some(core::address::Address::SocketAddress(socket)) => named(socket).at("socket_address"),
        Some(core::address::Address::Pipe(pipe)) => {
            if pipe.path.is_empty() {
                return Err(Bad::field("pipe.path", "empty"));
            }
            Ok(Place::Pipe(pipe.path.clone()))
        }
        Some(core::address::Address::EnvoyInternalAddress(_)) => Err(Bad::unsupported("envoy_internal_address")),
        None => Err(Bad::new("address missing")),
    }
}

fn named(socket: &core::SocketAddress) -> Result<Place, Bad> {
    only!(socket, core::SocketAddress { protocol, address, ipv4_compat, port_specifier } refuse { resolver_name, network_namespace_filepath });
    if socket.protocol != i32::from(core::socket_address::Protocol::Tcp) {
        return Err(Bad::field("protocol", "only TCP is supported"));
    }
    let port = match &socket.port_specifier {
        Some(core::socket_address::PortSpecifier::PortValue(value)) => port(*value).at("port_value")?,
        Some(core::socket_address::PortSpecifier::NamedPort(_)) => return Err(Bad::unsupported("named_port")),
        None => return Err(Bad::field("port_value", "missing")),
    };
    match socket.address.parse::<IpAddr>() {
        Ok(ip) => Ok(Place::Socket(SocketAddr::new(ip, port))),
        Err(_) if socket.address.is_empty() => Err(Bad::field("address", "empty")),
        Err(_) => Ok(Place::Name(socket.address.clone(), port)),
    }
}

/// An IP address and port.
pub fn socket(address: &core::Address) -> Result<SocketAddr, Bad> {
    match place(address)? {
        Place::Socket(address) => Ok(address),
        Place::Name(name, _) => Err(Bad::new(format_args!("`{name}` is not an IP address"))),
        Place::Pipe(_) => Err(Bad::unsupported("pipe")),
    }
}

/// An IP address and port from the inner message.
pub fn bare_socket(address: &core::SocketAddress) -> Result<SocketAddr, Bad> {
    match named(address)? {
        Place::Socket(address) => Ok(address),
        _ => Err(Bad::field("address", "not an IP address")),
    }
}

/// A prefix; host bits are cleared.
pub fn cidr(range: &core::CidrRange) -> Result<IpNet, Bad> {
    let ip: IpAddr = range.address_prefix.parse().map_err(|_| Bad::field("address_prefix", "not an IP address"))?;
    let len =
        u8::try_from(number(&range.prefix_len).unwrap_or(0)).map_err(|_| Bad::field("prefix_len", "out of range"))?;
    IpNet::new(ip, len).map(|net| net.trunc()).map_err(|_| Bad::field("prefix_len", "out of range"))
}

/// A fraction in parts per million.
pub fn fraction(value: &kind::FractionalPercent) -> Result<u32, Bad> {
    let scale = match kind::fractional_percent::DenominatorType::try_from(value.denominator) {
        Ok(kind::fractional_percent::DenominatorType::Hundred) => 10_000,
        Ok(kind::fractional_percent::DenominatorType::TenThousand) => 100,
        Ok(kind::fractional_percent::DenominatorType::Million) => 1,
        Err(_) => return Err(Bad::field("denominator", "unknown value")),
    };
    Ok(value.numerator.saturating_mul(scale).min(1_000_000))
}

/// A runtime fraction's default, in parts per million; unset = all.
pub fn runtime_fraction(value: &core::RuntimeFractionalPercent) -> Result<u32, Bad> {
    only!(value, core::RuntimeFractionalPercent { default_value } refuse { runtime_key });
    value.default_value.as_ref().map_or(Ok(1_000_000), |v| fraction(v).at("default_value"))
}

/// A percentage, 0–100.
pub fn percent(value: &kind::Percent) -> Result<f64, Bad> {
    if (0.0..=100.0).contains(&value.value) { Ok(value.value) } else { Err(Bad::new("not a percentage")) }
}

/// Metadata.
pub fn metadata(value: &Option<core::Metadata>) -> Result<Metadata, Bad> {
    let Some(value) = value else { return Ok(Metadata::default()) };
    only!(value, core::Metadata { filter_metadata } refuse { typed_filter_metadata });
    let mut out = Metadata::default();
    for (namespace, object) in &value.filter_metadata {
        let entries = object.fields.iter().map(|(k, v)| Ok((k.as_str().into(), json(v, 0)?)));
        out.0.insert(namespace.as_str().into(), entries.collect::<Result<_, Bad>>().at("filter_metadata")?);
    }
    Ok(out)
}

/// A JSON value, at most 16 deep.
pub fn json(value: &wkt::Value, depth: usize) -> Result<Value, Bad> {
    use wkt::value::Kind;
    if depth > 16 {
        return Err(Bad::new("nested too deeply"));
    }
    let below = depth.saturating_add(1);
    Ok(match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        Some(Kind::NumberValue(number)) => Value::Number(*number),
        Some(Kind::StringValue(text)) => Value::Text(text.as_str().into()),
        Some(Kind::ListValue(list)) => {
            let mut values = list.values.iter().map(|v| json(v, below)).collect::<Result<Vec<_>, _>>()?;
            values.shrink_to_fit();
            Value::List(values)
        }
        Some(Kind::StructValue(object)) => {
            let entries = object.fields.iter().map(|(k, v)| Ok((k.as_str().into(), json(v, below)?)));
            Value::Object(entries.collect::<Result<_, Bad>>()?)
        }
    })
}

/// Resources come over the one stream.
pub fn ads(source: &core::ConfigSource) -> Result<(), Bad> {
    use core::config_source::ConfigSourceSpecifier as S;
    match &source.config_source_specifier {
        Some(S::Ads(_) | S::Self_(_)) => Ok(()),
        _ => Err(Bad::new("only ADS is supported")),
    }
}

/// Keep-alive settings.
pub fn keepalive(value: &core::TcpKeepalive) -> TcpKeepalive {
    TcpKeepalive {
        probes: number(&value.keepalive_probes),
        time: number(&value.keepalive_time),
        interval: number(&value.keepalive_interval),
    }
}
