//! Rows 3 and 4: who is let in at the gateway, by certificate and by address, and what its log says of those who are not.
//!
//! Invariant: the gateway's log is read from where it was before the call, so a line is that call's own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{ALLOW_LIST, INGRESS, INGRESS_POD, MALLORY, PARTNER, Pay};
use crate::demo::stage::{Want, gateway};

/// Who is refused in a handshake, and what the gateway's log says of it.
const REFUSED: [(&str, &str); 5] = [
    ("wrong-name", "SAN_matcher"),
    ("", "peer_did_not_provide_required_client_certificate"),
    ("stranger", "certificate_verification_error"),
    ("expired", "certificate_has_expired"),
    ("revoked", "certificate_revoked"),
];
/// How long a log may take to be written: Envoy flushes its own every second.
const LOG_LIMIT: Duration = Duration::from_secs(5);
const PROXIED_POD: &str = "proxied";
const PROXIED_CONFIG: &str = "proxy.istio.io/config={gatewayTopology: {proxyProtocol: {}}}";
const PROXIED_SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: proxied, namespace: istio-system}
spec: {selector: {istio: proxied}, ports: [{name: https, port: 443, targetPort: 8443}]}
";
/// An address that only a header tells of.
const TOLD: &str = "203.0.113.7";

impl Pay {
    pub(super) async fn ingress(&mut self) -> Result<String> {
        self.start().await?;
        self.stage.mesh.apply(INGRESS).await?;
        self.calls_in(PARTNER, "client", Want::Status(200)).await?;
        let mut reasons = Vec::new();
        for (certificate, reason) in REFUSED {
            let before = self.gateway_log()?.len();
            self.calls_in(PARTNER, certificate, Want::NoAnswer).await?;
            reasons.push(self.refused(before, reason).await.with_context(|| format!("certificate {certificate:?}"))?);
        }
        let lines = reasons.len();
        reasons.sort();
        reasons.dedup();
        ensure!(reasons.len() == lines, "reasons are not told apart: {reasons:?}");
        Ok("right certificate 200; wrong name, none, unknown authority, expired, revoked end in the handshake, each with its reason in the log".into())
    }

    fn gateway_log(&self) -> Result<String> {
        let log = self.stage.mesh.data_dir().join(format!("run/logs/istio-system_{INGRESS_POD}_istio-proxy.log"));
        std::fs::read_to_string(&log).with_context(|| log.display().to_string())
    }

    /// The reason in a line that the gateway has logged about the partner since; it must hold these words.
    async fn refused(&self, since: usize, words: &str) -> Result<String> {
        let partner = format!("{}:", self.stage.address(PARTNER)?);
        let start = std::time::Instant::now();
        loop {
            let log = self.gateway_log()?;
            let new = log.get(since..).unwrap_or_default();
            let line = new.lines().find(|line| line.contains("TLS_error") && line.contains(&partner));
            if let Some(line) = line {
                ensure!(line.contains(words), "want {words:?} in the log, got {line}");
                let reason = line.split('"').find(|part| part.contains("TLS_error")).unwrap_or_default();
                return Ok(reason.to_owned());
            }
            ensure!(start.elapsed() < LOG_LIMIT, "no line about {partner} since, but: {new}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) async fn allow_list(&mut self) -> Result<String> {
        self.calls_in(MALLORY, "client", Want::Status(200)).await?;
        self.forwarded().await?;
        let list = self.placed(ALLOW_LIST, PARTNER)?;
        let mut told = Ok(());
        // The peer's own address, and the one that forwarding tells (the same here).
        for list in [list.clone(), list.replace("ipBlocks", "remoteIpBlocks")] {
            self.stage.mesh.apply(&list).await?;
            told = match self.calls_in(PARTNER, "client", Want::Status(200)).await {
                Ok(()) => self.calls_in(MALLORY, "client", Want::Status(403)).await,
                error => error,
            };
            if told.is_err() {
                break;
            }
        }
        self.stage.mesh.delete(&list).await?;
        told?;
        let told = "by ipBlocks, by remoteIpBlocks, by X-Forwarded-For one trusted proxy deep, by PROXY header";
        Ok(format!("right certificate from a wrong address 403, {told}"))
    }

    /// The address that a trusted load balancer tells: in `x-forwarded-for`, as many proxies deep as the mesh says.
    async fn forwarded(&mut self) -> Result<()> {
        let list = ALLOW_LIST.replace("PARTNER_ADDRESS", TOLD).replace("ipBlocks", "remoteIpBlocks");
        self.stage.mesh.apply(&list).await?;
        let told = async {
            let call = |told: &str| {
                let mut args = self.call("client");
                args.extend(["-H".to_owned(), format!("x-forwarded-for: {told}")]);
                args
            };
            // The last entry is the trusted proxy's word; what comes before it is anybody's.
            for (told, want) in
                [(TOLD, 200), (&*format!("{TOLD}, 192.0.2.99"), 403), (&*format!("192.0.2.99, {TOLD}"), 200)]
            {
                let args = call(told);
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                let answer = self.stage.expect(MALLORY, &args, Want::Status(want)).await;
                answer.with_context(|| format!("x-forwarded-for: {told}"))?;
            }
            anyhow::Ok(())
        }
        .await;
        self.stage.mesh.delete(&list).await?;
        told?;
        self.behind_proxy_protocol().await
    }

    /// The same at a gateway whose own configuration says that connections begin with a PROXY header.
    async fn behind_proxy_protocol(&mut self) -> Result<()> {
        let mut proxied = gateway("istio-system", PROXIED_POD, PROXIED_POD, self.stage.client);
        proxied.more.extend(["--annotation".to_owned(), PROXIED_CONFIG.to_owned()]);
        self.stage.start(&proxied)?;
        self.stage.up().await?;
        let ingress = INGRESS.replace("name: partners", "name: proxied").replace("[partners]", "[proxied]");
        self.stage.mesh.apply(PROXIED_SERVICE).await?;
        self.stage.mesh.apply(&ingress.replace("ingressgateway", PROXIED_POD)).await?;
        let list = self.placed(ALLOW_LIST, PARTNER)?.replace("ipBlocks", "remoteIpBlocks");
        self.stage
            .mesh
            .apply(&list.replace("name: partners", "name: proxied").replace("ingressgateway", PROXIED_POD))
            .await?;
        for (from, more, want) in [
            (PARTNER, "--haproxy-protocol", Want::Status(200)),
            (MALLORY, "--haproxy-protocol", Want::Status(403)),
            (PARTNER, "--compressed", Want::NoAnswer),
        ] {
            let mut args: Vec<String> =
                self.call("client").iter().map(|arg| arg.replace(INGRESS_POD, PROXIED_POD)).collect();
            args.push(more.to_owned());
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            self.stage.expect(from, &args, want).await.with_context(|| format!("{PROXIED_POD}, {more}"))?;
        }
        Ok(())
    }
}
