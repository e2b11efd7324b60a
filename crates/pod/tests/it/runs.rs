//! A run and its end, in every way in which it can end.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use carrick_pod::ExecOptions;
use kube::api::DeleteParams;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::machine::{Machine, eventually, fetch, on_a_host, ready, server, summary};

fn signal(child: &tokio::process::Child, signal: Signal) {
    kill(Pid::from_raw(child.id().unwrap().try_into().unwrap()), signal).unwrap();
}

#[test]
fn a_run_is_a_pod_while_it_lasts() {
    on_a_host(async {
        let machine = Machine::new(1).await;
        machine.namespace("plain", json!({})).await;

        // Exit codes, the environment, and what cannot be run.
        let inside = "test $(hostname) = one && grep -q ndots:5 /etc/resolv.conf && grep -q '^search plain.svc.cluster.local svc.cluster.local cluster.local$' /etc/resolv.conf && test -s /var/run/secrets/kubernetes.io/serviceaccount/token && test $(cat /var/run/secrets/kubernetes.io/serviceaccount/namespace) = plain && grep -q BEGIN /var/run/secrets/kubernetes.io/serviceaccount/ca.crt && exit 3";
        let (code, output) = machine.run("plain", "one", inside).output().await;
        assert_eq!(code, Some(3), "{output}");
        let (code, output) = machine.run("plain", "one", "kill -9 $$").output().await;
        assert_eq!(code, Some(137), "{output}");
        let (code, output) = machine.run("nowhere", "one", "true").output().await;
        assert_eq!(code, Some(1));
        assert!(output.contains("namespace \"nowhere\" does not exist"), "{output}");
        assert_eq!(machine.folders(), 0);
        assert!(machine.pods("plain").get_opt("one").await.unwrap().is_none());

        // Status while it lasts; a second of the same name is refused and leaves the first alone.
        let mut child = machine.run("plain", "web", &server(8080, "hello")).port(8080).start();
        let pods = machine.pods("plain");
        eventually("web is ready", async || pods.get_opt("web").await.unwrap().is_some_and(|pod| ready(&pod))).await;
        let pod = pods.get("web").await.unwrap();
        assert_eq!(summary(&pod), "1/1 Running");
        assert_eq!(pod.spec.unwrap().service_account_name.as_deref(), Some("default"));
        let (code, output) = machine.run("plain", "web", "true").output().await;
        assert_eq!(code, Some(1));
        assert!(output.contains("already exists"), "{output}");
        assert!(pods.get_opt("web").await.unwrap().is_some());

        // A second process inside.
        let options = ExecOptions {
            pod: "web".into(),
            namespace: "plain".into(),
            command: vec![
                "sh".into(),
                "-c".into(),
                format!("test \"$({})\" = hello && exit 9", fetch("127.0.0.1", 8080)).into(),
            ],
            env: Vec::new(),
            data_dir: machine.data.path().to_owned(),
        };
        assert_eq!(carrick_pod::exec(options).await.unwrap(), 9);

        // Signals go to the command; TERM ends the pod and its exit code says so.
        signal(&child, Signal::SIGTERM);
        let output = child.wait().await.unwrap();
        assert_eq!(output.code(), Some(143));
        assert!(pods.get_opt("web").await.unwrap().is_none());
        assert_eq!(machine.folders(), 0);

        let trap = "trap 'exit 5' USR1; echo up; while :; do sleep 0.05; done";
        let child = machine.run("plain", "traps", trap).start();
        eventually("traps runs", async || pods.get_opt("traps").await.unwrap().is_some_and(|pod| ready(&pod))).await;
        signal(&child, Signal::SIGUSR1);
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));

        // Deleted by somebody else.
        let child = machine.run("plain", "deleted", "exec sleep 300").start();
        eventually("deleted runs", async || pods.get_opt("deleted").await.unwrap().is_some_and(|pod| ready(&pod)))
            .await;
        pods.delete("deleted", &DeleteParams::default()).await.unwrap();
        assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(143));
        assert!(pods.get_opt("deleted").await.unwrap().is_none());
        machine.end().await;
    });
}

#[test]
fn a_killed_runner_is_swept() {
    on_a_host(async {
        let machine = Machine::new(2).await;
        machine.namespace("plain", json!({})).await;
        let pods = machine.pods("plain");
        // The grandchild is nobody's child when the runner dies.
        let mut child = machine.run("plain", "victim", "sleep 300 & sleep 300").start();
        eventually("victim is ready", async || pods.get_opt("victim").await.unwrap().is_some_and(|pod| ready(&pod)))
            .await;
        signal(&child, Signal::SIGKILL);
        child.wait().await.unwrap();
        eventually("victim is swept", async || machine.folders() == 0).await;
        assert!(pods.get_opt("victim").await.unwrap().is_none());
        machine.end().await;
    });
}

/// Stands for `carrick-proxy`: says that it is ready, answers what is redirected to it, and leaves word of who it is.
fn proxy(machine: &Machine) -> PathBuf {
    let script = r#"#!/usr/bin/perl
use IO::Socket::INET; use IO::Select;
open(my $w, ">", "$ENV{CARRICK_STATE_DIR}/who") or die "state: $!";
open(my $t, "<", $ENV{CARRICK_TOKEN_FILE}) or die "token: $!"; my $token = <$t>;
open(my $r, "<", $ENV{CA_ROOT_CA}) or die "root: $!";
print $w "$> $ENV{POD_NAME} $ENV{POD_NAMESPACE} $ENV{INSTANCE_IP} " . (length($token) > 100 ? "token" : "none") . "\n"; close $w;
open(my $p, ">", "$ENV{CARRICK_STATE_DIR}/pid") or die "pid: $!"; print $p "$$\n"; close $p;
my %name; my $s = IO::Select->new;
for my $p (15021, 15006, 15001) { my $l = IO::Socket::INET->new(LocalPort => $p, Listen => 64, ReuseAddr => 1) or die "listen: $!"; $name{$l} = $p; $s->add($l) }
while (1) { for my $l ($s->can_read) { my $c = $l->accept; my $q = ""; while ($q !~ /\r\n\r\n/) { sysread($c, $q, 4096, length($q)) or last } my $b = "proxy $name{$l}\n"; print $c "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " . length($b) . "\r\n\r\n$b"; close $c } }
"#;
    let path = machine.data.path().join("proxy");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The state folder of the only pod's sidecar, as the host sees it.
fn state_of_proxy(machine: &Machine) -> PathBuf {
    let mut pods = std::fs::read_dir(machine.data.path().join("run/pods")).unwrap();
    let only = pods.next().unwrap().unwrap().path();
    assert!(pods.next().is_none());
    only.join("sidecar/proxy")
}

#[test]
fn an_injected_pod_is_captured_and_its_sidecar_is_kept_alive() {
    on_a_host(async {
        let machine = Machine::new(3).await;
        machine.namespace("mesh", json!({"istio-injection": "enabled"})).await;
        let pods = machine.pods("mesh");
        let proxy = proxy(&machine);
        let app = server(8080, "app");
        // The command is started only once packets are captured.
        let script = format!("test \"$({})\" = 'proxy 15001' || exit 77; {app}", fetch("192.0.2.7", 80));
        let child = machine.run("mesh", "web", &script).port(8080).proxy(&proxy).start();
        eventually("web is ready", async || pods.get_opt("web").await.unwrap().is_some_and(|pod| ready(&pod))).await;
        let pod = pods.get("web").await.unwrap();
        assert_eq!(summary(&pod), "2/2 Running");
        let labels = pod.metadata.labels.clone().unwrap();
        assert_eq!(labels["security.istio.io/tlsMode"], "istio");
        let ip = pod.status.unwrap().pod_ip.unwrap();

        let fetched = |host: String| async move {
            let output = tokio::process::Command::new("sh").args(["-c", &fetch(&host, 8080)]).output().await.unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(error, "");
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(fetched(ip.clone()).await, "proxy 15006", "what comes in is captured");
        let inside = |script: String| {
            carrick_pod::exec(ExecOptions {
                pod: "web".into(),
                namespace: "mesh".into(),
                command: vec!["sh".into(), "-c".into(), script.into()],
                env: Vec::new(),
                data_dir: machine.data.path().to_owned(),
            })
        };
        let who = format!("test \"$(cat /run/carrick/proxy/who)\" = '1337 web mesh {ip} token'");
        assert_eq!(inside(who).await.unwrap(), 0, "the sidecar runs as 1337 and reads its token");
        assert_eq!(
            inside("test \"$(stat -c '%u %a' /var/run/secrets/tokens/istio-token)\" = '1337 600'".into())
                .await
                .unwrap(),
            0
        );
        assert_eq!(inside(format!("test \"$({})\" = app", fetch("127.0.0.1", 8080))).await.unwrap(), 0);

        // A dead sidecar: not ready, still captured (so nothing gets in), and started again.
        // By its own number: a pod shares the host's processes, so a name would reach other meshes' sidecars too.
        let pid =
            tokio::fs::read_to_string(state_of_proxy(&machine).join("pid")).await.unwrap().trim().parse().unwrap();
        let command_line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(command_line.contains("/run/carrick/bin/carrick-proxy"), "{command_line}");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("the sidecar is started again", async || {
            let pod = pods.get("web").await.unwrap();
            let statuses = pod.status.clone().unwrap_or_default().container_statuses.unwrap_or_default();
            ready(&pod)
                && statuses.iter().any(|container| container.name == "istio-proxy" && container.restart_count == 1)
        })
        .await;
        assert_eq!(fetched(ip).await, "proxy 15006");
        signal(&child, Signal::SIGTERM);
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(143), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(machine.folders(), 0);

        // A sidecar that never gets ready fails the run, with its own last words.
        let dies = machine.data.path().join("dies");
        std::fs::write(&dies, "#!/bin/sh\necho no certificate today >&2\nexit 1\n").unwrap();
        std::fs::set_permissions(&dies, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (code, output) = machine.run("mesh", "never", "true").proxy(&dies).output().await;
        assert_eq!(code, Some(1));
        assert!(output.contains("no certificate today"), "{output}");
        assert_eq!(machine.folders(), 0);
        machine.end().await;
    });
}

/// Whole runs with a sidecar, twenty at once: from the first process to the last `2/2 Running`. The bound leaves room for a busy machine.
#[test]
fn twenty_runs_at_once() {
    on_a_host(async {
        let machine = Machine::new(4).await;
        machine.namespace("mesh", json!({"istio-injection": "enabled"})).await;
        let (pods, proxy) = (machine.pods("mesh"), proxy(&machine));
        let begin = std::time::Instant::now();
        let mut children: Vec<_> = (0..20)
            .map(|n| machine.run("mesh", &format!("web-{n}"), &server(8080, "app")).port(8080).proxy(&proxy).start())
            .collect();
        eventually("all are ready", async || {
            let list = pods.list(&Default::default()).await.unwrap();
            list.iter().filter(|pod| ready(pod) && summary(pod) == "2/2 Running").count() == 20
        })
        .await;
        let took = begin.elapsed();
        println!("twenty runs: {took:?}");
        for child in &children {
            signal(child, Signal::SIGTERM);
        }
        for child in &mut children {
            assert_eq!(child.wait().await.unwrap().code(), Some(143));
        }
        assert_eq!(machine.folders(), 0);
        machine.end().await;
        assert!(took < std::time::Duration::from_secs(15), "{took:?}");
    });
}
