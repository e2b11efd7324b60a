//! Certificates beyond the mesh's own: requests with names in them, signed by a key that is not the authority's.
//!
//! Invariant: a certificate holds the names, uses and life of the given [`Profile`] and nothing else; it never outlives its
//! signer, and only a request whose sender has shown to hold the key is signed. Who may have which profile is decided by
//! the caller.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509CertificationRequest};

use crate::ca::{CaError, CaKey};
use crate::certificate::{self, CertificateInfo};
use crate::csr::{CertificateRequest, CsrError};
use crate::journal::{self, Issuance, Journal, JournalError, MaybeJournal};
use crate::key::PrivateKey;
use crate::pem;

/// What a certificate is to say.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Profile {
    /// CN; none when empty.
    pub common_name: String,
    /// Other parts of the subject, in order: object identifier's short name (`O`, `OU`, `C`, `L`, `ST`, `STREET`,
    /// `serialNumber`, `postalCode`) and value.
    pub subject: Vec<(&'static str, String)>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// URIs.
    pub uris: Vec<String>,
    /// E-mail addresses.
    pub emails: Vec<String>,
    /// Whether it may sign others.
    pub is_ca: bool,
    /// Uses, in cert-manager's words; unknown ones are left out.
    pub usages: Vec<String>,
    /// Who asks for it, for the journal; not in the certificate.
    pub asked_by: String,
}

/// A certificate that was signed, and what leads from it to a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Leaf, then intermediates, PEM.
    pub chain: String,
    /// The last signer's certificate, PEM: what a peer has to trust.
    pub ca: String,
    /// The leaf's serial number, lower-case hexadecimal.
    pub serial: String,
}

/// A signing certificate with its key.
pub struct Signer {
    issuer: Issuer<'static, CaKey>,
    chain: Vec<CertificateDer<'static>>,
    info: CertificateInfo,
    journal: MaybeJournal,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("subject", &self.info.subject).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads a signing certificate (with what leads from it to its root, if it is an intermediate) and its key, both PEM.
    ///
    /// # Errors
    /// They are unreadable, do not belong together, or the certificate may not sign.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self, CaError> {
        let key = PrivateKey::from_pem(key).map_err(|e| CaError::Sign(e.to_string()))?;
        Self::with_key(chain, CaKey::in_memory(&key).map_err(|e| CaError::Sign(e.to_string()))?)
    }

    /// The same with a key that may be anywhere. Signing blocks as long as the key does.
    ///
    /// # Errors
    /// As [`Signer::read`].
    pub fn with_key(chain: &[u8], key: CaKey) -> Result<Self, CaError> {
        let wrong = |reason: String| CaError::Sign(reason);
        let chain = pem::certificates(chain).map_err(|e| wrong(format!("signing certificate: {e}")))?;
        let first = chain.first().ok_or_else(|| wrong("no signing certificate".to_owned()))?;
        let info = CertificateInfo::read(first).map_err(|e| wrong(format!("signing certificate: {e}")))?;
        if !info.is_ca {
            return Err(wrong(format!("the certificate {:?} may not sign others", info.subject)));
        }
        if certificate::sha256(&key.subject_public_key_info()) != info.spki_sha256 {
            return Err(wrong("the signing certificate's key is another one".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(first, key).map_err(|e| wrong(e.to_string()))?;
        Ok(Self { issuer, chain, info, journal: None })
    }

    /// This signer, with every certificate written into `journal`.
    #[must_use]
    pub fn recorded(mut self, journal: MaybeJournal) -> Self {
        self.journal = journal;
        self
    }

    /// End of the signing certificate's life.
    pub fn not_after(&self) -> SystemTime {
        self.info.not_after
    }

    /// Signs what a request asks for: its key, the given profile.
    ///
    /// # Errors
    /// The request is no proof of its key, a name cannot be written, or the signer has expired.
    pub fn sign(
        &self,
        csr_pem: &str,
        profile: &Profile,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Signed, CaError> {
        if not_before < self.info.not_before || not_before >= self.info.not_after {
            return Err(CaError::SignerExpired);
        }
        let request = CertificateRequest::from_pem(csr_pem)?;
        let not_after = not_after.min(self.info.not_after);
        let (params, serial) = params(profile, not_before, not_after)?;
        let issuance = issuance(&serial, profile, journal::key_id(self.issuer.key()), not_before, not_after);
        let sign = || params.signed_by(request.public_key(), &self.issuer).map_err(|e| CaError::Sign(e.to_string()));
        let leaf = journal::recorded(self.journal.as_ref(), &issuance, sign)?.pem();
        let root = self.chain.last().filter(|last| certificate::is_signed_by(last, last));
        let sent = self.chain.iter().filter(|der| Some(*der) != root);
        Ok(Signed {
            chain: leaf + &pem::encode_certificates(sent),
            ca: self.chain.last().map(|der| pem::encode_certificate(der)).unwrap_or_default(),
            serial,
        })
    }
}

/// A certificate that a key signs for itself, written into `journal` if there is one.
///
/// # Errors
/// A name cannot be written, or the journal does not take it.
pub fn self_signed(
    key: &PrivateKey,
    profile: &Profile,
    not_before: SystemTime,
    not_after: SystemTime,
    journal: Option<&Arc<dyn Journal>>,
) -> Result<Signed, CaError> {
    let (params, serial) = params(profile, not_before, not_after)?;
    let pair = key.key_pair().map_err(|e| CaError::Sign(e.to_string()))?;
    let issuer = key.spki_sha256().map(|digest| journal::hex(&digest)).unwrap_or_default();
    let issuance = issuance(&serial, profile, issuer, not_before, not_after);
    let pem =
        journal::recorded(journal, &issuance, || params.self_signed(&pair).map_err(|e| CaError::Sign(e.to_string())))?
            .pem();
    Ok(Signed { ca: pem.clone(), chain: pem, serial })
}

/// A request for a key, PEM, with the profile's names and subject.
///
/// # Errors
/// A name cannot be written.
pub fn request(key: &PrivateKey, profile: &Profile) -> Result<String, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished(profile);
    params.subject_alt_names = alt_names(profile)?;
    let pair = key.key_pair().map_err(|e| CaError::Sign(e.to_string()))?;
    params.serialize_request(&pair).and_then(|request| request.pem()).map_err(|e| CaError::Sign(e.to_string()))
}

/// What a request asks for; its signature is checked. `usages` and `is_ca` are not in a request's names and stay empty.
///
/// # Errors
/// It is no request, or not signed by its own key.
pub fn asked(csr_pem: &str) -> Result<(Profile, [u8; 32]), CsrError> {
    CertificateRequest::from_pem(csr_pem)?;
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes()).map_err(|_| CsrError::Syntax)?;
    let (_, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Syntax)?;
    let info = &request.certification_request_info;
    let mut profile = Profile::default();
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().unwrap_or_default().to_owned();
    for part in info.subject.iter_attributes() {
        let oid = part.attr_type().to_id_string();
        match OIDS.iter().find(|(_, id)| *id == oid) {
            Some((name, _)) => profile.subject.push((name, text(part))),
            None if oid == "2.5.4.3" => profile.common_name = text(part),
            None => {}
        }
    }
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(dns) => profile.dns.push((*dns).to_owned()),
                GeneralName::URI(uri) => profile.uris.push((*uri).to_owned()),
                GeneralName::RFC822Name(email) => profile.emails.push((*email).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    profile.ips.push(certificate::address(bytes).ok_or(CsrError::Syntax)?);
                }
                _ => return Err(CsrError::Key("names of kinds other than DNS, IP, URI and e-mail are not signed")),
            }
        }
    }
    Ok((profile, certificate::sha256(info.subject_pki.raw)))
}

/// Parts of a subject: short name and object identifier.
const OIDS: [(&str, &str); 8] = [
    ("O", "2.5.4.10"),
    ("OU", "2.5.4.11"),
    ("C", "2.5.4.6"),
    ("L", "2.5.4.7"),
    ("ST", "2.5.4.8"),
    ("STREET", "2.5.4.9"),
    ("serialNumber", "2.5.4.5"),
    ("postalCode", "2.5.4.17"),
];

fn params(
    profile: &Profile,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<(CertificateParams, String), CaError> {
    let serial = crate::ca::random_serial()?;
    let mut params = CertificateParams::default();
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name = distinguished(profile);
    params.subject_alt_names = alt_names(profile)?;
    (params.key_usages, params.extended_key_usages) = usages(&profile.usages);
    params.is_ca = match profile.is_ca {
        true => IsCa::Ca(BasicConstraints::Unconstrained),
        false => IsCa::ExplicitNoCa,
    };
    if profile.is_ca {
        for needed in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
            if !params.key_usages.contains(&needed) {
                params.key_usages.push(needed);
            }
        }
    }
    Ok((params, serial.iter().map(|b| format!("{b:02x}")).collect()))
}

/// Writes down a certificate that somebody else has signed. One that is written down already is fine.
///
/// # Errors
/// It is no certificate, or the journal does not take it.
pub fn received(journal: &Arc<dyn Journal>, profile: &Profile, chain: &str) -> Result<(), CaError> {
    let chain = pem::certificates(chain.as_bytes()).map_err(|e| CaError::Sign(e.to_string()))?;
    let leaf = chain.first().ok_or_else(|| CaError::Sign("no certificate".to_owned()))?;
    let info = CertificateInfo::read(leaf).map_err(|e| CaError::Sign(e.to_string()))?;
    let above = chain.get(1).and_then(certificate::public_key);
    let issuer = above.map(|key| journal::hex(&certificate::sha256(&key))).unwrap_or_default();
    let profile = Profile { dns: info.dns, ips: info.ips, uris: info.uris, emails: info.emails, ..profile.clone() };
    match journal.intent(&issuance(&info.serial, &profile, issuer, info.not_before, info.not_after)) {
        Err(JournalError::Used(_)) => return Ok(()),
        other => other?,
    }
    Ok(journal.issued(&info.serial, leaf)?)
}

fn issuance(
    serial: &str,
    profile: &Profile,
    issuer: String,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Issuance {
    let common = Some(&profile.common_name).filter(|name| !name.is_empty()).map(|name| ("CN", name));
    let parts = profile.subject.iter().map(|(short, value)| (*short, value)).chain(common);
    Issuance {
        serial: serial.to_owned(),
        subject: parts.map(|(short, value)| format!("{short}={value}")).collect::<Vec<_>>().join(", "),
        names: journal::names(profile.uris.iter().chain(&profile.dns).chain(&profile.emails), &profile.ips),
        issuer,
        not_before,
        not_after,
        asked_by: profile.asked_by.clone(),
    }
}

fn distinguished(profile: &Profile) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (short, value) in &profile.subject {
        let kind = match *short {
            "O" => DnType::OrganizationName,
            "OU" => DnType::OrganizationalUnitName,
            "C" => DnType::CountryName,
            "L" => DnType::LocalityName,
            "ST" => DnType::StateOrProvinceName,
            "STREET" => DnType::CustomDnType(vec![2, 5, 4, 9]),
            "postalCode" => DnType::CustomDnType(vec![2, 5, 4, 17]),
            _ => DnType::CustomDnType(vec![2, 5, 4, 5]),
        };
        name.push(kind, value.as_str());
    }
    if !profile.common_name.is_empty() {
        name.push(DnType::CommonName, profile.common_name.as_str());
    }
    name
}

fn alt_names(profile: &Profile) -> Result<Vec<SanType>, CaError> {
    let ia5 = |name: &String| Ia5String::try_from(name.as_str()).map_err(|_| CaError::Name(name.clone()));
    let dns = profile.dns.iter().map(|name| ia5(name).map(SanType::DnsName));
    let ips = profile.ips.iter().map(|ip| Ok(SanType::IpAddress(*ip)));
    let uris = profile.uris.iter().map(|uri| ia5(uri).map(SanType::URI));
    let emails = profile.emails.iter().map(|email| ia5(email).map(SanType::Rfc822Name));
    dns.chain(ips).chain(uris).chain(emails).collect()
}

fn usages(words: &[String]) -> (Vec<KeyUsagePurpose>, Vec<ExtendedKeyUsagePurpose>) {
    let (mut simple, mut extended) = (Vec::new(), Vec::new());
    for word in words {
        match word.as_str() {
            "signing" | "digital signature" => simple.push(KeyUsagePurpose::DigitalSignature),
            "content commitment" => simple.push(KeyUsagePurpose::ContentCommitment),
            "key encipherment" => simple.push(KeyUsagePurpose::KeyEncipherment),
            "data encipherment" => simple.push(KeyUsagePurpose::DataEncipherment),
            "key agreement" => simple.push(KeyUsagePurpose::KeyAgreement),
            "cert sign" => simple.push(KeyUsagePurpose::KeyCertSign),
            "crl sign" => simple.push(KeyUsagePurpose::CrlSign),
            "encipher only" => simple.push(KeyUsagePurpose::EncipherOnly),
            "decipher only" => simple.push(KeyUsagePurpose::DecipherOnly),
            "any" => extended.push(ExtendedKeyUsagePurpose::Any),
            "server auth" => extended.push(ExtendedKeyUsagePurpose::ServerAuth),
            "client auth" => extended.push(ExtendedKeyUsagePurpose::ClientAuth),
            "code signing" => extended.push(ExtendedKeyUsagePurpose::CodeSigning),
            "email protection" | "s/mime" => extended.push(ExtendedKeyUsagePurpose::EmailProtection),
            "timestamping" => extended.push(ExtendedKeyUsagePurpose::TimeStamping),
            "ocsp signing" => extended.push(ExtendedKeyUsagePurpose::OcspSigning),
            _ => {}
        }
    }
    simple.dedup();
    extended.dedup();
    (simple, extended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyAlgorithm;
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    fn profile() -> Profile {
        Profile {
            common_name: "shop.example".into(),
            subject: vec![("O", "Shop".into()), ("C", "DE".into())],
            dns: vec!["shop.example".into(), "*.shop.example".into()],
            ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            uris: vec!["spiffe://a/ns/b/sa/c".into()],
            emails: vec!["a@shop.example".into()],
            usages: vec!["server auth".into(), "digital signature".into()],
            ..Profile::default()
        }
    }

    fn key() -> PrivateKey {
        PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap()
    }

    #[test]
    fn a_request_says_what_was_put_into_it() {
        let key = key();
        let text = request(&key, &profile()).unwrap();
        let (asked, digest) = asked(&text).unwrap();
        assert_eq!(asked, Profile { usages: Vec::new(), ..profile() });
        assert_eq!(Some(digest), key.spki_sha256());
        let tampered = text.replacen('M', "N", 1);
        assert!(super::asked(&tampered).is_err());
    }

    #[test]
    fn a_signer_signs_and_never_beyond_its_own_end() {
        let now = SystemTime::now();
        let root_key = key();
        let ca = Profile { common_name: "root".into(), is_ca: true, ..Profile::default() };
        let root = self_signed(&root_key, &ca, now, now + HOUR, None).unwrap();
        let signer = Signer::read(root.chain.as_bytes(), root_key.to_pem().as_bytes()).unwrap();
        let leaf_key = key();
        let csr = request(&leaf_key, &profile()).unwrap();
        let signed = signer.sign(&csr, &profile(), now, now + 10 * HOUR).unwrap();
        let chain = pem::certificates(signed.chain.as_bytes()).unwrap();
        assert_eq!(chain.len(), 1);
        let info = CertificateInfo::read(&chain[0]).unwrap();
        assert_eq!(info.dns, profile().dns);
        assert_eq!(info.not_after, signer.not_after());
        assert_eq!(info.serial, signed.serial);
        assert!(!info.is_ca);
        assert_eq!(signed.ca, root.chain);
        assert!(matches!(signer.sign(&csr, &profile(), now + 2 * HOUR, now + 3 * HOUR), Err(CaError::SignerExpired)));
    }

    #[test]
    fn what_may_not_sign_is_no_signer() {
        let (now, own) = (SystemTime::now(), key());
        let leaf = self_signed(&own, &profile(), now, now + HOUR, None).unwrap();
        let error = Signer::read(leaf.chain.as_bytes(), own.to_pem().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("may not sign others"), "{error}");
        let ca = Profile { is_ca: true, ..profile() };
        let root = self_signed(&own, &ca, now, now + HOUR, None).unwrap();
        let error = Signer::read(root.chain.as_bytes(), key().to_pem().as_bytes()).unwrap_err();
        assert!(error.to_string().contains("another one"), "{error}");
    }

    #[test]
    fn an_intermediate_is_sent_along_and_the_root_is_not() {
        let now = SystemTime::now();
        let (root_key, middle_key) = (key(), key());
        let ca = |name: &str| Profile { common_name: name.into(), is_ca: true, ..Profile::default() };
        let root = self_signed(&root_key, &ca("root"), now, now + HOUR, None).unwrap();
        let signer = Signer::read(root.chain.as_bytes(), root_key.to_pem().as_bytes()).unwrap();
        let csr = request(&middle_key, &ca("middle")).unwrap();
        let middle = signer.sign(&csr, &ca("middle"), now, now + HOUR).unwrap();
        let both = format!("{}{}", middle.chain, root.chain);
        let signer = Signer::read(both.as_bytes(), middle_key.to_pem().as_bytes()).unwrap();
        let signed = signer.sign(&request(&key(), &profile()).unwrap(), &profile(), now, now + HOUR).unwrap();
        assert_eq!(pem::certificates(signed.chain.as_bytes()).unwrap().len(), 2);
        assert_eq!(signed.ca, root.chain);
    }
}
