//! Template text → a tree: text, output, conditions, loops, definitions.
//!
//! Invariant: blanks are trimmed where Go's templates trim them (`{{-`, `-}}`); an action that is not understood is an error, never text.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Text(String),
    Output(Pipe),
    /// `$name := pipe` or `$name = pipe`.
    Assign {
        name: String,
        declare: bool,
        pipe: Pipe,
    },
    /// Conditions with what they lead to, tried in order, and what remains.
    If {
        arms: Vec<(Pipe, Vec<Node>)>,
        rest: Vec<Node>,
    },
    With {
        pipe: Pipe,
        then: Vec<Node>,
        rest: Vec<Node>,
    },
    Range {
        key: Option<String>,
        value: Option<String>,
        pipe: Pipe,
        then: Vec<Node>,
        rest: Vec<Node>,
    },
}

/// Commands, each taking the result of the one before as its last argument.
pub(crate) type Pipe = Vec<Vec<Operand>>;

/// A word of a command.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Literal(Value),
    /// The dot, and fields below it.
    Field(Vec<String>),
    /// A variable (without `$`; empty for the root), and fields below it.
    Variable(String, Vec<String>),
    Function(String),
    /// A pipe in brackets, and fields below its result.
    Group(Pipe, Vec<String>),
}

/// What a file defines, by name.
pub(crate) type Defined = BTreeMap<String, Vec<Node>>;

/// The nodes of a file, and what it defines.
pub(crate) fn template(text: &str) -> Result<(Vec<Node>, Defined), String> {
    let mut parser = Parser { pieces: pieces(text)?.into_iter(), defined: BTreeMap::new() };
    let (nodes, end) = parser.block()?;
    match end {
        None => Ok((nodes, parser.defined)),
        Some(end) => Err(format!("`{end}` without a beginning")),
    }
}

enum Piece {
    Text(String),
    Action(String),
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let (mut rest, mut trim) = (text, false);
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").ok_or_else(|| format!("an action is not closed: {after:.40}"))?;
        let before = if trim { before.trim_start() } else { before };
        let (before, action) = match action.strip_prefix('-') {
            Some(action) => (before.trim_end(), action),
            None => (before, action),
        };
        let (action, next) = match action.strip_suffix('-') {
            Some(action) => (action, true),
            None => (action, false),
        };
        trim = next;
        pieces.push(Piece::Text(before.to_owned()));
        let action = action.trim();
        if !action.starts_with("/*") {
            pieces.push(Piece::Action(action.to_owned()));
        }
        rest = after;
    }
    pieces.push(Piece::Text(if trim { rest.trim_start() } else { rest }.to_owned()));
    Ok(pieces)
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    defined: BTreeMap<String, Vec<Node>>,
}

impl Parser {
    /// Nodes until an action that ends or divides the block; that action.
    fn block(&mut self) -> Result<(Vec<Node>, Option<String>), String> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let action = match piece {
                Piece::Text(text) if text.is_empty() => continue,
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(action) => action,
            };
            let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
            match word {
                "end" | "else" => return Ok((nodes, Some(action))),
                "if" => nodes.push(self.condition(rest)?),
                "with" => {
                    let (then, rest_of) = self.divided()?;
                    nodes.push(Node::With { pipe: pipe(rest)?, then, rest: rest_of });
                }
                "range" => {
                    let (names, over) = match rest.split_once(":=") {
                        Some((names, over)) => (names, over),
                        None => ("", rest),
                    };
                    let mut names: Vec<String> =
                        names.split(',').map(|n| n.trim().trim_start_matches('$').to_owned()).collect();
                    let value = names.pop().filter(|n| !n.is_empty());
                    let (then, rest_of) = self.divided()?;
                    nodes.push(Node::Range { key: names.pop(), value, pipe: pipe(over)?, then, rest: rest_of });
                }
                "define" => {
                    let name = rest.trim().trim_matches('"').to_owned();
                    let (body, _) = self.divided()?;
                    self.defined.insert(name, body);
                }
                _ => nodes.push(statement(&action)?),
            }
        }
        Ok((nodes, None))
    }

    /// A body up to `end`, and what follows an `else` in it.
    fn divided(&mut self) -> Result<(Vec<Node>, Vec<Node>), String> {
        let (then, end) = self.block()?;
        match end.as_deref() {
            Some("end") => Ok((then, Vec::new())),
            Some("else") => match self.block()? {
                (rest, Some(end)) if end == "end" => Ok((then, rest)),
                _ => Err("a block is not ended".to_owned()),
            },
            other => Err(format!("a block ends by {other:?}")),
        }
    }

    fn condition(&mut self, first: &str) -> Result<Node, String> {
        let (mut arms, mut condition) = (Vec::new(), pipe(first)?);
        loop {
            let (body, end) = self.block()?;
            arms.push((condition, body));
            match end.as_deref() {
                Some("end") => return Ok(Node::If { arms, rest: Vec::new() }),
                Some("else") => match self.block()? {
                    (rest, Some(end)) if end == "end" => return Ok(Node::If { arms, rest }),
                    _ => return Err("a condition is not ended".to_owned()),
                },
                Some(other) => match other.strip_prefix("else").map(str::trim).and_then(|t| t.strip_prefix("if ")) {
                    Some(next) => condition = pipe(next)?,
                    None => return Err(format!("`{other}` inside a condition")),
                },
                None => return Err("a condition is not ended".to_owned()),
            }
        }
    }
}

/// Adds the names of the functions that nodes call.
pub(crate) fn functions<'a>(nodes: &'a [Node], all: &mut BTreeSet<&'a str>) {
    for node in nodes {
        match node {
            Node::Text(_) => {}
            Node::Output(pipe) | Node::Assign { pipe, .. } => functions_of(pipe, all),
            Node::If { arms, rest } => {
                for (condition, then) in arms {
                    functions_of(condition, all);
                    functions(then, all);
                }
                functions(rest, all);
            }
            Node::With { pipe, then, rest } | Node::Range { pipe, then, rest, .. } => {
                functions_of(pipe, all);
                functions(then, all);
                functions(rest, all);
            }
        }
    }
}

fn functions_of<'a>(pipe: &'a Pipe, all: &mut BTreeSet<&'a str>) {
    for operand in pipe.iter().flatten() {
        match operand {
            Operand::Function(name) => drop(all.insert(name)),
            Operand::Group(pipe, _) => functions_of(pipe, all),
            Operand::Literal(_) | Operand::Field(_) | Operand::Variable(..) => {}
        }
    }
}

fn statement(action: &str) -> Result<Node, String> {
    if let Some(rest) = action.strip_prefix('$') {
        for (sign, declare) in [(":=", true), (" = ", false)] {
            if let Some((name, value)) = rest.split_once(sign)
                && name.trim().chars().all(|c| c.is_alphanumeric())
            {
                return Ok(Node::Assign { name: name.trim().to_owned(), declare, pipe: pipe(value)? });
            }
        }
    }
    Ok(Node::Output(pipe(action)?))
}

fn pipe(text: &str) -> Result<Pipe, String> {
    let mut words = Words { rest: text.trim() };
    let pipe = words.pipe()?;
    if words.rest.is_empty() { Ok(pipe) } else { Err(format!("not understood: {}", words.rest)) }
}

struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    fn pipe(&mut self) -> Result<Pipe, String> {
        let (mut pipe, mut command) = (Vec::new(), Vec::new());
        loop {
            self.rest = self.rest.trim_start();
            if self.rest.is_empty() || self.rest.starts_with(')') {
                break;
            }
            if let Some(rest) = self.rest.strip_prefix('|') {
                self.rest = rest;
                pipe.push(std::mem::take(&mut command));
                continue;
            }
            command.push(self.operand()?);
        }
        pipe.push(command);
        if pipe.iter().any(Vec::is_empty) {
            return Err("an empty command".to_owned());
        }
        Ok(pipe)
    }

    fn operand(&mut self) -> Result<Operand, String> {
        if let Some(rest) = self.rest.strip_prefix('(') {
            self.rest = rest;
            let inner = self.pipe()?;
            self.rest = self.rest.strip_prefix(')').ok_or("a bracket is not closed")?;
            let fields = if self.rest.starts_with('.') { fields(self.word()) } else { Vec::new() };
            return Ok(Operand::Group(inner, fields));
        }
        if let Some(rest) = self.rest.strip_prefix('`') {
            let (text, after) = rest.split_once('`').ok_or("a text is not closed")?;
            self.rest = after;
            return Ok(Operand::Literal(text.into()));
        }
        if let Some(rest) = self.rest.strip_prefix('"') {
            let mut escaped = false;
            let end = rest.char_indices().find(|(_, c)| {
                let ends = *c == '"' && !escaped;
                escaped = *c == '\\' && !escaped;
                ends
            });
            let (end, _) = end.ok_or("a text is not closed")?;
            let (inside, after) = rest.split_at(end);
            self.rest = after.get(1..).unwrap_or_default();
            let text: String = serde_json::from_str(&format!("\"{inside}\"")).map_err(|e| e.to_string())?;
            return Ok(Operand::Literal(text.into()));
        }
        let word = self.word();
        if let Some(rest) = word.strip_prefix('$') {
            let (name, below) = rest.split_once('.').unwrap_or((rest, ""));
            return Ok(Operand::Variable(name.to_owned(), fields(below)));
        }
        if word.starts_with('.') {
            return Ok(Operand::Field(fields(word)));
        }
        match word {
            "true" => Ok(Operand::Literal(true.into())),
            "false" => Ok(Operand::Literal(false.into())),
            "nil" => Ok(Operand::Literal(Value::Null)),
            "" => Err(format!("not understood: {}", self.rest)),
            number if number.parse::<i64>().is_ok() => {
                Ok(Operand::Literal(number.parse::<i64>().unwrap_or_default().into()))
            }
            name if name.chars().all(char::is_alphanumeric) => Ok(Operand::Function(name.to_owned())),
            other => Err(format!("not understood: {other}")),
        }
    }

    fn word(&mut self) -> &str {
        let end = self.rest.find(|c: char| c.is_whitespace() || c == ')' || c == '|' || c == '(');
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }
}

fn fields(text: &str) -> Vec<String> {
    text.split('.').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_trimmed_where_asked() {
        let (nodes, _) = template("a \n{{- 1 -}}\n b{{/* c */}} d").unwrap();
        let text: Vec<_> =
            nodes.iter().filter_map(|n| if let Node::Text(t) = n { Some(t.as_str()) } else { None }).collect();
        assert_eq!(text, ["a", "b", " d"]);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in ["{{ if .a }}", "{{ end }}", "{{ a b", "{{ (a }}", "{{ \"a }}", "{{ | a }}", "{{ a-b }}"] {
            assert!(template(text).is_err(), "{text}");
        }
    }
}
