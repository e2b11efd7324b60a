//! `carrick bench check`: random writers, and watchers that drop their stream and resume, judged.
//!
//! Invariant: the judgement is the one of the API's own tests (`carrick_apiserver::check`); here it is longer, over HTTP to
//! servers of their own, which may be killed meanwhile.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use carrick_apiserver::{
    ApiOptions, ApiServer,
    check::{self, Access, Answer, Event, Failure, Held, Kind, Next, Outcome, StoreAccess, Stream, Write},
};
use clap::Args;
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::served::{Served, ServedFlags};
use crate::output;

const PATH: &str = "/api/v1/namespaces/default/configmaps";
const PREFIX: &str = "checked-";

/// How much, and over what.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Changes that writers are to have acknowledged.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    events: u64,
    /// Writers at the same time.
    #[arg(long, default_value_t = 16, value_name = "N")]
    writers: u64,
    /// Watchers at the same time.
    #[arg(long, default_value_t = 8, value_name = "N")]
    watchers: usize,
    /// Objects that they write.
    #[arg(long, default_value_t = 200, value_name = "N")]
    objects: u32,
    /// Events after which a watcher drops its stream, at most.
    #[arg(long, default_value_t = 5_000, value_name = "N")]
    stretch: u64,
    /// Now and then every other watcher sleeps until it is so many revisions behind: above 100,000 it is sent back.
    #[arg(long, default_value_t = 0, value_name = "N")]
    lag: u64,
    /// What randomness begins with.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Over the store itself, in this process, not over HTTP.
    #[arg(long, conflicts_with_all = ["servers", "kill"])]
    direct: bool,
    /// Servers over one etcd; all are written to and watched.
    #[arg(long, default_value_t = 1, value_name = "N")]
    servers: usize,
    /// Kill one server in turn (SIGKILL) so often, and start it again.
    #[arg(long, value_parser = crate::duration::parse, value_name = "DURATION")]
    kill: Option<Duration>,
    #[command(flatten)]
    served: ServedFlags,
}

/// Runs it; 1 when something was found.
///
/// # Errors
/// When it cannot be carried out.
pub async fn run(options: Options) -> Result<u8> {
    let etcd = options.served.storage.etcd.clone().resolve();
    if options.servers > 1 && etcd.is_none() {
        bail!("several servers need one --etcd-servers");
    }
    let folder = options.served.folder("check");
    let wanted = check::Options {
        events: options.events,
        writers: options.writers,
        watchers: options.watchers,
        objects: options.objects,
        stretch: options.stretch,
        lag: options.lag,
        seed: options.seed,
        ..check::Options::default()
    };
    let outcome = super::unless_stopped(async {
        if options.direct {
            direct(&folder.path, etcd, wanted).await
        } else {
            served(&options, &folder.path, etcd, wanted).await
        }
    })
    .await;
    drop(folder);
    let (outcome, kills) = outcome?;
    show(&options, &outcome, kills)?;
    Ok(u8::from(!outcome.findings.is_empty()))
}

fn show(options: &Options, outcome: &Outcome, kills: u64) -> Result<()> {
    let findings: Vec<String> = outcome.findings.iter().map(ToString::to_string).collect();
    let seconds = outcome.took.as_secs_f64();
    let value = json!({"changes": outcome.changes, "withoutAnswer": outcome.doubtful, "refused": outcome.refused,
        "seen": outcome.events, "streams": outcome.streams, "relists": outcome.relists, "kills": kills,
        "seconds": seconds, "changesPerSecond": outcome.changes as f64 / seconds.max(0.001), "findings": findings});
    if let Some(text) = output::machine(&value, options.served.storage.output)? {
        print!("{text}");
        return Ok(());
    }
    println!(
        "{} changes in {seconds:.0} s ({:.0} a second), {} refused, {} without an answer; {} events seen by {} watchers in {} streams, \
         {} lists after compaction, {kills} kills",
        outcome.changes,
        outcome.changes as f64 / seconds.max(0.001),
        outcome.refused,
        outcome.doubtful,
        outcome.events,
        options.watchers,
        outcome.streams,
        outcome.relists,
    );
    match findings.as_slice() {
        [] => println!("nothing lost, doubled, reordered or invented"),
        found => found.iter().for_each(|f| println!("{f}")),
    }
    Ok(())
}

type Cluster = Option<carrick_apiserver::storage::etcd::EtcdOptions>;

async fn direct(folder: &std::path::Path, etcd: Cluster, wanted: check::Options) -> Result<(Outcome, u64)> {
    let mut options = ApiOptions::new(folder, 0);
    options.etcd = etcd;
    let server = ApiServer::start(options).await?;
    let access = [StoreAccess::new(server.store().clone(), PREFIX)];
    let outcome = check::run(&access, &access, wanted).await;
    server.drain(Duration::from_secs(5)).await;
    Ok((outcome?, 0))
}

async fn served(
    options: &Options,
    folder: &std::path::Path,
    etcd: Cluster,
    wanted: check::Options,
) -> Result<(Outcome, u64)> {
    let mut servers = Vec::new();
    let mut access = Vec::new();
    for index in 0..options.servers.max(1) {
        let server = Served::start(&folder.join(index.to_string()), etcd.clone()).await?;
        access.push(HttpAccess { client: server.client().await? });
        servers.push(server);
    }
    let (servers, kills) = (Arc::new(Mutex::new(servers)), Arc::new(Mutex::new(0_u64)));
    let killing = options.kill.map(|every| {
        let (servers, kills) = (servers.clone(), kills.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut turn = 0_usize;
            loop {
                tokio::time::sleep(every).await;
                let mut servers = servers.lock().await;
                turn = turn.wrapping_add(1);
                let count = servers.len().max(1);
                let Some(server) = servers.get_mut(turn % count) else { continue };
                if let Err(error) = server.kill_and_start().await {
                    tracing::error!(%error, "a killed server does not start again");
                }
                *kills.lock().await += 1;
            }
        }))
    });
    let outcome = check::run(&access, &access, wanted).await;
    drop(killing);
    let kills = *kills.lock().await;
    Ok((outcome.context("the check")?, kills))
}

/// One server over HTTP.
#[derive(Clone)]
struct HttpAccess {
    client: Client,
}

impl HttpAccess {
    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(u16, Value), Failure> {
        let bytes = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header("content-type", kind).body(Body::from(bytes));
        let request = request.map_err(|e| Failure::Broken(e.to_string()))?;
        // Whatever happens to a connection: the request may have got through.
        let doubtful = |e: &dyn std::fmt::Display| Failure::Doubtful(e.to_string());
        let answer = self.client.send(request).await.map_err(|e| doubtful(&e))?;
        let code = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.map_err(|e| doubtful(&e))?.to_bytes();
        let value = serde_json::from_slice(&bytes).map_err(|e| doubtful(&e))?;
        match code {
            200 | 201 => Ok((code, value)),
            404 | 409 => Err(Failure::Refused),
            500.. | 429 => Err(Failure::Doubtful(value.to_string())),
            _ => Err(Failure::Broken(value.to_string())),
        }
    }
}

fn revision(object: &Value) -> Option<u64> {
    object.pointer("/metadata/resourceVersion")?.as_str()?.parse().ok()
}

fn read(object: &Value) -> Option<(u32, Held)> {
    let name = object.pointer("/metadata/name")?.as_str()?.strip_prefix(PREFIX)?.parse().ok()?;
    let number = object.pointer("/data/n")?.as_str()?.parse().ok()?;
    Some((name, Held { revision: revision(object)?, number }))
}

impl Access for HttpAccess {
    type Stream = HttpStream;

    async fn write(&self, write: &Write) -> Result<Answer, Failure> {
        let name = format!("{PREFIX}{}", write.object());
        let path = format!("{PATH}/{name}");
        let body = |number: u64| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": number.to_string()}});
        let (_, answer) = match write {
            Write::Create { number, .. } => self.call(Method::POST, PATH, Some(&body(*number))).await?,
            Write::Replace { number, .. } => self.call(Method::PUT, &path, Some(&body(*number))).await?,
            Write::Exchange { number, revision, .. } => {
                let mut object = body(*number);
                object["metadata"]["resourceVersion"] = revision.to_string().into();
                self.call(Method::PUT, &path, Some(&object)).await?
            }
            Write::Remove { revision, .. } => {
                let options = json!({"apiVersion": "v1", "kind": "DeleteOptions",
                    "preconditions": {"resourceVersion": revision.to_string()}});
                self.call(Method::DELETE, &path, Some(&options)).await?;
                return Ok(Answer::Removed);
            }
        };
        read(&answer).map(|(_, held)| Answer::Put(held)).ok_or(Failure::Broken("an answer without an object".into()))
    }

    async fn list(&self) -> Result<(u64, Vec<(u32, Held)>), Failure> {
        let (_, list) = self.call(Method::GET, PATH, None).await?;
        let at = revision(&list).ok_or(Failure::Broken("a list without a revision".into()))?;
        let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
        Ok((at, items.filter_map(read).collect()))
    }

    async fn watch(&self, since: u64) -> Result<HttpStream, Failure> {
        let path = format!("{PATH}?watch=1&allowWatchBookmarks=true&resourceVersion={since}");
        let request = Request::get(path).body(Body::empty()).map_err(|e| Failure::Broken(e.to_string()))?;
        let answer = self.client.send(request).await.map_err(|e| Failure::Doubtful(e.to_string()))?;
        match answer.status().as_u16() {
            200 => Ok(HttpStream { body: answer.into_body(), rest: Vec::new(), from: 0 }),
            code => Err(Failure::Doubtful(format!("watch: {code}"))),
        }
    }
}

/// JSON lines of a watch.
struct HttpStream {
    body: Body,
    rest: Vec<u8>,
    /// What of it is taken.
    from: usize,
}

impl HttpStream {
    async fn line(&mut self) -> Option<Bytes> {
        loop {
            let rest = self.rest.get(self.from..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|b| *b == b'\n') {
                let line = Bytes::copy_from_slice(rest.get(..end).unwrap_or_default());
                self.from = self.from.saturating_add(end).saturating_add(1);
                return Some(line);
            }
            self.rest.drain(..self.from.min(self.rest.len()));
            self.from = 0;
            match self.body.frame().await {
                Some(Ok(frame)) => self.rest.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default()),
                _ => return None,
            }
        }
    }
}

impl Stream for HttpStream {
    async fn next(&mut self) -> Next {
        loop {
            let Some(line) = self.line().await else { return Next::Ended };
            let Ok(event) = serde_json::from_slice::<Value>(&line) else { return Next::Ended };
            let object = event.get("object").unwrap_or(&Value::Null);
            let kind = match event.get("type").and_then(Value::as_str) {
                Some("ADDED") => Kind::Added,
                Some("MODIFIED") => Kind::Modified,
                Some("DELETED") => Kind::Deleted,
                Some("BOOKMARK") => match revision(object) {
                    Some(revision) => return Next::Bookmark(revision),
                    None => continue,
                },
                Some("ERROR") if object.get("code").and_then(Value::as_u64) == Some(410) => return Next::Expired,
                _ => return Next::Ended,
            };
            let Some((object, held)) = read(object) else { continue };
            return Next::Event(Event { revision: held.revision, kind, object, number: held.number });
        }
    }
}
