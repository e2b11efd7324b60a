//! Fields → lines of the text they were read from.
//!
//! Invariant: only text in block style is understood; of a field inside a one-line value, the line of that value is told.

/// The line of a field (`spec.http[0].route[1]`, `metadata.annotations[a.b/c]`), counted from 0 within the document.
pub(crate) fn find(document: &str, field: &str) -> Option<u64> {
    let lines: Vec<&str> = document.lines().collect();
    let mut from = 0;
    let mut indent: Option<usize> = None;
    let mut found = None;
    for step in steps(field) {
        let next = match &step {
            Step::Key(key) => key_line(&lines, from, indent, key),
            Step::Index(index) => item_line(&lines, from, indent, *index),
        };
        let Some((line, column)) = next else { break };
        found = Some(line);
        // Inside a list item the first key stands on the item's own line.
        (from, indent) = match step {
            Step::Key(_) => (line + 1, Some(column)),
            Step::Index(_) => (line, Some(column)),
        };
    }
    found.and_then(|line| u64::try_from(line).ok())
}

#[derive(Debug, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

fn steps(field: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = field;
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let end = inside.find(']').unwrap_or(inside.len());
            let (word, after) = inside.split_at(end);
            steps.push(word.parse().map_or_else(|_| Step::Key(word.to_owned()), Step::Index));
            rest = after.strip_prefix(']').unwrap_or(after);
        } else {
            let body = rest.strip_prefix('.').unwrap_or(rest);
            let end = body.find(['.', '[']).unwrap_or(body.len());
            let (word, after) = body.split_at(end);
            if !word.is_empty() {
                steps.push(Step::Key(word.to_owned()));
            }
            rest = after;
        }
    }
    steps
}

/// Where the content of a line begins, and the content; list dashes count as indentation.
fn content(line: &str) -> Option<(usize, &str)> {
    let mut start = line.len() - line.trim_start().len();
    let mut rest = line.trim_start();
    if rest.is_empty() || rest.starts_with('#') {
        return None;
    }
    while let Some(after) = rest.strip_prefix("- ") {
        start += 2 + (after.len() - after.trim_start().len());
        rest = after.trim_start();
    }
    Some((start, rest))
}

fn is_item(line: &str) -> Option<usize> {
    let start = line.len() - line.trim_start().len();
    let rest = line.trim_start();
    (rest == "-" || rest.starts_with("- ")).then_some(start)
}

/// A key below `indent` (of the parent key; `None` at the top) from a line on.
fn key_line(lines: &[&str], from: usize, indent: Option<usize>, key: &str) -> Option<(usize, usize)> {
    let mut level = None;
    for (number, line) in lines.iter().enumerate().skip(from) {
        let Some((start, rest)) = content(line) else { continue };
        let raw = line.len() - line.trim_start().len();
        if number > from && indent.is_some_and(|indent| raw <= indent && is_item(line).is_none()) {
            return None;
        }
        let level = *level.get_or_insert(start);
        let named = rest.split_once(':').is_some_and(|(name, _)| name.trim().trim_matches(['"', '\'']) == key)
            || rest.trim_matches(['"', '\'']).starts_with(&format!("{key}:"));
        if start == level && named {
            return Some((number, start));
        }
    }
    None
}

/// The n-th item of the list below a key.
fn item_line(lines: &[&str], from: usize, indent: Option<usize>, index: usize) -> Option<(usize, usize)> {
    let mut level = None;
    let mut seen = 0;
    for (number, line) in lines.iter().enumerate().skip(from) {
        if content(line).is_none() && is_item(line).is_none() {
            continue;
        }
        let Some(start) = is_item(line) else {
            let raw = line.len() - line.trim_start().len();
            if indent.is_some_and(|indent| raw <= indent) {
                return None;
            }
            continue;
        };
        let level = *level.get_or_insert(start);
        if start < level {
            return None;
        }
        if start == level {
            if seen == index {
                return Some((number, start));
            }
            seen += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_lines() {
        let text = "apiVersion: a\nmetadata:\n  name: x\n  annotations:\n    a.b/c: d\nspec:\n  hosts:\n  - a\n  http:\n  - match:\n    - uri: {prefix: /}\n    route:\n    - destination:\n        host: h\n    - destination:\n        host: i\n  - route:\n    - destination: {host: k}\n";
        for (field, line) in [
            ("metadata.name", 2),
            ("metadata.annotations[a.b/c]", 4),
            ("spec.hosts[0]", 7),
            ("spec.http[0].route[0].destination.host", 13),
            ("spec.http[0].route[1].destination.host", 15),
            ("spec.http[1].route[0].destination.host", 17),
            ("spec.nothing", 5),
        ] {
            assert_eq!(find(text, field), Some(line), "{field}");
        }
        assert_eq!(find("", "a.b"), None);
    }
}
