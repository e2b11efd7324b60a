//! Whether answers are as expected, and in words what is wrong with them.
//!
//! Invariant: the words say what was looked at, what was wanted and what came; only what is named is compared.

use std::collections::BTreeMap;

use serde_json::Value;

use super::file::Expect;
use crate::demo::curl::Answer;

/// What is wrong, or `None`.
pub fn check(expect: &Expect, answers: &[Answer]) -> Option<String> {
    answers.iter().find_map(|answer| one(expect, answer)).or_else(|| shares(expect, answers))
}

fn one(expect: &Expect, answer: &Answer) -> Option<String> {
    if let Some(exit) = expect.exit.filter(|exit| *exit != answer.exit) {
        return Some(format!("curl's exit code: want {exit}, got {answer}"));
    }
    if let Some(text) = expect.error.as_deref().filter(|text| !answer.error.contains(*text)) {
        return Some(format!("curl's error: want {text:?} in it, got {answer}"));
    }
    if let Some(status) = expect.status.filter(|status| *status != answer.status) {
        return Some(format!("status: want {status}, got {answer}"));
    }
    if let Some(version) = expect.version.as_ref().filter(|version| **version != answer.version) {
        return Some(format!("version of HTTP: want {version}, got {:?}", answer.version));
    }
    for (name, wanted) in &expect.headers {
        let got = answer.headers.get(&name.to_ascii_lowercase());
        let fine = match wanted {
            None => got.is_none(),
            Some(wanted) => got.is_some_and(|got| same(wanted, got)),
        };
        if !fine {
            let wanted = wanted.as_deref().unwrap_or("no such header");
            return Some(format!("header {name}: want {wanted:?}, got {}", got.map_or("none", String::as_str)));
        }
    }
    if let Some(text) = expect.body.as_deref().filter(|text| !answer.body.contains(*text)) {
        return Some(format!("body: want {text:?} in it, got {:?} ({answer})", answer.body));
    }
    let line = |texts: &[String]| answer.body.lines().any(|line| texts.iter().all(|text| line.contains(text)));
    if !expect.line.is_empty() && !line(&expect.line) {
        return Some(format!("body: want a line with all of {:?}, got {:?} ({answer})", expect.line, answer.body));
    }
    if !expect.no_line.is_empty() && line(&expect.no_line) {
        return Some(format!("body: want no line with all of {:?}, got {:?}", expect.no_line, answer.body));
    }
    let wanted = expect.seen.as_ref()?;
    match answer.seen() {
        None => Some(format!("the server was to tell what it saw, got {answer}, body {:?}", answer.body)),
        Some(seen) => within("seen", wanted, &seen),
    }
}

/// A text that begins with `~` is contained, any other is the whole.
fn same(wanted: &str, got: &str) -> bool {
    match wanted.strip_prefix('~') {
        Some(part) => got.contains(part),
        None => wanted == got,
    }
}

/// Where `got` lacks what `wanted` names; null stands for what must be missing.
fn within(at: &str, wanted: &Value, got: &Value) -> Option<String> {
    match wanted {
        Value::Object(fields) => fields.iter().find_map(|(name, wanted)| {
            let key = match name.as_str() {
                "by" if at == "seen" => "service",
                name => name,
            };
            let lower = key.to_ascii_lowercase();
            let found = got.get(key).or_else(|| got.get(lower)).unwrap_or(&Value::Null);
            within(&format!("{at}.{name}"), wanted, found)
        }),
        Value::String(text) if got.as_str().is_some_and(|got| same(text, got)) => None,
        _ if wanted == got => None,
        _ => Some(format!("{at}: want {wanted}, got {got}")),
    }
}

fn shares(expect: &Expect, answers: &[Answer]) -> Option<String> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for answer in answers {
        *counts.entry(source(answer)).or_default() += 1;
    }
    let wrong = expect.shares.iter().any(|(name, (least, most))| {
        let count = counts.get(name).copied().unwrap_or(0);
        count < *least || count > *most
    });
    if wrong {
        return Some(format!("shares: want {:?}, got {counts:?}", expect.shares));
    }
    let wanted = expect.servers.filter(|wanted| *wanted != counts.len())?;
    Some(format!("servers: want {wanted}, got {counts:?}"))
}

/// Whose an answer is: the server's that tells its name, else nobody's but its status's, or curl's exit code's.
fn source(answer: &Answer) -> String {
    let by = answer.seen().and_then(|seen| Some(seen.get("service")?.as_str()?.to_owned()));
    by.unwrap_or_else(|| match (answer.status, answer.exit) {
        (0, exit) => format!("exit {exit}"),
        (status, _) => status.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn expect(value: Value) -> Expect {
        serde_json::from_value(value).unwrap()
    }

    fn answer(by: &str) -> Answer {
        let body = json!({"service": by, "path": "/x", "headers": {"x-a": "one", "x-b": "spiffe://c/ns/lab"}});
        let headers = [("server".to_owned(), "istio-envoy".to_owned())].into();
        Answer { status: 200, headers, body: body.to_string(), ..Answer::default() }
    }

    #[test]
    fn what_is_named_is_compared() {
        let answers = [answer("s-v1")];
        let fine = [
            json!({"status": 200, "exit": 0, "body": "one"}),
            json!({"headers": {"Server": "istio-envoy", "x-none": null}}),
            json!({"seen": {"by": "s-v1", "path": "/x", "headers": {"X-A": "one", "x-b": "~/ns/", "x-c": null}}}),
        ];
        for wanted in fine {
            assert_eq!(check(&expect(wanted), &answers), None);
        }
        let wrong = [
            json!({"status": 403}),
            json!({"exit": 56}),
            json!({"body": "two"}),
            json!({"headers": {"server": null}}),
            json!({"headers": {"server": "envoy"}}),
            json!({"seen": {"by": "s-v2"}}),
            json!({"seen": {"headers": {"x-a": null}}}),
            json!({"seen": {"headers": {"x-b": "~/sa/"}}}),
        ];
        for wanted in wrong {
            assert!(check(&expect(wanted.clone()), &answers).is_some(), "{wanted}");
        }
    }

    #[test]
    fn texts_are_wanted_in_one_line() {
        let answers = [Answer { body: "one two\nthree".to_owned(), ..Answer::default() }];
        let of = |value| check(&expect(value), &answers);
        assert_eq!(of(json!({"line": ["two", "one"], "no_line": ["one", "three"]})), None);
        assert!(of(json!({"line": ["one", "three"]})).is_some());
        assert!(of(json!({"no_line": ["three"]})).is_some());
    }

    #[test]
    fn shares_are_counted() {
        let answers = [answer("v1"), answer("v1"), answer("v2")];
        assert_eq!(check(&expect(json!({"shares": {"v1": [2, 3], "v2": [1, 1], "v3": [0, 0]}})), &answers), None);
        let told = check(&expect(json!({"shares": {"v2": [2, 3]}})), &answers).unwrap();
        assert!(told.contains("\"v1\": 2"), "{told}");
        let refused = Answer { status: 503, body: "overflow".into(), ..Answer::default() };
        let answers = [answer("v1"), refused, Answer { exit: 56, ..Answer::default() }];
        let wanted = json!({"shares": {"v1": [1, 1], "503": [1, 1], "exit 56": [1, 1]}, "servers": 3});
        assert_eq!(check(&expect(wanted), &answers), None);
        assert!(check(&expect(json!({"servers": 1})), &answers).is_some());
    }
}
