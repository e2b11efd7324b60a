//! Reading expressions.
//!
//! Invariant: nesting and length are bounded, so that no configuration can exhaust the stack.

use http::HeaderName;

use crate::model::expr::{ATTRIBUTES, Attribute, Binary, Expr, Side};

/// Deepest nesting.
const DEPTH: usize = 64;
/// Longest expression, bytes.
const LENGTH: usize = 16 * 1024;

/// Why an expression was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExprError {
    /// Not our grammar.
    #[error("cannot read the expression at `{0}`")]
    Syntax(String),
    /// Not an attribute that is known here.
    #[error("unsupported attribute `{0}`")]
    Attribute(String),
    /// Not a function that is known here.
    #[error("unsupported function `{0}`")]
    Function(String),
    /// Too long or too deep.
    #[error("the expression is too long or too deep")]
    TooLarge,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Int(i64),
    Float(f64),
    Sign(&'static str),
}

const SIGNS: [&str; 22] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "!", "+", "-", "?", ":", "(", ")", "[", "]", ".", ",", "*", "/", "%",
];

/// Parses an expression.
///
/// # Errors
/// See [`ExprError`].
pub fn parse(text: &str) -> Result<Expr, ExprError> {
    if text.len() > LENGTH {
        return Err(ExprError::TooLarge);
    }
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let expr = parser.conditional()?;
    match parser.peek() {
        None => Ok(expr),
        Some(_) => Err(parser.wrong()),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, ExprError> {
    let mut out = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let wrong = || ExprError::Syntax(rest.chars().take(20).collect());
        let end = |f: fn(char) -> bool| rest.find(|c| !f(c)).unwrap_or(rest.len());
        let length = if first.is_ascii_alphabetic() || first == '_' {
            let end = end(|c| c.is_ascii_alphanumeric() || c == '_');
            out.push(Token::Name(rest.get(..end).unwrap_or_default().to_owned()));
            end
        } else if first.is_ascii_digit() {
            let end = end(|c| c.is_ascii_digit() || c == '.');
            let number = rest.get(..end).unwrap_or_default();
            out.push(match number.parse() {
                Ok(int) => Token::Int(int),
                Err(_) => Token::Float(number.parse().map_err(|_| wrong())?),
            });
            end
        } else if first == '\'' || first == '"' {
            let (value, end) = quoted(rest, first).ok_or_else(wrong)?;
            out.push(Token::Text(value));
            end
        } else {
            let sign = SIGNS.iter().find(|s| rest.starts_with(**s)).ok_or_else(wrong)?;
            out.push(Token::Sign(sign));
            sign.len()
        };
        rest = rest.get(length..).unwrap_or_default().trim_start();
    }
    Ok(out)
}

/// A quoted text, and where it ends.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => return Some((out, at.saturating_add(1))),
            '\\' => {
                let c = match chars.next()?.1 {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    c @ ('\\' | '\'' | '"' | '`' | '?') => c,
                    _ => return None,
                };
                out.push(c);
            }
            c => out.push(c),
        }
    }
    None
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at = self.at.saturating_add(1);
        token
    }

    fn wrong(&self) -> ExprError {
        let shown = self.tokens.get(self.at.saturating_sub(1)..).unwrap_or_default().iter().take(4);
        let shown: Vec<String> = shown
            .map(|t| match t {
                Token::Name(s) | Token::Text(s) => s.clone(),
                Token::Int(n) => n.to_string(),
                Token::Float(n) => n.to_string(),
                Token::Sign(s) => (*s).to_owned(),
            })
            .collect();
        ExprError::Syntax(shown.join(" "))
    }

    fn take(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Sign(s)) if *s == sign);
        self.at = self.at.saturating_add(usize::from(found));
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), ExprError> {
        if self.take(sign) { Ok(()) } else { Err(self.wrong()) }
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T, ExprError>) -> Result<T, ExprError> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > DEPTH {
            return Err(ExprError::TooLarge);
        }
        let result = f(self);
        self.depth = self.depth.saturating_sub(1);
        result
    }

    fn conditional(&mut self) -> Result<Expr, ExprError> {
        self.deeper(|p| {
            let condition = p.or()?;
            if !p.take("?") {
                return Ok(condition);
            }
            let yes = p.conditional()?;
            p.expect(":")?;
            Ok(Expr::If(Box::new([condition, yes, p.conditional()?])))
        })
    }

    fn or(&mut self) -> Result<Expr, ExprError> {
        let mut left = self.and()?;
        while self.take("||") {
            left = Expr::Binary(Binary::Or, Box::new([left, self.and()?]));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr, ExprError> {
        let mut left = self.relation()?;
        while self.take("&&") {
            left = Expr::Binary(Binary::And, Box::new([left, self.relation()?]));
        }
        Ok(left)
    }

    fn relation(&mut self) -> Result<Expr, ExprError> {
        let left = self.sum()?;
        let op = match self.peek() {
            Some(Token::Sign("==")) => Binary::Eq,
            Some(Token::Sign("!=")) => Binary::Ne,
            Some(Token::Sign("<=")) => Binary::Le,
            Some(Token::Sign(">=")) => Binary::Ge,
            Some(Token::Sign("<")) => Binary::Lt,
            Some(Token::Sign(">")) => Binary::Gt,
            Some(Token::Name(n)) if n == "in" => Binary::In,
            _ => return Ok(left),
        };
        self.next();
        if op == Binary::In
            && let Some(side) = self.headers()
        {
            return Ok(Expr::HasHeader(side, Box::new(left)));
        }
        Ok(Expr::Binary(op, Box::new([left, self.sum()?])))
    }

    /// `request.headers` and nothing more.
    fn headers(&mut self) -> Option<Side> {
        let side = match self.tokens.get(self.at..self.at.saturating_add(3))? {
            [Token::Name(of), Token::Sign("."), Token::Name(what)] if what == "headers" => side(of)?,
            _ => return None,
        };
        if matches!(self.tokens.get(self.at.saturating_add(3)), Some(Token::Sign("[" | "."))) {
            return None;
        }
        self.at = self.at.saturating_add(3);
        Some(side)
    }

    fn sum(&mut self) -> Result<Expr, ExprError> {
        let mut left = self.unary()?;
        while self.take("+") {
            left = Expr::Binary(Binary::Add, Box::new([left, self.unary()?]));
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Expr, ExprError> {
        if self.take("!") {
            return self.deeper(|p| Ok(Expr::Not(Box::new(p.unary()?))));
        }
        if self.take("-") {
            return self.deeper(|p| Ok(Expr::Negative(Box::new(p.unary()?))));
        }
        let mut value = self.primary()?;
        while self.take(".") {
            let Some(Token::Name(method)) = self.next() else { return Err(self.wrong()) };
            self.expect("(")?;
            value = self.method(value, &method)?;
        }
        Ok(value)
    }

    fn method(&mut self, of: Expr, name: &str) -> Result<Expr, ExprError> {
        if name == "size" {
            self.expect(")")?;
            return Ok(Expr::Size(Box::new(of)));
        }
        let argument = self.conditional()?;
        self.expect(")")?;
        let op = match name {
            "startsWith" => Binary::StartsWith,
            "endsWith" => Binary::EndsWith,
            "contains" => Binary::Contains,
            "matches" => {
                let Expr::Text(pattern) = &argument else { return Err(ExprError::Function("matches".to_owned())) };
                let pattern = regex::Regex::new(pattern).map_err(|_| ExprError::Syntax(pattern.to_string()))?;
                return Ok(Expr::Matches(Box::new(of), pattern));
            }
            other => return Err(ExprError::Function(other.to_owned())),
        };
        Ok(Expr::Binary(op, Box::new([of, argument])))
    }

    fn primary(&mut self) -> Result<Expr, ExprError> {
        match self.next() {
            Some(Token::Int(n)) => Ok(Expr::Int(n)),
            Some(Token::Float(n)) => Ok(Expr::Float(n)),
            Some(Token::Text(s)) => Ok(Expr::Text(s.into())),
            Some(Token::Sign("(")) => {
                let inner = self.conditional()?;
                self.expect(")")?;
                Ok(inner)
            }
            Some(Token::Sign("[")) => {
                let mut items = Vec::new();
                while !self.take("]") {
                    if !items.is_empty() {
                        self.expect(",")?;
                    }
                    items.push(self.conditional()?);
                }
                Ok(Expr::List(items))
            }
            Some(Token::Name(name)) => self.named(name),
            _ => Err(self.wrong()),
        }
    }

    fn named(&mut self, name: String) -> Result<Expr, ExprError> {
        match name.as_str() {
            "true" => return Ok(Expr::Bool(true)),
            "false" => return Ok(Expr::Bool(false)),
            "null" => return Ok(Expr::Null),
            _ => {}
        }
        if self.take("(") {
            return match name.as_str() {
                "has" => {
                    let Some(Token::Name(of)) = self.next() else { return Err(self.wrong()) };
                    let attribute = self.attribute(of)?;
                    self.expect(")")?;
                    Ok(Expr::Has(attribute))
                }
                "size" => {
                    let of = self.conditional()?;
                    self.expect(")")?;
                    Ok(Expr::Size(Box::new(of)))
                }
                "string" | "int" | "double" => Err(ExprError::Function(name)),
                _ => Err(ExprError::Function(name)),
            };
        }
        self.attribute(name).map(Expr::Attribute)
    }

    /// `name.field`, `request.headers['x']`.
    fn attribute(&mut self, of: String) -> Result<Attribute, ExprError> {
        if !self.take(".") {
            return Err(ExprError::Attribute(of));
        }
        let Some(Token::Name(field)) = self.next() else { return Err(self.wrong()) };
        let whole = format!("{of}.{field}");
        if field == "headers"
            && let Some(side) = side(&of)
        {
            let key = if self.take("[") {
                let Some(Token::Text(key)) = self.next() else { return Err(self.wrong()) };
                self.expect("]")?;
                key
            } else if self.take(".") {
                let Some(Token::Name(key)) = self.next() else { return Err(self.wrong()) };
                key
            } else {
                return Err(ExprError::Attribute(whole));
            };
            let name = HeaderName::from_bytes(key.as_bytes()).map_err(|_| ExprError::Attribute(key))?;
            return Ok(Attribute::Header(side, name));
        }
        let plain = ATTRIBUTES.iter().find(|(known, _)| *known == whole);
        plain.map(|(_, plain)| Attribute::Plain(*plain)).ok_or(ExprError::Attribute(whole))
    }
}

fn side(of: &str) -> Option<Side> {
    match of {
        "request" => Some(Side::Request),
        "response" => Some(Side::Response),
        _ => None,
    }
}
