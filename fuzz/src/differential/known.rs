//! Differences that stay: ours is the stricter, on purpose.
//!
//! Invariant: an entry names its cause as narrowly as the case shows it; anything else that differs is new.

use super::batch::Seen;
use super::case::{Ask, Says};
use super::client::Outcome;

/// Why a difference stays, if it does.
pub fn reason(ask: &Ask, seen: &Seen) -> Option<&'static str> {
    let Says::Http(request) = &ask.says else { return None };
    // The issuers' keys are of elliptic curves and name no algorithm: Envoy 1.40 believes whatever the token's header says.
    let other_algorithm = request.tokens.iter().any(|t| t.alg.starts_with("HS256"));
    let refused = matches!(&seen.native, Outcome::Answer { status: 401, .. });
    (other_algorithm && refused).then_some("a token whose header names an algorithm that its key is not of")
}
