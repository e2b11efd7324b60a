//! Regular expressions in RE2's syntax, judged before a proxy sees them.
//!
//! Invariant: what RE2 refuses is refused; what RE2 takes and the expression engine at hand spells differently (a bracket
//! inside a class, a brace that repeats nothing) is translated before it is asked.

/// Longest expression accepted, in bytes.
const LIMIT: usize = 1024;
/// Most repetitions of a counted group.
const MOST_REPEATS: u32 = 1000;

/// Judges an expression.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn check(expression: &str) -> Result<(), String> {
    if expression.len() > LIMIT {
        return Err(format!("regex is too large, max length allowed is {LIMIT}"));
    }
    compile(expression)
}

/// Like [`check`], without the limit of length.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn compile(expression: &str) -> Result<(), String> {
    let hint = "; Istio uses RE2 style regex-based match (https://github.com/google/re2/wiki/Syntax)";
    let translated = translate(expression).map_err(|what| format!("error parsing regexp: {what}{hint}"))?;
    match regex::Regex::new(&translated) {
        Ok(_) => Ok(()),
        // The library draws the place on several lines; the last one says what it is.
        Err(error) => {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err(format!("error parsing regexp: {last}: `{expression}`{hint}"))
        }
    }
}

/// RE2's spelling → the engine's.
fn translate(expression: &str) -> Result<String, String> {
    let mut out = String::with_capacity(expression.len());
    let mut rest = expression;
    let mut in_class = false;
    // Whether what stands before is a repetition (and whether it was made lazy).
    let mut repetition: Option<bool> = None;
    while let Some(c) = rest.chars().next() {
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        let mut repeats = None;
        match c {
            '\\' => {
                let escaped = after.chars().next().ok_or("trailing backslash at end of expression: ``")?;
                if escaped == 'Q' && !in_class {
                    let body = after.get(1..).unwrap_or_default();
                    let (literal, next) = body.split_once("\\E").unwrap_or((body, ""));
                    out.push_str(&regex::escape(literal));
                    rest = next;
                    repetition = None;
                    continue;
                }
                if matches!(escaped, '<' | '>') {
                    out.push(escaped);
                } else {
                    out.push(c);
                    out.push(escaped);
                }
                rest = after.get(escaped.len_utf8()..).unwrap_or_default();
                repetition = None;
                continue;
            }
            '[' if in_class && !after.starts_with(':') => out.push_str("\\["),
            '[' if !in_class => {
                in_class = true;
                out.push('[');
                rest = after;
                for opening in ["^", "]"] {
                    if let Some(next) = rest.strip_prefix(opening) {
                        out.push_str(if opening == "]" { "\\]" } else { opening });
                        rest = next;
                    }
                }
                repetition = None;
                continue;
            }
            '[' => {
                // A named class, which ends with its own bracket.
                let end = after.find(":]").map_or(after.len(), |end| end + 2);
                out.push('[');
                out.push_str(after.get(..end).unwrap_or_default());
                rest = after.get(end..).unwrap_or_default();
                continue;
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            // Operations on classes that RE2 does not have.
            '&' | '~' | '-' if in_class && after.starts_with(c) => {
                out.push('\\');
                out.push(c);
            }
            '*' | '+' | '?' if !in_class => {
                match (repetition, c) {
                    (Some(false), '?') => repeats = Some(true),
                    (Some(_), _) => return Err(format!("invalid nested repetition operator: `{c}`")),
                    (None, _) => repeats = Some(false),
                }
                out.push(c);
            }
            '{' if !in_class => match counted(after)? {
                Some(length) => {
                    if repetition.is_some() {
                        return Err("invalid nested repetition operator: `{`".to_owned());
                    }
                    out.push('{');
                    out.push_str(after.get(..length).unwrap_or_default());
                    rest = after.get(length..).unwrap_or_default();
                    repetition = Some(false);
                    continue;
                }
                None => out.push_str("\\{"),
            },
            '}' if !in_class => out.push_str("\\}"),
            other => out.push(other),
        }
        repetition = repeats;
        rest = after;
    }
    Ok(out)
}

/// The length of `n}`, `n,}` or `n,m}` at the beginning; `None` when the brace is only a brace.
fn counted(after: &str) -> Result<Option<usize>, String> {
    let Some((inside, _)) = after.split_once('}') else { return Ok(None) };
    let (low, high) = inside.split_once(',').map_or((inside, None), |(low, high)| (low, Some(high)));
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty();
    if !number(low) || high.is_some_and(|high| !high.is_empty() && !number(high)) {
        return Ok(None);
    }
    let value = |text: &str| text.parse::<u32>().unwrap_or(u32::MAX);
    let high_value = high.filter(|high| !high.is_empty()).map(value);
    if value(low) > MOST_REPEATS || high_value.is_some_and(|high| high > MOST_REPEATS || high < value(low)) {
        return Err(format!("invalid repeat count: `{{{inside}}}`"));
    }
    Ok(Some(inside.len() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_re2_takes() {
        for good in [
            "",
            ".*",
            "a|b",
            "^/api/v[0-9]+/.*$",
            "(?i)abc",
            "(?P<n>x)",
            "[^[]+",
            "[]a]",
            "[^]a]",
            "[[:alpha:]_]+",
            "a{2,3}",
            "a{2,}?",
            "{x}",
            "a{",
            "a{,2}",
            "x}",
            "\\d+\\.\\w*",
            "\\Qa.b[\\E+",
            "[a&&b]",
            "[+--]",
            "a*?b+?",
            "\\pN",
            "\\<a\\>",
            "^((?:[^@]+)@)?x$",
            "(a*)*",
            "[\\w-]+",
            "[-a]",
            "\\/x",
            "(?:)",
            "[a-z&&&]",
        ] {
            assert_eq!(compile(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_re2_refuses() {
        for bad in [
            "(", ")", "[", "[a", "*a", "a**", "a++", "a*+", "a{2}{3}", "(?=a)", "(?!a)", "(?<!a)b", "\\1", "a{1001}",
            "a{3,2}", "\\", "?", "+", "[z-a]", "(?P<n", "\\y",
        ] {
            assert!(compile(bad).is_err(), "{bad}");
        }
        assert!(check(&"a".repeat(1025)).is_err() && check(&"a".repeat(1024)).is_ok());
    }
}
