//! Where certificates, roots and pins come from: data sources, and digests as text.
//!
//! Invariant: a file becomes the name of a secret, since reading it, and again when it changes, is not the work of a decoder; what is
//! inline is taken as it is and parsed where it is used.

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::super::bad::{At, Bad, only};
use crate::model::tls::{CertificateSource, InlineCertificate, TrustSource};

/// What a data source holds.
enum Data<'a> {
    File(&'a str),
    Bytes(&'a [u8]),
}

fn data(source: &DataSource) -> Result<Data<'_>, Bad> {
    only!(source, DataSource { specifier } refuse { watched_directory });
    match &source.specifier {
        Some(Specifier::Filename(path)) if !path.is_empty() => Ok(Data::File(path)),
        Some(Specifier::InlineBytes(bytes)) if !bytes.is_empty() => Ok(Data::Bytes(bytes)),
        Some(Specifier::InlineString(text)) if !text.is_empty() => Ok(Data::Bytes(text.as_bytes())),
        Some(Specifier::EnvironmentVariable(_)) => Err(Bad::unsupported("environment_variable")),
        _ => Err(Bad::new("empty")),
    }
}

/// Roots or revocation lists; a file is the secret `<prefix><path>`.
pub fn trust(source: &DataSource, prefix: &str) -> Result<TrustSource, Bad> {
    Ok(match data(source)? {
        Data::File(path) => TrustSource::Secret(format!("{prefix}{path}").into()),
        Data::Bytes(bytes) => TrustSource::Inline(bytes.into()),
    })
}

/// `TlsCertificate`. A pair of files is the secret `file-cert:<chain>~<key>`.
pub fn certificate(value: &pb::TlsCertificate) -> Result<CertificateSource, Bad> {
    only!(value, pb::TlsCertificate { certificate_chain, private_key, ocsp_staple } refuse {
        pkcs12, watched_directory, private_key_provider, password, signed_certificate_timestamp, tls_params,
    });
    let chain = value.certificate_chain.as_ref().ok_or_else(|| Bad::field("certificate_chain", "missing"))?;
    let key = value.private_key.as_ref().ok_or_else(|| Bad::field("private_key", "missing"))?;
    let staple = value.ocsp_staple.as_ref().map(|source| data(source).at("ocsp_staple")).transpose()?;
    match (data(chain).at("certificate_chain")?, data(key).at("private_key")?, staple) {
        (Data::File(chain), Data::File(key), None) => {
            Ok(CertificateSource::Secret(format!("file-cert:{chain}~{key}").into()))
        }
        (Data::Bytes(chain), Data::Bytes(key), staple @ (None | Some(Data::Bytes(_)))) => {
            let ocsp = match staple {
                Some(Data::Bytes(bytes)) => bytes,
                _ => &[],
            };
            let pair = InlineCertificate { chain: chain.into(), key: key.into(), ocsp: ocsp.into() };
            Ok(CertificateSource::Inline(pair.into()))
        }
        (_, _, Some(Data::File(_))) => Err(Bad::field("ocsp_staple", "a file is not supported")),
        _ => Err(Bad::field("private_key", "chain and key must both be files or both be inline")),
    }
}

/// SHA-256 in hexadecimal, with or without colons.
pub fn hex_digest(text: &str) -> Result<[u8; 32], Bad> {
    let bad = || Bad::new("not a SHA-256 in hexadecimal");
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()
        .ok_or_else(bad)?;
    let bytes: Vec<u8> = digits
        .chunks(2)
        .filter_map(|pair| match pair {
            [high, low] => Some(high << 4 | low),
            _ => None,
        })
        .collect();
    if digits.len() != 64 { Err(bad()) } else { bytes.try_into().map_err(|_| bad()) }
}

/// SHA-256 in base64 (RFC 4648 §4).
pub fn base64_digest(text: &str) -> Result<[u8; 32], Bad> {
    let bad = || Bad::new("not a SHA-256 in base64");
    let (body, padding) = text.split_at_checked(43).ok_or_else(bad)?;
    if padding != "=" {
        return Err(bad());
    }
    let (mut out, mut bits, mut have) = (Vec::with_capacity(33), 0_u32, 0_u32);
    for c in body.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(bad()),
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push(u8::try_from(bits >> have & 0xff).unwrap_or_default());
        }
    }
    out.try_into().map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let colons: Vec<String> = hex.as_bytes().chunks(2).map(|p| String::from_utf8_lossy(p).to_uppercase()).collect();
        let empty = hex_digest(hex).unwrap();
        assert_eq!(hex_digest(&colons.join(":")).unwrap(), empty);
        assert_eq!(base64_digest("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=").unwrap(), empty);
        for bad in ["", "e3", &hex[1..], &hex.replace('e', "g"), &format!("{hex}00")] {
            assert!(hex_digest(bad).is_err(), "{bad}");
        }
        for bad in ["", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSu-U="] {
            assert!(base64_digest(bad).is_err(), "{bad}");
        }
    }
}
