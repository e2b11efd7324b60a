//! Whether the app can be sent traffic.
//!
//! Invariant: with a readiness probe, what the probe says (and no without an answer yet); else ready once every declared port accepts a
//! connection, or after a bound, since a manifest may declare a port that the process never opens. Connections are made inside the pod, as a kubelet makes them from
//! outside: to the pod's address, not through the sidecar.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::options::Port;
use crate::template::ReadinessProbe;

/// After this long without every port accepting, a running app counts as ready, as it would in Kubernetes from the start.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(1);

/// Reports changes until dropped. Must run inside the pod.
pub(crate) async fn watch_app(
    ip: Ipv4Addr,
    ports: Vec<Port>,
    probe: Option<ReadinessProbe>,
    mut report: impl FnMut(bool),
) {
    let Some(probe) = probe else {
        ports_accept(ip, &ports).await;
        report(true);
        return std::future::pending().await;
    };
    sleep(probe.initial_delay).await;
    let mut failures = 0u32;
    let mut ready = false;
    loop {
        if check(ip, &probe).await {
            failures = 0;
            ready = true;
            report(true);
        } else {
            failures = failures.saturating_add(1);
            if ready && failures >= probe.failures {
                ready = false;
                report(false);
            }
        }
        // Until the first success, look more often than asked: nobody wants to wait ten seconds for a server that took one.
        let period = if ready { probe.period } else { probe.period.min(Duration::from_millis(250)) };
        sleep(period).await;
    }
}

async fn ports_accept(ip: Ipv4Addr, ports: &[Port]) {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(10);
    for port in ports {
        loop {
            // An app may listen on its loopback only; its sidecar still reaches it there.
            if accepts(ip, port.number).await || accepts(Ipv4Addr::LOCALHOST, port.number).await {
                break;
            }
            if Instant::now() >= end {
                tracing::warn!(port = port.number, "declared port does not accept connections; ready nevertheless");
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    }
}

async fn accepts(ip: Ipv4Addr, port: u16) -> bool {
    matches!(timeout(CONNECT, TcpStream::connect((ip, port))).await, Ok(Ok(_)))
}

async fn check(ip: Ipv4Addr, probe: &ReadinessProbe) -> bool {
    let Some(path) = &probe.path else { return accepts(ip, probe.port).await };
    let status = timeout(probe.timeout, http_status(SocketAddr::from((ip, probe.port)), path)).await;
    matches!(status, Ok(Some(200..=399)))
}

/// The status of a `GET`, and nothing else of the answer.
pub(crate) async fn http_status(address: SocketAddr, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: kube-probe/carrick\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut head = Vec::with_capacity(64);
    while head.len() < 12 {
        if stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let line = std::str::from_utf8(head.get(..12)?).ok()?;
    line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
}
