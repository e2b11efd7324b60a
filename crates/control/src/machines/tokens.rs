//! Join tokens as they are kept: what a token is good for, and whether it still is.
//!
//! Invariant: a token lets one key in, once: its record names the key from before the first certificate is signed, so that whoever was cut
//! off in between may repeat the request with the same key, and nobody with another. Only a digest of the token is kept. Reading and
//! writing records is [`super::store`]'s; here is no clock.

use std::time::{Duration, SystemTime};

use carrick_api::timestamp::Timestamp;
use carrick_pki::join::JoinToken;
use serde::{Deserialize, Serialize};

/// A token, as its keeper knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRecord {
    /// SHA-256 of the token, hexadecimal.
    pub digest: String,
    /// The WorkloadGroup it is for.
    pub group: String,
    /// The group's namespace.
    pub namespace: String,
    /// The identity that is given out.
    pub service_account: String,
    /// When it was made (RFC 3339).
    pub created: String,
    /// When it ends (RFC 3339).
    pub expires: String,
    /// Who used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Use>,
}

/// The one use of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Use {
    /// SHA-256 of the key it let in, hexadecimal.
    pub key: String,
    /// When (RFC 3339).
    pub at: String,
    /// From where; empty when that is not known.
    #[serde(default)]
    pub from: String,
}

/// Why a token is not good. The fault is the caller's; the text is for the person who carries it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// No such token, or its secret is another.
    #[error("the join token is not known here: it was revoked, or made for another mesh")]
    Unknown,
    /// It has ended.
    #[error("the join token has expired at {0}: make a new one with `carrick vm token create`")]
    Expired(String),
    /// Another key came with it first.
    #[error(
        "the join token was already used at {at}{from}: each is good for one machine; make a new one with `carrick vm token create`"
    )]
    Used {
        /// When.
        at: String,
        /// From where, with words before it.
        from: String,
    },
    /// The group it was made for has changed.
    #[error("{0}")]
    Group(String),
}

/// What comes of showing a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is good, and its record must become this one before anything is signed.
    Take(Box<TokenRecord>),
    /// The same key again: it is good, and nothing changes.
    Again,
}

impl TokenRecord {
    /// The record of a new token.
    pub fn new(token: &JoinToken, group: [&str; 3], now: SystemTime, ttl: Duration) -> Self {
        let [namespace, group, service_account] = group.map(str::to_owned);
        let expires = now.checked_add(ttl).unwrap_or(now);
        Self {
            digest: token.digest(),
            group,
            namespace,
            service_account,
            created: text(now),
            expires: text(expires),
            used: None,
        }
    }

    /// Judges a token that came with a key.
    ///
    /// # Errors
    /// See [`TokenRefusal`].
    pub fn judge(&self, token: &JoinToken, key: &str, from: &str, now: SystemTime) -> Result<Outcome, TokenRefusal> {
        // First of all: who does not know the secret learns nothing of the token's state.
        if !token.matches(&self.digest) {
            return Err(TokenRefusal::Unknown);
        }
        if self.is_expired(now) {
            return Err(TokenRefusal::Expired(self.expires.clone()));
        }
        match &self.used {
            None => {
                let used = Use { key: key.to_owned(), at: text(now), from: from.to_owned() };
                Ok(Outcome::Take(Box::new(Self { used: Some(used), ..self.clone() })))
            }
            Some(used) if used.key == key => Ok(Outcome::Again),
            Some(used) => {
                let from = if used.from.is_empty() { String::new() } else { format!(" from {}", used.from) };
                Err(TokenRefusal::Used { at: used.at.clone(), from })
            }
        }
    }

    /// Whether it has ended; a time that cannot be read has.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        Timestamp::parse(&self.expires).is_none_or(|expires| expires <= Timestamp::from_system(now))
    }

    /// `unused`, `used` or `expired`.
    pub fn state(&self, now: SystemTime) -> &'static str {
        match (&self.used, self.is_expired(now)) {
            (Some(_), _) => "used",
            (None, true) => "expired",
            (None, false) => "unused",
        }
    }
}

fn text(time: SystemTime) -> String {
    Timestamp::from_system(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn one_key_once_and_only_in_time() {
        let token = JoinToken::generate().unwrap();
        let record = TokenRecord::new(&token, ["gopay", "ledger", "ledger"], start(), HOUR);
        let stranger = JoinToken::generate().unwrap();
        assert_eq!(record.judge(&stranger, "k1", "", start()), Err(TokenRefusal::Unknown));
        let Ok(Outcome::Take(taken)) = record.judge(&token, "k1", "192.0.2.7", start()) else { panic!("not taken") };
        assert_eq!(taken.used.as_ref().map(|u| (u.key.as_str(), u.from.as_str())), Some(("k1", "192.0.2.7")));
        assert_eq!(taken.judge(&token, "k1", "", start() + HOUR / 2), Ok(Outcome::Again), "cut off, and again");
        let refused = taken.judge(&token, "k2", "", start() + HOUR / 2).unwrap_err().to_string();
        assert!(refused.contains("already used at 2027-01-15T08:00:00Z from 192.0.2.7"), "{refused}");
        for record in [&record, &taken] {
            let late = record.judge(&token, "k1", "", start() + HOUR);
            assert!(matches!(late, Err(TokenRefusal::Expired(_))), "{late:?}");
        }
        assert_eq!(taken.judge(&stranger, "k1", "", start() + HOUR), Err(TokenRefusal::Unknown), "nothing is told");
    }

    #[test]
    fn states_for_lists() {
        let token = JoinToken::generate().unwrap();
        let record = TokenRecord::new(&token, ["n", "g", "s"], start(), HOUR);
        assert_eq!((record.state(start()), record.state(start() + HOUR)), ("unused", "expired"));
        let broken = TokenRecord { expires: "soon".into(), ..record };
        assert_eq!(broken.state(start()), "expired", "fails closed");
    }
}
