//! Evaluating expressions over [`Facts`].
//!
//! Invariant: no evaluation panics or recurses deeper than the parser allowed; `None` stands for CEL's error.

use std::borrow::Cow;

use crate::facts::Facts;
use crate::model::expr::{Attribute, Binary, Expr, Plain, Side};

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Val<'a> {
    /// null
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Float(f64),
    /// A text.
    Text(Cow<'a, str>),
}

impl Val<'_> {
    /// As it stands in a label; null stands for nothing.
    #[must_use]
    pub fn into_text(self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Bool(b) => Some(b.to_string()),
            Self::Int(n) => Some(n.to_string()),
            Self::Float(n) => Some(n.to_string()),
            Self::Text(text) => Some(text.into_owned()),
        }
    }
}

impl Expr {
    /// Whether it is true; errors are not.
    #[must_use]
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        self.eval(facts) == Some(Val::Bool(true))
    }

    /// Its value; `None` is an error.
    #[must_use]
    pub fn eval<'a>(&'a self, facts: &Facts<'a>) -> Option<Val<'a>> {
        match self {
            Self::Null => Some(Val::Null),
            Self::Bool(b) => Some(Val::Bool(*b)),
            Self::Int(n) => Some(Val::Int(*n)),
            Self::Float(n) => Some(Val::Float(*n)),
            Self::Text(text) => Some(Val::Text(Cow::Borrowed(text))),
            Self::Attribute(attribute) => attribute.value(facts),
            Self::If(parts) => {
                let [condition, yes, no] = &**parts;
                match condition.eval(facts)? {
                    Val::Bool(true) => yes.eval(facts),
                    Val::Bool(false) => no.eval(facts),
                    _ => None,
                }
            }
            Self::Not(inner) => match inner.eval(facts)? {
                Val::Bool(b) => Some(Val::Bool(!b)),
                _ => None,
            },
            Self::Negative(inner) => match inner.eval(facts)? {
                Val::Int(n) => n.checked_neg().map(Val::Int),
                Val::Float(n) => Some(Val::Float(-n)),
                _ => None,
            },
            Self::Has(attribute) => Some(Val::Bool(attribute.value(facts).is_some())),
            Self::HasHeader(side, name) => match name.eval(facts)? {
                Val::Text(name) => Some(Val::Bool(headers(*side, facts).is_some_and(|h| h.contains_key(&*name)))),
                _ => None,
            },
            Self::Size(inner) => match inner.eval(facts)? {
                Val::Text(text) => i64::try_from(text.chars().count()).ok().map(Val::Int),
                _ => None,
            },
            Self::Matches(inner, pattern) => match inner.eval(facts)? {
                Val::Text(text) => Some(Val::Bool(pattern.is_match(&text))),
                _ => None,
            },
            Self::List(_) => None,
            Self::Binary(op, operands) => binary(*op, &operands[0], &operands[1], facts),
        }
    }
}

fn binary<'a>(op: Binary, left: &'a Expr, right: &'a Expr, facts: &Facts<'a>) -> Option<Val<'a>> {
    match op {
        // One side decides even where the other is an error.
        Binary::And | Binary::Or => {
            let decides = Some(Val::Bool(op == Binary::Or));
            let left = left.eval(facts);
            if left == decides {
                return left;
            }
            let right = right.eval(facts);
            if right == decides {
                return right;
            }
            match (left, right) {
                (Some(Val::Bool(_)), Some(Val::Bool(_))) => Some(Val::Bool(op == Binary::And)),
                _ => None,
            }
        }
        Binary::In => {
            let Expr::List(items) = right else { return None };
            let left = left.eval(facts)?;
            let found = items.iter().filter_map(|i| i.eval(facts)).any(|i| same(&left, &i) == Some(true));
            Some(Val::Bool(found))
        }
        Binary::Eq => same(&left.eval(facts)?, &right.eval(facts)?).map(Val::Bool),
        Binary::Ne => same(&left.eval(facts)?, &right.eval(facts)?).map(|same| Val::Bool(!same)),
        Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge => {
            let order = order(&left.eval(facts)?, &right.eval(facts)?)?;
            Some(Val::Bool(match op {
                Binary::Lt => order.is_lt(),
                Binary::Le => order.is_le(),
                Binary::Gt => order.is_gt(),
                _ => order.is_ge(),
            }))
        }
        Binary::Add => match (left.eval(facts)?, right.eval(facts)?) {
            (Val::Text(a), Val::Text(b)) => Some(Val::Text(Cow::Owned(format!("{a}{b}")))),
            (Val::Int(a), Val::Int(b)) => a.checked_add(b).map(Val::Int),
            (Val::Float(a), Val::Float(b)) => Some(Val::Float(a + b)),
            _ => None,
        },
        Binary::StartsWith | Binary::EndsWith | Binary::Contains => {
            let (Val::Text(text), Val::Text(part)) = (left.eval(facts)?, right.eval(facts)?) else { return None };
            Some(Val::Bool(match op {
                Binary::StartsWith => text.starts_with(&*part),
                Binary::EndsWith => text.ends_with(&*part),
                _ => text.contains(&*part),
            }))
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn same(a: &Val<'_>, b: &Val<'_>) -> Option<bool> {
    Some(match (a, b) {
        (Val::Int(a), Val::Float(b)) | (Val::Float(b), Val::Int(a)) => *a as f64 == *b,
        (Val::Null, _) | (_, Val::Null) => a == b,
        _ if std::mem::discriminant(a) == std::mem::discriminant(b) => a == b,
        _ => return None,
    })
}

#[allow(clippy::cast_precision_loss)]
fn order(a: &Val<'_>, b: &Val<'_>) -> Option<std::cmp::Ordering> {
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
        (Val::Float(a), Val::Float(b)) => a.partial_cmp(b),
        (Val::Int(a), Val::Float(b)) => (*a as f64).partial_cmp(b),
        (Val::Float(a), Val::Int(b)) => a.partial_cmp(&(*b as f64)),
        (Val::Text(a), Val::Text(b)) => Some(a.cmp(b)),
        (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

fn headers<'a>(side: Side, facts: &Facts<'a>) -> Option<&'a http::HeaderMap> {
    match side {
        Side::Request => facts.request.map(|r| r.headers),
        Side::Response => facts.response,
    }
}

fn of_text(text: Option<&str>) -> Option<Val<'_>> {
    text.map(|text| Val::Text(Cow::Borrowed(text)))
}

fn of_number(number: u64) -> Option<Val<'static>> {
    i64::try_from(number).ok().map(Val::Int)
}

impl Attribute {
    fn value<'a>(&self, facts: &Facts<'a>) -> Option<Val<'a>> {
        let plain = match self {
            Self::Header(side, name) => {
                let all = headers(*side, facts)?;
                let mut values = all.get_all(name).iter().filter_map(|v| v.to_str().ok());
                let first = values.next()?;
                return match values.next() {
                    None => of_text(Some(first)),
                    // As Envoy joins them.
                    Some(second) => {
                        let all = [first, second].into_iter().chain(values).collect::<Vec<_>>().join(",");
                        Some(Val::Text(Cow::Owned(all)))
                    }
                };
            }
            Self::Plain(plain) => *plain,
        };
        let header = |name: &str| facts.request.and_then(|r| r.headers.get(name)).and_then(|v| v.to_str().ok());
        let address = |a: Option<std::net::SocketAddr>| a.map(|a| Val::Text(Cow::Owned(a.to_string())));
        let port = |a: Option<std::net::SocketAddr>| a.map(|a| Val::Int(i64::from(a.port())));
        match plain {
            Plain::RequestPath => of_text(facts.request.map(|r| r.path)),
            Plain::RequestUrlPath => of_text(facts.request.map(|r| r.path_only())),
            Plain::RequestQuery => of_text(facts.request.map(|r| r.query().unwrap_or_default())),
            Plain::RequestHost => of_text(facts.request.map(|r| r.authority)),
            Plain::RequestScheme => of_text(facts.request.map(|r| r.scheme)),
            Plain::RequestMethod => of_text(facts.request.map(|r| r.method)),
            Plain::RequestReferer => of_text(header("referer")),
            Plain::RequestUserAgent => of_text(header("user-agent")),
            Plain::RequestId => of_text(header("x-request-id")),
            Plain::RequestProtocol => of_text(facts.request.and(facts.protocol)),
            Plain::RequestSize => of_number(facts.bytes_received),
            Plain::ResponseCode => facts.status.filter(|s| *s > 0).and_then(|s| of_number(s.into())),
            Plain::ResponseCodeDetails => of_text(facts.code_details.filter(|d| !d.is_empty())),
            Plain::ResponseGrpcStatus => facts.grpc_status.and_then(|s| of_number(s.into())),
            Plain::ResponseSize => of_number(facts.bytes_sent),
            Plain::SourceAddress => address(facts.remote),
            Plain::SourcePort => port(facts.remote),
            Plain::DestinationAddress => address(facts.local),
            Plain::DestinationPort => port(facts.local),
            Plain::ConnectionId => facts.connection_id.and_then(of_number),
            Plain::ConnectionMtls => Some(Val::Bool(facts.peer_fingerprint.is_some() || facts.peer_uri_san.is_some())),
            Plain::ConnectionServerName => of_text(facts.server_name),
            Plain::ConnectionTlsVersion => of_text(facts.tls_version),
            Plain::ConnectionUriPeer => of_text(facts.peer_uri_san),
            Plain::ConnectionUriLocal => of_text(facts.local_uri_san),
            Plain::ConnectionSubjectPeer => of_text(facts.peer_subject),
            Plain::ConnectionDigestPeer => of_text(facts.peer_fingerprint),
            Plain::ConnectionTermination => of_text(facts.termination_details),
            Plain::UpstreamAddress => address(facts.upstream),
            Plain::UpstreamPort => port(facts.upstream),
            Plain::UpstreamLocalAddress => address(facts.upstream_local),
            Plain::UpstreamFailure => of_text(facts.upstream_failure),
            Plain::UpstreamAttempts => facts.attempts.and_then(|n| of_number(n.into())),
            Plain::XdsClusterName => of_text(facts.cluster),
            Plain::XdsRouteName => of_text(facts.route),
            Plain::XdsChainName => of_text(facts.chain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use crate::request::RequestHead;

    #[test]
    fn expressions() {
        let mut headers = http::HeaderMap::new();
        headers.insert("x-a", "1".parse().unwrap());
        let request =
            RequestHead { method: "GET", path: "/a/b?q=1", authority: "h", scheme: "http", headers: &headers };
        let facts = Facts { request: Some(request), status: Some(503), bytes_sent: 7, ..Facts::default() };
        for (text, expected) in [
            ("response.code >= 400", "true"),
            ("response.code >= 400 && request.method == 'POST'", "false"),
            ("request.headers['x-b'] == 'z' || response.code == 503", "true"),
            ("request.headers['x-b'] == 'z'", "error"),
            ("!has(request.headers['x-b']) && has(request.headers['x-a'])", "true"),
            ("'x-a' in request.headers", "true"),
            ("request.url_path.startsWith('/a') && !request.path.endsWith('b')", "true"),
            ("request.path.matches('^/a/.*q=\\\\d')", "true"),
            ("connection.mtls", "false"),
            ("request.method in ['GET', \"HEAD\"]", "true"),
            ("response.code == 200 ? 'ok' : request.host + '!'", "h!"),
            ("size(request.host) == 1", "true"),
            ("response.size + -7", "0"),
            ("request.headers['x-a'] > 3", "error"),
            ("1.5 < 2", "true"),
        ] {
            let expr = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let shown = expr.eval(&facts).map_or("error".to_owned(), |v| v.into_text().unwrap_or_default());
            assert_eq!(shown, expected, "{text}");
        }
        for bad in ["", "request", "request.nothing", "foo(1)", "a b", "1 +", "'x", "request.headers", "(1", "x.y.z()"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"!".repeat(2000)).is_err());
        assert!(parse(&"(".repeat(2000)).is_err());
    }
}
