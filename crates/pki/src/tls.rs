//! TLS configurations of rustls for mesh peers, control-plane servers and ordinary servers.
//!
//! Invariant: there is no way to a configuration that skips verification but the explicit [`ServerAuth::None`], and no
//! session is resumed unless the caller says under what trust ([`with_tickets`], [`with_sessions`]), so that every connection was judged
//! under the roots and names in force. Which policy applies to which connection is decided by the caller.

mod certificates;
mod library;
mod old;
mod options;
mod passed;
mod peer;
mod policy;
mod records;
mod resume;
mod verify;

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::{ClientHello, NoServerSessionStorage};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};

use crate::identity::Identity;
use crate::trust::TrustBundle;

pub use library::{Library, Step};
pub use options::{Curve, TlsOptions, TlsVersion};
pub use peer::{ServerEnd, VerifiedPeer};
pub use policy::{AcceptNames, PeerPolicy, SanMatch};
pub use records::{Broken, MAX_CONTENT, OVERHEAD, Opened, Records};
pub use resume::{Sessions, TicketKeys, TrustDigest, in_time, with_sessions, with_tickets};

/// Why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// No cipher suite is left for the allowed versions.
    #[error("none of the cipher suites {0:?} is supported")]
    Ciphers(Vec<String>),
    /// An unknown key exchange group.
    #[error("key exchange group {0:?} is not supported")]
    Curve(String),
    /// The least version is above the greatest.
    #[error("TLS version range is empty")]
    Versions,
    /// A pattern that does not compile.
    #[error("subject name pattern: {0}")]
    Pattern(String),
    /// rustls refused the combination.
    #[error("TLS configuration: {0}")]
    Rustls(String),
}

/// What a server wants of its clients.
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// No certificate is asked for.
    None,
    /// A SPIFFE certificate is verified if there is one.
    Optional(PeerPolicy),
    /// A SPIFFE certificate is needed.
    Require(PeerPolicy),
    /// Any certificate of these roots and names is verified if there is one.
    OptionalChain(PeerPolicy),
    /// Any certificate of these roots and names is needed.
    RequireChain(PeerPolicy),
    /// A certificate is asked for; whichever is shown lets the client in, and proves nothing but that it has the key.
    /// See [`VerifiedPeer::of_unverified_client`].
    Unverified {
        /// Without one there is no connection.
        required: bool,
    },
}

/// What a client wants of its server.
#[derive(Clone, Debug)]
pub enum ServerAuth {
    /// Chain, exactly one URI name that is a SPIFFE ID, and the policy's names. No DNS name.
    Spiffe(PeerPolicy),
    /// Chain and the policy's names, of whatever kind. No DNS name.
    Chain(PeerPolicy),
    /// Chain and the DNS name or address that was connected to, as browsers do.
    Dns {
        /// Trusted roots.
        roots: TrustBundle,
    },
    /// As [`ServerAuth::Dns`], and the rest of the policy too.
    Named(PeerPolicy),
    /// Nothing is verified (`insecureSkipVerify`).
    None,
}

/// A server's configuration: TLS with `identity`, clients per `auth`, protocols per `alpn` in order of preference.
///
/// A client that offers only other protocols is refused by rustls; see [`AlpnServerConfig`] for Envoy's behaviour.
///
/// # Errors
/// The options do not fit together.
pub fn server_config<A: AsRef<[u8]>>(
    identity: &Identity,
    auth: ClientAuth,
    alpn: &[A],
    options: &TlsOptions,
) -> Result<Arc<ServerConfig>, TlsError> {
    server_config_of([identity], auth, alpn, options)
}

/// As [`server_config`], with several certificates to choose from by name and kind of key.
///
/// # Errors
/// The options do not fit together.
pub fn server_config_of<'a, A: AsRef<[u8]>>(
    identities: impl IntoIterator<Item = &'a Identity>,
    auth: ClientAuth,
    alpn: &[A],
    options: &TlsOptions,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = options.provider()?;
    let algorithms = provider.signature_verification_algorithms;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&options.versions()?)
        .map_err(|e| TlsError::Rustls(e.to_string()))?;
    let client = |policy, spiffe, mandatory| {
        Arc::new(verify::ClientVerifier::new(verify::ChainVerifier::new(policy, spiffe, algorithms), mandatory))
    };
    let builder = match auth {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Unverified { required } => {
            builder.with_client_cert_verifier(Arc::new(verify::AnyClient::new(algorithms, required)))
        }
        ClientAuth::Optional(policy) => builder.with_client_cert_verifier(client(policy, true, false)),
        ClientAuth::Require(policy) => builder.with_client_cert_verifier(client(policy, true, true)),
        ClientAuth::OptionalChain(policy) => builder.with_client_cert_verifier(client(policy, false, false)),
        ClientAuth::RequireChain(policy) => builder.with_client_cert_verifier(client(policy, false, true)),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates::Certificates::new(identities)));
    // The order of preference is the configuration's, as Envoy's is.
    config.ignore_client_order = true;
    config.alpn_protocols = alpn.iter().map(|p| p.as_ref().to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.enable_secret_extraction = options.own_records;
    Ok(Arc::new(config))
}

/// A client's configuration: `identity` is shown when asked for, the server verified per `auth`.
///
/// # Errors
/// The options do not fit together.
pub fn client_config<A: AsRef<[u8]>>(
    identity: Option<&Identity>,
    auth: ServerAuth,
    alpn: &[A],
    options: &TlsOptions,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = options.provider()?;
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&options.versions()?)
        .map_err(|e| TlsError::Rustls(e.to_string()))?;
    let chain = |policy, spiffe| verify::ChainVerifier::new(policy, spiffe, algorithms);
    let check = match auth {
        ServerAuth::Spiffe(policy) => verify::ServerCheck::Policy(chain(policy, true)),
        ServerAuth::Chain(policy) => verify::ServerCheck::Policy(chain(policy, false)),
        ServerAuth::Dns { roots } => verify::ServerCheck::Name(chain(PeerPolicy::new(roots, Vec::new()), false)),
        ServerAuth::Named(policy) => verify::ServerCheck::Name(chain(policy, false)),
        ServerAuth::None => verify::ServerCheck::Nothing(algorithms),
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verify::ServerVerifier::new(check)));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_ref().to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = options.own_records;
    Ok(Arc::new(config))
}

/// A server configuration that goes on without a protocol when the client offers only unknown ones.
///
/// Envoy does so, and Istio's STRICT chains rely on it: they accept any mesh certificate whatever the client offers
/// (spec §2.6), while rustls by itself refuses with `no_application_protocol`.
#[derive(Clone, Debug)]
pub struct AlpnServerConfig {
    with: Arc<ServerConfig>,
    without: Arc<ServerConfig>,
}

impl AlpnServerConfig {
    /// Prepares both forms of `config`.
    pub fn new(config: Arc<ServerConfig>) -> Self {
        let mut without = ServerConfig::clone(&config);
        without.alpn_protocols.clear();
        Self { with: config, without: Arc::new(without) }
    }

    /// The form for the protocols a client offers.
    pub fn choose<'a>(&self, mut offered: impl Iterator<Item = &'a [u8]>) -> Arc<ServerConfig> {
        let common = offered.any(|offer| self.with.alpn_protocols.iter().any(|own| own == offer));
        Arc::clone(if common { &self.with } else { &self.without })
    }

    /// The form for a client hello.
    pub fn for_hello(&self, hello: &ClientHello<'_>) -> Arc<ServerConfig> {
        match hello.alpn() {
            Some(offered) => self.choose(offered),
            None => Arc::clone(&self.without),
        }
    }
}
