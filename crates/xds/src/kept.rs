//! What a proxy was told last, as a value that can be written down: for those who have to come back while nobody answers.
//!
//! Invariant: of each name only what was told last. What may be written where, and whether it may be believed, is the caller's affair.

use crate::client::Update;
use crate::{Resource, ResourceSet, TypeMap, TypeUrl};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as WireResource};
use prost::Message;
use prost::bytes::Buf;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Resources, by type and name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kept {
    types: BTreeMap<TypeUrl, TypeMap>,
}

impl Kept {
    /// What was written down.
    ///
    /// # Errors
    /// It is something else.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        let mut kept = Self::default();
        while bytes.has_remaining() {
            kept.take_response(&DeltaDiscoveryResponse::decode_length_delimited(&mut bytes)?);
        }
        Ok(kept)
    }

    /// To be written down: a response for each type, each behind its length.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (type_url, resources) in &self.types {
            let resource = |resource: &Arc<Resource>| WireResource {
                name: resource.name.to_string(),
                version: resource.version.to_string(),
                resource: Some(resource.body.clone()),
                ..WireResource::default()
            };
            let response = DeltaDiscoveryResponse {
                type_url: type_url.as_str().to_owned(),
                resources: resources.values().map(resource).collect(),
                ..DeltaDiscoveryResponse::default()
            };
            bytes.extend(response.encode_length_delimited_to_vec());
        }
        bytes
    }

    /// Nothing was told.
    pub fn is_empty(&self) -> bool {
        self.types.values().all(BTreeMap::is_empty)
    }

    /// Takes what a handler has taken.
    pub fn take(&mut self, update: &Update) {
        let resources = self.types.entry(update.type_url.clone()).or_default();
        for name in &update.removed {
            resources.remove(name);
        }
        resources.extend(update.upserts.iter().map(|r| (Arc::clone(&r.name), Arc::new(r.clone()))));
    }

    /// Takes what was passed on; a resource without a body is none.
    pub fn take_response(&mut self, response: &DeltaDiscoveryResponse) {
        let read =
            |r: &WireResource| Some(Resource::with_version(r.name.as_str(), r.version.as_str(), r.resource.clone()?));
        self.take(&Update {
            type_url: TypeUrl::parse(&response.type_url),
            upserts: response.resources.iter().filter_map(read).collect(),
            removed: response.removed_resources.iter().map(|name| Arc::from(name.as_str())).collect(),
        });
    }

    /// Forgets what is not asked for any more.
    pub fn retain(&mut self, type_url: &TypeUrl, wanted: impl Fn(&str) -> bool) {
        if let Some(resources) = self.types.get_mut(type_url) {
            resources.retain(|name, _| wanted(name));
        }
    }

    /// What a server would have told, in the order in which it is to be taken.
    pub fn updates(&self) -> Vec<Update> {
        let update = |(type_url, resources): (&TypeUrl, &TypeMap)| Update {
            type_url: type_url.clone(),
            upserts: resources.values().map(|resource| Resource::clone(resource)).collect(),
            removed: Vec::new(),
        };
        self.types.iter().map(update).collect()
    }

    /// As what a server has to tell.
    pub fn set(&self) -> ResourceSet {
        let types = self.types.iter().map(|(t, resources)| (t.clone(), Arc::new(resources.clone()))).collect();
        ResourceSet::new(1, "kept", types)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Any;

    fn resource(name: &str, type_url: &TypeUrl) -> Resource {
        Resource::new(name, Any { type_url: type_url.as_str().to_owned(), value: name.as_bytes().to_vec() })
    }

    #[test]
    fn what_was_told_last_comes_back_in_order() {
        let mut kept = Kept::default();
        let told = |type_url: TypeUrl, names: &[&str], removed: &[&str]| Update {
            upserts: names.iter().map(|name| resource(name, &type_url)).collect(),
            removed: removed.iter().map(|name| Arc::from(*name)).collect(),
            type_url,
        };
        kept.take(&told(TypeUrl::Listener, &["in", "out"], &[]));
        kept.take(&told(TypeUrl::Cluster, &["a", "b"], &[]));
        kept.take(&told(TypeUrl::Cluster, &["c"], &["a"]));
        kept.retain(&TypeUrl::Listener, |name| name == "in");
        let read = Kept::decode(&kept.encode()).unwrap();
        assert_eq!(read, kept);
        let updates = read.updates();
        let names = |at: usize| updates[at].upserts.iter().map(|r| r.name.to_string()).collect::<Vec<_>>();
        assert_eq!(
            updates.iter().map(|u| u.type_url.clone()).collect::<Vec<_>>(),
            [TypeUrl::Cluster, TypeUrl::Listener]
        );
        assert_eq!((names(0), names(1)), (vec!["b".to_owned(), "c".to_owned()], vec!["in".to_owned()]));
        assert_eq!(read.set().of(&TypeUrl::Cluster).unwrap().len(), 2);
        assert!(Kept::decode(b"something else").is_err());
        assert!(Kept::decode(b"").unwrap().is_empty());
    }
}
