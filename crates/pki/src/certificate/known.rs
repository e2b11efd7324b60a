//! Certificates that were accepted, read already: a mesh sees the same few with every connection.
//!
//! Invariant: what is found is exactly what reading the same bytes anew would give, since all of them are compared. Nothing is kept of
//! a certificate before a verifier has accepted its chain, so that strangers cannot fill this. It says nothing about
//! whom to accept now.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use rustls_pki_types::CertificateDer;

use super::{CertificateError, CertificateInfo};

/// Certificates kept, each of one or two KB; when there are more, all are forgotten.
const MOST: usize = 512;

type ByBytes = HashMap<Box<[u8]>, Arc<CertificateInfo>>;

static KNOWN: LazyLock<RwLock<ByBytes>> = LazyLock::new(RwLock::default);

impl CertificateInfo {
    /// What [`CertificateInfo::read`] gives, from memory where a verifier has accepted the certificate before.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn known(der: &CertificateDer<'_>) -> Result<Arc<Self>, CertificateError> {
        let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner).get(der.as_ref()).cloned();
        known.map_or_else(|| Self::read(der).map(Arc::new), Ok)
    }

    /// Keeps what was read of a certificate whose chain has been accepted.
    pub(crate) fn keep(self: &Arc<Self>, der: &CertificateDer<'_>) {
        let mut all = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(der.as_ref().into(), Arc::clone(self));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_found_by_all_of_its_bytes() {
        let made = rcgen::generate_simple_self_signed(["a.example.com".to_owned()]).unwrap();
        let der = made.cert.der();
        let info = CertificateInfo::known(der).unwrap();
        assert_eq!(*info, CertificateInfo::read(der).unwrap());
        assert!(!Arc::ptr_eq(&info, &CertificateInfo::known(der).unwrap()), "nobody has accepted it");
        info.keep(der);
        assert!(Arc::ptr_eq(&info, &CertificateInfo::known(der).unwrap()));
        for at in [0, der.len() / 2, der.len() - 1] {
            let mut other = der.to_vec();
            other[at] ^= 1;
            let other = CertificateDer::from(other);
            assert_eq!(CertificateInfo::known(&other).ok().as_deref(), CertificateInfo::read(&other).ok().as_ref());
        }
        let longer = CertificateDer::from([der.as_ref(), &[0]].concat());
        assert_eq!(CertificateInfo::known(&longer), Err(CertificateError::Syntax));
    }
}
