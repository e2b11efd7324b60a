//! JWT authentication: which tokens a request must have, whether it has them, and what they leave in it.
//!
//! Invariant: as Envoy 1.40, or stricter: all tokens of a provider's places must be good; a good token's traces (payload header, claim
//! headers) replace whatever the client sent under these names; a request that is refused was told why in Envoy's words. Time and remote
//! keys are arguments.

pub mod locate;

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use serde_json::Value as Json;

use crate::jws::{Status, keys::KeySet, token::Token};
use crate::model::Name;
use crate::model::jwt::{JwtAuthn, JwtHere, Keys, Provider, Requirement};
use crate::model::metadata::{Map, Value};
use crate::request::RequestHead;
use crate::routing::RouteFacts;
use locate::{Message, PlaceKind, places};

/// Namespace of the filter's dynamic metadata.
pub const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

/// What has become of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It passes.
    Passed(Passed),
    /// It is refused.
    Refused(Refusal),
    /// A preflight passes unseen.
    Bypassed,
}

/// What a request passes with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Passed {
    /// For the filter's namespace of dynamic metadata.
    pub metadata: Map<Value>,
    /// Find the route again.
    pub clear_route: bool,
    /// Providers whose tokens were good.
    pub providers: Vec<Name>,
}

/// Why and how a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// 401 or 403.
    pub status: u16,
    /// Body.
    pub text: Cow<'static, str>,
    /// `www-authenticate`.
    pub challenge: Option<String>,
    /// Response code details.
    pub details: String,
}

/// Longest path in a challenge, as Envoy's.
const MAX_REALM_PATH: usize = 256;

impl JwtAuthn {
    /// The requirement for a request.
    ///
    /// # Errors
    /// A route names one that there is not.
    pub fn requirement(
        &self,
        here: Option<&JwtHere>,
        request: &RequestHead<'_>,
        facts: &RouteFacts<'_>,
    ) -> Result<Option<&Arc<Requirement>>, Refusal> {
        match here {
            Some(JwtHere::Off) => Ok(None),
            Some(JwtHere::Named(name)) => match self.map.iter().find(|(n, _)| n == name) {
                Some((_, requirement)) => Ok(Some(requirement)),
                None => {
                    let text = format!("Wrong requirement_name: {name}. It should be one of [{}]", self.names());
                    Err(Refusal {
                        status: 403,
                        details: details(&text),
                        text: match self.strip_failure_response {
                            true => "".into(),
                            false => format!("Failed JWT authentication: {text}").into(),
                        },
                        challenge: None,
                    })
                }
            },
            None => {
                let rule = self.rules.iter().find(|(matching, _)| matching.matches(request, facts, false));
                Ok(rule.and_then(|(_, requirement)| requirement.as_ref()))
            }
        }
    }

    fn names(&self) -> String {
        self.map.iter().map(|(name, _)| &**name).collect::<Vec<_>>().join(",")
    }

    /// Whether a request is a preflight that passes.
    #[must_use]
    pub fn bypasses(&self, request: &RequestHead<'_>) -> bool {
        let has = |name: &str| request.headers.get(name).is_some_and(|v| !v.is_empty());
        self.bypass_cors_preflight
            && request.method == "OPTIONS"
            && has("origin")
            && has("access-control-request-method")
    }

    /// Remote keys that a requirement may need.
    #[must_use]
    pub fn remotes<'a>(&'a self, requirement: &Requirement) -> Vec<&'a Arc<crate::model::jwt::Remote>> {
        let mut out = Vec::new();
        self.collect_remotes(requirement, &mut out);
        out
    }

    fn collect_remotes<'a>(&'a self, requirement: &Requirement, out: &mut Vec<&'a Arc<crate::model::jwt::Remote>>) {
        let of = |provider: &'a Provider| match &provider.keys {
            Keys::Remote(remote) => Some(remote),
            Keys::Local(_) => None,
        };
        match requirement {
            Requirement::Provider(i) | Requirement::Audiences(i, _) => {
                out.extend(self.providers.get(*i).and_then(of));
            }
            Requirement::Any(list) | Requirement::All(list) => {
                list.iter().for_each(|r| self.collect_remotes(r, out));
            }
            Requirement::AllowMissing | Requirement::AllowMissingOrFailed => {
                out.extend(self.providers.iter().filter_map(of));
            }
        }
    }

    /// Whether a request has a token at a place that a requirement looks at: only then keys are needed.
    #[must_use]
    pub fn has_token(&self, message: &Message<'_>) -> bool {
        let all: Vec<&Provider> = self.providers.iter().collect();
        places(&all).iter().any(|place| !place.kind.tokens(message).is_empty())
    }

    /// Checks a request against a requirement and writes what its tokens say into it. `url` is the original URL up to the path;
    /// `now` is Unix time in seconds; `keys` gives the keys of remote sets.
    pub fn check(
        &self,
        requirement: &Requirement,
        message: &mut Message<'_>,
        url: (&str, &str),
        now: u64,
        keys: &dyn Fn(&crate::model::jwt::Remote) -> Option<Arc<KeySet>>,
    ) -> Verdict {
        // The path that came first, where somebody says so, as Envoy has it.
        let told = |name: &str| message.headers.get(name).and_then(|value| value.to_str().ok());
        let path = told("x-envoy-original-path").unwrap_or(&message.path);
        let realm = format!("{}://{}{}", url.0, url.1, clip(path, MAX_REALM_PATH));
        let mut run = Run { filter: self, now, keys, passed: Passed::default() };
        match run.requirement(requirement, message) {
            Ok(()) => Verdict::Passed(run.passed),
            Err(status) => {
                let error = if status == Status::Missed { "" } else { ", error=\"invalid_token\"" };
                let stripped = self.strip_failure_response;
                Verdict::Refused(Refusal {
                    status: if status == Status::Audience { 403 } else { 401 },
                    text: if stripped { "" } else { status.text() }.into(),
                    challenge: (!stripped).then(|| format!("Bearer realm=\"{realm}\"{error}")),
                    details: details(status.text()),
                })
            }
        }
    }
}

fn clip(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

fn details(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_ascii_whitespace() { '_' } else { c }).collect();
    format!("jwt_authn_access_denied{{{text}}}")
}

struct Run<'a> {
    filter: &'a JwtAuthn,
    now: u64,
    keys: &'a dyn Fn(&crate::model::jwt::Remote) -> Option<Arc<KeySet>>,
    passed: Passed,
}

/// How lenient a look at tokens is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leniency {
    None,
    Missing,
    Failed,
}

impl<'a> Run<'a> {
    fn requirement(&mut self, requirement: &Requirement, message: &mut Message<'_>) -> Result<(), Status> {
        let filter = self.filter;
        match requirement {
            Requirement::Provider(i) => self.provider(*i, None, message),
            Requirement::Audiences(i, audiences) => self.provider(*i, Some(audiences), message),
            Requirement::All(all) => all.iter().try_for_each(|r| self.requirement(r, message)),
            Requirement::Any(any) => self.any(any, message),
            Requirement::AllowMissing | Requirement::AllowMissingOrFailed => {
                let providers: Vec<&Provider> = filter.providers.iter().collect();
                let leniency = match requirement {
                    Requirement::AllowMissing => Leniency::Missing,
                    _ => Leniency::Failed,
                };
                self.tokens(&providers, None, None, leniency, message)
            }
        }
    }

    fn provider(
        &mut self,
        index: usize,
        audiences: Option<&[Box<str>]>,
        message: &mut Message<'_>,
    ) -> Result<(), Status> {
        let Some(provider) = self.filter.providers.get(index) else { return Err(Status::UnknownIssuer) };
        self.tokens(&[provider], Some(provider), audiences, Leniency::None, message)
    }

    /// The error that tells most: one about a token before "unknown issuer" before "missing".
    fn any(&mut self, any: &[Requirement], message: &mut Message<'_>) -> Result<(), Status> {
        let (mut missing, mut failed) = (false, false);
        let mut last = Status::Missed;
        for requirement in any {
            match requirement {
                Requirement::AllowMissing => missing = true,
                Requirement::AllowMissingOrFailed => failed = true,
                _ => match self.requirement(requirement, message) {
                    Ok(()) => return Ok(()),
                    Err(status) => {
                        if !matches!(status, Status::Missed | Status::UnknownIssuer) || last == Status::Missed {
                            last = status;
                        }
                    }
                },
            }
        }
        if failed || (missing && last == Status::Missed) { Ok(()) } else { Err(last) }
    }

    fn tokens(
        &mut self,
        providers: &[&'a Provider],
        only: Option<&'a Provider>,
        audiences: Option<&[Box<str>]>,
        leniency: Leniency,
        message: &mut Message<'_>,
    ) -> Result<(), Status> {
        for provider in providers {
            let written = provider.payload_header.iter().chain(provider.claim_headers.iter().map(|(_, header)| header));
            for header in written {
                message.headers.remove(header);
            }
        }
        let places = places(providers);
        let found: Vec<_> =
            places.iter().flat_map(|p| p.kind.tokens(message).into_iter().map(move |t| (p, t))).collect();
        let mut result = Err(Status::Missed);
        // From the last place to the first, as Envoy does: where failures are forgiven, the last look decides.
        for (place, text) in found.into_iter().rev() {
            result = self.one(&place.kind, &place.providers, &text, only, audiences, message);
            if result.is_err() && leniency == Leniency::None {
                return result;
            }
        }
        match result {
            Err(_) if leniency == Leniency::Failed => Ok(()),
            Err(Status::Missed) if leniency == Leniency::Missing => Ok(()),
            other => other,
        }
    }

    fn one(
        &mut self,
        kind: &PlaceKind<'_>,
        at_place: &[&'a Provider],
        text: &str,
        only: Option<&'a Provider>,
        audiences: Option<&[Box<str>]>,
        message: &mut Message<'_>,
    ) -> Result<(), Status> {
        let token = Token::parse(text)?;
        let takes = |p: &&&Provider| p.issuer.is_empty() || *p.issuer == *token.issuer;
        if !at_place.iter().any(|p| takes(&p)) {
            return Err(Status::UnknownIssuer);
        }
        let by_issuer = || {
            let exact = self.filter.providers.iter().find(|p| *p.issuer == *token.issuer);
            exact.or_else(|| self.filter.providers.iter().find(|p| p.issuer.is_empty()))
        };
        let provider = only.or_else(by_issuer).ok_or(Status::UnknownIssuer)?;
        token.check_time(self.now, provider.clock_skew)?;
        if !audience_allowed(audiences.unwrap_or(&provider.audiences), &token.audiences) {
            return Err(Status::Audience);
        }
        if provider.subjects.as_ref().is_some_and(|m| !m.matches(token.subject.as_bytes())) {
            return Err(Status::VerificationFails);
        }
        if provider.require_expiration && token.expires == 0 {
            return Err(Status::VerificationFails);
        }
        if let Some(longest) = provider.max_lifetime
            && (token.expires == 0 || token.expires.saturating_sub(self.now) > longest.as_secs())
        {
            return Err(Status::VerificationFails);
        }
        match &provider.keys {
            Keys::Local(keys) => keys.verify(&token)?,
            Keys::Remote(remote) => (self.keys)(remote).ok_or(Status::FetchFailed)?.verify(&token)?,
        }
        self.good(provider, kind, &token, message);
        Ok(())
    }

    fn good(&mut self, provider: &Provider, kind: &PlaceKind<'_>, token: &Token, message: &mut Message<'_>) {
        if let Some(header) = &provider.payload_header {
            let mut text = token.payload_base64.clone();
            if provider.payload_header_padded {
                text.extend(std::iter::repeat_n('=', text.len().wrapping_neg() % 4));
            }
            if let Ok(value) = HeaderValue::from_str(&text) {
                message.headers.append(header.clone(), value);
            }
        }
        for (path, header) in &provider.claim_headers {
            let claim = claim(&token.payload, path);
            if let Some(value) = claim.and_then(claim_text).and_then(|t| HeaderValue::from_str(&t).ok()) {
                message.headers.append(header.clone(), value);
            }
        }
        if !provider.forward {
            kind.remove(message);
        }
        if let Some(key) = &provider.header_metadata {
            self.passed.metadata.insert(Arc::clone(key), object(&token.header, &[]));
        }
        if let Some(key) = &provider.payload_metadata {
            self.passed.metadata.insert(Arc::clone(key), object(&token.payload, &provider.space_delimited));
        }
        self.passed.clear_route |= provider.clear_route_cache;
        self.passed.providers.push(Arc::clone(&provider.name));
    }
}

fn claim<'a>(payload: &'a serde_json::Map<String, Json>, path: &[Name]) -> Option<&'a Json> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(payload.get(&**first)?, |value, key| value.get(&**key))
}

/// Texts, numbers and truth values as they are; others as base64 of their JSON.
fn claim_text(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number_text(number.as_f64()?)),
        Json::Bool(value) => Some(value.to_string()),
        Json::Null => None,
        other => Some(STANDARD.encode(other.to_string())),
    }
}

/// Whole numbers without a fraction, others with six digits of it.
fn number_text(number: f64) -> String {
    // 2^63
    let whole = number.fract() == 0.0 && number.abs() < 9_223_372_036_854_775_808.0;
    if whole { format!("{number:.0}") } else { format!("{number:.6}") }
}

fn object(map: &serde_json::Map<String, Json>, split: &[Name]) -> Value {
    let entries = map.iter().map(|(key, value)| {
        let value = match value {
            Json::String(text) if split.iter().any(|s| **s == **key) => {
                Value::List(text.split(' ').filter(|t| !t.is_empty()).map(|t| Value::Text(t.into())).collect())
            }
            other => plain(other),
        };
        (Name::from(key.as_str()), value)
    });
    Value::Object(entries.collect())
}

fn plain(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => Value::Number(number.as_f64().unwrap_or_default()),
        Json::String(text) => Value::Text(text.as_str().into()),
        Json::Array(list) => Value::List(list.iter().map(plain).collect()),
        Json::Object(map) => object(map, &[]),
    }
}

/// An audience without scheme and trailing slash: both sides may or may not write them.
#[must_use]
pub fn bare_audience(text: &str) -> &str {
    let text = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or(text);
    text.strip_suffix('/').unwrap_or(text)
}

fn audience_allowed(allowed: &[Box<str>], have: &[String]) -> bool {
    allowed.is_empty() || have.iter().any(|a| allowed.iter().any(|b| **b == *bare_audience(a)))
}
