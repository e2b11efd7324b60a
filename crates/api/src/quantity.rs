//! Quantities such as `100m`, `1Gi` and `5e3`: exact numbers, and the one way in which Kubernetes writes each.
//!
//! Invariant: a quantity that was read and written is the same number; anything smaller than a thousand-millionth is rounded up.

use std::fmt;

const NANO: i128 = 1_000_000_000;
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

/// A number, and how it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity {
    nano: i128,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Decimal,
    Binary,
    Exponent,
}

/// Kubernetes' quantity grammar: a decimal number with a binary, decimal or exponent suffix.
pub fn is_quantity(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    if !number.bytes().any(|b| b.is_ascii_digit()) || number.matches('.').count() > 1 {
        return false;
    }
    let exponent = |rest: &str| {
        let digits = rest.strip_prefix(['+', '-']).unwrap_or(rest);
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
    };
    matches!(suffix, "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei")
        || suffix.strip_prefix(['e', 'E']).is_some_and(exponent)
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nano: 0, form: Form::Decimal };

    /// A whole number.
    pub fn whole(number: i64) -> Self {
        Self { nano: i128::from(number).saturating_mul(NANO), form: Form::Decimal }
    }

    /// Reads a quantity; `None` for text that is none.
    pub fn parse(text: &str) -> Option<Self> {
        if !is_quantity(text) {
            return None;
        }
        let negative = text.starts_with('-');
        let text = text.trim_start_matches(['+', '-']);
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (form, base, power) = scale(suffix)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let mut nano: i128 = 0;
        for digit in whole.chars().filter_map(|c| c.to_digit(10)) {
            nano = nano.checked_mul(10)?.checked_add(i128::from(digit))?;
        }
        let mut below = 9_i32;
        let mut lost = false;
        for digit in fraction.chars().filter_map(|c| c.to_digit(10)) {
            // Digits that the scale brings above a thousand-millionth count; eighteen are enough for every scale.
            if below > -18 {
                nano = nano.checked_mul(10)?.checked_add(i128::from(digit))?;
                below = below.saturating_sub(1);
            } else {
                lost |= digit != 0;
            }
        }
        let mut shift = below;
        if base == 10 {
            shift = shift.saturating_add(power);
        } else {
            for _ in 0..power {
                nano = nano.checked_mul(1024)?;
            }
        }
        for _ in 0..shift.max(0) {
            nano = if nano == 0 { 0 } else { nano.checked_mul(10)? };
        }
        for _ in 0..shift.min(0).unsigned_abs() {
            lost |= nano % 10 != 0;
            nano /= 10;
        }
        if lost {
            nano = nano.checked_add(1)?;
        }
        Some(Self { nano: if negative { -nano } else { nano }, form })
    }

    /// A JSON string or number.
    pub fn of(value: &serde_json::Value) -> Option<Self> {
        match value {
            serde_json::Value::String(text) => Self::parse(text),
            serde_json::Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    /// The sum, written as the first of them that is not zero.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let form = if self.nano == 0 { other.form } else { self.form };
        Self { nano: self.nano.saturating_add(other.nano), form }
    }

    /// What is left when `other` is taken away.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { nano: self.nano.saturating_sub(other.nano), form: self.form }
    }

    /// In thousand-millionths.
    pub fn nano(self) -> i128 {
        self.nano
    }
}

fn scale(suffix: &str) -> Option<(Form, u32, i32)> {
    if let Some(place) = DECIMAL.iter().position(|s| *s == suffix) {
        let power = i32::try_from(place).ok()?.saturating_sub(3).saturating_mul(3);
        return Some((Form::Decimal, 10, power));
    }
    if let Some(place) = BINARY.iter().position(|s| *s == suffix) {
        return Some((Form::Binary, 2, i32::try_from(place).ok()?));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    Some((Form::Exponent, 10, exponent.parse::<i32>().ok().filter(|e| e.abs() <= 30)?))
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.nano.cmp(&other.nano))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nano == 0 {
            return f.write_str("0");
        }
        if self.form == Form::Binary && self.nano.abs() >= 1024 * NANO {
            let mut whole = self.nano / NANO;
            if self.nano % NANO > 0 {
                whole = whole.saturating_add(1);
            }
            let mut place = 0;
            while whole % 1024 == 0 && place < 6 {
                whole /= 1024;
                place += 1;
            }
            return write!(f, "{whole}{}", BINARY.get(place).copied().unwrap_or_default());
        }
        let (mut mantissa, mut place) = (self.nano, 0_usize);
        while mantissa % 1000 == 0 && place < 9 {
            mantissa /= 1000;
            place += 1;
        }
        match self.form {
            Form::Exponent if place != 3 => {
                let power = i32::try_from(place).unwrap_or(3).saturating_sub(3).saturating_mul(3);
                write!(f, "{mantissa}e{power}")
            }
            _ => write!(f, "{mantissa}{}", DECIMAL.get(place).copied().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_as_kubernetes_does() {
        for (given, written) in [
            ("0", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.1", "100m"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("2048Ki", "2Mi"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("1Ki", "1Ki"),
            ("1023.5Ki", "1048064"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("5e0", "5"),
            ("-1Gi", "-1Gi"),
            ("+2", "2"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("100000000", "100M"),
        ] {
            assert_eq!(Quantity::parse(given).map(|q| q.to_string()).as_deref(), Some(written), "{given}");
        }
        for bad in ["", "x", "1x", "1 Gi", "1kk", "--1", "1e"] {
            assert_eq!(Quantity::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn compared_and_added() {
        let q = |text: &str| Quantity::parse(text).unwrap();
        assert!(q("1Gi") > q("1G") && q("100m") < q("1") && q("1000m") >= q("1"));
        assert_eq!(q("512Mi").plus(q("512Mi")).to_string(), "1Gi");
        assert_eq!(Quantity::ZERO.plus(q("1Gi")).to_string(), "1Gi");
        assert_eq!(q("900m").plus(q("100m")).to_string(), "1");
    }
}
