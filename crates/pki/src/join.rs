//! Join tokens: what a machine proves itself with once, before it has a certificate.
//!
//! Invariant: a token is known to its holder alone: whoever keeps it for comparison keeps [`JoinToken::digest`], and comparing takes the
//! same time wherever two digests differ. What a token is good for, for how long and whether it was used is decided by its keeper.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::certificate;

/// What every token begins with; tells it from the tokens of service accounts.
const PREFIX: &str = "cjt1";
/// Letters and digits of a token's name, without those that are mistaken for each other.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// Length of a token's name.
const ID: usize = 10;

/// Why a text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenError {
    /// Not one of ours, or cut off.
    #[error("not a join token (they begin with {PREFIX}. and have three parts or five)")]
    Syntax,
    /// No randomness to make one.
    #[error("the system gives no random bytes")]
    Random,
}

/// A token: its name, which is no secret, and its secret.
#[derive(Clone)]
pub struct JoinToken {
    id: String,
    secret: Zeroizing<String>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({}, redacted)", self.id)
    }
}

impl JoinToken {
    /// A new one, of 256 random bits.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn generate() -> Result<Self, JoinTokenError> {
        let (mut id, mut secret) = ([0; ID], Zeroizing::new([0; 32]));
        for bytes in [&mut id[..], &mut secret[..]] {
            aws_lc_rs::rand::fill(bytes).map_err(|_| JoinTokenError::Random)?;
        }
        let letter = |byte: &u8| LETTERS.get(usize::from(byte % 32)).map(|l| char::from(*l));
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(secret.as_slice()));
        Ok(Self { id: id.iter().filter_map(letter).collect(), secret })
    }

    /// Whether a bearer token claims to be one of these.
    pub fn is_one(text: &str) -> bool {
        text.split_once('.').is_some_and(|(prefix, _)| prefix == PREFIX)
    }

    /// Reads `cjt1.<name>.<secret>`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, JoinTokenError> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [PREFIX, id, secret] = parts.as_slice() else { return Err(JoinTokenError::Syntax) };
        let named = id.len() == ID && id.bytes().all(|b| LETTERS.contains(&b));
        let long = URL_SAFE_NO_PAD.decode(secret).is_ok_and(|bytes| bytes.len() == 32);
        if !named || !long {
            return Err(JoinTokenError::Syntax);
        }
        Ok(Self { id: (*id).to_owned(), secret: Zeroizing::new((*secret).to_owned()) })
    }

    /// Its name: what lists show, and what it is kept under.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole token, for the one request it is made for.
    pub fn expose(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{PREFIX}.{}.{}", self.id, *self.secret))
    }

    /// SHA-256 of it in hexadecimal: what its keeper keeps.
    pub fn digest(&self) -> String {
        hex(&certificate::sha256(self.expose().as_bytes()))
    }

    /// Whether a kept digest is this token's.
    pub fn matches(&self, digest: &str) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.digest().as_bytes(), digest.as_bytes()).is_ok()
    }
}

/// A token with the way to the control plane it is for: what a person carries to the machine. Written
/// `cjt1.<name>.<secret>.<fingerprint>.<address in base64>`.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// The token.
    pub token: JoinToken,
    /// SHA-256 of one root of the mesh, hexadecimal: the control plane is proven by it. `None` if that was not written into it.
    pub fingerprint: Option<String>,
    /// `host:port` of the control plane.
    pub server: Option<String>,
}

impl Invitation {
    /// Reads a token alone or a whole invitation.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self, JoinTokenError> {
        let text = text.trim();
        let mut ends = text.match_indices('.').map(|(at, _)| at);
        let Some(end) = ends.nth(2) else {
            return Ok(Self { token: JoinToken::parse(text)?, fingerprint: None, server: None });
        };
        let (token, rest) = text.split_at_checked(end).ok_or(JoinTokenError::Syntax)?;
        let (fingerprint, server) = rest.trim_start_matches('.').split_once('.').ok_or(JoinTokenError::Syntax)?;
        let fingerprint = read_fingerprint(fingerprint).ok_or(JoinTokenError::Syntax)?;
        let server = URL_SAFE_NO_PAD.decode(server).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let server = server.ok_or(JoinTokenError::Syntax)?;
        let server = (!server.is_empty()).then_some(server);
        Ok(Self { token: JoinToken::parse(token)?, fingerprint: Some(fingerprint), server })
    }

    /// The text to be carried.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = self.token.expose();
        if let Some(fingerprint) = &self.fingerprint {
            let server = URL_SAFE_NO_PAD.encode(self.server.as_deref().unwrap_or_default());
            text.push_str(&format!(".{fingerprint}.{server}"));
        }
        text
    }
}

/// A fingerprint as people write it (`sha256:` in front, colons between, either case) as 64 hexadecimal digits; `None` when it is none.
pub fn read_fingerprint(text: &str) -> Option<String> {
    let text = text.trim();
    let digits = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("SHA256:")).unwrap_or(text);
    let digits: String = digits.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    (digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(digits)
}

/// The fingerprint of a certificate: SHA-256 of its DER.
pub fn fingerprint(der: &[u8]) -> String {
    hex(&certificate::sha256(der))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_and_no_other_matches_it() {
        let token = JoinToken::generate().unwrap();
        let text = token.expose();
        assert!(JoinToken::is_one(&text) && !JoinToken::is_one("eyJh.b.c"));
        let again = JoinToken::parse(&format!(" {}\n", *text)).unwrap();
        assert!(again.matches(&token.digest()) && again.id() == token.id());
        assert!(!JoinToken::generate().unwrap().matches(&token.digest()));
        assert!(!token.matches(""));
        let secret = text.rsplit('.').next().unwrap().to_owned();
        assert!(!format!("{token:?}").contains(&secret), "never printed");
        assert!(!token.digest().contains(&secret));
        for bad in ["", "cjt1", "cjt1.a.b", "cjt2.aaaaaaaaaa.x", &format!("{}x", *text), &text[..text.len() - 2]] {
            assert_eq!(JoinToken::parse(bad).err(), Some(JoinTokenError::Syntax), "{bad}");
        }
    }

    #[test]
    fn an_invitation_tells_where_to_go_and_whom_to_believe() {
        let token = JoinToken::generate().unwrap();
        let alone = Invitation::parse(&token.expose()).unwrap();
        assert_eq!((alone.fingerprint, alone.server), (None, None));
        let fingerprint = Some("ab".repeat(32));
        let whole = Invitation { token, fingerprint: fingerprint.clone(), server: Some("192.0.2.1:15012".into()) };
        let read = Invitation::parse(&whole.to_text()).unwrap();
        assert_eq!((read.fingerprint, read.server.as_deref()), (fingerprint, Some("192.0.2.1:15012")));
        assert!(read.token.matches(&whole.token.digest()));
        let text = whole.to_text();
        assert!(Invitation::parse(text.trim_end_matches(|c| c != '.')).is_ok_and(|i| i.server.is_none()));
        assert!(Invitation::parse(&text.replace("abab", "xyxy")).is_err());
    }

    #[test]
    fn fingerprints_as_people_write_them() {
        let plain = "0123456789abcdef".repeat(4);
        let colons = plain.as_bytes().chunks(2).map(|c| std::str::from_utf8(c).unwrap()).collect::<Vec<_>>().join(":");
        for text in [plain.clone(), format!("sha256:{plain}"), colons.to_uppercase()] {
            assert_eq!(read_fingerprint(&text).as_ref(), Some(&plain), "{text}");
        }
        assert_eq!(read_fingerprint("abc"), None);
        assert_eq!(fingerprint(b"").get(..8), Some("e3b0c442"));
    }
}
