//! A case file: what it says, and how placeholders become the names of a pair.
//!
//! Invariant: an unknown field is an error, so a misspelt expectation cannot pass unnoticed.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::lab::{Names, Pair};
use crate::demo::{
    call::{Call, Kind},
    grpc, websocket,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    about: String,
    #[serde(default)]
    manifests: String,
    #[serde(default)]
    requests: Vec<Request>,
    #[serde(default)]
    told: Vec<Told>,
    #[serde(default)]
    refused: Option<String>,
    #[serde(default)]
    gateway: bool,
    #[serde(default)]
    transparent: bool,
    #[serde(default)]
    pairs: Vec<String>,
}

/// A case as it is for one pair.
#[derive(Debug)]
pub struct Case {
    /// The objects to apply.
    pub objects: Vec<Value>,
    /// What is asked, and what must come back.
    pub requests: Vec<Request>,
    /// What objects must be told in their status.
    pub told: Vec<Told>,
    /// The API must refuse an object with this text.
    pub refused: Option<String>,
    /// A gateway of the client's engine is needed.
    pub gateway: bool,
    /// The server is needed whose packets keep their addresses.
    pub transparent: bool,
    /// The only pairs it is for; all when empty.
    pub pairs: Vec<Pair>,
}

/// Conditions that must come to stand in an object's status.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Told {
    api_version: String,
    kind: String,
    name: String,
    /// Each as `Type=Status` or `Type=Status Reason`, wherever in the status.
    conditions: Vec<String>,
}

impl Told {
    /// As much of the object as it takes to find it.
    pub fn object(&self) -> Value {
        json!({"apiVersion": self.api_version, "kind": self.kind, "metadata": {"name": self.name}})
    }

    /// What of it a status lacks.
    pub fn missing(&self, status: &Value) -> Option<String> {
        let mut there = Vec::new();
        conditions(status, &mut there);
        let lacks = self.conditions.iter().find(|wanted| {
            !there.iter().any(|c| c == *wanted || c.split_once(' ').is_some_and(|(short, _)| short == *wanted))
        })?;
        Some(format!("{} {}: want {lacks}, got {}", self.kind, self.name, there.join(", ")))
    }
}

fn conditions(value: &Value, out: &mut Vec<String>) {
    if let (Some(kind), Some(status)) = (value["type"].as_str(), value["status"].as_str()) {
        out.push(format!("{kind}={status} {}", value["reason"].as_str().unwrap_or_default()));
    }
    match value {
        Value::Array(all) => all.iter().for_each(|v| conditions(v, out)),
        Value::Object(map) => map.values().for_each(|v| conditions(v, out)),
        _ => {}
    }
}

/// One request and what must come back.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    url: String,
    /// Manifests that are applied before it, while the case's own are there.
    #[serde(default)]
    apply: String,
    /// The objects of these.
    #[serde(skip)]
    pub objects: Vec<Value>,
    /// The pod that asks; the pair's client when there is none.
    #[serde(default)]
    pub from: Option<String>,
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    /// Not by curl: over a WebSocket.
    #[serde(default)]
    websocket: Option<websocket::Exchange>,
    /// Not by curl: in gRPC.
    #[serde(default)]
    grpc: Option<grpc::Exchange>,
    /// How often it is sent; every answer must be as expected.
    #[serde(default = "once")]
    pub times: u32,
    /// Whether all of these are sent at the same time.
    #[serde(default)]
    pub together: bool,
    /// Seconds until which the answer may still be another.
    #[serde(default)]
    pub within: Option<f32>,
    /// What must come back.
    pub expect: Expect,
}

fn once() -> u32 {
    1
}

/// What must come back; what is not named may be anything.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The HTTP status; 0 for no answer.
    #[serde(default)]
    pub status: Option<u16>,
    /// The version of HTTP that curl spoke.
    #[serde(default)]
    pub version: Option<String>,
    /// curl's exit code.
    #[serde(default)]
    pub exit: Option<i32>,
    /// Text that curl's error message contains.
    #[serde(default)]
    pub error: Option<String>,
    /// Text that the body contains.
    #[serde(default)]
    pub body: Option<String>,
    /// Texts that one line of the body contains, all of them.
    #[serde(default)]
    pub line: Vec<String>,
    /// Texts that no line of the body contains together.
    #[serde(default)]
    pub no_line: Vec<String>,
    /// Headers of the answer; null for one that must be missing.
    #[serde(default)]
    pub headers: BTreeMap<String, Option<String>>,
    /// What the server says it saw.
    #[serde(default)]
    pub seen: Option<Value>,
    /// How many of the answers come from each server: name, least, most.
    #[serde(default)]
    pub shares: BTreeMap<String, (u32, u32)>,
    /// How many servers the answers come from.
    #[serde(default)]
    pub servers: Option<usize>,
}

impl Request {
    /// What curl cannot ask; of the fields for curl only `url` and `headers` are for it.
    pub fn call(&self) -> Option<Call> {
        let websocket = self.websocket.clone().map(Kind::WebSocket);
        let kind = websocket.or_else(|| self.grpc.clone().map(Kind::Grpc))?;
        Some(Call { url: self.url.clone(), headers: self.headers.clone(), kind })
    }

    /// curl's arguments, the `turn`th time (from 1): `$n` stands for it.
    pub fn curl(&self, turn: u32) -> Vec<String> {
        let turn = turn.to_string();
        self.plain_curl().into_iter().map(|arg| arg.replace("$n", &turn)).collect()
    }

    fn plain_curl(&self) -> Vec<String> {
        let mut args = self.args.clone();
        if let Some(method) = &self.method {
            if method.eq_ignore_ascii_case("HEAD") {
                args.push("--head".to_owned());
            } else {
                args.extend(["-X".to_owned(), method.clone()]);
            }
        }
        for (name, value) in &self.headers {
            // curl sends a header without a value only when it ends with a semicolon.
            let header = if value.is_empty() { format!("{name};") } else { format!("{name}: {value}") };
            args.extend(["-H".to_owned(), header]);
        }
        if let Some(body) = &self.body {
            args.extend(["--data-raw".to_owned(), body.clone()]);
        }
        args.push(self.url.clone());
        args
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(from) = &self.from {
            write!(f, "{from} → ")?;
        }
        write!(f, "{} {}", self.method.as_deref().unwrap_or("GET"), self.url)?;
        for (name, value) in &self.headers {
            let value: String = value.chars().take(24).collect();
            write!(f, " [{name}: {value}]")?;
        }
        Ok(())
    }
}

/// Reads a case for the names of one pair.
///
/// # Errors
/// When it is not in the format.
pub fn read(name: &str, text: &str, names: &Names) -> Result<Case> {
    let text = names.put(text);
    let mut written: Written = serde_saphyr::from_str(&text).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
    ensure!(!written.about.trim().is_empty(), "{name}: about is empty");
    let some = !written.requests.is_empty() || written.refused.is_some() || !written.told.is_empty();
    ensure!(some, "{name}: neither requests nor told nor refused: it could not fail");
    for request in &mut written.requests {
        request.objects = objects(name, "apply", &request.apply)?;
        let e = &request.expect;
        let curls = request.method.is_some() || request.body.is_some() || !request.args.is_empty();
        let kinds = [curls, request.websocket.is_some(), request.grpc.is_some()].iter().filter(|is| **is).count();
        ensure!(kinds <= 1, "{name}: {request} is of more than one kind");
        let nothing = e.status.is_none() && e.exit.is_none() && e.body.is_none() && e.headers.is_empty();
        let counted = !e.shares.is_empty() || e.servers.is_some();
        let lines = !e.line.is_empty() || !e.no_line.is_empty();
        ensure!(!nothing || e.seen.is_some() || counted || lines, "{name}: {request} expects nothing");
    }
    let objects = objects(name, "manifests", &written.manifests)?;
    let pairs = written.pairs.iter().map(|pair| pair.parse().map_err(|e: String| anyhow::anyhow!("{name}: {e}")));
    Ok(Case {
        objects,
        requests: written.requests,
        told: written.told,
        refused: written.refused,
        gateway: written.gateway,
        transparent: written.transparent,
        pairs: pairs.collect::<Result<_>>()?,
    })
}

fn objects(name: &str, field: &str, text: &str) -> Result<Vec<Value>> {
    carrick_api::parse::objects(text.as_bytes()).map_err(|error| anyhow::anyhow!("{name}: {field}: {error}"))
}

/// The case files of the places, by name (`area/case`) and text.
///
/// # Errors
/// When a place cannot be read.
pub fn find(places: &[PathBuf]) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for place in places {
        collect(place, &mut files)?;
    }
    files.sort();
    files.dedup();
    files
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let area = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            Ok((format!("{area}/{stem}"), text))
        })
        .collect()
}

fn collect(place: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if place.is_dir() {
        for entry in std::fs::read_dir(place).with_context(|| place.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() || path.extension().is_some_and(|e| e == "yaml") {
                collect(&path, files)?;
            }
        }
    } else {
        ensure!(place.is_file(), "{}: no such file", place.display());
        files.push(place.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: &str = "about: x\nmanifests: |\n  apiVersion: v1\n  kind: A\n  metadata: {name: $server}\nrequests:\n- url: http://$server:8080/\n  headers: {a: b}\n  expect: {status: 200, seen: {by: $server-v2}}\n";

    #[test]
    fn placeholders_become_names() {
        let case = read("x", CASE, &Names::example()).unwrap();
        assert_eq!(case.objects[0]["metadata"]["name"], "server-nn");
        assert_eq!(case.requests[0].curl(1), ["-H", "a: b", "http://server-nn:8080/"]);
        assert_eq!(case.requests[0].expect.seen.as_ref().unwrap()["by"], "server-nn-v2");
    }

    #[test]
    fn a_case_that_cannot_fail_is_refused() {
        let wrong = [
            "about: x\nrequests: []\n",
            "about: x\nrequests: [{url: a, expect: {}}]\n",
            "about: x\nrequests: [{url: a, expect: {stauts: 200}}]\n",
            "about: x\nrequests: [{url: a, expect: {status: 200}}]\npairs: [native]\n",
            "about: x\nrequests: [{url: a, body: b, websocket: {}, expect: {status: 101}}]\n",
        ];
        for text in wrong {
            assert!(read("x", text, &Names::example()).is_err(), "{text}");
        }
    }

    #[test]
    fn every_committed_case_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cases");
        for (name, text) in find(&[folder]).unwrap() {
            read(&name, &text, &Names::example()).unwrap();
        }
    }
}
