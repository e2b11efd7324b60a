//! The API as this crate uses it: a client from a kubeconfig, and errors in words.
//!
//! Invariant: "does not answer" and "answers no" are different errors.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use crate::PodError;

/// A client, and what pods are told of the API.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// The API's certificate authority, PEM; empty when the kubeconfig has none.
    pub(crate) ca_pem: String,
    /// Its address, for messages.
    pub(crate) server: String,
}

/// Reads the kubeconfig; does not talk to the API yet.
pub(crate) async fn connect(kubeconfig: &Path) -> Result<Connection, PodError> {
    let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| PodError::Unreachable {
        server: kubeconfig.display().to_string(),
        source,
    };
    let file = Kubeconfig::read_from(kubeconfig).map_err(|error| unreachable(error.into()))?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|error| unreachable(error.into()))?;
    config.connect_timeout = Some(Duration::from_secs(5));
    let server = config.cluster_url.to_string();
    let ca_pem = config.root_cert.iter().flatten().map(|der| pem(der)).collect();
    let client = Client::try_from(config).map_err(|error| unreachable(error.into()))?;
    Ok(Connection { client, ca_pem, server })
}

/// The namespace, which says at once whether the API answers and whether the pod has a place.
pub(crate) async fn namespace(connection: &Connection, name: &str) -> Result<Namespace, PodError> {
    match Api::<Namespace>::all(connection.client.clone()).get(name).await {
        Ok(namespace) => Ok(namespace),
        Err(error) if not_found(&error) => Err(PodError::Request(format!("namespace {name:?} does not exist"))),
        Err(error @ (kube::Error::Service(_) | kube::Error::HyperError(_))) => {
            Err(PodError::Unreachable { server: connection.server.clone(), source: error.into() })
        }
        Err(error) => Err(PodError::api(format!("read namespace {name}"))(error)),
    }
}

/// What the API answered, in its own words: the client's own text also holds the whole answer as the program sees it.
pub(crate) fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether the API said that there is no such object.
pub(crate) fn not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
