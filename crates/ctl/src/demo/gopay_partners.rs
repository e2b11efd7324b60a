//! Partners that call in with their own certificates, and are called out with ours.
//!
//! Invariant: the manifests are those of `examples/gopay-partners`, unchanged but for the partner's address; every row
//! asserts on curl's exit code and answer, on bytes from the wire, or on an object's status.

mod delivery;
mod ingress;
mod machine;
mod partner_ca;
mod rotation;
mod vm;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use carrick_pod::Engine;
use clap::Args;
use serde_json::Value;

use super::{
    certificates,
    engines::Engines,
    load::Running,
    mesh::{MESH_CONFIG, Setup, folder, serve_command},
    rows::Rows,
    stage::{Stage, Want, gateway, pod, secret},
};

const SERVICES: &str = include_str!("../../../../examples/gopay-partners/services.yaml");
const INGRESS: &str = include_str!("../../../../examples/gopay-partners/ingress.yaml");
const ALLOW_LIST: &str = include_str!("../../../../examples/gopay-partners/allow-list.yaml");
const EGRESS: &str = include_str!("../../../../examples/gopay-partners/egress-sidecar.yaml");
const EGRESS_GATEWAY: &str = include_str!("../../../../examples/gopay-partners/egress-gateway.yaml");
const IDLE: &str = include_str!("../../../../examples/gopay-partners/idle.yaml");
const RETRIES: &str = include_str!("../../../../examples/gopay-partners/retries.yaml");
/// The mesh's own configuration: where access logs go, and one load balancer before the gateway that tells who called.
const MESH: &str = "\
accessLogFile: /dev/stdout
defaultConfig: {gatewayTopology: {numTrustedProxies: 1}}
";
/// How long a status may take to be written.
const STATUS_LIMIT: Duration = Duration::from_secs(10);
const ENVOY_FILTER: &str = include_str!("../../../../examples/gopay-partners/envoy-filter.yaml");

const PAYMENTS: &str = "payments";
const ORDERS: &str = "orders";
const PARTNER: &str = "partner";
const MALLORY: &str = "mallory";
const IDLE_PARTNER: &str = "idle";
const INGRESS_POD: &str = "istio-ingressgateway";
const EGRESS_POD: &str = "istio-egressgateway";
const API: &str = "https://api.gopay.example.com/";
/// How the sidecar of orders gets its files.
const VOLUMES: [&str; 2] = [
    r#"sidecar.istio.io/userVolume={"partner":{"secret":{"secretName":"partner-certs"}}}"#,
    r#"sidecar.istio.io/userVolumeMount={"partner":{"mountPath":"/var/run/secrets/partner","readonly":true}}"#,
];
/// Requests a second to the partner that closes idle connections; the gap between two is well within its patience and beyond.
const IDLE_RATE: &str = "50";
/// The partner's patience in milliseconds: another one each time.
const IDLE_MILLIS: &str = "5-60";
/// Milliseconds between its restarts.
const RESTARTS: &str = "700";

/// How the scenario is run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Data planes of client and server: native, envoy, mixed (one of each, both ways) or all.
    #[arg(long, value_enum, default_value = "all")]
    engine: Engines,
    /// Seconds of calls to the partner that closes idle connections.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    idle_seconds: u64,
}

/// Runs every row; 0 only when all passed.
///
/// # Errors
/// When the mesh itself cannot be started.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    let mut rows = Rows::new("gopay-partners");
    let own = folder(data_dir, "gopay-partners");
    let certs = own.path.join("certs");
    certificates::fill(&certs, &["partner.example.com", "api.gopay.example.com"])?;
    for (client, server) in options.engine.pairs() {
        println!("gopay-partners, client {}, server {}", client.as_str(), server.as_str());
        let dir = own.path.join(format!("{}-{}", client.as_str(), server.as_str()));
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join(MESH_CONFIG), MESH)?;
        let setup = Setup { up: vec!["--pkcs11-module".into(), rotation::MODULE.into()], ..Setup::default() };
        let mut pay = Pay {
            stage: Stage::open_with(&dir, setup, *client, *server).await?,
            certs: certs.clone(),
            machine: None,
            started: false,
        };
        // Of the mesh only the gateway's engine matters to these two.
        if client == server {
            let title = "1 certificates for a gateway, a machine and a partner, issued and renewed";
            rows.check(title, async || pay.certificates().await).await;
            rows.check("2 what is served is looked at after each delivery", async || pay.proof().await).await;
        }
        rows.check("3 partners call in with the right certificate and name", async || pay.ingress().await).await;
        rows.check("4 and from the right address", async || pay.allow_list().await).await;
        rows.check("5 we call out by the sidecar's mutual TLS", async || pay.egress().await).await;
        rows.check("6 we call out by an egress gateway", async || pay.egress_gateway().await).await;
        let title = format!(
            "7 {} s of GET and POST to a partner that closes idle connections and restarts",
            options.idle_seconds
        );
        rows.check(&title, async || pay.idle(options.idle_seconds).await).await;
        rows.check("8 the partner changes its authority, and ours is exchanged under load", async || {
            let partner = pay.partner_changes_its_authority().await?;
            Ok(format!("{partner}; {}", pay.rotation().await?))
        })
        .await;
        rows.check("9 a machine joins by a token, is called and calls", async || pay.vm().await).await;
        rows.check("10 an EnvoyFilter, run or refused in words", async || pay.envoy_filter().await).await;
        pay.stage.close().await?;
    }
    Ok(rows.finish())
}

struct Pay {
    stage: Stage,
    certs: PathBuf,
    machine: Option<machine::Machine>,
    started: bool,
}

impl Pay {
    fn path(&self, name: &str) -> String {
        self.certs.join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        std::fs::read(self.certs.join(name)).with_context(|| name.to_owned())
    }

    /// Manifests with the address of a pod in place.
    fn placed(&self, manifests: &str, partner: &str) -> Result<String> {
        Ok(manifests.replace("PARTNER_ADDRESS", &self.stage.address(partner)?.to_string()))
    }

    async fn start(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.started, true) {
            return Ok(());
        }
        let (client, server) = (self.stage.client, self.stage.server);
        self.stage.mesh.apply(SERVICES).await?;
        let data = [
            ("tls.crt", self.read("server.pem")?),
            ("tls.key", self.read("server-key.pem")?),
            ("ca.crt", self.read("ca.pem")?),
            ("ca.crl", self.read("crl.pem")?),
        ];
        self.stage.mesh.apply(&secret("istio-system", "gopay-api", "Opaque", &data)).await?;
        let payments = serve_command(PAYMENTS, &["--port", "8082"]);
        self.stage.start(&pod("gopay", PAYMENTS, PAYMENTS, server, payments))?;
        let files = ["client.pem", "client-key.pem", "ca.pem", "other-ca.pem"];
        let data: Vec<_> = files.iter().map(|name| Ok((*name, self.read(name)?))).collect::<Result<_>>()?;
        self.stage.mesh.apply(&secret("gopay", "partner-certs", "Opaque", &data)).await?;
        let mut orders = pod("gopay", ORDERS, ORDERS, client, serve_command(ORDERS, &[]));
        for annotation in VOLUMES {
            orders.more.extend(["--annotation".to_owned(), annotation.to_owned()]);
        }
        self.stage.start(&orders)?;
        let folder = self.certs.display().to_string();
        let partner = ["--mutual-tls-port", "8444", "--certificates", &folder];
        self.stage.start(&pod("partners", PARTNER, PARTNER, Engine::Native, serve_command(PARTNER, &partner)))?;
        self.stage.start(&pod("partners", MALLORY, MALLORY, Engine::Native, serve_command(MALLORY, &[])))?;
        let idle = ["--idle", IDLE_MILLIS, "--restart-every", RESTARTS];
        self.stage.start(&pod("partners", IDLE_PARTNER, IDLE_PARTNER, Engine::Native, serve_command("idle", &idle)))?;
        self.stage.start(&gateway("istio-system", INGRESS_POD, "ingressgateway", client))?;
        self.stage.up().await
    }

    /// curl's arguments for a call to the gateway with a certificate of the folder, or without.
    fn call(&self, certificate: &str) -> Vec<String> {
        let connect = format!("api.gopay.example.com:443:{INGRESS_POD}.istio-system:443");
        let mut args = vec!["--cacert".to_owned(), self.path("ca.pem"), "--connect-to".to_owned(), connect];
        if !certificate.is_empty() {
            args.extend(["--cert".to_owned(), self.path(&format!("{certificate}.pem"))]);
            args.extend(["--key".to_owned(), self.path(&format!("{certificate}-key.pem"))]);
        }
        args.push(API.to_owned());
        args
    }

    async fn calls_in(&self, from: &str, certificate: &str, want: Want) -> Result<()> {
        let args = self.call(certificate);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let what = if certificate.is_empty() { "no" } else { certificate };
        self.stage.expect(from, &args, want).await.with_context(|| format!("{what} certificate")).map(|_| ())
    }

    async fn egress(&mut self) -> Result<String> {
        let manifests = self.placed(EGRESS, PARTNER)?;
        self.stage.mesh.apply(&manifests).await?;
        let told = self.calls_out(&manifests).await;
        self.stage.mesh.delete(&manifests).await?;
        told?;
        Ok("plain from the application, our certificate at the partner; wrong name and wrong chain 503".into())
    }

    async fn calls_out(&mut self, manifests: &str) -> Result<()> {
        let url = "http://partner.example.com/{mark}";
        let told = self.stage.expect(ORDERS, &[url], Want::Status(200)).await?;
        let client = told.seen().and_then(|seen| seen.pointer("/tls/client").cloned()).unwrap_or_default();
        ensure!(client.as_str().is_some_and(|names| names.contains("client.example.com")), "the partner saw {client}");
        self.stage.encrypted(ORDERS, &[url], (ORDERS, PARTNER)).await?;
        let wrong_name = manifests.replace("subjectAltNames: [partner", "subjectAltNames: [other");
        self.stage.mesh.apply(&wrong_name).await?;
        self.stage.expect(ORDERS, &[url], Want::Status(503)).await.context("a partner of another name")?;
        let wrong_chain = manifests.replace("/ca.pem", "/other-ca.pem");
        self.stage.mesh.apply(&wrong_chain).await?;
        self.stage.expect(ORDERS, &[url], Want::Status(503)).await.context("a partner of another authority")?;
        Ok(())
    }

    async fn egress_gateway(&mut self) -> Result<String> {
        let data = [
            ("tls.crt", self.read("client.pem")?),
            ("tls.key", self.read("client-key.pem")?),
            ("ca.crt", self.read("ca.pem")?),
        ];
        self.stage.mesh.apply(&secret("istio-system", "partner-client", "Opaque", &data)).await?;
        self.stage.start(&gateway("istio-system", EGRESS_POD, "egressgateway", self.stage.server))?;
        self.stage.up().await?;
        let manifests = self.placed(EGRESS_GATEWAY, PARTNER)?;
        self.stage.mesh.apply(&manifests).await?;
        let told = self.through_gateway().await;
        self.stage.mesh.delete(&manifests).await?;
        told?;
        Ok("the certificate is the gateway's alone; every hop encrypted".into())
    }

    async fn through_gateway(&mut self) -> Result<()> {
        let url = "http://partner.example.com/{mark}";
        let told = self.stage.expect(ORDERS, &[url], Want::Status(200)).await?;
        let seen = told.seen().context("the partner tells no JSON")?;
        let gateway = self.stage.address(EGRESS_POD)?.to_string();
        ensure!(seen["peer"] == gateway, "the partner was called by {}, want {gateway}", seen["peer"]);
        let client = seen.pointer("/tls/client").and_then(Value::as_str).unwrap_or_default();
        ensure!(client.contains("client.example.com"), "the partner saw {client:?}");
        self.stage.encrypted(ORDERS, &[url], (ORDERS, EGRESS_POD)).await?;
        self.stage.encrypted(ORDERS, &[url], (EGRESS_POD, PARTNER)).await
    }

    async fn idle(&mut self, seconds: u64) -> Result<String> {
        let manifests = self.placed(IDLE, IDLE_PARTNER)?;
        self.stage.mesh.apply(&manifests).await?;
        self.stage.expect(ORDERS, &["http://idle.example.com/"], Want::Status(200)).await?;
        let urls = ["http://idle.example.com/".to_owned()];
        let methods = ["GET", "POST"];
        let load = Running::with_methods(&self.stage.mesh, "gopay", ORDERS, IDLE_RATE, &urls, &methods).await?;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let report = load.finish().await?;
        self.stage.mesh.apply(RETRIES).await?;
        let hidden = self.every_other_503_is_hidden().await;
        self.stage.mesh.delete(RETRIES).await?;
        self.stage.mesh.delete(&manifests).await?;
        hidden?;
        Ok(format!("{report}; retries of a VirtualService hide every other 503"))
    }

    /// The partner answers 503 to every other request of a path; each call here is made once and must be 200.
    async fn every_other_503_is_hidden(&self) -> Result<()> {
        // Envoy's workers may lag behind their acknowledgement.
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..6 {
            let answer = self.stage.curl(ORDERS, &["http://idle.example.com/flaky/orders"]).await?;
            ensure!(answer.status == 200, "with retries: {answer}");
        }
        Ok(())
    }

    async fn envoy_filter(&mut self) -> Result<String> {
        let applied = self.stage.mesh.apply(ENVOY_FILTER).await;
        let answer = self.stage.curl(ORDERS, &["http://payments.gopay:8080/"]).await?;
        ensure!(answer.status == 200, "orders → payments: {answer}");
        let header = answer.headers.get("x-gopay").map(String::as_str);
        let told = match self.stage.server {
            Engine::Envoy => {
                applied?;
                ensure!(header == Some("filtered"), "x-gopay: want \"filtered\", got {header:?}");
                "the header is there".to_owned()
            }
            Engine::Native => {
                ensure!(header.is_none(), "the native engine ran an EnvoyFilter");
                self.refusal().await?
            }
        };
        self.stage.mesh.delete(ENVOY_FILTER).await?;
        Ok(told)
    }

    /// The words in which the object's status says that it is not run.
    async fn refusal(&self) -> Result<String> {
        let path = "/apis/networking.istio.io/v1alpha3/namespaces/gopay/envoyfilters/header";
        let start = std::time::Instant::now();
        loop {
            let request = http::Request::get(path).body(Vec::new())?;
            let object: Value = self.stage.mesh.client().request(request).await?;
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
            let refused = conditions.into_iter().flatten().find(|condition| condition["reason"] == "Refused");
            if let Some(words) = refused.and_then(|condition| condition.get("message")?.as_str()) {
                return Ok(format!("status: {words}"));
            }
            ensure!(start.elapsed() < STATUS_LIMIT, "no refusal in the status: {}", object["status"]);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
