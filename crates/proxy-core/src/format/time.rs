//! Points in time as text: the strftime subset that Envoy's `%START_TIME(…)%` has.
//!
//! Invariant: UTC; a time is given as its distance from 1970, no clock is read. What is not a conversion stands for itself.

use std::fmt::Write as _;
use std::time::Duration;

/// ISO 8601 with milliseconds, Envoy's default.
pub const DEFAULT: &str = "%Y-%m-%dT%H:%M:%E3SZ";

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Whether every conversion is one that [`write`] knows.
#[must_use]
pub fn is_known(format: &str) -> bool {
    let mut rest = format;
    while let Some((_, after)) = rest.split_once('%') {
        let Some(length) = conversion(after) else { return false };
        rest = after.get(length..).unwrap_or_default();
    }
    true
}

/// Length of the conversion after a `%`.
fn conversion(after: &str) -> Option<usize> {
    let mut chars = after.chars();
    match chars.next()? {
        'Y' | 'm' | 'd' | 'e' | 'H' | 'M' | 'S' | 's' | 'f' | 'F' | 'T' | 'j' | 'y' | 'z' | 'Z' | 'a' | 'A' | 'b'
        | 'B' | '%' | 'n' | 't' => Some(1),
        // Fractions of Envoy's own: %3f, %6f, %9f.
        '1'..='9' if chars.next() == Some('f') => Some(2),
        'E' => match (chars.next()?, chars.next()) {
            ('1'..='9' | '*', Some('S' | 'f')) => Some(3),
            ('z', _) => Some(2),
            _ => None,
        },
        _ => None,
    }
}

/// Appends the time.
pub fn write(since: Duration, format: &str, out: &mut String) {
    let (days, secs) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (hour, minute, second) = (secs / 3600, secs % 3600 / 60, secs % 60);
    let days = i64::try_from(days).unwrap_or(0);
    let (year, month, day) = civil(days);
    let nanos = since.subsec_nanos();
    let fraction = |digits: u32, out: &mut String| {
        let shown = nanos / 10_u32.pow(9_u32.saturating_sub(digits));
        let _ = write!(out, "{shown:0width$}", width = usize::try_from(digits).unwrap_or(9));
    };
    let name = |names: &'static [&'static str], at: i64| {
        usize::try_from(at).ok().and_then(|at| names.get(at)).copied().unwrap_or_default()
    };
    let weekday = (days + 4).rem_euclid(7);
    let short = |name: &'static str| name.get(..3).unwrap_or_default();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let length = conversion(after).unwrap_or(0);
        let (what, tail) = after.split_at_checked(length).unwrap_or((after, ""));
        let _ = match what {
            "Y" => write!(out, "{year:04}"),
            "y" => write!(out, "{:02}", year.rem_euclid(100)),
            "m" => write!(out, "{month:02}"),
            "d" => write!(out, "{day:02}"),
            "e" => write!(out, "{day:2}"),
            "H" => write!(out, "{hour:02}"),
            "M" => write!(out, "{minute:02}"),
            "S" => write!(out, "{second:02}"),
            "s" => write!(out, "{}", since.as_secs()),
            "F" => write!(out, "{year:04}-{month:02}-{day:02}"),
            "T" => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            "j" => write!(out, "{:03}", days.saturating_sub(day_number(year)).saturating_add(1)),
            "z" => write!(out, "+0000"),
            "Ez" => write!(out, "+00:00"),
            "Z" => write!(out, "UTC"),
            "a" => write!(out, "{}", short(name(&DAYS, weekday))),
            "A" => write!(out, "{}", name(&DAYS, weekday)),
            "b" => write!(out, "{}", short(name(&MONTHS, month.saturating_sub(1)))),
            "B" => write!(out, "{}", name(&MONTHS, month.saturating_sub(1))),
            "%" => write!(out, "%"),
            "n" => writeln!(out),
            "t" => write!(out, "\t"),
            "f" => {
                fraction(9, out);
                Ok(())
            }
            "E*S" | "E*f" => {
                let _ = if what.ends_with('S') { write!(out, "{second:02}.") } else { Ok(()) };
                fraction(9, out);
                Ok(())
            }
            other => match other.chars().find_map(|c| c.to_digit(10)) {
                Some(digits) => {
                    let _ = if other.ends_with('S') { write!(out, "{second:02}.") } else { Ok(()) };
                    fraction(digits, out);
                    Ok(())
                }
                None => write!(out, "%"),
            },
        };
        rest = tail;
    }
    out.push_str(rest);
}

/// The number of a year's first day.
fn day_number(year: i64) -> i64 {
    let before = year.saturating_sub(1);
    let leaps = before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400);
    before.saturating_mul(365).saturating_add(leaps).saturating_sub(719_162)
}

/// Year, month, day of a day number since 1970 (Gregorian, by 400-year eras).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day = z.rem_euclid(146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let mp = (5 * of_year + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (year + era * 400 + i64::from(month <= 2), month, of_year - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(19_782), (2024, 2, 29));
        assert_eq!(civil(20_779), (2026, 11, 22));
        let at = Duration::new(19_782 * 86_400 + 3723, 45_678_901);
        for (format, expected) in [
            (DEFAULT, "2024-02-29T01:02:03.045Z"),
            ("%Y/%m/%d %H:%M:%S", "2024/02/29 01:02:03"),
            ("%s.%3f", "1709168523.045"),
            ("%a %e %b %y %j %z%%", "Thu 29 Feb 24 060 +0000%"),
            ("%E6S|%f", "03.045678|045678901"),
        ] {
            let mut out = String::new();
            write(at, format, &mut out);
            assert_eq!(out, expected);
            assert!(is_known(format));
        }
        assert!(!is_known("%Q") && !is_known("100%"));
    }
}
