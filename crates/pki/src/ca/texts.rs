//! A signing set as it is kept: four or five texts in a folder or a Secret, by Istio's names or those of `kubernetes.io/tls`
//! (spec §19.6).
//!
//! The key's text may be a PKCS#11 URI (RFC 7512) instead: then the key is in a token.
//!
//! Invariant: each file is either whole or absent, whatever moment the machine stops at, and only its owner reads it. Texts
//! are not understood here, only found, named and kept.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use zeroize::Zeroizing;

use super::key::TOKEN_SCHEME;
use super::{CaError, CaOptions, root};
use crate::certificate::sha256;
use crate::key::PrivateKey;

pub(super) const CA_CERT: &str = "ca-cert.pem";
pub(super) const CA_KEY: &str = "ca-key.pem";
pub(super) const ROOT_CERT: &str = "root-cert.pem";
const CERT_CHAIN: &str = "cert-chain.pem";
const CA_CRL: &str = "ca-crl.pem";
const TLS_CERT: &str = "tls.crt";
const TLS_KEY: &str = "tls.key";
const TLS_CA: &str = "ca.crt";

/// One of the texts, with where it came from.
pub struct SetText {
    /// The file's path, or the Secret with its key.
    pub place: String,
    /// The file's name alone.
    pub name: &'static str,
    /// What is in it.
    pub bytes: Zeroizing<Vec<u8>>,
}

impl SetText {
    pub(super) fn wrong(&self, reason: impl ToString) -> CaError {
        CaError::File { path: self.place.clone(), reason: reason.to_string() }
    }
}

/// All texts of one set.
pub struct SetTexts {
    /// The signing certificate.
    pub cert: SetText,
    /// Its key.
    pub key: SetText,
    /// What leads from it to a root.
    pub chain: Option<SetText>,
    /// The roots.
    pub roots: SetText,
    /// A revocation list.
    pub crl: Option<SetText>,
    /// The chain follows the signing certificate in its own text.
    pub(super) chain_in_cert: bool,
}

impl std::fmt::Debug for SetTexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SetTexts({})", self.cert.place)
    }
}

impl SetTexts {
    /// The texts in a folder; `None` when it has neither form of them.
    ///
    /// # Errors
    /// Some are there and others missing, or they cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>, CaError> {
        let find = |name: &'static str| Ok(read(&dir.join(name))?.map(Zeroizing::new));
        Self::find(&|name| dir.join(name).display().to_string(), &find)
    }

    /// The texts in a folder, with `uri` in the place of the key, whether the folder has one or not.
    ///
    /// # Errors
    /// Some are there and others missing, or they cannot be read.
    pub fn read_with_token(dir: &Path, uri: &str) -> Result<Option<Self>, CaError> {
        let find = |name: &'static str| {
            let kept = read(&dir.join(name))?.map(Zeroizing::new);
            let of_token = || Zeroizing::new(uri.as_bytes().to_vec());
            Ok(if matches!(name, CA_KEY | TLS_KEY) { Some(of_token()) } else { kept })
        };
        // The URI alone is no set.
        if read(&dir.join(CA_CERT))?.is_none() && read(&dir.join(TLS_CERT))?.is_none() {
            return Ok(None);
        }
        Self::find(
            &|name| {
                if matches!(name, CA_KEY | TLS_KEY) { without_pin(uri) } else { dir.join(name).display().to_string() }
            },
            &find,
        )
    }

    /// Where the key is, if it is in a token.
    pub fn token_uri(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.key.bytes).ok()?.trim();
        text.starts_with(TOKEN_SCHEME).then_some(text)
    }

    /// The texts in a Secret's data; `None` when it has neither form of them. `place` names the Secret.
    ///
    /// # Errors
    /// Some are there and others missing.
    pub fn of_secret(place: &str, data: &BTreeMap<String, Vec<u8>>) -> Result<Option<Self>, CaError> {
        let find = |name: &'static str| {
            let text = data.get(name).filter(|text| !text.is_empty());
            Ok(text.map(|text| Zeroizing::new(text.clone())))
        };
        Self::find(&|name| format!("{place}: {name}"), &find)
    }

    fn find(
        place: &dyn Fn(&str) -> String,
        find: &dyn Fn(&'static str) -> Result<Option<Zeroizing<Vec<u8>>>, CaError>,
    ) -> Result<Option<Self>, CaError> {
        let text =
            |name: &'static str| Ok::<_, CaError>(find(name)?.map(|bytes| SetText { place: place(name), name, bytes }));
        let (own, tls) = (find(CA_CERT)?.is_some(), find(TLS_CERT)?.is_some());
        let (names, tls) = match (own || (!tls && find(CA_KEY)?.is_some()), tls) {
            (true, _) => ([CA_CERT, CA_KEY, ROOT_CERT], false),
            (false, true) => ([TLS_CERT, TLS_KEY, TLS_CA], true),
            (false, false) => return Ok(None),
        };
        let [first, ..] = names;
        let needed = |name: &'static str| {
            let missing = || CaError::File { path: place(name), reason: format!("missing, although {first} is there") };
            text(name)?.ok_or_else(missing)
        };
        let [cert, key, roots] = names;
        Ok(Some(Self {
            cert: needed(cert)?,
            key: needed(key)?,
            chain: if tls { None } else { text(CERT_CHAIN)? },
            roots: needed(roots)?,
            crl: text(CA_CRL)?,
            chain_in_cert: tls,
        }))
    }

    /// Tells these texts from others.
    pub fn digest(&self) -> [u8; 32] {
        let optional = |text: &Option<SetText>| text.as_ref().map_or([0; 32], |text| sha256(&text.bytes));
        let parts = [
            sha256(&self.cert.bytes),
            sha256(&self.key.bytes),
            sha256(&self.roots.bytes),
            optional(&self.chain),
            optional(&self.crl),
        ];
        sha256(&parts.concat())
    }

    /// A new self-signed set. `name` is added to the trust domain in its common name, so that an older root is another one
    /// by name too.
    ///
    /// # Errors
    /// No key could be made.
    pub fn self_signed(options: &CaOptions, name: &str, now: SystemTime) -> Result<Self, CaError> {
        let fail = |e: crate::key::KeyError| CaError::Sign(e.to_string());
        let key = PrivateKey::generate(options.algorithm).map_err(fail)?;
        let cert = root::self_sign(&key.key_pair().map_err(fail)?, options, name, now)?.into_bytes();
        let text = |name: &'static str, bytes: Vec<u8>| SetText {
            place: format!("the new root: {name}"),
            name,
            bytes: Zeroizing::new(bytes),
        };
        Ok(Self {
            cert: text(CA_CERT, cert.clone()),
            key: text(CA_KEY, key.to_pem().into_bytes()),
            chain: None,
            roots: text(ROOT_CERT, cert),
            crl: None,
            chain_in_cert: false,
        })
    }

    /// Writes all texts into a folder, the certificate last: once there is a certificate, everything is there.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), CaError> {
        private_folder(dir)?;
        let optional = self.chain.iter().chain(&self.crl);
        for text in [&self.key, &self.roots].into_iter().chain(optional).chain([&self.cert]) {
            write(&dir.join(text.name), &text.bytes)?;
        }
        if self.crl.is_none() {
            let path = dir.join(CA_CRL);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(io(&path)(e)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A PKCS#11 URI without its query, where the PIN may be.
pub fn without_pin(uri: &str) -> String {
    uri.split('?').next().unwrap_or_default().trim().to_owned()
}

pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CaError + '_ {
    move |source| CaError::Io { path: path.display().to_string(), source }
}

/// Makes a folder that only its owner enters.
///
/// # Errors
/// It cannot be made.
pub fn private_folder(dir: &Path) -> Result<(), CaError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(io(dir))
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, CaError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(path)(e)),
    }
}

/// Writes a file that is whole or absent and that only its owner reads: temporary name, fsync, rename, fsync of the folder.
///
/// # Errors
/// It cannot be written; what was there before stays then.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), CaError> {
    let temporary = path.with_extension("tmp");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(io(&temporary)(e)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(io(&temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io(&temporary))?;
    fs::rename(&temporary, path).map_err(io(path))?;
    if let Some(dir) = path.parent() {
        fs::File::open(dir).and_then(|d| d.sync_all()).map_err(io(dir))?;
    }
    Ok(())
}
