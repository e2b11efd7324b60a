//! `http` routes.
//!
//! Invariant: a route answers in one way: by destinations, a redirect, or by itself.

use super::super::{Findings, Node, expression, header};
use super::{common_match, destination, destinations};
use crate::istio::virtual_service::GRPC_STATUSES;

/// What a retry policy may name besides status codes.
const RETRY_ON: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

const METHODS: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];

pub(super) fn route(route: &Node<'_>, delegate: bool, findings: &mut Findings) {
    conflicts(route, delegate, findings);
    for wanted in route.field("match").items() {
        matches(&wanted, findings);
    }
    header::operations(&route.field("headers"), findings);
    cors(&route.field("corsPolicy"), findings);
    fault(&route.field("fault"), findings);
    mirrors(route, findings);
    redirect(&route.field("redirect"), route, findings);
    direct_response(&route.field("directResponse"), findings);
    retries(&route.field("retries"), findings);
    rewrite(&route.field("rewrite"), findings);
    authority(route, findings);
    destinations(&route.field("route"), findings);
    duration(&route.field("timeout"), findings);
}

fn duration(node: &Node<'_>, findings: &mut Findings) {
    findings.duration(&node.path, node.duration());
}

fn conflicts(route: &Node<'_>, delegate: bool, findings: &mut Findings) {
    let set = |field: &str| route.field(field).is_set();
    let name = route.field("name").text();
    if set("delegate") {
        let path = route.path.field("delegate");
        if delegate {
            findings.error(&path, "delegate HTTP route cannot contain delegate");
        } else {
            for field in ["redirect", "route"].into_iter().filter(|field| set(field)) {
                findings.error(&route.path.field(field), format!("root HTTP route {name} must not specify {field}"));
            }
            return;
        }
    }
    let has_route = !route.field("route").is_empty();
    let answers = ["redirect", "directResponse"].into_iter().find(|field| set(field));
    match answers {
        Some(answer) => {
            let said = if answer == "redirect" { "redirect" } else { "direct_response" };
            if has_route {
                findings.error(&route.path.field("route"), format!("HTTP route cannot contain both route and {said}"));
            }
            for field in ["fault", "rewrite"].into_iter().filter(|field| set(field)) {
                findings.error(&route.path.field(field), format!("HTTP route cannot contain both {field} and {said}"));
            }
            if answer == "redirect" && set("directResponse") {
                findings.error(
                    &route.path.field("directResponse"),
                    "HTTP route cannot contain both direct_response and redirect",
                );
            }
        }
        None if !has_route => {
            findings.error(&route.path, "HTTP route, redirect or direct_response is required");
        }
        None => {}
    }
    if set("mirror") && !route.field("mirrors").is_empty() {
        findings.error(&route.path.field("mirrors"), "HTTP route cannot contain both mirror and mirrors");
    }
}

fn matches(wanted: &Node<'_>, findings: &mut Findings) {
    for (name, value) in wanted.field("headers").entries() {
        header::matched(name, &value.path, findings);
        if !value.is_set() {
            findings.error(&value.path, format!("header match {name} cannot be null"));
        }
        string_match(&value, false, findings);
    }
    for (name, value) in wanted.field("withoutHeaders").entries() {
        header::matched(name, &value.path, findings);
        // `*` means that the header is there, and is no expression.
        if value.field("regex").text() != "*" {
            string_match(&value, false, findings);
        }
    }
    string_match(&wanted.field("uri"), true, findings);
    for field in ["scheme", "method", "authority"] {
        string_match(&wanted.field(field), false, findings);
    }
    for (_, value) in wanted.field("queryParams").entries() {
        string_match(&value, false, findings);
    }
    common_match(wanted, findings);
}

fn string_match(wanted: &Node<'_>, empty_prefix_may: bool, findings: &mut Findings) {
    one_of(wanted, &["exact", "prefix", "regex"], findings);
    let (prefix, regex) = (wanted.field("prefix"), wanted.field("regex"));
    if prefix.is_set() && prefix.text().is_empty() && !empty_prefix_may {
        findings.error(&prefix.path, "prefix string match should not be empty");
    }
    if regex.is_set() {
        self::regex(&regex, findings);
    }
}

fn regex(regex: &Node<'_>, findings: &mut Findings) {
    if regex.text().is_empty() {
        findings.error(&regex.path, "regex string match should not be empty");
    } else if let Err(message) = expression::check(regex.text()) {
        findings.error(&regex.path, message);
    }
}

/// At most one field of a group.
fn one_of(node: &Node<'_>, names: &[&'static str], findings: &mut Findings) {
    let set = node.set_among(names);
    if set.len() > 1 {
        findings.error(&node.path, format!("only one of {} can be set", set.join(", ")));
    }
}

fn cors(policy: &Node<'_>, findings: &mut Findings) {
    for origin in policy.field("allowOrigins").items() {
        one_of(&origin, &["exact", "prefix", "regex"], findings);
        let texts = ["exact", "prefix", "regex"].map(|field| origin.field(field).text());
        if texts.iter().all(|text| text.is_empty()) {
            findings.error(&origin.path, "'' is not a valid match type for CORS allow origins");
        } else if origin.field("regex").is_set() {
            regex(&origin.field("regex"), findings);
        }
    }
    for method in policy.field("allowMethods").items().iter().filter(|method| !METHODS.contains(&method.text())) {
        findings.error(&method.path, format!("{:?} is not a supported HTTP method", method.text()));
    }
    for field in ["allowHeaders", "exposeHeaders"] {
        for name in policy.field(field).items() {
            header::cors(name.text(), &name.path, findings);
        }
    }
    let age = policy.field("maxAge");
    duration(&age, findings);
    if age.duration().is_some_and(|age| age.get().subsec_nanos() > 0) {
        findings.error(&age.path, "max_age duration is accurate only to seconds precision");
    }
}

fn percentage(percent: &Node<'_>, findings: &mut Findings) {
    let value = percent.field("value").float();
    if !(0.0..=100.0).contains(&value) || (value > 0.0 && value < 0.0001) {
        findings.error(&percent.path, format!("percentage {value} is neither 0.0, nor in range [0.0001, 100.0]"));
    }
}

fn status(status: &Node<'_>, findings: &mut Findings) {
    if !(200..600).contains(&status.number()) {
        findings.error(&status.path, format!("HTTP status {} is not in range 200-599", status.number()));
    }
}

fn fault(fault: &Node<'_>, findings: &mut Findings) {
    if !fault.is_set() {
        return;
    }
    let (abort, delay) = (fault.field("abort"), fault.field("delay"));
    if !abort.is_set() && !delay.is_set() {
        findings.error(&fault.path, "HTTP fault injection must have an abort and/or a delay");
    }
    if abort.is_set() {
        percentage(&abort.field("percentage"), findings);
        one_of(&abort, &["httpStatus", "grpcStatus", "http2Error"], findings);
        let grpc = abort.field("grpcStatus");
        if abort.field("http2Error").is_set() {
            findings.error(&abort.path.field("http2Error"), "HTTP/2 abort fault injection not supported yet");
        } else if grpc.is_set() {
            if !GRPC_STATUSES.contains(&grpc.text()) {
                findings.error(
                    &grpc.path,
                    format!("gRPC status {:?} is not supported; an example of one that is: 'NOT_FOUND'", grpc.text()),
                );
            }
        } else if abort.field("httpStatus").is_set() {
            status(&abort.field("httpStatus"), findings);
        } else {
            findings.warning(&abort.path, "abort configured, but error type not set");
        }
    }
    if delay.is_set() {
        percentage(&delay.field("percentage"), findings);
        one_of(&delay, &["fixedDelay", "exponentialDelay"], findings);
        duration(&delay.field("fixedDelay"), findings);
        if delay.field("exponentialDelay").is_set() {
            findings.error(&delay.path.field("exponentialDelay"), "exponentialDelay not supported yet");
        }
        let percent = delay.field("percent");
        if !(0..=100).contains(&percent.number()) {
            findings.error(&percent.path, format!("percentage {} is not in range 0..100", percent.number()));
        }
    }
}

fn mirrors(route: &Node<'_>, findings: &mut Findings) {
    for field in ["mirrorPercent", "mirror_percent"] {
        let percent = route.field(field);
        if !percent.is_set() {
            continue;
        }
        if percent.number() > 100 {
            findings.error(
                &percent.path,
                format!("mirror_percent must have a max value of 100 (it has {})", percent.number()),
            );
        }
        findings.warning(&percent.path, "using deprecated setting \"mirrorPercent\", use \"mirrorPercentage\" instead");
    }
    share(&route.field("mirrorPercentage"), "mirror_percentage", findings);
    let mirror = route.field("mirror");
    if mirror.is_set() {
        destination(&mirror, findings);
    }
    for mirror in route.field("mirrors").items() {
        let target = mirror.field("destination");
        if target.is_set() {
            destination(&target, findings);
        } else {
            findings.error(&target.path, "destination is required for mirrors");
        }
        share(&mirror.field("percentage"), "mirror percentage", findings);
    }
}

fn share(percent: &Node<'_>, name: &str, findings: &mut Findings) {
    let value = percent.field("value").float();
    if value > 100.0 {
        findings.error(&percent.path, format!("{name} must have a max value of 100 (it has {value})"));
    }
    if value < 0.0 {
        findings.error(&percent.path, format!("{name} must have a min value of 0 (it has {value})"));
    }
}

fn redirect(redirect: &Node<'_>, route: &Node<'_>, findings: &mut Findings) {
    if !redirect.is_set() {
        return;
    }
    let text = |field: &str| redirect.field(field).text();
    one_of(redirect, &["port", "derivePort"], findings);
    let prefix = redirect.path.field("prefixRewrite");
    if !text("uri").is_empty() && !text("prefixRewrite").is_empty() {
        findings.error(&prefix, "redirect may only specify one of uri or prefix_rewrite");
    }
    let other = |wanted: &Node<'_>| wanted.field("uri").is_set() && !wanted.field("uri").field("prefix").is_set();
    if !text("prefixRewrite").is_empty() && route.field("match").items().iter().any(other) {
        findings.error(&prefix, "redirect prefix_rewrite requires all URI matches to use prefix match type");
    }
    let says_text = ["uri", "prefixRewrite", "authority", "scheme"].iter().any(|field| !text(field).is_empty());
    if !says_text && redirect.set_among(&["port", "derivePort"]).is_empty() {
        findings.error(&redirect.path, "redirect must specify URI, authority, scheme, or port");
    }
    let code = redirect.field("redirectCode");
    if code.number() != 0 && !(300..400).contains(&code.number()) {
        findings.error(&code.path, format!("{} is not a valid redirect code, must be 3xx", code.number()));
    }
    if !matches!(text("scheme"), "" | "http" | "https") {
        findings.error(&redirect.path.field("scheme"), "invalid redirect scheme, must be \"http\" or \"https\"");
    }
    let port = redirect.field("port");
    if port.number() > 0 {
        findings.port_number(&port);
    }
}

fn direct_response(response: &Node<'_>, findings: &mut Findings) {
    const KIB: usize = 1024;
    if !response.is_set() {
        return;
    }
    let body = response.field("body");
    one_of(&body, &["string", "bytes"], findings);
    // Bytes are written in base64: four characters for three.
    let bytes = body.field("bytes").text().trim_end_matches('=').len() * 3 / 4;
    let size = body.field("string").text().len().max(bytes);
    if size > KIB * KIB {
        findings
            .error(&body.path, "large direct_responses may impact control plane performance, must be less than 1MB");
    } else if size > 100 * KIB {
        findings.warning(&body.path, "large direct_responses may impact control plane performance");
    }
    status(&response.field("status"), findings);
}

/// Whether a number is a status code that has a name.
fn is_status(text: &str) -> bool {
    let Ok(code) = text.parse::<u16>() else { return false };
    matches!(code,
        100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429 | 431 | 451 | 500..=508
        | 510 | 511)
}

/// A retry policy, also the mesh's.
pub(in crate::validate) fn retries(retries: &Node<'_>, findings: &mut Findings) {
    if !retries.is_set() {
        return;
    }
    let attempts = retries.field("attempts");
    if attempts.number() < 0 {
        findings.error(&attempts.path, "attempts cannot be negative");
    }
    let on = retries.field("retryOn");
    let says_more = !retries.set_among(&["perTryTimeout", "retryRemoteLocalities"]).is_empty() || !on.text().is_empty();
    if attempts.number() == 0 && says_more {
        findings.error(&attempts.path, "http retry policy configured when attempts are set to 0 (disabled)");
    }
    duration(&retries.field("perTryTimeout"), findings);
    if !on.text().is_empty() {
        for policy in on.text().split(',').filter(|policy| !is_status(policy) && !RETRY_ON.contains(policy)) {
            findings.error(&on.path, format!("{policy:?} is not a valid retryOn policy"));
        }
    }
    duration(&retries.field("backoff"), findings);
}

fn rewrite(rewrite: &Node<'_>, findings: &mut Findings) {
    if !rewrite.is_set() {
        return;
    }
    let (uri, by_regex) = (rewrite.field("uri"), rewrite.field("uriRegexRewrite"));
    if !uri.text().is_empty() && by_regex.is_set() {
        findings.error(&rewrite.path, "rewrite may only contain one of URI or UriRegexRewrite");
    }
    if uri.text().is_empty() && !by_regex.is_set() && rewrite.field("authority").text().is_empty() {
        findings.error(&rewrite.path, "rewrite must specify at least one of URI, UriRegexRewrite, or authority");
    }
    if by_regex.is_set() {
        let pattern = by_regex.field("match");
        if pattern.text().is_empty() || by_regex.field("rewrite").text().is_empty() {
            findings.error(&by_regex.path, "UriRegexRewrite requires both Rewrite and Match fields to be specified");
        } else if let Err(message) = expression::check(pattern.text()) {
            findings.error(&pattern.path, message);
        }
    }
}

/// The authority is rewritten in one place only.
fn authority(route: &Node<'_>, findings: &mut Findings) {
    let mut current = route.field("rewrite").field("authority").text();
    let request = route.field("headers").field("request");
    for operation in ["set", "add"] {
        for (name, value) in request.field(operation).entries() {
            if !header::is_authority(name) {
                continue;
            }
            if !current.is_empty() {
                findings.error(
                    &value.path,
                    format!(
                        "authority header cannot be set multiple times: have {current:?}, attempting to set {:?}",
                        value.text()
                    ),
                );
            }
            current = value.text();
        }
    }
}
