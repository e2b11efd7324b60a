//! Automatic addresses of ServiceEntries' hosts: one of 240.240.0.0/16 and one of 2001:2::/48 (semantics §11.5).
//!
//! Invariant: a function of the entries alone, so that whoever computes it (the control plane, a pod's name server) gets the same; what an
//! entry's status says is kept; else an older entry's address does not depend on a younger entry.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use carrick_api::{ServiceEntry, istio::service_entry::Resolution};
use carrick_base::Hostname;

/// How many hosts can have an address: all but those that end with .0 or .255.
const SLOTS: u32 = 256 * 254;

/// Addresses by namespace and host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AutoAddresses {
    slots: BTreeMap<(String, String), u32>,
}

impl AutoAddresses {
    /// Gives every host that needs one its addresses.
    pub fn allocate(entries: &[Arc<ServiceEntry>]) -> Self {
        let mut wanting: Vec<&Arc<ServiceEntry>> = entries.iter().filter(|e| wants(e)).collect();
        wanting.sort_by(|a, b| a.metadata.age_order().cmp(&b.metadata.age_order()));
        let mut slots = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for entry in &wanting {
            for known in &entry.status.addresses {
                let slot = known.value.parse().ok().and_then(slot_of).filter(|slot| !taken.contains(slot));
                let has = entry.spec.hosts.iter().any(|h| h.eq_ignore_ascii_case(&known.host));
                if let (Some(slot), true) = (slot, has) {
                    let key = (entry.metadata.namespace.clone(), known.host.to_ascii_lowercase());
                    if let std::collections::btree_map::Entry::Vacant(place) = slots.entry(key) {
                        place.insert(slot);
                        taken.insert(slot);
                    }
                }
            }
        }
        for entry in &wanting {
            for host in entry.spec.hosts.iter().filter(|h| !h.starts_with('*')) {
                let key = (entry.metadata.namespace.clone(), host.to_ascii_lowercase());
                if slots.contains_key(&key) || taken.len() >= SLOTS as usize {
                    continue;
                }
                let mut slot = hash(&key.0, &key.1) % SLOTS;
                while !taken.insert(slot) {
                    slot = (slot + 1) % SLOTS;
                }
                slots.insert(key, slot);
            }
        }
        Self { slots }
    }

    /// The addresses of one of an entry's hosts; none when the entry has addresses of its own or cannot use any.
    pub fn of(&self, entry: &ServiceEntry, host: &Hostname) -> Vec<IpAddr> {
        if !wants(entry) {
            return Vec::new();
        }
        let key = (entry.metadata.namespace.clone(), host.as_str().to_owned());
        self.slots.get(&key).map(|slot| vec![v4(*slot).into(), v6(*slot).into()]).unwrap_or_default()
    }
}

/// Whether the entry's hosts get automatic addresses.
fn wants(entry: &ServiceEntry) -> bool {
    let spec = &entry.spec;
    spec.addresses.is_empty() && !matches!(spec.resolution, Resolution::None | Resolution::DynamicDns)
}

fn v4(slot: u32) -> Ipv4Addr {
    let [_, _, high, low] = slot_bytes(slot);
    Ipv4Addr::new(240, 240, high, low)
}

fn v6(slot: u32) -> Ipv6Addr {
    let [_, _, high, low] = slot_bytes(slot);
    Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0xf0f0, u16::from_be_bytes([high, low]))
}

fn slot_bytes(slot: u32) -> [u8; 4] {
    ((slot / 254) * 256 + slot % 254 + 1).to_be_bytes()
}

fn slot_of(ip: Ipv4Addr) -> Option<u32> {
    match ip.octets() {
        [240, 240, high, low @ 1..=254] => Some(u32::from(high) * 254 + u32::from(low) - 1),
        _ => None,
    }
}

/// FNV-1a: small, and the same everywhere and always.
fn hash(namespace: &str, host: &str) -> u32 {
    let bytes = namespace.bytes().chain([b'/']).chain(host.bytes());
    bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use carrick_api::istio::service_entry::AllocatedAddress;

    fn entry(name: &str, hosts: &[&str], resolution: Resolution) -> Arc<ServiceEntry> {
        let mut entry = ServiceEntry::default();
        entry.metadata.name = name.to_owned();
        entry.metadata.namespace = "a".to_owned();
        entry.spec.hosts = hosts.iter().map(|h| (*h).to_owned()).collect();
        entry.spec.resolution = resolution;
        Arc::new(entry)
    }

    #[test]
    fn every_host_has_its_own_and_keeps_it() {
        let many: Vec<_> =
            (0..3000).map(|i| entry(&format!("e{i}"), &[&format!("h{i}.example.com")], Resolution::Dns)).collect();
        let all = AutoAddresses::allocate(&many);
        let distinct: BTreeSet<_> = many.iter().flat_map(|e| all.of(e, &Hostname::new(&e.spec.hosts[0]))).collect();
        assert_eq!(distinct.len(), 6000);
        assert!(distinct.iter().all(|ip| match ip {
            IpAddr::V4(ip) => ip.octets()[..2] == [240, 240] && !matches!(ip.octets()[3], 0 | 255),
            IpAddr::V6(ip) => ip.segments()[..2] == [0x2001, 2],
        }));
        let mut reversed = many.clone();
        reversed.reverse();
        assert_eq!(all, AutoAddresses::allocate(&reversed));
    }

    #[test]
    fn only_names_without_addresses() {
        let none = entry("n", &["n.example.com"], Resolution::None);
        let wild = entry("w", &["*.example.com", "x.example.com"], Resolution::Static);
        let mut own = (*entry("o", &["o.example.com"], Resolution::Dns)).clone();
        own.spec.addresses = vec!["10.0.0.1".to_owned()];
        let own = Arc::new(own);
        let all = AutoAddresses::allocate(&[none.clone(), wild.clone(), own.clone()]);
        assert!(all.of(&none, &Hostname::new("n.example.com")).is_empty());
        assert!(all.of(&wild, &Hostname::new("*.example.com")).is_empty());
        assert_eq!(all.of(&wild, &Hostname::new("x.example.com")).len(), 2);
        assert!(all.of(&own, &Hostname::new("o.example.com")).is_empty());
    }

    #[test]
    fn a_status_is_kept() {
        let mut known = (*entry("k", &["k.example.com"], Resolution::Dns)).clone();
        known.status.addresses =
            vec![AllocatedAddress { value: "240.240.7.9".to_owned(), host: "k.example.com".to_owned() }];
        let known = Arc::new(known);
        let all = AutoAddresses::allocate(&[entry("a", &["a.example.com"], Resolution::Dns), known.clone()]);
        assert_eq!(all.of(&known, &Hostname::new("k.example.com"))[0].to_string(), "240.240.7.9");
    }
}
