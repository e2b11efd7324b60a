//! A token's text taken apart (RFC 7515 compact form, RFC 7519 claims).
//!
//! Invariant: nothing here is believed: the parts are what the text says, and only `keys` says whether it was signed. The order of
//! checks and their texts are Envoy's. A token with `crit` (RFC 7515 §4.1.11) is refused, since no extension is understood here.

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, NO_PAD};
use serde_json::{Map, Value};

use super::Status;

/// Longest token that is looked at, bytes. Longer than any header section that the engine takes.
pub const MAX_TOKEN: usize = 64 * 1024;

/// A token in parts.
#[derive(Debug, Clone)]
pub struct Token {
    /// Algorithm.
    pub alg: String,
    /// Key id, may be empty.
    pub kid: String,
    /// Issuer, may be empty.
    pub issuer: String,
    /// Subject, may be empty.
    pub subject: String,
    /// Audiences.
    pub audiences: Vec<String>,
    /// Not before, seconds of Unix time; 0 if not told.
    pub not_before: u64,
    /// Expiry, seconds of Unix time; 0 if not told.
    pub expires: u64,
    /// The header's JSON.
    pub header: Map<String, Value>,
    /// The payload's JSON.
    pub payload: Map<String, Value>,
    /// The payload as it was sent.
    pub payload_base64: String,
    /// What was signed.
    pub signed: String,
    /// The signature.
    pub signature: Vec<u8>,
}

/// Algorithms this engine verifies.
const ALGORITHMS: [&str; 13] = [
    "ES256", "ES384", "ES512", "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA",
];

impl Token {
    /// Takes a token apart.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Status> {
        if text.len() > MAX_TOKEN {
            return Err(Status::BadFormat);
        }
        // Envoy's reader does not mind dots too many at the ends, nor spaces.
        let mut parts = text.trim_ascii().split('.').filter(|part| !part.is_empty());
        let (Some(header64), Some(payload64), Some(signature64), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Status::BadFormat);
        };
        let header = object(header64, Status::HeaderBase64, Status::HeaderJson)?;
        let alg = match header.get("alg") {
            Some(Value::String(alg)) => alg.clone(),
            _ => return Err(Status::HeaderAlg),
        };
        if !ALGORITHMS.contains(&alg.as_str()) {
            return Err(Status::AlgNotSupported);
        }
        let kid = text_of(&header, "kid", Status::HeaderKid)?;
        let payload = object(payload64, Status::PayloadBase64, Status::PayloadJson)?;
        let token = Self {
            alg,
            kid,
            issuer: text_of(&payload, "iss", Status::Iss)?,
            subject: text_of(&payload, "sub", Status::Sub)?,
            not_before: {
                number(&payload, "iat", Status::Iat, Status::IatRange)?;
                number(&payload, "nbf", Status::Nbf, Status::NbfRange)?
            },
            expires: number(&payload, "exp", Status::Exp, Status::ExpRange)?,
            audiences: {
                text_of(&payload, "jti", Status::Jti)?;
                audiences(&payload)?
            },
            payload_base64: payload64.to_owned(),
            signed: format!("{header64}.{payload64}"),
            signature: decode(signature64).ok_or(Status::SignatureBase64)?,
            header,
            payload,
        };
        if token.header.contains_key("crit") {
            return Err(Status::VerificationFails);
        }
        Ok(token)
    }

    /// Whether it is valid at a time.
    ///
    /// # Errors
    /// [`Status::NotYetValid`], [`Status::Expired`].
    pub fn check_time(&self, now: u64, skew: u64) -> Result<(), Status> {
        if now.saturating_add(skew) < self.not_before {
            return Err(Status::NotYetValid);
        }
        if self.expires != 0 && now > self.expires.saturating_add(skew) {
            return Err(Status::Expired);
        }
        Ok(())
    }
}

/// Base64url without padding; bits too many at the end do no harm, since what is signed is the text.
fn decode(part: &str) -> Option<Vec<u8>> {
    const CONFIG: GeneralPurposeConfig = NO_PAD.with_decode_allow_trailing_bits(true);
    const ENGINE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, CONFIG);
    if part.bytes().any(|b| b.is_ascii_whitespace()) {
        return ENGINE.decode(part.split_ascii_whitespace().collect::<String>()).ok();
    }
    ENGINE.decode(part).ok()
}

fn object(part: &str, encoding: Status, json: Status) -> Result<Map<String, Value>, Status> {
    let bytes = decode(part).ok_or(encoding)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(json),
    }
}

fn text_of(object: &Map<String, Value>, key: &str, wrong: Status) -> Result<String, Status> {
    match object.get(key) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(wrong),
    }
}

fn number(object: &Map<String, Value>, key: &str, wrong: Status, range: Status) -> Result<u64, Status> {
    match object.get(key) {
        None => Ok(0),
        Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
            (Some(whole), _) => Ok(whole),
            // 2^64, the first number that does not fit.
            (None, Some(value)) if (0.0..18_446_744_073_709_551_616.0).contains(&value) => Ok(value as u64),
            _ => Err(range),
        },
        Some(_) => Err(wrong),
    }
}

fn audiences(object: &Map<String, Value>) -> Result<Vec<String>, Status> {
    match object.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|v| v.as_str().map(str::to_owned).ok_or(Status::Aud));
            texts.collect()
        }
        Some(_) => Err(Status::Aud),
    }
}
