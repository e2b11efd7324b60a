//! Who is not to be talked with though its certificate is good: identities and single certificates, as proxies are told.
//!
//! Invariant: a list is read whole or refused, so that a garbled one never lets more through than the one before. Empty
//! means nobody. Why somebody is on it, and since when, stays with the control plane.

use std::collections::BTreeSet;

use carrick_base::SpiffeId;

use crate::certificate::CertificateInfo;

/// The name under which proxies ask for the list (a generic secret).
pub const RESOURCE: &str = "carrick-quarantine";
/// The name under which they ask for the revocation lists of the mesh's roots (a validation context).
pub const LISTS: &str = "carrick-crl";
/// The first line of a list.
const HEADING: &str = "carrick-quarantine 1";

/// Why a list was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct QuarantineError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Quarantine {
    identities: BTreeSet<String>,
    serials: BTreeSet<String>,
}

impl Quarantine {
    /// A list of SPIFFE IDs and of serials in lower-case hexadecimal without leading zeros.
    pub fn new(identities: impl IntoIterator<Item = String>, serials: impl IntoIterator<Item = String>) -> Self {
        Self { identities: identities.into_iter().collect(), serials: serials.into_iter().collect() }
    }

    /// Reads what [`Self::to_text`] writes.
    ///
    /// # Errors
    /// The first line that is not understood.
    pub fn parse(text: &str) -> Result<Self, QuarantineError> {
        let mut list = Self::default();
        let mut lines = text.lines().enumerate();
        let fail = |at: usize, reason: &str| QuarantineError { line: at.saturating_add(1), reason: reason.to_owned() };
        match lines.next() {
            Some((_, HEADING)) => {}
            _ => return Err(fail(0, &format!("{HEADING:?} expected"))),
        }
        for (at, line) in lines {
            match line.split_once(' ') {
                Some(("identity", id)) if id.parse::<SpiffeId>().is_ok() => {
                    list.identities.insert(id.to_owned());
                }
                Some(("identity", _)) => return Err(fail(at, "not a SPIFFE ID")),
                Some(("serial", serial)) if is_serial(serial) => {
                    list.serials.insert(serial.to_owned());
                }
                Some(("serial", _)) => return Err(fail(at, "not a serial number")),
                _ => return Err(fail(at, "\"identity\" or \"serial\" and a value expected")),
            }
        }
        Ok(list)
    }

    /// One entry a line.
    pub fn to_text(&self) -> String {
        let identities = self.identities.iter().map(|id| format!("identity {id}\n"));
        let serials = self.serials.iter().map(|serial| format!("serial {serial}\n"));
        std::iter::once(format!("{HEADING}\n")).chain(identities).chain(serials).collect()
    }

    /// Whether nobody is on it.
    pub fn is_empty(&self) -> bool {
        self.identities.is_empty() && self.serials.is_empty()
    }

    /// The entry that one of these URI names, or this serial, falls under.
    pub fn finds<'a>(&'a self, uris: impl IntoIterator<Item = &'a str>, serial: &'a str) -> Option<&'a str> {
        if self.is_empty() {
            return None;
        }
        let named = uris.into_iter().find(|uri| self.identities.contains(*uri));
        named.or_else(|| self.serials.contains(serial).then_some(serial))
    }

    /// The entry that a certificate falls under.
    pub fn covers<'a>(&'a self, info: &'a CertificateInfo) -> Option<&'a str> {
        self.finds(info.uris.iter().map(String::as_str), &info.serial)
    }
}

fn is_serial(text: &str) -> bool {
    let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    digits && !text.starts_with('0') && (1..=40).contains(&text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "spiffe://cluster.local/ns/a/sa/b";

    #[test]
    fn lists_read_back_and_find() {
        let list = Quarantine::new([ID.to_owned()], ["4a0b".to_owned()]);
        assert_eq!(Quarantine::parse(&list.to_text()).unwrap(), list);
        assert_eq!(list.finds([ID], "1"), Some(ID));
        assert_eq!(list.finds(["spiffe://cluster.local/ns/a/sa/bb"], "4a0b"), Some("4a0b"));
        assert_eq!(list.finds(["spiffe://cluster.local/ns/a/sa"], "4a0b0"), None);
        assert!(Quarantine::parse("carrick-quarantine 1\n").unwrap().is_empty());
    }

    #[test]
    fn garbled_lists_are_refused_whole() {
        for (text, line) in [
            ("", 1),
            ("carrick-quarantine 2\n", 1),
            ("identity spiffe://a/b\n", 1),
            ("carrick-quarantine 1\nidentity\n", 2),
            ("carrick-quarantine 1\nidentity web\n", 2),
            ("carrick-quarantine 1\nserial 4A\n", 2),
            ("carrick-quarantine 1\nserial 4a\n\nserial 4b\n", 3),
            ("carrick-quarantine 1\nserial 04\n", 2),
            ("carrick-quarantine 1\nhost a\n", 2),
        ] {
            assert_eq!(Quarantine::parse(text).map_err(|e| e.line), Err(line), "{text:?}");
        }
    }
}
