//! Events go when nobody has written them for an hour, where the storage does not see to that itself (etcd does, by leases).
//!
//! Invariant: only an Event that is still as it was looked at is removed.

use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::store::{DeleteOptions, EVENT_LIFE, Store, name_of, namespace_of, resource_version_of};

const PAUSE: Duration = Duration::from_secs(60);

/// Runs for ever.
pub async fn run(store: Store) {
    loop {
        sweep(&store, store.now()).await;
        store.clock().sleep(PAUSE).await;
    }
}

/// Removes what is too old `now`.
async fn sweep(store: &Store, now: OffsetDateTime) {
    for resource in ["events", "events.events.k8s.io"] {
        for event in store.list(resource, None).items {
            let Some(written) = written(&event) else { continue };
            if now - written <= EVENT_LIFE {
                continue;
            }
            let options = DeleteOptions {
                resource_version: resource_version_of(&event).map(|v| v.to_string()),
                ..DeleteOptions::default()
            };
            // Whoever wrote it meanwhile keeps it; what failed is tried again.
            drop(store.delete(resource, namespace_of(&event), name_of(&event), &options).await);
        }
    }
}

/// When it was last written, as far as it tells.
fn written(event: &Value) -> Option<OffsetDateTime> {
    ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
        .iter()
        .filter_map(|field| OffsetDateTime::parse(event.pointer(field)?.as_str()?, &Rfc3339).ok())
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::fixture::Fixture;
    use serde_json::json;

    #[tokio::test]
    async fn events_go_an_hour_after_they_were_last_written() {
        let fixture = Fixture::new(false).await;
        let event = |name: &str, last: &str| {
            json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"},
                "involvedObject": {}, "lastTimestamp": last})
        };
        for (name, last) in [("once", "2020-01-01T00:00:00Z"), ("again", "2999-01-01T00:00:00Z")] {
            fixture.store.create("events", event(name, last)).await.unwrap();
        }
        let there =
            || fixture.store.list("events", None).items.iter().map(|e| name_of(e).to_owned()).collect::<Vec<_>>();
        let now = fixture.store.now();
        sweep(&fixture.store, now + EVENT_LIFE - Duration::from_secs(10)).await;
        assert_eq!(there(), ["again", "once"]);
        sweep(&fixture.store, now + EVENT_LIFE + Duration::from_secs(10)).await;
        assert_eq!(there(), ["again"]);
    }
}
