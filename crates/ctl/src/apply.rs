//! `carrick apply -f`: manifests to the API by server-side apply, as any other API client does it.
//!
//! Invariant: nothing is applied unless all objects are right as far as can be told without the server; then every
//! object is tried, one that the server refuses does not stop the next, and the exit code tells whether all were taken.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use carrick_api::kinds::{registry, split_api_version};
use carrick_api::validate;
use carrick_base::Severity;
use kube::{
    Client,
    api::{Api, DynamicObject, Patch, PatchParams, ValidationDirective},
    core::GroupVersionKind,
    discovery::{Scope, pinned_kind},
};
use serde_json::Value;

use crate::output::words;

/// The name under which the server remembers who set a field.
const FIELD_MANAGER: &str = "carrick-apply";

/// Applies the objects of all files; returns 0 when every one was taken, else 1.
///
/// # Errors
/// When a file cannot be read; what is wrong with an object is told object by object instead.
pub async fn run(client: &Client, files: &[PathBuf], namespace: &str, dry_run: bool) -> Result<u8> {
    let (mut all, mut failed) = (Vec::new(), false);
    for (source, bytes) in read_all(files)? {
        match carrick_api::parse::objects(&bytes) {
            Ok(objects) => all.extend(objects.into_iter().map(|object| (source.clone(), object))),
            Err(error) => {
                eprintln!("error: {source}: {error}");
                failed = true;
            }
        }
    }
    for (source, object) in &all {
        let (errors, warnings) = judge(object);
        warnings.iter().for_each(|warning| eprintln!("Warning: {warning}"));
        for error in errors {
            eprintln!("error: {source}: {error}");
            failed = true;
        }
    }
    if failed {
        eprintln!("error: nothing was applied");
        return Ok(1);
    }
    for (source, object) in &all {
        match one(client, object, namespace, dry_run).await {
            Ok(line) => println!("{line}"),
            Err(error) => {
                failed = true;
                eprintln!("error: {source}: {}", words(&error));
            }
        }
    }
    Ok(u8::from(failed))
}

/// Errors and warnings of an object by what is known here: schemas of Istio's kinds, and their rules.
fn judge(object: &Value) -> (Vec<String>, Vec<String>) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let shown = format!("{} {}", text("/kind"), text("/metadata/name"));
    let (_, version) = split_api_version(text("/apiVersion"));
    if let Some(kind) = registry().of_object(object).filter(|kind| kind.custom) {
        let wrong = kind.schema(version).check(object);
        if !wrong.is_empty() {
            return (wrong.iter().map(|error| format!("{shown}: {error}")).collect(), Vec::new());
        }
    }
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for finding in validate::object(object) {
        let field = finding.field.as_str();
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        let line = format!("{shown}: {field}{}", finding.message);
        if finding.severity == Severity::Error { errors.push(line) } else { warnings.push(line) }
    }
    (errors, warnings)
}

/// Applies one object; the line tells what became of it. `namespace` is for an object that names none.
///
/// # Errors
/// When the object has no kind or name, or the server refuses it.
pub async fn one(client: &Client, object: &Value, namespace: &str, dry_run: bool) -> Result<String> {
    let Place { api, group, kind, name, namespace } = place(client, object, namespace).await?;
    let mut params = PatchParams::apply(FIELD_MANAGER).force();
    params.dry_run = dry_run;
    params.field_validation = Some(ValidationDirective::Strict);
    let before = api.get_opt(name).await.ok().flatten().and_then(|o| o.metadata.resource_version);
    let after = api
        .patch(name, &params, &Patch::Apply(object))
        .await
        .with_context(|| format!("{kind} {name} in namespace {namespace}"))?
        .metadata
        .resource_version;
    let verb = match before {
        None => "created",
        Some(before) if Some(&before) == after.as_ref() => "unchanged",
        Some(_) => "configured",
    };
    let group = if group.is_empty() { String::new() } else { format!(".{group}") };
    let dry = if dry_run { " (server dry run)" } else { "" };
    Ok(format!("{}{group}/{name} {verb}{dry}", kind.to_ascii_lowercase()))
}

/// One object as the server has it; `None` when it is not there.
///
/// # Errors
/// When the object has no kind or name, or the server refuses.
pub async fn get(client: &Client, object: &Value, namespace: &str) -> Result<Option<Value>> {
    let Place { api, kind, name, namespace, .. } = place(client, object, namespace).await?;
    let there = api.get_opt(name).await.with_context(|| format!("{kind} {name} in namespace {namespace}"))?;
    there.map(|object| serde_json::to_value(object).context("the object is no JSON")).transpose()
}

/// Writes an object's status, as a controller would; applying it leaves that out.
///
/// # Errors
/// When the object has no kind or name, or the server refuses.
pub async fn status(client: &Client, object: &Value, namespace: &str) -> Result<()> {
    let Place { api, kind, name, namespace, .. } = place(client, object, namespace).await?;
    let patch = serde_json::json!({"status": object.get("status")});
    let written = api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    written.map(drop).with_context(|| format!("status of {kind} {name} in namespace {namespace}"))
}

/// Deletes one object; that it is gone already is fine.
///
/// # Errors
/// When the object has no kind or name, or the server refuses.
pub async fn delete(client: &Client, object: &Value, namespace: &str) -> Result<()> {
    let Place { api, kind, name, namespace, .. } = place(client, object, namespace).await?;
    match api.delete(name, &Default::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{kind} {name} in namespace {namespace}")),
    }
}

/// Where an object lives.
struct Place<'a> {
    api: Api<DynamicObject>,
    group: &'a str,
    kind: &'a str,
    name: &'a str,
    namespace: &'a str,
}

async fn place<'a>(client: &Client, object: &'a Value, namespace: &'a str) -> Result<Place<'a>> {
    let field = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind, name) = (field("/apiVersion"), field("/kind"), field("/metadata/name"));
    anyhow::ensure!(!api_version.is_empty(), "apiVersion is missing");
    anyhow::ensure!(!kind.is_empty(), "kind is missing");
    anyhow::ensure!(!name.is_empty(), "{kind}: metadata.name is missing");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let (resource, capabilities) = pinned_kind(client, &GroupVersionKind::gvk(group, version, kind))
        .await
        .with_context(|| format!("{kind} {name}: the server has no {kind} in {api_version}"))?;
    let own = field("/metadata/namespace");
    let namespace = if own.is_empty() { namespace } else { own };
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Namespaced => Api::namespaced_with(client.clone(), namespace, &resource),
        Scope::Cluster => Api::all_with(client.clone(), &resource),
    };
    Ok(Place { api, group, kind, name, namespace })
}

/// The content of every file, folders expanded to the manifests right in them.
fn read_all(files: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for file in files {
        if file.as_os_str() == "-" {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
            found.push(("standard input".to_owned(), bytes));
        } else if file.is_dir() {
            let mut inside: Vec<PathBuf> = std::fs::read_dir(file)
                .with_context(|| file.display().to_string())?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| is_manifest(path))
                .collect();
            inside.sort();
            for path in inside {
                found.push(read(&path)?);
            }
        } else {
            found.push(read(file)?);
        }
    }
    Ok(found)
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

fn read(path: &Path) -> Result<(String, Vec<u8>)> {
    let shown = path.display().to_string();
    let bytes = std::fs::read(path).with_context(|| shown.clone())?;
    Ok((shown, bytes))
}
