//! PKCS#11 URIs (RFC 7512): where a key is, and how its token is opened, in one line.
//!
//! `pkcs11:token=LABEL;object=LABEL?module-path=FILE&pin-source=FILE`; `pin-value` in the place of `pin-source`, and `type=private`
//! may be there. Invariant: what is not understood is refused by its name, since it could mean another key; no error has the PIN.

use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::Location;

/// How a URI begins.
const SCHEME: &str = "pkcs11:";

/// Why a URI is no key's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Another scheme.
    #[error("a PKCS#11 URI begins with {SCHEME}")]
    Scheme,
    /// An attribute that is not read here.
    #[error("the attribute {0:?} of a PKCS#11 URI is not supported")]
    Unknown(String),
    /// An attribute that is there twice.
    #[error("the attribute {0:?} is there twice")]
    Twice(String),
    /// A value that cannot be read.
    #[error("the attribute {0:?} has no such value")]
    Value(String),
    /// An attribute that has to be there.
    #[error("the attribute {0:?} is missing")]
    Missing(&'static str),
    /// The PIN's file cannot be read.
    #[error("pin-source: {0}: {1}")]
    Pin(PathBuf, String),
}

/// How the token is opened.
#[derive(Clone, PartialEq, Eq)]
enum Pin {
    File(PathBuf),
    Value(Zeroizing<String>),
}

/// A key of a token.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyUri {
    /// Where it is.
    pub location: Location,
    pin: Pin,
}

impl std::fmt::Debug for KeyUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyUri").field("location", &self.location).finish_non_exhaustive()
    }
}

impl KeyUri {
    /// Reads a URI.
    ///
    /// # Errors
    /// See [`UriError`].
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let rest = text.trim().strip_prefix(SCHEME).ok_or(UriError::Scheme)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let attributes = path.split(';').chain(query.split('&')).filter(|part| !part.is_empty());
        let (mut token, mut key, mut module, mut file, mut value) = (None, None, None, None, None);
        for attribute in attributes {
            let (name, raw) = attribute.split_once('=').ok_or_else(|| UriError::Unknown(attribute.to_owned()))?;
            let read = decode(raw).filter(|text| !text.is_empty()).ok_or_else(|| UriError::Value(name.to_owned()))?;
            let place = match name {
                "token" => &mut token,
                "object" => &mut key,
                "module-path" => &mut module,
                "pin-source" => &mut file,
                "pin-value" => &mut value,
                "type" if read.as_str() == "private" => continue,
                other => return Err(UriError::Unknown(other.to_owned())),
            };
            if place.replace(read).is_some() {
                return Err(UriError::Twice(name.to_owned()));
            }
        }
        let pin = match (file, value) {
            (Some(file), None) => Pin::File(file.strip_prefix("file:").map_or(file.as_str(), file_path).into()),
            (None, Some(value)) => Pin::Value(value),
            (None, None) => return Err(UriError::Missing("pin-source")),
            (Some(_), Some(_)) => return Err(UriError::Twice("pin-source, pin-value".to_owned())),
        };
        let needed = |value: Option<Zeroizing<String>>, name| value.ok_or(UriError::Missing(name));
        let location = Location {
            module: needed(module, "module-path")?.as_str().into(),
            token: needed(token, "token")?.to_string(),
            key: needed(key, "object")?.to_string(),
        };
        Ok(Self { location, pin })
    }

    /// The PIN; from its file each time, so that it may be changed there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn pin(&self) -> Result<Zeroizing<String>, UriError> {
        match &self.pin {
            Pin::Value(pin) => Ok(pin.clone()),
            Pin::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| UriError::Pin(path.clone(), e.to_string()))?;
                let text = Zeroizing::new(text);
                Ok(Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
            }
        }
    }
}

/// `///path` of a URI with an empty host, or the path itself.
fn file_path(rest: &str) -> &str {
    rest.strip_prefix("//").unwrap_or(rest)
}

/// Percent-decoding; `None` for what is no text.
fn decode(raw: &str) -> Option<Zeroizing<String>> {
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        out.push(u8::try_from(high.checked_mul(16)?.checked_add(low)?).ok()?);
    }
    String::from_utf8(out).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_name_one_key() {
        let uri = "pkcs11:token=mesh%20CA;object=signing;type=private?module-path=/usr/lib/a.so&pin-value=47%2011";
        let read = KeyUri::parse(uri).unwrap();
        let location = Location { module: "/usr/lib/a.so".into(), token: "mesh CA".into(), key: "signing".into() };
        assert_eq!((read.location.clone(), read.pin().unwrap().as_str()), (location, "47 11"));
        assert!(!format!("{read:?}").contains("47"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0815\n").unwrap();
        for form in ["", "file:", "file://"] {
            let source = file.path().display();
            let uri = format!("pkcs11:token=t;object=o?module-path=/a.so&pin-source={form}{source}");
            assert_eq!(KeyUri::parse(&uri).unwrap().pin().unwrap().as_str(), "0815", "{uri}");
        }
    }

    #[test]
    fn what_could_mean_another_key_is_refused() {
        for (uri, error) in [
            ("token=t", "begins with pkcs11:"),
            ("pkcs11:token=t;object=o?pin-value=1", "\"module-path\" is missing"),
            ("pkcs11:token=t?module-path=/a&pin-value=1", "\"object\" is missing"),
            ("pkcs11:object=o?module-path=/a&pin-value=1", "\"token\" is missing"),
            ("pkcs11:token=t;object=o?module-path=/a", "\"pin-source\" is missing"),
            ("pkcs11:token=t;object=o;serial=1?module-path=/a&pin-value=1", "\"serial\" of a PKCS#11 URI is not"),
            ("pkcs11:token=t;token=u;object=o?module-path=/a&pin-value=1", "\"token\" is there twice"),
            ("pkcs11:token=t;object=o;type=public?module-path=/a&pin-value=1", "\"type\""),
            ("pkcs11:token=%f;object=o?module-path=/a&pin-value=1", "\"token\" has no such value"),
        ] {
            let told = KeyUri::parse(uri).unwrap_err().to_string();
            assert!(told.contains(error), "{uri}: {told}");
        }
    }
}
