//! Texts of flags and variables turned into values.
//!
//! Invariant: every function takes the whole text or says what it wanted instead. Names of options are not known here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// A Go duration: `24h`, `1h30m`, `500ms`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration like 24h, 1h30m or 500ms");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at_checked(digits).ok_or_else(wrong)?;
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(unit_len).ok_or_else(wrong)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(total)
}

/// `true` or `false`, also `1` and `0`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

/// A share between 0 and 1.
pub(super) fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err(format!("{text:?} is no number from 0 to 1")),
    }
}

/// Addresses separated by commas.
pub(super) fn addresses(text: &str) -> Result<Vec<IpAddr>, String> {
    text.split(',').map(|a| a.trim().parse().map_err(|_| format!("{a:?} is no IP address"))).collect()
}

/// A Kubernetes name: what may stand in a node id and in a SPIFFE path.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
    if fits { Ok(text.to_owned()) } else { Err(format!("{text:?} is no name of a Kubernetes object")) }
}

/// `host:port`.
pub(crate) fn host_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0) => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no host:port")),
    }
}

/// A count of at least one.
/// Worker threads; 0 is one for each core.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    match text {
        "0" => Ok(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)),
        text => count(text),
    }
}

pub(super) fn count(text: &str) -> Result<usize, String> {
    // Kubernetes may hand a CPU limit over as milli-CPUs.
    let value = match text.strip_suffix('m') {
        Some(milli) => milli.parse::<usize>().map(|m| m.div_ceil(1000)),
        None => text.parse::<usize>(),
    };
    match value {
        Ok(value) if (1..=1024).contains(&value) => Ok(value),
        _ => Err(format!("{text:?} is no number from 1 to 1024")),
    }
}

/// A downward API file: lines of `key="value"` with Go escapes.
pub(super) fn downward_map(text: &str) -> Result<BTreeMap<String, String>, String> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let wrong = || format!("line {line:?} is not key=\"value\"");
            let (key, value) = line.split_once('=').ok_or_else(wrong)?;
            // Go's quoting of these values is JSON's but for \x and \a, which do not occur in labels.
            let value: String = serde_json::from_str(value).map_err(|_| wrong())?;
            Ok((key.to_owned(), value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expect) in [
            ("24h", Some(86_400_000)),
            ("1h30m", Some(5_400_000)),
            ("500ms", Some(500)),
            ("1.5s", Some(1500)),
            ("7", Some(7000)),
            ("0s", Some(0)),
            ("", None),
            ("h", None),
            ("5", Some(5000)),
            ("5 s", None),
            ("-5s", None),
            ("5d", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text).ok().map(|d| d.as_millis()), expect, "{text:?}");
        }
    }

    #[test]
    fn other_values() {
        assert!(name("shop-1").is_ok() && name("a.b").is_ok());
        for bad in ["", "a~b", "A", "a/b", "a_b"] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
        assert!(host_port("10.244.0.1:15012").is_ok() && host_port("[fd00::1]:1").is_ok());
        for bad in ["", "x", ":1", "x:0", "x:99999"] {
            assert!(host_port(bad).is_err(), "{bad:?}");
        }
        assert_eq!((count("1500m"), count("2")), (Ok(2), Ok(2)));
        assert!(count("0").is_err() && ratio("1.1").is_err() && boolean("yes").is_err());
        let map = downward_map("app=\"shop\"\nx/y=\"a \\\"b\\\"\\n\"\n\n").unwrap();
        assert_eq!(map["x/y"], "a \"b\"\n");
        assert!(downward_map("app").is_err());
    }
}
