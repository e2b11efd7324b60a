//! Which API a command talks to, and how a proxy is named on a command line.
//!
//! Invariant: the order is flag, `KUBECONFIG`, the data folder's kubeconfig, `~/.kube/config`; the error names
//! every place that was looked at.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, Config, ResourceExt, config::KubeConfigOptions, config::Kubeconfig};

/// The kubeconfig a command uses.
///
/// # Errors
/// When none of the usual places has one.
pub fn kubeconfig(flag: Option<&Path>, data_dir: &Path) -> Result<PathBuf> {
    if let Some(path) = flag {
        return Ok(path.to_owned());
    }
    let mut places = Vec::new();
    places.extend(std::env::var_os("KUBECONFIG").map(PathBuf::from));
    places.push(data_dir.join("kubeconfig"));
    places.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config")));
    if let Some(found) = places.iter().find(|place| place.exists()) {
        return Ok(found.clone());
    }
    let looked = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
    bail!("no kubeconfig found (looked at {looked}): start one with `carrick up`, or name one with --kubeconfig")
}

/// A client for the API of a kubeconfig.
///
/// # Errors
/// When the file cannot be read or its credentials cannot be used.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig).with_context(|| format!("kubeconfig {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("kubeconfig {}", kubeconfig.display()))?;
    Client::try_from(config).context("cannot make an API client")
}

/// A proxy as people name it: `[TYPE/]NAME[.NAMESPACE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyName {
    /// `pod`, `deployment` or `service`.
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

impl ProxyName {
    /// Reads the form; `namespace` is used where the text names none.
    pub fn parse(text: &str, namespace: &str) -> Self {
        let (kind, rest) = text.split_once('/').unwrap_or(("pod", text));
        let (name, namespace) = rest.split_once('.').unwrap_or((rest, namespace));
        Self { kind: kind.to_owned(), name: name.to_owned(), namespace: namespace.to_owned() }
    }

    /// The pod meant: itself, or the first that a deployment or service has.
    ///
    /// # Errors
    /// When there is no such pod, or the API cannot be reached.
    pub async fn pod(&self, client: &Client) -> Result<Pod> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &self.namespace);
        let not_found = || format!("no pod found for {}/{} in namespace {:?}", self.kind, self.name, self.namespace);
        match self.kind.as_str() {
            "pod" | "pods" | "po" => pods.get(&self.name).await.with_context(not_found),
            "deployment" | "deploy" | "deployments" => {
                let prefix = format!("{}-", self.name);
                let all = pods.list(&Default::default()).await?;
                all.into_iter().find(|pod| pod.name_any().starts_with(&prefix)).with_context(not_found)
            }
            "service" | "svc" | "services" => {
                let services: Api<k8s_openapi::api::core::v1::Service> =
                    Api::namespaced(client.clone(), &self.namespace);
                let service = services.get(&self.name).await.with_context(not_found)?;
                let selector = service.spec.and_then(|s| s.selector).unwrap_or_default();
                if selector.is_empty() {
                    bail!("service {}.{} selects no pods", self.name, self.namespace);
                }
                let labels = selector.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
                let all = pods.list(&kube::api::ListParams::default().labels(&labels)).await?;
                all.into_iter().next().with_context(not_found)
            }
            other => bail!("unknown type {other:?}: pod, deployment or service"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_named_as_in_istioctl() {
        let named = |text| {
            let p = ProxyName::parse(text, "default");
            (p.kind, p.name, p.namespace)
        };
        let want = |k: &str, n: &str, ns: &str| (k.to_owned(), n.to_owned(), ns.to_owned());
        assert_eq!(named("web-0"), want("pod", "web-0", "default"));
        assert_eq!(named("web-0.shop"), want("pod", "web-0", "shop"));
        assert_eq!(named("deployment/web.shop"), want("deployment", "web", "shop"));
    }

    #[test]
    fn the_error_names_every_place() {
        let nowhere = Path::new("/nonexistent/carrick");
        if std::env::var_os("KUBECONFIG").is_none() && std::env::var_os("HOME").is_none() {
            let error = kubeconfig(None, nowhere).unwrap_err().to_string();
            assert!(error.contains("/nonexistent/carrick/kubeconfig"), "{error}");
        }
        assert_eq!(kubeconfig(Some(Path::new("/x")), nowhere).unwrap(), Path::new("/x"));
    }
}
