//! TLS that ends at the workload's own sidecar, an API gateway in the mesh, and nothing allowed but what is named.
//!
//! Invariant: the manifests are those of `examples/intuit-gateway`, unchanged but for the folder of certificates; every
//! row asserts on curl's exit code and status, on bytes from the wire, or on what a command printed.

mod clusters;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use carrick_pod::Engine;
use clap::Args;
use serde_json::Value;

use super::{
    certificates,
    engines::Engines,
    mesh::{folder, own_command, serve_command},
    rows::Rows,
    stage::{RESET, Stage, Want, gateway, pod, secret},
};

const NAMESPACES: &str = include_str!("../../../../examples/intuit-gateway/namespace.yaml");
const BEFORE: &str = include_str!("../../../../examples/intuit-gateway/before.yaml");
const SIMPLE: &str = include_str!("../../../../examples/intuit-gateway/after-simple.yaml");
const MUTUAL: &str = include_str!("../../../../examples/intuit-gateway/after-mutual.yaml");
const ONE_CLIENT: &str = include_str!("../../../../examples/intuit-gateway/only-the-client.yaml");
const GATEWAY: &str = include_str!("../../../../examples/intuit-gateway/gateway.yaml");
const ZERO_TRUST: &str = include_str!("../../../../examples/intuit-gateway/zero-trust.yaml");

const HTTPBIN: &str = "httpbin";
const CLIENT: &str = "client";
const CALLER: &str = "caller";
const INGRESS: &str = "istio-ingressgateway";
const PLAIN: &str = "http://httpbin.app1.svc.cluster.local:8000/";
const ADMIN: &str = "http://httpbin.app1.svc.cluster.local:8001/";
const TLS: &str = "https://httpbin.app1.svc.cluster.local:8443/";
/// How soon files replaced on disk must be served.
const RELOAD: Duration = Duration::from_secs(1);

/// How the scenario is run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Data planes of client and server: native, envoy, mixed (one of each, both ways) or all.
    #[arg(long, value_enum, default_value = "all")]
    engine: Engines,
}

/// Runs every row; 0 only when all passed.
///
/// # Errors
/// When the mesh itself cannot be started.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    let mut rows = Rows::new("intuit-gateway");
    let own = folder(data_dir, "intuit-gateway");
    for (client, server) in options.engine.pairs() {
        println!("intuit-gateway, client {}, server {}", client.as_str(), server.as_str());
        let dir = own.path.join(format!("{}-{}", client.as_str(), server.as_str()));
        let certs = dir.join("certs");
        certificates::fill(&certs, &["httpbin.app1.svc.cluster.local", "api.example.com"])?;
        let mut api = Api { stage: Stage::open(&dir.join("mesh"), *client, *server).await?, certs };
        rows.check("1 before: the mesh's mutual TLS only", async || api.before().await).await;
        rows.check("2 after: the sidecar ends TLS, certificate from files", async || api.simple().await).await;
        rows.check("3 after: callers show a certificate too", async || api.mutual().await).await;
        rows.check("4 the gateway in the mesh, no hop in the clear", async || api.through_gateway().await).await;
        rows.check("5 files replaced on disk are served at once", async || api.replaced().await).await;
        rows.check("6 nothing but the edges named", async || api.zero_trust().await).await;
        api.stage.close().await?;
        let both = dir.join("clusters");
        let title = "7 two clusters, two networks, an east-west gateway";
        rows.check(title, async || clusters::across(&both, *client, *server).await).await;
    }
    Ok(rows.finish())
}

struct Api {
    stage: Stage,
    certs: PathBuf,
}

impl Api {
    fn path(&self, name: &str) -> String {
        self.certs.join(name).display().to_string()
    }

    fn placed(&self, manifests: &str) -> String {
        manifests.replace("/etc/certs", &self.certs.display().to_string())
    }

    async fn start(&mut self) -> Result<()> {
        let (client, server) = (self.stage.client, self.stage.server);
        self.stage.mesh.apply(NAMESPACES).await?;
        let command = own_command(&["demo", "serve", "--port", "80", "--port", "8001", "--name", HTTPBIN]);
        let mut httpbin = pod("app1", HTTPBIN, HTTPBIN, server, command);
        httpbin.ports = vec!["http=80".into(), "admin=8001".into()];
        self.stage.start(&httpbin)?;
        let mut caller = pod("app1", CALLER, CALLER, client, serve_command(CALLER, &[]));
        caller.more = vec!["--service-account".into(), CALLER.into()];
        self.stage.start(&caller)?;
        self.stage.start(&pod("client", CLIENT, CLIENT, Engine::Native, serve_command(CLIENT, &[])))?;
        self.stage.up().await
    }

    async fn before(&mut self) -> Result<String> {
        self.start().await?;
        self.stage.mesh.apply(BEFORE).await?;
        self.stage.expect(CALLER, &[PLAIN], Want::Status(200)).await?;
        self.stage.expect(CLIENT, &[PLAIN], Want::Exit(RESET)).await?;
        let chains = self.chains().await?;
        let fitting = chains.iter().any(|chain| {
            let alpn =
                chain.pointer("/filterChainMatch/applicationProtocols").map(Value::to_string).unwrap_or_default();
            // A port that takes nothing but the mesh needs no protocols to tell it from other TLS.
            (alpn.is_empty() || alpn.contains("istio-http/1.0") && alpn.contains("istio-h2"))
                && chain.pointer("/filterChainMatch/transportProtocol") == Some(&"tls".into())
                && certificate(chain) == "default"
                && required(chain) == Some(true)
        });
        ensure!(fitting, "no chain of the mesh for port 80 in {chains:?}");
        Ok("outside exit 56; chain with SDS default, client certificate required".into())
    }

    /// The filter chains of port 80.
    async fn chains(&self) -> Result<Vec<Value>> {
        let args = ["pc", "listeners", "httpbin.app1", "--port", "15006", "-o", "json"];
        let found: Value = serde_json::from_str(&self.stage.carrick(&args).await?)?;
        let chains = found.pointer("/0/filterChains").and_then(Value::as_array).context("no filterChains")?;
        let of_port = |chain: &&Value| chain.pointer("/filterChainMatch/destinationPort") == Some(&80.into());
        Ok(chains.iter().filter(of_port).cloned().collect())
    }

    async fn simple(&mut self) -> Result<String> {
        self.stage.mesh.apply(&self.placed(SIMPLE)).await?;
        let (ca, other) = (self.path("ca.pem"), self.path("other-ca.pem"));
        let told = self.stage.expect(CLIENT, &["--cacert", &ca, TLS], Want::Status(200)).await?;
        ensure!(told.seen().is_some_and(|seen| seen["service"] == HTTPBIN), "who answered: {}", told.body);
        self.stage.expect(CLIENT, &["--cacert", &other, TLS], Want::Exit(60)).await?;
        self.stage.expect(CALLER, &["--cacert", &ca, TLS], Want::Status(200)).await.context("from the mesh")?;
        let plain = TLS.replace("https:", "http:");
        self.stage.expect(CLIENT, &[&plain], Want::NoAnswer).await?;
        self.stage.expect(CLIENT, &[ADMIN], Want::Exit(RESET)).await?;
        self.stage.expect(CALLER, &[ADMIN], Want::Status(200)).await?;
        let chains = self.chains().await?;
        let from_file = |chain: &Value| certificate(chain).starts_with("file-cert:") && required(chain) != Some(true);
        ensure!(chains.iter().any(from_file), "no chain with file-cert: for port 80 in {chains:?}");
        ensure!(chains.iter().all(|chain| !certificate(chain).is_empty()), "port 80 has a plain chain");
        Ok("outside HTTPS 200 by the file's certificate; plain refused; port 8001 the mesh's only".into())
    }

    async fn mutual(&mut self) -> Result<String> {
        self.stage.mesh.apply(&self.placed(MUTUAL)).await?;
        let ca = self.path("ca.pem");
        let with = |name: &str| [self.path(&format!("{name}.pem")), self.path(&format!("{name}-key.pem"))];
        let [client, client_key] = with("client");
        let [wrong, wrong_key] = with("wrong-name");
        let [stranger, stranger_key] = with("stranger");
        let good = ["--cacert", &ca, "--cert", &client, "--key", &client_key, TLS];
        let wrong = ["--cacert", &ca, "--cert", &wrong, "--key", &wrong_key, TLS];
        let stranger = ["--cacert", &ca, "--cert", &stranger, "--key", &stranger_key, TLS];
        self.stage.expect(CLIENT, &good, Want::Status(200)).await?;
        self.stage.expect(CLIENT, &["--cacert", &ca, TLS], Want::NoAnswer).await.context("without a certificate")?;
        self.stage.expect(CLIENT, &stranger, Want::NoAnswer).await.context("of another authority")?;
        self.stage.expect(CLIENT, &wrong, Want::Status(200)).await.context("another name, no policy yet")?;
        let told = self.policy_holds(&good, &wrong).await;
        self.stage.mesh.delete(ONE_CLIENT).await?;
        told?;
        Ok("none refused, right 200, another's authority refused, wrong name 403".into())
    }

    async fn policy_holds(&self, good: &[&str], wrong: &[&str]) -> Result<()> {
        self.stage.mesh.apply(ONE_CLIENT).await?;
        self.stage.expect(CLIENT, wrong, Want::Status(403)).await?;
        self.stage.expect(CLIENT, good, Want::Status(200)).await?;
        self.stage.expect(CALLER, &[ADMIN], Want::Status(200)).await.map(|_| ())
    }

    async fn through_gateway(&mut self) -> Result<String> {
        self.stage.mesh.apply(BEFORE).await?;
        let read = |name: &str| std::fs::read(self.certs.join(name)).with_context(|| name.to_owned());
        let pair = [("tls.crt", read("server.pem")?), ("tls.key", read("server-key.pem")?)];
        self.stage.mesh.apply(&secret("istio-system", "api-cert", "kubernetes.io/tls", &pair)).await?;
        self.stage.mesh.apply(GATEWAY).await?;
        let mut spec = gateway("istio-system", INGRESS, "ingressgateway", self.stage.client);
        spec.more.extend(["--service-account".into(), INGRESS.into()]);
        self.stage.start(&spec)?;
        self.stage.up().await?;
        let (ca, to) = (self.path("ca.pem"), connect_to());
        let args = ["--cacert", ca.as_str(), "--connect-to", to.as_str(), "https://api.example.com/{mark}"];
        let told = self.stage.expect(CLIENT, &args, Want::Status(200)).await?;
        ensure!(told.seen().is_some_and(|seen| seen["service"] == HTTPBIN), "who answered: {}", told.body);
        self.stage.encrypted(CLIENT, &args, (CLIENT, INGRESS)).await?;
        self.stage.encrypted(CLIENT, &args, (INGRESS, HTTPBIN)).await?;
        Ok("client → gateway and gateway → sidecar encrypted on the wire".into())
    }

    async fn replaced(&mut self) -> Result<String> {
        self.stage.mesh.apply(&self.placed(SIMPLE)).await?;
        let ca = self.path("ca.pem");
        self.stage.expect(CLIENT, &["--cacert", &ca, TLS], Want::Status(200)).await?;
        let next = self.certs.join("next");
        certificates::fill(&next, &["httpbin.app1.svc.cluster.local"])?;
        let next_ca = next.join("ca.pem").display().to_string();
        let before = self.stage.mesh.sidecars()?;
        for name in ["server-key.pem", "server.pem"] {
            certificates::write(&self.certs, name, &std::fs::read_to_string(next.join(name))?)?;
        }
        let start = Instant::now();
        let mut served = None;
        while start.elapsed() < RELOAD * 2 {
            // Every request in between must be answered, by the old certificate or the new one.
            let any = self.stage.curl(CLIENT, &["-k", TLS]).await?;
            ensure!(any.status == 200, "while the files were replaced: {any}");
            if served.is_none() && self.stage.curl(CLIENT, &["--cacert", &next_ca, TLS]).await?.status == 200 {
                served = Some(start.elapsed());
            }
        }
        let served = served.context("the new certificate is not served")?;
        ensure!(served < RELOAD, "served after {served:?}, want less than {RELOAD:?}");
        ensure!(self.stage.mesh.sidecars()? == before, "a sidecar was restarted");
        Ok(format!("served after {} ms, no restart, no failed request", served.as_millis()))
    }

    async fn zero_trust(&mut self) -> Result<String> {
        self.stage.mesh.apply(BEFORE).await?;
        self.stage.mesh.apply(ZERO_TRUST).await?;
        let (ca, to) = (self.path("ca.pem"), connect_to());
        let args = ["--cacert", ca.as_str(), "--connect-to", to.as_str(), "https://api.example.com/"];
        self.stage.expect(CLIENT, &args, Want::Status(200)).await.context("the edge named")?;
        let post = ["-X", "POST", "--cacert", ca.as_str(), "--connect-to", to.as_str(), "https://api.example.com/"];
        self.stage.expect(CLIENT, &post, Want::Status(403)).await.context("another method")?;
        self.stage.expect(CALLER, &[PLAIN], Want::Status(403)).await.context("another caller")?;
        self.stage.expect(CALLER, &[ADMIN], Want::Status(403)).await.context("another port")?;
        let to_caller = format!("http://{}:8080/", self.stage.address(CALLER)?);
        self.stage.expect(CLIENT, &[&to_caller], Want::Status(403)).await.context("a workload without a rule")?;
        self.stage.mesh.delete(ZERO_TRUST).await?;
        Ok("gateway → httpbin GET, and nothing else".into())
    }
}

fn connect_to() -> String {
    format!("api.example.com:443:{INGRESS}.istio-system:443")
}

/// The name of the certificate that a chain shows, empty in the clear.
fn certificate(chain: &Value) -> &str {
    let path = "/transportSocket/typedConfig/commonTlsContext/tlsCertificateSdsSecretConfigs/0/name";
    chain.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn required(chain: &Value) -> Option<bool> {
    chain.pointer("/transportSocket/typedConfig/requireClientCertificate")?.as_bool()
}
