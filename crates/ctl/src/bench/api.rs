//! `carrick bench api`: the embedded API with many objects, many watches and many writes.
//!
//! Invariant: the server is a process of its own, so that its memory and processor time are its own; the load shares the
//! machine with it, which the figures do not subtract.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use futures_util::{StreamExt, stream};
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::served::{Served, ServedFlags};
use crate::{output, process};

/// Requests under way at once while objects are made.
const TOGETHER: usize = 64;
/// Objects of one page when everything is listed.
const PAGE: u32 = 500;

/// How much.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Objects, in as many namespaces as --namespaces.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    objects: u32,
    /// Namespaces; a watch is of one of them.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    namespaces: u32,
    /// Watches.
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    watches: u32,
    /// Writes a second.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    rate: u32,
    /// For how long.
    #[arg(long, default_value = "30s", value_parser = crate::duration::parse, value_name = "DURATION")]
    time: Duration,
    /// Watches of everything that are never read.
    #[arg(long, default_value_t = 50, value_name = "N")]
    slow: u32,
    /// Bytes of an object's content.
    #[arg(long, default_value_t = 500, value_name = "BYTES")]
    size: usize,
    #[command(flatten)]
    served: ServedFlags,
}

/// Measures.
///
/// # Errors
/// When the server cannot be started or answers what it should not.
pub async fn run(options: Options) -> Result<u8> {
    let folder = options.served.folder("bench-api");
    let measured = super::unless_stopped(measure(&options, &folder.path)).await;
    drop(folder);
    let measured = measured?;
    match output::machine(&measured, options.served.storage.output)? {
        Some(text) => print!("{text}"),
        None => {
            for (name, value) in measured.as_object().into_iter().flatten() {
                println!("{name:32} {value}");
            }
        }
    }
    Ok(0)
}

fn namespace(options: &Options, number: u32) -> String {
    format!("bench-{}", number % options.namespaces.max(1))
}

fn rounded(value: f64) -> Value {
    json!((value * 100.0).round() / 100.0)
}

async fn measure(options: &Options, folder: &std::path::Path) -> Result<Value> {
    process::take_descriptors();
    let mut server = Served::start(folder, options.served.storage.etcd.clone().resolve()).await?;
    let client = server.client().await?;
    let mut shown = serde_json::Map::new();
    let memory = |server: &Served| {
        server.pid().and_then(|pid| process::resident(pid).ok()).map_or(0.0, |b| b as f64 / f64::from(1 << 20))
    };
    let mut put = |name: &str, value: Value| drop(shown.insert(name.to_owned(), value));
    put("start empty, ms", json!(server.took.as_millis() as u64));
    put("memory empty, MiB", rounded(memory(&server)));

    let begun = Instant::now();
    fill(&client, options).await?;
    put("objects", json!(options.objects));
    put("made a second", rounded(f64::from(options.objects) / begun.elapsed().as_secs_f64().max(0.001)));
    put("memory filled, MiB", rounded(memory(&server)));

    server.kill_and_start().await?;
    let client = server.client().await?;
    put("start filled after SIGKILL, ms", json!(server.took.as_millis() as u64));
    put("memory after start, MiB", rounded(memory(&server)));
    let begun = Instant::now();
    let listed = list(&client).await?;
    put("listed in pages, objects", json!(listed));
    put("listed in pages, ms", json!(begun.elapsed().as_millis() as u64));

    let seen = Arc::new(AtomicU64::new(0));
    let mut watches = JoinSet::new();
    let mut watching = client.clone();
    for number in 0..options.watches {
        // As many programs would, each by connections of its own.
        if number % 20 == 0 {
            watching = server.client().await?;
        }
        let path = format!(
            "/api/v1/namespaces/{}/configmaps?watch=1&resourceVersion={}",
            namespace(options, number),
            at(&client).await?
        );
        watches.spawn(follow(watching.clone(), path, seen.clone()));
    }
    let mut slow = Vec::new();
    for _ in 0..options.slow {
        let request = Request::get("/api/v1/configmaps?watch=1").body(Body::empty())?;
        // A connection that nobody reads stands still for everybody on it.
        let alone = server.client().await?;
        let answer = alone.send(request).await.context("a slow watch")?;
        slow.push((alone, answer));
    }
    let load = load(&client, options, server.pid()).await?;
    let expected = load.writes.saturating_mul(u64::from(options.watches) / u64::from(options.namespaces.max(1)));
    let until = Instant::now() + Duration::from_secs(20);
    while seen.load(Ordering::Relaxed) < expected && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    put("watches", json!(options.watches));
    put("watches never read", json!(slow.len()));
    put("writes a second, wanted", json!(options.rate));
    put("writes a second", rounded(load.writes as f64 / load.seconds));
    put("write p50, ms", rounded(load.at(0.5)));
    put("write p99, ms", rounded(load.at(0.99)));
    put("events seen", json!(seen.load(Ordering::Relaxed)));
    put("events expected", json!(expected));
    put("processor of the server", rounded(load.processor));
    put("memory under load, MiB", rounded(memory(&server)));
    hostile(&client).await?;
    put("memory after hostile bodies, MiB", rounded(memory(&server)));
    drop((watches, slow));
    Ok(Value::Object(shown))
}

async fn call(client: &Client, method: Method, path: &str, body: Option<&Value>) -> Result<(u16, Vec<u8>)> {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let bytes = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
    let request = Request::builder().method(method).uri(path).header("content-type", kind).body(Body::from(bytes))?;
    let answer = client.send(request).await?;
    let code = answer.status().as_u16();
    Ok((code, answer.into_body().collect().await?.to_bytes().to_vec()))
}

async fn at(client: &Client) -> Result<String> {
    let (_, list) = call(client, Method::GET, "/api/v1/namespaces?limit=1", None).await?;
    let list: Value = serde_json::from_slice(&list)?;
    Ok(list.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or("0").to_owned())
}

async fn fill(client: &Client, options: &Options) -> Result<()> {
    for number in 0..options.namespaces {
        let name = namespace(options, number);
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        expect(call(client, Method::POST, "/api/v1/namespaces", Some(&object)).await?)?;
    }
    let content = "x".repeat(options.size);
    let mut made = stream::iter(0..options.objects)
        .map(|number| {
            let namespace = namespace(options, number);
            let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("object-{number}"),
                "labels": {"app": format!("app-{}", number % 1000)}}, "data": {"content": content, "n": "0"}});
            async move { call(client, Method::POST, &format!("/api/v1/namespaces/{namespace}/configmaps"), Some(&object)).await }
        })
        .buffer_unordered(TOGETHER);
    while let Some(answer) = made.next().await {
        expect(answer?)?;
    }
    Ok(())
}

fn expect((code, body): (u16, Vec<u8>)) -> Result<()> {
    if !matches!(code, 200 | 201 | 409) {
        bail!("{code}: {}", String::from_utf8_lossy(&body));
    }
    Ok(())
}

async fn list(client: &Client) -> Result<usize> {
    let (mut count, mut next) = (0_usize, String::new());
    loop {
        let path = format!("/api/v1/configmaps?limit={PAGE}{next}");
        let (code, body) = call(client, Method::GET, &path, None).await?;
        let list: Value = serde_json::from_slice(&body)?;
        if code != 200 {
            bail!("{list}");
        }
        count = count.saturating_add(list.get("items").and_then(Value::as_array).map_or(0, Vec::len));
        match list.pointer("/metadata/continue").and_then(Value::as_str).filter(|c| !c.is_empty()) {
            Some(token) => next = format!("&continue={token}"),
            None => return Ok(count),
        }
    }
}

/// Counts the lines of a watch.
async fn follow(client: Client, path: String, seen: Arc<AtomicU64>) {
    let Ok(request) = Request::get(path).body(Body::empty()) else { return };
    let Ok(answer) = client.send(request).await else { return };
    let mut body = answer.into_body();
    while let Some(Ok(frame)) = body.frame().await {
        let lines = frame.data_ref().map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count());
        seen.fetch_add(lines as u64, Ordering::Relaxed);
    }
}

struct Load {
    writes: u64,
    seconds: f64,
    /// Milliseconds of each write, sorted.
    took: Vec<f64>,
    /// Processors that the server used.
    processor: f64,
}

impl Load {
    fn at(&self, share: f64) -> f64 {
        let index = (self.took.len() as f64 * share) as usize;
        self.took.get(index.min(self.took.len().saturating_sub(1))).copied().unwrap_or(0.0)
    }
}

/// Changes objects at the wanted rate, whatever the answers take.
async fn load(client: &Client, options: &Options, pid: Option<u32>) -> Result<Load> {
    let mut ticker = tokio::time::interval(Duration::from_secs(1) / options.rate.max(1));
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let used = || pid.and_then(|pid| process::cpu(pid).ok()).map_or(0.0, |time| time.as_secs_f64());
    let (begun, before) = (Instant::now(), used());
    let mut underway = JoinSet::new();
    let mut took = Vec::new();
    let mut number = 0_u32;
    while begun.elapsed() < options.time {
        ticker.tick().await;
        number = number.wrapping_add(1);
        // Every namespace in turn, and there an object that is in it.
        let object = number % options.objects.max(1);
        let path = format!("/api/v1/namespaces/{}/configmaps/object-{object}", namespace(options, object));
        let (client, due) = (client.clone(), Instant::now());
        let body = json!({"data": {"n": number.to_string()}});
        underway.spawn(async move {
            let answer = call(&client, Method::PATCH, &path, Some(&body)).await.and_then(expect);
            answer.map(|()| due.elapsed().as_secs_f64() * 1000.0)
        });
        while let Some(done) = underway.try_join_next() {
            took.push(done??);
        }
    }
    while let Some(done) = underway.join_next().await {
        took.push(done??);
    }
    let seconds = begun.elapsed().as_secs_f64();
    took.sort_by(f64::total_cmp);
    Ok(Load { writes: took.len() as u64, seconds, processor: (used() - before) / seconds, took })
}

/// Bodies that are too large, too deep, or never end well.
async fn hostile(client: &Client) -> Result<()> {
    let path = "/api/v1/namespaces/bench-0/configmaps";
    let deep = format!("{}1{}", "{\"a\":".repeat(200_000), "}".repeat(200_000));
    let wide = format!("{{\"metadata\":{{\"name\":\"w\"}},\"data\":{{{}}}}}", vec!["\"k\":\"v\""; 300_000].join(","));
    let anchors = format!(
        "a: &a [x,x,x,x,x,x,x,x,x]\n{}",
        (0..9).map(|n| format!("b{n}: &b{n} [*a,*a,*a,*a,*a]\n")).collect::<String>()
    );
    let bodies: [(&str, Vec<u8>); 4] = [
        ("application/json", vec![b'['; 4 << 20]),
        ("application/json", deep.into_bytes()),
        ("application/json", wide.into_bytes()),
        ("application/yaml", anchors.into_bytes()),
    ];
    let mut sent = JoinSet::new();
    for _ in 0..16 {
        for (kind, body) in &bodies {
            let request = Request::post(path).header("content-type", *kind).body(Body::from(body.clone()))?;
            let client = client.clone();
            sent.spawn(async move { client.send(request).await.map(|answer| answer.status().as_u16()) });
        }
    }
    while let Some(answer) = sent.join_next().await {
        // A connection may be closed on who sends too much; what is only odd may be stored. A fault of ours is neither.
        if let Ok(code @ 500..) = answer? {
            bail!("a hostile body was answered with {code}");
        }
    }
    Ok(())
}
