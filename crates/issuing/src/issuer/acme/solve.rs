//! Solving challenges: which solver is for a name, and what it does.
//!
//! Invariant: preparing and clearing away can be done any number of times. The most particular solver that is for a name is taken,
//! as in cert-manager: exact names before zones, longer zones before shorter ones, labels before nothing.

use std::time::SystemTime;

use bytes::Bytes;
use carrick_api::cert_manager::{AcmeDns01, AcmeIssuer, AcmeSelector, AcmeSolver, AcmeWebhook, CertificateRequest};
use carrick_pki::challenge;
use http::Request;
use instant_acme::{AuthorizationHandle, ChallengeType, Identifier};
use serde_json::{Value, json};

use super::Trouble;
use crate::http::Http;
use crate::issuer::Place;
use crate::objects::GATEWAY_API;

/// How a name is proven.
struct Plan<'a> {
    name: String,
    zone: Option<String>,
    kind: ChallengeType,
    solver: &'a AcmeSolver,
}

/// Prepares the answer to a name's challenge and has the server look at it; in words, what is waited for.
pub(super) async fn present(
    place: &Place<'_>,
    acme: &AcmeIssuer,
    request: &CertificateRequest,
    mut authorization: AuthorizationHandle<'_>,
    now: SystemTime,
) -> Result<String, Trouble> {
    let plan = plan(acme, request, &authorization)?;
    let shown = authorization.identifier().to_string();
    let [http, tls] = place.signers.answers;
    if (plan.kind == ChallengeType::Http01 && !http) || (plan.kind == ChallengeType::TlsAlpn01 && !tls) {
        let option = if plan.kind == ChallengeType::Http01 { "--acme-http-port" } else { "--acme-tls-port" };
        let why = format!("nothing answers {} here: start the control plane with {option}", title(&plan.kind));
        return Err(Trouble::Later(why));
    }
    let Some(mut challenge) = authorization.challenge(plan.kind.clone()) else {
        return Err(Trouble::Never(format!("the ACME server offers no {} for {shown}", title(&plan.kind))));
    };
    let answer = challenge.key_authorization();
    let (token, url) = (challenge.token.clone(), challenge.url.clone());
    match &plan.kind {
        ChallengeType::Http01 => {
            place.signers.challenges.put_http(&token, answer.as_str());
            route(place, request, &plan, &token).await?;
            // Asked too early, the server would refuse the name for good.
            if let Some(gateway) = behind(place, request, &plan, &token, answer.as_str()).await? {
                return Ok(format!("http-01 of {shown} until the gateway {gateway} leads to it"));
            }
        }
        ChallengeType::TlsAlpn01 => {
            let mut digest = [0; 32];
            digest.iter_mut().zip(answer.digest().as_ref()).for_each(|(to, from)| *to = *from);
            let certificate = challenge::answer(&plan.name, &digest, now).map_err(|e| Trouble::Later(e.to_string()))?;
            place.signers.challenges.put_tls(&plan.name, certificate);
        }
        _ => call(place, request, &plan, "Present", &answer.dns_value()).await?,
    }
    if place.signers.challenges.ask(&url)
        && let Err(error) = challenge.set_ready().await
    {
        place.signers.challenges.unask(&url);
        return Err(error.into());
    }
    Ok(format!("{} of {shown} is {}", title(&plan.kind), format!("{:?}", challenge.status).to_lowercase()))
}

/// Takes away what [`present`] prepared.
pub(super) async fn clean_up(
    place: &Place<'_>,
    acme: &AcmeIssuer,
    request: &CertificateRequest,
    mut authorization: AuthorizationHandle<'_>,
) -> Result<(), Trouble> {
    // Without a solver nothing was prepared.
    let Ok(plan) = plan(acme, request, &authorization) else { return Ok(()) };
    let Some(challenge) = authorization.challenge(plan.kind.clone()) else { return Ok(()) };
    let (token, url, value) =
        (challenge.token.clone(), challenge.url.clone(), challenge.key_authorization().dns_value());
    place.signers.challenges.forget(&token, &plan.name, &url);
    match &plan.kind {
        ChallengeType::Http01 if parents(plan.solver).is_some() => {
            let (namespace, name) = (&request.metadata.namespace, route_name(&token));
            for kind in ROUTING {
                place.objects.delete_any(kind, namespace, &name).await?;
            }
            Ok(())
        }
        ChallengeType::Dns01 => call(place, request, &plan, "CleanUp", &value).await,
        _ => Ok(()),
    }
}

/// Why a name was not believed.
pub(super) fn reason(authorization: &AuthorizationHandle<'_>) -> String {
    let problems = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
    let problems: Vec<String> = problems.map(super::words).collect();
    let why =
        if problems.is_empty() { format!("{:?}", authorization.status).to_lowercase() } else { problems.join("; ") };
    format!("{}: {why}", authorization.identifier())
}

fn title(kind: &ChallengeType) -> &'static str {
    match kind {
        ChallengeType::Http01 => "http-01",
        ChallengeType::TlsAlpn01 => "tls-alpn-01",
        _ => "dns-01",
    }
}

fn plan<'a>(
    acme: &'a AcmeIssuer,
    request: &CertificateRequest,
    authorization: &AuthorizationHandle<'_>,
) -> Result<Plan<'a>, Trouble> {
    let identifier = authorization.identifier();
    let shown = identifier.to_string();
    let name = match identifier.identifier {
        Identifier::Dns(name) => name.clone(),
        Identifier::Ip(ip) => ip.to_string(),
        _ => shown.clone(),
    };
    let best = acme
        .solvers
        .iter()
        .filter(|solver| !identifier.wildcard || solver.dns01.is_some())
        .filter_map(|solver| Some((rank(solver.selector.as_ref(), &shown, request)?, solver)))
        .reduce(|best, next| if next.0 > best.0 { next } else { best });
    let Some((_, solver)) = best else {
        let kind = if identifier.wildcard { "dns01 " } else { "" };
        return Err(Trouble::Never(format!("spec.acme.solvers: no {kind}solver is for {shown}")));
    };
    let kind = match (&solver.http01, &solver.tls_alpn01, &solver.dns01) {
        (Some(_), ..) => ChallengeType::Http01,
        (_, Some(_), _) => ChallengeType::TlsAlpn01,
        _ => ChallengeType::Dns01,
    };
    let zones = solver.selector.iter().flat_map(|selector| &selector.dns_zones);
    let zone = zones.filter(|zone| is_in(&name, zone)).max_by_key(|zone| zone.len()).cloned();
    Ok(Plan { name, zone, kind, solver })
}

fn is_in(name: &str, zone: &str) -> bool {
    name == zone || name.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.'))
}

/// How particular a solver is for a name; `None` when it is not for it.
fn rank(selector: Option<&AcmeSelector>, name: &str, request: &CertificateRequest) -> Option<(bool, usize, usize)> {
    let Some(selector) = selector else { return Some((false, 0, 0)) };
    let labels = &request.metadata.labels;
    if !selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value)) {
        return None;
    }
    let exact = selector.dns_names.iter().any(|own| own.eq_ignore_ascii_case(name));
    let plain = name.strip_prefix("*.").unwrap_or(name);
    let zone = selector.dns_zones.iter().filter(|zone| is_in(plain, zone)).map(String::len).max();
    let named = !selector.dns_names.is_empty() || !selector.dns_zones.is_empty();
    if named && !exact && zone.is_none() {
        return None;
    }
    Some((exact, zone.unwrap_or(0), selector.match_labels.len()))
}

/// What leads a gateway's requests to this process.
const ROUTING: [(&str, &str, &str); 3] =
    [("", "v1", "Service"), ("discovery.k8s.io", "v1", "EndpointSlice"), (GATEWAY_API, "v1", "HTTPRoute")];

/// The gateways that a solver's routes are for.
fn parents(solver: &AcmeSolver) -> Option<&Value> {
    solver.http01.as_ref()?.pointer("/gatewayHTTPRoute/parentRefs")
}

fn route_name(token: &str) -> String {
    let token: String = token.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).take(24).collect();
    format!("cm-acme-http-solver-{token}")
}

/// Has gateways bring the challenge's path here, if the solver names gateways.
async fn route(place: &Place<'_>, request: &CertificateRequest, plan: &Plan<'_>, token: &str) -> Result<(), Trouble> {
    let http01 = plan.solver.http01.as_ref().unwrap_or(&Value::Null);
    if http01.get("ingress").is_some() {
        let why = "spec.acme.solvers: http01.ingress has nobody to serve it here: take http01.gatewayHTTPRoute, or http01: {}";
        return Err(Trouble::Later(why.to_owned()));
    }
    let Some(parents) = parents(plan.solver) else { return Ok(()) };
    let Some(here) = place.signers.reached_at else {
        return Err(Trouble::Later("no pod can reach the listener for http-01 here".to_owned()));
    };
    let (meta, name) = (&request.metadata, route_name(token));
    let metadata = |labels: &Value| {
        json!({"name": name, "namespace": meta.namespace, "labels": labels, "ownerReferences": [{
            "apiVersion": "cert-manager.io/v1", "kind": "CertificateRequest", "name": meta.name, "uid": meta.uid,
        }]})
    };
    let none = json!({});
    let labels = http01.pointer("/gatewayHTTPRoute/labels").unwrap_or(&none);
    let of_service = json!({"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "carrick"});
    let path = format!("/.well-known/acme-challenge/{token}");
    let family = if here.is_ipv4() { "IPv4" } else { "IPv6" };
    let objects = [
        json!({"metadata": metadata(&none), "spec": {"ports": [{"name": "http", "port": here.port()}]}}),
        json!({"metadata": metadata(&of_service), "addressType": family, "ports": [{"name": "http", "port": here.port()}],
            "endpoints": [{"addresses": [here.ip()], "conditions": {"ready": true}}]}),
        json!({"metadata": metadata(labels), "spec": {"parentRefs": parents, "hostnames": [plan.name], "rules": [{
            "matches": [{"path": {"type": "Exact", "value": path}}],
            "backendRefs": [{"name": name, "port": here.port()}],
        }]}}),
    ];
    for (kind, object) in ROUTING.into_iter().zip(objects) {
        place.objects.create_any(kind, &meta.namespace, object).await?;
    }
    Ok(())
}

/// The first of a solver's gateways that does not bring the challenge's path here yet.
async fn behind(
    place: &Place<'_>,
    request: &CertificateRequest,
    plan: &Plan<'_>,
    token: &str,
    answer: &str,
) -> Result<Option<String>, Trouble> {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    for parent in parents(plan.solver).and_then(Value::as_array).into_iter().flatten() {
        if text(parent, "kind").is_some_and(|kind| kind != "Gateway") {
            continue;
        }
        let namespace = text(parent, "namespace").unwrap_or_else(|| request.metadata.namespace.clone());
        let name = text(parent, "name").unwrap_or_default();
        let gateway = place.objects.get_any((GATEWAY_API, "v1", "Gateway"), &namespace, &name).await?;
        let address = gateway.as_ref().and_then(|gateway| gateway.pointer("/status/addresses/0/value")?.as_str());
        let (Some(gateway), Some(address)) = (gateway.as_ref(), address) else { return Ok(Some(name)) };
        let listeners = gateway.pointer("/spec/listeners").and_then(Value::as_array).into_iter().flatten();
        let http = listeners.into_iter().find(|listener| listener["protocol"] == "HTTP");
        let port = http.and_then(|listener| listener["port"].as_u64()).unwrap_or(80);
        let address = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let url = format!("http://{address}:{port}/.well-known/acme-challenge/{token}");
        let asked = Request::get(url).header("host", &plan.name).body(Bytes::new());
        let asked = asked.map_err(|error| Trouble::Later(error.to_string()))?;
        let seen = Http::plain().map_err(Trouble::Later)?.send(asked).await;
        if !seen.is_ok_and(|seen| seen.status() == 200 && seen.body() == answer.as_bytes()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Calls a webhook for a record of the domain name system: at `config.url`, or as an API service of the cluster.
async fn call(
    place: &Place<'_>,
    request: &CertificateRequest,
    plan: &Plan<'_>,
    action: &str,
    value: &str,
) -> Result<(), Trouble> {
    let Some(AcmeDns01 { webhook: Some(webhook) }) = &plan.solver.dns01 else {
        return Err(Trouble::Never("spec.acme.solvers: dns01 has no webhook, the one kind there is here".to_owned()));
    };
    let name = plan.name.strip_prefix("*.").unwrap_or(&plan.name);
    let payload = json!({
        "apiVersion": "webhook.acme.cert-manager.io/v1alpha1", "kind": "ChallengePayload",
        "request": {
            "uid": format!("{}-{name}", request.metadata.uid), "action": action, "type": "dns-01", "dnsName": name,
            "key": value, "resourceNamespace": place.namespace, "resolvedFQDN": format!("_acme-challenge.{name}."),
            "resolvedZone": format!("{}.", plan.zone.as_deref().unwrap_or(name)), "allowAmbientCredentials": false,
            "config": webhook.config,
        },
    });
    let answer =
        ask(place, webhook, &payload).await.map_err(|why| Trouble::Later(format!("the dns01 webhook: {why}")))?;
    match answer.pointer("/response/success").and_then(Value::as_bool) {
        Some(true) => Ok(()),
        _ => {
            let why =
                answer.pointer("/response/status/message").and_then(Value::as_str).unwrap_or("it says no success");
            Err(Trouble::Later(format!("the dns01 webhook for {name}: {why}")))
        }
    }
}

async fn ask(place: &Place<'_>, webhook: &AcmeWebhook, payload: &Value) -> Result<Value, String> {
    let text = |field: &str| webhook.config.as_ref().and_then(|config| config.get(field)?.as_str());
    let Some(url) = text("url") else {
        let path = format!("/apis/{}/v1alpha1/{}", webhook.group_name, webhook.solver_name);
        return place.objects.post(&path, payload).await.map_err(|error| error.to_string());
    };
    let http = crate::issuer::client(text("caBundle").unwrap_or_default())?;
    let request = Request::post(url).header("content-type", "application/json");
    let request = request.body(Bytes::from(payload.to_string())).map_err(|e| e.to_string())?;
    let answer = http.send(request).await?;
    if !answer.status().is_success() {
        return Err(format!("{url}: status {}", answer.status()));
    }
    serde_json::from_slice(answer.body()).map_err(|e| format!("{url}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_particular_solver_wins() {
        let request = CertificateRequest::default();
        let selector = |names: &[&str], zones: &[&str]| AcmeSelector {
            dns_names: names.iter().map(|n| (*n).to_owned()).collect(),
            dns_zones: zones.iter().map(|n| (*n).to_owned()).collect(),
            ..AcmeSelector::default()
        };
        let of = |selector: &AcmeSelector, name| rank(Some(selector), name, &request);
        let (exact, long, short) =
            (selector(&["a.b.example"], &[]), selector(&[], &["b.example"]), selector(&[], &["example"]));
        assert!(of(&exact, "a.b.example") > of(&long, "a.b.example"));
        assert!(of(&long, "a.b.example") > of(&short, "a.b.example"));
        assert!(of(&short, "a.b.example") > rank(None, "a.b.example", &request));
        assert_eq!(of(&long, "ab.example"), None);
        assert!(of(&long, "*.b.example").is_some());
        let mut labelled = AcmeSelector::default();
        labelled.match_labels.insert("team".into(), "shop".into());
        assert_eq!(of(&labelled, "a.b.example"), None);
    }

    #[test]
    fn names_of_routes_are_names() {
        assert_eq!(route_name("AbC_-9zzzzzzzzzzzzzzzzzzzzzzzzzzz"), "cm-acme-http-solver-abc9zzzzzzzzzzzzzzzzzzzz");
    }
}
