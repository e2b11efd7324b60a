//! `carrick x precheck`: whether a cluster takes an installation, before there is one.
//!
//! Invariant: nothing is changed; rights are asked of the API server, not guessed.

use anyhow::{Context, Result, bail};
use carrick_chart::installation;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::version;

/// The oldest Kubernetes 1.N.
const OLDEST: u32 = 30;

/// What there is to complain of; an empty list is a safe cluster.
///
/// # Errors
/// When the API cannot be asked, or what was found forbids an installation: the findings are the error.
pub async fn run(client: &Client, namespace: &str) -> Result<String> {
    let mut findings = Vec::new();
    let server = client.apiserver_version().await.context("the server's version")?;
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok();
    if digits(&server.major) == Some(1) && digits(&server.minor).is_some_and(|minor| minor < OLDEST) {
        findings.push(format!(
            "Error [IST0142] Kubernetes {}.{} is older than 1.{OLDEST}, the oldest that is supported",
            server.major, server.minor
        ));
    }
    for missing in rights(client, namespace).await? {
        findings.push(format!("Error [IST0141] Missing permission: {missing}"));
    }
    // Who may not install may hardly look either.
    if findings.is_empty() {
        findings.extend(gateway_api(client).await?);
        let foreign = super::helm::foreign(client, &installation(&json!({"namespace": namespace}))?).await?;
        findings.extend(foreign.conflicts().map(|conflict| format!("Error {conflict}")));
        findings.extend(foreign.told().map(|line| format!("Info {line}")));
    }
    if findings.is_empty() {
        return Ok(format!("✔ No issues found: version {} may be installed, or upgraded to.\n", version::OWN));
    }
    let text = findings.join("\n") + "\n";
    if findings.iter().any(|finding| finding.starts_with("Error")) {
        bail!("{text}the cluster does not take an installation");
    }
    Ok(text)
}

/// What an installation creates and the caller may not.
async fn rights(client: &Client, namespace: &str) -> Result<Vec<String>> {
    let mut kinds: Vec<(String, String, bool)> = Vec::new();
    for piece in installation(&json!({"namespace": namespace}))?.pieces {
        for object in piece.objects()? {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let Some(kind) = carrick_api::kinds::registry().of_object(&object) else { continue };
            let inside = !text("/metadata/namespace").is_empty();
            let entry = (kind.group.to_owned(), kind.plural.to_owned(), inside);
            if !kinds.contains(&entry) {
                kinds.push(entry);
            }
        }
    }
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for (group, plural, inside) in kinds {
        let attributes = ResourceAttributes {
            group: Some(group.clone()),
            resource: Some(plural.clone()),
            verb: Some("create".to_owned()),
            namespace: inside.then(|| namespace.to_owned()),
            ..Default::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..Default::default() };
        let answer = api.create(&PostParams::default(), &review).await.context("what this user may do")?;
        if !answer.status.is_some_and(|status| status.allowed) {
            let group = if group.is_empty() { String::new() } else { format!(".{group}") };
            missing.push(format!("create {plural}{group}"));
        }
    }
    Ok(missing)
}

/// Definitions of the Gateway API that are too old.
async fn gateway_api(client: &Client) -> Result<Vec<String>> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let all = api.list(&ListParams::default()).await.context("custom resource definitions")?;
    let mut findings = Vec::new();
    for definition in all.iter().filter(|d| d.spec.group == "gateway.networking.k8s.io") {
        let stable = ["gatewayclasses", "gateways", "httproutes"].contains(&definition.spec.names.plural.as_str());
        let served = |version: &str| definition.spec.versions.iter().any(|v| v.name == version && v.served);
        if stable && !served("v1") && !served("v1beta1") {
            findings.push(format!("Error [IST0156] {} serves neither v1 nor v1beta1", definition.name_any()));
        } else if stable && !served("v1") {
            findings.push(format!("Warning [IST0172] {} does not serve v1, which is read", definition.name_any()));
        }
    }
    Ok(findings)
}
