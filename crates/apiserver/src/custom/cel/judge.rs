//! One expression beside the types it may use: what it gives, what is wrong with it, and what it may cost.
//!
//! Invariant: the cost is the one that Kubernetes estimates before a rule may be stored: every loop as long as the schema lets it be,
//! every text as long, both branches. Costs and sizes that are too large to count stay at the largest number.
//! What it leaves to others: how often a rule runs (`rules`).

use super::cost::{self, Size};
use super::declared::Declared;
use super::table::overloads;
use super::types::{Bound, Type};
use kube_cel::cel::Program;
use kube_cel::cel::common::ast::{ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr};

const DEEPEST: usize = 200;
const FINDINGS: usize = 8;

/// What `oldSelf` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old {
    /// The value before.
    Value,
    /// The value before, if there was one.
    Optional,
}

/// What was found of an expression.
#[derive(Debug)]
pub struct Verdict {
    /// Estimated.
    pub cost: u64,
    /// Whether it compares with the value before.
    pub uses_old: bool,
}

/// What is known of a part of an expression.
pub(super) struct Known<'a> {
    pub type_: Type<'a>,
    pub cost: u64,
    /// Where it is computed, not read.
    pub size: Option<Size>,
    /// Where it is read: `self`, then fields, `@items`, `@keys`, `@values`.
    pub path: Vec<String>,
}

impl<'a> Known<'a> {
    pub(super) fn new(type_: Type<'a>, cost: u64) -> Self {
        Self { type_, cost, size: None, path: Vec::new() }
    }

    fn nothing() -> Self {
        Self::new(Type::Dyn, 0)
    }
}

/// Checks an expression that has to give `wanted`.
///
/// # Errors
/// What is wrong with it, as Kubernetes words it.
pub fn judge(expression: &str, root: &Declared, old: Old, wanted: &Type<'static>) -> Result<Verdict, String> {
    let program = Program::compile(expression)
        .map_err(|e| format!("compilation failed: {}", super::super::indented(&e.to_string())))?;
    let own = Type::of(root);
    let before = if old == Old::Optional { Type::Optional(Box::new(own.clone())) } else { own.clone() };
    let at = |name: &str| vec![name.to_owned()];
    let variables = vec![("self".to_owned(), own, at("self")), ("oldSelf".to_owned(), before, at("oldSelf"))];
    let mut judge = Judge { source: expression, root, variables, findings: Vec::new(), uses_old: false };
    let known = judge.part(program.expression(), 0);
    if !judge.findings.is_empty() {
        return Err(format!("compilation failed: {}", judge.findings.join("\n")));
    }
    if *wanted != known.type_ && known.type_ != Type::Dyn {
        return Err(match wanted {
            Type::Bool => "cel expression must evaluate to a bool".to_owned(),
            other => format!("messageExpression must evaluate to a {other}"),
        });
    }
    Ok(Verdict { cost: known.cost, uses_old: judge.uses_old })
}

pub(super) struct Judge<'a> {
    source: &'a str,
    root: &'a Declared,
    variables: Vec<(String, Type<'a>, Vec<String>)>,
    findings: Vec<String>,
    uses_old: bool,
}

impl<'a> Judge<'a> {
    /// Tells of what is wrong where a word of the source stands.
    fn wrong(&mut self, word: &str, why: String) -> Known<'a> {
        let at = place(self.source, word);
        let (line, column) = self.source.get(..at).map_or((0, 0), |before| {
            let line = before.matches('\n').count();
            (line, before.rsplit('\n').next().unwrap_or_default().chars().count())
        });
        let text = self.source.lines().nth(line).unwrap_or_default();
        let dots = ".".repeat(column);
        if self.findings.len() < FINDINGS {
            self.findings.push(format!(
                "ERROR: <input>:{}:{}: {why}\n | {text}\n | {dots}^",
                line.saturating_add(1),
                column.saturating_add(1)
            ));
        }
        Known::nothing()
    }

    /// How large a value can be.
    pub(super) fn size(&self, known: &Known<'a>) -> Size {
        if let Some(size) = known.size {
            return size;
        }
        // What is read is as large as its schema says; where nothing tells what is read, as the whole.
        let declared = known.path.get(1..).and_then(|steps| {
            steps.iter().try_fold(self.root, |at, step| match step.as_str() {
                "@items" | "@values" => at.element.as_deref(),
                // Keys have no bound of their own, and count nothing.
                "@keys" => None,
                field => at.fields.get(field),
            })
        });
        let is_key = known.path.last().is_some_and(|step| step == "@keys");
        match declared {
            Some(declared) => Size { min: 0, max: declared.largest },
            None if is_key => Size { min: 0, max: 0 },
            None if known.type_.is_scalar() => Size::exactly(1),
            None => Size { min: 0, max: u64::MAX },
        }
    }

    fn part(&mut self, part: &IdedExpr, depth: usize) -> Known<'a> {
        if depth > DEEPEST {
            return self.wrong("", "the expression is too deep".into());
        }
        let depth = depth.saturating_add(1);
        match &part.expr {
            Expr::Literal(value) => literal(value),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => self.field(select, depth),
            Expr::Call(call) => {
                // A name with points may be a function's: `sets.contains`.
                let whole = call.target.as_deref().and_then(|target| match &target.expr {
                    Expr::Ident(first) if !self.variables.iter().any(|(name, ..)| name == first) => {
                        Some(format!("{first}.{}", call.func_name))
                    }
                    _ => None,
                });
                let arguments: Vec<Known<'a>> = match (&whole, &call.target) {
                    (None, Some(target)) => {
                        std::iter::once(&**target).chain(&call.args).map(|arg| self.part(arg, depth)).collect()
                    }
                    _ => call.args.iter().map(|arg| self.part(arg, depth)).collect(),
                };
                let member = whole.is_none() && call.target.is_some();
                // `x.?field` comes with the field as a text.
                if call.func_name == "_?._" {
                    return self.optional_field(arguments, &call.args);
                }
                self.call(whole.as_deref().unwrap_or(&call.func_name), member, arguments)
            }
            Expr::List(list) => {
                let items: Vec<Known<'a>> = list.elements.iter().map(|item| self.part(item, depth)).collect();
                let cost = items.iter().fold(10_u64, |sum, item| sum.saturating_add(item.cost));
                let item = self.same(items.into_iter().map(|item| item.type_));
                let size = Some(Size::exactly(list.elements.len() as u64));
                Known { size, ..Known::new(Type::List(Box::new(item)), cost) }
            }
            Expr::Map(map) => {
                let (mut cost, mut keys, mut values) = (30_u64, Vec::new(), Vec::new());
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else { continue };
                    let (key, value) = (self.part(&entry.key, depth), self.part(&entry.value, depth));
                    cost = cost.saturating_add(key.cost).saturating_add(value.cost);
                    keys.push(key.type_);
                    values.push(value.type_);
                }
                let (key, value) = (self.same(keys.into_iter()), self.same(values.into_iter()));
                let size = Some(Size::exactly(map.entries.len() as u64));
                Known { size, ..Known::new(Type::Map(Box::new(key), Box::new(value)), cost) }
            }
            Expr::Comprehension(loop_) => self.comprehension(loop_, depth),
            Expr::Struct(made) => {
                let name = made.type_name.clone();
                self.wrong(&name, format!("undeclared reference to '{name}' (in container '')"))
            }
            Expr::Unspecified => Known::nothing(),
        }
    }

    /// The type of a literal's items, which have one.
    fn same(&mut self, types: impl Iterator<Item = Type<'a>>) -> Type<'a> {
        let mut all = Type::Free;
        for type_ in types {
            match all.join(&type_) {
                Some(joined) => all = joined,
                None => {
                    self.wrong("[", format!("expected type '{all}' but found '{type_}'"));
                }
            }
        }
        all
    }

    fn name(&mut self, name: &str) -> Known<'a> {
        self.uses_old |= name == "oldSelf";
        if let Some((_, type_, path)) = self.variables.iter().rev().find(|(known, ..)| known == name) {
            return Known { path: path.clone(), ..Known::new(type_.clone(), 1) };
        }
        let types = ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];
        if types.contains(&name) {
            return Known { path: vec![name.to_owned()], ..Known::new(Type::OfTypes, 1) };
        }
        self.wrong(name, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn select(&mut self, from: &Type<'a>, field: &str) -> Type<'a> {
        match from {
            Type::Object(declared) => match declared.fields.get(field) {
                Some(found) => Type::of(found),
                None => {
                    self.wrong(&format!(".{field}"), format!("undefined field '{field}'"));
                    Type::Dyn
                }
            },
            Type::Map(_, value) => (**value).clone(),
            Type::Optional(inner) => match self.select(inner, field) {
                known @ Type::Optional(_) => known,
                other => Type::Optional(Box::new(other)),
            },
            Type::Dyn | Type::Free => Type::Dyn,
            other => {
                self.wrong(&format!(".{field}"), format!("type '{other}' does not support field selection"));
                Type::Dyn
            }
        }
    }

    fn field(&mut self, select: &SelectExpr, depth: usize) -> Known<'a> {
        // `google.protobuf.Timestamp` and its like.
        if let Expr::Select(inner) = &select.operand.expr
            && matches!(&inner.operand.expr, Expr::Ident(name) if name == "google")
        {
            return Known::new(Type::OfTypes, 1);
        }
        let operand = self.part(&select.operand, depth);
        let type_ = self.select(&operand.type_, &select.field);
        if select.test {
            return Known::new(Type::Bool, operand.cost);
        }
        let step = u64::from(matches!(operand.type_, Type::Map(..) | Type::Object(_) | Type::Free | Type::Optional(_)));
        let path = below(operand.path, &select.field);
        Known { path, ..Known::new(type_, operand.cost.saturating_add(step)) }
    }

    fn optional_field(&mut self, arguments: Vec<Known<'a>>, given: &[IdedExpr]) -> Known<'a> {
        let field = given.get(1).and_then(|field| match &field.expr {
            Expr::Literal(LiteralValue::String(text)) => Some(text.inner().to_owned()),
            _ => None,
        });
        let (Some(field), Some(operand)) = (field, arguments.into_iter().next()) else { return Known::nothing() };
        let inner = match operand.type_ {
            Type::Optional(inner) => *inner,
            other => other,
        };
        let type_ = Type::Optional(Box::new(self.select(&inner, &field)));
        Known { path: below(operand.path, &field), ..Known::new(type_, operand.cost.saturating_add(1)) }
    }

    fn call(&mut self, function: &str, member: bool, arguments: Vec<Known<'a>>) -> Known<'a> {
        let all = overloads(function);
        let word = cost::written(function);
        if !all.iter().any(|o| o.member == member) {
            return self.wrong(word, format!("undeclared reference to '{function}' (in container '')"));
        }
        let mut gives: Option<Type<'a>> = None;
        for overload in all.iter().filter(|o| o.member == member && o.takes.len() == arguments.len()) {
            let mut bound = Bound::default();
            if overload.takes.iter().zip(&arguments).all(|(shape, given)| bound.takes(shape, &given.type_)) {
                let found = bound.gives(&overload.gives);
                gives = Some(gives.map_or_else(|| found.clone(), |known| known.join(&found).unwrap_or(Type::Dyn)));
            }
        }
        let Some(type_) = gives else {
            let shown: Vec<String> = arguments.iter().map(|a| a.type_.to_string()).collect();
            let applied = match shown.split_first().filter(|_| member) {
                Some((target, rest)) => format!("{target}.({})", rest.join(", ")),
                None => format!("({})", shown.join(", ")),
            };
            return self.wrong(word, format!("found no matching overload for '{function}' applied to '{applied}'"));
        };
        cost::call(self, function, &arguments, type_)
    }

    fn comprehension(&mut self, loop_: &ComprehensionExpr, depth: usize) -> Known<'a> {
        let range = self.part(&loop_.iter_range, depth);
        let (item, step) = match &range.type_ {
            Type::List(item) => ((**item).clone(), "@items"),
            Type::Map(key, _) => ((**key).clone(), "@keys"),
            Type::Dyn | Type::Free => (Type::Dyn, ""),
            other => {
                let why = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.wrong("", why);
                (Type::Dyn, "")
            }
        };
        // Where it is not known what is gone through, its items count as the whole does.
        let path = if step.is_empty() { vec![loop_.iter_var.clone()] } else { below(range.path.clone(), step) };
        let size = self.size(&range);
        let begun = self.part(&loop_.accu_init, depth);
        let known = self.variables.len();
        let accumulated = vec![loop_.accu_var.clone()];
        self.variables.push((loop_.accu_var.clone(), begun.type_.clone(), accumulated));
        self.variables.push((loop_.iter_var.clone(), item, path));
        let (condition, step) = (self.part(&loop_.loop_cond, depth), self.part(&loop_.loop_step, depth));
        self.variables.truncate(known.saturating_add(1));
        if let (Type::List(_), Some((_, type_, _))) = (&begun.type_, self.variables.last_mut()) {
            *type_ = step.type_;
        }
        let result = self.part(&loop_.result, depth);
        self.variables.truncate(known);
        let each = condition.cost.saturating_add(step.cost);
        let cost = [begun.cost, result.cost, size.max.saturating_mul(each)]
            .iter()
            .fold(range.cost, |a, b| a.saturating_add(*b));
        let made = if matches!(begun.type_, Type::List(_)) { Size { min: 0, max: size.max } } else { Size::exactly(1) };
        Known { size: Some(made), ..Known::new(result.type_, cost) }
    }
}

fn literal<'a>(value: &LiteralValue) -> Known<'a> {
    let (type_, size) = match value {
        LiteralValue::Boolean(_) => (Type::Bool, Some(1)),
        LiteralValue::Int(_) => (Type::Int, Some(1)),
        LiteralValue::UInt(_) => (Type::Uint, Some(1)),
        LiteralValue::Double(_) => (Type::Double, Some(1)),
        LiteralValue::String(text) => (Type::Text, Some(text.inner().chars().count() as u64)),
        LiteralValue::Bytes(bytes) => (Type::Bytes, Some(bytes.inner().len() as u64)),
        LiteralValue::Null => (Type::Null, None),
    };
    Known { size: size.map(Size::exactly), ..Known::new(type_, 0) }
}

pub(super) fn below(mut path: Vec<String>, step: &str) -> Vec<String> {
    path.push(step.to_owned());
    path
}

/// Where a word stands in a source, as a whole word where it is one.
fn place(source: &str, word: &str) -> usize {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = source.match_indices(word);
    let whole = found.find(|(at, _)| {
        let after = source.get(at.saturating_add(word.len())..).and_then(|rest| rest.chars().next());
        !(word.ends_with(is_word) && after.is_some_and(is_word))
    });
    whole.map_or(0, |(at, _)| at)
}
