//! A day of kubectl, command by command (`transcript.txt`), with the newest kubectl and with Debian's.

use crate::bench::Bench;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Step<'a> {
    line: usize,
    words: Vec<&'a str>,
    works: bool,
    input: String,
    printed: Vec<&'a str>,
    absent: Vec<&'a str>,
}

fn steps<'a>(text: &'a str, other: &str) -> Vec<Step<'a>> {
    let mut steps: Vec<Step<'a>> = Vec::new();
    let mut skipped = false;
    for (number, whole) in text.lines().enumerate().filter(|(_, l)| !l.starts_with('#') && !l.is_empty()) {
        let line = whole.trim_start_matches("[new] ").trim_start_matches("[old] ");
        if let Some(command) = line.strip_prefix('$') {
            skipped = whole.starts_with(other);
            let works = !command.starts_with('!');
            let words = command.trim_start_matches('!').split_whitespace().skip(1).collect();
            let step =
                Step { line: number + 1, words, works, input: String::new(), printed: Vec::new(), absent: Vec::new() };
            if !skipped {
                steps.push(step);
            }
            continue;
        }
        let Some(step) = steps.last_mut().filter(|_| !skipped) else { continue };
        let (sign, rest) = line.split_at(1);
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        match sign {
            "|" => step.input.push_str(&format!("{rest}\n")),
            ">" => step.printed.push(rest),
            "~" => step.absent.push(rest),
            _ => panic!("line {} of the transcript begins with {sign:?}", number + 1),
        }
    }
    steps
}

fn run(program: &Path, kubeconfig: &Path, other: &str) {
    let cache = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for step in steps(include_str!("transcript.txt"), other) {
        let mut child = Command::new(program)
            .args(&step.words)
            .env("KUBECONFIG", kubeconfig)
            .env("KUBECACHEDIR", cache.path())
            .env("HOME", cache.path())
            .env("EDITOR", "sed -i s/REPLACE-ME/replaced/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(step.input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let good = output.status.success() == step.works
            && step.printed.iter().all(|text| told.contains(text))
            && !step.absent.iter().any(|text| told.contains(text));
        if !good {
            wrong.push(format!("line {}: kubectl {}\n{told}", step.line, step.words.join(" ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn session(program: PathBuf, other: &'static str) {
    let bench = Bench::start().await;
    let kubeconfig = bench.server.kubeconfig().to_owned();
    let outcome = tokio::task::spawn_blocking(move || run(&program, &kubeconfig, other)).await;
    bench.stop().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic.into_panic());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_newest_kubectl() {
    session(crate::kubectl::kubectl(), "[old]").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_debians_kubectl() {
    let program = std::env::var_os("CARRICK_KUBECTL_OLD").map(PathBuf::from).or_else(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join("kubectl-1.20")).find(|file| file.is_file())
    });
    let program =
        program.expect("set CARRICK_KUBECTL_OLD to a kubectl 1.20, or install one into PATH (`make test` does)");
    session(program, "[new]").await;
}
