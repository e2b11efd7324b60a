//! The grammar of format strings: text, `%%`, `%NAME%`, `%NAME(args)%`, `%NAME(args):max%`.
//!
//! Invariant: a successful parse holds known operators only, with well-formed header names.

use http::HeaderName;

use super::time;
use crate::model::Name;
use crate::model::format::{Format, GrpcStyle, HeaderKey, MetadataKind, Operator, Part, Plain, WhichPath};

/// Why a format string was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A `%` without partner.
    #[error("`%` at byte {0} does not end")]
    Unterminated(usize),
    /// Not an operator we evaluate.
    #[error("unsupported operator `%{0}%`")]
    Unknown(String),
    /// Arguments that make no sense.
    #[error("bad arguments of `%{0}%`")]
    Arguments(String),
}

/// Parses a format string.
///
/// # Errors
/// [`FormatError`] for bad syntax and for operators this engine does not evaluate.
pub fn parse(text: &str) -> Result<Format, FormatError> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        literal.push_str(before);
        if let Some(tail) = after.strip_prefix('%') {
            literal.push('%');
            rest = tail;
            continue;
        }
        let at = text.len().saturating_sub(after.len()).saturating_sub(1);
        let end = operator_end(after).ok_or(FormatError::Unterminated(at))?;
        let (operator, tail) = after.split_at_checked(end).ok_or(FormatError::Unterminated(at))?;
        if !literal.is_empty() {
            parts.push(Part::Literal(std::mem::take(&mut literal).into()));
        }
        parts.push(parse_operator(operator)?);
        rest = tail.strip_prefix('%').unwrap_or(tail);
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Literal(literal.into()));
    }
    Ok(Format { parts })
}

/// Where the operator ends: the first `%` outside parentheses (START_TIME formats hold `%` themselves).
fn operator_end(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth = depth.saturating_add(1),
            ')' => depth = depth.saturating_sub(1),
            '%' if depth == 0 => return Some(at),
            _ => {}
        }
    }
    None
}

fn parse_operator(text: &str) -> Result<Part, FormatError> {
    let unknown = || FormatError::Unknown(text.to_owned());
    let bad = || FormatError::Arguments(text.to_owned());
    let (name, args, max) = match text.split_once('(') {
        Some((name, rest)) => {
            let (args, tail) = rest.rsplit_once(')').ok_or_else(bad)?;
            (name, Some(args), tail)
        }
        None => match text.split_once(':') {
            Some((name, _)) => (name, None, text.get(name.len()..).unwrap_or_default()),
            None => (text, None, ""),
        },
    };
    let max = match max.strip_prefix(':') {
        Some(number) => Some(number.parse::<usize>().map_err(|_| bad())?),
        None if max.is_empty() => None,
        None => return Err(bad()),
    };
    let op = match (name, args) {
        ("START_TIME", args) => {
            let format = args.filter(|a| !a.is_empty()).unwrap_or(time::DEFAULT);
            if !time::is_known(format) {
                return Err(bad());
            }
            Operator::StartTime(format.into())
        }
        ("REQ", Some(args)) => header_pair(args).map(|(a, b)| Operator::Req(a, b)).ok_or_else(bad)?,
        ("RESP", Some(args)) => header_pair(args).map(|(a, b)| Operator::Resp(a, b)).ok_or_else(bad)?,
        ("TRAILER", Some(args)) => header_pair(args).map(|(a, b)| Operator::Trailer(a, b)).ok_or_else(bad)?,
        ("ENVIRONMENT", Some(args)) => Operator::Environment(args.into()),
        ("FILTER_STATE", Some(args)) => {
            let key = args.split_once(":PLAIN").map_or(args, |(key, _)| key);
            Operator::FilterState(key.into())
        }
        ("DYNAMIC_METADATA", Some(args)) => Operator::Metadata(MetadataKind::Dynamic, path(args)),
        ("CLUSTER_METADATA", Some(args)) => Operator::Metadata(MetadataKind::Cluster, path(args)),
        ("UPSTREAM_METADATA", Some(args)) => Operator::Metadata(MetadataKind::Upstream, metadata_path(args)),
        ("ROUTE_METADATA", Some(args)) => Operator::Metadata(MetadataKind::Route, path(args)),
        ("METADATA", Some(args)) => {
            let (kind, rest) = args.split_once(':').ok_or_else(bad)?;
            let kind = match kind {
                "DYNAMIC" => MetadataKind::Dynamic,
                "CLUSTER" => MetadataKind::Cluster,
                "ROUTE" => MetadataKind::Route,
                "UPSTREAM_HOST" => MetadataKind::Upstream,
                _ => return Err(unknown()),
            };
            Operator::Metadata(kind, path(rest))
        }
        ("CEL", Some(args)) => by_protocol(args).ok_or_else(unknown)?,
        ("GRPC_STATUS", None | Some("" | "CAMEL_STRING")) => Operator::GrpcStatus(GrpcStyle::Camel),
        ("GRPC_STATUS", Some("SNAKE_STRING")) => Operator::GrpcStatus(GrpcStyle::Snake),
        ("GRPC_STATUS", Some("NUMBER")) => Operator::GrpcStatus(GrpcStyle::Number),
        ("QUERY_PARAM", Some(name)) if !name.is_empty() => Operator::QueryParam(name.into()),
        ("REQ_WITHOUT_QUERY", Some(args)) => {
            header_pair(args).map(|(a, b)| Operator::ReqWithoutQuery(a, b)).ok_or_else(bad)?
        }
        ("PATH", args) => path_of(args.unwrap_or_default()).ok_or_else(bad)?,
        (name, None) => Operator::Plain(Plain::parse(name).ok_or_else(unknown)?),
        _ => return Err(unknown()),
    };
    Ok(Part::Value { op, max })
}

/// `WQ` or `NQ`, then `ORIG`, `PATH` or `ORIG_OR_PATH`.
fn path_of(args: &str) -> Option<Operator> {
    let (query, which) = args.split_once(':').unwrap_or((args, ""));
    let query = match query {
        "" | "WQ" => true,
        "NQ" => false,
        _ => return None,
    };
    let which = match which {
        "" | "ORIG_OR_PATH" => WhichPath::OriginalOrPath,
        "ORIG" => WhichPath::Original,
        "PATH" => WhichPath::Path,
        _ => return None,
    };
    Some(Operator::Path { query, which })
}

fn path(args: &str) -> Vec<Name> {
    args.split(':').map(Name::from).collect()
}

/// `UPSTREAM_METADATA(["ns", "key"])`, the older form, or `ns:key`.
fn metadata_path(args: &str) -> Vec<Name> {
    match args.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
        Some(list) => list.split(',').map(|item| Name::from(item.trim().trim_matches('"'))).collect(),
        None => path(args),
    }
}

fn header_pair(args: &str) -> Option<(HeaderKey, Option<HeaderKey>)> {
    match args.split_once('?') {
        Some((first, second)) => Some((parse_header_key(first)?, Some(parse_header_key(second)?))),
        None => Some((parse_header_key(args)?, None)),
    }
}

/// A header name or pseudo header, in any case. `host` is `:authority`.
#[must_use]
pub fn parse_header_key(text: &str) -> Option<HeaderKey> {
    let lower = text.trim().to_ascii_lowercase();
    Some(match lower.as_str() {
        ":path" => HeaderKey::Path,
        ":method" => HeaderKey::Method,
        ":authority" | "host" => HeaderKey::Authority,
        ":scheme" => HeaderKey::Scheme,
        ":status" => HeaderKey::Status,
        ":protocol" => HeaderKey::Protocol,
        name => HeaderKey::Name(HeaderName::from_bytes(name.as_bytes()).ok()?),
    })
}

/// `request.protocol == 'X' ? 'a' : <the same again, or 'b'>`.
fn by_protocol(expression: &str) -> Option<Operator> {
    let mut cases = Vec::new();
    let mut rest = expression.trim_start();
    while let Some(after) = rest.strip_prefix("request.protocol") {
        let (protocol, after) = quoted(after.trim_start().strip_prefix("==")?)?;
        let (text, after) = quoted(after.trim_start().strip_prefix('?')?)?;
        cases.push((protocol.into(), text.into()));
        rest = after.trim_start().strip_prefix(':')?.trim_start();
    }
    let (otherwise, after) = quoted(rest)?;
    (!cases.is_empty() && after.trim().is_empty()).then(|| Operator::ByProtocol { cases, otherwise: otherwise.into() })
}

/// A text in single quotes without escapes, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let (value, rest) = text.trim_start().strip_prefix('\'')?.split_once('\'')?;
    (!value.contains('\\')).then_some((value, rest))
}
