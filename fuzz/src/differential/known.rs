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
    if other_algorithm && refused {
        return Some("a token whose header names an algorithm that its key is not of");
    }
    // Envoy finds no route without this header, which it writes itself a little later: a client that sends it gets the changes that a
    // route makes to responses also where the request was refused before it was routed.
    let told = request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-proto"));
    let early = |status: u16| matches!(status, 400 | 404);
    match (&seen.native, &seen.envoy) {
        (
            Outcome::Answer { status: ours, headers: own, body },
            Outcome::Answer { status: theirs, headers, body: other },
        ) if told
            && early(*ours)
            && (ours, body) == (theirs, other)
            && own.iter().all(|(name, value)| headers.get(name) == Some(value)) =>
        {
            Some("a refusal before routing, with the route's changes where the client sends x-forwarded-proto")
        }
        _ => None,
    }
}
