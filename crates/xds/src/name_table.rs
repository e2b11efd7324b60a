//! The table of names that an agent resolves by (Istio's NDS, spec §20.9, §21.2).
//!
//! Invariant: messages and type URL are Istio's; equal tables encode to equal bytes.

use std::collections::BTreeMap;

use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use crate::{Resource, TypeUrl};

/// The type URL.
pub const TYPE_URL: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
/// The name of the one resource of that type.
const NAME: &str = "names";

/// Everything that can be resolved.
#[derive(Clone, PartialEq, Message)]
pub struct NameTable {
    /// By full name; one that begins with `*.` stands for all names below.
    #[prost(btree_map = "string, message", tag = "1")]
    pub table: BTreeMap<String, NameInfo>,
}

/// What a name stands for.
#[derive(Clone, PartialEq, Message)]
pub struct NameInfo {
    /// Addresses as text.
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    /// `Kubernetes` or `External`.
    #[prost(string, tag = "2")]
    pub registry: String,
    /// Of a Kubernetes service: its name.
    #[prost(string, tag = "3")]
    pub shortname: String,
    /// Of a Kubernetes service: its namespace.
    #[prost(string, tag = "4")]
    pub namespace: String,
}

impl NameTable {
    /// The type.
    pub fn type_url() -> TypeUrl {
        TypeUrl::Other(TYPE_URL.into())
    }

    /// As a resource.
    pub fn resource(&self) -> Resource {
        Resource::new(NAME, Any { type_url: TYPE_URL.to_owned(), value: self.encode_to_vec() })
    }

    /// Read from a resource's body; `None` when it is something else.
    pub fn read(body: &Any) -> Option<Self> {
        (body.type_url == TYPE_URL).then(|| Self::decode(body.value.as_slice()).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_survives_the_wire() {
        let info = NameInfo { ips: vec!["10.96.0.7".into()], registry: "Kubernetes".into(), ..Default::default() };
        let table = NameTable { table: [("a.b.svc.cluster.local".to_owned(), info)].into() };
        let resource = table.resource();
        assert_eq!(NameTable::read(&resource.body), Some(table.clone()));
        assert_eq!(resource.version, table.resource().version);
        assert_eq!(NameTable::read(&Any::default()), None);
    }
}
