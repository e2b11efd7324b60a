//! Signed tokens and the keys that check them, without regard to who asks for them.
//!
//! Invariant: a token is believed only after a key of a set verified it. Knows no filter and no request: which tokens a request must have is
//! in `crate::jwt`. Texts of errors are Envoy's.

pub mod keys;
pub mod token;

macro_rules! statuses {
    ($($variant:ident = $text:literal),* $(,)?) => {
        /// What is wrong with a token or its keys.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Status { $(#[doc = $text] $variant),* }
        impl Status {
            /// Envoy's text, which is the body of the refusal.
            #[must_use]
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

statuses! {
    Missed = "Jwt is missing",
    NotYetValid = "Jwt not yet valid",
    Expired = "Jwt is expired",
    BadFormat = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
    HeaderBase64 = "Jwt header is an invalid Base64url encoded",
    HeaderJson = "Jwt header is an invalid JSON",
    HeaderAlg = "Jwt header [alg] field is required and must be a string",
    AlgNotSupported = "Jwt header [alg] is not supported",
    HeaderKid = "Jwt header [kid] field is not a string",
    PayloadBase64 = "Jwt payload is an invalid Base64url encoded",
    PayloadJson = "Jwt payload is an invalid JSON",
    Iss = "Jwt payload [iss] field is not a string",
    Sub = "Jwt payload [sub] field is not a string",
    Jti = "Jwt payload [jti] field is not a string",
    Aud = "Jwt payload [aud] field is not a string or string list",
    Iat = "Jwt payload [iat] field is not an integer",
    IatRange = "Jwt payload [iat] field is not a positive 64 bit integer",
    Nbf = "Jwt payload [nbf] field is not an integer",
    NbfRange = "Jwt payload [nbf] field is not a positive 64 bit integer",
    Exp = "Jwt payload [exp] field is not an integer",
    ExpRange = "Jwt payload [exp] field is not a positive 64 bit integer",
    SignatureBase64 = "Jwt signature is an invalid Base64url encoded",
    EdLength = "Jwt ED25519 signature is wrong length",
    UnknownIssuer = "Jwt issuer is not configured",
    Audience = "Audiences in Jwt are not allowed",
    VerificationFails = "Jwt verification fails",
    KidAlgMismatch = "Jwks doesn't have key to match kid or alg from Jwt",
    NoValidKeys = "Jwks doesn't have any valid public key",
    JwksJson = "Jwks is an invalid JSON",
    JwksNoKeys = "Jwks does not have [keys] field",
    FetchFailed = "Jwks remote fetch is failed",
}
