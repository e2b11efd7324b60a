//! Other trust domains: each has its own roots, which count for its own identities and for no others.
//!
//! Invariant: a root of one domain never vouches for a name of another, least of all for one of ours; whoever has no SPIFFE ID, or one of
//! a domain that is not known, is vouched for by nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use carrick_base::{SpiffeId, TrustDomain};

use super::TrustBundle;

/// Which roots are for whom.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Domains {
    /// Our own domain and its aliases.
    pub own: BTreeSet<TrustDomain>,
    /// The roots of the others, and what those have revoked.
    pub others: BTreeMap<TrustDomain, TrustBundle>,
}

impl TrustBundle {
    /// This bundle as that of our own domains, beside those of others. Without others it is for everybody, as ever.
    #[must_use]
    pub fn with_domains(mut self, domains: Domains) -> Self {
        self.domains = (!domains.others.is_empty()).then(|| Arc::new(domains));
        self
    }

    /// The other domains, where there are some.
    pub fn domains(&self) -> Option<&Domains> {
        self.domains.as_deref()
    }

    /// The roots that may vouch for a certificate with these URI names; `None` where nobody may.
    pub fn for_names(&self, uris: &[String]) -> Option<&Self> {
        let Some(domains) = &self.domains else { return Some(self) };
        let [uri] = uris else { return None };
        let domain = uri.parse::<SpiffeId>().ok()?.trust_domain();
        // Ours come first: whatever is said of a foreign domain of that name does not count.
        if domains.own.contains(&domain) { Some(self) } else { domains.others.get(&domain) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_vouch_for_their_own_domain_alone() {
        let domain = |name: &str| TrustDomain::new(name).unwrap();
        let of = |name: &str| vec![format!("spiffe://{name}/ns/a/sa/b")];
        let plain = TrustBundle::default();
        assert_eq!(plain.for_names(&of("anybody")), Some(&plain), "one domain: nothing is told apart");
        let theirs = TrustBundle::default();
        let others = BTreeMap::from([(domain("partner"), theirs.clone()), (domain("old.example"), theirs.clone())]);
        let own = BTreeSet::from([domain("cluster.local"), domain("old.example")]);
        let bundle = plain.with_domains(Domains { own, others });
        assert_eq!(bundle.for_names(&of("cluster.local")), Some(&bundle));
        assert_eq!(bundle.for_names(&of("old.example")), Some(&bundle), "an alias is ours");
        assert_eq!(bundle.for_names(&of("partner")), Some(&theirs));
        assert_eq!(bundle.for_names(&of("partner.evil")), None);
        assert_eq!(bundle.for_names(&[]), None);
        assert_eq!(bundle.for_names(&[of("partner"), of("cluster.local")].concat()), None);
        assert_eq!(bundle.for_names(&["https://partner/".to_owned()]), None);
        let none = bundle.with_domains(Domains::default());
        assert_eq!(none.domains(), None);
    }
}
