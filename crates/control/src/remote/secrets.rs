//! Which clusters the Secrets name: `istio/multiCluster: "true"` in the root namespace, a kubeconfig for each cluster's id.
//!
//! Invariant: a cluster that two Secrets name is the first one's, by name; the own cluster is never read twice. Kubeconfigs are kept
//! in memory only and never shown.

use super::{ClusterId, Wanted};
use crate::objects::identify;
use crate::source::Change;
use carrick_api::core::decode_base64;
use carrick_base::{Diagnostic, FieldPath, ObjectRef, Severity};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The label, which must say `true`.
const LABEL: &str = "istio/multiCluster";
/// A Secret of other clusters, or part of one, that is not used.
pub(super) const UNUSABLE: &str = "CRK0123";

/// Where a cluster is said to be.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// The Secret's name.
    pub(crate) secret: Arc<str>,
    /// How the cluster is reached, and as whom.
    pub(crate) kubeconfig: Arc<[u8]>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("secret", &self.secret).finish_non_exhaustive()
    }
}

/// The kubeconfigs of one Secret; `None` for one that cannot be read.
type Kubeconfigs = BTreeMap<ClusterId, Option<Arc<[u8]>>>;

/// All of them.
#[derive(Default)]
pub(crate) struct Secrets {
    by_name: BTreeMap<Arc<str>, Kubeconfigs>,
}

impl Secrets {
    /// Takes a change of Secrets over. Gives whether it is about other clusters.
    pub(crate) fn take(&mut self, root: &str, change: &Change) -> bool {
        match change {
            Change::Apply(value) => self.put(root, value),
            Change::Delete(value) => {
                let ((namespace, name), _) = identify(value);
                namespace == root && self.by_name.remove(name.as_str()).is_some()
            }
            Change::Replace(values) => {
                let before = std::mem::take(&mut self.by_name);
                for value in values {
                    self.put(root, value);
                }
                self.by_name != before
            }
        }
    }

    fn put(&mut self, root: &str, value: &Value) -> bool {
        let ((namespace, name), _) = identify(value);
        if namespace != root {
            return false;
        }
        let labels = value.pointer("/metadata/labels");
        if labels.and_then(|l| l.get(LABEL)).and_then(Value::as_str) != Some("true") {
            return self.by_name.remove(name.as_str()).is_some();
        }
        let data = value.get("data").and_then(Value::as_object).into_iter().flatten();
        let read = |text: &Value| Some(decode_base64(text.as_str()?)?.into());
        let clusters: BTreeMap<ClusterId, _> = data.map(|(id, text)| (id.as_str().into(), read(text))).collect();
        let name: Arc<str> = name.into();
        self.by_name.insert(name, clusters.clone()).as_ref() != Some(&clusters)
    }

    /// Where each cluster is, and what of the Secrets is not used.
    pub(crate) fn wanted(&self, root: &str, own: &str) -> (Wanted, Vec<Diagnostic>) {
        let (mut wanted, mut found) = (Wanted::new(), Vec::new());
        for (secret, clusters) in &self.by_name {
            for (id, kubeconfig) in clusters {
                let mut wrong = |message: String| found.push(finding(root, secret, id, message));
                let Some(kubeconfig) = kubeconfig else {
                    wrong("the value is no base64".to_owned());
                    continue;
                };
                if **id == *own {
                    wrong(format!("{id} is what the control plane's own cluster is called"));
                } else if let Some(first) = wanted.get(id) {
                    let first: &Source = first;
                    wrong(format!("{id} is named by the Secret {} too, which counts", first.secret));
                } else {
                    wanted.insert(id.clone(), Source { secret: secret.clone(), kubeconfig: kubeconfig.clone() });
                }
            }
        }
        (wanted, found)
    }
}

/// What is wrong with a Secret's word on a cluster.
pub(super) fn finding(root: &str, secret: &str, cluster: &str, message: String) -> Diagnostic {
    Diagnostic {
        code: UNUSABLE,
        severity: Severity::Error,
        object: ObjectRef::new("Secret", root, secret),
        field: FieldPath::new("data").field(cluster),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(namespace: &str, name: &str, label: &str, data: &[(&str, &str)]) -> Value {
        let data: serde_json::Map<String, Value> = data.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
        json!({"metadata": {"name": name, "namespace": namespace, "labels": {LABEL: label}}, "data": data})
    }

    #[test]
    fn clusters_are_those_of_labelled_secrets_of_the_root_namespace() {
        let mut secrets = Secrets::default();
        let root = "istio-system";
        assert!(!secrets.take(root, &Change::Apply(secret("shop", "a", "true", &[("west", "Zm9v")]))));
        assert!(!secrets.take(root, &Change::Apply(secret(root, "a", "false", &[("west", "Zm9v")]))));
        assert!(secrets.take(root, &Change::Apply(secret(root, "b", "true", &[("west", "Zm9v"), ("east", "Zm9v")]))));
        assert!(secrets.take(root, &Change::Apply(secret(root, "a", "true", &[("west", "YmFy"), ("bad", "?")]))));
        let (wanted, found) = secrets.wanted(root, "east");
        assert_eq!(wanted.keys().map(|k| &**k).collect::<Vec<_>>(), ["west"]);
        assert_eq!((&*wanted["west"].secret, &*wanted["west"].kubeconfig), ("a", &b"bar"[..]));
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        for (part, of) in [("no base64", 0), ("own cluster", 1), ("Secret a too", 2)] {
            assert!(found[of].contains(part), "{found:?}");
        }
        assert!(!format!("{wanted:?}").contains("98, 97"), "values are not shown");

        assert!(!secrets.take(root, &Change::Apply(secret(root, "a", "true", &[("west", "YmFy"), ("bad", "?")]))));
        assert!(secrets.take(root, &Change::Delete(secret(root, "a", "true", &[]))));
        assert_eq!(&*secrets.wanted(root, "east").0["west"].secret, "b");
        assert!(secrets.take(root, &Change::Replace(Vec::new())));
        assert!(secrets.wanted(root, "east").0.is_empty());
    }
}
