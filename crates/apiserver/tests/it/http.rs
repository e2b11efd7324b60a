//! A small HTTPS client that reads a kubeconfig.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where a server is and how to be its administrator.
#[derive(Clone)]
pub struct Access {
    pub address: SocketAddr,
    admin: Arc<rustls::ClientConfig>,
    nobody: Arc<rustls::ClientConfig>,
}

impl Access {
    pub fn of(kubeconfig: &Path) -> Self {
        let config: Value = serde_saphyr::from_str(&std::fs::read_to_string(kubeconfig).unwrap()).unwrap();
        let data = |pointer: &str| STANDARD.decode(config.pointer(pointer).unwrap().as_str().unwrap()).unwrap();
        let server = config.pointer("/clusters/0/cluster/server").unwrap().as_str().unwrap();
        let address = server.strip_prefix("https://").unwrap().parse().unwrap();
        let mut roots = rustls::RootCertStore::empty();
        let ca = data("/clusters/0/cluster/certificate-authority-data");
        roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
        let certificate = CertificateDer::from_pem_slice(&data("/users/0/user/client-certificate-data")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&data("/users/0/user/client-key-data")).unwrap();
        let builder = || {
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots.clone())
        };
        let mut admin = builder().with_client_auth_cert(vec![certificate], key).unwrap();
        let mut nobody = builder().with_no_client_auth();
        admin.alpn_protocols = vec![b"h2".to_vec()];
        nobody.alpn_protocols = vec![b"h2".to_vec()];
        Self { address, admin: Arc::new(admin), nobody: Arc::new(nobody) }
    }

    /// A TLS connection, without HTTP on it yet.
    pub async fn raw(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut config = (*self.admin).clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        TlsConnector::from(Arc::new(config)).connect(self.name(), stream).await.unwrap()
    }

    fn name(&self) -> ServerName<'static> {
        ServerName::IpAddress(self.address.ip().into())
    }

    async fn connect(&self, config: &Arc<rustls::ClientConfig>) -> std::io::Result<Client> {
        let stream = TcpStream::connect(self.address).await?;
        let stream = TlsConnector::from(config.clone()).connect(self.name(), stream).await?;
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        let task = tokio::spawn(async move {
            // Ends with an error when the server is killed, which some tests do.
            drop(connection.await);
        });
        Ok(Client { sender, token: None, task: Arc::new(Abort(task)) })
    }

    /// A connection of the administrator.
    pub async fn admin(&self) -> std::io::Result<Client> {
        self.connect(&self.admin).await
    }

    /// A connection without a client certificate, with a token or none.
    pub async fn with_token(&self, token: Option<&str>) -> Client {
        let mut client = self.connect(&self.nobody).await.unwrap();
        client.token = token.map(str::to_owned);
        client
    }
}

struct Abort(tokio::task::JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One HTTP/2 connection.
#[derive(Clone)]
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    token: Option<String>,
    #[allow(dead_code, reason = "held so that the connection ends with its client")]
    task: Arc<Abort>,
}

impl Client {
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        body: Bytes,
    ) -> hyper::Result<Response<Incoming>> {
        self.send_with(method, path, kind, &[], body).await
    }

    /// With further headers.
    pub async fn send_with(
        &mut self,
        method: Method,
        path: &str,
        kind: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> hyper::Result<Response<Incoming>> {
        let mut request =
            Request::builder().method(method).uri(format!("https://api{path}")).header("content-type", kind);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.sender.ready().await?;
        self.sender.send_request(request.body(Full::new(body)).unwrap()).await
    }

    /// Status and JSON of one exchange; `Err` when the connection broke.
    pub async fn call(&mut self, method: Method, path: &str, body: Option<&Value>) -> hyper::Result<(u16, Value)> {
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let answer = self.send(method, path, kind, bytes).await?;
        let code = answer.status().as_u16();
        let bytes = answer.into_body().collect().await?.to_bytes();
        let text = || json!(String::from_utf8_lossy(&bytes));
        Ok((code, serde_json::from_slice(&bytes).unwrap_or_else(|_| text())))
    }

    pub async fn get(&mut self, path: &str) -> (u16, Value) {
        self.call(Method::GET, path, None).await.unwrap()
    }

    pub async fn post(&mut self, path: &str, body: &Value) -> (u16, Value) {
        self.call(Method::POST, path, Some(body)).await.unwrap()
    }

    /// Opens a watch.
    /// Server-side apply.
    pub async fn apply(&mut self, path: &str, body: &Value) -> (u16, Value) {
        let bytes = Bytes::from(body.to_string());
        let answer = self.send(Method::PATCH, path, "application/apply-patch+yaml", bytes).await.unwrap();
        let code = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap())
    }

    pub async fn watch(&mut self, path: &str) -> Lines {
        let answer = self.send(Method::GET, path, "", Bytes::new()).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        Lines { body: answer.into_body(), rest: Vec::new() }
    }
}

/// JSON lines of a watch.
pub struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    /// The next event, `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.rest.extend_from_slice(frame.data_ref().unwrap()),
                _ => return None,
            }
        }
    }
}

/// A config map with one value.
pub fn config_map(name: &str, value: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": value.to_string()}})
}
