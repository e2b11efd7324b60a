//! Random writers, and watchers that drop and resume: no event is lost, doubled or out of order.

use crate::bench::Bench;
use crate::http::{Access, Client, config_map};
use carrick_apiserver::Store;
use carrick_apiserver::storage::EngineOptions;
use http::Method;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const WRITERS: u64 = 8;
const WRITES: usize = 150;
const WATCHERS: u64 = 8;
const PATH: &str = "/api/v1/namespaces/default/configmaps";

fn revision(object: &Value) -> u64 {
    object.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap().parse().unwrap()
}

async fn write(access: Access, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut client = access.admin().await.unwrap();
    for number in 0..WRITES as u64 {
        let name = format!("c{}", random.random_range(0..12));
        let path = format!("{PATH}/{name}");
        let body = config_map(&name, seed * 1_000_000 + number);
        let (code, answer) = match random.random_range(0..10) {
            0..3 => client.call(Method::POST, PATH, Some(&body)).await.unwrap(),
            3..8 => client.call(Method::PATCH, &path, Some(&body)).await.unwrap(),
            _ => client.call(Method::DELETE, &path, None).await.unwrap(),
        };
        assert!(matches!(code, 200 | 201 | 404 | 409), "{code} {answer}");
    }
}

/// One event as it is remembered: revision, type, name.
type Seen = (u64, String, String);

struct Watcher {
    store: Store,
    client: Client,
    random: StdRng,
    /// Between the last list and now.
    events: Vec<Seen>,
    state: BTreeMap<String, u64>,
    at: u64,
    relists: usize,
    resumes: usize,
}

impl Watcher {
    async fn relist(&mut self) {
        let (code, list) = self.client.get(PATH).await;
        assert_eq!(code, 200);
        self.state = list["items"].as_array().unwrap().iter().map(|o| (name(o), revision(o))).collect();
        self.at = revision(&list);
        self.relists += 1;
        assert!(self.state.values().all(|r| *r <= self.at));
    }

    /// Follows until told to stop and caught up, dropping the stream now and then.
    async fn follow(mut self, slow: bool, stop: Arc<AtomicBool>, last: Arc<AtomicUsize>) -> Self {
        self.relist().await;
        loop {
            let path = format!("{PATH}?watch=1&allowWatchBookmarks=true&timeoutSeconds=1&resourceVersion={}", self.at);
            let mut lines = self.client.watch(&path).await;
            let take = self.random.random_range(1..60);
            self.resumes += 1;
            for _ in 0..take {
                let Some(event) = lines.next().await else { break };
                let object = &event["object"];
                match event["type"].as_str().unwrap() {
                    "ERROR" => {
                        assert_eq!(object["code"], 410, "{object}");
                        self.relist().await;
                        break;
                    }
                    "BOOKMARK" => {
                        assert!(revision(object) >= self.at);
                        self.at = revision(object);
                    }
                    kind => self.take(kind, object),
                }
            }
            if slow {
                // Until a short history has gone on without this watcher.
                drop(lines);
                while self.store.revision() < self.at + 20 && !stop.load(Ordering::SeqCst) {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
            if stop.load(Ordering::SeqCst) && self.at >= last.load(Ordering::SeqCst) as u64 {
                return self;
            }
        }
    }

    fn take(&mut self, kind: &str, object: &Value) {
        let (name, at) = (name(object), revision(object));
        assert!(at > self.at, "event {at} came at or after {}", self.at);
        self.at = at;
        let before = match kind {
            "DELETED" => self.state.remove(&name),
            _ => self.state.insert(name.clone(), at),
        };
        assert_eq!(before.is_some(), kind != "ADDED", "{kind} of {name} at {at}, which was {before:?}");
        self.events.push((at, kind.to_owned(), name));
    }
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

async fn run(engine: EngineOptions, slow: bool) -> Vec<Watcher> {
    let bench = Bench::with(|o| o.engine = engine).await;
    let access = Access::of(bench.server.kubeconfig());
    let stop = Arc::new(AtomicBool::new(false));
    let last = Arc::new(AtomicUsize::new(usize::MAX));
    let mut watchers = Vec::new();
    for seed in 0..WATCHERS {
        let client = access.admin().await.unwrap();
        let random = StdRng::seed_from_u64(seed);
        let watcher = Watcher {
            store: bench.server.store().clone(),
            client,
            random,
            events: Vec::new(),
            state: BTreeMap::new(),
            at: 0,
            relists: 0,
            resumes: 0,
        };
        watchers.push(tokio::spawn(watcher.follow(slow && seed % 2 == 1, stop.clone(), last.clone())));
    }
    let writers: Vec<_> = (0..WRITERS).map(|seed| tokio::spawn(write(access.clone(), seed))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut client = access.admin().await.unwrap();
    // A last change, so that every watcher has something to see the end by.
    let (code, end) = client.post(PATH, &config_map("the-end", 0)).await;
    assert_eq!(code, 201);
    last.store(usize::try_from(revision(&end)).unwrap(), Ordering::SeqCst);
    stop.store(true, Ordering::SeqCst);
    let (_, list) = client.get(PATH).await;
    let finally: BTreeMap<String, u64> =
        list["items"].as_array().unwrap().iter().map(|o| (name(o), revision(o))).collect();
    let mut done = Vec::new();
    for watcher in watchers {
        let watcher = watcher.await.unwrap();
        assert_eq!(watcher.state, finally);
        done.push(watcher);
    }
    bench.stop().await;
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_drop_and_resume_see_every_event_once() {
    let watchers = run(EngineOptions::default(), false).await;
    let most = watchers.iter().map(|w| w.events.len()).max().unwrap();
    assert!(most > WRITES, "only {most} events");
    let longest = watchers.iter().max_by_key(|w| w.events.len()).unwrap();
    for watcher in &watchers {
        assert_eq!(watcher.relists, 1, "nothing was compacted, so nobody may be sent back");
        assert!(watcher.resumes > 3);
        // They started at different moments: what they saw is the same from there on.
        let common = &longest.events[longest.events.len() - watcher.events.len()..];
        assert_eq!(watcher.events, common);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_behind_the_history_are_told_so_and_recover() {
    let engine = EngineOptions { history_changes: 5, ..EngineOptions::default() };
    let watchers = run(engine, true).await;
    let relists: usize = watchers.iter().map(|w| w.relists).sum();
    assert!(relists > watchers.len(), "no watcher fell behind a history of 5 changes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunked_lists_are_of_one_moment() {
    let bench = Bench::start().await;
    let access = Access::of(bench.server.kubeconfig());
    let mut client = access.admin().await.unwrap();
    for n in 0..10 {
        client.post(PATH, &config_map(&format!("c{n}"), 0)).await;
    }
    let (_, first) = client.get(&format!("{PATH}?limit=4")).await;
    let (_, whole) =
        client.get(&format!("{PATH}?resourceVersion={}&resourceVersionMatch=Exact", revision(&first))).await;
    assert!(first["metadata"]["remainingItemCount"].as_u64().unwrap() >= 6);
    client.call(Method::DELETE, &format!("{PATH}/c7"), None).await.unwrap();
    client.call(Method::PATCH, &format!("{PATH}/c8"), Some(&json!({"data": {"n": "9"}}))).await.unwrap();
    client.post(PATH, &config_map("c55", 0)).await;
    let mut items = first["items"].as_array().unwrap().clone();
    let mut next = first["metadata"]["continue"].as_str().map(str::to_owned);
    while let Some(token) = next {
        let (code, page) = client.get(&format!("{PATH}?limit=4&continue={token}")).await;
        assert_eq!(code, 200, "{page}");
        assert_eq!(revision(&page), revision(&first));
        items.extend(page["items"].as_array().unwrap().iter().cloned());
        next = page["metadata"]["continue"].as_str().map(str::to_owned);
    }
    assert_eq!(&Value::Array(items), &whole["items"]);
    let (_, now) = client.get(&format!("{PATH}?limit=500&labelSelector=!x")).await;
    let names: Vec<String> = now["items"].as_array().unwrap().iter().map(name).collect();
    assert!(names.contains(&"c55".to_owned()) && !names.contains(&"c7".to_owned()), "{names:?}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn selectors_turn_changes_into_additions_and_deletions() {
    let bench = Bench::start().await;
    let access = Access::of(bench.server.kubeconfig());
    let mut client = access.admin().await.unwrap();
    let (_, list) = client.get(PATH).await;
    let at = revision(&list);
    let label = |value: &str| json!({"metadata": {"labels": {"on": value}}});
    client.post(PATH, &config_map("x", 0)).await;
    for value in ["yes", "no", "yes"] {
        client.call(Method::PATCH, &format!("{PATH}/x"), Some(&label(value))).await.unwrap();
    }
    client.call(Method::PATCH, &format!("{PATH}/x"), Some(&json!({"data": {"n": "1"}}))).await.unwrap();
    client.call(Method::DELETE, &format!("{PATH}/x"), None).await.unwrap();
    let mut lines = client.watch(&format!("{PATH}?watch=1&labelSelector=on%3Dyes&resourceVersion={at}")).await;
    let mut kinds = Vec::new();
    while kinds.len() < 5 {
        let event = lines.next().await.unwrap();
        kinds.push(event["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(kinds, ["ADDED", "DELETED", "ADDED", "MODIFIED", "DELETED"]);
    // A watch list: what is there, a bookmark, then changes.
    client.post(PATH, &config_map("y", 0)).await;
    let path = format!(
        "{PATH}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&fieldSelector=metadata.name%3Dy"
    );
    let mut lines = client.watch(&path).await;
    assert_eq!(lines.next().await.unwrap()["object"]["metadata"]["name"], "y");
    let mark = lines.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    client.call(Method::DELETE, &format!("{PATH}/y"), None).await.unwrap();
    assert_eq!(lines.next().await.unwrap()["type"], "DELETED");
    bench.stop().await;
}
