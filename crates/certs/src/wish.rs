//! What a `Certificate` asks for, with cert-manager's defaults filled in.
//!
//! Invariant: a wish that exists can be asked of an issuer; sets are sorted, so two wishes that mean the same are equal.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use carrick_api::cert_manager::{CertificateSpec, IssuerRef, Subject};

use crate::renewal::Before;

/// The life that is asked for when none is named: 90 days.
const DURATION: Duration = Duration::from_secs(2160 * 60 * 60);
/// Usages when none are named.
const USAGES: [&str; 2] = ["digital signature", "key encipherment"];

/// Why a wish cannot be fulfilled by anybody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// A value that admission would have refused.
    #[error("spec.{0}: {1}")]
    Field(&'static str, String),
}

/// The kind of a private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// RSA with this many bits.
    Rsa(u32),
    /// ECDSA on the NIST curve of this many bits.
    Ecdsa(u32),
    /// Ed25519.
    Ed25519,
}

/// The names in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// CN of the subject; empty for none.
    pub common_name: String,
    /// DNS names, in lower case.
    pub dns: BTreeSet<String>,
    /// Addresses.
    pub ips: BTreeSet<IpAddr>,
    /// URIs.
    pub uris: BTreeSet<String>,
    /// E-mail addresses.
    pub emails: BTreeSet<String>,
}

impl Names {
    /// The first name that `self` has and `other` lacks. A common name counts as there when it is a DNS name of the other.
    pub fn missing_in(&self, other: &Self) -> Option<String> {
        let lacks = |own: &BTreeSet<String>, other: &BTreeSet<String>| own.difference(other).next().cloned();
        let common = (!self.common_name.is_empty()
            && self.common_name != other.common_name
            && !other.dns.contains(&self.common_name.to_ascii_lowercase()))
        .then(|| self.common_name.clone());
        common
            .or_else(|| lacks(&self.dns, &other.dns))
            .or_else(|| self.ips.difference(&other.ips).next().map(ToString::to_string))
            .or_else(|| lacks(&self.uris, &other.uris))
            .or_else(|| lacks(&self.emails, &other.emails))
    }
}

/// A certificate as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Its names.
    pub names: Names,
    /// The rest of its subject.
    pub subject: Subject,
    /// Its life.
    pub duration: Duration,
    /// When it is replaced.
    pub renew: Before,
    /// Its key.
    pub key: KeyKind,
    /// Whether each renewal has a new key.
    pub new_keys: bool,
    /// Whether it may sign others.
    pub is_ca: bool,
    /// What it may be used for, in cert-manager's words.
    pub usages: BTreeSet<String>,
    /// Who is asked.
    pub issuer: IssuerRef,
}

impl Wish {
    /// Reads a spec.
    ///
    /// # Errors
    /// When a field has a value that nothing can be made of.
    pub fn read(spec: &CertificateSpec) -> Result<Self, WishError> {
        let lower = |names: &[String]| names.iter().map(|n| n.to_ascii_lowercase()).collect();
        let ips = spec
            .ip_addresses
            .iter()
            .map(|ip| ip.parse().map_err(|_| WishError::Field("ipAddresses", format!("invalid IP address {ip:?}"))));
        let names = Names {
            common_name: spec.common_name.clone(),
            dns: lower(&spec.dns_names),
            ips: ips.collect::<Result<_, _>>()?,
            uris: spec.uris.iter().cloned().collect(),
            emails: spec.email_addresses.iter().cloned().collect(),
        };
        if !spec.literal_subject.is_empty() {
            return Err(WishError::Field("literalSubject", "is not supported; use commonName and subject".to_owned()));
        }
        // What would be left out silently is refused.
        let lacking = [
            ("otherNames", !spec.other_names.is_empty()),
            ("nameConstraints", spec.name_constraints.is_some()),
            ("signatureAlgorithm", !spec.signature_algorithm.is_empty()),
        ];
        if let Some((field, _)) = lacking.into_iter().find(|(_, set)| *set) {
            return Err(WishError::Field(field, "is not supported".to_owned()));
        }
        let usages = match spec.usages.as_slice() {
            [] => USAGES.map(str::to_owned).into(),
            given => given.iter().cloned().collect(),
        };
        Ok(Self {
            names,
            subject: spec.subject.clone().unwrap_or_default(),
            duration: spec.duration.map_or(DURATION, |d| d.get()),
            renew: match (spec.renew_before, spec.renew_before_percentage) {
                (Some(before), _) => Before::Time(before.get()),
                (None, Some(share)) => Before::Percent(u32::try_from(share).unwrap_or(0)),
                (None, None) => Before::Third,
            },
            key: key(&spec.private_key.algorithm, spec.private_key.size)?,
            new_keys: spec.private_key.rotation_policy != "Never",
            is_ca: spec.is_ca,
            usages,
            issuer: spec.issuer_ref.clone(),
        })
    }
}

fn key(algorithm: &str, size: i32) -> Result<KeyKind, WishError> {
    match (algorithm, size) {
        ("" | "RSA", 0) => Ok(KeyKind::Rsa(2048)),
        ("" | "RSA", bits @ (2048 | 3072 | 4096)) => Ok(KeyKind::Rsa(bits.unsigned_abs())),
        ("ECDSA", 0 | 256) => Ok(KeyKind::Ecdsa(256)),
        ("ECDSA", bits @ (384 | 521)) => Ok(KeyKind::Ecdsa(bits.unsigned_abs())),
        ("Ed25519", _) => Ok(KeyKind::Ed25519),
        ("" | "RSA" | "ECDSA", _) => Err(WishError::Field(
            "privateKey.size",
            format!("no keys of {size} bits are made: RSA 2048, 3072, 4096, ECDSA 256, 384, 521"),
        )),
        _ => Err(WishError::Field("privateKey.algorithm", format!("{algorithm:?} is unknown: RSA, ECDSA or Ed25519"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_cert_managers() {
        let spec = CertificateSpec { dns_names: vec!["B.example".into(), "a.example".into()], ..Default::default() };
        let wish = Wish::read(&spec).unwrap();
        assert_eq!(wish.names.dns.iter().collect::<Vec<_>>(), ["a.example", "b.example"]);
        assert_eq!((wish.key, wish.new_keys, wish.renew), (KeyKind::Rsa(2048), true, Before::Third));
        assert_eq!(wish.duration.as_secs(), 2160 * 3600);
        assert!(wish.usages.contains("digital signature") && wish.usages.contains("key encipherment"));
    }

    #[test]
    fn a_missing_name_is_named() {
        let names = |dns: &[&str], common_name: &str| Names {
            dns: dns.iter().map(|n| (*n).to_owned()).collect(),
            common_name: common_name.to_owned(),
            ..Names::default()
        };
        assert_eq!(names(&["a", "b"], "").missing_in(&names(&["b"], "")), Some("a".to_owned()));
        assert_eq!(names(&["b"], "B").missing_in(&names(&["b", "c"], "")), None);
        assert_eq!(names(&[], "x").missing_in(&names(&["b"], "y")), Some("x".to_owned()));
    }

    #[test]
    fn keys_nobody_makes_are_refused_by_field() {
        let mut spec = CertificateSpec::default();
        spec.private_key.algorithm = "ECDSA".into();
        spec.private_key.size = 2048;
        assert!(Wish::read(&spec).unwrap_err().to_string().starts_with("spec.privateKey.size: "));
        spec.private_key.algorithm = "DSA".into();
        assert!(Wish::read(&spec).unwrap_err().to_string().starts_with("spec.privateKey.algorithm: "));
    }

    #[test]
    fn what_would_be_left_out_is_refused_by_field() {
        let refused = |spec: CertificateSpec| Wish::read(&spec).unwrap_err().to_string();
        let literal = CertificateSpec { literal_subject: "CN=a".into(), ..Default::default() };
        assert!(refused(literal).starts_with("spec.literalSubject: "));
        let constrained = CertificateSpec { name_constraints: Some(Default::default()), ..Default::default() };
        assert_eq!(refused(constrained), "spec.nameConstraints: is not supported");
    }
}
