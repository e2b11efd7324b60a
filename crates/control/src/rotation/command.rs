//! Commands over a Unix socket: one JSON line asks, one JSON line answers.
//!
//! Invariant: only the socket's owner may open it, which is who may read the keys anyway; a command is carried out by the
//! one task that owns the state, in the order in which they came.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, error};

/// Longest command.
const MAX: u64 = 64 << 10;
/// Time for a command to arrive and be answered.
const PATIENCE: Duration = Duration::from_secs(30);

/// What can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Command {
    /// How things are.
    Status,
    /// Begin a rotation.
    Rotate {
        /// The folder of the new set; none for the one that is plugged in, or a new self-signed one.
        dir: Option<PathBuf>,
        /// Where the key of that set is, if it is in a token: a PKCS#11 URI.
        #[serde(default)]
        token: Option<String>,
        /// The least time in the steps that wait for proxies.
        #[serde(default, rename = "soakSeconds")]
        soak_seconds: u64,
    },
    /// Stay in this step.
    Pause,
    /// Go on.
    Resume,
    /// Turn round.
    Rollback,
    /// Do not wait for a proxy.
    Waive {
        /// `name.namespace`.
        proxy: String,
        /// Seconds since 1970.
        #[serde(deserialize_with = "seconds")]
        until: SystemTime,
    },
}

fn seconds<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
    let seconds = u64::deserialize(from)?;
    let out_of_range = || serde::de::Error::custom("a time out of range");
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or_else(out_of_range)
}

/// Listens for as long as it is polled. It returns only when it cannot listen, which is logged and no reason to end.
pub(super) async fn listen(path: PathBuf, commands: mpsc::Sender<(Command, oneshot::Sender<Value>)>) {
    let listener = match bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            error!(path = %path.display(), %error, "commands of the certificate authority cannot be taken");
            return std::future::pending().await;
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if tokio::time::timeout(PATIENCE, serve(stream, &commands)).await.is_err() {
                    debug!("a command came too slowly");
                }
            }
            Err(error) => {
                debug!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(stream: UnixStream, commands: &mpsc::Sender<(Command, oneshot::Sender<Value>)>) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    if BufReader::new(read.take(MAX)).read_line(&mut line).await.is_err() {
        return;
    }
    let answer = match serde_json::from_str::<Command>(&line) {
        Ok(command) => {
            let (reply, told) = oneshot::channel();
            match commands.send((command, reply)).await {
                Ok(()) => told.await.unwrap_or_else(|_| json!({"error": "the control plane is ending"})),
                Err(_) => json!({"error": "the control plane is ending"}),
            }
        }
        Err(error) => json!({"error": format!("not a command: {error}")}),
    };
    let _ = write.write_all(format!("{answer}\n").as_bytes()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read() {
        let read = |text: &str| serde_json::from_str::<Command>(text);
        assert_eq!(read(r#"{"command":"status"}"#).unwrap(), Command::Status);
        assert_eq!(
            read(r#"{"command":"rotate"}"#).unwrap(),
            Command::Rotate { dir: None, token: None, soak_seconds: 0 }
        );
        let waive = read(r#"{"command":"waive","proxy":"a.b","until":60}"#).unwrap();
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        assert_eq!(waive, Command::Waive { proxy: "a.b".into(), until });
        for bad in ["", "{}", r#"{"command":"retire"}"#, r#"{"command":"waive","proxy":"a.b"}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
