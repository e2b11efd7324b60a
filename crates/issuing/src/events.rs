//! Events: what was done, told on the object it was done for, in cert-manager's words.
//!
//! Invariant: telling never holds up the work: what cannot be told is left. There is one event for what is told again and again
//! (numbers in it aside), with a count, so that an object's events stay few however long it lives.

use carrick_api::object::Meta;
use carrick_api::timestamp::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tracing::debug;

use crate::objects::{Kind, Objects, is_code};

/// Who tells.
const COMPONENT: &str = "carrick";
/// Where events of objects without a namespace are, as in Kubernetes.
const NOWHERE: &str = "default";
/// Longest message, in bytes, that Kubernetes takes.
const MESSAGE: usize = 1024;

/// Whether it is as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Normal,
    Warning,
}

impl Objects {
    /// Tells of something that happened to an object.
    pub(crate) async fn tell(
        &self,
        kind: Kind,
        about: &Meta,
        type_: Type,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        if let Err(error) = self.write_event(kind, about, type_, reason, message, now).await {
            debug!(kind = kind.name(), name = about.name, reason, %error, "an event is left untold");
        }
    }

    async fn write_event(
        &self,
        kind: Kind,
        about: &Meta,
        type_: Type,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) -> Result<(), kube::Error> {
        let namespace = if about.namespace.is_empty() { NOWHERE } else { &about.namespace };
        let name = name(about, reason, message);
        let message = shortened(message);
        let api: Api<Event> = self.typed(namespace);
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace, "ownerReferences": [{
                "apiVersion": kind.api_version(), "kind": kind.name(), "name": about.name, "uid": about.uid,
            }]},
            "involvedObject": {
                "apiVersion": kind.api_version(), "kind": kind.name(), "namespace": about.namespace, "name": about.name,
                "uid": about.uid, "resourceVersion": about.resource_version,
            },
            "type": format!("{type_:?}"), "reason": reason, "message": message,
            "source": {"component": COMPONENT}, "reportingComponent": COMPONENT, "reportingInstance": "",
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        });
        let event: Event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        match api.create(&PostParams::default(), &event).await {
            Err(error) if is_code(&error, 409) => {}
            other => return other.map(drop),
        }
        let count = api.get(&name).await?.count.unwrap_or(1).saturating_add(1);
        let again = json!({"message": message, "lastTimestamp": now, "count": count});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(again)).await.map(drop)
    }
}

/// A name that follows from the object, the reason and the words of the message.
fn name(about: &Meta, reason: &str, message: &str) -> String {
    let words = message.chars().filter(|c| !c.is_ascii_digit());
    let text = about.uid.chars().chain([' ']).chain(reason.chars()).chain([' ']).chain(words);
    // FNV-1a: the same in every process, and nothing depends on its being hard to meet.
    let hash =
        text.fold(0xcbf2_9ce4_8422_2325_u64, |hash, c| (hash ^ u64::from(u32::from(c))).wrapping_mul(0x0100_0000_01b3));
    let stem: String = about.name.chars().take(200).collect();
    format!("{}.{hash:016x}", stem.trim_end_matches(['.', '-']))
}

fn shortened(message: &str) -> &str {
    let end = (0..=MESSAGE.min(message.len())).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
    message.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_by_a_number_is_told_in_one_place() {
        let about = Meta { name: "web".into(), uid: "u-1".into(), ..Meta::default() };
        let requested =
            |n: u32| name(&about, "Requested", &format!("Created new CertificateRequest resource \"web-{n}\""));
        assert_eq!(requested(1), requested(17));
        assert_ne!(requested(1), name(&about, "Issuing", "Created new CertificateRequest resource \"web-1\""));
        assert_ne!(requested(1), name(&Meta { uid: "u-2".into(), ..about.clone() }, "Requested", "x"));
    }

    #[test]
    fn long_messages_end_between_characters() {
        let long = "é".repeat(800);
        assert_eq!(shortened(&long).len(), 1024);
        assert_eq!(shortened("short"), "short");
    }
}
