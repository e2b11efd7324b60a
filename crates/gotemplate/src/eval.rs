//! A tree with values → text, as Go's `text/template` evaluates it.
//!
//! Invariant: a field that is not there is nothing, and nothing prints as an empty text, as in Helm's charts with their defaults.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::parse::{Node, Operand, Pipe};
use crate::{Dialect, functions};

/// Definitions do not include each other deeper than this.
const DEEPEST: usize = 64;

/// What a template sees.
pub(crate) struct Engine<'a> {
    pub(crate) defined: &'a BTreeMap<String, Vec<Node>>,
    /// The chart's own files.
    pub(crate) files: &'a BTreeMap<String, String>,
    pub(crate) dialect: Dialect,
}

/// Variables, innermost last.
type Scope = Vec<(String, Value)>;

impl Engine<'_> {
    /// The text of nodes with `dot` as root.
    pub(crate) fn render(&self, nodes: &[Node], dot: &Value, depth: usize) -> Result<String, String> {
        if depth > DEEPEST {
            return Err("definitions include each other".to_owned());
        }
        let mut out = String::new();
        let mut scope = vec![(String::new(), dot.clone())];
        self.nodes(nodes, dot, &mut scope, &mut out, depth)?;
        Ok(out)
    }

    fn nodes(
        &self,
        nodes: &[Node],
        dot: &Value,
        scope: &mut Scope,
        out: &mut String,
        depth: usize,
    ) -> Result<(), String> {
        let outer = scope.len();
        for node in nodes {
            self.node(node, dot, scope, out, depth)?;
        }
        scope.truncate(outer);
        Ok(())
    }

    fn node(&self, node: &Node, dot: &Value, scope: &mut Scope, out: &mut String, depth: usize) -> Result<(), String> {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Output(pipe) => out.push_str(&functions::text(&self.pipe(pipe, dot, scope, depth)?)),
            Node::Assign { name, declare, pipe } => {
                let value = self.pipe(pipe, dot, scope, depth)?;
                match scope.iter_mut().rev().find(|(known, _)| known == name).filter(|_| !declare) {
                    Some((_, slot)) => *slot = value,
                    None => scope.push((name.clone(), value)),
                }
            }
            Node::If { arms, rest } => {
                for (condition, then) in arms {
                    if functions::truth(&self.pipe(condition, dot, scope, depth)?) {
                        return self.nodes(then, dot, scope, out, depth);
                    }
                }
                self.nodes(rest, dot, scope, out, depth)?;
            }
            Node::With { pipe, then, rest } => {
                let value = self.pipe(pipe, dot, scope, depth)?;
                if functions::truth(&value) {
                    self.nodes(then, &value, scope, out, depth)?;
                } else {
                    self.nodes(rest, dot, scope, out, depth)?;
                }
            }
            Node::Range { key, value, pipe, then, rest } => {
                let over = self.pipe(pipe, dot, scope, depth)?;
                let items: Vec<(Value, Value)> = match over {
                    Value::Array(list) => list.into_iter().enumerate().map(|(i, v)| (i.into(), v)).collect(),
                    Value::Object(map) => {
                        let sorted: BTreeMap<String, Value> = map.into_iter().collect();
                        sorted.into_iter().map(|(k, v)| (k.into(), v)).collect()
                    }
                    _ => Vec::new(),
                };
                if items.is_empty() {
                    return self.nodes(rest, dot, scope, out, depth);
                }
                for (at, item) in items {
                    let outer = scope.len();
                    scope.extend(key.clone().map(|name| (name, at)));
                    scope.extend(value.clone().map(|name| (name, item.clone())));
                    self.nodes(then, &item, scope, out, depth)?;
                    scope.truncate(outer);
                }
            }
        }
        Ok(())
    }

    fn pipe(&self, pipe: &Pipe, dot: &Value, scope: &mut Scope, depth: usize) -> Result<Value, String> {
        let mut last: Option<Value> = None;
        for command in pipe {
            last = Some(self.command(command, last, dot, scope, depth)?);
        }
        Ok(last.unwrap_or(Value::Null))
    }

    fn command(
        &self,
        command: &[Operand],
        piped: Option<Value>,
        dot: &Value,
        scope: &mut Scope,
        depth: usize,
    ) -> Result<Value, String> {
        let Some((first, rest)) = command.split_first() else { return Ok(Value::Null) };
        let mut arguments = Vec::with_capacity(rest.len().saturating_add(1));
        for operand in rest {
            arguments.push(self.operand(operand, dot, scope, depth)?);
        }
        arguments.extend(piped);
        match first {
            Operand::Function(name) if matches!(name.as_str(), "include" | "template") => match arguments.as_slice() {
                [Value::String(name), dot] => {
                    let nodes = self.defined.get(name).ok_or_else(|| format!("{name:?} is not defined"))?;
                    Ok(self.render(nodes, dot, depth.saturating_add(1))?.into())
                }
                _ => Err(format!("{name} takes a name and a value")),
            },
            Operand::Function(name) => self.call(name, arguments),
            // The one method of the chart's files.
            Operand::Field(path) if path.iter().map(String::as_str).eq(["Files", "Get"]) => {
                match arguments.as_slice() {
                    [Value::String(name)] => Ok(self.files.get(name).cloned().unwrap_or_default().into()),
                    _ => Err("Files.Get takes a name".to_owned()),
                }
            }
            value if arguments.is_empty() => self.operand(value, dot, scope, depth),
            other => Err(format!("{other:?} takes no arguments")),
        }
    }

    fn operand(&self, operand: &Operand, dot: &Value, scope: &mut Scope, depth: usize) -> Result<Value, String> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Field(path) => Ok(self.below(dot, path)),
            Operand::Variable(name, path) => {
                let known = scope.iter().rev().find(|(known, _)| known == name);
                known.map(|(_, value)| self.below(value, path)).ok_or_else(|| format!("${name} is not known"))
            }
            Operand::Group(pipe, path) => Ok(self.below(&self.pipe(pipe, dot, scope, depth)?, path)),
            Operand::Function(name) => self.call(name, Vec::new()),
        }
    }

    fn call(&self, name: &str, arguments: Vec<Value>) -> Result<Value, String> {
        match (self.dialect.call)(name, &arguments) {
            Some(result) => result,
            None => functions::call(name, arguments),
        }
    }

    /// What is below a value; nothing where nothing is.
    fn below(&self, value: &Value, path: &[String]) -> Value {
        let found = path.iter().try_fold(value, |value, name| {
            let exact = value.get(name);
            if exact.is_some() || !self.dialect.go_fields {
                return exact;
            }
            // Methods that give the value itself, where Go wraps it.
            let wrapped = matches!(name.as_str(), "GetValue" | "String") && !value.is_object() && !value.is_array();
            if wrapped { Some(value) } else { value.get(json_name(name)) }
        });
        found.cloned().unwrap_or(Value::Null)
    }
}

/// The name in JSON of a field of Go's: `HostIP` is `hostIP`, `DNSPolicy` is `dnsPolicy`, `UID` is `uid`.
fn json_name(name: &str) -> String {
    let capitals = name.chars().take_while(char::is_ascii_uppercase).count();
    let whole = capitals == name.chars().count();
    // The last of several capitals begins the next word.
    let lowered = if whole || capitals <= 1 { capitals } else { capitals.saturating_sub(1) };
    name.chars().enumerate().map(|(at, c)| if at < lowered { c.to_ascii_lowercase() } else { c }).collect()
}
