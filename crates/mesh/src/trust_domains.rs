//! Names of the mesh's trust domain in policies: an identity written with one name is meant under all of them (semantics §12.8).
//!
//! Invariant: what is written with a trust domain of somebody else's stays exactly what it is.

use std::sync::Arc;

use crate::Settings;

/// The name every mesh may be called by in a policy.
const ANY_MESH: &str = "cluster.local";
/// Parts of a principal: trust domain, `ns`, namespace, `sa`, account.
const PARTS: usize = 5;

/// The mesh's trust domain and its aliases, the domain first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustDomains(Vec<Arc<str>>);

impl TrustDomains {
    /// Of a mesh.
    pub fn of(settings: &Settings) -> Self {
        Self::new(settings.trust_domain.as_str(), &settings.trust_domain_aliases)
    }

    fn new(own: &str, aliases: &[Arc<str>]) -> Self {
        let mut all: Vec<Arc<str>> = vec![own.into()];
        for alias in aliases {
            if !all.contains(alias) {
                all.push(alias.clone());
            }
        }
        Self(all)
    }

    /// A principal as written, and what else it means.
    pub fn principal(&self, written: &str) -> Vec<String> {
        let as_written = || vec![written.to_owned()];
        if written.split('/').count() != PARTS {
            return as_written();
        }
        let Some((domain, rest)) = written.split_once('/') else { return as_written() };
        if domain == "*" {
            return as_written();
        }
        let covers = |known: &Arc<str>| match domain.strip_prefix('*') {
            Some(suffix) => known.ends_with(suffix),
            None => **known == *domain,
        };
        if domain != ANY_MESH && !self.0.iter().any(covers) {
            return as_written();
        }
        let mut out = Vec::new();
        for known in &self.0 {
            let meant = if covers(known) { written.to_owned() } else { format!("{known}/{rest}") };
            if !out.contains(&meant) {
                out.push(meant);
            }
        }
        out
    }

    /// A trust domain as written, and what else it means.
    pub fn domain(&self, written: &str) -> Vec<String> {
        if self.0.iter().any(|known| **known == *written) {
            self.0.iter().map(ToString::to_string).collect()
        } else {
            vec![written.to_owned()]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_is_meant_under_every_name_of_the_mesh() {
        let mesh = TrustDomains::new("td1", &["old.example".into(), "td2".into()]);
        let cases: [(&str, &[&str]); 8] = [
            ("td1/ns/a/sa/b", &["td1/ns/a/sa/b", "old.example/ns/a/sa/b", "td2/ns/a/sa/b"]),
            ("td2/ns/a/sa/b", &["td1/ns/a/sa/b", "old.example/ns/a/sa/b", "td2/ns/a/sa/b"]),
            ("cluster.local/ns/a/sa/*", &["td1/ns/a/sa/*", "old.example/ns/a/sa/*", "td2/ns/a/sa/*"]),
            ("partner/ns/a/sa/b", &["partner/ns/a/sa/b"]),
            ("*/ns/a/sa/b", &["*/ns/a/sa/b"]),
            ("*.example/ns/a/sa/b", &["td1/ns/a/sa/b", "*.example/ns/a/sa/b", "td2/ns/a/sa/b"]),
            ("*.partner/ns/a/sa/b", &["*.partner/ns/a/sa/b"]),
            ("*/sa/b", &["*/sa/b"]),
        ];
        for (written, meant) in cases {
            assert_eq!(mesh.principal(written), meant, "{written}");
        }
    }

    #[test]
    fn a_trust_domain_has_no_magic_name() {
        let mesh = TrustDomains::new("td1", &["td2".into()]);
        assert_eq!(mesh.domain("td2"), ["td1", "td2"]);
        assert_eq!(mesh.domain("cluster.local"), ["cluster.local"]);
        assert_eq!(mesh.domain("td*"), ["td*"]);
    }
}
