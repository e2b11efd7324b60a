//! Three services that ask one another: levels of mutual TLS, what the tools tell about them, tokens of end users.
//!
//! Invariant: the manifests are those of `examples/product-stock`, unchanged; every row asserts on curl's exit code and
//! answer, or on what a command printed.

mod rotation;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use carrick_pod::Engine;
use clap::Args;
use serde_json::{Value, json};

use super::{
    engines::Engines,
    mesh::{PodSpec, folder, own_command, serve_command},
    rows::Rows,
    stage::{RESET, Stage, Want, contains, pod},
};

const SERVICES: &str = include_str!("../../../../examples/product-stock/services.yaml");
const MTLS: &str = include_str!("../../../../examples/product-stock/mtls.yaml");
const LEVELS: &str = include_str!("../../../../examples/product-stock/levels.yaml");
const JWT: &str = include_str!("../../../../examples/product-stock/jwt.yaml");

const GATEWAY: &str = "product-gateway-api-v1";
const STOCK: &str = "stock-api-v1";
const TEST: &str = "test";
const PRODUCT: &str = "http://product-gateway-api.default.svc.cluster.local/products/1";
const ADMIN: &str = "http://product-gateway-api.default.svc.cluster.local:81/products/1";

/// How the scenario is run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Data planes of client and server: native, envoy, mixed (one of each, both ways) or all.
    #[arg(long, value_enum, default_value = "all")]
    engine: Engines,
    /// Life of every sidecar's certificate, of which half is used; 1m is what the document has.
    #[arg(long, default_value = "4s", value_parser = crate::duration::parse, value_name = "DURATION")]
    certificate_ttl: Duration,
    /// Rotations under load that every sidecar must have had; with 20 of one minute this takes the document's ten.
    #[arg(long, default_value_t = 15, value_name = "N")]
    rotations: u64,
}

/// Runs every row; 0 only when all passed.
///
/// # Errors
/// When the mesh itself cannot be started.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    let mut rows = Rows::new("product-stock");
    let own = folder(data_dir, "product-stock");
    for (client, server) in options.engine.pairs() {
        println!("product-stock, client {}, server {}", client.as_str(), server.as_str());
        let dir = own.path.join(format!("{}-{}", client.as_str(), server.as_str()));
        let mut stage = Stage::open(&dir, *client, *server).await?;
        rows.check("1 one product, joined from two services", async || {
            joined(&mut stage, options.certificate_ttl).await
        })
        .await;
        rows.check("2 STRICT for the namespace", async || strict(&stage).await).await;
        rows.check("3 three levels and a port, the smallest wins", async || levels(&stage).await).await;
        rows.check("4 describe tells ports, services and modes", async || described(&stage).await).await;
        rows.check("5 the inbound listener in Envoy's JSON", async || listener(&stage).await).await;
        rows.check("6 the clusters, and one in Envoy's JSON", async || clusters(&stage).await).await;
        rows.check("7 end users with tokens", async || tokens(&stage).await).await;
        let title = "8 certificates manage themselves";
        rows.check(title, async || rotation::rotated(&stage, options.certificate_ttl, options.rotations).await).await;
        stage.close().await?;
    }
    Ok(rows.finish())
}

async fn joined(stage: &mut Stage, ttl: Duration) -> Result<String> {
    stage.mesh.apply(SERVICES).await?;
    let (client, server) = (stage.client, stage.server);
    let short_lived = |mut spec: PodSpec| {
        spec.more.extend(["--sidecar-env".into(), format!("SECRET_TTL={}ms", ttl.as_millis())]);
        spec
    };
    let answer = |text: &str| serve_command("demo", &["--answer", text]);
    let product = json!({"id": 1, "name": "Keyboard"}).to_string();
    let stock = json!({"quantity": 42}).to_string();
    stage.start(&short_lived(pod("default", "product-api-v1", "product-api", server, answer(&product))))?;
    stage.start(&short_lived(pod("default", STOCK, "stock-api", server, answer(&stock))))?;
    let asks = [
        "--port",
        "8081",
        "--join",
        "http://product-api.default.svc.cluster.local{path}",
        "--join",
        "http://stock-api.default.svc.cluster.local/stocks?productId={last}",
    ];
    let mut gateway = pod("default", GATEWAY, "product-gateway-api", client, serve_command("gateway", &asks));
    gateway.ports.push("admin=8081".into());
    stage.start(&short_lived(gateway))?;
    stage.start(&pod("test", "issuer", "issuer", Engine::Native, own_command(&["demo", "issuer"])))?;
    stage.start(&pod("test", TEST, "test", Engine::Native, serve_command("test", &[])))?;
    stage.up().await?;
    let told = stage.expect(STOCK, &[PRODUCT], Want::Status(200)).await?;
    let wanted = json!({"id": 1, "name": "Keyboard", "quantity": 42});
    ensure!(told.seen().as_ref() == Some(&wanted), "want {wanted}, got {}", told.body);
    let args = ["http://stock-api.default.svc.cluster.local/{mark}"];
    stage.encrypted(GATEWAY, &args, (GATEWAY, STOCK)).await?;
    Ok("by cluster name, TLS on the wire without any policy".into())
}

async fn strict(stage: &Stage) -> Result<String> {
    stage.expect(TEST, &[PRODUCT], Want::Status(200)).await?;
    stage.mesh.apply(MTLS).await?;
    stage.expect(TEST, &[PRODUCT], Want::Exit(RESET)).await?;
    stage.expect(STOCK, &[PRODUCT], Want::Status(200)).await?;
    Ok("from outside curl exit 56, from inside 200".into())
}

async fn levels(stage: &Stage) -> Result<String> {
    stage.mesh.delete(MTLS).await?;
    stage.mesh.apply(LEVELS).await?;
    stage.expect(TEST, &[PRODUCT], Want::Status(200)).await?;
    stage.expect(TEST, &[ADMIN], Want::Exit(RESET)).await?;
    stage.expect(STOCK, &[ADMIN], Want::Status(200)).await?;
    stage.expect(TEST, &["http://stock-api.default.svc.cluster.local/"], Want::Status(200)).await?;
    Ok("port 8080 plain, 8081 STRICT, stock-api PERMISSIVE".into())
}

async fn described(stage: &Stage) -> Result<String> {
    let text = stage.carrick(&["x", "describe", "pod", GATEWAY]).await?;
    let told = [
        "Pod: product-gateway-api-v1\n",
        "8080 (",
        "Service: product-gateway-api\n",
        "   Port: http 80/HTTP targets pod port 8080\n",
        "   Workload mTLS mode: STRICT\n",
        "      8080: DISABLE\n",
        "default.istio-system, default.default, product-gateway-api.default\n",
        "   8080: DISABLE\n   8081: STRICT\n",
    ];
    contains(&text, &told)?;
    let outside = stage.carrick(&["x", "describe", "pod", "test.test"]).await?;
    contains(&outside, &["WARNING: test.test is not part of mesh; no Istio sidecar"])?;
    stage.mesh.delete(LEVELS).await?;
    Ok(String::new())
}

async fn listener(stage: &Stage) -> Result<String> {
    stage.mesh.apply(MTLS).await?;
    let args = ["pc", "listeners", GATEWAY, "--address", "0.0.0.0", "--port", "15006", "-o", "json"];
    let found: Value = serde_json::from_str(&stage.carrick(&args).await?)?;
    let chains = found.pointer("/0/filterChains").and_then(Value::as_array).context("no filterChains")?;
    let fitting = chains.iter().any(|chain| {
        let at = |pointer: &str| chain.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let context = "/transportSocket/typedConfig";
        at("/filterChainMatch/transportProtocol") == "tls"
            && at(&format!("{context}/commonTlsContext/tlsCertificateSdsSecretConfigs/0/name")) == "default"
            && at(&format!(
                "{context}/commonTlsContext/combinedValidationContext/validationContextSdsSecretConfig/name"
            )) == "ROOTCA"
            && chain.pointer(&format!("{context}/requireClientCertificate")) == Some(&true.into())
    });
    ensure!(fitting, "no chain with tls, default, ROOTCA and requireClientCertificate in {found}");
    Ok("transportProtocol tls, default, ROOTCA, requireClientCertificate".into())
}

async fn clusters(stage: &Stage) -> Result<String> {
    let table = stage.carrick(&["pc", "clusters", GATEWAY]).await?;
    let header = table.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(header == "SERVICE FQDN PORT SUBSET DIRECTION TYPE DESTINATION RULE", "header {header:?}");
    contains(&table, &["stock-api.default.svc.cluster.local", "inbound", "EDS"])?;
    let host = "stock-api.default.svc.cluster.local";
    let json = stage.carrick(&["pc", "cluster", GATEWAY, "--fqdn", host, "-o", "json"]).await?;
    contains(&json, &["\"transportSocket", "\"sni\": \"outbound_.80_._.stock-api.default.svc.cluster.local\""])?;
    stage.mesh.delete(MTLS).await?;
    Ok(String::new())
}

async fn tokens(stage: &Stage) -> Result<String> {
    stage.mesh.apply(JWT).await?;
    let token = async |query: &str| -> Result<String> {
        let url = format!("http://issuer.test/token?{query}");
        Ok(stage.expect(TEST, &[&url], Want::Status(200)).await?.body)
    };
    let good = token("aud=shop&sub=alice").await?;
    let cases = [
        ("no token", String::new(), 403),
        ("a bad token", token("aud=shop&key=other").await?, 401),
        ("a good token", good.clone(), 200),
        ("an expired token", token("aud=shop&ttl=-3600").await?, 401),
        ("another's audience", token("aud=bank").await?, 403),
        ("no token at all", "garbage".to_owned(), 401),
    ];
    for (what, token, status) in cases {
        let header = format!("Authorization: Bearer {token}");
        let args: &[&str] = if token.is_empty() { &[PRODUCT] } else { &["-H", &header, PRODUCT] };
        stage.expect(STOCK, args, Want::Status(status)).await.context(what)?;
    }
    stage.mesh.delete(JWT).await?;
    stage.expect(STOCK, &[PRODUCT], Want::Status(200)).await?;
    Ok("none 403, bad 401, good 200, expired 401, another's audience 403".into())
}
