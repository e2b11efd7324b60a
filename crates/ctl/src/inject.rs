//! `carrick kube-inject`, `x check-inject`, `x injector list`: injection asked for, asked about, and listed.
//!
//! Invariant: what is injected is decided and written by `carrick-inject`, as in the webhook; documents without a pod template are
//! printed as they were typed.

pub mod check;
pub mod list;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use carrick_api::parse;
use carrick_inject::Settings;
use carrick_inject::manifest::{Offline, inject_object};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::{cluster, manifests};

/// What `kube-inject` takes.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Manifest to inject; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    filename: PathBuf,
    /// Where the result is written [default: standard output].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The injector's configuration (policy, templates) as a file.
    #[arg(long, alias = "injectConfigFile", value_name = "FILE")]
    inject_config_file: Option<PathBuf>,
    /// The mesh's configuration as a file.
    #[arg(long, alias = "meshConfigFile", value_name = "FILE")]
    mesh_config_file: Option<PathBuf>,
    /// The injector's values as a file.
    #[arg(long, alias = "valuesFile", value_name = "FILE")]
    values_file: Option<PathBuf>,
    /// ConfigMap of the mesh's configuration, key `mesh`.
    #[arg(long, alias = "meshConfigMapName", default_value = "istio", value_name = "NAME")]
    mesh_config_map_name: String,
    /// ConfigMap of the injector's configuration, keys `config` and `values`.
    #[arg(long, alias = "injectConfigMapName", default_value = "istio-sidecar-injector", value_name = "NAME")]
    inject_config_map_name: String,
    /// Webhook configuration; accepted for scripts' sake, the ConfigMaps say the same.
    #[arg(long, alias = "webhookConfig", hide = true, value_name = "NAME")]
    webhook_config: Option<String>,
    /// Control plane revision, which ends the names of the ConfigMaps.
    #[arg(short, long, default_value = "", value_name = "REV")]
    revision: String,
    /// Whether the cluster's nodes run containers that stay from a pod's start (Kubernetes 1.33); `auto` asks the nodes.
    #[arg(long, env = "ENABLE_NATIVE_SIDECARS", default_value = "auto", value_name = "true|false|auto")]
    native_sidecars: Native,
}

/// Whether proxies are containers of the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Native {
    Auto,
    True,
    False,
}

/// What a cluster is asked for, when a file does not say it.
struct Found<'a> {
    options: &'a Options,
    client: Option<Client>,
    namespace: &'a str,
}

impl Found<'_> {
    /// Text of a ConfigMap's key; an empty one where nothing can be asked.
    async fn key(&self, name: &str, key: &str) -> Result<String> {
        let Some(client) = &self.client else { return Ok(String::new()) };
        let suffix =
            if self.options.revision.is_empty() { String::new() } else { format!("-{}", self.options.revision) };
        let name = format!("{name}{suffix}");
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), self.namespace);
        let map = maps.get_opt(&name).await.with_context(|| format!("ConfigMap {name} in {}", self.namespace))?;
        Ok(map.and_then(|map| map.data?.remove(key)).unwrap_or_default())
    }

    async fn text(&self, file: Option<&Path>, name: &str, key: &str) -> Result<String> {
        match file {
            Some(file) => std::fs::read_to_string(file).with_context(|| file.display().to_string()),
            None => self.key(name, key).await,
        }
    }
}

/// Injects a manifest.
///
/// # Errors
/// A file that cannot be read, a configuration that cannot be used, or a pod that cannot be injected as it asks.
pub async fn run(options: &Options, kubeconfig: Option<&Path>, data_dir: &Path, namespace: &str) -> Result<u8> {
    let all_given =
        options.inject_config_file.is_some() && options.mesh_config_file.is_some() && options.values_file.is_some();
    let client = match cluster::kubeconfig(kubeconfig, data_dir) {
        Ok(path) if !all_given => Some(cluster::client(&path).await?),
        // Without a cluster the defaults are what is injected.
        _ => None,
    };
    let found = Found { options, client, namespace };
    let map = &options.inject_config_map_name;
    let config = found.text(options.inject_config_file.as_deref(), map, "config").await?;
    let values = found.text(options.values_file.as_deref(), map, "values").await?;
    let mesh = found.text(options.mesh_config_file.as_deref(), &options.mesh_config_map_name, "mesh").await?;
    let settings = Settings::read(&config, &values).context("the injector's configuration")?;
    let mut mesh = mesh_config(&mesh)?;
    if let Some(mesh) = mesh.as_object_mut() {
        mesh.entry("trustDomain").or_insert_with(|| "cluster.local".into());
    }
    let native_sidecars = match (options.native_sidecars, &found.client) {
        (Native::True, _) => true,
        (Native::Auto, Some(client)) => carrick_control::injector::native_sidecars(client).await,
        (Native::Auto, None) | (Native::False, _) => false,
    };
    let revision = if options.revision.is_empty() { carrick_inject::DEFAULT_REVISION } else { &options.revision };
    let namespace_annotations = match &found.client {
        Some(client) => carrick_control::injector::namespace_annotations(client).await.context("namespaces")?,
        None => BTreeMap::new(),
    };
    let namespace = found.client.as_ref().map_or("default", Client::default_namespace);
    let with = Offline {
        settings: &settings,
        mesh: &mesh,
        revision,
        native_sidecars,
        namespace_annotations: &namespace_annotations,
        namespace,
    };
    let manifests = manifests::read(std::slice::from_ref(&options.filename), &mut |_| {})?;
    let mut printed = String::new();
    for manifest in &manifests {
        printed.push_str(&inject_text(&manifest.text, &with)?);
    }
    match &options.output {
        Some(path) => std::fs::write(path, printed).with_context(|| path.display().to_string())?,
        None => print!("{printed}"),
    }
    Ok(0)
}

fn mesh_config(text: &str) -> Result<Value> {
    let mut documents = parse::documents(text.as_bytes()).context("the mesh configuration")?;
    match documents.pop() {
        None => Ok(json!({})),
        Some(mesh) if mesh.is_object() && documents.is_empty() => Ok(mesh),
        Some(_) => bail!("the mesh configuration: expected one object"),
    }
}

/// Injects every document of a text; each ends with `---`.
fn inject_text(text: &str, with: &Offline<'_>) -> Result<String> {
    let mut out = String::new();
    for object in parse::documents(text.as_bytes())? {
        let injected = inject_object(&object, with)?;
        for warning in &injected.warnings {
            eprint!("{warning}");
        }
        out.push_str(&serde_saphyr::to_string(&carrick_inject::sorted(&injected.object))?);
        if !out.ends_with('\n') {
            out.push('\n');
        }
        out.push_str("---\n");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n---\n\
        apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, namespace: shop}\nspec:\n  selector: {matchLabels: {app: web}}\n  template:\n\
        \x20   metadata: {labels: {app: web}}\n    spec: {containers: [{name: web, image: w, ports: [{containerPort: 80}]}]}\n---\n\
        apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: nightly}\nspec: {schedule: '* * * * *', jobTemplate: {metadata: {labels: {app: n}}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: n, image: n}]}}}}}\n";

    fn injected(text: &str) -> String {
        injected_into(text, &BTreeMap::new())
    }

    fn injected_into(text: &str, namespaces: &BTreeMap<String, BTreeMap<String, String>>) -> String {
        let (settings, mesh) = (Settings::default(), json!({"trustDomain": "cluster.local"}));
        let with = Offline {
            settings: &settings,
            mesh: &mesh,
            revision: "default",
            native_sidecars: false,
            namespace_annotations: namespaces,
            namespace: "default",
        };
        inject_text(text, &with).unwrap()
    }

    #[test]
    fn every_document_is_printed_and_templates_of_pods_are_injected() {
        let out = injected(TEXT);
        let documents = parse::documents(out.as_bytes()).unwrap();
        assert_eq!(documents.len(), 3);
        assert_eq!(documents[0]["kind"], "Service");
        let containers = documents[1].pointer("/spec/template/spec/containers").and_then(Value::as_array).unwrap();
        assert_eq!(containers.iter().map(|c| c["name"].as_str().unwrap()).collect::<Vec<_>>(), ["web", "istio-proxy"]);
        let owner = containers[1]["env"].as_array().unwrap().iter().find(|e| e["name"] == "ISTIO_META_OWNER").unwrap();
        assert_eq!(owner["value"], "kubernetes://apis/apps/v1/namespaces/shop/deployments/web");
        let job = &documents[2]["spec"]["jobTemplate"];
        assert_eq!(job["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 2);
        assert_eq!(job["metadata"]["labels"]["security.istio.io/tlsMode"], "istio");
        assert!(out.ends_with("---\n"));
    }

    #[test]
    fn the_same_text_gives_the_same_text_and_injecting_again_changes_nothing() {
        let once = injected(TEXT);
        assert_eq!(injected(TEXT), once);
        assert_eq!(injected(&once), once);
    }

    #[test]
    fn the_proxys_user_is_of_the_namespaces_range() {
        let range = || BTreeMap::from([("openshift.io/sa.scc.uid-range".to_owned(), "5000/100".to_owned())]);
        let users = |namespace: &str| -> Vec<i64> {
            let out = injected_into(TEXT, &BTreeMap::from([(namespace.to_owned(), range())]));
            let documents = parse::documents(out.as_bytes()).unwrap();
            let places = ["/spec/template/spec/containers/1", "/spec/jobTemplate/spec/template/spec/containers/1"];
            let proxies = documents[1..].iter().zip(places).map(|(document, at)| document.pointer(at).unwrap());
            proxies.map(|proxy| proxy["securityContext"]["runAsUser"].as_i64().unwrap()).collect()
        };
        assert_eq!(users("shop"), [5099, 1337]);
        assert_eq!(users("default"), [1337, 5099], "the namespace of an object that names none");
        assert_eq!(users("other"), [1337, 1337]);
    }

    #[test]
    fn who_refuses_is_left_alone() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a, annotations: {sidecar.istio.io/inject: 'false'}}\n  spec: {containers: [{name: a, image: a}]}\n";
        let documents = parse::documents(injected(text).as_bytes()).unwrap();
        assert_eq!(documents[0]["items"][0]["spec"]["containers"].as_array().unwrap().len(), 1);
    }
}
