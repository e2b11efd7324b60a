//! The certificates of people outside of the mesh: an authority, servers and clients, good ones and bad ones, as files.
//!
//! Invariant: nothing here is trusted by a mesh unless a manifest says so; keys are made anew for every run. The
//! files are readable by all, since sidecars (which are another user) mount them.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RevocationReason,
    RevokedCertParams, RsaKeySize, SanType, SerialNumber, SigningKey, date_time_ymd,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ocsp;

/// Where the files go, and whom they name.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// The folder.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Names of the server.
    #[arg(long = "name", default_value = "server.example.com", value_name = "HOST")]
    names: Vec<String>,
}

/// Fills the folder.
///
/// # Errors
/// When a file cannot be written.
pub fn run(options: &Options) -> Result<()> {
    let names: Vec<&str> = options.names.iter().map(String::as_str).collect();
    fill(&options.dir, &names)
}

/// An authority whose key stays in memory.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate says.
#[derive(Debug, Clone, Default)]
pub struct Leaf<'a> {
    /// Common name.
    pub name: &'a str,
    /// DNS names.
    pub dns: &'a [&'a str],
    /// URI names, as SPIFFE has them.
    pub uris: &'a [&'a str],
    /// Addresses.
    pub addresses: &'a [IpAddr],
    /// Valid only in a year long ago.
    pub expired: bool,
    /// Serial number, for the list of revoked ones.
    pub serial: u64,
    /// With an RSA key instead of one of an elliptic curve.
    pub rsa: bool,
}

impl Authority {
    /// A new self-signed authority of that common name.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// An authority below this one, also as a folder that `carrick up` takes for its own (`ca`).
    ///
    /// # Errors
    /// When the library cannot sign it or a file cannot be written.
    pub fn intermediate(&self, dir: &Path, name: &str) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| dir.display().to_string())?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let secret = key.serialize_pem();
        let own = Self { issuer: CertifiedIssuer::signed_by(params, key, &self.issuer)? };
        for (file, text) in [("ca-cert.pem", own.pem()), ("ca-key.pem", secret), ("root-cert.pem", self.pem())] {
            let path = dir.join(file);
            std::fs::write(&path, text).with_context(|| path.display().to_string())?;
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        }
        Ok(own)
    }

    /// The authority's certificate.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Issues `<file>.pem` (the chain) and `<file>-key.pem` in a folder.
    ///
    /// # Errors
    /// When a name cannot be in a certificate or a file cannot be written.
    pub fn issue(&self, dir: &Path, file: &str, leaf: &Leaf<'_>) -> Result<()> {
        let names: Vec<String> = leaf.dns.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, leaf.name);
        for uri in leaf.uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
        }
        params.subject_alt_names.extend(leaf.addresses.iter().copied().map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        if leaf.serial > 0 {
            params.serial_number = Some(SerialNumber::from(leaf.serial));
        }
        if leaf.expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = match leaf.rsa {
            false => KeyPair::generate()?,
            true => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?,
        };
        let certificate = params.signed_by(&key, &self.issuer)?;
        write(dir, &format!("{file}.pem"), format!("{}{}", certificate.pem(), self.pem()))?;
        write(dir, &format!("{file}-key.pem"), key.serialize_pem())
    }

    /// Says that the first certificate of a file is good: an OCSP response, DER.
    ///
    /// # Errors
    /// When there is no certificate of this authority in the file, or the library cannot sign.
    pub fn good(&self, pem: &str) -> Result<Vec<u8>> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes())?;
        let (_, leaf) = X509Certificate::from_der(&pem.contents)?;
        let (_, own) = X509Certificate::from_der(self.issuer.as_ref().der())?;
        let of = ocsp::Good {
            issuer: own.subject().as_raw(),
            key: &own.public_key().subject_public_key.data,
            serial: leaf.raw_serial(),
        };
        Ok(ocsp::good(&of, |data| self.issuer.key().sign(data))?)
    }

    /// The list of revoked serial numbers, valid for long.
    ///
    /// # Errors
    /// When the library cannot sign it.
    pub fn revoked(&self, serials: &[u64]) -> Result<String> {
        self.revocations(serials.iter().map(|serial| SerialNumber::from(*serial)))
    }

    /// The same by serial numbers of any length.
    ///
    /// # Errors
    /// When the library cannot sign it.
    pub fn revocations(&self, serials: impl IntoIterator<Item = SerialNumber>) -> Result<String> {
        let entry = |serial_number: SerialNumber| RevokedCertParams {
            serial_number,
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.into_iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }
}

/// The serial number of `revoked.pem`.
const REVOKED: u64 = 4711;

/// Fills a folder: `ca.pem`, `crl.pem`, `other-ca.pem`, `server.ocsp` (a response that says `server.pem` is good), and with a
/// `-key.pem` each: `server`, `server-rsa`, `client`, `wrong-name` (a client of the same authority), `impostor` (of that authority, with
/// an identity of the mesh), `expired`, `revoked`, `stranger` (a client of the other authority).
///
/// # Errors
/// When a file cannot be written.
pub fn fill(dir: &Path, server_names: &[&str]) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let (ours, other) = (Authority::new("Partner Root")?, Authority::new("Other Root")?);
    write(dir, "ca.pem", ours.pem())?;
    write(dir, "other-ca.pem", other.pem())?;
    write(dir, "crl.pem", ours.revoked(&[REVOKED])?)?;
    let uris = &["spiffe://partner.example.com/client"];
    let client = Leaf { name: "client", dns: &["client.example.com"], uris, ..Leaf::default() };
    let server =
        Leaf { name: "server", dns: server_names, uris: &["spiffe://partner.example.com/server"], ..Leaf::default() };
    ours.issue(dir, "server", &server)?;
    ours.issue(dir, "server-rsa", &Leaf { rsa: true, ..server })?;
    write(dir, "server.ocsp", ours.good(&std::fs::read_to_string(dir.join("server.pem"))?)?)?;
    ours.issue(dir, "client", &client)?;
    let mallory =
        Leaf { dns: &["mallory.example.com"], uris: &["spiffe://partner.example.com/mallory"], ..client.clone() };
    ours.issue(dir, "wrong-name", &mallory)?;
    let impostor = Leaf { uris: &["spiffe://cluster.local/ns/lab/sa/impostor"], ..client.clone() };
    ours.issue(dir, "impostor", &impostor)?;
    ours.issue(dir, "expired", &Leaf { expired: true, ..client.clone() })?;
    ours.issue(dir, "revoked", &Leaf { serial: REVOKED, ..client.clone() })?;
    other.issue(dir, "stranger", &client)
}

/// Writes a file in one step, readable by everybody.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
    let (new, path) = (dir.join(format!(".{name}.new")), dir.join(name));
    std::fs::write(&new, content).with_context(|| new.display().to_string())?;
    std::fs::rename(&new, &path).with_context(|| path.display().to_string())
}
