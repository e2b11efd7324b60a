//! Host names and the wildcard patterns that select them, ordered as Istio orders them (exact before
//! wildcard, longer wildcard first, `*` last).
//!
//! Invariant: both types hold lower-case text, so comparisons are case-insensitive as DNS is (RFC 4343).

use std::{cmp::Ordering, fmt, sync::Arc};

/// A concrete DNS name, lower-case, without a trailing dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hostname(Arc<str>);

impl Hostname {
    /// Takes a name as it is, lower-cased and without its trailing dot.
    pub fn new(text: &str) -> Self {
        Self(text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase().into())
    }

    /// `<name>.<namespace>.svc.<domain>`: a Kubernetes service's full name.
    pub fn service(name: &str, namespace: &str, domain: &str) -> Self {
        Self::new(&format!("{name}.{namespace}.svc.{domain}"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host as resources write it: a name, `*.suffix`, or `*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// One name.
    Exact(Hostname),
    /// Any name that ends with this text, which starts with a dot (`*.a.b` holds `.a.b`) unless written without (`*a`).
    Suffix(Arc<str>),
    /// Every name.
    Any,
}

impl HostPattern {
    /// Reads a pattern. A `*` anywhere but at the start is literal, as in Istio.
    pub fn new(text: &str) -> Self {
        match text.strip_prefix('*') {
            Some("") => Self::Any,
            Some(suffix) => Self::Suffix(suffix.to_ascii_lowercase().into()),
            None => Self::Exact(Hostname::new(text)),
        }
    }

    /// Completes a short name (no dot, no wildcard) with the namespace of the resource that holds it.
    pub fn resolve(text: &str, namespace: &str, domain: &str) -> Self {
        if text.contains('.') || text.starts_with('*') || text.is_empty() {
            Self::new(text)
        } else {
            Self::Exact(Hostname::service(text, namespace, domain))
        }
    }

    /// Whether the pattern selects this concrete name.
    pub fn matches(&self, name: &Hostname) -> bool {
        match self {
            Self::Exact(own) => own == name,
            Self::Suffix(suffix) => name.as_str().len() > suffix.len() && name.as_str().ends_with(&**suffix),
            Self::Any => true,
        }
    }

    /// Whether every name that `other` selects is selected by this pattern too.
    pub fn covers(&self, other: &HostPattern) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Exact(name)) => self.matches(name),
            (Self::Suffix(own), Self::Suffix(theirs)) => theirs.ends_with(&**own),
            _ => false,
        }
    }
}

impl Ord for HostPattern {
    /// Most specific first; equal specificity by text, so that the order is total.
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |p: &Self| match p {
            Self::Exact(_) => (0, 0),
            Self::Suffix(s) => (1, usize::MAX - s.len()),
            Self::Any => (2, 0),
        };
        rank(self).cmp(&rank(other)).then_with(|| self.to_string().cmp(&other.to_string()))
    }
}

impl PartialOrd for HostPattern {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_istio_matches() {
        let cases = [
            ("a.b.svc.cluster.local", "a.b.svc.cluster.local", true),
            ("A.b", "a.B", true),
            ("*.b.svc.cluster.local", "a.b.svc.cluster.local", true),
            ("*.b.svc.cluster.local", "b.svc.cluster.local", false),
            ("*.b", ".b", false),
            ("*", "anything", true),
            ("a.b", "a.b.c", false),
        ];
        for (pattern, name, want) in cases {
            assert_eq!(HostPattern::new(pattern).matches(&Hostname::new(name)), want, "{pattern} on {name}");
        }
    }

    #[test]
    fn the_most_specific_comes_first() {
        let mut all = ["*", "*.local", "x.y", "*.svc.local", "a.b"].map(HostPattern::new);
        all.sort();
        let order: Vec<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(order, ["a.b", "x.y", "*.svc.local", "*.local", "*"]);
    }

    #[test]
    fn short_names_take_the_namespace_of_their_resource() {
        let resolve = |h| HostPattern::resolve(h, "ns", "cluster.local").to_string();
        assert_eq!(resolve("web"), "web.ns.svc.cluster.local");
        assert_eq!(resolve("web.other"), "web.other");
        assert_eq!(resolve("*"), "*");
    }

    #[test]
    fn covering_is_matching_for_sets() {
        let covers = |a: &str, b: &str| HostPattern::new(a).covers(&HostPattern::new(b));
        assert!(covers("*.local", "*.svc.local"));
        assert!(!covers("*.svc.local", "*.local"));
        assert!(covers("*", "*.x"));
        assert!(!covers("a.b", "*.b"));
    }
}
