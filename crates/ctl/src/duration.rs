//! Durations as people type them.
//!
//! Invariant: what is read is more than nothing.

use std::time::Duration;

/// Go's duration syntax: `90s`, `1h30m`, `500ms`.
///
/// # Errors
/// It is none, in words.
pub fn parse(text: &str) -> Result<Duration, String> {
    let fail = || format!("{text:?} is not a duration such as 90s, 30m or 1h30m");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(fail)?;
        let value: u64 = rest[..digits].parse().map_err(|_| fail())?;
        let tail = &rest[digits..];
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let millis: u64 = match &tail[..unit_len] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(fail()),
        };
        total += Duration::from_millis(value.checked_mul(millis).ok_or_else(fail)?);
        rest = &tail[unit_len..];
    }
    if total.is_zero() { Err(fail()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "5", "h", "5d", "0s", "-1s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
