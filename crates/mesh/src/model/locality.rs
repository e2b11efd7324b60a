//! Where workloads stand: region, zone, subzone; and how traffic is to prefer the near ones (semantics §27).
//!
//! Invariant: an unknown part is empty; nothing is known of a part below an unknown one.

use std::{fmt, sync::Arc};

/// Where a workload stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// The region.
    pub region: Arc<str>,
    /// The zone in the region.
    pub zone: Arc<str>,
    /// The part of the zone.
    pub subzone: Arc<str>,
}

impl Locality {
    /// Reads `region/zone/subzone`, of which the latter two may be absent.
    pub fn parse(text: &str, separator: char) -> Self {
        let mut parts = text.splitn(3, separator).map(Arc::from);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }

    /// Whether this is one of the places that a pattern (`region/zone/*`) names.
    pub fn is_in(&self, pattern: &str) -> bool {
        let mut own = [&self.region, &self.zone, &self.subzone].into_iter();
        for part in pattern.split('/') {
            match own.next() {
                _ if part == "*" => return true,
                Some(name) if **name == *part => {}
                _ => return false,
            }
        }
        true
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.region)?;
        for part in [&self.zone, &self.subzone] {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

/// Percentages by pattern of endpoints' places.
pub type Shares = Vec<(Arc<str>, u32)>;

/// `localityLbSetting`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LocalityPolicy {
    /// Shares by the client's place: a pattern, and for each pattern of endpoints its percentage.
    pub distribute: Vec<(Arc<str>, Shares)>,
    /// Where a region's traffic goes when the region fails.
    pub failover: Vec<(Arc<str>, Arc<str>)>,
    /// Labels (or `label=value`) that are to be alike, most important first.
    pub priority: Vec<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_places() {
        let at = Locality::parse("r1/z1/s1", '/');
        for (pattern, want) in [
            ("*", true),
            ("r1/*", true),
            ("r1/z1/*", true),
            ("r1/z1/s1", true),
            ("r1", true),
            ("r1/z2/*", false),
            ("r2/*", false),
            ("r1/z1/s2", false),
        ] {
            assert_eq!(at.is_in(pattern), want, "{pattern}");
        }
        assert_eq!(Locality::parse("r1.z1", '.').to_string(), "r1/z1");
    }
}
