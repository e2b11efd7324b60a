//! Secrets for agents that keep files: who gets which, and what is said on the Certificate of what they report.

use crate::fixture::{World, authority, local, node};
use carrick_apiserver::{ApiOptions, ApiServer};
use carrick_control::{Control, ControlOptions};
use carrick_pki::{Identity, Subject};
use carrick_runtime::drain;
use carrick_xds::client::{ClientOptions, Handler, Interest, Nack, Update, open_channel, run};
use carrick_xds::delivery::{DeliveryClient, Report, ReportRequest, Verdict};
use carrick_xds::node::text;
use carrick_xds::{Resource, TypeUrl};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret as SdsSecret, secret::Type};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

const LIMIT: Duration = Duration::from_secs(20);

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

/// What an agent was told: the Secret's values, or that it gets none.
type Got = Arc<Mutex<BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>>>;

struct Taker {
    wants: Vec<String>,
    got: Got,
}

fn values(resource: &Resource) -> BTreeMap<String, Vec<u8>> {
    let secret: SdsSecret = prost::Message::decode(resource.body.value.as_slice()).expect("a Secret");
    let Some(Type::GenericSecret(generic)) = secret.r#type else { panic!("not generic: {secret:?}") };
    let bytes = |source: envoy_types::pb::envoy::config::core::v3::DataSource| match source.specifier {
        Some(envoy_types::pb::envoy::config::core::v3::data_source::Specifier::InlineBytes(bytes)) => bytes,
        other => panic!("not bytes: {other:?}"),
    };
    generic.secrets.into_iter().map(|(key, source)| (key, bytes(source))).collect()
}

impl Handler for Taker {
    fn interests(&self) -> Vec<(TypeUrl, Interest)> {
        vec![(TypeUrl::Secret, Interest::Names(self.wants.iter().map(|n| Arc::from(n.as_str())).collect()))]
    }

    fn apply(&mut self, update: Update) -> Result<(), Nack> {
        let mut got = self.got.lock().expect("got");
        got.extend(update.removed.iter().map(|name| (name.to_string(), None)));
        got.extend(update.upserts.iter().map(|r| (r.name.to_string(), Some(values(r)))));
        Ok(())
    }
}

/// An agent of a service account, which asks for names it may not have too.
fn agent(world: &World, namespace: &str, account: &str, secrets: &str) -> (Got, drain::DrainTrigger) {
    let mut node = node(namespace, "machine", Ipv4Addr::LOCALHOST.into());
    let fields = &mut node.metadata.get_or_insert_default().fields;
    fields.insert("SERVICE_ACCOUNT".into(), text(account));
    fields.insert("GENERATOR".into(), text("files"));
    fields.insert("CARRICK_SECRETS".into(), text(secrets));
    let wants = secrets.split(',').map(|name| format!("files://{name}")).collect();
    let got = Got::default();
    let (trigger, drain) = drain::channel();
    let options = ClientOptions::new(world.connector(Some(world.identity(namespace, account))), node);
    let taker = Taker { wants, got: got.clone() };
    tokio::spawn(async move { drop(run(options, taker, drain).await) });
    (got, trigger)
}

async fn until(what: &str, mut f: impl AsyncFnMut() -> bool) {
    let start = std::time::Instant::now();
    while !f().await {
        assert!(start.elapsed() < LIMIT, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn secret(identity: &Identity) -> Value {
    json!({"type": "kubernetes.io/tls",
        "metadata": {"name": "web", "annotations": {"cert-manager.io/certificate-name": "web"}},
        "stringData": {"tls.crt": identity.chain_pem(), "tls.key": identity.key.to_pem(), "keystore.p12": "sealed", "more": "kept"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_whom_the_api_lets_gets_a_secret_and_may_report_on_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = ApiServer::start(ApiOptions::new(dir.path().join("api"), 0)).await.expect("API");
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).expect("kubeconfig");
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("config");
    let client = kube::Client::try_from(config).expect("client");
    let create = PostParams::default();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in ["shop", "bank"] {
        namespaces.create(&create, &object(json!({"metadata": {"name": name}}))).await.expect("namespace");
    }
    let authority = authority(&dir.path().join("ca"));
    let issue = || {
        let subject = Subject::Server { dns: vec!["web.example.com".into()], ips: vec![] };
        authority.issue(&subject, None, SystemTime::now()).expect("a certificate")
    };
    let one = issue();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "shop");
    secrets.create(&create, &object(secret(&one))).await.expect("secret");
    let gvk = GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate");
    let certificates: Api<DynamicObject> = Api::namespaced_with(client.clone(), "shop", &ApiResource::from_gvk(&gvk));
    let wish = json!({"apiVersion": "cert-manager.io/v1", "kind": "Certificate", "metadata": {"name": "web"},
        "spec": {"secretName": "web", "dnsNames": ["web.example.com"], "issuerRef": {"name": "none"}}});
    certificates.create(&create, &object(wish)).await.expect("certificate");
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "by another"}]}});
    certificates.patch_status("web", &PatchParams::default(), &Patch::Merge(ready)).await.expect("status");

    let mut options = ControlOptions::new(client.clone(), authority.clone(), Default::default());
    (options.xds_addr, options.debug_addr) = (local(0), local(0));
    let control = Control::start(options).await.expect("starts");
    tokio::time::timeout(LIMIT, control.ready()).await.expect("everything is listed");
    let world = World::of(control, authority.clone());

    // Nobody has allowed it: neither in the own namespace nor from another.
    let (got, _own) = agent(&world, "shop", "web", "web,none");
    let (other, _stranger) = agent(&world, "bank", "web", "web");
    until("both are told no", async || {
        let told = |got: &Got| got.lock().expect("got").get("files://web").is_some_and(Option::is_none);
        told(&got) && told(&other)
    })
    .await;

    let roles: Api<Role> = Api::namespaced(client.clone(), "shop");
    let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["web"], "verbs": ["get"]}]);
    roles.create(&create, &object(json!({"metadata": {"name": "web"}, "rules": rules}))).await.expect("role");
    let bindings: Api<RoleBinding> = Api::namespaced(client.clone(), "shop");
    let subjects = json!([{"kind": "ServiceAccount", "name": "web", "namespace": "shop"},
        {"kind": "ServiceAccount", "name": "web", "namespace": "bank"}]);
    let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "web"});
    let binding = json!({"metadata": {"name": "web"}, "subjects": subjects, "roleRef": reference});
    bindings.create(&create, &object(binding)).await.expect("binding");
    let held = |got: &Got| got.lock().expect("got").get("files://web").cloned().flatten();
    until("it is given", async || held(&got).is_some()).await;
    let values = held(&got).expect("given");
    assert_eq!(values["tls.key"], one.key.to_pem().into_bytes());
    assert_eq!(values.keys().collect::<Vec<_>>(), ["keystore.p12", "tls.crt", "tls.key"], "nothing else of it");

    // A renewal is pushed.
    let two = issue();
    secrets.patch("web", &PatchParams::default(), &Patch::Merge(secret(&two))).await.expect("renewed");
    until("the new one", async || held(&got).is_some_and(|v| v["tls.key"] == two.key.to_pem().into_bytes())).await;

    // Reports: of those who have it alone.
    let report = |agent: &str, served: (&str, &str, &str)| {
        let verdict = |status: &str, reason: &str, serial: &str| Verdict {
            status: status.into(),
            reason: reason.into(),
            message: "in words".into(),
            serial: serial.into(),
        };
        Report {
            consumer: "nginx".into(),
            agent: agent.into(),
            secret: "web".into(),
            delivered: Some(verdict("True", "FilesInPlace", &two.serial)),
            served: Some(verdict(served.0, served.1, served.2)),
            period_seconds: 1,
        }
    };
    let tell = async |namespace: &str, account: &str, report: Report| {
        let channel = open_channel(&world.connector(Some(world.identity(namespace, account)))).await.expect("connects");
        DeliveryClient::new(channel).report(ReportRequest { reports: vec![report] }).await.map(|_| ())
    };
    for (namespace, account) in [("bank", "web"), ("shop", "other")] {
        let refused = tell(namespace, account, report("x", ("True", "ServesIssued", &two.serial))).await;
        assert_eq!(refused.expect_err("refused").code(), tonic::Code::PermissionDenied, "{namespace}/{account}");
    }
    let condition = async |kind: &str| -> Value {
        let certificate = certificates.get("web").await.expect("API");
        let conditions = certificate.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == kind).unwrap_or_default()
    };
    tell("shop", "web", report("vm-1", ("True", "ServesIssued", &two.serial))).await.expect("taken");
    until("served", async || condition("Served").await["status"] == "True").await;
    assert_eq!(condition("Delivered").await["status"], "True");
    assert_eq!(condition("Ready").await["message"], "by another", "conditions of others stay");
    tell("shop", "web", report("vm-2", ("False", "ConsumerDidNotReload", &one.serial))).await.expect("taken");
    until("one did not reload", async || condition("Served").await["reason"] == "ConsumerDidNotReload").await;
    let told = condition("Served").await["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!(told, "nginx on vm-2: in words");
    assert_eq!(condition("Delivered").await["status"], "True", "it was delivered all the same");

    // What is taken away is not given any more.
    bindings.delete("web", &Default::default()).await.expect("deleted");
    let three = issue();
    tokio::time::sleep(Duration::from_millis(10)).await;
    until("taken away", async || held(&got).is_none()).await;
    secrets.patch("web", &PatchParams::default(), &Patch::Merge(secret(&three))).await.expect("renewed");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(held(&got).is_none() && held(&other).is_none());
    world.control.drain(Duration::from_secs(2)).await;
    server.drain(Duration::from_secs(2)).await;
}
