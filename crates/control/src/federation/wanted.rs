//! What MeshConfig says of other trust domains (`caCertificates`, spec §5.3).
//!
//! An entry without `trustDomains` is an authority of web servers (key sets, bundle endpoints) and vouches for no identity. With them, its
//! `pem` is their roots, with revocation lists among them where they have some, and its `spiffeBundleUrl` is asked for them.
//! `https://HOST/PATH#spiffe://DOMAIN/…` is an endpoint that shows this identity (SPIFFE's profile https_spiffe) and needs the domain's
//! `pem` for the first time; without the identity it shows a certificate of the web (https_web).
//!
//! Invariant: an entry that cannot be used is told and adds nobody; nobody but our authority has a say about our own domains.

use std::collections::{BTreeMap, BTreeSet};

use carrick_api::istio::mesh_config::CaCertificate;
use carrick_base::{SpiffeId, TrustDomain};
use carrick_pki::TrustBundle;

/// Where a bundle is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// As it was written.
    pub(super) url: String,
    /// The identity that it has to show.
    pub(super) id: Option<SpiffeId>,
}

impl Endpoint {
    /// Without the identity, which is not sent.
    pub(super) fn address(&self) -> &str {
        self.url.split('#').next().unwrap_or_default()
    }
}

/// See the module.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) fixed: BTreeMap<TrustDomain, TrustBundle>,
    pub(super) endpoints: BTreeMap<TrustDomain, Endpoint>,
    pub(super) web_roots: Vec<String>,
    pub(super) problems: Vec<String>,
}

impl Wanted {
    pub(super) fn read(entries: &[CaCertificate], own: &BTreeSet<TrustDomain>) -> Self {
        let mut wanted = Self::default();
        for (index, entry) in entries.iter().enumerate() {
            let place = format!("caCertificates[{index}]");
            if entry.trust_domains.is_empty() {
                match entry.spiffe_bundle_url.is_empty() {
                    true => wanted.web_roots.push(entry.pem.clone()),
                    false => {
                        wanted.problems.push(format!("{place}.spiffeBundleUrl: of no trustDomains, so it is nobody's"))
                    }
                }
                continue;
            }
            for name in &entry.trust_domains {
                if let Err(problem) = wanted.add(entry, name, own) {
                    wanted.problems.push(format!("{place}{problem}"));
                }
            }
        }
        let lacking = |(domain, endpoint): &(&TrustDomain, &Endpoint)| {
            endpoint.id.is_some() && !wanted.fixed.contains_key(*domain)
        };
        let lacking: Vec<TrustDomain> =
            wanted.endpoints.iter().filter(lacking).map(|(domain, _)| domain.clone()).collect();
        for domain in lacking {
            wanted.endpoints.remove(&domain);
            let why = "its identity can be verified by no pem of that trust domain";
            wanted.problems.push(format!("caCertificates: the bundle endpoint of {domain}: {why}"));
        }
        wanted
    }

    fn add(&mut self, entry: &CaCertificate, name: &str, own: &BTreeSet<TrustDomain>) -> Result<(), String> {
        let domain = TrustDomain::new(name).map_err(|e| format!(".trustDomains: {e}"))?;
        if own.contains(&domain) {
            return Err(format!(".trustDomains: {domain} is our own, whose roots are those of our authority"));
        }
        if !entry.pem.is_empty() {
            let roots = TrustBundle::from_pem_with_lists(entry.pem.as_bytes()).map_err(|e| format!(".pem: {e}"))?;
            let all = self.fixed.get(&domain).map_or_else(|| roots.clone(), |known| known.union(&roots));
            self.fixed.insert(domain.clone(), all);
        }
        if entry.spiffe_bundle_url.is_empty() {
            return Ok(());
        }
        let wrong = |why: &str| format!(".spiffeBundleUrl: {:?} {why}", entry.spiffe_bundle_url);
        if !entry.spiffe_bundle_url.starts_with("https://") {
            return Err(wrong("is not an https URL"));
        }
        let id = match entry.spiffe_bundle_url.split_once('#') {
            Some((_, id)) => Some(id.parse::<SpiffeId>().map_err(|e| wrong(&format!("ends in no identity: {e}")))?),
            None => None,
        };
        if id.as_ref().is_some_and(|id| id.trust_domain() != domain) {
            return Err(wrong(&format!("shows an identity of another trust domain than {domain}")));
        }
        let endpoint = Endpoint { url: entry.spiffe_bundle_url.clone(), id };
        match self.endpoints.insert(domain, endpoint) {
            None => Ok(()),
            Some(_) => Err(wrong("is the second of its trust domain, and takes the place of the first")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use carrick_pki::{CaOptions, SetTexts};

    use super::*;

    fn entry(pem: &str, url: &str, domains: &[&str]) -> CaCertificate {
        CaCertificate {
            pem: pem.to_owned(),
            spiffe_bundle_url: url.to_owned(),
            trust_domains: domains.iter().map(|d| (*d).to_owned()).collect(),
        }
    }

    #[test]
    fn who_is_wanted_and_what_is_wrong() {
        let domain = |name: &str| TrustDomain::new(name).unwrap();
        let own = BTreeSet::from([domain("cluster.local"), domain("old.example")]);
        let root = SetTexts::self_signed(&CaOptions::default(), "", SystemTime::now()).unwrap();
        let pem = String::from_utf8_lossy(&root.cert.bytes).into_owned();
        let wanted = Wanted::read(
            &[
                entry(&pem, "", &[]),
                entry(&pem, "", &["a.example", "b.example"]),
                entry("", "https://b.example/bundle#spiffe://b.example/ns/istio-system/sa/istiod", &["b.example"]),
                entry("", "https://c.example/bundle", &["c.example"]),
            ],
            &own,
        );
        assert_eq!(wanted.problems, Vec::<String>::new());
        assert_eq!(wanted.fixed.keys().map(TrustDomain::as_str).collect::<Vec<_>>(), ["a.example", "b.example"]);
        let spiffe = wanted.endpoints[&domain("b.example")].clone();
        assert_eq!(spiffe.address(), "https://b.example/bundle");
        assert_eq!(spiffe.id.unwrap().as_str(), "spiffe://b.example/ns/istio-system/sa/istiod");
        assert_eq!(wanted.endpoints[&domain("c.example")].id, None);
        assert_eq!(wanted.web_roots, std::slice::from_ref(&pem));

        for (wrong, told) in [
            (entry(&pem, "", &["cluster.local"]), "cluster.local is our own"),
            (entry(&pem, "", &["old.example"]), "old.example is our own"),
            (entry("", "https://x/", &[]), "nobody's"),
            (entry("", "http://x/", &["x"]), "is not an https URL"),
            (entry("", "https://x/#spiffe://x/istiod", &["x"]), "by no pem of that trust domain"),
            (entry(&pem, "https://x/#spiffe://y/istiod", &["x"]), "another trust domain than x"),
            (entry(&pem, "https://x/#istiod", &["x"]), "ends in no identity"),
            (entry("nonsense", "", &["x"]), ".pem: "),
        ] {
            let wanted = Wanted::read(&[wrong], &own);
            assert!(wanted.problems.len() == 1 && wanted.problems[0].contains(told), "{told}: {:?}", wanted.problems);
            assert_eq!(wanted.endpoints.len(), 0, "{told}");
        }
    }
}
