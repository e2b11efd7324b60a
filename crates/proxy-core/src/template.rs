//! Path templates (`/shop/{id}/**`): parsing, matching with captures, rewriting. Envoy's `uri_template` extensions and RBAC use them.
//!
//! Invariant: a compiled template is anchored and linear in the path's length; a rewrite names only variables that its match captures.
//! The syntax is Envoy's: `*` is one path segment or part of one, `**` any number of characters and last, `{name}` and `{name=pattern}`
//! capture.

use regex::Regex;

/// One path segment: the characters Envoy lets a variable take.
const SEGMENT: &str = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+";
/// Anything below.
const REST: &str = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=/]*";
/// Most variables, as Envoy's parser.
const MAX_VARIABLES: usize = 5;
/// Longest variable name.
const MAX_NAME: usize = 16;

/// A template paths are matched with.
#[derive(Debug, Clone)]
pub struct PathTemplate {
    regex: Regex,
}

/// Why a template was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

fn bad(text: impl Into<String>) -> TemplateError {
    TemplateError(text.into())
}

impl PathTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// [`TemplateError`] for what Envoy's parser refuses too.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if !text.starts_with('/') {
            return Err(bad("a template starts with `/`"));
        }
        let mut out = String::from("^");
        let mut names: Vec<&str> = Vec::new();
        let mut rest = text;
        let mut ended = false;
        while let Some(c) = rest.chars().next() {
            if ended && !literal_tail(rest) {
                return Err(bad("`**` must be the last operator"));
            }
            match c {
                '{' => {
                    let (inside, after) =
                        rest.get(1..).and_then(|r| r.split_once('}')).ok_or_else(|| bad("`{` without `}`"))?;
                    let (name, pattern) = inside.split_once('=').unwrap_or((inside, "*"));
                    let good = name.len() <= MAX_NAME
                        && name.starts_with(|c: char| c.is_ascii_alphabetic())
                        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                    if !good {
                        return Err(bad(format!("`{name}` is not a variable name")));
                    }
                    if names.contains(&name) {
                        return Err(bad(format!("variable `{name}` occurs twice")));
                    }
                    names.push(name);
                    if names.len() > MAX_VARIABLES {
                        return Err(bad("too many variables"));
                    }
                    out.push_str(&format!("(?P<{name}>"));
                    ended |= pattern_of(pattern, &mut out)?;
                    out.push(')');
                    rest = after;
                }
                '*' => {
                    let stars = if rest.starts_with("**") { 2 } else { 1 };
                    ended |= stars == 2;
                    out.push_str(if stars == 2 { REST } else { SEGMENT });
                    rest = rest.get(stars..).unwrap_or_default();
                    if rest.starts_with('*') {
                        return Err(bad("`***` is no operator"));
                    }
                }
                c if is_literal(c) => {
                    out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
                    rest = rest.get(c.len_utf8()..).unwrap_or_default();
                }
                c => return Err(bad(format!("`{c}` may not stand in a template"))),
            }
        }
        if text.contains("//") {
            return Err(bad("empty segment"));
        }
        out.push('$');
        let built = regex::RegexBuilder::new(&out).size_limit(1 << 20).build();
        built.map(|regex| Self { regex }).map_err(|e| bad(e.to_string()))
    }

    /// Whether a path (without query) matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }
}

/// The inside of `{name=…}`; whether it holds `**`.
fn pattern_of(pattern: &str, out: &mut String) -> Result<bool, TemplateError> {
    let mut deep = false;
    for (number, segment) in pattern.split('/').enumerate() {
        if number > 0 {
            out.push('/');
        }
        match segment {
            _ if deep => return Err(bad("`**` must be the last operator")),
            "**" => {
                deep = true;
                out.push_str(REST);
            }
            "*" => out.push_str(SEGMENT),
            text if !text.is_empty() && text.chars().all(|c| is_literal(c) && c != '/') => {
                out.push_str(&regex::escape(text));
            }
            _ => return Err(bad(format!("bad pattern `{pattern}`"))),
        }
    }
    Ok(deep)
}

fn is_literal(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=/".contains(c)
}

fn literal_tail(rest: &str) -> bool {
    rest.chars().all(is_literal)
}

/// A template paths are made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateRewrite {
    parts: Vec<RewritePart>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RewritePart {
    Literal(Box<str>),
    Variable(Box<str>),
}

impl TemplateRewrite {
    /// Parses a rewrite for paths that `matched` matches.
    ///
    /// # Errors
    /// [`TemplateError`]: bad syntax, or a variable that `matched` does not capture.
    pub fn parse(text: &str, matched: &PathTemplate) -> Result<Self, TemplateError> {
        if !text.starts_with('/') {
            return Err(bad("a rewrite starts with `/`"));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (literal, after) = rest.split_once('{').unwrap_or((rest, ""));
            if !literal.chars().all(is_literal) || literal.contains("//") {
                return Err(bad("bad character in the rewrite"));
            }
            let opened = literal.len() < rest.len();
            if !literal.is_empty() {
                parts.push(RewritePart::Literal(literal.into()));
            }
            if !opened {
                break;
            }
            let (name, after) = after.split_once('}').ok_or_else(|| bad("`{` without `}`"))?;
            if !matched.regex.capture_names().flatten().any(|n| n == name) {
                return Err(bad(format!("variable `{name}` is not in the match")));
            }
            parts.push(RewritePart::Variable(name.into()));
            rest = after;
        }
        Ok(Self { parts })
    }

    /// The new path; `None` if `path` does not match.
    #[must_use]
    pub fn apply(&self, matched: &PathTemplate, path: &str) -> Option<String> {
        let captures = matched.regex.captures(path)?;
        let mut out = String::with_capacity(path.len());
        for part in &self.parts {
            match part {
                RewritePart::Literal(text) => out.push_str(text),
                RewritePart::Variable(name) => out.push_str(captures.name(name).map_or("", |m| m.as_str())),
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_as_envoys_do() {
        // Template, path, whether it matches.
        let cases = [
            ("/bar/{id}", "/bar/7", true),
            ("/bar/{id}", "/bar/", false),
            ("/bar/{id}", "/bar/7/x", false),
            ("/bar/*/baz", "/bar/x/baz", true),
            ("/bar/*/baz", "/bar/x/y/baz", false),
            ("/bar/**", "/bar/", true),
            ("/bar/**", "/bar/a/b", true),
            ("/bar/**", "/bar", false),
            ("/{country}/{path=**}", "/de/a/b", true),
            ("/v/{x=a/*}/b", "/v/a/q/b", true),
            ("/v/{x=a/*}/b", "/v/c/q/b", false),
            ("/api/*/*/**", "/api/x/y/", true),
            ("/videos/**.mp4", "/videos/a/b.mp4", true),
            ("/videos/**.mp4", "/videos/a/b.mov", false),
            ("/a.b", "/aXb", false),
        ];
        for (template, path, expected) in cases {
            assert_eq!(PathTemplate::parse(template).unwrap().matches(path), expected, "{template} {path}");
        }
        for refused in ["bar", "/{1x}", "/{a}/{a}", "/**/{a}", "/***", "/{a", "/a//b", "/{x=**/b}", "/é"] {
            assert!(PathTemplate::parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn rewrites_place_what_was_captured() {
        let matched = PathTemplate::parse("/{country}/{path=**}").unwrap();
        let rewrite = TemplateRewrite::parse("/x/{path}/{country}", &matched).unwrap();
        assert_eq!(rewrite.apply(&matched, "/de/a/b").as_deref(), Some("/x/a/b/de"));
        assert_eq!(rewrite.apply(&matched, "/"), None);
        assert!(TemplateRewrite::parse("/{other}", &matched).is_err());
        assert!(TemplateRewrite::parse("x", &matched).is_err());
    }
}
