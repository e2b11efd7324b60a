//! Row 7: two clusters with a common root and a network each, an east–west gateway into one of them.
//!
//! Invariant: between the networks there is nothing but one link; what crosses it is captured, and everything goes when the row ends,
//! however it ends.

use std::{
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use carrick_pod::Engine;

use crate::demo::{
    certificates::Authority,
    curl::Answer,
    link::Link,
    mesh::{Setup, serve_command},
    stage::{Stage, Want, contains, gateway, pod},
    wire::Capture,
};

const CLUSTERS: &str = include_str!("../../../../../examples/intuit-gateway/clusters.yaml");
const SERVICE: &str = include_str!("../../../../../examples/intuit-gateway/east-west-service.yaml");
const GATEWAY: &str = include_str!("../../../../../examples/intuit-gateway/east-west-gateway.yaml");
const STRICT: &str = include_str!("../../../../../examples/intuit-gateway/ledger-strict.yaml");

const FAILOVER: &str = include_str!("../../../../../examples/intuit-gateway/failover.yaml");

const CALLER: &str = "caller";
const LEDGER: &str = "ledger";
/// The same service's pod in the caller's own cluster.
const NEAR: &str = "ledger-near";
const INGRESS: &str = "istio-eastwestgateway";
/// The Secret by which the first cluster reads the second.
const REMOTE: &str =
    "apiVersion: v1\nkind: Secret\nmetadata: {name: istio-remote-secret-west, namespace: istio-system}\n";
/// The second machine's address in the example.
const EXAMPLE: &str = "192.0.2.2";
const URL: &str = "http://ledger.shop.svc.cluster.local:8080/";
/// How long what one cluster says may take to be in force in the other.
const SETTLE: Duration = Duration::from_secs(60);

/// The row: the caller is in the cluster `east`, which this machine is; the ledger is in `west`, behind the link.
pub(super) async fn across(dir: &Path, client: Engine, server: Engine) -> Result<String> {
    let link = Link::make()?;
    // What a former run stored would be there before it is applied.
    let _ = std::fs::remove_dir_all(dir);
    let root = Authority::new("Mesh Root")?;
    root.intermediate(&dir.join("east").join("ca"), "east")?;
    root.intermediate(&dir.join("west").join("ca"), "west")?;
    let setup = |name: &str, address: Ipv4Addr| Setup {
        namespace: None,
        up: ["--cluster-id", name, "--network", name, "--api-address", &address.to_string()]
            .map(str::to_owned)
            .to_vec(),
        api: None,
    };
    let there = Setup { namespace: Some(link.namespace()), api: Some(link.there.into()), ..setup("west", link.there) };
    let (east_dir, west_dir) = (dir.join("east"), dir.join("west"));
    let (east, west) = tokio::join!(
        Stage::open_with(&east_dir, setup("east", link.here), client, server),
        Stage::open_with(&west_dir, there, client, server)
    );
    let (mut east, mut west) = (east?, west?);
    let done = rows(&link, &mut east, &mut west).await;
    let (closed_west, closed_east) = tokio::join!(west.close(), east.close());
    drop(link);
    closed_west.and(closed_east)?;
    done
}

async fn rows(link: &Link, east: &mut Stage, west: &mut Stage) -> Result<String> {
    for stage in [&*east, &*west] {
        stage.mesh.apply(CLUSTERS).await?;
    }
    west.mesh.apply(&SERVICE.replace(EXAMPLE, &link.there.to_string())).await?;
    let mut caller = pod("shop", CALLER, CALLER, east.client, serve_command(CALLER, &[]));
    caller.more = vec!["--service-account".into(), CALLER.into()];
    caller.labels.push(in_region("east"));
    east.start(&caller)?;
    let mut ledger = pod("shop", LEDGER, LEDGER, west.server, serve_command(LEDGER, &[]));
    ledger.labels.push(in_region("west"));
    west.start(&ledger)?;
    west.start(&gateway("istio-system", INGRESS, "eastwestgateway", west.server))?;
    let (one, other) = tokio::join!(east.up(), west.up());
    one.and(other)?;
    introduce(link, east, west).await?;

    // The other network is known, and there is no way into it.
    until(east, Want::Status(503)).await.context("before there is a gateway")?;
    west.mesh.apply(GATEWAY).await?;
    let answer = until(east, Want::Status(200)).await.context("through the gateway")?;
    let seen = answer.seen().context("no JSON")?;
    ensure!(seen["service"] == LEDGER, "who answered: {}", answer.body);
    let peer = seen["headers"]["x-forwarded-client-cert"].as_str().unwrap_or_default();
    contains(peer, &["URI=spiffe://cluster.local/ns/shop/sa/caller", "By=spiffe://cluster.local/ns/shop/sa/default"])?;
    let endpoints = east
        .carrick(&["pc", "endpoints", "caller.shop", "--cluster", "outbound|8080||ledger.shop.svc.cluster.local"])
        .await?;
    contains(&endpoints, &[&format!("{}:15443", link.there)])?;
    ensure!(!endpoints.contains("10.244."), "an address of the other network is known here:\n{endpoints}");

    // With mutual TLS demanded nothing else gets in, and policies see who called.
    encrypted(link, east).await?;
    west.mesh.apply(STRICT).await?;
    until(east, Want::Status(403)).await.context("DENY for the caller's identity")?;
    west.mesh.delete(STRICT.split("---").nth(1).unwrap_or_default()).await?;
    until(east, Want::Status(200)).await.context("STRICT alone")?;
    failover(link, east).await?;
    Ok("200 with the caller's identity, 403 by DENY, TLS on the link, 503 without the gateway, failover and back"
        .into())
}

fn in_region(region: &str) -> (String, String) {
    ("istio-locality".into(), format!("{region}.one"))
}

/// The service in both clusters: calls stay at home while it is well there, go over the gateway when it is not, and without the Secret
/// of the other cluster there is nowhere else to go.
async fn failover(link: &Link, east: &mut Stage) -> Result<()> {
    let mut near = pod("shop", NEAR, LEDGER, east.server, serve_command(NEAR, &[]));
    near.labels.push(in_region("east"));
    east.start(&near)?;
    east.up().await?;
    east.mesh.apply(FAILOVER).await?;
    answered_by(east, NEAR).await.context("both are well")?;
    for _ in 0..20 {
        let answer = east.curl(CALLER, &[URL]).await?;
        let by = answer.seen().map(|seen| seen["service"].clone());
        ensure!(by.as_ref().is_some_and(|by| by == NEAR), "a call left its region without need: {answer}");
    }
    // It answers 503, and is let alone for a while, which may be over on a busy machine before anybody looks.
    let fault = format!("{URL}at/{NEAR}/status/503");
    let start = Instant::now();
    loop {
        east.curl(CALLER, &[&fault]).await?;
        let answer = east.curl(CALLER, &[URL]).await?;
        if answer.seen().is_some_and(|seen| seen["service"] == LEDGER) {
            break;
        }
        ensure!(start.elapsed() < SETTLE, "the near one is ill: want an answer of {LEDGER}, got {answer}");
    }
    answered_by(east, NEAR).await.context("the near one is well again")?;

    east.mesh.delete(REMOTE).await?;
    let start = Instant::now();
    loop {
        let cluster = "outbound|8080||ledger.shop.svc.cluster.local";
        let told = east.carrick(&["pc", "endpoints", "caller.shop", "--cluster", cluster]).await?;
        if !told.contains(&link.there.to_string()) && told.contains("10.244.") {
            break;
        }
        ensure!(start.elapsed() < SETTLE, "the other cluster's endpoints are still known:\n{told}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    answered_by(east, NEAR).await.context("without the other cluster")
}

/// curl in the caller, until a pod of this name answers.
async fn answered_by(east: &Stage, name: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let answer = east.curl(CALLER, &[URL]).await?;
        if answer.seen().is_some_and(|seen| seen["service"] == name) {
            return Ok(());
        }
        ensure!(start.elapsed() < SETTLE, "want an answer of {name}, got {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Gives each control plane the Secret by which it reads the other's cluster, and waits until both do.
async fn introduce(link: &Link, east: &Stage, west: &Stage) -> Result<()> {
    for (of, name, server, to) in [(west, "west", link.there, east), (east, "east", link.here, west)] {
        let server = format!("https://{server}:6443");
        let secret = of.carrick(&["create-remote-secret", "--name", name, "--server", &server]).await?;
        to.mesh.apply(&secret).await?;
    }
    for (stage, other) in [(east, "west"), (west, "east")] {
        let start = Instant::now();
        loop {
            let told = stage.carrick(&["remote-clusters"]).await?;
            let row = |line: &str| line.starts_with(other) && line.contains("synced");
            if told.lines().any(row) {
                break;
            }
            ensure!(start.elapsed() < SETTLE, "{other} is not synced:\n{told}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

/// curl in the caller, until what comes back is as wanted.
async fn until(east: &Stage, want: Want) -> Result<Answer> {
    let start = Instant::now();
    loop {
        match east.expect(CALLER, &[URL], want).await {
            Ok(answer) => return Ok(answer),
            Err(error) if start.elapsed() > SETTLE => return Err(error),
            Err(_) => {}
        }
    }
}

/// One request, of which nothing may be read on the link.
async fn encrypted(link: &Link, east: &Stage) -> Result<()> {
    let capture = Capture::start(link.here, link.there)?;
    let answer = east.curl(CALLER, &[&format!("{URL}mark-of-the-ledger")]).await?;
    let seen = capture.finish()?;
    ensure!(answer.status == 200, "{CALLER} → {LEDGER}: {answer}");
    ensure!(seen.carry_tls(), "no TLS records on the link");
    let clear = seen.contain(b"mark-of-the-ledger") || seen.contain(b"HTTP/1.1 ");
    ensure!(!clear, "HTTP crossed the link in the clear");
    Ok(())
}
