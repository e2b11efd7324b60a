//! The API's own certificate authority: its files, the serving certificate, the admin's certificate, and reading a
//! client's name out of one.
//!
//! Invariant: the authority's key is made once, kept 0600 and never leaves the folder; what it signs is for this API
//! only. It is not the mesh's authority.
//! What it leaves to others: handshakes (`serve`).

use super::files;
use crate::authorize::User;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Names the server is reached by, besides its addresses.
const SERVER_NAMES: [&str; 6] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "carrick",
];
/// File of the key that signs service accounts' tokens.
pub const TOKEN_KEY: &str = "service-account-key.pem";
/// Files that all servers of one cluster have to have in common.
pub const SHARED: [&str; 3] = ["api-ca-key.pem", "api-ca.pem", TOKEN_KEY];
const CA_YEARS: i64 = 10;
const LEAF_DAYS: i64 = 365;

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file's content is not what it should be, or signing failed.
    #[error("{0}")]
    Content(String),
}

impl From<rcgen::Error> for CertError {
    fn from(error: rcgen::Error) -> Self {
        Self::Content(error.to_string())
    }
}

/// The API's certificate authority.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub struct Leaf {
    /// Certificate, PEM.
    pub certificate_pem: String,
    /// Key, PKCS#8 PEM.
    pub key_pem: String,
    /// Certificate, DER.
    pub certificate: CertificateDer<'static>,
    /// Key, DER.
    pub key: PrivateKeyDer<'static>,
}

/// Reads a key of ours, or makes one.
///
/// # Errors
/// `CertError`.
pub fn load_or_create_key(path: &Path) -> Result<KeyPair, CertError> {
    let file = |source| CertError::File { path: path.to_owned(), source };
    match std::fs::read_to_string(path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|e| CertError::Content(format!("{}: {e}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            files::write(path, key.serialize_pem().as_bytes(), 0o600).map_err(file)?;
            Ok(key)
        }
        Err(error) => Err(file(error)),
    }
}

impl Authority {
    /// Reads `api-ca.pem` and `api-ca-key.pem` in `folder`, or makes them.
    ///
    /// # Errors
    /// `CertError`.
    pub fn load_or_create(folder: &Path, now: OffsetDateTime) -> Result<Self, CertError> {
        let key = load_or_create_key(&folder.join("api-ca-key.pem"))?;
        let path = folder.join("api-ca.pem");
        let file = |source| CertError::File { path: path.clone(), source };
        let certificate_pem = match std::fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let pem = authority(now)?.self_signed(&key)?.pem();
                files::write(&path, pem.as_bytes(), 0o644).map_err(file)?;
                pem
            }
            Err(error) => return Err(file(error)),
        };
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)?;
        Ok(Self { certificate_pem, issuer })
    }

    /// The authority's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's certificate, DER.
    ///
    /// # Errors
    /// `Content` when the file holds something else.
    pub fn certificate(&self) -> Result<CertificateDer<'static>, CertError> {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes()).map_err(|e| CertError::Content(e.to_string()))
    }

    /// A certificate to serve with, for our names and `addresses`.
    ///
    /// # Errors
    /// `CertError`.
    pub fn server(&self, addresses: &[IpAddr], now: OffsetDateTime) -> Result<Leaf, CertError> {
        let mut params = CertificateParams::new(SERVER_NAMES.map(str::to_owned).to_vec())?;
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        self.leaf(params, "carrick-apiserver", None, ExtendedKeyUsagePurpose::ServerAuth, now)
    }

    /// A client certificate for `user` in `group`.
    ///
    /// # Errors
    /// `CertError`.
    pub fn client(&self, user: &str, group: &str, now: OffsetDateTime) -> Result<Leaf, CertError> {
        self.leaf(CertificateParams::default(), user, Some(group), ExtendedKeyUsagePurpose::ClientAuth, now)
    }

    fn leaf(
        &self,
        mut params: CertificateParams,
        name: &str,
        group: Option<&str>,
        usage: ExtendedKeyUsagePurpose,
        now: OffsetDateTime,
    ) -> Result<Leaf, CertError> {
        let mut subject = DistinguishedName::new();
        if let Some(group) = group {
            subject.push(DnType::OrganizationName, group);
        }
        subject.push(DnType::CommonName, name);
        params.distinguished_name = subject;
        params.not_before = now - Duration::minutes(5);
        params.not_after = now + Duration::days(LEAF_DAYS);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }
}

fn authority(now: OffsetDateTime) -> Result<CertificateParams, CertError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "carrick-api-ca");
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = now - Duration::minutes(5);
    params.not_after = now + Duration::days(CA_YEARS * 365);
    Ok(params)
}

/// The user a verified client certificate names: common name, organizations as groups. `None` without a common name.
pub fn user_of(certificate: &[u8]) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push(super::AUTHENTICATED.into());
    let print = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let extra = BTreeMap::from([(super::CREDENTIAL.to_owned(), vec![format!("X509SHA256={print}")])]);
    (!name.is_empty()).then(|| User { name, uid: String::new(), groups, extra })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_kept_and_names_its_clients() {
        let folder = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let first = Authority::load_or_create(folder.path(), now).unwrap();
        let again = Authority::load_or_create(folder.path(), now).unwrap();
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        let leaf = again.client("jane", "dev", now).unwrap();
        let user = user_of(&leaf.certificate).unwrap();
        assert_eq!(
            (user.name.as_str(), user.groups),
            ("jane", vec!["dev".into(), super::super::AUTHENTICATED.to_owned()])
        );
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(folder.path().join("api-ca-key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for cut in 0..leaf.certificate.len() {
            let _never_panics = user_of(&leaf.certificate[..cut]);
        }
    }
}
