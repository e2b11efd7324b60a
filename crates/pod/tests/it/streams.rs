//! `exec`, `logs`, `attach`, `cp` and `port-forward` of the pods of `carrick run`, with the newest kubectl (WebSocket) and Debian's (SPDY).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::machine::{Machine, eventually, on_a_host, ready, server};

/// A program by its variable, or by its name along `PATH`.
fn program(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("no {name}: set {variable}, or install one into PATH (`make test` does)"))
}

#[derive(Clone)]
struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["-n", "plain"]).args(words).env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.cache);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What is printed by a command that works.
    fn prints(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What is said by a command that fails, and its exit code.
    fn fails(&self, words: &[&str]) -> (i32, String) {
        let output = self.run(words);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
    }

    fn typed(&self, words: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(words).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let typing = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        typing.join().unwrap().unwrap();
        output
    }
}

/// A child that goes with the test.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn exec(kubectl: &Kubectl) {
    assert_eq!(kubectl.prints(&["exec", "web", "--", "hostname"]), "web\n");
    let (code, text) = kubectl.fails(&["exec", "web", "-c", "web", "--", "sh", "-c", "echo out; echo bad >&2; exit 7"]);
    assert_eq!(code, 7, "{text}");
    assert!(text.contains("out\n") && text.contains("bad\n") && text.contains("exit code 7"), "{text}");
    let (_, text) = kubectl.fails(&["exec", "web", "--", "no-such-program"]);
    assert!(text.contains("no-such-program"), "{text}");
    let (_, text) = kubectl.fails(&["exec", "web", "-c", "other", "--", "true"]);
    assert!(text.contains("container other"), "{text}");
    // More than fits into any buffer on the way, and the end of what is typed.
    let long: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let output = kubectl.typed(&["exec", "-i", "web", "--", "cat"], &long);
    assert!(output.status.success() && output.stdout == long, "{}", String::from_utf8_lossy(&output.stderr));
    // As older documents write it; newer ones of kubectl refuse that by themselves.
    if kubectl.program.ends_with("kubectl-1.20") {
        let output = kubectl.typed(&["exec", "web", "-c", "web", "-i", "sh"], b"exit 4\n");
        assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // A terminal, and its size.
    let inner = format!(
        "stty rows 33 cols 99; {} -n plain exec -it web -- sh -c 'sleep 0.3; stty size; test -t 1 && exit 5'",
        kubectl.program.display()
    );
    let output = Command::new("script")
        .args(["-qec", &inner, "/dev/null"])
        .env("KUBECONFIG", &kubectl.kubeconfig)
        .env("HOME", &kubectl.cache)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("33 99") && output.status.code() == Some(5), "{:?}: {text}", output.status);
}

/// Whoever hangs up takes what was started along.
fn hang_up(kubectl: &Kubectl, folder: &Path) {
    let mark = folder.join("mark");
    let _ = std::fs::remove_file(&mark);
    let script = format!("echo $$ > {}; exec sleep 300", mark.display());
    let child = Held(kubectl.command(&["exec", "web", "--", "sh", "-c", &script]).spawn().unwrap());
    let end = Instant::now() + Duration::from_secs(10);
    let pid = loop {
        match std::fs::read_to_string(&mark).ok().and_then(|text| text.trim().parse::<i32>().ok()) {
            Some(pid) => break pid,
            None => assert!(Instant::now() < end, "nothing was started"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    drop(child);
    while kill(Pid::from_raw(pid), None).is_ok() {
        assert!(Instant::now() < end + Duration::from_secs(10), "it still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn logs(kubectl: &Kubectl) {
    assert_eq!(kubectl.prints(&["logs", "web"]), "started\noops\nand so on\n");
    assert_eq!(kubectl.prints(&["logs", "web", "-c", "web", "--tail=1"]), "and so on\n");
    assert_eq!(kubectl.prints(&["logs", "web", "--limit-bytes=4"]), "star");
    assert_eq!(kubectl.prints(&["logs", "web", "--since=1h"]).lines().count(), 3);
    assert_eq!(kubectl.prints(&["logs", "web", "--since-time=2100-01-01T00:00:00Z"]), "");
    let stamped = kubectl.prints(&["logs", "-l", "app=web", "--timestamps", "--tail=1"]);
    let (time, text) = stamped.split_once(' ').unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && text == "and so on\n", "{stamped}");
    let (_, text) = kubectl.fails(&["logs", "web", "--previous"]);
    assert!(text.contains("previous terminated container \"web\" in pod \"web\" not found"), "{text}");
}

fn copies(kubectl: &Kubectl, folder: &Path) {
    let (there, back) = (folder.join("there"), folder.join("back"));
    let source = folder.join("source");
    let content: Vec<u8> = (0..500_000_u32).map(|n| (n % 241) as u8).collect();
    std::fs::write(&source, &content).unwrap();
    kubectl.prints(&["cp", source.to_str().unwrap(), &format!("web:{}", there.display())]);
    assert!(std::fs::read(&there).unwrap() == content);
    kubectl.prints(&["cp", &format!("plain/web:{}", there.display()), back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == content);
    let _ = (std::fs::remove_file(there), std::fs::remove_file(back));
}

fn forwards(kubectl: &Kubectl, what: &str, port: &str) {
    let mut child = kubectl.command(&["port-forward", what, port]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let _held = Held(child);
    let line = lines.next().expect("it says where it listens").unwrap();
    let local = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next()).unwrap();
    let local: u16 = local.parse().unwrap();
    let together: Vec<_> = (0..8).map(|_| std::thread::spawn(move || get(local))).collect();
    for answer in together {
        let answer = answer.join().unwrap();
        assert!(answer.ends_with("\r\n\r\nhello\n"), "{answer}");
    }
}

/// `kubectl run -i` and whoever runs the pod: what is typed reaches the command, what it writes and how it ends come back.
async fn typed(machine: &Machine, kubectl: &Kubectl, terminal: bool) {
    let typing = kubectl.clone();
    let run = tokio::task::spawn_blocking(move || {
        let line = "echo typed $((6 * 7)); test -t 0 && echo tty; exit 5\n";
        if !terminal {
            let words = ["run", "-i", "--rm", "typed", "--image=x", "--restart=Never", "--", "sh"];
            return typing.typed(&words, line.as_bytes());
        }
        let inner =
            format!("{} -n plain run -i --tty --rm typed --image=x --restart=Never -- sh", typing.program.display());
        let mut child = Command::new("script");
        child.args(["-qec", &inner, "/dev/null"]).env("KUBECONFIG", &typing.kubeconfig).env("HOME", &typing.cache);
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A terminal that hangs up hangs up what runs in it.
        std::thread::sleep(Duration::from_millis(1500));
        stdin.write_all(line.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        output
    });
    let pods = machine.pods("plain");
    eventually("the pod is there", async || pods.get_opt("typed").await.unwrap().is_some()).await;
    let runner = machine.run("plain", "typed", "exec sh").of("pod/typed").start();
    let output = run.await.unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(text.contains("typed 42") && text.contains("tty\r") == terminal, "{text}");
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert_eq!(runner.wait_with_output().await.unwrap().status.code(), Some(5));
    eventually("the pod is deleted", async || pods.get_opt("typed").await.unwrap().is_none()).await;
}

#[test]
fn kubectl_reaches_into_pods() {
    on_a_host(async {
        let machine = Machine::new(7).await;
        machine.namespace("plain", json!({})).await;
        machine.service("plain", "web", 80, 8080).await;
        let pods = machine.pods("plain");
        let script =
            format!("echo started; sleep 0.05; echo oops >&2; sleep 0.05; echo and so on; {}", server(8080, "hello"));
        let child = machine.run("plain", "web", &script).port(8080).start();
        eventually("web is ready", async || pods.get_opt("web").await.unwrap().is_some_and(|pod| ready(&pod))).await;
        let folder = tempfile::tempdir().unwrap();
        let kubectls = [("CARRICK_KUBECTL", "kubectl"), ("CARRICK_KUBECTL_OLD", "kubectl-1.20")];
        let kubectls = kubectls.map(|(variable, name)| Kubectl {
            program: program(variable, name),
            kubeconfig: machine.data.path().join("kubeconfig"),
            cache: folder.path().to_owned(),
        });
        let followers = kubectls.clone().map(|kubectl| {
            (
                kubectl.command(&["logs", "-f", "web"]).spawn().unwrap(),
                kubectl.command(&["attach", "web"]).spawn().unwrap(),
            )
        });
        for kubectl in kubectls.clone() {
            let folder = folder.path().to_owned();
            let all = move || {
                exec(&kubectl);
                hang_up(&kubectl, &folder);
                logs(&kubectl);
                copies(&kubectl, &folder);
                forwards(&kubectl, "pod/web", ":8080");
                forwards(&kubectl, "svc/web", ":80");
            };
            let outcome = tokio::task::spawn_blocking(all).await;
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic.into_panic());
            }
        }

        // Who may only read cannot start anything, whatever the protocol.
        let new = kubectls[0].clone();
        let checks = move || {
            new.prints(&["create", "role", "reader", "--verb=get", "--resource=pods,pods/exec,pods/log"]);
            new.prints(&["create", "rolebinding", "reader", "--role=reader", "--user=reader"]);
            let (_, text) = new.fails(&["--as=reader", "exec", "web", "--", "true"]);
            assert!(text.contains("cannot create resource \"pods/exec\""), "{text}");
            assert!(new.prints(&["--as=reader", "logs", "web"]).contains("started"));
            let (_, text) = new.fails(&["--as=nobody", "port-forward", "web", ":8080"]);
            assert!(text.contains("forbidden"), "{text}");
        };
        tokio::task::spawn_blocking(checks).await.unwrap();

        typed(&machine, &kubectls[0], false).await;
        typed(&machine, &kubectls[1], true).await;

        // A pod that nobody runs, and one that is run elsewhere.
        for (name, node) in [("lonely", None), ("far", Some("elsewhere"))] {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x"}]},
            }))
            .unwrap();
            pods.create(&PostParams::default(), &pod).await.unwrap();
        }
        let asked = kubectls.clone();
        let answers = move || {
            for kubectl in asked {
                for words in [&["exec", "lonely", "--", "true"][..], &["logs", "lonely"]] {
                    let (_, text) = kubectl.fails(words);
                    assert!(text.contains("carrick run -n plain --as pod/lonely"), "{text}");
                }
                let (_, text) = kubectl.fails(&["logs", "far"]);
                assert!(text.contains("error dialing backend"), "{text}");
            }
        };
        tokio::task::spawn_blocking(answers).await.unwrap();
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        for name in ["lonely", "far"] {
            pods.delete(name, &now).await.unwrap();
        }

        // Who follows sees the end.
        kill(Pid::from_raw(child.id().unwrap().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let output = child.wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(143));
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(
            shown.contains("started\nand so on\n") || shown.contains("started\n") && shown.contains("and so on\n"),
            "{shown}"
        );
        for (follower, attached) in followers {
            let ends = tokio::task::spawn_blocking(move || {
                (follower.wait_with_output().unwrap(), attached.wait_with_output().unwrap())
            });
            let (follower, attached) = tokio::time::timeout(Duration::from_secs(10), ends).await.unwrap().unwrap();
            assert!(follower.status.success(), "{}", String::from_utf8_lossy(&follower.stderr));
            assert_eq!(String::from_utf8_lossy(&follower.stdout), "started\noops\nand so on\n");
            assert_eq!(attached.status.code(), Some(0), "{}", String::from_utf8_lossy(&attached.stderr));
        }
        assert_eq!(machine.folders(), 0);
        assert_eq!(std::fs::read_dir(machine.data.path().join("run/logs")).unwrap().count(), 0, "logs go with the pod");
        machine.end().await;
    });
}
