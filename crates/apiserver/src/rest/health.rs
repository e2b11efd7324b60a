//! `/livez`, `/readyz` and `/healthz`, whole or one check of them, with the list for those who ask for it.
//!
//! Invariant: the list has Kubernetes' shape, and only checks that are made here.

use super::request::Query;
use super::respond::{self, Answer};
use crate::error::{ApiError, ApiResult};
use std::fmt::Write as _;

/// What is known of the server.
pub struct State {
    /// Whether the storage takes writes.
    pub storage: bool,
    /// Whether the server has begun to answer.
    pub started: bool,
    /// Whether it is about to end.
    pub ending: bool,
}

impl State {
    /// The checks of a path, and how they are.
    fn checks(&self, path: &str) -> Vec<(&'static str, bool)> {
        let mut checks = vec![("ping", true), ("log", true)];
        if path != "livez" {
            checks.push(("etcd", self.storage));
        }
        if path == "readyz" {
            checks.push(("informer-sync", self.started));
        }
        checks.push(("poststarthook/start-apiextensions-controllers", self.started || path == "livez"));
        checks.push(("poststarthook/rbac/bootstrap-roles", self.started || path == "livez"));
        if path == "readyz" {
            checks.push(("shutdown", !self.ending));
        }
        checks
    }
}

/// Answers `/livez`, `/readyz/etcd` and the like.
///
/// # Errors
/// `NoSuchPage` for a check that there is not.
pub fn answer(path: &str, query: &Query, state: &State) -> ApiResult<Answer> {
    let whole = path.trim_start_matches('/');
    let (name, one) = whole.split_once('/').map_or((whole, None), |(name, check)| (name, Some(check)));
    let checks = state.checks(name);
    if let Some(check) = one {
        let found = checks.iter().find(|(name, _)| *name == check).ok_or(ApiError::NoSuchPage)?;
        return Ok(if found.1 {
            respond::text(200, "ok")
        } else {
            respond::text(500, "internal server error: reason withheld\n")
        });
    }
    let left_out: Vec<&str> = query.all("exclude").collect();
    let mut list = String::new();
    let mut good = true;
    for (check, holds) in checks {
        // Writing to a String does not fail.
        let _infallible = if left_out.contains(&check) {
            writeln!(list, "[+]{check} excluded: ok")
        } else if holds {
            writeln!(list, "[+]{check} ok")
        } else {
            good = false;
            writeln!(list, "[-]{check} failed: reason withheld")
        };
    }
    Ok(match (good, query.all("verbose").next().is_some()) {
        (true, false) => respond::text(200, "ok"),
        (true, true) => respond::text(200, format!("{list}{name} check passed\n")),
        (false, _) => respond::text(500, format!("{list}{name} check failed\n")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(path: &str, query: &str, state: &State) -> u16 {
        answer(path, &Query::parse(query), state).map_or_else(|e| e.code(), |a| a.status().as_u16())
    }

    #[test]
    fn checks_are_found_by_name_and_left_out_by_wish() {
        let good = State { storage: true, started: true, ending: false };
        let full = State { storage: false, started: true, ending: false };
        assert_eq!((code("/readyz", "verbose", &good), code("/readyz/etcd", "", &good)), (200, 200));
        assert_eq!(
            (code("/readyz", "", &full), code("/livez", "", &full), code("/healthz/etcd", "", &full)),
            (500, 200, 500)
        );
        assert_eq!((code("/readyz", "exclude=etcd", &full), code("/readyz/nosuch", "", &full)), (200, 404));
    }
}
