//! Which of several certificates a server shows.
//!
//! Invariant: Envoy's order: those whose names fit the SNI before all others, ECDSA before RSA where the client can check
//! it; a client that fits none gets the first, and so an alert that says why.

use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};

use crate::identity::Identity;

#[derive(Debug)]
struct Entry {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
    rsa: bool,
}

/// The certificates of one chain, in the order of the configuration.
#[derive(Debug)]
pub(super) struct Certificates(Vec<Entry>);

impl Certificates {
    pub(super) fn new<'a>(identities: impl IntoIterator<Item = &'a Identity>) -> Self {
        let entry = |identity: &Identity| {
            let certified = identity.certified();
            let rsa = certified.key.algorithm() == SignatureAlgorithm::RSA;
            Entry { certified, names: identity.names.clone(), rsa }
        };
        Self(identities.into_iter().map(entry).collect())
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Entry> {
        let usable = |entry: &&Entry| entry.certified.key.choose_scheme(schemes).is_some();
        let best = |fits: &dyn Fn(&Entry) -> bool| {
            let able = || self.0.iter().filter(usable).filter(|entry| fits(entry));
            able().find(|entry| !entry.rsa).or_else(|| able().next())
        };
        let exact = |entry: &Entry| name.is_some_and(|name| entry.names.iter().any(|own| own == name));
        let wild = |entry: &Entry| name.is_some_and(|name| entry.names.iter().any(|own| covers(own, name)));
        best(&exact).or_else(|| best(&wild)).or_else(|| best(&|_| true)).or_else(|| self.0.first())
    }
}

/// Whether a certificate's `*.` name covers `name` by one label.
fn covers(own: &str, name: &str) -> bool {
    own.strip_prefix('*')
        .is_some_and(|suffix| name.split_once('.').is_some_and(|(_, rest)| suffix.strip_prefix('.') == Some(rest)))
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        self.choose(name.as_deref(), hello.signature_schemes()).map(|entry| Arc::clone(&entry.certified))
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_wildcard_covers_one_label() {
        assert!(covers("*.b.test", "x.b.test"));
        for (own, name) in [("*.b.test", "b.test"), ("*.b.test", "x.y.b.test"), ("*", "b"), ("*b.test", "x.b.test")] {
            assert!(!covers(own, name), "{own} {name}");
        }
    }
}
