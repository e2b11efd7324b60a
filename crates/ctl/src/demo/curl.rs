//! curl inside a pod, again and again: one small process in the pod starts the real curl on command, or makes a call that curl cannot.
//!
//! Invariant: what is judged is curl's own exit code, status, headers and body; this only carries them. It saves
//! entering the pod anew for each request, nothing else.

use std::{collections::BTreeMap, io::Write, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
};

use super::{
    call::{Call, Caller},
    mesh::Mesh,
};

/// How long one request may take, all in all.
const LIMIT: &str = "10";
/// Divides curl's own words from what it was told to write out.
const MARK: &str = "\u{1}";

/// What curl said.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Its exit code; 0 when there was an answer, whatever its status.
    pub exit: i32,
    /// The HTTP status, 0 when there was none.
    pub status: u16,
    /// The version of HTTP that was spoken: `1.1`, `2`.
    pub version: String,
    /// The answer's headers, names in lower case, values of one name joined by a comma.
    pub headers: BTreeMap<String, String>,
    /// The answer's body.
    pub body: String,
    /// curl's error message.
    pub error: String,
}

impl Answer {
    /// The body as JSON: what the example service says that it saw.
    pub fn seen(&self) -> Option<Value> {
        serde_json::from_str(&self.body).ok()
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit {}, status {}", self.exit, self.status)?;
        if !self.error.is_empty() {
            write!(f, " ({})", self.error)?;
        }
        let body: String = self.body.trim().chars().take(160).collect();
        if self.status != 200 && !body.is_empty() {
            write!(f, ", body {body:?}")?;
        }
        Ok(())
    }
}

/// A line to the process in the pod.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    /// curl's arguments, for one curl each.
    Curl(Vec<Vec<String>>),
    Call(Call),
}

#[derive(Debug)]
struct Raw {
    exit: i32,
    stdout: String,
    stderr: String,
}

/// The process in a pod.
pub struct Curl {
    pod: String,
    channel: Mutex<Channel>,
}

struct Channel {
    // Ended by closing its standard input; killed if it is dropped before.
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Curl {
    /// Enters a running pod.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn enter(mesh: &Mesh, namespace: &str, pod: &str) -> Result<Self> {
        let program = std::env::current_exe()?.display().to_string();
        Self::of(
            mesh.carrick(&["exec", pod, "-n", namespace, "--", &program, "demo", "curls"]),
            &format!("{namespace}/{pod}"),
        )
    }

    /// By a command that runs `carrick demo curls` somewhere.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn of(mut command: Command, place: &str) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("curl in {place}"))?;
        let stdin = child.stdin.take().context("no standard input")?;
        let lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        Ok(Self { pod: place.to_owned(), channel: Mutex::new(Channel { _child: child, stdin, lines }) })
    }

    /// Runs curl with these arguments (URL included).
    ///
    /// # Errors
    /// When curl could not be run; that it failed is the answer.
    pub async fn run(&self, args: &[String]) -> Result<Answer> {
        let mut answers = self.together(std::slice::from_ref(&args.to_vec())).await?;
        answers.pop().context("curl told nothing")
    }

    /// Runs one curl for each of these, all at the same time.
    ///
    /// # Errors
    /// When curl could not be run; that it failed is the answer.
    pub async fn together(&self, many: &[Vec<String>]) -> Result<Vec<Answer>> {
        let own = ["-s", "-S", "-m", LIMIT, "-w", "%{stderr}\u{1}%{http_code}\u{1}%{http_version}\u{1}%{header_json}"];
        let whole = |args: &Vec<String>| own.map(str::to_owned).into_iter().chain(args.iter().cloned()).collect();
        self.ask(&Line::Curl(many.iter().map(whole).collect())).await
    }

    /// Makes a call in the pod.
    ///
    /// # Errors
    /// When the pod cannot be asked; that the call failed is the answer.
    pub async fn call(&self, call: &Call) -> Result<Answer> {
        let mut answers = self.ask(&Line::Call(call.clone())).await?;
        answers.pop().context("the call told nothing")
    }

    async fn ask(&self, line: &Line) -> Result<Vec<Answer>> {
        let mut line = serde_json::to_string(line)?;
        line.push('\n');
        let mut channel = self.channel.lock().await;
        channel.stdin.write_all(line.as_bytes()).await.with_context(|| format!("curl in {}", self.pod))?;
        let answer = tokio::time::timeout(Duration::from_secs(20), channel.lines.next_line());
        let answer = answer.await.with_context(|| format!("curl in {}", self.pod))??;
        Ok(serde_json::from_str(&answer.with_context(|| format!("{} was left", self.pod))?)?)
    }
}

fn read(raw: Raw) -> Result<Answer> {
    let mut parts = raw.stderr.splitn(4, MARK);
    let error = parts.next().unwrap_or_default().trim().to_owned();
    let (Some(status), Some(version), Some(headers)) = (parts.next(), parts.next(), parts.next()) else {
        ensure!(raw.exit != 0, "curl told nothing: {}", raw.stderr);
        return Ok(Answer { exit: raw.exit, error, ..Answer::default() });
    };
    let headers: BTreeMap<String, Vec<String>> = serde_json::from_str(headers).unwrap_or_default();
    Ok(Answer {
        exit: raw.exit,
        status: status.parse().unwrap_or(0),
        version: version.to_owned(),
        headers: headers.into_iter().map(|(name, values)| (name.to_ascii_lowercase(), values.join(","))).collect(),
        body: raw.stdout,
        error,
    })
}

/// The process's other side: a line of JSON (lists of curl's arguments, or a call) in, a line of JSON out, until the input ends. It
/// blocks.
///
/// # Errors
/// When standard input or output fails.
pub fn serve() -> Result<u8> {
    let mut out = std::io::stdout().lock();
    let caller = Caller::default();
    for line in std::io::stdin().lines() {
        let answers = match serde_json::from_str(&line?).context("a line of curl's arguments, or a call")? {
            Line::Curl(many) => std::thread::scope(|scope| {
                let running: Vec<_> = many.iter().map(|args| scope.spawn(move || curl(args))).collect();
                let ended = running.into_iter().map(|one| one.join().unwrap_or_else(|_| anyhow::bail!("curl")));
                let failed = |error| Answer { exit: -1, error: format!("{error:#}"), ..Answer::default() };
                ended.map(|answer| answer.unwrap_or_else(failed)).collect()
            }),
            Line::Call(call) => vec![tokio::runtime::Handle::current().block_on(caller.call(&call))],
        };
        writeln!(out, "{}", serde_json::to_string::<Vec<Answer>>(&answers)?)?;
        out.flush()?;
    }
    Ok(0)
}

fn curl(args: &[String]) -> Result<Answer> {
    let output = std::process::Command::new("curl").args(args).stdin(Stdio::null()).output().context("curl")?;
    read(Raw {
        exit: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_curl_tells_is_read() {
        let raw = |exit, stderr: &str| Raw { exit, stdout: "x".into(), stderr: stderr.into() };
        let fine =
            read(raw(0, "\u{1}403\u{1}1.1\u{1}{\"Server\":[\"istio-envoy\"],\"set-cookie\":[\"a\",\"b\"]}")).unwrap();
        assert_eq!((fine.exit, fine.status, fine.body.as_str()), (0, 403, "x"));
        assert_eq!((fine.headers["server"].as_str(), fine.headers["set-cookie"].as_str()), ("istio-envoy", "a,b"));
        let reset = read(raw(56, "curl: (56) Recv failure\n\u{1}000\u{1}0\u{1}{}")).unwrap();
        assert_eq!((reset.exit, reset.status, reset.error.as_str()), (56, 0, "curl: (56) Recv failure"));
        assert!(read(raw(0, "nothing")).is_err());
    }
}
