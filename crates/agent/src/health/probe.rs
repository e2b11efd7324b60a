//! One probe: what is asked of the workload, and what counts as a good answer.
//!
//! Invariant: an answer comes within the probe's time, or is a bad one; a program that takes longer is ended. Probes are the agent's own
//! connections, which are not captured, so that a workload's health says nothing of its sidecar's.

use std::sync::Arc;
use std::time::Duration;

use carrick_pki::Identity;
use carrick_pki::tls::{ServerAuth, TlsOptions, client_config};
use carrick_xds::client::{Connector, open_channel};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::TlsConnector;

/// A probe as Istio writes it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Before the first one.
    #[serde(default)]
    pub initial_delay_seconds: u64,
    /// For one.
    #[serde(default = "one", deserialize_with = "positive")]
    pub timeout_seconds: u64,
    /// Between two.
    #[serde(default = "ten", deserialize_with = "positive_or_ten")]
    pub period_seconds: u64,
    /// Good answers in a row that make it healthy.
    #[serde(default)]
    pub success_threshold: u32,
    /// Bad answers in a row that make it ill.
    #[serde(default)]
    pub failure_threshold: u32,
    /// What is asked.
    #[serde(flatten)]
    pub check: Check,
}

/// What is asked of the workload.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Check {
    /// A `GET` that is answered with 200 to 399.
    HttpGet(HttpGet),
    /// A connection.
    TcpSocket(Target),
    /// A program that ends with 0. It runs as the agent's user.
    Exec(Exec),
    /// gRPC's health service that says SERVING.
    Grpc(GrpcTarget),
}

/// A `GET`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    #[serde(flatten)]
    target: Target,
    #[serde(default)]
    path: String,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<Header>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

/// A place on the machine.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Target {
    /// `localhost` when empty.
    #[serde(default)]
    host: String,
    port: u16,
}

/// A place where gRPC is spoken.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct GrpcTarget {
    port: u16,
    /// Whose health is asked; empty is the server's.
    #[serde(default)]
    service: String,
}

/// A program with its arguments.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Exec {
    command: Vec<String>,
}

fn one() -> u64 {
    1
}

fn ten() -> u64 {
    10
}

fn positive<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    u64::deserialize(from).map(|n| n.max(1))
}

fn positive_or_ten<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    u64::deserialize(from).map(|n| if n == 0 { 10 } else { n })
}

impl Target {
    fn address(&self) -> String {
        let host = if self.host.is_empty() { "localhost" } else { &self.host };
        if host.contains(':') { format!("[{host}]:{}", self.port) } else { format!("{host}:{}", self.port) }
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        let address = self.address();
        TcpStream::connect(&address).await.map_err(|error| format!("{address}: {error}"))
    }
}

impl Probe {
    /// Asks once.
    ///
    /// # Errors
    /// Why the workload is not healthy, for people.
    pub async fn check(&self) -> Result<(), String> {
        let limit = Duration::from_secs(self.timeout_seconds);
        tokio::time::timeout(limit, self.check.ask())
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", self.timeout_seconds)))
    }
}

impl Check {
    async fn ask(&self) -> Result<(), String> {
        match self {
            Self::HttpGet(get) => get.ask().await,
            Self::TcpSocket(target) => target.connect().await.map(drop),
            Self::Exec(exec) => exec.ask().await,
            Self::Grpc(target) => target.ask().await,
        }
    }
}

impl HttpGet {
    async fn ask(&self) -> Result<(), String> {
        let stream = self.target.connect().await?;
        let status = if self.scheme.eq_ignore_ascii_case("https") {
            // As a kubelet does: who serves is not the question.
            let config = client_config(None::<&Identity>, ServerAuth::None, &["http/1.1"], &TlsOptions::default());
            let config: Arc<rustls::ClientConfig> = config.map_err(|error| error.to_string())?;
            let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
            let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| error.to_string())?;
            self.status(stream).await?
        } else {
            self.status(stream).await?
        };
        if (200..400).contains(&status) { Ok(()) } else { Err(format!("HTTP status {status}")) }
    }

    async fn status(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<u16, String> {
        let path = if self.path.starts_with('/') { self.path.clone() } else { format!("/{}", self.path) };
        let mut host = self.target.address();
        let mut more = String::new();
        for Header { name, value } in &self.http_headers {
            if [name, value].iter().any(|text| text.contains(['\r', '\n'])) {
                continue;
            }
            if name.eq_ignore_ascii_case("host") {
                host.clone_from(value);
            } else {
                more.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: carrick-probe\r\n{more}Connection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut head = Vec::with_capacity(64);
        while head.len() < 12 {
            if stream.read_buf(&mut head).await.map_err(|error| error.to_string())? == 0 {
                return Err("the connection was closed before an answer".to_owned());
            }
        }
        let line = head.get(..12).and_then(|head| std::str::from_utf8(head).ok());
        let number = line.and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok());
        number.ok_or_else(|| "the answer is not HTTP/1".to_owned())
    }
}

impl Exec {
    async fn ask(&self) -> Result<(), String> {
        let (program, arguments) = self.command.split_first().ok_or("no command")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(|error| format!("{program}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let told = String::from_utf8_lossy(&output.stderr);
        let last = told.lines().last().unwrap_or_default();
        Err(format!("{program} ended with {}: {}", output.status, last.get(..200).unwrap_or(last)))
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SERVING`.
const SERVING: i32 = 1;

impl GrpcTarget {
    async fn ask(&self) -> Result<(), String> {
        let connector = Connector::Plain { address: format!("localhost:{}", self.port) };
        let channel = open_channel(&connector).await.map_err(|error| error.to_string())?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|error| error.to_string())?;
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let request = tonic::Request::new(HealthCheckRequest { service: self.service.clone() });
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        match client.unary(request, path, codec).await {
            Ok(answer) if answer.get_ref().status == SERVING => Ok(()),
            Ok(answer) => Err(format!("gRPC health is {}", answer.get_ref().status)),
            Err(status) => Err(format!("gRPC {:?}: {}", status.code(), status.message())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::net::TcpListener;

    fn probe(value: serde_json::Value) -> Probe {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn as_istio_writes_it() {
        let read = probe(
            json!({"httpGet": {"port": 8080, "path": "/ready", "httpHeaders": [{"name": "a", "value": "b"}]}, "periodSeconds": 0}),
        );
        assert_eq!((read.period_seconds, read.timeout_seconds, read.initial_delay_seconds), (10, 1, 0));
        assert!(
            matches!(&read.check, Check::HttpGet(get) if get.path == "/ready" && get.target.address() == "localhost:8080")
        );
        assert!(matches!(probe(json!({"exec": {"command": ["true"]}})).check, Check::Exec(_)));
        assert!(
            matches!(probe(json!({"tcpSocket": {"port": 1, "host": "::1"}})).check, Check::TcpSocket(t) if t.address() == "[::1]:1")
        );
        assert!(serde_json::from_value::<Probe>(json!({"periodSeconds": 1})).is_err(), "nothing to ask");
    }

    #[tokio::test]
    async fn each_way_has_good_and_bad_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            for status in ["200 OK", "302 Found", "503 Service Unavailable", ""] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(
                    request[..read].starts_with(b"GET /ready HTTP/1.1\r\nHost: shop\r\n"),
                    "{:?}",
                    &request[..read]
                );
                if !status.is_empty() {
                    stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await.unwrap();
                }
            }
            listener.accept().await.unwrap();
        });
        let get = probe(
            json!({"httpGet": {"port": port, "host": "127.0.0.1", "path": "ready", "httpHeaders": [{"name": "Host", "value": "shop"}]}}),
        );
        assert_eq!(get.check().await, Ok(()));
        assert_eq!(get.check().await, Ok(()));
        assert_eq!(get.check().await, Err("HTTP status 503".to_owned()));
        assert!(get.check().await.is_err());
        assert_eq!(probe(json!({"tcpSocket": {"port": port, "host": "127.0.0.1"}})).check().await, Ok(()));
        served.await.unwrap();
        assert!(
            probe(json!({"tcpSocket": {"port": port, "host": "127.0.0.1"}})).check().await.is_err(),
            "nobody listens"
        );
        assert_eq!(probe(json!({"exec": {"command": ["true"]}})).check().await, Ok(()));
        let bad = probe(json!({"exec": {"command": ["sh", "-c", "echo no disk >&2; exit 3"]}})).check().await;
        assert!(bad.as_ref().is_err_and(|reason| reason.contains("no disk")), "{bad:?}");
        let slow = probe(json!({"exec": {"command": ["sleep", "60"]}})).check().await;
        assert_eq!(slow, Err("no answer within 1 s".to_owned()));
        assert!(probe(json!({"grpc": {"port": port}})).check().await.is_err());
    }
}
