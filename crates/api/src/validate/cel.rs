//! Whether a text is an expression of CEL: its grammar, nothing of names and types.
//!
//! Invariant: total, and bounded in depth: what nests deeper than [`DEEPEST`] is refused.

/// Deepest nesting of brackets and operators that is read.
const DEEPEST: usize = 64;
const BINARY: [&str; 14] = ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "in"];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token<'a> {
    Name(&'a str),
    Literal,
    Sign(&'a str),
}

/// Whether it can be parsed.
pub(super) fn parses(text: &str) -> bool {
    let Some(tokens) = tokens(text) else { return false };
    let mut rest = tokens.as_slice();
    expression(&mut rest, 0).is_some() && rest.is_empty()
}

fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    let mut list = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            // Raw and byte literals have a letter before their quotes.
            if word.len() <= 2 && word.chars().all(|c| "rRbB".contains(c)) && after.starts_with(['"', '\'']) {
                list.push(Token::Literal);
                end + quoted(after, word.contains(['r', 'R']))?
            } else {
                list.push(Token::Name(word));
                end
            }
        } else if first.is_ascii_digit() {
            list.push(Token::Literal);
            number(rest)
        } else if matches!(first, '"' | '\'') {
            list.push(Token::Literal);
            quoted(rest, false)?
        } else {
            let sign = ["&&", "||", "==", "!=", "<=", ">="].into_iter().find(|sign| rest.starts_with(sign));
            let sign = sign.or_else(|| rest.get(..1).filter(|sign| "<>+-*/%!?:.,()[]{}".contains(sign)))?;
            list.push(Token::Sign(sign));
            sign.len()
        };
        rest = rest.get(length..)?.trim_start();
    }
    Some(list)
}

fn number(text: &str) -> usize {
    let mut before = ' ';
    let end = text.find(|c: char| {
        let part = c.is_ascii_alphanumeric() || c == '.' || (matches!(c, '+' | '-') && matches!(before, 'e' | 'E'));
        before = c;
        !part
    });
    end.unwrap_or(text.len())
}

/// The length of a text in quotes, with them.
fn quoted(text: &str, raw: bool) -> Option<usize> {
    let quote = text.chars().next()?;
    let long = text.get(..3).filter(|three| three.chars().all(|c| c == quote));
    let end = long.unwrap_or_else(|| text.get(..1).unwrap_or_default());
    let body = text.get(end.len()..)?;
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' && !raw {
            escaped = true;
        } else if body.get(at..).is_some_and(|rest| rest.starts_with(end)) {
            return Some(end.len() + at + end.len());
        }
    }
    None
}

fn next<'t, 'a>(rest: &mut &'t [Token<'a>]) -> Option<&'t Token<'a>> {
    let (first, others) = rest.split_first()?;
    *rest = others;
    Some(first)
}

fn take(rest: &mut &[Token<'_>], sign: &str) -> bool {
    let found = rest.first().is_some_and(|token| *token == Token::Sign(sign));
    if found {
        next(rest);
    }
    found
}

fn expression(rest: &mut &[Token<'_>], depth: usize) -> Option<()> {
    if depth > DEEPEST {
        return None;
    }
    loop {
        while take(rest, "!") || take(rest, "-") {}
        primary(rest, depth)?;
        match rest.first() {
            Some(Token::Sign(word) | Token::Name(word)) if BINARY.contains(word) => {
                next(rest);
            }
            _ => break,
        }
    }
    if take(rest, "?") {
        expression(rest, depth + 1)?;
        take(rest, ":").then_some(())?;
        expression(rest, depth + 1)?;
    }
    Some(())
}

fn primary(rest: &mut &[Token<'_>], depth: usize) -> Option<()> {
    take(rest, ".");
    match next(rest)? {
        Token::Literal => {}
        Token::Name(name) if *name != "in" => {}
        Token::Sign("(") => {
            expression(rest, depth + 1)?;
            take(rest, ")").then_some(())?;
        }
        Token::Sign("[") => list(rest, "]", false, depth)?,
        Token::Sign("{") => list(rest, "}", true, depth)?,
        _ => return None,
    }
    loop {
        if take(rest, ".") {
            matches!(next(rest)?, Token::Name(_)).then_some(())?;
        } else if take(rest, "(") {
            list(rest, ")", false, depth)?;
        } else if take(rest, "{") {
            list(rest, "}", true, depth)?;
        } else if take(rest, "[") {
            expression(rest, depth + 1)?;
            take(rest, "]").then_some(())?;
        } else {
            return Some(());
        }
    }
}

/// What stands between brackets, the opening one being read.
fn list(rest: &mut &[Token<'_>], end: &str, pairs: bool, depth: usize) -> Option<()> {
    while !take(rest, end) {
        expression(rest, depth + 1)?;
        if pairs {
            take(rest, ":").then_some(())?;
            expression(rest, depth + 1)?;
        }
        if !take(rest, ",") {
            return take(rest, end).then_some(());
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::parses;

    #[test]
    fn expressions_of_cel() {
        for good in [
            "response.code >= 400",
            "response.code >= 400 || xds.cluster_name == 'BlackHoleCluster' ||  xds.cluster_name == 'PassthroughCluster'",
            "connection.mtls && request.url_path.contains('v1beta3')",
            "!has(request.headers['x-a']) ? true : false",
            "request.path in ['/a', \"/b\"]",
            "size({'a': 1, 'b': [1, 2.5e-3]}) > -1",
            "request.headers[r'a\\'] == b'x' + \"\"\"y\"z\"\"\"",
            ".a.b(1, c{d: 1}).e",
            "true",
        ] {
            assert!(parses(good), "{good}");
        }
        for bad in [
            "",
            " ",
            "a b c",
            "response.code >= (400",
            "response.code >=",
            "a ? b",
            "a..b",
            "'open",
            "a = b",
            "[1, ,]",
            "in",
            "{1}",
            "a)",
            "@a",
            "a.1b!",
        ] {
            assert!(!parses(bad), "{bad}");
        }
        assert!(!parses(&"(".repeat(100_000)) && !parses(&"!".repeat(100_000)));
    }
}
