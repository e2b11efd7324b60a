//! `carrick analyze`: Istio's analysis over manifests, over a cluster, or over a cluster as it would be with the manifests.
//!
//! Invariant: files count before the cluster's objects of the same name; nothing is changed anywhere.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use carrick_analyze::{CODES, Filter, Message, Object, Objects, Suppression, analyze, names, read_file};
use carrick_api::timestamp::Timestamp;
use carrick_base::Severity;
use kube::{
    Client,
    api::{Api, DynamicObject, ListParams},
    discovery::{Discovery, verbs},
};
use serde_json::{Value, json};

use crate::{cluster, manifests};

/// Exit code when something at least as bad as the threshold was found, as `istioctl`.
const FOUND: u8 = 79;
/// Exit code when a file was not understood.
const DATA: u8 = 65;

/// API groups whose objects are looked at.
const GROUPS: [&str; 13] = [
    "",
    "apps",
    "batch",
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "authentication.istio.io",
    "rbac.istio.io",
    "gateway.networking.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "networking.k8s.io",
];

/// Kinds that tell nothing and may be many.
const SKIPPED: [&str; 6] = ["Event", "Endpoints", "ReplicaSet", "ControllerRevision", "Job", "ReplicationController"];

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// A line for each message.
    Log,
    Json,
    Yaml,
}

/// What was asked for.
pub struct Options {
    pub files: Vec<PathBuf>,
    pub namespace: Option<String>,
    pub all_namespaces: bool,
    pub istio_namespace: String,
    pub use_kube: bool,
    pub kubeconfig: Option<PathBuf>,
    pub data_dir: PathBuf,
    pub analyzers: Vec<String>,
    pub suppress: Vec<String>,
    pub failure: Severity,
    pub shown: Severity,
    pub form: Form,
    pub color: Option<bool>,
    pub verbose: bool,
    pub timeout: Duration,
    pub ignore_unknown: bool,
    pub mesh_config: Option<PathBuf>,
    pub revision: String,
}

/// Prints the analyzers.
pub fn list() {
    for (name, description) in names() {
        println!("* {name}:\n    {description}");
    }
}

/// A level by its name.
///
/// # Errors
/// Names the levels there are.
pub fn level(text: &str) -> Result<Severity, String> {
    match text.to_ascii_lowercase().as_str() {
        "info" => Ok(Severity::Info),
        "warning" => Ok(Severity::Warning),
        "error" => Ok(Severity::Error),
        _ => Err(format!("{text:?} is not one of [Info Warning Error]")),
    }
}

/// Analyzes and prints; returns the exit code.
///
/// # Errors
/// When files or the cluster cannot be read.
pub async fn run(options: Options) -> Result<u8> {
    let suppressions = suppressions(&options.suppress)?;
    let namespace = match (&options.namespace, options.all_namespaces) {
        (_, true) => String::new(),
        (Some(namespace), false) => namespace.clone(),
        (None, false) => "default".to_owned(),
    };
    let mut objects = Objects::new(&options.istio_namespace, options.use_kube);
    let (files, problems) = read_files(&options, &namespace, &mut objects)?;
    if options.use_kube {
        let kubeconfig = cluster::kubeconfig(options.kubeconfig.as_deref(), &options.data_dir)?;
        let client = cluster::client(&kubeconfig).await?;
        let fetched = tokio::time::timeout(options.timeout, fetch(&client, &options.revision)).await;
        let fetched = fetched.with_context(|| format!("the cluster did not answer in {:?}", options.timeout))??;
        let exists = |object: &Object| object.origin.kind == "Namespace" && object.origin.name == namespace;
        if !namespace.is_empty() && !fetched.iter().any(exists) {
            eprintln!("namespace {namespace:?} not found");
            return Ok(0);
        }
        fetched.into_iter().for_each(|object| objects.add(object));
    } else {
        if files.is_empty() {
            bail!("at least one file and/or Kubernetes source must be provided");
        }
        objects.add_defaults();
    }
    if let Some(path) = &options.mesh_config {
        objects.set_mesh_config(read_mesh_config(path)?);
    }
    objects.complete();
    for problem in &problems {
        eprintln!("Error(s) adding files: {problem}");
    }
    let mut messages = analyze(&objects, &options.analyzers, Timestamp::from_system(std::time::SystemTime::now()));
    // Who names files and no namespace wants to hear of all that is in the files.
    let everywhere = options.all_namespaces || (options.namespace.is_none() && !options.use_kube);
    let shown = if everywhere { String::new() } else { namespace.clone() };
    Filter { namespace: shown, suppressions }.apply(&objects, &mut messages);
    let target = if everywhere { "all namespaces".to_owned() } else { format!("namespace: {namespace}") };
    if options.verbose {
        eprintln!("Analyzed resources in {target}\nExecuted analyzers:");
        let ran = |name: &String| options.analyzers.is_empty() || options.analyzers.contains(name);
        names().into_iter().map(|(name, _)| name).filter(ran).for_each(|name| eprintln!("\t {name}"));
        eprintln!();
    }
    print_messages(&messages, &files, problems.len(), &target, &options)?;
    if options.form != Form::Log {
        return Ok(0);
    }
    if messages.iter().any(|message| message.level >= options.failure) {
        eprintln!(
            "Error: Analyzers found issues when analyzing {target}.\nSee https://istio.io/latest/docs/reference/config/analysis for more information about causes and resolutions."
        );
        return Ok(FOUND);
    }
    if !problems.is_empty() && !options.ignore_unknown {
        eprintln!("Error: Some files couldn't be parsed.");
        return Ok(DATA);
    }
    Ok(0)
}

fn suppressions(words: &[String]) -> Result<Vec<Suppression>> {
    let mut all = Vec::new();
    for word in words {
        let parts: Vec<&str> = word.split('=').collect();
        let [code, resource] = parts.as_slice() else {
            bail!("{word} is not a valid suppression value. See carrick analyze --help");
        };
        if !CODES.iter().any(|(known, _, _)| known == code) {
            eprintln!(
                "Warning: Supplied message code '{code}' is an unknown message code and will not have any effect."
            );
        }
        all.push(Suppression { code: (*code).to_owned(), resource: (*resource).to_owned() });
    }
    Ok(all)
}

/// Adds the objects of the files; returns the files' names and what was not understood.
fn read_files(options: &Options, namespace: &str, objects: &mut Objects) -> Result<(Vec<String>, Vec<String>)> {
    let skip = |path: &Path| {
        eprintln!("Skipping file {}, recognized file extensions are: [.json .yaml .yml]", path.display());
    };
    let mut wanted = Vec::new();
    for path in &options.files {
        if path.as_os_str() == "-" || path.is_dir() || manifests::is_manifest(path) || !path.exists() {
            wanted.push(path.clone());
        } else {
            skip(path);
        }
    }
    let (mut names, mut problems) = (Vec::new(), Vec::new());
    for manifest in manifests::read(&wanted, &mut |path| skip(path))? {
        let (found, wrong) = read_file(&manifest.name, &manifest.text, namespace);
        found.into_iter().for_each(|object| objects.add(object));
        problems.extend(wrong.iter().map(|p| format!("{}:{}: {}", p.file, p.line, p.message)));
        names.push(manifest.name);
    }
    Ok((names, problems))
}

fn read_mesh_config(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let documents = carrick_api::parse::documents(&bytes).with_context(|| path.display().to_string())?;
    Ok(documents.into_iter().next().unwrap_or_default())
}

/// All objects of the cluster that analyzers look at. What the caller may not list is left out.
async fn fetch(client: &Client, revision: &str) -> Result<Vec<Object>> {
    let discovery = Discovery::new(client.clone()).filter(&GROUPS).run().await.context("the API's kinds")?;
    let mut found = Vec::new();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            if !capabilities.supports_operation(verbs::LIST) || SKIPPED.contains(&resource.kind.as_str()) {
                continue;
            }
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            let Ok(list) = api.list(&ListParams::default()).await else { continue };
            for object in list {
                let mut value = serde_json::to_value(&object).context("an object of the API")?;
                if let Some(map) = value.as_object_mut() {
                    map.insert("apiVersion".into(), json!(resource.api_version));
                    map.insert("kind".into(), json!(resource.kind));
                }
                let own = value.pointer("/metadata/labels").and_then(|labels| labels.get("istio.io/rev"));
                let other = own.and_then(Value::as_str).is_some_and(|own| own != revision);
                if !(other && resource.group.ends_with("istio.io")) {
                    found.push(Object::new(value, None));
                }
            }
        }
    }
    Ok(found)
}

fn print_messages(
    messages: &[Message],
    files: &[String],
    problems: usize,
    target: &str,
    options: &Options,
) -> Result<()> {
    let shown: Vec<&Message> = messages.iter().filter(|message| message.level >= options.shown).collect();
    let values: Vec<Value> = shown.iter().map(|message| message.to_value(false)).collect();
    match options.form {
        Form::Log => {
            let color = options.color.unwrap_or_else(|| {
                std::io::stdout().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb")
            });
            shown.iter().for_each(|message| println!("{}", colored(message, color)));
        }
        Form::Json => {
            let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
            let mut out = Vec::new();
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
            serde::Serialize::serialize(&values, &mut serializer)?;
            println!("{}", String::from_utf8_lossy(&out));
        }
        Form::Yaml => {
            print!("{}", if values.is_empty() { "[]\n".to_owned() } else { serde_saphyr::to_string(&values)? })
        }
    }
    if shown.is_empty() {
        if problems > 0 {
            let noun = if problems == 1 { "file" } else { "files" };
            eprintln!(
                "No validation issues found when analyzing {target} (but {problems} {noun} could not be parsed)."
            );
        } else {
            match files {
                [] => eprintln!("✔ No validation issues found when analyzing {target}."),
                [one] => eprintln!("✔ No validation issues found when analyzing {one}."),
                many => eprintln!("✔ No validation issues found when analyzing:\n  - {}", many.join("\n  - ")),
            }
        }
    }
    let hidden = messages.len() - shown.len();
    if hidden > 0 {
        eprintln!(
            "{hidden} message(s) below the output threshold are not shown; use --output-threshold=Info to see them."
        );
    }
    Ok(())
}

fn colored(message: &Message, color: bool) -> String {
    let line = message.to_line(false);
    let code = match message.level {
        Severity::Error => "1;31",
        Severity::Warning => "33",
        Severity::Info => return line,
    };
    let level = message.level.to_string();
    match line.strip_prefix(&level) {
        Some(rest) if color => format!("\u{1b}[{code}m{level}\u{1b}[0m{rest}"),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_and_its_pods_give_no_reason_to_complain() {
        let mut objects = Objects::new("istio-system", true);
        let installed = carrick_chart::installation(&json!({"profile": "demo"})).unwrap();
        for object in installed.pieces.iter().flat_map(|piece| piece.objects().unwrap()) {
            objects.add(Object::new(object, None));
        }
        let image = format!("localhost/carrick/proxyv2:{}", crate::version::OWN);
        let pod = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"containers": [
            {"name": "web", "image": "example.org/web"}, {"name": "istio-proxy", "image": image}]}});
        let namespace = json!({"metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}}});
        for (kind, mut object) in [("Namespace", namespace), ("Pod", pod)] {
            (object["apiVersion"], object["kind"]) = ("v1".into(), kind.into());
            objects.add(Object::new(object, None));
        }
        objects.complete();
        let found = analyze(&objects, &[], Timestamp::from_system(std::time::SystemTime::UNIX_EPOCH));
        assert_eq!(found.iter().map(|message| message.to_line(false)).collect::<Vec<_>>(), Vec::<String>::new());
    }
}
