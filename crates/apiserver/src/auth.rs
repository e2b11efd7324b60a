//! Who is calling: client certificates and service-account tokens.
//!
//! Invariant: a caller that shows something invalid is refused (401); one that shows nothing is `system:anonymous`.
//! What it leaves to others: what a caller may do (`authorize`).

pub mod certs;
pub mod files;
pub mod tokens;

use crate::authorize::User;
use crate::error::{ApiError, ApiResult};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use tokens::Tokens;

/// Everybody who proved a name is in this group.
pub const AUTHENTICATED: &str = "system:authenticated";

/// Where a user's credential is told apart from the same user's others.
pub const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// Finds out who sent a request; `peer` is the user of the connection's client certificate.
///
/// # Errors
/// `Unauthorized` for a token that is not good.
pub fn authenticate(headers: &HeaderMap, peer: Option<&User>, tokens: &Tokens) -> ApiResult<User> {
    if let Some(user) = peer {
        return Ok(user.clone());
    }
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(User::anonymous()) };
    let text = header.to_str().map_err(|_| ApiError::Unauthorized)?;
    let token = match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        // Other ways to show who one is are not known, and so show nothing.
        _ => return Ok(User::anonymous()),
    };
    tokens.verify(token, &[]).map(|verified| verified.user).map_err(|error| {
        tracing::debug!(%error, "a bearer token was refused");
        ApiError::Unauthorized
    })
}
