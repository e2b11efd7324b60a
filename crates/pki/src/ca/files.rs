//! The authority's folder.
//!
//! Invariant: each file is either whole or absent, whatever moment the machine stops at, and only its owner reads it.
//! The key is written first and the certificate last, so that a half-made authority is finished with the same key and a
//! finished one is never replaced.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use rcgen::Issuer;

use super::{Authority, CaError, CaOptions, root};
use crate::certificate::{self, CertificateInfo};
use crate::identity::Identity;
use crate::key::PrivateKey;
use crate::pem;
use crate::trust::TrustBundle;

const CA_CERT: &str = "ca-cert.pem";
const CA_KEY: &str = "ca-key.pem";
const ROOT_CERT: &str = "root-cert.pem";
const CERT_CHAIN: &str = "cert-chain.pem";

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CaError + '_ {
    move |source| CaError::Io { path: path.display().to_string(), source }
}

pub(super) fn load_or_create(dir: &Path, options: CaOptions, now: SystemTime) -> Result<Authority, CaError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(io(dir))?;
    let (cert_path, key_path, root_path) = (dir.join(CA_CERT), dir.join(CA_KEY), dir.join(ROOT_CERT));

    let cert = read(&cert_path)?;
    let key = match read(&key_path)? {
        Some(text) => {
            fs::set_permissions(&key_path, Permissions::from_mode(0o600)).map_err(io(&key_path))?;
            PrivateKey::from_pem(&text).map_err(|e| CaError::from((&*key_path, e)))?
        }
        None if cert.is_some() => {
            return Err(CaError::File {
                path: key_path.display().to_string(),
                reason: format!("missing, although {CA_CERT} is there"),
            });
        }
        None => {
            let key = PrivateKey::generate(options.algorithm).map_err(|e| CaError::from((&*key_path, e)))?;
            write(&key_path, key.to_pem().as_bytes())?;
            key
        }
    };
    let pair = key.key_pair().map_err(|e| CaError::from((&*key_path, e)))?;
    let cert = match cert {
        Some(text) => text,
        None => {
            let text = root::self_sign(&pair, &options, now)?.into_bytes();
            // The bundle before the certificate: once there is a certificate, everything is there.
            write(&root_path, &text)?;
            write(&cert_path, &text)?;
            text
        }
    };
    assemble(dir, options, &cert, key)
}

fn assemble(dir: &Path, options: CaOptions, cert: &[u8], key: PrivateKey) -> Result<Authority, CaError> {
    let (cert_path, key_path, root_path) = (dir.join(CA_CERT), dir.join(CA_KEY), dir.join(ROOT_CERT));
    let chain_path = dir.join(CERT_CHAIN);
    let refuse = |path: &Path, reason: &str| CaError::File { path: path.display().to_string(), reason: reason.into() };

    let signer = pem::certificates(cert).map_err(|e| CaError::from((&*cert_path, e)))?;
    let [signer] = <[_; 1]>::try_from(signer).map_err(|_| refuse(&cert_path, "one certificate expected"))?;
    let info = CertificateInfo::read(&signer).map_err(|e| CaError::from((&*cert_path, e)))?;
    if !info.is_ca {
        return Err(refuse(&cert_path, "not a CA certificate"));
    }
    Identity::new(vec![signer.clone()], key.clone()).map_err(|e| CaError::from((&*key_path, e)))?;

    let roots = read(&root_path)?.ok_or_else(|| refuse(&root_path, "missing"))?;
    let roots = TrustBundle::from_pem(&roots).map_err(|e| CaError::from((&*root_path, e)))?;
    let mut path = vec![signer.clone()];
    if let Some(text) = read(&chain_path)? {
        for link in pem::certificates(&text).map_err(|e| CaError::from((&*chain_path, e)))? {
            if !path.contains(&link) {
                path.push(link);
            }
        }
    }
    // What a peer already holds is not sent.
    path.retain(|link| !roots.roots().contains(link));
    let linked = path.windows(2).all(|pair| matches!(pair, [low, high] if certificate::is_signed_by(low, high)));
    let anchored = match path.last() {
        None => true,
        Some(top) => roots.roots().iter().any(|root| certificate::is_signed_by(top, root)),
    };
    if !linked || !anchored {
        return Err(refuse(&cert_path, "does not lead to a root in root-cert.pem"));
    }

    let pair = key.key_pair().map_err(|e| CaError::from((&*key_path, e)))?;
    let issuer = Issuer::from_ca_cert_der(&signer, pair).map_err(|e| refuse(&cert_path, &e.to_string()))?;
    Ok(Authority {
        options,
        issuer,
        intermediates: path,
        roots,
        not_before: info.not_before,
        not_after: info.not_after,
        journal: Default::default(),
    })
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, CaError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(path)(e)),
    }
}

/// Writes a file that is whole or absent: temporary name, fsync, rename, fsync of the folder.
fn write(path: &Path, bytes: &[u8]) -> Result<(), CaError> {
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
