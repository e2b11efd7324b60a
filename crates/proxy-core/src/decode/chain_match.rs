//! Filter chain matches, and the index over them.
//!
//! Invariant: two chains that match the same connections by the same entry are an error, as in Envoy.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use ipnet::IpNet;

use super::bad::{At, Bad, each, given, only};
use super::basic::{cidr, port};
use crate::model::listener::{
    ChainIndex, ChainMatch, IpLevel, NameLevel, SourceLevel, SourceType, SourceTypes, TextLevel,
};

/// Entries an index may grow to; a match multiplies its lists.
const MAX_ENTRIES: usize = 1 << 20;

/// `FilterChainMatch`.
pub fn chain_match(value: &pb::FilterChainMatch) -> Result<ChainMatch, Bad> {
    only!(value, pb::FilterChainMatch {
        destination_port, prefix_ranges, direct_source_prefix_ranges, source_type, source_prefix_ranges, source_ports, server_names,
        transport_protocol, application_protocols,
    } refuse { address_suffix, suffix_len });
    use pb::filter_chain_match::ConnectionSourceType as T;
    let ranges = |field: &str, ranges: &[CidrRange]| each(field, ranges, cidr);
    Ok(ChainMatch {
        destination_port: given("destination_port", &value.destination_port, |p| {
            port(p.value).and_then(|p| if p == 0 { Err(Bad::new("zero")) } else { Ok(p) })
        })?,
        prefix_ranges: ranges("prefix_ranges", &value.prefix_ranges)?,
        server_names: each("server_names", &value.server_names, |name| server_name(name))?,
        transport_protocol: value.transport_protocol.as_str().into(),
        application_protocols: value.application_protocols.iter().map(|p| p.as_str().into()).collect(),
        direct_source_prefix_ranges: ranges("direct_source_prefix_ranges", &value.direct_source_prefix_ranges)?,
        source_type: match T::try_from(value.source_type) {
            Ok(T::Any) => SourceType::Any,
            Ok(T::SameIpOrLoopback) => SourceType::SameIpOrLoopback,
            Ok(T::External) => SourceType::External,
            Err(_) => return Err(Bad::field("source_type", "unknown value")),
        },
        source_prefix_ranges: ranges("source_prefix_ranges", &value.source_prefix_ranges)?,
        source_ports: each("source_ports", &value.source_ports, |p| port(*p))?,
    })
}

fn server_name(name: &str) -> Result<Box<str>, Bad> {
    let lower = name.to_ascii_lowercase();
    match lower.strip_prefix('*') {
        // `*` alone is no wildcard of Envoy's; `*.` needs something after it.
        Some(suffix) if suffix.starts_with('.') && suffix.len() > 1 && !suffix.contains('*') => Ok(suffix.into()),
        None if !lower.is_empty() && !lower.contains('*') => Ok(lower.into()),
        _ => Err(Bad::new(format_args!("`{name}` is neither a name nor `*.` and a name"))),
    }
}

/// Builds the index.
pub fn index<'a>(chains: impl Iterator<Item = &'a ChainMatch>) -> Result<ChainIndex, Bad> {
    let mut index = ChainIndex::default();
    let mut budget = MAX_ENTRIES;
    for (number, matching) in chains.enumerate() {
        add(&mut index, matching, number, &mut budget).at_index("filter_chains", number)?;
    }
    index.ports.values_mut().for_each(sort_ports);
    Ok(index)
}

/// All prefixes, or the two that hold every address.
fn prefixes(ranges: &[IpNet]) -> Vec<IpNet> {
    if ranges.is_empty() {
        vec![IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]
    } else {
        ranges.to_vec()
    }
}

fn texts(list: &[Box<str>]) -> Vec<Box<str>> {
    if list.is_empty() { vec!["".into()] } else { list.to_vec() }
}

fn add(index: &mut ChainIndex, matching: &ChainMatch, chain: usize, budget: &mut usize) -> Result<(), Bad> {
    let names = index.ports.entry(matching.destination_port.unwrap_or(0)).or_default();
    for destination in prefixes(&matching.prefix_ranges) {
        let names = names.enter(destination);
        for name in texts(&matching.server_names) {
            let transport = names.enter(&name).enter(&matching.transport_protocol);
            for protocol in texts(&matching.application_protocols) {
                let sources = transport.enter(&protocol);
                for direct in prefixes(&matching.direct_source_prefix_ranges) {
                    add_source(sources.enter(direct), matching, chain, budget)?;
                }
            }
        }
    }
    Ok(())
}

fn add_source(types: &mut SourceTypes, matching: &ChainMatch, chain: usize, budget: &mut usize) -> Result<(), Bad> {
    let level = match matching.source_type {
        SourceType::Any => &mut types.any,
        SourceType::SameIpOrLoopback => &mut types.local,
        SourceType::External => &mut types.external,
    };
    let level = level.get_or_insert_with(IpLevel::default);
    for source in prefixes(&matching.source_prefix_ranges) {
        let ports = level.enter(source);
        let wanted = if matching.source_ports.is_empty() { &[0_u16][..] } else { &matching.source_ports };
        for port in wanted {
            *budget = budget.checked_sub(1).ok_or_else(|| Bad::field("filter_chain_match", "too many combinations"))?;
            if ports.iter().any(|(have, _)| have == port) {
                return Err(Bad::field("filter_chain_match", "the same match as an earlier filter chain"));
            }
            ports.push((*port, chain));
        }
    }
    Ok(())
}

impl<T: Default> IpLevel<T> {
    fn enter(&mut self, net: IpNet) -> &mut T {
        enter(&mut self.0, |have| *have == net, || net)
    }

    fn sort(&mut self) {
        self.0.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
    }
}

impl<T: Default> TextLevel<T> {
    fn enter(&mut self, text: &str) -> &mut T {
        enter(&mut self.0, |have| **have == *text, || text.into())
    }
}

/// The value of the entry with this key, made if it is missing.
fn enter<K, T: Default>(list: &mut Vec<(K, T)>, is: impl Fn(&K) -> bool, key: impl FnOnce() -> K) -> &mut T {
    let at = list.iter().position(|(have, _)| is(have)).unwrap_or(list.len());
    if at == list.len() {
        list.push((key(), T::default()));
    }
    let (_, value) = list.get_mut(at).expect("the position was just found or made");
    value
}

type Transports = TextLevel<TextLevel<SourceLevel>>;

impl NameLevel {
    fn enter(&mut self, name: &str) -> &mut Transports {
        let map: &mut HashMap<Box<str>, Transports> = match name {
            "" => return self.any.get_or_insert_with(TextLevel::default),
            name if name.starts_with('.') => &mut self.suffix,
            _ => &mut self.exact,
        };
        match map.entry(name.into()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(TextLevel::default()),
        }
    }

    fn transports(&mut self) -> impl Iterator<Item = &mut Transports> {
        self.exact.values_mut().chain(self.suffix.values_mut()).chain(self.any.as_mut())
    }
}

/// Longest prefixes first, on every level.
fn sort_ports(level: &mut IpLevel<NameLevel>) {
    level.sort();
    for (_, names) in &mut level.0 {
        for transports in names.transports() {
            for (_, protocols) in &mut transports.0 {
                for (_, sources) in &mut protocols.0 {
                    sources.sort();
                    for (_, types) in &mut sources.0 {
                        let levels = [&mut types.any, &mut types.local, &mut types.external];
                        levels.into_iter().flatten().for_each(IpLevel::sort);
                    }
                }
            }
        }
    }
}
