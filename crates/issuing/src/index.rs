//! Whom a change concerns: which certificates and issuers use a secret, which requests wait for an issuer.
//!
//! Invariant: what is known is what the watches told last; a user that is gone uses nothing. Being told of too many costs a
//! look, so a field that may name a secret counts as one.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde_json::Value;

use crate::Job;
use crate::certificates::FOR_CERTIFICATE;
use crate::objects::Kind;
use crate::queue::Key;

/// Users by what they use.
#[derive(Debug)]
struct Uses<T> {
    of: BTreeMap<Job, BTreeSet<T>>,
    users: BTreeMap<T, BTreeSet<Job>>,
}

impl<T> Default for Uses<T> {
    fn default() -> Self {
        Self { of: BTreeMap::new(), users: BTreeMap::new() }
    }
}

impl<T: Ord + Clone> Uses<T> {
    fn set(&mut self, user: &Job, used: BTreeSet<T>) {
        for old in self.of.remove(user).unwrap_or_default() {
            if let Some(users) = self.users.get_mut(&old) {
                users.remove(user);
                if users.is_empty() {
                    self.users.remove(&old);
                }
            }
        }
        for new in &used {
            self.users.entry(new.clone()).or_default().insert(user.clone());
        }
        if !used.is_empty() {
            self.of.insert(user.clone(), used);
        }
    }

    fn users(&self, used: &T) -> impl Iterator<Item = Job> {
        self.users.get(used).into_iter().flatten().cloned()
    }
}

/// The index.
#[derive(Debug, Default)]
pub(crate) struct Index {
    root_namespace: String,
    secrets: Uses<Key>,
    issuers: Uses<Job>,
}

impl Index {
    pub(crate) fn new(root_namespace: &str) -> Self {
        Self { root_namespace: root_namespace.to_owned(), ..Self::default() }
    }

    /// Takes in an object as it is now.
    pub(crate) fn put(&mut self, kind: Kind, object: &DynamicObject) {
        let job = Job { kind, key: key(object) };
        let spec = object.data.get("spec").unwrap_or(&Value::Null);
        match kind {
            Kind::Certificate | Kind::Issuer | Kind::ClusterIssuer => {
                let namespace = if kind == Kind::ClusterIssuer { &self.root_namespace } else { &job.key.0 };
                let mut names = BTreeSet::new();
                secrets(spec, &mut names);
                let used = names.into_iter().map(|name| (namespace.clone(), name)).collect();
                self.secrets.set(&job, used);
            }
            Kind::Request => {
                let text = |field: &str| spec.pointer(&format!("/issuerRef/{field}")).and_then(Value::as_str);
                let name = text("name").unwrap_or_default().to_owned();
                let issuer = match text("kind") {
                    Some("ClusterIssuer") => Job { kind: Kind::ClusterIssuer, key: (String::new(), name) },
                    _ => Job { kind: Kind::Issuer, key: (job.key.0.clone(), name) },
                };
                self.issuers.set(&job, BTreeSet::from([issuer]));
            }
            Kind::Secret => {}
        }
    }

    /// Forgets an object.
    pub(crate) fn remove(&mut self, kind: Kind, object: &DynamicObject) {
        let job = Job { kind, key: key(object) };
        self.secrets.set(&job, BTreeSet::new());
        self.issuers.set(&job, BTreeSet::new());
    }

    /// Everything that is to be looked at since an object changed, itself included.
    pub(crate) fn concerned(&self, kind: Kind, object: &DynamicObject) -> BTreeSet<Job> {
        let job = Job { kind, key: key(object) };
        let namespace = job.key.0.clone();
        let mut jobs = BTreeSet::new();
        match kind {
            Kind::Certificate => {}
            Kind::Request => {
                let owner = object.annotations().get(FOR_CERTIFICATE);
                jobs.extend(owner.map(|name| Job { kind: Kind::Certificate, key: (namespace, name.clone()) }));
            }
            Kind::Issuer | Kind::ClusterIssuer => jobs.extend(self.issuers.users(&job)),
            Kind::Secret => {
                // A key that waits for its certificate belongs to it.
                let owners = object.owner_references().iter().filter(|owner| owner.kind == "Certificate");
                jobs.extend(
                    owners.map(|owner| Job { kind: Kind::Certificate, key: (namespace.clone(), owner.name.clone()) }),
                );
                jobs.extend(self.secrets.users(&job.key));
                return jobs;
            }
        }
        jobs.insert(job);
        jobs
    }
}

fn key(object: &DynamicObject) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Names of secrets in a spec: `secretName`, and `name` below fields that end in `SecretRef` or `secretRef`.
fn secrets(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let name = match value {
                    Value::String(name) if field == "secretName" => Some(name.as_str()),
                    _ if field.ends_with("SecretRef") || field == "secretRef" => {
                        value.get("name").and_then(Value::as_str)
                    }
                    _ => None,
                };
                names.extend(name.map(str::to_owned));
                secrets(value, names);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| secrets(value, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(namespace: &str, name: &str, spec: Value) -> DynamicObject {
        serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})).unwrap()
    }

    fn names(jobs: BTreeSet<Job>) -> Vec<String> {
        jobs.into_iter().map(|job| format!("{} {}/{}", job.kind.name(), job.key.0, job.key.1)).collect()
    }

    #[test]
    fn a_secret_concerns_those_who_name_it_and_nobody_else() {
        let mut index = Index::new("root");
        let stores = json!({"secretName": "web", "keystores": {"jks": {"passwordSecretRef": {"name": "pass"}}}});
        index.put(Kind::Certificate, &object("shop", "web", stores));
        index.put(Kind::Certificate, &object("other", "web", json!({"secretName": "web"})));
        index.put(Kind::ClusterIssuer, &object("", "ca", json!({"ca": {"secretName": "web"}})));
        let role = json!({"vault": {"auth": {"appRole": {"secretRef": {"name": "role"}}}}});
        index.put(Kind::Issuer, &object("shop", "vault", role));
        let concerned = |index: &Index, namespace, name| {
            names(index.concerned(Kind::Secret, &object(namespace, name, Value::Null)))
        };
        assert_eq!(concerned(&index, "shop", "web"), ["Certificate shop/web"]);
        assert_eq!(concerned(&index, "shop", "pass"), ["Certificate shop/web"]);
        assert_eq!(concerned(&index, "shop", "role"), ["Issuer shop/vault"]);
        assert_eq!(concerned(&index, "root", "web"), ["ClusterIssuer /ca"]);
        assert!(concerned(&index, "elsewhere", "web").is_empty());
        // One that names another secret now, and one that is gone.
        index.put(Kind::Certificate, &object("shop", "web", json!({"secretName": "new"})));
        assert!(concerned(&index, "shop", "web").is_empty());
        index.remove(Kind::Certificate, &object("shop", "web", Value::Null));
        assert!(concerned(&index, "shop", "new").is_empty());
    }

    #[test]
    fn an_issuer_concerns_its_requests() {
        let mut index = Index::new("root");
        index.put(Kind::Request, &object("shop", "web-1", json!({"issuerRef": {"name": "ca"}})));
        index.put(Kind::Request, &object("shop", "x-1", json!({"issuerRef": {"name": "ca", "kind": "ClusterIssuer"}})));
        let concerned = |kind, namespace| names(index.concerned(kind, &object(namespace, "ca", Value::Null)));
        assert_eq!(concerned(Kind::Issuer, "shop"), ["Issuer shop/ca", "CertificateRequest shop/web-1"]);
        assert_eq!(concerned(Kind::ClusterIssuer, ""), ["ClusterIssuer /ca", "CertificateRequest shop/x-1"]);
    }
}
