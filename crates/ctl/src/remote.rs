//! Other clusters: the Secret by which a control plane may read one (`create-remote-secret`), and which it reads (`remote-clusters`).
//!
//! Invariant: what the Secret gives is reading, as a service account of the cluster it is made in; nothing of the caller's own
//! credentials gets into it.

mod account;
mod clusters;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, config::Kubeconfig};
use serde_json::{Value, json};

pub use clusters::{fetch, show};

/// What the Secret is called, before the cluster's name.
const PREFIX: &str = "istio-remote-secret-";

/// What `create-remote-secret` is told.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// What the cluster is called by those who read it, as its own control plane has it (`carrick up --cluster-id`)
    /// [default: the UID of its namespace kube-system].
    #[arg(long)]
    pub name: Option<String>,
    /// Address of the cluster's API as the others reach it [default: the kubeconfig's].
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// Name that the API's certificate is verified for [default: the kubeconfig's].
    #[arg(long, value_name = "NAME")]
    pub tls_server_name: Option<String>,
    /// Context of the kubeconfig [default: the current one].
    #[arg(long, value_name = "CONTEXT")]
    pub context: Option<String>,
    /// Service account whose rights the others get.
    #[arg(long, default_value = "istio-reader-service-account", value_name = "SA")]
    pub service_account: String,
    /// Create the service account, and its right to read, where they are missing.
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set, value_name = "BOOL")]
    pub create_service_account: bool,
}

/// The Secret, as YAML, to be applied where the cluster is to be read.
///
/// # Errors
/// When the API does not answer or refuses, or gives no token.
pub async fn secret(options: &Options, kubeconfig: &Path, root: &str) -> Result<String> {
    let config = Kubeconfig::read_from(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
    let (server, tls_server_name, authority) = cluster(&config, options, kubeconfig)?;
    let mut selected = config;
    if options.context.is_some() {
        selected.current_context.clone_from(&options.context);
    }
    let config = kube::Config::from_custom_kubeconfig(selected, &Default::default()).await;
    let client = kube::Client::try_from(config.with_context(|| kubeconfig.display().to_string())?)?;
    let name = match &options.name {
        Some(name) => name.clone(),
        None => {
            let system =
                Api::<Namespace>::all(client.clone()).get("kube-system").await.context("namespace kube-system")?;
            system.metadata.uid.context("the namespace kube-system has no UID")?
        }
    };
    ensure!(is_name(&name), "{name:?} cannot be a cluster's name: at most 253 small letters, digits, '-' and '.'");
    if options.create_service_account {
        account::ensure(&client, root, &options.service_account).await?;
    }
    let token = account::token(&client, root, &options.service_account).await?;
    let secret = of(&name, root, &server, tls_server_name.as_deref(), &authority, &token)?;
    Ok(format!(
        "# This file is generated, and whoever has it can read the cluster: keep it secret.\n{}",
        serde_saphyr::to_string(&secret)?
    ))
}

/// Server, name to verify and authority (PEM) of the cluster that a kubeconfig names.
fn cluster(config: &Kubeconfig, options: &Options, path: &Path) -> Result<(String, Option<String>, Vec<u8>)> {
    let context = options
        .context
        .as_ref()
        .or(config.current_context.as_ref())
        .context("the kubeconfig has no current context")?;
    let named = config.contexts.iter().find(|c| c.name == *context).and_then(|c| c.context.as_ref());
    let named = &named.with_context(|| format!("the kubeconfig has no context {context:?}"))?.cluster;
    let cluster = config.clusters.iter().find(|c| c.name == *named).and_then(|c| c.cluster.as_ref());
    let cluster = cluster.with_context(|| format!("the kubeconfig has no cluster {named:?}"))?;
    let server = options.server.clone().or_else(|| cluster.server.clone());
    let authority = match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
        (Some(data), _) => STANDARD.decode(data).context("certificate-authority-data")?,
        (None, Some(file)) => {
            let file = path.parent().unwrap_or(Path::new("")).join(file);
            std::fs::read(&file).with_context(|| file.display().to_string())?
        }
        (None, None) => anyhow::bail!("the kubeconfig names no authority for the cluster {named:?}"),
    };
    let name = options.tls_server_name.clone().or_else(|| cluster.tls_server_name.clone());
    Ok((server.with_context(|| format!("the cluster {named:?} has no server"))?, name, authority))
}

/// The Secret of a cluster.
fn of(
    name: &str,
    root: &str,
    server: &str,
    tls_server_name: Option<&str>,
    authority: &[u8],
    token: &str,
) -> Result<Value> {
    let mut cluster = json!({"server": server, "certificate-authority-data": STANDARD.encode(authority)});
    if let Some(tls) = tls_server_name {
        cluster["tls-server-name"] = tls.into();
    }
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "clusters": [{"name": name, "cluster": cluster}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "users": [{"name": name, "user": {"token": token}}],
        "current-context": name,
    });
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": format!("{PREFIX}{name}"),
            "namespace": root,
            "labels": {"istio/multiCluster": "true"},
            "annotations": {"networking.istio.io/cluster": name},
        },
        "stringData": {name: serde_saphyr::to_string(&kubeconfig)?},
    }))
}

/// A DNS-1123 subdomain.
fn is_name(text: &str) -> bool {
    let label = |l: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(l.chars().next())
            && edge(l.chars().last())
            && l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_istios_and_holds_a_kubeconfig_that_is_taken() {
        let secret = of("west", "istio-system", "https://192.0.2.2:6443", Some("api"), b"PEM", "abc").unwrap();
        assert_eq!(secret["metadata"]["name"], "istio-remote-secret-west");
        assert_eq!(secret["metadata"]["labels"]["istio/multiCluster"], "true");
        assert_eq!(secret["metadata"]["annotations"]["networking.istio.io/cluster"], "west");
        let config = Kubeconfig::from_yaml(secret["stringData"]["west"].as_str().unwrap()).unwrap();
        assert_eq!(config.current_context.as_deref(), Some("west"));
        let cluster = config.clusters[0].cluster.clone().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://192.0.2.2:6443"));
        assert_eq!(cluster.tls_server_name.as_deref(), Some("api"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("UEVN"));
        assert!(config.auth_infos[0].auth_info.as_ref().unwrap().token.is_some());
    }

    #[test]
    fn the_cluster_is_the_current_contexts_or_the_one_named() {
        let text = "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{name: a, context: {cluster: one, user: u}}, {name: b, context: {cluster: two, user: u}}]\n\
            clusters: [{name: one, cluster: {server: 'https://one', certificate-authority-data: UEVN}}, {name: two, cluster: {server: 'https://two'}}]\nusers: []\n";
        let config = Kubeconfig::from_yaml(text).unwrap();
        let options = |context: Option<&str>, server: Option<&str>| Options {
            name: None,
            server: server.map(str::to_owned),
            tls_server_name: None,
            context: context.map(str::to_owned),
            service_account: "sa".into(),
            create_service_account: true,
        };
        let (server, _, authority) = cluster(&config, &options(None, None), Path::new("x")).unwrap();
        assert_eq!((server.as_str(), &authority[..]), ("https://one", &b"PEM"[..]));
        assert_eq!(cluster(&config, &options(None, Some("https://out")), Path::new("x")).unwrap().0, "https://out");
        let refused = cluster(&config, &options(Some("b"), None), Path::new("x")).unwrap_err().to_string();
        assert!(refused.contains("names no authority"), "{refused}");
    }

    #[test]
    fn names_of_clusters() {
        for (name, good) in
            [("west", true), ("a.b-1", true), ("", false), ("West", false), ("a_b", false), ("-a", false)]
        {
            assert_eq!(is_name(name), good, "{name}");
        }
    }
}
