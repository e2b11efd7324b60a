//! The watch stream: initial state where asked for, then every change, with bookmarks.
//!
//! Invariant: a stream holds at most one frame of bytes; the client's reading pulls the next. It ends at its time-out,
//! at a drain, when its kind is served no more, or with an `ERROR` 410 event when history has gone on without it.
//! What it leaves to others: history (`store::Watch`).

use super::respond::{self, Answer, Body};
use super::table::Shape;
use crate::catalog::{Conversion, Resource};
use crate::error::{ApiError, ApiResult};
use crate::rest::negotiate::Form;
use crate::selector::Selectors;
use crate::storage::Record;
use crate::store::{Event, EventType, Store, Watch, decode_record};
use bytes::Bytes;
use carrick_runtime::drain::Drain;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// Events are packed into frames of about this size.
const FRAME: usize = 64 << 10;
/// Objects that are there at the beginning are fetched so many at a time.
const INITIAL: usize = 500;
/// How often an idle watcher is told the revision.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);

/// What a watch is to show.
pub struct WatchRequest {
    /// The resource.
    pub resource: Arc<Resource>,
    /// Version of the objects.
    pub version: String,
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// Filters.
    pub selectors: Selectors,
    /// Form of the objects.
    pub form: Form,
    /// `includeObject`.
    pub include: Option<String>,
    /// Changes after this revision; `None` = begin with what is there.
    pub since: Option<u64>,
    /// Whether bookmarks are wanted.
    pub bookmarks: bool,
    /// Whether the end of the initial state is to be marked.
    pub mark_initial_end: bool,
    /// Life of the stream.
    pub timeout: Duration,
}

struct Stream {
    request: WatchRequest,
    store: Store,
    watch: Watch,
    /// Tells that the served kinds have changed.
    served: tokio::sync::watch::Receiver<u64>,
    drain: Drain,
    /// What is there at the beginning, as far as it was fetched.
    initial: VecDeque<Record>,
    /// Where the rest of it goes on: after this namespace and name.
    more: Option<(String, String)>,
    /// What it is of, until its end is told.
    initial_revision: Option<u64>,
    first: bool,
    /// Events are shown as they are stored, so that all such watches share their bytes.
    as_stored: bool,
    ends: Instant,
    next_bookmark: Instant,
    ending: bool,
    done: bool,
    /// What is still to be converted, in its order; for kinds whose versions differ.
    held: Option<Vec<Held>>,
    _permit: OwnedSemaphorePermit,
}

/// A line of the stream before its object is converted.
enum Held {
    Event(String, Value),
    Ready(Vec<u8>),
}

/// Lines that are converted together, at most.
const HELD: usize = 256;

/// Starts a watch. One from before the kept history begins and ends with an `ERROR` event, as in Kubernetes.
///
/// # Errors
/// What the store says, except `Expired`.
pub fn start(store: &Store, request: WatchRequest, drain: Drain, permit: OwnedSemaphorePermit) -> ApiResult<Answer> {
    let id = request.resource.id.clone();
    let (since, initial, more, initial_revision) = match request.since {
        Some(since) => (since, VecDeque::new(), None, None),
        None => {
            let page = store.engine().page(&id, request.namespace.as_deref(), None, Some(INITIAL), None);
            let page = page.map_err(|e| crate::store::storage_error(&id, "", e))?;
            let records = page.items.into_iter().map(|(_, record)| record).collect();
            (page.revision, records, page.next, Some(page.revision))
        }
    };
    let watch = match store.watch_within(&id, request.namespace.as_deref(), since) {
        Err(error @ ApiError::Expired(_)) => return Ok(respond::json(200, &error_event(&error))),
        watch => watch?,
    };
    let now = Instant::now();
    let stream = Stream {
        ends: now + request.timeout,
        next_bookmark: now + BOOKMARK_EVERY,
        held: (!matches!(request.resource.conversion, Conversion::Same)).then(Vec::new),
        as_stored: matches!(request.form, Form::Plain)
            && matches!(request.resource.conversion, Conversion::Same)
            && request.selectors.is_empty()
            && request.resource.versions.first() == Some(&request.version),
        request,
        store: store.clone(),
        watch,
        served: store.catalog().changes(),
        drain,
        initial,
        more,
        initial_revision,
        first: true,
        ending: false,
        done: false,
        _permit: permit,
    };
    let frames = futures_util::stream::unfold(stream, |mut stream| async move {
        let bytes = stream.frame().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), stream))
    });
    let body: Body = StreamBody::new(frames).boxed_unsync();
    let mut answer = respond::raw(200, "application/json", Bytes::new());
    *answer.body_mut() = body;
    Ok(answer)
}

fn error_event(error: &ApiError) -> Value {
    json!({"type": "ERROR", "object": error.to_status()})
}

impl Stream {
    /// The next bytes, or `None` at the end. Never empty.
    async fn frame(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while !self.done {
            self.fill(&mut out);
            self.release(&mut out).await;
            if !out.is_empty() {
                return Some(Bytes::from(out));
            }
            // What became of the last objects of a kind that is gone has been told.
            if self.done || self.ending {
                break;
            }
            let drain = self.drain.clone();
            tokio::select! {
                event = self.watch.next() => self.take(event, &mut out),
                () = tokio::time::sleep_until(self.ends.min(self.next_bookmark)) => self.timers(&mut out),
                Ok(()) = self.served.changed() => self.ending = !self.is_served(),
                () = drain.graceful() => self.done = true,
            }
            if !out.is_empty() {
                // What else is there goes into the same frame.
                self.fill(&mut out);
                return Some(Bytes::from(out));
            }
            self.release(&mut out).await;
            if !out.is_empty() {
                return Some(Bytes::from(out));
            }
        }
        self.release(&mut out).await;
        (!out.is_empty()).then(|| Bytes::from(out))
    }

    /// Converts what was held back.
    async fn release(&mut self, out: &mut Vec<u8>) {
        let Some(held) = self.held.as_mut().map(std::mem::take).filter(|held| !held.is_empty()) else { return };
        let objects = held.iter().filter_map(|line| match line {
            Held::Event(_, object) => Some(object.clone()),
            Held::Ready(_) => None,
        });
        let (resource, version) = (self.request.resource.clone(), self.request.version.clone());
        match super::convert::convert(&self.store, &resource, objects.collect(), &version).await {
            Ok(converted) => {
                let mut converted = converted.into_iter();
                for line in held {
                    match line {
                        Held::Event(kind, _) => out.extend(self.line(&kind, converted.next().unwrap_or_default())),
                        Held::Ready(bytes) => out.extend(bytes),
                    }
                }
            }
            Err(error) => {
                out.extend(respond::line(&error_event(&error)));
                self.done = true;
            }
        }
    }

    /// Appends everything that can be had without waiting, up to a frame.
    fn fill(&mut self, out: &mut Vec<u8>) {
        while out.len() < FRAME && self.held.as_ref().is_none_or(|held| held.len() < HELD) {
            if let Some(record) = self.initial.pop_front() {
                if let Some(object) = decode_record(&record).filter(|o| self.request.selectors.matches(o)) {
                    self.emit(EventType::Added.as_str(), object, out);
                }
                continue;
            }
            if let Some(after) = self.more.take() {
                if let Err(error) = self.fetch(&after) {
                    return self.take(Err(error), out);
                }
                continue;
            }
            if let Some(revision) = self.initial_revision.take() {
                if self.request.mark_initial_end {
                    self.bookmark(revision, true, out);
                }
                continue;
            }
            match self.watch.ready() {
                Ok(Some(event)) => self.take(Ok(event), out),
                Ok(None) => return,
                Err(error) => return self.take(Err(error), out),
            }
            if self.done {
                return;
            }
        }
    }

    /// More of what is there at the beginning, as it was then.
    fn fetch(&mut self, (namespace, name): &(String, String)) -> ApiResult<()> {
        let id = &self.request.resource.id;
        let (within, at) = (self.request.namespace.as_deref(), self.initial_revision);
        let page = self.store.engine().page(id, within, Some((namespace, name)), Some(INITIAL), at);
        let page = page.map_err(|e| crate::store::storage_error(id, "", e))?;
        self.initial = page.items.into_iter().map(|(_, record)| record).collect();
        self.more = page.next;
        Ok(())
    }

    fn take(&mut self, event: ApiResult<Event>, out: &mut Vec<u8>) {
        match event {
            Ok(event) if self.as_stored => out.extend_from_slice(&event.line()),
            Ok(event) => {
                if let Some((kind, object)) = self.seen(&event) {
                    self.emit(kind.as_str(), object, out);
                }
            }
            Err(error) => {
                self.put(respond::line(&error_event(&error)), out);
                self.done = true;
            }
        }
    }

    /// What a change looks like through the selectors.
    fn seen(&self, event: &Event) -> Option<(EventType, Value)> {
        if self.request.namespace.as_deref().is_some_and(|ns| ns != event.namespace()) {
            return None;
        }
        let selectors = &self.request.selectors;
        if selectors.is_empty() {
            return Some((event.kind, (*event.object).clone()));
        }
        let now = event.kind != EventType::Deleted && selectors.matches(&event.object);
        let before = event.previous().filter(|old| selectors.matches(old));
        match (before, now) {
            (None, true) => Some((EventType::Added, (*event.object).clone())),
            (Some(_), true) => Some((EventType::Modified, (*event.object).clone())),
            // The last form that the watcher could see, at the revision of the change.
            (Some(mut old), false) => {
                if let Some(meta) = old.get_mut("metadata").and_then(Value::as_object_mut) {
                    meta.insert("resourceVersion".into(), json!(event.revision().to_string()));
                }
                Some((EventType::Deleted, old))
            }
            (None, false) => None,
        }
    }

    fn shape(&self) -> Shape<'_> {
        Shape {
            resource: &self.request.resource,
            version: &self.request.version,
            form: self.request.form,
            include: self.request.include.as_deref(),
            now: self.store.clock().now(),
        }
    }

    fn emit(&mut self, kind: &str, object: Value, out: &mut Vec<u8>) {
        if let Some(held) = &mut self.held {
            return held.push(Held::Event(kind.to_owned(), object));
        }
        out.extend(self.line(kind, object));
    }

    fn line(&mut self, kind: &str, object: Value) -> Vec<u8> {
        let shown = self.shape().one(object, self.first);
        self.first = false;
        respond::line(&json!({"type": kind, "object": shown}))
    }

    /// A line that needs no converting, after those that do.
    fn put(&mut self, line: Vec<u8>, out: &mut Vec<u8>) {
        match &mut self.held {
            Some(held) => held.push(Held::Ready(line)),
            None => out.extend(line),
        }
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool, out: &mut Vec<u8>) {
        let shown = self.shape().bookmark(revision, initial_end);
        self.put(respond::line(&json!({"type": "BOOKMARK", "object": shown})), out);
    }

    /// Whether there still is such a kind.
    fn is_served(&self) -> bool {
        let resource = &self.request.resource;
        self.store.catalog().find(&resource.group, &self.request.version, &resource.plural).is_some()
    }

    fn timers(&mut self, out: &mut Vec<u8>) {
        let now = Instant::now();
        if now >= self.next_bookmark || now >= self.ends {
            self.next_bookmark = now + BOOKMARK_EVERY;
            // Looks at the history once more, so that the bookmark is fresh.
            self.fill(out);
            if self.request.bookmarks
                && let Some(revision) = self.watch.caught_up()
            {
                self.bookmark(revision, false, out);
            }
        }
        if now >= self.ends {
            self.done = true;
        }
    }
}

/// The error of a list or watch that asks for the future.
pub fn too_large(asked: u64, current: u64) -> ApiError {
    ApiError::Timeout {
        message: format!("Timeout: Too large resource version: {asked}, current: {current}"),
        cause: Some(crate::error::Cause {
            reason: "ResourceVersionTooLarge",
            message: "Too large resource version".into(),
            field: String::new(),
        }),
    }
}
