//! Quantities as Kubernetes writes them back: `2000m` is `2`, `1024Mi` is `1Gi`.
//!
//! Invariant: the value is kept; only its spelling changes. What is not a quantity is left as it is. Source: the API machinery's
//! documentation of `resource.Quantity` (canonical form).

use serde_json::Value;

const BINARY: &[&str] = &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// With powers of ten.
const DECIMAL: &[(&str, i32)] =
    &[("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// The canonical spelling.
pub(crate) fn canonical(text: &str) -> String {
    spelled(text).unwrap_or_else(|| text.to_owned())
}

/// Gives every value of an object (`requests`, `limits`) its canonical spelling; numbers become text.
pub(crate) fn canonical_values(values: &mut Value) {
    for value in values.as_object_mut().into_iter().flat_map(|map| map.values_mut()) {
        match value {
            Value::String(text) => *text = canonical(text),
            Value::Number(number) => *value = Value::String(canonical(&number.to_string())),
            _ => {}
        }
    }
}

fn spelled(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.trim_end_matches('0');
    // mantissa × 10^-fraction.len()
    let mantissa: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = i32::try_from(fraction.len()).ok()?.checked_neg()?;
    if mantissa == 0 {
        return Some("0".to_owned());
    }
    if let Some(power) = BINARY.iter().position(|unit| !unit.is_empty() && *unit == suffix) {
        let factor = 1024_u128.checked_pow(u32::try_from(power).ok()?)?;
        let divisor = 10_u128.checked_pow(scale.unsigned_abs())?;
        let product = mantissa.checked_mul(factor)?;
        // A fraction of a byte would be written in decimals.
        if product.checked_rem(divisor)? != 0 {
            return None;
        }
        return Some(format!("{sign}{}", binary(product.checked_div(divisor)?)?));
    }
    let power = match DECIMAL.iter().find(|(unit, _)| *unit == suffix) {
        Some((_, power)) => *power,
        // Exponents stay exponents.
        None => return None,
    };
    Some(format!("{sign}{}", decimal(mantissa, power.checked_add(scale)?)?))
}

fn binary(bytes: u128) -> Option<String> {
    if bytes < 1024 {
        return decimal(bytes, 0);
    }
    let (mut value, mut unit) = (bytes, 0_usize);
    while value.is_multiple_of(1024) && unit < BINARY.len().saturating_sub(1) {
        value >>= 10;
        unit = unit.checked_add(1)?;
    }
    Some(format!("{value}{}", BINARY.get(unit)?))
}

fn decimal(mut mantissa: u128, mut power: i32) -> Option<String> {
    while mantissa.is_multiple_of(10) {
        mantissa = mantissa.checked_div(10)?;
        power = power.checked_add(1)?;
    }
    if power < -9 {
        return None;
    }
    // The largest unit that leaves a whole number.
    let (unit, base) = DECIMAL.iter().rev().find(|(_, base)| *base <= power)?;
    let zeros = u32::try_from(power.checked_sub(*base)?).ok()?;
    Some(format!("{}{unit}", mantissa.checked_mul(10_u128.checked_pow(zeros)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for (given, written) in [
            ("2000m", "2"),
            ("100m", "100m"),
            ("1024Mi", "1Gi"),
            ("128Mi", "128Mi"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1000", "1k"),
            ("1", "1"),
            ("10", "10"),
            ("0", "0"),
            ("1500m", "1500m"),
            ("512", "512"),
            ("1e3", "1e3"),
            ("lots", "lots"),
            ("-2000m", "-2"),
            ("1000Ki", "1000Ki"),
        ] {
            assert_eq!(canonical(given), written, "{given}");
        }
    }
}
