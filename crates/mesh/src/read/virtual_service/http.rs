//! Rules for HTTP (semantics §10.3–§10.7).
//!
//! Invariant: what comes out is acceptable to the engines; a rule of which a part cannot be read is an error with the field's name, never
//! a rule without that part.

use std::{collections::BTreeMap, sync::Arc};

use carrick_api::istio::virtual_service::{self as api, GRPC_STATUSES};

use super::{Wrong, at, bound, target, text, weighted};
use crate::{
    model::{
        request::{
            Abort, ClaimTest, Condition, Cors, Fault, HeaderChange, HeaderChanges, HeaderTest, PathTest, RETRY_ON,
            Redirect, RedirectPath, Retries, TextTest,
        },
        virtual_service::{HttpLook, HttpRule, RetryRule, Rewrite, RuleAction, RuleDestination, RuleForward, Target},
    },
    names::REST_OF_PATH,
    read::traffic::millis,
};

/// The prefix of header names that mean a claim of the request's token.
const CLAIMS: &str = "@request.auth.claims";
/// Longest body of a direct response.
const MAX_BODY: usize = 1 << 20;
const MILLION: f64 = 1_000_000.0;

fn wrong<T>(field: &str, message: impl Into<String>) -> Result<T, Wrong> {
    Err((field.to_owned(), message.into()))
}

/// Reads a rule.
pub(super) fn rule(from: &api::HttpRoute, own: &Arc<str>) -> Result<HttpRule, Wrong> {
    let matches = from.matches.iter().enumerate().map(|(index, m)| look(m, own).map_err(at(index)));
    let (headers, authority) = changes(from.headers.as_ref())?;
    Ok(HttpRule {
        name: from.name.as_str().into(),
        matches: matches.collect::<Result<_, _>>()?,
        action: action(from, authority)?,
        headers,
        fault: from.fault.as_ref().map(fault).transpose()?.flatten(),
        cors: from.cors_policy.as_ref().map(cors).transpose()?,
    })
}

/// What stands in for a rule that cannot be read: for all that it surely matches, else for everything.
pub(super) fn refusal(from: &api::HttpRoute, own: &Arc<str>) -> HttpRule {
    let matches: Result<Vec<_>, _> = from.matches.iter().map(|m| look(m, own)).collect();
    HttpRule {
        name: from.name.as_str().into(),
        matches: matches.unwrap_or_default(),
        action: RuleAction::Direct { status: 500, body: Arc::default() },
        headers: HeaderChanges::default(),
        fault: None,
        cors: None,
    }
}

fn look(from: &api::HttpMatch, own: &Arc<str>) -> Result<HttpLook, Wrong> {
    let mut condition = Condition { ignore_case: from.ignore_uri_case, ..Condition::default() };
    if let Some(uri) = &from.uri {
        condition.path = match test(uri).map_err(|m| (".uri".to_owned(), m))? {
            TextTest::Present => PathTest::Any,
            TextTest::Exact(path) => PathTest::Exact(path),
            TextTest::Prefix(path) => PathTest::Prefix(path),
            TextTest::Regex(path) => PathTest::Regex(path),
        };
    }
    let named = [
        (":method", "method", &from.method),
        (":scheme", "scheme", &from.scheme),
        (":authority", "authority", &from.authority),
    ];
    for (header, field, value) in named {
        if let Some(value) = value {
            let test = test(value).map_err(|m| (format!(".{field}"), m))?;
            condition.headers.push(HeaderTest { name: header.into(), test, inverted: false });
        }
    }
    for (map, field, inverted) in [(&from.headers, "headers", false), (&from.without_headers, "withoutHeaders", true)] {
        for (name, value) in map {
            let place = |message: String| (format!(".{field}[{name}]"), message);
            let test = test(value).map_err(place)?;
            if let Some(rest) = name.strip_prefix(CLAIMS) {
                let path = claim(rest).ok_or_else(|| place("no claim is named".to_owned()))?;
                condition.claims.push(ClaimTest { path, test, inverted });
            } else {
                // The HTTP/2 names may be used here too.
                let plain = name.strip_prefix(':').unwrap_or(name);
                let checked = text::header_name(plain).map_err(place)?;
                let name = if plain.len() == name.len() { checked } else { format!(":{checked}").into() };
                condition.headers.push(HeaderTest { name, test, inverted });
            }
        }
    }
    for (name, value) in &from.query_params {
        let test = test(value).map_err(|m| (format!(".queryParams[{name}]"), m))?;
        condition.query.push((name.as_str().into(), test));
    }
    Ok(HttpLook {
        name: from.name.as_str().into(),
        bound: bound(from.port, &from.source_labels, &from.source_namespace, &from.gateways, own)?,
        condition,
        stat_prefix: from.stat_prefix.as_str().into(),
    })
}

fn test(from: &api::StringMatch) -> Result<TextTest, String> {
    Ok(match (&from.exact, &from.prefix, &from.regex) {
        (Some(text), _, _) => TextTest::Exact(text.as_str().into()),
        (None, Some(text), _) if text.is_empty() => TextTest::Present,
        (None, Some(text), _) => TextTest::Prefix(text.as_str().into()),
        (None, None, Some(text)) if text == "*" => TextTest::Present,
        (None, None, Some(text)) => TextTest::Regex(text::pattern(text)?),
        (None, None, None) => TextTest::Present,
    })
}

/// `.a.b` and `[a][b]`, the way to a claim (§10.4).
fn claim(rest: &str) -> Option<Vec<Arc<str>>> {
    let parts: Vec<&str> = if let Some(rest) = rest.strip_prefix('.') {
        rest.split('.').collect()
    } else {
        rest.strip_prefix('[')?.strip_suffix(']')?.split("][").collect()
    };
    parts.iter().all(|p| !p.is_empty()).then(|| parts.into_iter().map(Arc::from).collect())
}

fn action(from: &api::HttpRoute, authority: Option<Arc<str>>) -> Result<RuleAction, Wrong> {
    if let Some(redirect) = &from.redirect {
        return self::redirect(redirect);
    }
    if let Some(direct) = &from.direct_response {
        return self::direct(direct);
    }
    let each = from.route.iter().enumerate().map(|(index, d)| {
        let place = |(field, message): Wrong| (format!(".route[{index}]{field}"), message);
        let (headers, authority) = changes(d.headers.as_ref()).map_err(place)?;
        let target = target(d.destination.as_ref()).map_err(place)?;
        Ok(((target, headers, authority), d.weight))
    });
    let destinations = weighted(each.collect::<Result<Vec<_>, Wrong>>()?)?
        .into_iter()
        .map(|((target, headers, authority), weight)| RuleDestination { target, weight, headers, authority })
        .collect();
    let rewrite = from.rewrite.as_ref();
    Ok(RuleAction::Forward(Box::new(RuleForward {
        destinations,
        timeout: from.timeout.map_or(0, millis),
        retries: from.retries.as_ref().map_or(Ok(RetryRule::Default), retries)?,
        rewrite: rewrite.map(self::rewrite).transpose()?.flatten(),
        authority: rewrite.filter(|r| !r.authority.is_empty()).map(|r| r.authority.as_str().into()).or(authority),
        mirrors: mirrors(from)?,
    })))
}

fn rewrite(from: &api::HttpRewrite) -> Result<Option<Rewrite>, Wrong> {
    if let Some(regex) = &from.uri_regex_rewrite {
        let pattern = text::pattern(&regex.pattern).map_err(|m| (".rewrite.uriRegexRewrite.match".to_owned(), m))?;
        if !is_substitution(&regex.rewrite, &regex.pattern) {
            return wrong(".rewrite.uriRegexRewrite.rewrite", "a back-reference to no group of the pattern");
        }
        return Ok(Some(Rewrite::Regex { pattern, with: regex.rewrite.as_str().into() }));
    }
    Ok((!from.uri.is_empty()).then(|| Rewrite::Path(from.uri.as_str().into())))
}

/// Back-references are `\0` to `\9`, and within the pattern's groups; a backslash is written `\\`.
fn is_substitution(with: &str, pattern: &str) -> bool {
    let groups = regex::Regex::new(pattern).map_or(0, |regex| regex.captures_len().saturating_sub(1));
    let mut chars = with.chars();
    while let Some(c) = chars.next() {
        if c == '\\' {
            match chars.next() {
                Some('\\') => {}
                Some(digit) => match digit.to_digit(10).map(usize::try_from) {
                    Some(Ok(number)) if number <= groups => {}
                    _ => return false,
                },
                None => return false,
            }
        }
    }
    true
}

/// Reads when a request is tried again; 0 attempts are never.
pub(crate) fn retries(from: &api::HttpRetry) -> Result<RetryRule, Wrong> {
    let Ok(attempts) = u32::try_from(from.attempts) else { return wrong(".retries.attempts", "must not be negative") };
    if attempts == 0 {
        return Ok(RetryRule::Never);
    }
    let (mut on, mut codes) = (Vec::new(), Vec::new());
    for token in from.retry_on.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        match token.parse::<u32>() {
            Ok(code) if (100..600).contains(&code) => codes.push(code),
            Ok(code) => return wrong(".retries.retryOn", format!("{code} is no status")),
            Err(_) => on.push(token),
        }
    }
    if !codes.is_empty() && !on.contains(&"retriable-status-codes") {
        on.push("retriable-status-codes");
    }
    let on = if on.is_empty() { RETRY_ON.into() } else { on.join(",").into() };
    Ok(RetryRule::Own(Retries {
        attempts,
        on,
        codes,
        per_try_timeout: from.per_try_timeout.map(millis).filter(|ms| *ms > 0),
        backoff: from.backoff.map(millis).filter(|ms| *ms > 0),
        other_localities: from.retry_remote_localities == Some(true),
        other_endpoints: from.retry_ignore_previous_hosts != Some(false),
    }))
}

/// Parts of a million; nothing said is all.
fn share(percent: Option<api::Percent>) -> Result<u32, String> {
    let Some(percent) = percent else { return Ok(1_000_000) };
    let value = percent.value.0;
    if !(0.0..=100.0).contains(&value) {
        return Err(format!("{value} is not in range 0..100"));
    }
    let parts = (value / 100.0 * MILLION).round();
    // Between 0 and a million, as checked.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(parts as u32)
}

fn whole(percent: u32) -> api::Percent {
    api::Percent { value: carrick_api::scalar::Number(f64::from(percent)) }
}

fn mirrors(from: &api::HttpRoute) -> Result<Vec<(Target, u32)>, Wrong> {
    let mut out = Vec::new();
    if let Some(mirror) = &from.mirror {
        let percent = from.mirror_percentage.or_else(|| from.mirror_percent.map(whole));
        let share = share(percent).map_err(|m| (".mirrorPercentage".to_owned(), m))?;
        let target = target(Some(mirror)).map_err(|(_, m)| (".mirror".to_owned(), m))?;
        out.push((target, share));
    }
    for (index, mirror) in from.mirrors.iter().enumerate() {
        let place = |message: String| (format!(".mirrors[{index}]"), message);
        let target = target(mirror.destination.as_ref()).map_err(|(_, m)| place(m))?;
        out.push((target, share(mirror.percentage).map_err(place)?));
    }
    out.retain(|(_, share)| *share > 0);
    Ok(out)
}

fn redirect(from: &api::HttpRedirect) -> Result<RuleAction, Wrong> {
    let status = match from.redirect_code {
        0 | 301 => 301,
        302 => 302,
        303 => 303,
        307 => 307,
        308 => 308,
        other => return wrong(".redirect.redirectCode", format!("{other} is no redirect's status")),
    };
    if !matches!(from.scheme.as_str(), "" | "http" | "https") {
        return wrong(".redirect.scheme", "neither http nor https");
    }
    let port = match from.port.map(u16::try_from) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return wrong(".redirect.port", "no port"),
    };
    let path = match from.uri.as_str() {
        "" => None,
        uri if uri.contains(REST_OF_PATH) => Some(RedirectPath::Matched(uri.replace(REST_OF_PATH, "").into())),
        uri => Some(RedirectPath::Whole(uri.into())),
    };
    let redirect =
        Redirect { status, authority: from.authority.as_str().into(), scheme: from.scheme.as_str().into(), path, port };
    let from_request_port = from.derive_port == Some(api::DerivePort::FromRequestPort);
    Ok(RuleAction::Redirect { redirect, from_request_port })
}

fn direct(from: &api::HttpDirectResponse) -> Result<RuleAction, Wrong> {
    let Some(status) = u16::try_from(from.status).ok().filter(|s| (200..600).contains(s)) else {
        return wrong(".directResponse.status", "must be between 200 and 599");
    };
    let body: Arc<[u8]> = match from.body.as_ref().map(|b| (&b.string, &b.bytes)) {
        Some((Some(text), _)) => text.as_bytes().into(),
        Some((None, Some(bytes))) => match carrick_api::core::decode_base64(bytes) {
            Some(bytes) => bytes.into(),
            None => return wrong(".directResponse.body.bytes", "not base64"),
        },
        _ => Arc::default(),
    };
    if body.len() > MAX_BODY {
        return wrong(".directResponse.body", "longer than 1 MiB");
    }
    Ok(RuleAction::Direct { status, body })
}

fn fault(from: &api::HttpFault) -> Result<Option<Fault>, Wrong> {
    let delay = match &from.delay {
        None => None,
        Some(delay) => {
            let Some(fixed) = delay.fixed_delay else {
                return wrong(".fault.delay", "only fixedDelay is supported");
            };
            let old = u32::try_from(delay.percent).ok().filter(|p| *p > 0).map(whole);
            let share = share(delay.percentage.or(old)).map_err(|m| (".fault.delay.percentage".to_owned(), m))?;
            Some((millis(fixed).max(1), share)).filter(|(_, share)| *share > 0)
        }
    };
    let abort = match &from.abort {
        None => None,
        Some(abort) => {
            let share = share(abort.percentage).map_err(|m| (".fault.abort.percentage".to_owned(), m))?;
            let kind = match (abort.http_status, &abort.grpc_status) {
                (Some(status), _) => match u16::try_from(status).ok().filter(|s| (200..600).contains(s)) {
                    Some(status) => Abort::Http(status),
                    None => return wrong(".fault.abort.httpStatus", "must be between 200 and 599"),
                },
                (None, Some(status)) => match grpc_status(status) {
                    Some(status) => Abort::Grpc(status),
                    None => return wrong(".fault.abort.grpcStatus", format!("{status:?} is no gRPC status")),
                },
                (None, None) => return wrong(".fault.abort", "httpStatus or grpcStatus is required"),
            };
            Some((kind, share)).filter(|(_, share)| *share > 0)
        }
    };
    Ok((delay.is_some() || abort.is_some()).then_some(Fault { delay, abort }))
}

fn grpc_status(text: &str) -> Option<u32> {
    let by_name = GRPC_STATUSES.iter().position(|name| *name == text).and_then(|n| u32::try_from(n).ok());
    by_name.or_else(|| text.parse().ok().filter(|n| *n < 17))
}

fn cors(from: &api::CorsPolicy) -> Result<Cors, Wrong> {
    let mut origins = Vec::new();
    for (index, origin) in from.allow_origins.iter().enumerate() {
        origins.push(test(origin).map_err(|m| (format!(".corsPolicy.allowOrigins[{index}]"), m))?);
    }
    if origins.is_empty() {
        origins.extend(from.allow_origin.iter().map(|o| TextTest::Exact(o.as_str().into())));
    }
    Ok(Cors {
        origins,
        methods: from.allow_methods.join(",").into(),
        headers: from.allow_headers.join(",").into(),
        expose: from.expose_headers.join(",").into(),
        max_age: from.max_age.map(|age| age.get().as_secs()),
        credentials: from.allow_credentials,
        forward_unmatched: match from.unmatched_preflights {
            api::UnmatchedPreflights::Unspecified => None,
            api::UnmatchedPreflights::Forward => Some(true),
            api::UnmatchedPreflights::Ignore => Some(false),
        },
    })
}

/// Header changes, and the authority if the request's is set.
fn changes(from: Option<&api::Headers>) -> Result<(HeaderChanges, Option<Arc<str>>), Wrong> {
    let Some(from) = from else { return Ok(Default::default()) };
    let (request, authority) = change(from.request.as_ref(), "request")?;
    let (response, _) = change(from.response.as_ref(), "response")?;
    Ok((HeaderChanges { request, response }, authority))
}

fn change(from: Option<&api::HeaderOperations>, side: &str) -> Result<(HeaderChange, Option<Arc<str>>), Wrong> {
    let (mut out, mut authority) = (HeaderChange::default(), None);
    let Some(from) = from else { return Ok((out, authority)) };
    let is_authority = |name: &str| name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority");
    let list = |what: &str, map: &BTreeMap<String, String>| {
        let usable = map.iter().filter(|(name, _)| !is_authority(name) && !name.starts_with(':'));
        let each = usable.map(|(name, value)| {
            let place = |message: String| (format!(".headers.{side}.{what}[{name}]"), message);
            Ok((text::header_name(name).map_err(place)?, text::header_value(value).map_err(place)?))
        });
        each.collect::<Result<Vec<_>, Wrong>>()
    };
    authority =
        from.set.iter().find(|(name, _)| is_authority(name)).map(|(_, value)| value.as_str().into()).or(authority);
    out.set = list("set", &from.set)?;
    out.add = list("add", &from.add)?;
    for name in from.remove.iter().filter(|name| !is_authority(name) && !name.starts_with(':')) {
        out.remove.push(text::header_name(name).map_err(|m| (format!(".headers.{side}.remove"), m))?);
    }
    Ok((out, authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_named_in_two_ways() {
        let path = |text: &str| claim(text).map(|p| p.join("/"));
        assert_eq!(path(".group").as_deref(), Some("group"));
        assert_eq!(path(".a.b").as_deref(), Some("a/b"));
        assert_eq!(path("[a][b.c]").as_deref(), Some("a/b.c"));
        for none in ["", ".", "[]", "[a", "x"] {
            assert_eq!(path(none), None, "{none}");
        }
    }

    #[test]
    fn retry_conditions_with_statuses() {
        let of = |text: &str| retries(&api::HttpRetry { attempts: 3, retry_on: text.to_owned(), ..Default::default() });
        let own = |rule| match rule {
            Ok(RetryRule::Own(own)) => own,
            other => panic!("{other:?}"),
        };
        let got = own(of("5xx, 503,gateway-error"));
        assert_eq!((&*got.on, got.codes), ("5xx,gateway-error,retriable-status-codes", vec![503]));
        assert_eq!(&*own(of("")).on, RETRY_ON);
        assert!(of("700").is_err());
        assert_eq!(retries(&api::HttpRetry::default()), Ok(RetryRule::Never));
    }

    #[test]
    fn substitutions_stay_within_the_groups() {
        for (with, pattern, fits) in [
            (r"/\1/x", "/(a)", true),
            (r"/\2", "/(a)", false),
            (r"\0", "a", true),
            (r"a\", "a", false),
            (r"\\", "a", true),
        ] {
            assert_eq!(is_substitution(with, pattern), fits, "{with} {pattern}");
        }
    }
}
