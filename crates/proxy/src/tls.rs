//! TLS configurations for chains and clusters, made of their settings and the secrets of the moment, and the handshakes.
//!
//! Invariant: no secret, no connection. A configuration is kept until its identity or roots are replaced, so new
//! handshakes use the new ones and open connections stay. Sessions are taken up again between mesh peers only, and under the same
//! secrets, settings and quarantine only. What makes a peer acceptable is decided in `carrick-pki`.

use crate::inspect::{Verdict, client_hello};
use crate::io::socket::Socket;
use crate::io::stream::{Kind, Shown, Stream};
use crate::io::ties::{End, Quarantined, Ties};
use crate::io::tls::Handshake;
use crate::secrets::Secrets;
use carrick_pki::tls::{
    self as pki, AcceptNames, AlpnServerConfig, ClientAuth, Curve, Library, PeerPolicy, SanMatch, ServerAuth, Sessions,
    TicketKeys, TlsError, TlsOptions, TrustDigest, VerifiedPeer,
};
use carrick_pki::{CertificateInfo, Identity, Quarantine, TrustBundle};
use carrick_proxy_core::model::Name;
use carrick_proxy_core::model::cluster::TransportSocket;
use carrick_proxy_core::model::filter::UpstreamOverrides;
use carrick_proxy_core::model::listener::FilterChain;
use carrick_proxy_core::model::matcher::StringMatcher;
use carrick_proxy_core::model::tls::{
    CertificateSource, DownstreamTls, PeerSan, TlsParams, TlsVersion, TrustSource, UpstreamTls, Validation,
};
use rustls::ClientConfig;
use rustls::pki_types::{DnsName, ServerName};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The secret has not come yet.
    #[error("secret {0} is not available")]
    NoSecret(Name),
    /// A certificate or list in the configuration itself that cannot be used.
    #[error("{what}: {reason}")]
    Unusable {
        /// Which.
        what: &'static str,
        /// Why; never holds key bytes.
        reason: String,
    },
    /// Our own certificate is not to be used.
    #[error(transparent)]
    Quarantined(#[from] Quarantined),
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
    named: Named,
    local: Arc<Identity>,
    config: AlpnServerConfig,
    /// What a client must be to be named where everybody is let in.
    untrusted: Option<Arc<PeerPolicy>>,
}

/// The secrets a configuration was made of; the same ones make the same configuration.
#[derive(Debug, Default)]
struct Named {
    identities: Vec<Arc<Identity>>,
    trusts: Vec<Arc<TrustBundle>>,
    quarantine: Arc<Quarantine>,
}

impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        fn same<T>(a: &[Arc<T>], b: &[Arc<T>]) -> bool {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
        }
        same(&self.identities, &other.identities)
            && same(&self.trusts, &other.trusts)
            && Arc::ptr_eq(&self.quarantine, &other.quarantine)
    }
}

/// What a chain that terminates TLS does it with.
#[derive(Clone)]
pub struct ServerTls {
    config: AlpnServerConfig,
    /// Our own identity; the first of several.
    local: Arc<Identity>,
    untrusted: Option<Arc<PeerPolicy>>,
    require_sni: bool,
}

struct ClientEntry {
    _socket: Arc<TransportSocket>,
    named: Named,
    config: Arc<ClientConfig>,
    own: Option<Arc<Identity>>,
    verified: bool,
    /// Of this configuration; none where sessions are not taken up.
    sessions: Option<Arc<Sessions>>,
}

/// What a cluster's connections do TLS with.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    own: Option<Arc<Identity>>,
    /// The server is verified, so that its name means something.
    verified: bool,
    sessions: Option<Arc<Sessions>>,
}

/// A transport socket by its address, what a host or request puts in the place of its settings, the protocol offered, and whether the
/// server is told a name.
type ClientKey = (usize, UpstreamOverrides, &'static str, bool);

/// One worker's configurations.
pub struct TlsCache {
    secrets: watch::Receiver<Arc<Secrets>>,
    tickets: Option<Arc<TicketKeys>>,
    servers: RefCell<HashMap<usize, ServerEntry>>,
    clients: RefCell<HashMap<ClientKey, ClientEntry>>,
}

impl TlsCache {
    /// An empty one that reads `secrets`. `tickets` are all workers'; without them every handshake is a full one.
    pub fn new(secrets: watch::Receiver<Arc<Secrets>>, tickets: Option<Arc<TicketKeys>>) -> Self {
        TlsCache { secrets, tickets, servers: RefCell::default(), clients: RefCell::default() }
    }

    /// The secrets that are meant by name, all of them or none.
    fn named<'a>(
        &self,
        certificates: impl IntoIterator<Item = &'a CertificateSource>,
        validation: Option<&Validation>,
    ) -> Result<Named, Refused> {
        let secrets = Arc::clone(&self.secrets.borrow());
        let missing = |name: &Name| Refused::NoSecret(Arc::clone(name));
        let mut named = Named { quarantine: Arc::clone(&secrets.quarantine), ..Named::default() };
        for name in certificates.into_iter().filter_map(CertificateSource::secret_name) {
            named.identities.push(secrets.identity(name).cloned().ok_or_else(|| missing(name))?);
        }
        for name in validation.iter().flat_map(|v| v.secret_names()) {
            named.trusts.push(secrets.trust(name).cloned().ok_or_else(|| missing(name))?);
        }
        Ok(named)
    }

    /// What a chain terminates TLS with.
    ///
    /// # Errors
    /// A secret is not there, or something inline cannot be used.
    pub fn server(&self, chain: &Arc<FilterChain>, tls: &DownstreamTls) -> Result<ServerTls, Refused> {
        let named = self.named(tls.certificates.iter(), tls.validation.as_ref())?;
        let key = Arc::as_ptr(chain) as usize;
        let mut servers = self.servers.borrow_mut();
        let made = |e: &ServerEntry| ServerTls {
            config: e.config.clone(),
            local: Arc::clone(&e.local),
            untrusted: e.untrusted.clone(),
            require_sni: tls.require_sni,
        };
        if let Some(e) = servers.get(&key).filter(|e| e.named == named) {
            return Ok(made(e));
        }
        let identities = identities(&tls.certificates, &named)?;
        identities.iter().try_for_each(|own| usable(own, &named.quarantine))?;
        let local = identities.first().cloned();
        let local = local.ok_or_else(|| Refused::Unusable { what: "certificates", reason: "there is none".into() })?;
        let mut untrusted = None;
        let mut digest = None;
        let auth = match &tls.validation {
            Some(v) => {
                let policy = policy(v, &named, None)?;
                if takes_up(v, &policy) {
                    digest = Some(trust_digest(chain, tls, &identities, &policy));
                }
                match (is_mesh(v), tls.require_client_certificate) {
                    _ if v.accept_untrusted => {
                        untrusted = Some(Arc::new(policy));
                        ClientAuth::Unverified { required: tls.require_client_certificate }
                    }
                    (true, true) => ClientAuth::Require(policy),
                    (true, false) => ClientAuth::Optional(policy),
                    (false, true) => ClientAuth::RequireChain(policy),
                    (false, false) => ClientAuth::OptionalChain(policy),
                }
            }
            None => ClientAuth::None,
        };
        let alpn: Vec<&[u8]> = tls.alpn.iter().map(|a| a.as_bytes()).collect();
        let own = identities.iter().map(|identity| &**identity);
        let mut config = pki::server_config_of(own, auth, &alpn, &options(&tls.params)?)?;
        if let (Some(tickets), Some(digest)) = (&self.tickets, digest) {
            config = pki::with_tickets(config, tickets, digest);
        }
        let config = AlpnServerConfig::new(config);
        let entry = ServerEntry { _chain: Arc::clone(chain), named, local, config, untrusted };
        let out = made(&entry);
        servers.insert(key, entry);
        Ok(out)
    }

    /// The configuration of a cluster's socket, with what a request's filter state overrides. `protocol` is offered by ALPN where nothing
    /// else is, unless it is empty: what will be spoken, as Envoy does. `says_name`: the server is told a name.
    ///
    /// # Errors
    /// A secret is not there, or something inline cannot be used.
    pub fn client(
        &self,
        socket: &Arc<TransportSocket>,
        tls: &UpstreamTls,
        overrides: &UpstreamOverrides,
        protocol: &'static str,
        says_name: bool,
    ) -> Result<ClientTls, Refused> {
        let named = self.named(&tls.certificate, tls.validation.as_ref())?;
        let key = (Arc::as_ptr(socket) as usize, overrides.clone(), protocol, says_name);
        let mut clients = self.clients.borrow_mut();
        if let Some(e) = clients.get(&key).filter(|e| e.named == named) {
            let (config, sessions) = (Arc::clone(&e.config), e.sessions.clone());
            return Ok(ClientTls { config, own: e.own.clone(), verified: e.verified, sessions });
        }
        let own: Vec<CertificateSource> = tls.certificate.iter().cloned().collect();
        let identity = identities(&own, &named)?.into_iter().next();
        identity.iter().try_for_each(|own| usable(own, &named.quarantine))?;
        let by_name = tls.auto_sni_san_validation && says_name || tls.auto_san_of_requests && !protocol.is_empty();
        let mut sessions = None;
        let auth = match &tls.validation {
            Some(v) if v.accept_untrusted => ServerAuth::None,
            Some(v) => {
                let mut policy = policy(v, &named, overrides.sans.as_deref())?;
                if self.tickets.is_some() && takes_up(v, &policy) {
                    sessions = Some(Arc::default());
                }
                if is_mesh(v) {
                    ServerAuth::Spiffe(policy)
                } else if by_name && overrides.sans.is_none() {
                    // The name that was asked for takes the place of the names in the configuration.
                    policy.names = None;
                    ServerAuth::Named(policy)
                } else {
                    ServerAuth::Chain(policy)
                }
            }
            None => ServerAuth::None,
        };
        let offered: &[Name] = overrides.alpn.as_deref().unwrap_or(&tls.alpn);
        let mut alpn: Vec<&[u8]> = offered.iter().map(|a| a.as_bytes()).collect();
        if alpn.is_empty() && !protocol.is_empty() {
            alpn.push(protocol.as_bytes());
        }
        let config = pki::client_config(identity.as_deref(), auth, &alpn, &options(&tls.params)?)?;
        let verified = tls.validation.as_ref().is_some_and(|v| !v.accept_untrusted);
        let made = ClientTls { config, own: identity, verified, sessions };
        let ClientTls { config, own, verified, sessions } = made.clone();
        clients.insert(key, ClientEntry { _socket: Arc::clone(socket), named, config, own, verified, sessions });
        Ok(made)
    }

    /// Forgets configurations whose chain or cluster nobody else holds any more.
    pub fn sweep(&self) {
        self.servers.borrow_mut().retain(|_, e| Arc::strong_count(&e._chain) > 1);
        self.clients.borrow_mut().retain(|_, e| Arc::strong_count(&e._socket) > 1);
    }
}

/// The certificates in the order of the configuration; those by name are taken from `named`, which has them in the same order.
fn identities(sources: &[CertificateSource], named: &Named) -> Result<Vec<Arc<Identity>>, Refused> {
    let mut known = named.identities.iter();
    let mut all = Vec::with_capacity(sources.len());
    for source in sources {
        match source {
            CertificateSource::Secret(_) => all.extend(known.next().cloned()),
            CertificateSource::Inline(pair) => {
                let identity = Identity::from_pem(&pair.chain, &pair.key)
                    .map_err(|e| Refused::Unusable { what: "certificate", reason: e.to_string() })?;
                all.push(Arc::new(identity.with_ocsp(pair.ocsp.to_vec())));
            }
        }
    }
    Ok(all)
}

/// A certificate of ours that nobody would accept is not shown either.
fn usable(own: &Identity, list: &Quarantine) -> Result<(), Quarantined> {
    match list.finds(own.spiffe.as_ref().map(|s| s.as_str()), &own.serial) {
        Some(entry) => Err(Quarantined(entry.to_owned())),
        None => Ok(()),
    }
}

/// Our end of a connection.
fn own_end(own: &Identity) -> End {
    End { uris: own.spiffe.iter().map(ToString::to_string).collect(), serial: own.serial.clone() }
}

/// Whom a validation accepts. Without roots only pins are left, which is decided at decoding.
fn policy(v: &Validation, named: &Named, replaced: Option<&[Name]>) -> Result<PeerPolicy, Refused> {
    let unusable = |what| move |e: carrick_pki::trust::TrustError| Refused::Unusable { what, reason: e.to_string() };
    let mut bundle = named.trusts.iter().fold(TrustBundle::default(), |all, one| all.union(one));
    if let Some(TrustSource::Inline(pem)) = &v.trust {
        bundle = bundle.union(&TrustBundle::from_pem(pem).map_err(unusable("trusted_ca"))?);
    }
    if let Some(TrustSource::Inline(pem)) = &v.revocations {
        bundle = bundle.with_revocations(pem).map_err(unusable("crl"))?;
    }
    let sans = replaced.unwrap_or_default().iter().map(|n| SanMatch::Exact(n.to_string())).collect();
    let mut policy = PeerPolicy::new(bundle, sans);
    policy.names = match replaced {
        None if !v.sans.is_empty() => Some(Arc::new(Names(v.clone()))),
        _ => None,
    };
    policy.hashes = v.hashes.to_vec();
    policy.keys = v.keys.to_vec();
    policy.chain = v.trust.is_some();
    policy.max_intermediates = v.max_intermediates.and_then(|n| usize::try_from(n).ok());
    policy.revoke_leaf_only = v.revoke_leaf_only;
    policy.quarantine = Arc::clone(&named.quarantine);
    Ok(policy)
}

/// Whether sessions are taken up again under a policy: between mesh peers, where no list says who is revoked until when.
fn takes_up(v: &Validation, policy: &PeerPolicy) -> bool {
    is_mesh(v) && !v.accept_untrusted && !policy.roots.has_revocations()
}

/// Everything that a server's sessions depend on. Settings count by their debug form, which has all of them; certificates, roots and
/// quarantine by their bytes.
fn trust_digest(
    chain: &FilterChain,
    tls: &DownstreamTls,
    identities: &[Arc<Identity>],
    policy: &PeerPolicy,
) -> TrustDigest {
    let settings = format!("{}\n{:?}\n{:?}", chain.name, tls.validation, tls.params);
    let required = format!("{} {}", tls.require_client_certificate, tls.require_sni);
    let mut parts = vec![settings.into_bytes(), required.into_bytes(), policy.quarantine.to_text().into_bytes()];
    let certificates = identities.iter().flat_map(|identity| identity.chain.iter());
    parts.extend(certificates.map(|certificate| certificate.to_vec()));
    parts.extend(policy.roots.parts());
    TrustDigest::of(parts.iter().map(Vec::as_slice))
}

/// The names of a validation, in the words of the configuration.
#[derive(Debug)]
struct Names(Validation);

impl AcceptNames for Names {
    fn accepts(&self, info: &CertificateInfo) -> bool {
        let texts = info.uris.iter().map(|n| PeerSan::Uri(n)).chain(info.dns.iter().map(|n| PeerSan::Dns(n)));
        let texts = texts.chain(info.emails.iter().map(|n| PeerSan::Email(n)));
        let all: Vec<PeerSan<'_>> = texts.chain(info.ips.iter().map(|ip| PeerSan::Ip(*ip))).collect();
        self.0.accepts(&all)
    }
}

/// Mesh peers have exactly one SPIFFE name; file and gateway certificates need not.
fn is_mesh(v: &Validation) -> bool {
    let spiffe = |m: &StringMatcher| match m {
        StringMatcher::Exact(t) | StringMatcher::Prefix(t) => t.value.starts_with("spiffe://"),
        _ => false,
    };
    v.trust == Some(TrustSource::Secret("ROOTCA".into()))
        || (!v.sans.is_empty() && v.sans.iter().all(|s| spiffe(&s.matcher)))
}

fn options(p: &TlsParams) -> Result<TlsOptions, TlsError> {
    let version = |v| match v {
        TlsVersion::V12 => pki::TlsVersion::V1_2,
        TlsVersion::V13 => pki::TlsVersion::V1_3,
    };
    let mut o = TlsOptions {
        min_version: version(p.min),
        max_version: version(p.max),
        own_records: true,
        ..TlsOptions::default()
    };
    o.ciphers = p.ciphers.iter().map(|c| c.to_string()).collect();
    if !p.curves.is_empty() {
        o.curves = p.curves.iter().map(|c| Curve::parse(c)).collect::<Result<_, _>>()?;
    }
    Ok(o)
}

/// What the first bytes of a client are.
enum Begins {
    /// A hello.
    Hello(client_hello::ClientHello),
    /// Nothing that the library may take; the alert for it.
    Refused(u8),
    /// Whatever the library makes of it.
    Other,
}

fn begins(seen: &[u8]) -> Option<Begins> {
    if let Some(alert) = client_hello::refusal(seen) {
        return Some(Begins::Refused(alert));
    }
    match client_hello::parse(seen) {
        Verdict::Yes(hello) => Some(Begins::Hello(hello)),
        Verdict::NeedMore => None,
        Verdict::No | Verdict::TooLarge => Some(Begins::Other),
    }
}

/// The server side of a handshake.
///
/// # Errors
/// What the TLS library or the socket says; the alert has been sent.
pub async fn accept(tls: &ServerTls, socket: Socket, ties: &Ties) -> io::Result<(Stream, ClientProof)> {
    let refused = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut handshake = Handshake::new(socket);
    let hello = match handshake.look(begins).await? {
        None => return Err(io::ErrorKind::UnexpectedEof.into()),
        Some(Begins::Hello(hello)) => hello,
        Some(Begins::Other) => client_hello::ClientHello::default(),
        Some(Begins::Refused(alert)) => {
            const FATAL: u8 = 2;
            handshake.socket().write_all(&[21, 3, 1, 0, 2, FATAL, alert]).await?;
            return Err(refused("TLS_error:|ClientHello refused:TLS_error_end"));
        }
    };
    let named = hello.server_name.as_deref().is_some_and(|name| DnsName::try_from(name).is_ok());
    if tls.require_sni && !named {
        return Err(refused("TLS_error:|no server name:TLS_error_end"));
    }
    let config = tls.config.choose(hello.alpn.iter().map(String::as_bytes));
    let (stream, proof) = handshake.finish(library(Library::server(config))?, |library| prove(tls, library)).await?;
    let shown = proof.peer.as_ref().map(|p| End { uris: p.uris().to_vec(), serial: p.certificate().serial.clone() });
    let stream = Stream::from(Kind::Tls(Box::new(stream)));
    // The list may have changed during the handshake.
    let stream = stream.tied(ties, [shown.unwrap_or_default(), own_end(&tls.local)]).map_err(io::Error::other)?;
    Ok((stream, proof))
}

fn library(made: Result<Library, rustls::Error>) -> io::Result<Library> {
    made.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// What a finished handshake has shown of the client.
fn prove(tls: &ServerTls, library: &Library) -> io::Result<ClientProof> {
    let Library::Server(connection) = library else { return Err(io::ErrorKind::InvalidInput.into()) };
    judge_in_time(connection)?;
    let peer = match &tls.untrusted {
        None => VerifiedPeer::of_client(&**connection),
        Some(policy) => VerifiedPeer::of_unverified_client(&**connection, policy),
    };
    Ok(ClientProof {
        principal: peer.as_ref().and_then(|p| p.uris().first()).map(|u| Arc::from(u.as_str())),
        local: tls.local.spiffe.as_ref().map(|s| Arc::from(s.to_string())),
        peer,
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
        version: version(connection.protocol_version()),
        cipher: connection.negotiated_cipher_suite().map(|s| format!("{:?}", s.suite())).unwrap_or_default(),
    })
}

/// A session's certificates may have come to their end since: a full handshake would be refused now too.
fn judge_in_time(connection: &rustls::CommonState) -> io::Result<()> {
    if pki::in_time(connection, SystemTime::now()) {
        return Ok(());
    }
    let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
    Err(io::Error::new(io::ErrorKind::InvalidData, expired))
}

/// The client side of a handshake. `address` is where `socket` leads.
///
/// # Errors
/// What the TLS library or the socket says.
pub async fn connect(
    tls: ClientTls,
    name: ServerName<'static>,
    address: SocketAddr,
    socket: Socket,
    ties: &Ties,
) -> io::Result<Stream> {
    let config = match &tls.sessions {
        Some(sessions) => pki::with_sessions(&tls.config, sessions, address),
        None => tls.config,
    };
    let judge = |library: &Library| {
        let state = library.state();
        judge_in_time(state)?;
        let leaf = state.peer_certificates().and_then(<[_]>::first).filter(|_| tls.verified);
        Ok((leaf.and_then(|leaf| CertificateInfo::known(leaf).ok()), version(state.protocol_version())))
    };
    let (stream, (leaf, version)) =
        Handshake::new(socket).finish(library(Library::client(config, name))?, judge).await?;
    let peer = leaf.as_ref().and_then(|leaf| leaf.uris.first()).map(|uri| Arc::from(uri.as_str()));
    let local = tls.own.as_ref().and_then(|own| own.spiffe.as_ref()).map(|id| Arc::from(id.as_str()));
    let shown = Shown { peer, local, version };
    let peer = leaf.map(|leaf| End { uris: leaf.uris.clone(), serial: leaf.serial.clone() }).unwrap_or_default();
    let own = tls.own.as_deref().map(own_end).unwrap_or_default();
    let mut stream = Stream::from(Kind::Tls(Box::new(stream))).tied(ties, [peer, own]).map_err(io::Error::other)?;
    stream.shown = Some(Arc::new(shown));
    Ok(stream)
}

fn version(version: Option<rustls::ProtocolVersion>) -> &'static str {
    match version {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    }
}

/// A TLS failure in the words that people know from Envoy (BoringSSL's, with its numbers).
pub fn describe(error: &io::Error) -> String {
    use rustls::{CertificateError as C, Error, InvalidMessage, PeerIncompatible as P};
    let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<Error>()) else { return error.to_string() };
    let words = |number: u32, name: &str, more: &str| {
        let more = if more.is_empty() { String::new() } else { format!(":{more}") };
        format!("TLS_error:|{number}:SSL routines:OPENSSL_internal:{name}{more}:TLS_error_end")
    };
    let unverified = |why: &str| words(268_435_581, "CERTIFICATE_VERIFY_FAILED", &format!("verify cert failed: {why}"));
    let x509 = |why: &str| unverified(&format!("X509_verify_cert: certificate verification error at depth 0: {why}"));
    const CRL: &str = "certificate revocation check against provided CRLs failed";
    match tls {
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            words(268_435_703, "WRONG_VERSION_NUMBER", "")
        }
        Error::NoCertificatesPresented => {
            let more = "peer did not provide required client certificate";
            words(268_435_648, "PEER_DID_NOT_RETURN_A_CERTIFICATE", more)
        }
        Error::InvalidCertificate(why) => match why {
            C::Expired | C::ExpiredContext { .. } => x509("certificate has expired"),
            C::NotValidYet | C::NotValidYetContext { .. } => x509("certificate is not yet valid"),
            C::UnknownIssuer => x509("unable to get local issuer certificate"),
            C::Revoked => x509(&format!("{CRL}: certificate revoked")),
            C::UnknownRevocationStatus => x509(&format!("{CRL}: unable to get certificate CRL")),
            C::ExpiredRevocationList | C::ExpiredRevocationListContext { .. } => {
                x509(&format!("{CRL}: CRL has expired"))
            }
            C::InvalidPurpose | C::InvalidPurposeContext { .. } => x509("unsuitable certificate purpose"),
            C::Other(why) => unverified(&why.to_string()),
            other => unverified(&other.to_string()),
        },
        Error::PeerIncompatible(
            P::SupportedVersionsExtensionRequired
            | P::Tls12NotOffered
            | P::Tls12NotOfferedOrEnabled
            | P::ServerDoesNotSupportTls12Or13
            | P::ServerTlsVersionIsDisabledByOurConfig,
        ) => words(268_435_696, "UNSUPPORTED_PROTOCOL", ""),
        Error::PeerIncompatible(P::NoCipherSuitesInCommon | P::NoKxGroupsInCommon | P::NoSignatureSchemesInCommon) => {
            words(268_435_640, "NO_SHARED_CIPHER", "")
        }
        other => format!("TLS_error:|{other}:TLS_error_end"),
    }
}
