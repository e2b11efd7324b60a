//! Rows 1 and 2: certificates are issued, renewed and delivered to a gateway, a machine and a partner, and each consumer is asked what it serves.
//!
//! Invariant: a certificate counts as delivered when a handshake shows its serial number; the object's word is compared with that.

use std::{
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use carrick_pki::{CertificateInfo, pem};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::Value;

use super::{
    INGRESS_POD, PARTNER, Pay,
    machine::{Machine, served, wait},
};
use crate::demo::stage::Want;

const CERTIFICATES: &str = include_str!("../../../../../examples/gopay-partners/certificates.yaml");
const EDGE: &str = include_str!("../../../../../examples/gopay-partners/edge.yaml");
const EDGE_NAME: &str = "edge.gopay.example.com";
const WEB_NAME: &str = "web.gopay.example.com";
const REPORTS_NAME: &str = "reports.gopay.example.com";
/// The period of the machine's proofs, as in `agent.yaml`.
const PERIOD: Duration = Duration::from_secs(2);
/// What a busy machine may take beyond what is promised.
const SLACK: Duration = Duration::from_secs(3);

impl Pay {
    /// Row 1.
    pub(super) async fn certificates(&mut self) -> Result<String> {
        self.start().await?;
        self.stage.mesh.apply(CERTIFICATES).await?;
        let first = self.issued("istio-system", "edge-tls").await?;
        self.stage.mesh.apply(EDGE).await?;
        let machine = Machine::start(self.stage.mesh.data_dir(), self.stage.mesh.client()).await?;
        let machine = self.machine.insert(machine);
        machine.serve().await?;
        let gateway = self.at_the_gateway(&first).await?;
        let files = self.on_the_machine().await?;
        let bundles = self.for_the_partner().await?;
        Ok(format!("{gateway}; {files}; {bundles}"))
    }

    /// The serial number in a Secret, once there is one.
    async fn issued(&self, namespace: &str, name: &str) -> Result<String> {
        let secrets: Api<Secret> = Api::namespaced(self.stage.mesh.client().clone(), namespace);
        wait(&format!("the Secret {name}"), async || {
            let secret = secrets.get_opt(name).await.ok()??;
            (secret.type_.as_deref() == Some("kubernetes.io/tls")).then_some(())?;
            let chain = pem::certificates(&secret.data?.get("tls.crt")?.0).ok()?;
            Some(CertificateInfo::read(chain.first()?).ok()?.serial)
        })
        .await
    }

    /// Waits for a renewal, and then until it is served; how long that took.
    async fn renewed(&self, secret: (&str, &str), at: (SocketAddr, &'static str)) -> Result<Duration> {
        let before = self.issued(secret.0, secret.1).await?;
        let mut now = before.clone();
        wait("a renewal", async || {
            now = self.issued(secret.0, secret.1).await.ok()?;
            (now != before).then_some(())
        })
        .await?;
        let start = Instant::now();
        wait(&format!("serial {now} at {}", at.1), async || (served(at.0, at.1).await.ok()? == now).then_some(()))
            .await?;
        Ok(start.elapsed())
    }

    async fn at_the_gateway(&self, first: &str) -> Result<String> {
        let gateway = SocketAddr::from((self.stage.address(INGRESS_POD)?, 8443));
        let root = self.stage.mesh.data_dir().join("gopay-root.pem");
        let secrets: Api<Secret> = Api::namespaced(self.stage.mesh.client().clone(), "istio-system");
        let secret = secrets.get("edge-tls").await?;
        let authority = secret.data.and_then(|mut data| data.remove("ca.crt")).context("no ca.crt")?;
        std::fs::write(&root, authority.0)?;
        let (root, connect) = (root.display().to_string(), format!("{EDGE_NAME}:443:{INGRESS_POD}.istio-system:443"));
        let url = format!("https://{EDGE_NAME}/");
        let call = ["--cacert", root.as_str(), "--connect-to", connect.as_str(), url.as_str()];
        self.stage.expect(PARTNER, &call, Want::Status(200)).await.context("the first certificate")?;
        // Calls all the time, until the next certificate is served and a little longer.
        let renewal = self.renewed(("istio-system", "edge-tls"), (gateway, EDGE_NAME));
        let mut renewal = std::pin::pin!(renewal);
        let mut calls = 0_u32;
        let mut took = None;
        let mut after = 0_u32;
        while after < 5 {
            let answer = self.stage.curl(PARTNER, &call).await?;
            ensure!(answer.status == 200, "call {calls} during the renewal: {answer}");
            calls += 1;
            if took.is_some() {
                after += 1;
            } else if let Ok(done) = tokio::time::timeout(Duration::from_millis(20), &mut renewal).await {
                took = Some(done?);
            }
        }
        let took = took.context("no renewal")?;
        ensure!(took < SLACK, "the gateway served the new certificate only after {took:?}");
        ensure!(served(gateway, EDGE_NAME).await? != first, "the first certificate is still served");
        Ok(format!("the gateway served the renewed one after {} ms, {calls} of {calls} calls 200", took.as_millis()))
    }

    async fn on_the_machine(&self) -> Result<String> {
        let machine = self.machine.as_ref().context("no machine")?;
        let user = nix::unistd::User::from_name("www-data")?.context("no user www-data")?;
        for (file, mode) in [("web/tls.crt", 0o644), ("web/tls.key", 0o640), ("web/ca.crt", 0o644)] {
            let meta = std::fs::metadata(machine.path(file))?;
            let is = (meta.mode() & 0o777, meta.uid());
            ensure!(is == (mode, user.uid.as_raw()), "{file}: mode and owner are {:o} {}", is.0, is.1);
        }
        let took = self.renewed(("machines", "web-tls"), (machine.web, WEB_NAME)).await;
        let took = took.with_context(|| format!("the agent said: {}", machine.log()))?;
        Ok(format!("nginx on a machine after {} ms", took.as_millis()))
    }

    async fn for_the_partner(&self) -> Result<String> {
        let serial = self.issued("machines", "partner-tls").await?;
        let dir = self.stage.mesh.data_dir();
        let [pem_file, key_file, p12_file, password] =
            ["partner.pem", "partner-key.pem", "partner.p12", "password"].map(|f| dir.join(f).display().to_string());
        for old in [&pem_file, &key_file, &p12_file] {
            let _ = std::fs::remove_file(old);
        }
        std::fs::write(&password, "correct horse\n")?;
        let export = ["certs", "export", "partner", "-n", "machines", "-o"];
        let told = async |more: &[&str]| self.stage.carrick(&[&export[..], more].concat()).await;
        told(&[&pem_file]).await?;
        let text = std::fs::read_to_string(&pem_file)?;
        let shown = CertificateInfo::read(pem::certificates(text.as_bytes())?.first().context("empty")?)?.serial;
        ensure!(shown == serial && !text.contains("PRIVATE KEY"), "the bundle is not the certificate alone");
        ensure!(std::fs::metadata(&pem_file)?.mode() & 0o777 == 0o600, "the bundle is not private");
        ensure!(told(&[&pem_file]).await.is_err(), "a bundle was replaced without being asked");
        told(&[&key_file, "--with-key"]).await?;
        ensure!(std::fs::read_to_string(&key_file)?.contains("PRIVATE KEY"), "no key in the bundle");
        ensure!(told(&[&p12_file, "--format", "pkcs12", "--with-key"]).await.is_err(), "a keystore without a password");
        told(&[&p12_file, "--format", "pkcs12", "--with-key", "--password-file", &password]).await?;
        let mut openssl = tokio::process::Command::new("openssl");
        openssl.args(["pkcs12", "-in", &p12_file, "-nodes", "-passin", &format!("file:{password}")]);
        let output = openssl.output().await.context("openssl")?;
        let told = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        let read = CertificateInfo::read(pem::certificates(told.as_bytes())?.first().context("empty")?)?.serial;
        ensure!(read == serial && told.contains("PRIVATE KEY"), "OpenSSL reads another certificate, or no key");
        Ok("PEM and PKCS#12 for a partner, read by OpenSSL".to_owned())
    }

    /// Row 2.
    pub(super) async fn proof(&mut self) -> Result<String> {
        let told = self.proven().await;
        if let Some(machine) = self.machine.take() {
            machine.stop().await?;
        }
        self.stage.mesh.delete(EDGE).await?;
        self.stage.mesh.delete(CERTIFICATES).await?;
        told
    }

    async fn proven(&self) -> Result<String> {
        let machine = self.machine.as_ref().context("no machine; see row 1")?;
        let log = || format!("the agent said: {}", machine.log());
        let good = wait("web to be delivered and served", async || {
            let (delivered, shown) =
                (self.condition("web", "Delivered").await?, self.condition("web", "Served").await?);
            (delivered["status"] == "True" && shown["status"] == "True").then_some(shown)
        });
        let good = good.await.with_context(log)?;
        ensure!(good["reason"] == "ServesIssued", "{good}");
        // Right after a renewal its nginx is reloaded by hand, which is seen; what comes next is not, and from then on there is one
        // period to find that out.
        let before = self.issued("machines", "reports-tls").await?;
        let file = machine.path("reports/tls.crt");
        wait("the next files of reports", async || {
            let chain = pem::certificates(&std::fs::read(&file).ok()?).ok()?;
            (CertificateInfo::read(chain.first()?).ok()?.serial != before).then_some(())
        })
        .await?;
        machine.reload("reports").await?;
        let stale = wait("reports to be served", async || {
            let shown = self.condition("reports", "Served").await?;
            let now = served(machine.reports, REPORTS_NAME).await.ok()?;
            (shown["status"] == "True" && shown["message"].as_str()?.contains(&now)).then_some(now)
        });
        let stale = stale.await.with_context(log)?;
        wait("reports to be renewed", async || {
            (self.issued("machines", "reports-tls").await.ok()? != stale).then_some(())
        })
        .await?;
        let start = Instant::now();
        let bad = wait("the broken reload to be reported", async || {
            let shown = self.condition("reports", "Served").await?;
            (shown["reason"] == "ConsumerDidNotReload").then_some(shown)
        });
        let bad = bad.await.with_context(log)?;
        let took = start.elapsed();
        ensure!(took < PERIOD + SLACK, "it was reported only after {took:?}");
        let message = bad["message"].as_str().unwrap_or_default();
        ensure!(bad["status"] == "False" && message.contains(&format!("serves serial {stale}")), "{bad}");
        ensure!(served(machine.reports, REPORTS_NAME).await? == stale, "it has reloaded after all");
        let delivered = self.condition("reports", "Delivered").await.context("no condition")?;
        ensure!(delivered["status"] == "True", "{delivered}");
        Ok(format!("Delivered and Served told apart; after {:.1} s: {message}", took.as_secs_f32()))
    }

    async fn condition(&self, certificate: &str, kind: &str) -> Option<Value> {
        let path = format!("/apis/cert-manager.io/v1/namespaces/machines/certificates/{certificate}");
        let request = http::Request::get(path).body(Vec::new()).ok()?;
        let object: Value = self.stage.mesh.client().request(request).await.ok()?;
        let conditions = object.pointer("/status/conditions")?.as_array()?;
        conditions.iter().find(|condition| condition["type"] == kind).cloned()
    }
}
