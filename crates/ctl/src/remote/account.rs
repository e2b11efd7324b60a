//! The service account as which a cluster is read by others: its right to read, and its token.
//!
//! Invariant: the account may read what a mesh is made of, and nothing else; no secrets. In a Kubernetes cluster the token is that of a
//! Secret, which lasts; the embedded API gives one for a year.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{Secret, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

/// Who set the fields.
const MANAGER: &str = "carrick-remote-secret";
/// The longest life the embedded API gives, seconds.
const YEAR: i64 = 365 * 24 * 3600;
/// How long Kubernetes may take to fill a token's Secret.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the account and its right to read.
pub(super) async fn ensure(client: &Client, root: &str, account: &str) -> Result<()> {
    let params = PatchParams::apply(MANAGER).force();
    let role = format!("istio-reader-clusterrole-{root}");
    let read = ["get", "list", "watch"];
    let groups = ["networking.istio.io", "security.istio.io", "gateway.networking.k8s.io", "discovery.k8s.io"];
    let rules = json!([
        {"apiGroups": [""], "resources": ["namespaces", "services", "endpoints", "pods", "nodes"], "verbs": read},
        {"apiGroups": groups, "resources": ["*"], "verbs": read},
    ]);
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), root);
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}});
    accounts
        .patch(account, &params, &Patch::Apply(object))
        .await
        .with_context(|| format!("service account {account}"))?;
    let kind = "rbac.authorization.k8s.io/v1";
    let object = json!({"apiVersion": kind, "kind": "ClusterRole", "metadata": {"name": role}, "rules": rules});
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.patch(&role, &params, &Patch::Apply(object)).await.with_context(|| format!("cluster role {role}"))?;
    let object = json!({
        "apiVersion": kind, "kind": "ClusterRoleBinding", "metadata": {"name": role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": root}],
    });
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    bindings
        .patch(&role, &params, &Patch::Apply(object))
        .await
        .with_context(|| format!("cluster role binding {role}"))?;
    Ok(())
}

/// The account's token.
pub(super) async fn token(client: &Client, root: &str, account: &str) -> Result<String> {
    let version = client.apiserver_version().await.context("the API does not answer")?;
    if version.git_version.contains("+carrick") {
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), root);
        let spec = TokenRequestSpec { expiration_seconds: Some(YEAR), ..Default::default() };
        let request = TokenRequest { spec, ..Default::default() };
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let answer = answer.with_context(|| format!("a token of service account {account}"))?;
        return Ok(answer.status.context("no token")?.token);
    }
    let name = format!("{account}-istio-remote-secret-token");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), root);
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}},
    });
    let params = PatchParams::apply(MANAGER).force();
    secrets.patch(&name, &params, &Patch::Apply(object)).await.with_context(|| format!("secret {name}"))?;
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let found = secrets.get(&name).await?.data.and_then(|mut data| data.remove("token"));
        if let Some(token) = found {
            return String::from_utf8(token.0).context("the token is no text");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("nobody put a token of {account} into the secret {name}")
}
