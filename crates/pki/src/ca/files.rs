//! The authority's folder at its first start: a self-signed root is made, and afterwards found again (spec §19.5).
//!
//! Invariant: the key is written first and the certificate last, so that a half-made authority is finished with the same key
//! and a finished one is never replaced.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::SystemTime;

use super::texts::{CA_CERT, CA_KEY, ROOT_CERT, SetTexts, io, private_folder, read, write};
use super::{CaError, CaOptions, CaSet, root};
use crate::key::PrivateKey;

/// The set in `dir`; a self-signed one is made when there is none.
pub(super) fn load_or_create(dir: &Path, options: &CaOptions, now: SystemTime) -> Result<CaSet, CaError> {
    private_folder(dir)?;
    let (cert_path, key_path, root_path) = (dir.join(CA_CERT), dir.join(CA_KEY), dir.join(ROOT_CERT));
    let key = read(&key_path)?;
    if key.is_some() {
        fs::set_permissions(&key_path, Permissions::from_mode(0o600)).map_err(io(&key_path))?;
    }
    if read(&cert_path)?.is_none() {
        let refuse = |e: crate::key::KeyError| CaError::from((&*key_path, e));
        let key = match key {
            Some(text) => PrivateKey::from_pem(&text).map_err(refuse)?,
            None => {
                let key = PrivateKey::generate(options.algorithm).map_err(refuse)?;
                write(&key_path, key.to_pem().as_bytes())?;
                key
            }
        };
        let text = root::self_sign(&key.key_pair().map_err(refuse)?, options, "", now)?.into_bytes();
        // The bundle before the certificate: once there is a certificate, everything is there.
        write(&root_path, &text)?;
        write(&cert_path, &text)?;
    }
    let texts = SetTexts::read(dir)?.ok_or_else(|| CaError::File {
        path: cert_path.display().to_string(),
        reason: "not there after it was written".to_owned(),
    })?;
    CaSet::check(&texts, now)
}
