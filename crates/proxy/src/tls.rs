//! TLS configurations for chains and clusters, made of their settings and the secrets of the moment, and the handshakes.
//!
//! Invariant: no secret, no connection. A configuration is kept until its identity or roots are replaced, so new
//! handshakes use the new ones and open connections stay. What makes a peer acceptable is decided in `carrick-pki`.

use crate::io::socket::Socket;
use crate::io::stream::{Kind, Stream};
use crate::secrets::Secrets;
use carrick_pki::tls::{
    self as pki, AlpnServerConfig, ClientAuth, Curve, PeerPolicy, SanMatch, ServerAuth, TlsError, TlsOptions,
    VerifiedPeer,
};
use carrick_pki::{Identity, TrustBundle};
use carrick_proxy_core::model::Name;
use carrick_proxy_core::model::cluster::TransportSocket;
use carrick_proxy_core::model::filter::UpstreamOverrides;
use carrick_proxy_core::model::listener::FilterChain;
use carrick_proxy_core::model::matcher::{StringMatcher, Text};
use carrick_proxy_core::model::tls::{DownstreamTls, TlsParams, TlsVersion, UpstreamTls, Validation};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The secret has not come yet.
    #[error("secret {0} is not available")]
    NoSecret(Name),
    /// Settings that do not fit together.
    #[error(transparent)]
    Settings(#[from] TlsError),
}

/// What a finished server-side handshake has shown.
#[derive(Debug)]
pub struct ClientProof {
    /// The client, if it showed a certificate. Only `carrick-pki` can make one.
    pub peer: Option<VerifiedPeer>,
    /// Its URI name, shared by every request of the connection.
    pub principal: Option<Arc<str>>,
    /// Our own URI name.
    pub local: Option<Arc<str>>,
    /// Protocol agreed on.
    pub alpn: Option<Vec<u8>>,
    /// Version as Envoy writes it.
    pub version: &'static str,
    /// Suite as rustls writes it.
    pub cipher: String,
}

struct ServerEntry {
    /// Keeps the chain's address from being used again.
    _chain: Arc<FilterChain>,
    identity: Arc<Identity>,
    trust: Option<Arc<TrustBundle>>,
    config: AlpnServerConfig,
}

struct ClientEntry {
    _socket: Arc<TransportSocket>,
    identity: Option<Arc<Identity>>,
    trust: Option<Arc<TrustBundle>>,
    config: Arc<ClientConfig>,
}

/// One worker's configurations.
pub struct TlsCache {
    secrets: watch::Receiver<Arc<Secrets>>,
    servers: RefCell<HashMap<usize, ServerEntry>>,
    clients: RefCell<HashMap<(usize, UpstreamOverrides), ClientEntry>>,
}

fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

impl TlsCache {
    /// An empty one that reads `secrets`.
    pub fn new(secrets: watch::Receiver<Arc<Secrets>>) -> Self {
        TlsCache { secrets, servers: RefCell::default(), clients: RefCell::default() }
    }

    fn identity(&self, secrets: &Secrets, name: &Name) -> Result<Arc<Identity>, Refused> {
        secrets.identity(name).cloned().ok_or_else(|| Refused::NoSecret(Arc::clone(name)))
    }

    fn trust(&self, secrets: &Secrets, of: Option<&Validation>) -> Result<Option<Arc<TrustBundle>>, Refused> {
        let Some(v) = of else { return Ok(None) };
        match secrets.trust(&v.trust) {
            Some(t) => Ok(Some(Arc::clone(t))),
            None => Err(Refused::NoSecret(Arc::clone(&v.trust))),
        }
    }

    /// The configuration of a chain that terminates TLS, and the identity in it.
    pub fn server(
        &self,
        chain: &Arc<FilterChain>,
        tls: &DownstreamTls,
    ) -> Result<(AlpnServerConfig, Arc<Identity>), Refused> {
        let secrets = Arc::clone(&self.secrets.borrow());
        let identity = self.identity(&secrets, &tls.certificate)?;
        let trust = self.trust(&secrets, tls.validation.as_ref())?;
        let key = Arc::as_ptr(chain) as usize;
        let mut servers = self.servers.borrow_mut();
        if let Some(e) = servers.get(&key)
            && Arc::ptr_eq(&e.identity, &identity)
            && same(e.trust.as_ref(), trust.as_ref())
        {
            return Ok((e.config.clone(), identity));
        }
        let auth = match (&tls.validation, &trust) {
            (Some(v), Some(trust)) => {
                let policy = PeerPolicy::new(TrustBundle::clone(trust), sans(v, None)?);
                match (is_mesh(v), tls.require_client_certificate) {
                    (true, true) => ClientAuth::Require(policy),
                    (true, false) => ClientAuth::Optional(policy),
                    (false, true) => ClientAuth::RequireChain(policy),
                    (false, false) => ClientAuth::OptionalChain(policy),
                }
            }
            _ => ClientAuth::None,
        };
        let alpn: Vec<&[u8]> = tls.alpn.iter().map(|a| a.as_bytes()).collect();
        let config = AlpnServerConfig::new(pki::server_config(&identity, auth, &alpn, &options(&tls.params)?)?);
        let entry =
            ServerEntry { _chain: Arc::clone(chain), identity: Arc::clone(&identity), trust, config: config.clone() };
        servers.insert(key, entry);
        Ok((config, identity))
    }

    /// The configuration of a cluster's socket, with what a request's filter state overrides.
    pub fn client(
        &self,
        socket: &Arc<TransportSocket>,
        tls: &UpstreamTls,
        overrides: &UpstreamOverrides,
    ) -> Result<Arc<ClientConfig>, Refused> {
        let secrets = Arc::clone(&self.secrets.borrow());
        let identity = tls.certificate.as_ref().map(|n| self.identity(&secrets, n)).transpose()?;
        let trust = self.trust(&secrets, tls.validation.as_ref())?;
        let key = (Arc::as_ptr(socket) as usize, overrides.clone());
        let mut clients = self.clients.borrow_mut();
        if let Some(e) = clients.get(&key)
            && same(e.identity.as_ref(), identity.as_ref())
            && same(e.trust.as_ref(), trust.as_ref())
        {
            return Ok(Arc::clone(&e.config));
        }
        let auth = match (&tls.validation, &trust) {
            (Some(v), Some(trust)) => {
                let roots = TrustBundle::clone(trust);
                let names = sans(v, overrides.sans.as_deref())?;
                if is_mesh(v) {
                    ServerAuth::Spiffe(PeerPolicy::new(roots, names))
                } else if tls.auto_sni_san_validation && names.is_empty() {
                    ServerAuth::Dns { roots }
                } else {
                    ServerAuth::Chain(PeerPolicy::new(roots, names))
                }
            }
            _ => ServerAuth::None,
        };
        let offered: &[Name] = overrides.alpn.as_deref().unwrap_or(&tls.alpn);
        let alpn: Vec<&[u8]> = offered.iter().map(|a| a.as_bytes()).collect();
        let config = pki::client_config(identity.as_deref(), auth, &alpn, &options(&tls.params)?)?;
        let entry = ClientEntry { _socket: Arc::clone(socket), identity, trust, config: Arc::clone(&config) };
        clients.insert(key, entry);
        Ok(config)
    }

    /// Forgets configurations whose chain or cluster nobody else holds any more.
    pub fn sweep(&self) {
        self.servers.borrow_mut().retain(|_, e| Arc::strong_count(&e._chain) > 1);
        self.clients.borrow_mut().retain(|_, e| Arc::strong_count(&e._socket) > 1);
    }
}

/// Mesh peers have exactly one SPIFFE name; file and gateway certificates need not.
fn is_mesh(v: &Validation) -> bool {
    let spiffe = |m: &StringMatcher| match m {
        StringMatcher::Exact(t) | StringMatcher::Prefix(t) => t.value.starts_with("spiffe://"),
        _ => false,
    };
    &*v.trust == "ROOTCA" || (!v.sans.is_empty() && v.sans.iter().all(|s| spiffe(&s.matcher)))
}

fn sans(v: &Validation, replaced: Option<&[Name]>) -> Result<Vec<SanMatch>, TlsError> {
    if let Some(names) = replaced {
        return Ok(names.iter().map(|n| SanMatch::Exact(n.to_string())).collect());
    }
    let text = |t: &Text, exact: fn(String) -> SanMatch, before: &str, after: &str| {
        if t.ignore_case {
            let quoted: String =
                t.value.chars().flat_map(|c| if c.is_alphanumeric() { vec![c] } else { vec!['\\', c] }).collect();
            SanMatch::regex(&format!("(?i){before}{quoted}{after}"))
        } else {
            Ok(exact(t.value.to_string()))
        }
    };
    v.sans
        .iter()
        .map(|s| match &s.matcher {
            StringMatcher::Exact(t) => text(t, SanMatch::Exact, "", ""),
            StringMatcher::Prefix(t) => text(t, SanMatch::Prefix, "", ".*"),
            StringMatcher::Suffix(t) => text(t, SanMatch::Suffix, ".*", ""),
            StringMatcher::Contains(t) => text(t, SanMatch::Contains, ".*", ".*"),
            StringMatcher::Regex(r) => SanMatch::regex(r.as_str()),
        })
        .collect()
}

fn options(p: &TlsParams) -> Result<TlsOptions, TlsError> {
    let version = |v| match v {
        TlsVersion::V12 => pki::TlsVersion::V1_2,
        TlsVersion::V13 => pki::TlsVersion::V1_3,
    };
    let mut o = TlsOptions { min_version: version(p.min), max_version: version(p.max), ..TlsOptions::default() };
    o.ciphers = p.ciphers.iter().map(|c| c.to_string()).collect();
    if !p.curves.is_empty() {
        o.curves = p.curves.iter().map(|c| Curve::parse(c)).collect::<Result<_, _>>()?;
    }
    Ok(o)
}

/// The server side of a handshake.
///
/// # Errors
/// What the TLS library or the socket says; the alert has been sent.
pub async fn accept(
    config: &AlpnServerConfig,
    identity: &Identity,
    socket: Socket,
) -> io::Result<(Stream, ClientProof)> {
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket).await?;
    let config = config.for_hello(&start.client_hello());
    let stream = start.into_stream(config).await?;
    let connection = stream.get_ref().1;
    let peer = VerifiedPeer::of_client(connection);
    let proof = ClientProof {
        principal: peer.as_ref().and_then(|p| p.uris().first()).map(|u| Arc::from(u.as_str())),
        local: identity.spiffe.as_ref().map(|s| Arc::from(s.to_string())),
        peer,
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
        version: match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "",
        },
        cipher: connection.negotiated_cipher_suite().map(|s| format!("{:?}", s.suite())).unwrap_or_default(),
    };
    Ok((Kind::Server(Box::new(stream)).into(), proof))
}

/// The client side of a handshake.
///
/// # Errors
/// What the TLS library or the socket says.
pub async fn connect(config: Arc<ClientConfig>, name: ServerName<'static>, socket: Socket) -> io::Result<Stream> {
    let stream = TlsConnector::from(config).connect(name, socket).await?;
    Ok(Kind::Client(Box::new(stream)).into())
}

/// A TLS failure in the words that people know from Envoy.
pub fn describe(error: &io::Error) -> String {
    use rustls::{Error, InvalidMessage};
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion)) => {
            "TLS_error:|268435703:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end".into()
        }
        Some(Error::InvalidCertificate(_)) => {
            "TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:TLS_error_end".into()
        }
        Some(other) => format!("TLS_error:|{other}:TLS_error_end"),
        None => error.to_string(),
    }
}
