//! `carrick ca rotate`: from one root to another, and how far that is.
//!
//! Invariant: everything is asked of the control plane over its socket in the data folder; nothing is decided here. Waiting
//! ends with exit code 0 only when the rotation is done.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use carrick_api::timestamp::Timestamp;
use clap::Args;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use crate::{
    output::{Format, machine},
    table::Table,
};

/// How long the control plane may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a waiting command looks.
const LOOK: Duration = Duration::from_millis(200);

/// What is to be done; without any of them a rotation begins.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Show how far it is and who holds it up.
    #[arg(long, group = "what")]
    status: bool,
    /// Stay in the step it is in.
    #[arg(long, group = "what")]
    pause: bool,
    /// Go on after a pause.
    #[arg(long, group = "what")]
    resume: bool,
    /// Turn round: the old set is to be alone again.
    #[arg(long, group = "what")]
    rollback: bool,
    /// Do not wait for this proxy, until the date.
    #[arg(long, group = "what", requires = "until", value_name = "NAME.NAMESPACE")]
    waive: Option<String>,
    /// The end of a waiver: a day (2027-01-31) or a moment (2027-01-31T12:00:00Z).
    #[arg(long, requires = "waive", value_parser = moment, value_name = "DATE")]
    until: Option<u64>,
    /// Rotate to the signing set of this folder (ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem) [default: the one that
    /// is plugged in and waits, else a new self-signed one].
    #[arg(long, conflicts_with = "what", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The key of the set in --dir is in a token: pkcs11:token=LABEL;object=LABEL?module-path=FILE&pin-source=FILE, with the library
    /// among those that `carrick up` was started with (--pkcs11-module).
    #[arg(long, requires = "dir", value_parser = token, value_name = "URI")]
    to: Option<String>,
    /// Stay at least this long in each step that waits for proxies, for the sake of those who are not asked, such as readers
    /// of files and partners.
    #[arg(long, conflicts_with = "what", default_value = "0s", value_parser = soak, value_name = "DURATION")]
    soak: Duration,
    /// Wait at most this long for the end of the rotation.
    #[arg(long, value_parser = soak, value_name = "DURATION")]
    wait: Option<Duration>,
    /// Output format.
    #[arg(short, long, value_enum, default_value = "short")]
    output: Format,
}

fn moment(text: &str) -> Result<u64, String> {
    let full = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let bad = || format!("{text:?} is neither a day such as 2027-01-31 nor a moment such as 2027-01-31T12:00:00Z");
    let parsed = Timestamp::parse(&full).ok_or_else(bad)?;
    u64::try_from(parsed.seconds()).map_err(|_| bad())
}

fn soak(text: &str) -> Result<Duration, String> {
    if text == "0" || text == "0s" { Ok(Duration::ZERO) } else { crate::duration::parse(text) }
}

fn token(text: &str) -> Result<String, String> {
    match text.starts_with("pkcs11:") {
        true => Ok(text.to_owned()),
        false => Err("a PKCS#11 URI begins with pkcs11:".to_owned()),
    }
}

impl Options {
    fn command(&self) -> Result<Value> {
        Ok(match (&self.waive, self.until) {
            (Some(proxy), Some(until)) => json!({"command": "waive", "proxy": proxy, "until": until}),
            _ if self.status => json!({"command": "status"}),
            _ if self.pause => json!({"command": "pause"}),
            _ if self.resume => json!({"command": "resume"}),
            _ if self.rollback => json!({"command": "rollback"}),
            _ => {
                // Read by the control plane, whose working folder is another.
                let dir = self.dir.as_deref().map(std::path::absolute).transpose().context("--dir")?;
                json!({"command": "rotate", "dir": dir, "token": self.to, "soakSeconds": self.soak.as_secs()})
            }
        })
    }
}

/// The socket of a data folder's control plane.
pub fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("ca.sock")
}

/// Asks, and shows the answer.
///
/// # Errors
/// The control plane is not there or refuses.
pub async fn run(options: &Options, data_dir: &Path) -> Result<u8> {
    let mut answer = ask(data_dir, &options.command()?).await?;
    if let Some(error) = answer.get("error").and_then(Value::as_str) {
        bail!("{error}");
    }
    let start = Instant::now();
    if let Some(limit) = options.wait {
        while !answer["rotation"].is_null() && start.elapsed() < limit {
            tokio::time::sleep(LOOK).await;
            answer = ask(data_dir, &json!({"command": "status"})).await?;
        }
    }
    match machine(&answer, options.output)? {
        Some(text) => print!("{text}"),
        None => print!("{}", show(&answer)),
    }
    Ok(u8::from(options.wait.is_some() && !answer["rotation"].is_null()))
}

async fn ask(data_dir: &Path, command: &Value) -> Result<Value> {
    let path = socket(data_dir);
    let shown = path.display().to_string();
    let asked = async {
        let stream = UnixStream::connect(&path).await.with_context(|| format!("{shown}: is `carrick up` running?"))?;
        let (read, mut write) = stream.into_split();
        write.write_all(format!("{command}\n").as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(read).read_line(&mut line).await?;
        serde_json::from_str(&line).context("the control plane's answer")
    };
    tokio::time::timeout(PATIENCE, asked).await.context("the control plane does not answer")?
}

fn show(answer: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let moment = |value: &Value| text(value).split('.').next().unwrap_or_default().replace('T', " ");
    let mut out = format!(
        "signed by {:?} ({}, until {}), {}\n",
        text(&answer["issuer"]["subject"]),
        text(&answer["issuer"]["id"]),
        moment(&answer["issuer"]["notAfter"]),
        text(&answer["issuer"]["source"]),
    );
    let mut roots = Table::new(3, ["ROOT", "FINGERPRINT", "UNTIL"]);
    for root in answer["roots"].as_array().into_iter().flatten() {
        let short: String = text(&root["fingerprint"]).chars().take(16).collect();
        roots.row([text(&root["subject"]), short, moment(&root["notAfter"])]);
    }
    out += &roots.to_string();
    let rotation = &answer["rotation"];
    if rotation.is_null() {
        out += "no rotation is under way\n";
    } else {
        let back = if rotation["back"] == true { " (on its way back)" } else { "" };
        let mut table = Table::new(3, ["STEP", "SINCE", "STATE", "TO"]);
        table.row([
            text(&rotation["step"]) + back,
            moment(&rotation["since"]),
            text(&rotation["state"]),
            text(&rotation["to"]),
        ]);
        out += &table.to_string();
        let held = rotation["heldBy"].as_array().map(Vec::as_slice).unwrap_or_default();
        if !held.is_empty() {
            let mut table = Table::new(3, ["HELD UP BY", "SINCE", "BECAUSE IT"]);
            for h in held {
                table.row([text(&h["proxy"]), moment(&h["since"]), text(&h["reason"])]);
            }
            out += &table.to_string();
        }
        for waiver in rotation["waivers"].as_array().into_iter().flatten() {
            out += &format!("not waiting for {} until {}\n", text(&waiver["proxy"]), moment(&waiver["until"]));
        }
        if let Some(problem) = rotation["problem"]["text"].as_str() {
            out += &format!("problem since {}: {problem}\n", moment(&rotation["problem"]["since"]));
        }
    }
    if let Some(reason) = answer["pending"]["reason"].as_str() {
        let source = text(&answer["pending"]["source"]);
        out += &format!("{source} waits for `carrick ca rotate`: {reason}\n");
    }
    if let Some(problem) = answer["problem"]["text"].as_str() {
        out += &format!("not taken since {}: {problem}\n", moment(&answer["problem"]["since"]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        assert_eq!(moment("1970-01-02"), Ok(86_400));
        assert_eq!(moment("1970-01-01T00:01:00Z"), Ok(60));
        assert!(moment("tomorrow").is_err());
    }

    #[test]
    fn who_holds_it_up_is_in_the_table() {
        let answer = json!({
            "issuer": {"id": "ab", "subject": "CN=x", "source": "self-signed", "notAfter": "2036-01-01T00:00:00.000000Z"},
            "roots": [{"fingerprint": "0123456789abcdef01", "subject": "CN=x", "notAfter": "2036-01-01T00:00:00.000000Z"}],
            "rotation": {
                "step": "prove", "state": "held up", "since": "2026-01-01T00:00:00.000000Z", "to": "cd", "back": false,
                "heldBy": [{"proxy": "web.shop", "since": "2026-01-01T00:00:00.000000Z", "reason": "does not trust the new root yet"}],
            },
        });
        let shown = show(&answer);
        assert!(shown.contains("web.shop     2026-01-01 00:00:00   does not trust the new root yet\n"), "{shown}");
        assert!(shown.contains("prove   2026-01-01 00:00:00   held up   cd\n"), "{shown}");
    }
}
