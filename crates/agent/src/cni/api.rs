//! What plugin and installer ask of the API server, by a kubeconfig that the installer wrote: a pod, a node's pods, a set of pods.
//!
//! Invariant: the server is believed by the kubeconfig's authority alone; time and size of the answer are bounded.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PATIENCE: Duration = Duration::from_secs(10);
const MAX: usize = 4 << 20;

/// Reads a pod.
///
/// # Errors
/// What is wrong with the kubeconfig, or that the server does not give the pod.
pub(super) fn pod(kubeconfig: &Path, namespace: &str, name: &str) -> Result<Value, String> {
    if !is_name(namespace) || !is_name(name) {
        return Err(format!("{namespace}/{name} is no pod's name"));
    }
    let access = Access::read(kubeconfig)?;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let (status, body) = runtime.block_on(access.ask(Method::GET, &path, None))?;
    if !status.is_success() {
        return Err(format!("{}{path}: {status}", access.server));
    }
    Ok(body)
}

/// Whether a text can be a name of Kubernetes', and so part of a path.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
}

/// What a kubeconfig's context says.
pub(super) struct Access {
    server: Uri,
    token: String,
    authority: Option<String>,
}

impl Access {
    /// Reads a kubeconfig.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(kubeconfig: &Path) -> Result<Self, String> {
        let words = |error: &dyn std::fmt::Display| format!("{}: {error}", kubeconfig.display());
        let text = std::fs::read_to_string(kubeconfig).map_err(|error| words(&error))?;
        Self::of(&serde_saphyr::from_str(&text).map_err(|error| words(&error))?)
    }

    /// Asks, and gives the status with what was answered; an answer that is no JSON is nothing.
    ///
    /// # Errors
    /// When there is no answer in time, or the server is not the one that the kubeconfig means.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), String> {
        let asked = tokio::time::timeout(PATIENCE, self.connect(method, path, body)).await;
        asked.map_err(|_| format!("{}: no answer in time", self.server))?
    }

    fn of(config: &Value) -> Result<Self, String> {
        let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let entry = |list: &str, name: &str, field: &str| -> Option<Value> {
            let entries = config.get(list)?.as_array()?;
            entries.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))?.get(field).cloned()
        };
        let current = text(config.get("current-context"));
        let context = entry("contexts", &current, "context").ok_or("the kubeconfig has no current context")?;
        let cluster =
            entry("clusters", &text(context.get("cluster")), "cluster").ok_or("the kubeconfig has no cluster")?;
        let user = entry("users", &text(context.get("user")), "user").unwrap_or_default();
        let server = text(cluster.get("server")).parse().map_err(|_| "the kubeconfig's server is no URL".to_owned())?;
        let read = |path: String| std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"));
        let token = match (text(user.get("tokenFile")), text(user.get("token"))) {
            (file, _) if !file.is_empty() => read(file)?.trim().to_owned(),
            (_, token) => token,
        };
        let authority =
            match (text(cluster.get("certificate-authority")), text(cluster.get("certificate-authority-data"))) {
                (file, _) if !file.is_empty() => Some(read(file)?),
                (_, data) if !data.is_empty() => {
                    Some(decoded(&data).ok_or("certificate-authority-data is not base64 of a text")?)
                }
                _ => None,
            };
        Ok(Self { server, token, authority })
    }

    async fn connect(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value), String> {
        let words = |error: &dyn std::fmt::Display| format!("{}: {error}", self.server);
        let host = self.server.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let secure = self.server.scheme_str() == Some("https");
        let port = self.server.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|e| words(&e))?;
        if !secure {
            return self.exchange(stream, method, path, body).await;
        }
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.authority.as_deref().unwrap_or_default().as_bytes()) {
            roots.add(root.map_err(|e| words(&e))?).map_err(|e| words(&e))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| words(&e))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(host).map_err(|e| words(&e))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| words(&e))?;
        self.exchange(stream, method, path, body).await
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), String> {
        let words = |error: &dyn std::fmt::Display| format!("{}{path}: {error}", self.server);
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(|e| words(&e))?;
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.server.authority().map(ToString::to_string).unwrap_or_default())
            .header("authorization", format!("Bearer {}", self.token))
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| words(&e))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|e| words(&e))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX).collect().await.map_err(|e| words(&e))?.to_bytes();
            match serde_json::from_slice(&body) {
                Ok(body) => Ok((status, body)),
                Err(error) if status.is_success() => Err(words(&error)),
                Err(_) => Ok((status, Value::Null)),
            }
        };
        tokio::pin!(answer, connection);
        let mut ended = false;
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                result = &mut connection, if !ended => {
                    ended = true;
                    result.map_err(|e| words(&e))?;
                }
            }
        }
    }
}

/// Base64 of a text (RFC 4648 §4).
fn decoded(text: &str) -> Option<String> {
    let (mut bits, mut count, mut out) = (0_u32, 0_u32, Vec::new());
    for byte in text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte.checked_sub(b'A')?,
            b'a'..=b'z' => byte.checked_sub(b'a')?.checked_add(26)?,
            b'0'..=b'9' => byte.checked_sub(b'0')?.checked_add(52)?,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count = count.checked_add(6)?;
        if count >= 8 {
            count = count.checked_sub(8)?;
            out.push(u8::try_from((bits >> count) & 0xff).ok()?);
            bits &= 0xff;
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_travel_in_base64() {
        assert_eq!(decoded("LS0tLS1CRUdJTg==").as_deref(), Some("-----BEGIN"));
        assert_eq!(decoded("Zm9v\nYmFy").as_deref(), Some("foobar"));
        assert_eq!(decoded("a-b"), None);
    }
}
