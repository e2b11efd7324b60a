//! `carrick install`, `upgrade`, `uninstall` and `manifest`: the control plane and its gateways in a Kubernetes API.
//!
//! Invariant: what is applied is what the charts give, with labels by which it is found again; everything is applied in an order in
//! which nothing is missing, and nothing of somebody else is removed. What the charts give is `carrick-chart`'s.

#[cfg(test)]
mod answering;
mod helm;
mod plan;
pub mod precheck;
mod remove;
pub mod tag;
mod wait;

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use carrick_chart::{Installation, installation, merge, ordered, set};
use clap::{Args, Subcommand};
use kube::Client;
use serde_json::{Value, json};

pub use remove::{Uninstall, uninstall};

use crate::{apply, version};

/// Everything of one installation carries it: the label's value is that of Istio's, so that either finds what the other left.
pub(crate) const OWNED: &str = "install.operator.istio.io/owning-resource";
pub(crate) const COMPONENT: &str = "operator.istio.io/component";
pub(crate) const VERSION: &str = "operator.istio.io/version";
pub(crate) const REVISION: &str = "istio.io/rev";

/// What is to be installed.
#[derive(Debug, Clone, Args)]
pub struct Wanted {
    /// Files with IstioOperator objects; later ones lie over earlier ones. `-` reads standard input.
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// One field, e.g. profile=demo, meshConfig.accessLogFile=/dev/stdout, values.global.proxy.logLevel=info; may be given several times.
    #[arg(short, long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Name of the control plane, so that there may be others.
    #[arg(short, long, value_name = "REVISION")]
    revision: Option<String>,
}

/// What can be told to `install` and `upgrade`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    wanted: Wanted,
    /// Do not ask.
    #[arg(short = 'y', long)]
    skip_confirmation: bool,
    /// Have the server check everything and keep nothing.
    #[arg(long)]
    dry_run: bool,
    /// Wait until the control plane's pods are ready; --wait=false for an API without nodes.
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "300s", value_parser = crate::duration::parse, value_name = "DURATION")]
    readiness_timeout: Duration,
}

/// What is only printed.
#[derive(Debug, Subcommand)]
pub enum Manifest {
    /// Print the objects that an installation is made of.
    Generate {
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Print the Helm charts and values that give the same installation.
    Translate {
        #[command(flatten)]
        wanted: Wanted,
    },
}

/// The spec that was typed.
fn spec(wanted: &Wanted, namespace: &str) -> Result<Value> {
    let mut spec = json!({});
    for manifest in crate::manifests::read(&wanted.filename, &mut |_| {})? {
        let documents =
            carrick_api::parse::documents(manifest.text.as_bytes()).with_context(|| manifest.name.clone())?;
        for document in documents {
            let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
            anyhow::ensure!(kind == "IstioOperator", "{}: {kind:?} is no IstioOperator", manifest.name);
            merge(&mut spec, document.get("spec").unwrap_or(&Value::Null));
            if let Some(place) = document.pointer("/metadata/namespace").filter(|_| spec.get("namespace").is_none()) {
                spec["namespace"] = place.clone();
            }
        }
    }
    for assignment in &wanted.set {
        set(&mut spec, assignment)?;
    }
    if let Some(revision) = &wanted.revision {
        spec["revision"] = revision.as_str().into();
    }
    if spec.get("namespace").is_none() && namespace != "istio-system" {
        spec["namespace"] = namespace.into();
    }
    Ok(spec)
}

/// Prints objects, or charts with their values.
///
/// # Errors
/// When what was typed is not understood.
pub fn manifest(command: &Manifest, namespace: &str) -> Result<String> {
    let (Manifest::Generate { wanted } | Manifest::Translate { wanted }) = command;
    let all = installation(&spec(wanted, namespace)?)?;
    let mut documents = Vec::new();
    match command {
        Manifest::Generate { .. } => {
            let mut objects = Vec::new();
            for piece in &all.pieces {
                objects.extend(piece.objects()?);
            }
            for object in ordered(objects) {
                documents.push(serde_saphyr::to_string(&object)?);
            }
        }
        Manifest::Translate { .. } => {
            for piece in &all.pieces {
                let head = format!("# helm install {} charts/{} -n {}\n", piece.release, piece.chart, piece.namespace);
                documents.push(head + &serde_saphyr::to_string(&piece.values)?);
            }
        }
    }
    let trimmed: Vec<&str> = documents.iter().map(|document| document.trim_end()).collect();
    Ok(trimmed.join("\n---\n") + "\n")
}

/// Installs, or with `upgrade` changes what is installed.
///
/// # Errors
/// When what was typed is not understood, or the server refuses an object.
pub async fn install(options: &Options, client: &Client, namespace: &str, upgrade: bool) -> Result<u8> {
    let all = installation(&spec(&options.wanted, namespace)?)?;
    if let Some(version) = plan::within(client, &all.namespace).await? {
        return around(options, client, &all, &version).await;
    }
    let there = plan::version_of(client, &all).await?;
    if upgrade {
        let Some(before) = &there else {
            anyhow::bail!(
                "there is no control plane to upgrade in namespace {}: `carrick install` makes one",
                all.namespace
            )
        };
        println!("from version {before} to {}", version::OWN);
    }
    let what = format!("the {} profile of version {}", all.profile, version::OWN);
    let named = if all.revision.is_empty() { String::new() } else { format!(" as revision {}", all.revision) };
    let question = format!("This will install {what}{named} into namespace {}. Proceed? (y/N) ", all.namespace);
    if !options.skip_confirmation && !options.dry_run && !agreed(&question)? {
        println!("Cancelled.");
        return Ok(1);
    }
    let foreign = helm::foreign(client, &all).await?;
    foreign.refuse()?;
    foreign.told().for_each(|line| println!("! {line}"));
    apply_all(client, &all, &foreign, options).await?;
    if options.dry_run {
        println!("Nothing was changed (dry run).");
        return Ok(0);
    }
    if !all.revision.is_empty() && !plan::has_default(client).await? {
        tag::set_tag(client, &tag::Setting::first(&all.revision), &all.namespace).await?;
        println!("✔ Revision {} is the default, since there was none", all.revision);
    }
    println!("✔ Installation complete");
    Ok(0)
}

/// Installs beside a `carrick up`, which is the control plane itself: the mesh's configuration and the gateways.
async fn around(options: &Options, client: &Client, all: &Installation, version: &str) -> Result<u8> {
    let place = &all.namespace;
    anyhow::ensure!(
        all.revision.is_empty(),
        "the control plane of this API is the `carrick up` that serves it: for a revision of its own, serve it with `carrick up --api-only`"
    );
    let question = format!(
        "The control plane of this API is the `carrick up` that serves it (version {version}). This will set its mesh configuration in namespace {place}, and install the gateways of profile {}. Proceed? (y/N) ",
        all.profile
    );
    if !options.skip_confirmation && !options.dry_run && !agreed(&question)? {
        println!("Cancelled.");
        return Ok(1);
    }
    let dry = options.dry_run;
    let places: Vec<&str> = all.pieces.iter().map(|piece| piece.namespace.as_str()).collect();
    let fresh = plan::make_namespaces(client, &places, dry).await?;
    let mut gateways = Vec::new();
    for piece in &all.pieces {
        for mut object in piece.objects()? {
            let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
            let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
            let inside = object.pointer("/metadata/namespace").and_then(Value::as_str);
            if !plan::is_around(piece.component, &kind, &name)
                || (dry && inside.is_some_and(|i| fresh.iter().any(|f| f == i)))
            {
                continue;
            }
            plan::label(&mut object, piece.component, "");
            let line = apply::one(client, &object, &piece.namespace, dry).await?;
            if dry {
                println!("{line}");
            }
            if kind == "Deployment" {
                gateways.push(format!("carrick run -n {} --gateway --as deployment/{name}", piece.namespace));
            }
        }
    }
    if dry {
        println!("Nothing was changed (dry run).");
        return Ok(0);
    }
    println!("✔ Istio core installed: this API has every kind");
    println!(
        "✔ Istiod installed: `carrick up` is the control plane, version {version}; it has the mesh configuration now"
    );
    if !gateways.is_empty() {
        println!("✔ Gateways installed; there is no container runtime here, so start each one's proxy:");
        gateways.iter().for_each(|command| println!("    {command}"));
    }
    println!("✔ Installation complete");
    Ok(0)
}

async fn apply_all(client: &Client, all: &Installation, foreign: &helm::Foreign, options: &Options) -> Result<()> {
    let dry = options.dry_run;
    let mut places: Vec<&str> = all.pieces.iter().map(|piece| piece.namespace.as_str()).collect();
    places.sort_unstable();
    places.dedup();
    let fresh = plan::make_namespaces(client, &places, dry).await?;
    let mut told: Option<&str> = None;
    for piece in &all.pieces {
        if told.is_some_and(|component| component != piece.component) && !dry {
            told.iter().for_each(|component| println!("✔ {component} installed"));
        }
        told = Some(piece.component);
        let mut deployments = Vec::new();
        let mut kinds = Vec::new();
        for mut object in piece.objects()? {
            plan::label(&mut object, piece.component, &all.revision);
            let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
            let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
            if kind == "CustomResourceDefinition" && foreign.keeps(&name) {
                continue;
            }
            // What is in a namespace that is not there yet cannot be tried.
            let inside = object.pointer("/metadata/namespace").and_then(Value::as_str);
            if dry && inside.is_some_and(|inside| fresh.iter().any(|f| f == inside)) {
                println!("{}/{name} would be created (dry run)", kind.to_ascii_lowercase());
                continue;
            }
            tag::keep_quiet(client, &mut object).await?;
            if kind != "CustomResourceDefinition" && !kinds.is_empty() && !dry {
                wait::served(client, &std::mem::take(&mut kinds)).await?;
            }
            let line = apply::one(client, &object, &piece.namespace, dry).await?;
            if dry {
                println!("{line}");
            }
            match kind.as_str() {
                "CustomResourceDefinition" => kinds.push(name),
                "Deployment" => deployments.push(name),
                _ => {}
            }
        }
        if options.wait && !dry {
            for name in deployments {
                wait::ready(client, &piece.namespace, &name, options.readiness_timeout).await?;
            }
        }
    }
    if !dry {
        told.iter().for_each(|component| println!("✔ {component} installed"));
    }
    Ok(())
}

/// Asks on the terminal; without one the answer is no.
pub(crate) fn agreed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        eprintln!("{question}");
        eprintln!("There is nobody to ask: -y says yes.");
        return Ok(false);
    }
    print!("{question}");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("standard input")?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
