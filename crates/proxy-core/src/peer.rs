//! Who is at the other end, as mesh proxies tell each other: the workload's names in `x-envoy-peer-metadata`, or in the metadata of an
//! endpoint.
//!
//! Invariant: what is written is the same bytes for the same workload; what is read is bounded, and what does not parse says nothing.
//! Whom to tell and whom to believe is the caller's business.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use http::HeaderName;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::model::metadata::Metadata;

/// The workload's names: a `google.protobuf.Struct` in base64.
pub const METADATA: HeaderName = HeaderName::from_static("x-envoy-peer-metadata");
/// The node's id.
pub const METADATA_ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");
/// Longer headers are not read.
const MAX_HEADER: usize = 8 * 1024;
/// Longer names are not believed to be names.
const MAX_NAME: usize = 256;

const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";

/// A workload's names; empty where not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// Name of the pod or entry.
    pub instance: Box<str>,
    /// Name of the workload.
    pub workload: Box<str>,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Label `app`.
    pub app: Box<str>,
    /// Label `version`.
    pub version: Box<str>,
    /// Canonical service.
    pub canonical_service: Box<str>,
    /// Canonical revision.
    pub canonical_revision: Box<str>,
    /// Cluster id.
    pub cluster: Box<str>,
}

impl Peer {
    /// The header's value.
    #[must_use]
    pub fn encode(&self) -> String {
        let labels = BTreeMap::from([
            ("app", &self.app),
            (CANONICAL_NAME, &self.canonical_service),
            (CANONICAL_REVISION, &self.canonical_revision),
            ("version", &self.version),
        ]);
        let mut inner = Vec::new();
        for (key, value) in labels.into_iter().filter(|(_, v)| !v.is_empty()) {
            entry(key, &text(value), &mut inner);
        }
        let mut object = Vec::new();
        encode_key(5, WireType::LengthDelimited, &mut object);
        encode_varint(inner.len() as u64, &mut object);
        object.extend(inner);
        let fields = BTreeMap::from([
            ("CLUSTER_ID", text(&self.cluster)),
            ("LABELS", object),
            ("NAME", text(&self.instance)),
            ("NAMESPACE", text(&self.namespace)),
            ("WORKLOAD_NAME", text(&self.workload)),
        ]);
        let mut out = Vec::new();
        for (key, value) in fields {
            entry(key, &value, &mut out);
        }
        STANDARD.encode(out)
    }

    /// Reads a header's value.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Self> {
        if value.len() > MAX_HEADER {
            return None;
        }
        let object = Struct::decode(STANDARD.decode(value).ok()?.as_slice()).ok()?;
        let labels = match object.fields.get("LABELS").and_then(|v| v.kind.as_ref()) {
            Some(Kind::StructValue(labels)) => Some(labels),
            _ => None,
        };
        let label = |key: &str| name(labels.and_then(|l| l.fields.get(key)));
        let field = |key: &str| name(object.fields.get(key));
        Some(Self {
            instance: field("NAME"),
            workload: field("WORKLOAD_NAME"),
            namespace: field("NAMESPACE"),
            app: label("app"),
            version: label("version"),
            canonical_service: label(CANONICAL_NAME),
            canonical_revision: label(CANONICAL_REVISION),
            cluster: field("CLUSTER_ID"),
        })
    }

    /// What an endpoint's metadata say: `name;namespace;canonical service;canonical revision;cluster` under `istio`, `workload`.
    #[must_use]
    pub fn of_endpoint(metadata: &Metadata) -> Option<Self> {
        let mut parts = metadata.text("istio", "workload")?.split(';');
        let mut next = || -> Box<str> { parts.next().unwrap_or_default().into() };
        Some(Self {
            workload: next(),
            namespace: next(),
            canonical_service: next(),
            canonical_revision: next(),
            cluster: next(),
            ..Self::default()
        })
    }
}

/// Whether an endpoint is a mesh proxy's, which takes the headers off again.
#[must_use]
pub fn is_mesh(metadata: &Metadata) -> bool {
    metadata.text("envoy.transport_socket_match", "tlsMode") == Some("istio")
}

fn name(value: Option<&Value>) -> Box<str> {
    match value.and_then(|v| v.kind.as_ref()) {
        Some(Kind::StringValue(text)) if text.len() <= MAX_NAME && !text.chars().any(char::is_control) => {
            text.as_str().into()
        }
        _ => "".into(),
    }
}

/// A `Value` that is a text.
fn text(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len().saturating_add(4));
    encode_key(3, WireType::LengthDelimited, &mut out);
    encode_varint(text.len() as u64, &mut out);
    out.extend_from_slice(text.as_bytes());
    out
}

/// An entry of a `Struct`.
fn entry(key: &str, value: &[u8], out: &mut Vec<u8>) {
    let mut pair = Vec::new();
    for (tag, part) in [(1, key.as_bytes()), (2, value)] {
        encode_key(tag, WireType::LengthDelimited, &mut pair);
        encode_varint(part.len() as u64, &mut pair);
        pair.extend_from_slice(part);
    }
    encode_key(1, WireType::LengthDelimited, out);
    encode_varint(pair.len() as u64, out);
    out.extend(pair);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_way_and_are_bounded() {
        let peer = Peer {
            instance: "shop-1".into(),
            workload: "shop".into(),
            namespace: "test".into(),
            app: "shop".into(),
            version: "v1".into(),
            canonical_service: "shop".into(),
            canonical_revision: "v1".into(),
            cluster: "Kubernetes".into(),
        };
        assert_eq!(Peer::decode(peer.encode().as_bytes()), Some(peer.clone()));
        assert_eq!(peer.encode(), peer.clone().encode());
        for bad in ["", "AAAA", "!", "////"] {
            assert!(Peer::decode(bad.as_bytes()).is_none_or(|p| p == Peer::default()), "{bad}");
        }
        let long = Peer { workload: "x".repeat(300).into(), ..peer.clone() };
        assert_eq!(&*Peer::decode(long.encode().as_bytes()).unwrap().workload, "");
        assert!(Peer::decode(&vec![b'A'; 9000]).is_none());
    }

    #[test]
    fn endpoints_name_their_workload() {
        use crate::model::metadata::Value;
        let mut metadata = Metadata::default();
        assert!(Peer::of_endpoint(&metadata).is_none());
        metadata.learn("istio", [("workload".into(), Value::Text("a;ns;svc;v2;Kubernetes".into()))].into());
        let peer = Peer::of_endpoint(&metadata).unwrap();
        assert_eq!((&*peer.workload, &*peer.canonical_revision, &*peer.app), ("a", "v2", ""));
    }
}
