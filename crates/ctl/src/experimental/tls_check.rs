//! `carrick authn tls-check`: for each service that a proxy knows, what the server asks for, what the proxy does, and whether
//! the two can talk.
//!
//! Invariant: the server's side is that of the mesh and the service's namespace; workloads and ports with a policy of their
//! own are told by `x describe` and `why`. The client's side is what the proxy really has.

use serde_json::Value;

use super::auth_check::tls_context;
use super::{chains, peer};
use crate::proxy_config::clusters::{self, Filter};
use crate::proxy_config::dump::{Dump, istio_config, text};
use crate::table::Table;

/// Spaces between columns.
const GAP: usize = 5;
const DOMAIN: &str = ".svc.cluster.local";

/// The table; with a host only its rows.
pub fn show(dump: &Dump, policies: &[Value], host: Option<&str>, root: &str) -> String {
    let mut table = Table::new(GAP, ["HOST:PORT", "STATUS", "SERVER", "CLIENT", "AUTHN POLICY", "DESTINATION RULE"]);
    let wanted = Filter { direction: Some("outbound".into()), subset: Some(String::new()), ..Filter::default() };
    for cluster in clusters::select(dump, &wanted) {
        let mut parts = text(cluster, &["name"]).split('|').skip(1);
        let (Some(port), Some(name)) = (parts.next(), parts.nth(1)) else { continue };
        if host.is_some_and(|host| host != name) {
            continue;
        }
        // Only workloads of the mesh have a policy.
        let namespace =
            name.strip_suffix(DOMAIN).and_then(|short| short.split_once('.')).map(|(_, namespace)| namespace);
        let server = namespace.map(|namespace| peer::effective(policies, &Value::Null, namespace, root));
        let mode = server.as_ref().map_or("-", |server| server.mode.as_str());
        let policy = server.as_ref().and_then(|server| server.applied.last()).map_or("-", String::as_str);
        let client = client(cluster);
        let rule = istio_config(cluster, "destination-rule").filter(|rule| !rule.is_empty());
        table.row([
            format!("{name}:{port}"),
            verdict(mode, client).to_owned(),
            mode.to_owned(),
            client.to_owned(),
            policy.to_owned(),
            rule.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.to_string()
}

/// What the proxy does: plain text, TLS of others, the mesh's TLS, or the mesh's with whoever takes it.
fn client(cluster: &Value) -> &'static str {
    let Some(context) = tls_context(cluster) else { return "DISABLE" };
    match (chains::certificate(context) == "default", cluster.get("transport_socket").is_some()) {
        (true, true) => "ISTIO_MUTUAL",
        (true, false) => "AUTO",
        (false, _) => "TLS",
    }
}

fn verdict(server: &str, client: &str) -> &'static str {
    match (server, client) {
        ("STRICT", "DISABLE" | "TLS") | ("DISABLE", "ISTIO_MUTUAL") => "CONFLICT",
        _ => "OK",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_for_each_service_with_its_verdict() {
        let own = json!({"typed_config": {"common_tls_context": {"tls_certificate_sds_secret_configs": [{"name": "default"}]}}});
        let other = json!({"typed_config": {"common_tls_context": {"validation_context": {}}}});
        let rule = "/apis/networking.istio.io/v1/namespaces/shop/destination-rule/web";
        let cluster = |name: &str, more: Value| {
            let mut cluster = json!({"name": name});
            for (key, value) in more.as_object().unwrap() {
                cluster[key] = value.clone();
            }
            json!({"cluster": cluster})
        };
        let body = json!({"configs": [{"@type": "x.ClustersConfigDump", "dynamic_active_clusters": [
            cluster("inbound|80||", json!({})),
            cluster("outbound|80||a.bank.svc.cluster.local", json!({"transport_socket_matches": [{"transport_socket": own}]})),
            cluster("outbound|80|v1|a.bank.svc.cluster.local", json!({})),
            cluster("outbound|80||web.shop.svc.cluster.local", json!({"metadata": {"filter_metadata": {"istio": {"config": rule}}}})),
            cluster("outbound|81||web.shop.svc.cluster.local", json!({"transport_socket": own})),
            cluster("outbound|443||x.example.com", json!({"transport_socket": other})),
        ]}]});
        let dump = Dump::parse(&serde_json::to_vec(&body).unwrap(), None).unwrap();
        let policy = |namespace: &str, mode: &str| json!({"metadata": {"name": "default", "namespace": namespace}, "spec": {"mtls": {"mode": mode}}});
        let policies = [policy("shop", "STRICT"), policy("istio-system", "PERMISSIVE")];
        let lines = |host: Option<&str>| -> Vec<String> {
            let text = show(&dump, &policies, host, "istio-system");
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        assert_eq!(
            lines(None),
            [
                "HOST:PORT STATUS SERVER CLIENT AUTHN POLICY DESTINATION RULE",
                "a.bank.svc.cluster.local:80 OK PERMISSIVE AUTO default.istio-system -",
                "web.shop.svc.cluster.local:80 CONFLICT STRICT DISABLE default.shop web.shop",
                "web.shop.svc.cluster.local:81 OK STRICT ISTIO_MUTUAL default.shop -",
                "x.example.com:443 OK - TLS - -",
            ]
        );
        assert_eq!(lines(Some("x.example.com")).len(), 2);
    }
}
