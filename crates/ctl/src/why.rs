//! `carrick why`: whether a call gets through, what happens to it on the way, and which object decides each step.
//!
//! Invariant: nothing is sent anywhere but to the API and the control plane's debug pages: the answer is computed from the objects alone, those of `-f` among them, so it can be
//! had before anything is applied.

use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use carrick_api::MeshConfig;
use carrick_base::NamespacedName;
use carrick_control::Reading;
use carrick_explain::{Answer, Call, Caller, Question, Speaks, Target};
use clap::Args;

use crate::{
    cluster::ProxyName,
    output::{self, Format},
    proxy_status,
    table::Table,
};

/// What is asked.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Who calls: a pod as POD or POD.NAMESPACE, or an address. A gateway stands for whoever calls it: then --to is the host that is
    /// asked for, and the gateway's port.
    #[arg(long, value_name = "POD|IP")]
    from: String,
    /// Whom: a name as the caller would write it, or an address, with the port.
    #[arg(long, value_name = "HOST:PORT")]
    to: Target,
    /// Namespace of the caller where --from names none.
    #[arg(short, long, default_value = "default", value_name = "NS")]
    namespace: String,
    /// Method of the request.
    #[arg(long, default_value = "GET", value_name = "METHOD")]
    method: String,
    /// Path of the request, with its query.
    #[arg(long, default_value = "/", value_name = "PATH")]
    path: String,
    /// A header of the request.
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// A token the request carries, as `Authorization: Bearer`.
    #[arg(long, value_name = "TOKEN")]
    jwt: Option<String>,
    /// When the call is made, for tokens that expire: seconds since 1970; now unless told.
    #[arg(long, value_name = "SECONDS")]
    at: Option<u64>,
    /// What the caller speaks.
    #[arg(long, value_enum, default_value = "http")]
    speak: Speak,
    /// Manifests that count as applied, in place of what is stored under their names.
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Speak {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without TLS, as gRPC.
    Http2,
    /// TLS of its own.
    Tls,
    /// Another protocol.
    Tcp,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} is not NAME:VALUE"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Asks, prints, and gives the exit code: 0 when the call gets through, 1 when it does not.
///
/// # Errors
/// When the API does not answer, a file cannot be read, or caller or destination are unknown.
pub async fn run(options: &Options, client: &kube::Client, debug_port: u16, format: Format) -> Result<u8> {
    let mut reading = Reading::of(client).await.context("cannot read the mesh's objects")?;
    for file in &options.filename {
        let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
        let objects = carrick_api::parse::objects(&bytes).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
        for mut object in objects {
            namespaced(&mut object, &options.namespace);
            reading.add(object);
        }
    }
    let settings: Option<MeshConfig> =
        page(debug_port, "/debug/mesh").await.and_then(|v| serde_json::from_value(v).ok());
    let keys = page(debug_port, "/debug/keys").await.unwrap_or_default();
    let (snapshot, _) = reading.snapshot(&settings.unwrap_or_default(), &keys);
    let from = match options.from.parse() {
        Ok(ip) => Caller::Address(ip),
        Err(_) => {
            let name = ProxyName::parse(&options.from, &options.namespace);
            Caller::Pod(NamespacedName::new(&name.namespace, &name.name))
        }
    };
    let bearer = options.jwt.iter().map(|token| ("authorization".to_owned(), format!("Bearer {token}")));
    let call = Call {
        speaks: match options.speak {
            Speak::Http => Speaks::Http1,
            Speak::Http2 => Speaks::Http2,
            Speak::Tls => Speaks::Tls,
            Speak::Tcp => Speaks::Bytes,
        },
        method: options.method.clone(),
        path: options.path.clone(),
        headers: options.headers.iter().cloned().chain(bearer).collect(),
    };
    let today = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let now = options.at.unwrap_or_else(today);
    let question = Question { from, to: options.to.clone(), call, now };
    let answer = carrick_explain::why(&snapshot, &question)?;
    print!("{}", show(&answer, format)?);
    Ok(u8::from(!answer.allowed))
}

fn show(answer: &Answer, format: Format) -> Result<String> {
    if let Some(text) = output::machine(&serde_json::to_value(answer)?, format)? {
        return Ok(text);
    }
    let mut table = Table::new(3, ["SIDE", "STEP", "VALUE", "DECIDED BY"]);
    for step in &answer.steps {
        let because = step.because.clone().unwrap_or_default();
        table.row([step.side.to_string(), step.what.to_owned(), step.value.clone(), because]);
    }
    let word = if answer.allowed { "Allowed" } else { "Not allowed" };
    Ok(format!("{word}: {}\n\n{table}", answer.end))
}

/// What the control plane on this machine tells: the settings it runs with, the keys it fetched. None where there is none.
async fn page(port: u16, path: &str) -> Option<serde_json::Value> {
    match proxy_status::get(port, path).await {
        Ok((200, body)) => serde_json::from_slice(&body).ok(),
        _ => None,
    }
}

/// A manifest without a namespace lands in the one the command works in.
fn namespaced(object: &mut serde_json::Value, namespace: &str) {
    let kind = object.get("kind").and_then(serde_json::Value::as_str).unwrap_or_default();
    if ["Namespace", "Node", "MeshPolicy", "GatewayClass"].contains(&kind) {
        return;
    }
    let Some(metadata) = object.get_mut("metadata").and_then(serde_json::Value::as_object_mut) else { return };
    metadata.entry("namespace").or_insert_with(|| namespace.into());
}
