//! A machine's first certificate: a join token in, key and certificate in the machine's own folder out.
//!
//! Invariant: the token is shown to nobody who has not proven to be the mesh's control plane, by a root that the machine was given or by the
//! fingerprint of one; the key is made here and stays here. Cut off at any point, the same call may be made again: the key is kept from
//! before the token is shown, and the token is good for that key.

use carrick_pki::TrustBundle;
use carrick_pki::ca_service::{IstioCertificateRequest, PROFILE, ROOTS};
use carrick_pki::csr;
use carrick_pki::join::{Invitation, JoinTokenError, fingerprint};
use carrick_pki::tls::ServerAuth;
use carrick_pki::trust::TrustError;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::config::JoinConfig;
use crate::identity::{Authority, FetchError, Folder, FolderError, bearer, read_answer};

/// Why a machine could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// What is in the token file.
    #[error(transparent)]
    Token(#[from] JoinTokenError),
    /// Nothing to prove the control plane by.
    #[error(
        "nothing proves the control plane: give --root-cert FILE or --ca-fingerprint SHA256, or use the whole text that `carrick vm token \
         create` printed"
    )]
    Unproven,
    /// Nowhere to go.
    #[error("the token tells no address of the control plane: give --server HOST:15012")]
    NoServer,
    /// The control plane has another root.
    #[error(
        "{server} has no root with the fingerprint {wanted}: it is another mesh's, or somebody is in between; nothing was shown to it"
    )]
    Fingerprint {
        /// Where.
        server: String,
        /// What was expected.
        wanted: String,
    },
    /// Roots that are none.
    #[error("the mesh's roots: {0}")]
    Roots(#[from] TrustError),
    /// No certificate.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It cannot be kept.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// Joins. Gives what the machine was told of its WorkloadGroup: `{"spiffe", "serial", "notAfter", "server", "profile"}`.
///
/// # Errors
/// See [`JoinError`]; a retry is safe after any of them.
pub async fn join(config: &JoinConfig) -> Result<Value, JoinError> {
    let io = |path: &std::path::Path| {
        let path = path.display().to_string();
        move |source| JoinError::Io { path, source }
    };
    let text = Zeroizing::new(std::fs::read_to_string(&config.token_file).map_err(io(&config.token_file))?);
    let invitation = Invitation::parse(&text)?;
    let server = config.server.clone().or(invitation.server).ok_or(JoinError::NoServer)?;
    // What the person on the machine says counts more than what came with the token.
    let pinned = config.fingerprint.clone().or(invitation.fingerprint);
    let roots = match (&config.root_file, pinned) {
        (Some(file), _) => TrustBundle::from_pem(&std::fs::read(file).map_err(io(file))?)?,
        (None, Some(pinned)) => root_by_fingerprint(config, &server, pinned).await?,
        (None, None) => return Err(JoinError::Unproven),
    };
    let folder = Folder::new(&config.folder);
    let key = folder.joining_key(config.algorithm)?;
    let csr = csr::of(&key).map_err(FetchError::from)?;
    let mut request = tonic::Request::new(IstioCertificateRequest { csr, ..Default::default() });
    let header = bearer(&invitation.token.expose()).ok_or(JoinTokenError::Syntax)?;
    request.metadata_mut().insert("authorization", header);
    let authority = Authority { address: &server, server_name: &config.server_name, auth: ServerAuth::Dns { roots } };
    let response = authority.ask(request, None).await?;
    let told = response.metadata().get_bin(PROFILE).and_then(|value| value.to_bytes().ok());
    let profile: Value = told.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let (identity, roots) = read_answer(response.into_inner().cert_chain, key)?;
    folder.save(&identity, &roots)?;
    let not_after = identity.not_after.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(json!({
        "spiffe": identity.spiffe.as_ref().map(ToString::to_string),
        "serial": identity.serial,
        "notAfter": not_after,
        "server": server,
        "roots": roots.to_pem(),
        "profile": profile,
    }))
}

/// Asks whoever answers for the mesh's roots, showing nothing, and believes the one of this fingerprint.
async fn root_by_fingerprint(config: &JoinConfig, server: &str, wanted: String) -> Result<TrustBundle, JoinError> {
    let anybody = Authority { address: server, server_name: &config.server_name, auth: ServerAuth::None };
    let told = match anybody.ask(tonic::Request::new(IstioCertificateRequest::default()), None).await {
        Err(FetchError::Refused(status)) => status.metadata().get_bin(ROOTS).and_then(|value| value.to_bytes().ok()),
        Err(error) => return Err(error.into()),
        Ok(_) => None,
    };
    let told = told.map(|text| TrustBundle::from_pem(&text)).transpose()?.unwrap_or_default();
    let root = told.roots().iter().find(|root| fingerprint(root) == wanted).cloned();
    let root = root.ok_or(JoinError::Fingerprint { server: server.to_owned(), wanted })?;
    Ok(TrustBundle::new([root])?)
}
