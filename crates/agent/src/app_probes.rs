//! Probes of the application that Kubernetes asks of the agent (semantics §16.7): the table of them, and one answer.
//!
//! Invariant: only what injection wrote into `ISTIO_KUBE_APP_PROBERS` is asked, at the pod's own address and with the time that the
//! probe had; a path that is not in the table is 404. How a question travels is `ask`'s business.

mod ask;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use carrick_runtime::admin::{Request, Response, Router};
use http::{Method, StatusCode};
use serde::Deserialize;

/// The variable that tells the table.
pub const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";
/// The variable that says that applications listen on loopback only.
pub const LOCALHOST: &str = "REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION";
/// Paths of probes and of hooks.
const PREFIXES: [&str; 2] = ["/app-health/", "/app-lifecycle/"];
/// Time of a probe that says none (Kubernetes' default), and of a hook, which has none.
const PROBE_TIME: Duration = Duration::from_secs(1);
const HOOK_TIME: Duration = Duration::from_secs(30);

/// All probes by path.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppProbes {
    by_path: BTreeMap<String, Prober>,
    /// Where the application listens.
    host: Option<IpAddr>,
}

/// One probe, as injection writes it: Kubernetes' own fields.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Prober {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    #[serde(default)]
    timeout_seconds: u32,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: String,
    port: u16,
    #[serde(default)]
    scheme: String,
    #[serde(default)]
    http_headers: Vec<HttpHeader>,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct HttpHeader {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct TcpSocket {
    port: u16,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Grpc {
    port: u16,
    service: Option<String>,
}

impl AppProbes {
    /// Reads the table; `pod` is the pod's address.
    ///
    /// # Errors
    /// The text is not what injection writes.
    pub fn read(text: &str, pod: Option<IpAddr>, localhost: bool) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let by_path: BTreeMap<String, Prober> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for (path, prober) in &by_path {
            let kinds = [prober.http_get.is_some(), prober.tcp_socket.is_some(), prober.grpc.is_some()];
            if kinds.iter().filter(|is| **is).count() != 1 {
                return Err(format!("{path}: expected one of httpGet, tcpSocket, grpc"));
            }
            if !PREFIXES.iter().any(|prefix| path.starts_with(prefix)) {
                return Err(format!("{path:?} is no path of a probe"));
            }
        }
        Ok(Self { by_path, host: pod.filter(|_| !localhost) })
    }

    /// Adds the paths to the status port's.
    pub(crate) fn serve(&self, router: &mut Router) {
        if self.by_path.is_empty() {
            return;
        }
        for prefix in PREFIXES {
            let probes = self.clone();
            router.prefix(Method::GET, prefix, move |request| {
                let probes = probes.clone();
                async move { probes.answer(&request).await }
            });
        }
    }

    async fn answer(&self, request: &Request) -> Response {
        let Some(prober) = self.by_path.get(request.path()) else {
            return Response::text(StatusCode::NOT_FOUND, "no such probe\n");
        };
        let hook = request.path().starts_with("/app-lifecycle/");
        let time = match prober.timeout_seconds {
            0 if hook => HOOK_TIME,
            0 => PROBE_TIME,
            seconds => Duration::from_secs(seconds.into()),
        };
        let result = tokio::time::timeout(time, self.ask(prober, request)).await;
        match result.unwrap_or_else(|_| Err(format!("no answer within {time:?}"))) {
            Ok(status) => Response::text(status, ""),
            Err(reason) => {
                tracing::debug!(path = request.path(), reason, "probe");
                Response::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{reason}\n"))
            }
        }
    }

    async fn ask(&self, prober: &Prober, request: &Request) -> Result<StatusCode, String> {
        if let Some(get) = &prober.http_get {
            return ask::http(self.place(get.port), get, &request.headers).await;
        }
        if let Some(socket) = &prober.tcp_socket {
            ask::connect(self.place(socket.port)).await?;
            return Ok(StatusCode::OK);
        }
        let Some(grpc) = &prober.grpc else { return Err("there is nothing to ask".to_owned()) };
        ask::grpc(self.place(grpc.port), grpc.service.as_deref().unwrap_or_default()).await?;
        Ok(StatusCode::OK)
    }

    /// A port of the application, and the address that asks: one whose connections no rule turns to the proxy.
    fn place(&self, port: u16) -> ask::Place {
        let host = self.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let from = match host {
            IpAddr::V4(host) if !host.is_loopback() => Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6))),
            IpAddr::V6(host) if !host.is_loopback() => Some(IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6))),
            _ => None,
        };
        ask::Place { to: SocketAddr::new(host, port), from }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    #[test]
    fn the_table_is_read_whole_or_not_at_all() {
        let read = |text: &str| AppProbes::read(text, None, false);
        assert_eq!(read("").unwrap(), AppProbes::default());
        assert_eq!(
            read(r#"{"/app-health/a/readyz":{"tcpSocket":{"port":1},"timeoutSeconds":2}}"#).unwrap().by_path.len(),
            1
        );
        assert_eq!(read(r#"{"/app-health/a/livez":{"grpc":{"port":1,"service":null}}}"#).unwrap().by_path.len(), 1);
        for bad in [
            "{",
            r#"{"/x":{"tcpSocket":{"port":1}}}"#,
            r#"{"/app-health/a/x":{}}"#,
            r#"{"/app-health/a/x":{"httpGet":{"port":"http"}}}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    async fn status(router: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(router).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-probe: 1\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text.split_whitespace().nth(1).unwrap_or_default().to_owned()
    }

    #[tokio::test]
    async fn questions_reach_the_application_and_its_answers_come_back() {
        let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = application.local_addr().unwrap().port();
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent_port = silent.local_addr().unwrap().port();
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().port()
        };
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = application.accept().await.unwrap();
                let mut buffer = vec![0; 4096];
                let read = stream.read(&mut buffer).await.unwrap_or_default();
                let text = String::from_utf8_lossy(&buffer[..read]).to_lowercase();
                let good = text.starts_with("get /ready?a=b ")
                    && text.contains("x-own: 2\r\n")
                    && text.contains("host: mine\r\n");
                let status = if good { "204 No Content" } else { "503 Service Unavailable" };
                let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
            }
        });
        let table = format!(
            r#"{{"/app-health/a/readyz":{{"httpGet":{{"path":"/ready?a=b","port":{port},"httpHeaders":[{{"name":"X-Own","value":"2"}},{{"name":"Host","value":"mine"}}]}}}},
            "/app-health/a/livez":{{"httpGet":{{"path":"/other","port":{port}}}}},
            "/app-health/a/startupz":{{"tcpSocket":{{"port":{port}}}}},
            "/app-health/b/livez":{{"tcpSocket":{{"port":{closed}}}}},
            "/app-health/b/readyz":{{"httpGet":{{"path":"/","port":{silent_port}}},"timeoutSeconds":1}}}}"#
        );
        let probes = AppProbes::read(&table, None, true).unwrap();
        let mut router = Router::new();
        probes.serve(&mut router);
        let server = carrick_runtime::admin::AdminServer::bind("127.0.0.1:0".parse().unwrap(), router).await.unwrap();
        let address = server.local_addr();
        let (trigger, drain) = carrick_runtime::drain::channel();
        let running = tokio::spawn(server.run(drain));
        for (path, expected) in [
            ("/app-health/a/readyz", "204"),
            ("/app-health/a/livez", "503"),
            ("/app-health/a/startupz", "200"),
            ("/app-health/b/livez", "500"),
            ("/app-health/b/readyz", "500"),
            ("/app-health/c/readyz", "404"),
        ] {
            assert_eq!(status(address, path).await, expected, "{path}");
        }
        trigger.drain(Duration::from_secs(1)).await;
        running.await.unwrap();
        serving.abort();
    }
}
