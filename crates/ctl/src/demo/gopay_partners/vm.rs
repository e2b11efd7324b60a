//! A service on a virtual machine: it joins by a token, is called and calls, comes back after a restart, and says when it is ill.
//!
//! Invariant: everything is seen from both ends, on the wire, or in the machine's object; what the machine is is `vm`'s.

use std::{
    path::Path,
    process::Output,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{MALLORY, PAYMENTS, Pay};
use crate::demo::{
    call::Call,
    curl::{Answer, Curl},
    mesh::own_command,
    stage::{RESET, Want},
    vm::{LIMIT, Vm},
    wire::Capture,
};

const MANIFESTS: &str = include_str!("../../../../../examples/gopay-partners/machine.yaml");
/// How long a call may fail after the machine's power went.
const SETTLE: Duration = Duration::from_secs(2);
const ENTRIES: &str = "/apis/networking.istio.io/v1/namespaces/gopay/workloadentries";
/// The machine's user whose connections are nobody's business.
const STRANGER: &str = "65534";
/// Certificates are renewed after some seconds, so that the demo can see it.
const EAGER: [&str; 4] =
    ["--sidecar-env", "SECRET_GRACE_PERIOD_RATIO=0.9999", "--sidecar-env", "SECRET_GRACE_PERIOD_RATIO_JITTER=0"];

impl Pay {
    pub(super) async fn vm(&mut self) -> Result<String> {
        let dir = self.stage.mesh.data_dir().join("vm");
        let mut vm = Vm::make(&dir)?;
        let ill = dir.join("ill");
        let manifests = MANIFESTS.replace("ILL_FILE", &ill.display().to_string());
        self.stage.mesh.apply(&manifests).await?;
        let told = self.life_of(&mut vm, &ill).await.with_context(|| vm.what_it_said());
        self.stage.mesh.delete(&manifests).await?;
        told
    }

    async fn life_of(&mut self, vm: &mut Vm, ill: &Path) -> Result<String> {
        let server = format!("{}:15012", vm.link.here);
        let create = ["vm", "token", "create", "--group", "ledger", "-n", "gopay", "--server", &server];
        let token = self.stage.carrick(&create).await?;
        let file = vm.dir.join("token");
        std::fs::write(&file, &token)?;
        let file = file.display().to_string();
        // Somebody else's control plane is shown nothing.
        let wrong = "00".repeat(32);
        let output = vm.output(&["join", "--token-file", &file, "--ca-fingerprint", &wrong, "--no-run"]).await?;
        refused(&output, "nothing was shown to it")?;

        vm.start_app()?;
        let engine = self.stage.client.as_str();
        let join = ["join", "--token-file", &file, "--capture-user", "root", "--engine", engine];
        let start = Instant::now();
        vm.runner = Some(vm.start(vm.carrick(&[&join[..], &EAGER].concat())?, &vm.log())?);
        let entry = self.entry_when(vm, |entry| entry.is_some_and(|e| healthy(e) == Some("True"))).await?;
        let joined = start.elapsed();
        let entry = entry.context("no WorkloadEntry")?;
        ensure!(entry["spec"]["address"] == vm.link.there.to_string(), "its address: {}", entry["spec"]);
        ensure!(entry["spec"]["serviceAccount"] == "ledger" && entry["spec"]["labels"]["app"] == "ledger", "{entry}");
        ensure!(entry["metadata"]["ownerReferences"][0]["name"] == "ledger", "whose it is: {}", entry["metadata"]);
        self.ready(vm).await?;
        self.both_ways(vm).await.context("after joining")?;
        let plain = format!("http://{}:8080/", vm.link.there);
        self.stage.expect(MALLORY, &[&plain], Want::Exit(RESET)).await.context("plain from outside")?;

        let output = vm.output(&["join", "--token-file", &file, "--no-run"]).await?;
        refused(&output, "already used")?;

        let before = vm.serial()?;
        vm.power_off().await?;
        std::fs::remove_file(vm.dir.join("token"))?;
        vm.start_app()?;
        vm.runner = Some(vm.start(vm.carrick(&["run"])?, &vm.log())?);
        self.ready(vm).await?;
        self.both_ways(vm).await.context("after the restart")?;
        let start = Instant::now();
        while vm.serial()? == before {
            ensure!(start.elapsed() < LIMIT, "the certificate was not renewed after the restart");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }

        std::fs::write(ill, "")?;
        self.entry_when(vm, |entry| entry.is_some_and(|e| healthy(e) == Some("False"))).await?;
        self.stage.mesh.converged().await?;
        let answer = self.stage.expect(PAYMENTS, &["http://ledger.gopay:8080/"], Want::Status(503)).await?;
        ensure!(answer.body.contains("no healthy upstream"), "an ill machine is called: {answer}");
        std::fs::remove_file(ill)?;
        self.entry_when(vm, |entry| entry.is_some_and(|e| healthy(e) == Some("True"))).await?;
        self.stage.mesh.converged().await?;
        self.stage.expect(PAYMENTS, &["http://ledger.gopay:8080/"], Want::Status(200)).await.context("well again")?;

        ensure!(vm.rules().await?, "the rules are in force");
        if let Some(mut runner) = vm.runner.take() {
            let pid = runner.id().context("the runner has ended")?;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), nix::sys::signal::Signal::SIGTERM)?;
            tokio::time::timeout(LIMIT, runner.wait()).await.context("the runner does not end")??;
        }
        ensure!(!vm.rules().await?, "the rules remain after the end");
        Ok(format!(
            "joined in {:.1} s; called and calls in REST and gRPC, again after a restart without a token",
            joined.as_secs_f32()
        ))
    }

    /// The machine's entry, as soon as it is as wanted.
    async fn entry_when(&self, vm: &Vm, wanted: impl Fn(Option<&Value>) -> bool) -> Result<Option<Value>> {
        let path = format!("{ENTRIES}/ledger-{}", vm.link.there);
        let start = Instant::now();
        loop {
            let found = self.stage.mesh.client().request::<Value>(http::Request::get(&path).body(Vec::new())?).await;
            let found = match found {
                Ok(entry) => Some(entry),
                Err(kube::Error::Api(status)) if status.code == 404 => None,
                Err(error) => return Err(error.into()),
            };
            if wanted(found.as_ref()) {
                return Ok(found);
            }
            ensure!(start.elapsed() < LIMIT, "the machine's WorkloadEntry is {found:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the machine's sidecar is ready and has what is stored.
    async fn ready(&self, vm: &mut Vm) -> Result<()> {
        vm.ready().await?;
        self.stage.mesh.converged().await
    }

    /// The mesh calls the machine, and the machine the mesh: REST and gRPC, with both identities, and encrypted.
    async fn both_ways(&self, vm: &Vm) -> Result<()> {
        let capture = Capture::start(vm.link.here, vm.link.there)?;
        let answer = self.stage.expect(PAYMENTS, &["http://ledger.gopay:8080/mark"], Want::Status(200)).await?;
        known(&answer, "ledger", ["sa/ledger", "sa/default"]).context("payments → ledger")?;
        let (start, call) = (Instant::now(), unary("http://ledger.gopay:8082")?);
        loop {
            let answer = self.stage.call(PAYMENTS, &call).await?;
            if answer.exit == 0 && answer.body.contains("ledger") {
                break;
            }
            // After a machine has lost its power, as long as for REST.
            ensure!(start.elapsed() < SETTLE, "gRPC payments → ledger: {answer} {:?}", answer.headers);
        }

        let program = own_command(&["demo", "curls"]);
        let inside = Curl::of(vm.command(&program)?, "the machine")?;
        let url = ["http://payments.gopay:8080/mark".to_owned()];
        let answer = until(&inside, &url, |answer| answer.status == 200).await?;
        known(&answer, "payments", ["sa/default", "sa/ledger"]).context("ledger → payments")?;
        let answer = inside.call(&unary("http://rates.gopay:8082")?).await?;
        ensure!(
            answer.exit == 0 && answer.body.contains("payments"),
            "gRPC ledger → payments: {answer} {}",
            answer.body
        );
        let seen = capture.finish()?;
        ensure!(seen.carry_tls() && !seen.contain(b"GET /mark"), "HTTP crossed the link in the clear");

        // A user that is not captured is outside of the mesh, though on the same machine.
        let payments = self.stage.address(PAYMENTS)?;
        let plain = format!("http://{payments}:8080/");
        let words =
            ["setpriv", "--reuid", STRANGER, "--regid", STRANGER, "--clear-groups", "curl", "-s", "-m", "5", &plain];
        let output = vm.command(&words.map(str::to_owned))?.output().await?;
        ensure!(output.status.code() == Some(RESET), "plain by another user of the machine: {:?}", output.status);
        Ok(())
    }
}

/// curl's answer, as soon as it is as wanted.
async fn until(curl: &Curl, args: &[String], wanted: impl Fn(&Answer) -> bool) -> Result<Answer> {
    let start = Instant::now();
    loop {
        let answer = curl.run(args).await?;
        if wanted(&answer) {
            return Ok(answer);
        }
        ensure!(start.elapsed() < Duration::from_secs(3), "{}: {answer}", args.join(" "));
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

fn unary(url: &str) -> Result<Call> {
    Ok(serde_json::from_value(json!({"url": url, "headers": {}, "kind": {"grpc": {"call": "unary"}}}))?)
}

/// Who answered, and the two identities that the server saw: its own, and the caller's.
fn known(answer: &Answer, service: &str, [by, uri]: [&str; 2]) -> Result<()> {
    let seen = answer.seen().context("no JSON")?;
    ensure!(seen["service"] == service, "answered by {}", seen["service"]);
    let told = seen.pointer("/headers/x-forwarded-client-cert").and_then(Value::as_str).unwrap_or_default();
    let identity = |account: &str| format!("spiffe://cluster.local/ns/gopay/{account}");
    let right = told.contains(&format!("By={}", identity(by))) && told.contains(&format!("URI={}", identity(uri)));
    ensure!(right, "identities: {told:?}");
    Ok(())
}

fn refused(output: &Output, why: &str) -> Result<()> {
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && told.contains(why), "want {why:?}, got {} {}", output.status, told.trim());
    Ok(())
}

fn healthy(entry: &Value) -> Option<&str> {
    let conditions = entry.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|condition| condition["type"] == "Healthy")?["status"].as_str()
}
