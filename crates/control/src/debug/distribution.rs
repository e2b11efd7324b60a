//! `/debug/distribution`: which snapshot each proxy runs, and how long a change took to reach the last one.
//!
//! A resource version counts as contained when everything the API has at that moment was seen. For the version of a
//! change that was watched this is known at once; for others (a change of a kind nobody watches here) the API is listed
//! and compared.

use super::{Pages, answer, time};
use crate::connections::Ack;
use crate::history::Contained;
use crate::seen::Seen;
use crate::source::Kind;
use crate::source::kube::{Listed, list};
use carrick_runtime::admin::Response;
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// Nobody waits longer than this.
const MAX_WAIT: u64 = 300;
/// How often what was seen is compared with what there is.
const POLL: Duration = Duration::from_millis(20);
/// After this long there is another list: what has gone since the last one is never seen again.
const LIST_AGAIN: Duration = Duration::from_millis(500);

pub(super) async fn page(pages: &Pages, version: Option<u64>, wait: u64) -> Response {
    let Some(version) = version else {
        return answer(StatusCode::OK, &state(pages, None));
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(wait.min(MAX_WAIT));
    let contained = match timeout_at(deadline, contained(pages, version)).await {
        Ok(Ok(contained)) => contained,
        Ok(Err(reason)) => return Response::text(StatusCode::BAD_GATEWAY, format!("{reason}\n")),
        Err(_) => {
            let mut value = state(pages, None);
            insert(&mut value, "contained", json!(false));
            insert(&mut value, "complete", json!(false));
            return answer(StatusCode::GATEWAY_TIMEOUT, &value);
        }
    };
    let sequence = contained.snapshot.sequence;
    let mut changes = pages.connections.subscribe();
    let all = async {
        loop {
            changes.borrow_and_update();
            if let Some(last) = last_ack(pages, sequence) {
                return last;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let last = timeout_at(deadline, all).await.ok();
    let mut value = state(pages, Some(sequence));
    insert(&mut value, "contained", json!(true));
    insert(&mut value, "containedIn", json!(sequence));
    insert(&mut value, "complete", json!(last.is_some()));
    if let Some(ack) = last {
        let elapsed = ack.map_or(Duration::ZERO, |ack| ack.at.saturating_duration_since(contained.seen));
        insert(&mut value, "elapsedSeconds", json!(elapsed.as_secs_f64()));
        insert(&mut value, "lastAcknowledged", json!(ack.map(|ack| time(ack.time))));
        return answer(StatusCode::OK, &value);
    }
    answer(StatusCode::GATEWAY_TIMEOUT, &value)
}

/// The last acknowledgement when everybody has acknowledged; the inner `None` when nobody is connected.
fn last_ack(pages: &Pages, sequence: u64) -> Option<Option<Ack>> {
    let (mut all, mut last) = (true, None::<Ack>);
    pages.connections.each(|connection| match connection.acknowledged(sequence) {
        Some(ack) => {
            if last.is_none_or(|last| ack.at > last.at) {
                last = Some(ack);
            }
        }
        None => all = false,
    });
    all.then_some(last)
}

/// Waits for the first snapshot that contains a resource version.
async fn contained(pages: &Pages, version: u64) -> Result<Contained, String> {
    let mut revision = None;
    let mut there = None;
    let mut listed = Instant::now();
    loop {
        if listed.elapsed() >= LIST_AGAIN {
            there = None;
        }
        if revision.is_none() {
            revision = pages.seen.lock().history.event(version);
        }
        if revision.is_none() {
            match (&pages.client, &there) {
                (Some(client), None) => {
                    there = Some(list(client).await.map_err(|error| error.to_string())?);
                    listed = Instant::now();
                }
                (None, _) => {
                    let seen = pages.seen.lock();
                    if seen.history.newest().is_some_and(|s| s.resource_version >= version) {
                        revision = Some((seen.revision, Instant::now()));
                    }
                }
                _ => {}
            }
            if let Some(there) = &there
                && let Some(now) = caught_up(&pages.seen, there)
            {
                revision = Some(now);
            }
        }
        if let Some((revision, seen)) = revision {
            let found = pages.seen.lock().history.containing(revision).cloned();
            if let Some(snapshot) = found {
                return Ok(Contained { snapshot, seen });
            }
        }
        tokio::time::sleep(if revision.is_some() { Duration::from_millis(2) } else { POLL }).await;
    }
}

/// The revision at which everything in `there` has been seen, and when that was.
fn caught_up(seen: &Seen, there: &BTreeMap<Kind, Listed>) -> Option<(u64, Instant)> {
    let seen = seen.lock();
    for (kind, listed) in there {
        let known = seen.versions.get(kind)?;
        if listed.objects.iter().any(|(name, version)| known.get(name).is_none_or(|known| known < version)) {
            return None;
        }
        // What is known and was not listed is deleted, unless it came after the list.
        if known.iter().any(|(name, version)| *version <= listed.version && !listed.objects.contains_key(name)) {
            return None;
        }
    }
    let at = seen.history.seen(seen.revision).unwrap_or_else(Instant::now);
    Some((seen.revision, at))
}

fn state(pages: &Pages, sequence: Option<u64>) -> Value {
    let seen = pages.seen.lock();
    let newest = seen.history.newest().map(|s| {
        json!({
            "sequence": s.sequence,
            "version": &*s.version,
            "resourceVersion": s.resource_version,
            "time": time(s.time),
        })
    });
    let proxies: Vec<Value> = pages
        .connections
        .all()
        .iter()
        .map(|c| {
            let ack = match sequence {
                Some(sequence) => c.acknowledged(sequence),
                None => c.acks.back().copied(),
            };
            let snapshot = ack.and_then(|ack| seen.history.snapshot(ack.sequence));
            let mut value = json!({
                "name": c.name(),
                "proxyID": &*c.node.id,
                "target": c.status.target,
                "acknowledged": ack.map(|ack| ack.sequence),
                "resourceVersion": snapshot.map(|s| s.resource_version),
                "time": ack.map(|ack| time(ack.time)),
            });
            if let Some((type_url, nack)) = c.status.refused() {
                insert(&mut value, "refused", json!({ "type": type_url.short(), "error": nack.message }));
            }
            value
        })
        .collect();
    json!({ "snapshot": newest, "proxies": proxies })
}

fn insert(value: &mut Value, key: &str, item: Value) {
    if let Some(map) = value.as_object_mut() {
        map.insert(key.to_owned(), item);
    }
}
