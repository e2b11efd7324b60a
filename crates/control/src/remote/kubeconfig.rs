//! A kubeconfig out of a Secret, as a client.
//!
//! Invariant: whoever may write such a Secret gets no more than a connection out of it: nothing is run, no file of the control plane's
//! is read, and the server's certificate is verified (what Istio refuses unless `PILOT_INSECURE_MULTICLUSTER_KUBECONFIG_OPTIONS` allows it).

use kube::config::{KubeConfigOptions, Kubeconfig};
use std::time::Duration;

/// How long the other cluster may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// A client for the cluster.
///
/// # Errors
/// What is wrong, in words that hold nothing of the content's secrets.
pub(super) async fn client(content: &[u8]) -> Result<kube::Client, String> {
    let text = std::str::from_utf8(content).map_err(|_| "the kubeconfig is no text".to_owned())?;
    // The parser's own words may quote what it read.
    let config = Kubeconfig::from_yaml(text).map_err(|_| "the kubeconfig cannot be read".to_owned())?;
    if let Some(what) = forbidden(&config) {
        return Err(format!("{what} is not allowed in the kubeconfig of another cluster"));
    }
    let context = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &context);
    let mut config = config.await.map_err(|error| format!("the kubeconfig cannot be used: {error}"))?;
    config.connect_timeout = Some(CONNECT);
    kube::Client::try_from(config).map_err(|error| format!("the kubeconfig cannot be used: {error}"))
}

fn forbidden(config: &Kubeconfig) -> Option<&'static str> {
    for user in config.auth_infos.iter().filter_map(|named| named.auth_info.as_ref()) {
        let found = [
            (user.exec.is_some(), "exec"),
            (user.auth_provider.is_some(), "auth-provider"),
            (user.token_file.is_some(), "tokenFile"),
            (user.client_certificate.is_some(), "client-certificate"),
            (user.client_key.is_some(), "client-key"),
        ];
        if let Some((_, what)) = found.into_iter().find(|(there, _)| *there) {
            return Some(what);
        }
    }
    for cluster in config.clusters.iter().filter_map(|named| named.cluster.as_ref()) {
        if cluster.insecure_skip_tls_verify == Some(true) {
            return Some("insecure-skip-tls-verify");
        }
        if cluster.certificate_authority.is_some() {
            return Some("certificate-authority");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://192.0.2.1:6443'{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n"
        )
    }

    #[tokio::test]
    async fn only_what_is_in_the_secret_itself_is_used() {
        let refused = |cluster: &'static str, user: &'static str| async move {
            client(kubeconfig(cluster, user).as_bytes()).await.err().unwrap_or_default()
        };
        assert_eq!(refused("", "token: abc").await, "");
        for (cluster, user, what) in [
            ("", "exec: {command: sh, apiVersion: client.authentication.k8s.io/v1}", "exec"),
            ("", "auth-provider: {name: gcp, config: {}}", "auth-provider"),
            ("", "tokenFile: /var/run/secrets/token", "tokenFile"),
            ("", "client-certificate: /etc/a.pem", "client-certificate"),
            ("", "client-key: /etc/a.pem", "client-key"),
            (", insecure-skip-tls-verify: true", "token: abc", "insecure-skip-tls-verify"),
            (", certificate-authority: /etc/ca.pem", "token: abc", "certificate-authority"),
        ] {
            let told = refused(cluster, user).await;
            assert!(told.starts_with(&format!("{what} is not allowed")), "{what}: {told}");
        }
        let broken = client(b"{users: secret").await.err().unwrap_or_default();
        assert_eq!(broken, "the kubeconfig cannot be read");
        assert!(client(b"apiVersion: v1\nkind: Config\n").await.is_err());
    }
}
