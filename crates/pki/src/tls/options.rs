//! Versions, cipher suites and key exchange groups, by the names OpenSSL and Envoy give them.
//!
//! Invariant: an unknown group is an error; unknown cipher suites are left out (Istio's list holds two that no forward
//! secret library has) unless nothing remains. The order given is the order offered.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};

use super::TlsError;

/// A protocol version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// A key exchange group.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Curve {
    /// X25519 with ML-KEM-768.
    X25519MlKem768,
    /// X25519.
    X25519,
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
}

impl Curve {
    /// Reads the name OpenSSL and Envoy use.
    ///
    /// # Errors
    /// An unknown name.
    pub fn parse(name: &str) -> Result<Self, TlsError> {
        match name {
            "X25519MLKEM768" => Ok(Self::X25519MlKem768),
            "X25519" => Ok(Self::X25519),
            "P-256" | "prime256v1" | "secp256r1" => Ok(Self::P256),
            "P-384" | "secp384r1" => Ok(Self::P384),
            _ => Err(TlsError::Curve(name.to_owned())),
        }
    }

    fn group(self) -> &'static dyn SupportedKxGroup {
        match self {
            Self::X25519MlKem768 => aws_lc_rs::kx_group::X25519MLKEM768,
            Self::X25519 => aws_lc_rs::kx_group::X25519,
            Self::P256 => aws_lc_rs::kx_group::SECP256R1,
            Self::P384 => aws_lc_rs::kx_group::SECP384R1,
        }
    }
}

/// The common part of server and client configurations.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TlsOptions {
    /// Least version.
    pub min_version: TlsVersion,
    /// Greatest version.
    pub max_version: TlsVersion,
    /// TLS 1.2 suites by their OpenSSL names; empty means all supported ones.
    pub ciphers: Vec<String>,
    /// Groups in order of preference.
    pub curves: Vec<Curve>,
    /// Connections give the keys of their records to [`super::Records`] when the handshake is over.
    pub own_records: bool,
}

impl Default for TlsOptions {
    /// TLS 1.2 to 1.3, all suites, the post-quantum group first.
    fn default() -> Self {
        Self {
            min_version: TlsVersion::V1_2,
            max_version: TlsVersion::V1_3,
            ciphers: Vec::new(),
            curves: vec![Curve::X25519MlKem768, Curve::X25519, Curve::P256, Curve::P384],
            own_records: false,
        }
    }
}

/// AES-128 first: it is as strong as the rest of the handshake and cheapest where there are AES instructions.
static TLS13: [SupportedCipherSuite; 3] = [
    aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
    aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

static TLS12: [(&str, SupportedCipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES256-GCM-SHA384", aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

impl TlsOptions {
    pub(super) fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>, TlsError> {
        use rustls::version::{TLS12, TLS13};
        match (self.min_version, self.max_version) {
            (TlsVersion::V1_2, TlsVersion::V1_3) => Ok(vec![&TLS13, &TLS12]),
            (TlsVersion::V1_2, TlsVersion::V1_2) => Ok(vec![&TLS12]),
            (TlsVersion::V1_3, TlsVersion::V1_3) => Ok(vec![&TLS13]),
            (TlsVersion::V1_3, TlsVersion::V1_2) => Err(TlsError::Versions),
        }
    }

    pub(super) fn provider(&self) -> Result<Arc<CryptoProvider>, TlsError> {
        let mut suites = Vec::new();
        if self.max_version >= TlsVersion::V1_3 {
            suites.extend_from_slice(&TLS13);
        }
        if self.min_version <= TlsVersion::V1_2 {
            if self.ciphers.is_empty() {
                suites.extend(TLS12.iter().map(|(_, suite)| *suite));
            } else {
                // Envoy writes alternatives of equal preference as `[A|B]`.
                let names = self.ciphers.iter().flat_map(|c| c.trim_matches(['[', ']']).split('|'));
                let known: Vec<_> = names.filter_map(|n| TLS12.iter().find(|(name, _)| *name == n)).collect();
                if known.is_empty() {
                    return Err(TlsError::Ciphers(self.ciphers.clone()));
                }
                suites.extend(known.iter().map(|(_, suite)| *suite));
            }
        }
        let kx_groups = self.curves.iter().map(|curve| curve.group()).collect();
        Ok(Arc::new(CryptoProvider { cipher_suites: suites, kx_groups, ..aws_lc_rs::default_provider() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istios_list_is_accepted() {
        let options = TlsOptions {
            ciphers: ["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256", "AES256-GCM-SHA384"]
                .map(String::from)
                .to_vec(),
            ..TlsOptions::default()
        };
        let provider = options.provider().unwrap();
        assert_eq!(provider.cipher_suites.len(), 5);
        assert_eq!(provider.kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    }

    #[test]
    fn nothing_left_is_an_error() {
        let only = |c: &str| TlsOptions { ciphers: vec![c.to_owned()], ..TlsOptions::default() };
        assert!(matches!(only("AES128-GCM-SHA256").provider(), Err(TlsError::Ciphers(_))));
        assert!(only("[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]").provider().is_ok());
        let backwards =
            TlsOptions { min_version: TlsVersion::V1_3, max_version: TlsVersion::V1_2, ..TlsOptions::default() };
        assert_eq!(backwards.versions(), Err(TlsError::Versions));
        assert_eq!(Curve::parse("P-521"), Err(TlsError::Curve("P-521".into())));
    }
}
