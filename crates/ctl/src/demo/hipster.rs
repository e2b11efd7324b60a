//! A shop of twelve services with manifests of Istio's first API: strict, permissive, strict with an edge in the mesh.
//!
//! Invariant: the manifests are those of `examples/hipster`, unchanged but for the folder of certificates; every row
//! asserts on curl's exit code and status, on bytes from the wire, or on what a command printed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use carrick_pod::Engine;
use clap::Args;
use serde_json::Value;

use super::{
    certificates,
    engines::Engines,
    mesh::{PodSpec, folder, serve_command},
    rows::Rows,
    stage::{RESET, Stage, Want, contains, gateway, pod, secret},
};

const SERVICES: &str = include_str!("../../../../examples/hipster/services.yaml");
const STRICT: &str = include_str!("../../../../examples/hipster/policy-strict.yaml");
const PERMISSIVE: &str = include_str!("../../../../examples/hipster/policy-permissive.yaml");
const RULE: &str = include_str!("../../../../examples/hipster/destinationrule.yaml");
const GATEWAY: &str = include_str!("../../../../examples/hipster/gateway.yaml");
const MODES: [(&str, &str, [u16; 4]); 4] = [
    ("DISABLE", include_str!("../../../../examples/hipster/modes/disable.yaml"), [200, 502, 502, 503]),
    ("SIMPLE", include_str!("../../../../examples/hipster/modes/simple.yaml"), [503, 200, 503, 503]),
    ("MUTUAL", include_str!("../../../../examples/hipster/modes/mutual.yaml"), [503, 200, 200, 503]),
    ("ISTIO_MUTUAL", include_str!("../../../../examples/hipster/modes/istio-mutual.yaml"), [503, 503, 503, 200]),
];

/// The services behind the frontend, and the port of each.
const BACKENDS: [(&str, u16); 10] = [
    ("adservice", 9555),
    ("cartservice", 7070),
    ("checkoutservice", 5050),
    ("currencyservice", 7000),
    ("emailservice", 5000),
    ("paymentservice", 50051),
    ("productcatalogservice", 3550),
    ("recommendationservice", 8080),
    ("shippingservice", 50051),
    ("redis-cart", 6379),
];
const FRONTEND: &str = "frontend";
const EDGE: &str = "edge";
const INGRESS: &str = "istio-ingressgateway";
const SHOP: &str = "http://frontend.hipster-app.svc.cluster.local/";

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
    let mut rows = Rows::new("hipster");
    let own = folder(data_dir, "hipster");
    let certs = own.path.join("certs");
    certificates::fill(&certs, &["shop.example.com", "partner.example.com"])?;
    for (client, server) in options.engine.pairs() {
        println!("hipster, client {}, server {}", client.as_str(), server.as_str());
        let dir = own.path.join(format!("{}-{}", client.as_str(), server.as_str()));
        let mut shop = Shop { stage: Stage::open(&dir, *client, *server).await?, certs: certs.clone() };
        rows.check("1 the old Policy STRICT and a DestinationRule", async || shop.strict().await).await;
        rows.check("2 the old Policy PERMISSIVE", async || shop.permissive().await).await;
        rows.check("3 the edge in the mesh, HTTPS outside", async || shop.edge().await).await;
        rows.check("4 four TLS modes against four servers", async || shop.modes().await).await;
        rows.check("5 auth check tells the two tables", async || shop.auth_check().await).await;
        rows.check("6 the old Policy converted does the same", async || shop.converted().await).await;
        shop.stage.close().await?;
    }
    Ok(rows.finish())
}

struct Shop {
    stage: Stage,
    certs: PathBuf,
}

impl Shop {
    fn certificate(&self, name: &str) -> String {
        self.certs.join(name).display().to_string()
    }

    async fn start(&mut self) -> Result<()> {
        let (client, server) = (self.stage.client, self.stage.server);
        self.stage.mesh.apply(SERVICES).await?;
        let mut calls = Vec::new();
        for (name, port) in BACKENDS {
            self.stage.start(&backend(name, server))?;
            calls.extend(["--call".to_owned(), format!("http://{name}:{port}/")]);
        }
        let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
        self.stage.start(&pod("hipster-app", FRONTEND, FRONTEND, client, serve_command(FRONTEND, &calls)))?;
        let edge = serve_command(EDGE, &["--call", SHOP]);
        self.stage.start(&pod("outside", EDGE, EDGE, Engine::Native, edge))?;
        let folder = self.certs.display().to_string();
        let partner = ["--tls-port", "8443", "--mutual-tls-port", "8444", "--certificates", &folder];
        self.stage.start(&pod("outside", "partner", "partner", Engine::Native, serve_command("partner", &partner)))?;
        self.stage.up().await
    }

    /// The frontend calls every backend; each must have answered 200.
    async fn all_backends(&self) -> Result<()> {
        let told = self.stage.expect(FRONTEND, &["http://localhost:8080/"], Want::Status(200)).await?;
        let seen = told.seen().context("the frontend tells no JSON")?;
        let calls = seen.get("calls").and_then(Value::as_array).context("the frontend called nobody")?;
        ensure!(calls.len() == BACKENDS.len(), "{} calls", calls.len());
        for call in calls {
            ensure!(call.get("status") == Some(&200.into()), "frontend → {call}");
        }
        Ok(())
    }

    /// What became of the edge's own call to the frontend.
    async fn through_the_edge(&self) -> Result<Value> {
        let told = self.stage.expect(EDGE, &["http://localhost:8080/"], Want::Status(200)).await?;
        told.seen().and_then(|seen| seen.pointer("/calls/0").cloned()).context("the edge called nobody")
    }

    async fn strict(&mut self) -> Result<String> {
        self.start().await?;
        self.all_backends().await?;
        self.stage.mesh.apply(STRICT).await?;
        self.stage.mesh.apply(RULE).await?;
        self.stage.expect(EDGE, &[SHOP], Want::Exit(RESET)).await?;
        let call = self.through_the_edge().await?;
        ensure!(call.get("error").is_some(), "edge → frontend: want no connection, got {call}");
        self.all_backends().await?;
        self.stage.encrypted(FRONTEND, &["http://adservice:9555/{mark}"], (FRONTEND, "adservice")).await?;
        Ok("ten backends over mesh; the edge outside of the mesh is refused".into())
    }

    async fn permissive(&mut self) -> Result<String> {
        self.stage.mesh.apply(PERMISSIVE).await?;
        self.stage.expect(EDGE, &[SHOP], Want::Status(200)).await?;
        let call = self.through_the_edge().await?;
        ensure!(call.get("status") == Some(&200.into()), "edge → frontend: want 200, got {call}");
        self.all_backends().await?;
        self.stage.encrypted(FRONTEND, &["http://cartservice:7070/{mark}"], (FRONTEND, "cartservice")).await?;
        Ok("edge → frontend plain, frontend → backends over mesh".into())
    }

    async fn edge(&mut self) -> Result<String> {
        self.stage.mesh.apply(STRICT).await?;
        let read = |name: &str| std::fs::read(self.certs.join(name)).with_context(|| name.to_owned());
        let pair = [("tls.crt", read("server.pem")?), ("tls.key", read("server-key.pem")?)];
        self.stage.mesh.apply(&secret("istio-system", "shop-cert", "kubernetes.io/tls", &pair)).await?;
        self.stage.mesh.apply(GATEWAY).await?;
        self.stage.start(&gateway("istio-system", INGRESS, "ingressgateway", self.stage.client))?;
        self.stage.up().await?;
        let ca = self.certificate("ca.pem");
        let to = format!("shop.example.com:443:{INGRESS}.istio-system:443");
        let args = ["--cacert", &ca, "--connect-to", &to, "https://shop.example.com/{mark}"];
        let told = self.stage.expect(EDGE, &args, Want::Status(200)).await?;
        ensure!(told.seen().is_some_and(|seen| seen["service"] == FRONTEND), "who answered: {}", told.body);
        self.stage.encrypted(EDGE, &args, (INGRESS, FRONTEND)).await?;
        self.stage.expect(EDGE, &[SHOP], Want::Exit(RESET)).await?;
        Ok("HTTPS to the edge, mesh from the edge to the frontend, plain past the edge refused".into())
    }

    async fn modes(&mut self) -> Result<String> {
        self.stage.mesh.delete(RULE).await?;
        self.stage.mesh.apply(STRICT).await?;
        let servers = [
            "http://partner.outside:8080/",
            "http://partner.outside:8443/",
            "http://partner.outside:8444/",
            "http://adservice:9555/",
        ];
        for (mode, manifests, statuses) in MODES {
            let manifests = manifests.replace("/etc/partner", &self.certs.display().to_string());
            self.stage.mesh.apply(&manifests).await?;
            let told = self.cells(&servers, statuses).await.context(mode);
            self.stage.mesh.delete(&manifests).await?;
            told?;
        }
        Ok("16 cells".into())
    }

    async fn cells(&self, servers: &[&str; 4], statuses: [u16; 4]) -> Result<()> {
        for (url, status) in servers.iter().zip(statuses) {
            self.stage.expect(FRONTEND, &[url], Want::Status(status)).await?;
        }
        Ok(())
    }

    async fn auth_check(&mut self) -> Result<String> {
        let address = self.stage.address(FRONTEND)?;
        let args = ["experimental", "auth", "check", "frontend.hipster-app"];
        self.stage.mesh.apply(STRICT).await?;
        let strict = squeezed(&self.stage.carrick(&args).await?);
        contains(
            &strict,
            &[
                "Checked 1/",
                &format!(
                    "listeners with node IP {address}.\nLISTENER CERTIFICATE mTLS (MODE) JWT (ISSUERS) RBAC (RULES)\n"
                ),
                &format!("{address}_8080 default yes (STRICT) no (none) no (none)\n"),
                "outbound clusters.\nHOST:PORT CERTIFICATE VALIDATE PEER CERTIFICATE\n",
                "\nadservice.hipster-app:9555 default ",
                "\nkubernetes.default:443 default ",
            ],
        )?;
        self.stage.mesh.apply(PERMISSIVE).await?;
        let permissive = squeezed(&self.stage.carrick(&["x", "authn", "check", "frontend.hipster-app"]).await?);
        contains(
            &permissive,
            &[
                &format!("{address}_8080[0] default yes (PERMISSIVE) no (none) no (none)\n"),
                &format!("{address}_8080[1] none no (PERMISSIVE) no (none) no (none)\n"),
            ],
        )?;
        Ok(String::new())
    }

    async fn converted(&mut self) -> Result<String> {
        let file = self.certs.join("policy-strict.yaml");
        std::fs::write(&file, STRICT)?;
        let today = self.stage.carrick(&["convert", "-f", &file.display().to_string()]).await?;
        contains(&today, &["PeerAuthentication", "STRICT"])?;
        self.stage.mesh.delete(STRICT).await?;
        self.stage.expect(EDGE, &[SHOP], Want::Status(200)).await?;
        self.stage.mesh.apply(&today).await?;
        self.stage.expect(EDGE, &[SHOP], Want::Exit(RESET)).await?;
        self.all_backends().await?;
        self.stage.mesh.delete(&today).await?;
        self.stage.expect(EDGE, &[SHOP], Want::Status(200)).await?;
        Ok("PeerAuthentication in its place: the edge is refused again".into())
    }
}

fn backend(name: &str, engine: Engine) -> PodSpec {
    pod("hipster-app", name, name, engine, serve_command(name, &[]))
}

/// Lines with single spaces.
fn squeezed(text: &str) -> String {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}
