//! Secrets of the cluster, as TLS reads them (semantics §6.5–§6.7).
//!
//! Invariant: a proxy is given a secret only if its own listeners or clusters name it, and it lies in the proxy's own namespace or was
//! granted to that by name; bytes are never shown.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use carrick_base::NamespacedName;

use crate::{
    names,
    parts::{
        ClientSocket, Cluster, Gateway, SecretPart,
        secret::{Bytes, SecretValue},
    },
};

const SCHEME: &str = "kubernetes://";
/// Secrets of other namespaces that Gateways of the Gateway API may name.
const GRANTED: &str = "kubernetes-gateway://";
/// Roots in a config map, which is no secret: any namespace may name it.
const PUBLIC: &str = "configmap://";

/// All secrets by name.
#[derive(Debug, Default)]
pub struct SecretIndex {
    secrets: HashMap<NamespacedName, Arc<carrick_api::Secret>>,
    config_maps: HashMap<NamespacedName, Arc<carrick_api::ConfigMap>>,
    granted: BTreeSet<(String, String)>,
}

impl SecretIndex {
    /// Indexes them. `granted` are SDS names of secrets that proxies of a namespace, or of any where it is empty, may have although they
    /// lie in another.
    pub fn build(
        secrets: &[Arc<carrick_api::Secret>],
        config_maps: &[Arc<carrick_api::ConfigMap>],
        granted: BTreeSet<(String, String)>,
    ) -> Self {
        let name = |m: &carrick_api::object::Meta| NamespacedName::new(&m.namespace, &m.name);
        Self {
            secrets: secrets.iter().map(|s| (name(&s.metadata), s.clone())).collect(),
            config_maps: config_maps.iter().map(|c| (name(&c.metadata), c.clone())).collect(),
            granted,
        }
    }

    /// The version of a secret, whoever may have it; `None` when there is none.
    pub fn version(&self, namespace: &str, name: &str) -> Option<&str> {
        Some(&self.secrets.get(&NamespacedName::new(namespace, name))?.metadata.resource_version)
    }

    /// What an SDS name means to a proxy of this namespace; `None` if it may not have it, or it is not there.
    pub fn find(&self, name: &Arc<str>, namespace: &str) -> Option<SecretPart> {
        if let Some(path) = name.strip_prefix(PUBLIC) {
            let (place, short) = path.split_once('/')?;
            let short = short.strip_suffix(names::ROOTS_SUFFIX)?;
            let value = public(self.config_maps.get(&NamespacedName::new(place, short))?)?;
            return Some(SecretPart { name: name.clone(), value });
        }
        let (place, short) = match name.strip_prefix(GRANTED) {
            Some(path) if self.may(name, namespace) => path.split_once('/')?,
            Some(_) => return None,
            None => {
                let path = name.strip_prefix(SCHEME)?;
                let (place, short) = path.split_once('/').unwrap_or((namespace, path));
                (place == namespace).then_some((place, short))?
            }
        };
        let of = |short: &str| self.secrets.get(&NamespacedName::new(place, short));
        let value = match short.strip_suffix(names::ROOTS_SUFFIX) {
            Some(base) => of(short).and_then(|s| roots(s)).or_else(|| of(base).and_then(|s| roots(s))),
            None => of(short).and_then(|s| certificate(s)),
        };
        Some(SecretPart { name: name.clone(), value: value? })
    }

    /// Whether a secret of another namespace may be had, or the roots in it.
    fn may(&self, name: &str, namespace: &str) -> bool {
        let to = |namespace: &str, name: &str| self.granted.contains(&(namespace.to_owned(), name.to_owned()));
        let roots = name.strip_suffix(names::ROOTS_SUFFIX);
        to(namespace, name) || roots.is_some_and(|base| to(namespace, base) || to("", base))
    }

    /// All that a proxy's listeners and clusters name, sorted by name.
    pub(crate) fn of(
        &self,
        namespace: &str,
        gateway: Option<&Gateway>,
        clusters: &[Arc<Cluster>],
    ) -> Arc<[Arc<SecretPart>]> {
        let mut wanted: BTreeSet<&Arc<str>> = BTreeSet::new();
        for tls in gateway.iter().flat_map(|g| &g.listeners).flat_map(|l| &l.chains).filter_map(|c| c.tls.as_ref()) {
            wanted.extend(tls.certificates.iter().chain(&tls.roots));
        }
        for cluster in clusters {
            if let ClientSocket::User(tls) = &cluster.socket {
                wanted.extend(tls.certificate.iter().chain(&tls.roots));
            }
        }
        wanted.into_iter().filter_map(|name| self.find(name, namespace)).map(Arc::new).collect()
    }
}

fn value(secret: &carrick_api::Secret, key: &str) -> Option<Bytes> {
    secret.data.get(key).filter(|bytes| !bytes.is_empty()).map(|bytes| Bytes(bytes.clone()))
}

fn certificate(secret: &carrick_api::Secret) -> Option<SecretValue> {
    let pair = |chain: &str, key: &str| Some((value(secret, chain)?, value(secret, key)?));
    let (chain, key) = pair("cert", "key").or_else(|| pair("tls.crt", "tls.key"))?;
    Some(SecretValue::Certificate { chain, key, staple: value(secret, "tls.ocsp-staple") })
}

fn public(map: &carrick_api::ConfigMap) -> Option<SecretValue> {
    let bytes = |text: &str| (!text.is_empty()).then(|| Bytes(text.as_bytes().into()));
    Some(SecretValue::Roots { roots: bytes(&map.data.roots)?, crl: bytes(&map.data.crl) })
}

fn roots(secret: &carrick_api::Secret) -> Option<SecretValue> {
    let (roots, crl) = match value(secret, "cacert") {
        Some(roots) => (roots, value(secret, "crl").or_else(|| value(secret, "ca.crl"))),
        None => (value(secret, "ca.crt")?, value(secret, "ca.crl").or_else(|| value(secret, "crl"))),
    };
    Some(SecretValue::Roots { roots, crl })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(all: &[(&str, &[(&str, &str)])]) -> SecretIndex {
        let secret = |(name, data): &(&str, &[(&str, &str)])| {
            let (namespace, name) = name.split_once('/').expect("both");
            let mut secret = carrick_api::Secret::default();
            secret.metadata.namespace = namespace.to_owned();
            secret.metadata.name = name.to_owned();
            secret.data = data.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().into())).collect();
            Arc::new(secret)
        };
        let granted = [("a", "kubernetes-gateway://b/tls"), ("", "kubernetes-gateway://b/roots")];
        let granted = granted.map(|(to, name)| (to.to_owned(), name.to_owned()));
        SecretIndex::build(&all.iter().map(secret).collect::<Vec<_>>(), &[], granted.into())
    }

    fn found(index: &SecretIndex, name: &str, namespace: &str) -> Option<String> {
        let text = |b: &Bytes| String::from_utf8_lossy(&b.0).into_owned();
        index.find(&name.into(), namespace).map(|part| match part.value {
            SecretValue::Certificate { chain, key, staple } => {
                format!("{} {} {}", text(&chain), text(&key), staple.as_ref().map_or(String::new(), text))
            }
            SecretValue::Roots { roots, crl } => {
                format!("{} {}", text(&roots), crl.as_ref().map_or(String::new(), text))
            }
        })
    }

    #[test]
    fn secrets_in_all_their_forms_and_only_of_the_own_namespace() {
        let all = index(&[
            (
                "a/tls",
                &[("tls.crt", "C"), ("tls.key", "K"), ("ca.crt", "R"), ("ca.crl", "L"), ("tls.ocsp-staple", "S")],
            ),
            ("a/generic", &[("cert", "c"), ("key", "k"), ("cacert", "r"), ("tls.crt", "C"), ("tls.key", "K")]),
            ("a/apart", &[("tls.crt", "C"), ("tls.key", "K"), ("ca.crt", "R")]),
            ("a/apart-cacert", &[("cacert", "other"), ("crl", "l")]),
            ("a/half", &[("tls.crt", "C")]),
            ("b/tls", &[("tls.crt", "B"), ("tls.key", "K")]),
            ("b/roots", &[("tls.crt", "B"), ("tls.key", "K"), ("ca.crt", "R")]),
        ]);
        for (name, want) in [
            ("kubernetes://tls", Some("C K S")),
            ("kubernetes://a/tls", Some("C K S")),
            ("kubernetes://tls-cacert", Some("R L")),
            ("kubernetes://generic", Some("c k ")),
            ("kubernetes://generic-cacert", Some("r ")),
            ("kubernetes://apart-cacert", Some("other l")),
            ("kubernetes://half", None),
            ("kubernetes://none", None),
            ("kubernetes://b/tls", None),
            ("kubernetes-gateway://a/tls", None),
            ("kubernetes-gateway://b/tls", Some("B K ")),
            ("kubernetes-gateway://b/roots", None),
            ("kubernetes-gateway://b/roots-cacert", Some("R ")),
            ("default", None),
        ] {
            assert_eq!(found(&all, name, "a").as_deref(), want, "{name}");
        }
        assert_eq!(found(&all, "kubernetes://tls", "b").as_deref(), Some("B K "));
        assert_eq!(found(&all, "kubernetes://a/tls", "b"), None);
        let shown = format!("{:?}", all.find(&"kubernetes://tls".into(), "a"));
        assert!(!shown.contains('K') && shown.contains("1 bytes"), "{shown}");
    }

    #[test]
    fn roots_in_a_config_map_are_for_everybody() {
        let mut map = carrick_api::ConfigMap::default();
        (map.metadata.namespace, map.metadata.name) = ("shop".to_owned(), "ca".to_owned());
        map.data.roots = "PEM".to_owned();
        let index = SecretIndex::build(&[], &[Arc::new(map)], BTreeSet::new());
        assert_eq!(found(&index, "configmap://shop/ca-cacert", "edge").as_deref(), Some("PEM "));
        assert_eq!(found(&index, "configmap://shop/none-cacert", "edge"), None);
    }
}
