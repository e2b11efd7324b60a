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

/// What an installation does and the caller may not: objects are applied, which is to patch, and to create where there is none.
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
    for ((group, plural, inside), verb) in kinds.iter().flat_map(|kind| ["create", "patch"].map(|verb| (kind, verb))) {
        let attributes = ResourceAttributes {
            group: Some(group.clone()),
            resource: Some(plural.clone()),
            verb: Some(verb.to_owned()),
            namespace: inside.then(|| namespace.to_owned()),
            ..Default::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..Default::default() };
        let answer = api.create(&PostParams::default(), &review).await.context("what this user may do")?;
        if !answer.status.is_some_and(|status| status.allowed) {
            let group = if group.is_empty() { String::new() } else { format!(".{group}") };
            missing.push(format!("{verb} {plural}{group}"));
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
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::super::answering::client;
    use super::*;

    /// A cluster of this version where everything may be done but what is named, and which holds these definitions.
    async fn told(minor: &str, forbidden: &'static [&'static str], definitions: Value) -> Result<String, String> {
        let version = json!({"major": "1", "minor": minor, "gitVersion": format!("v1.{minor}.0"), "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
        let client = client(move |method, path, _, asked| match (method, path) {
            (_, "/version") => (200, version.clone()),
            ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews") => {
                let attributes = &asked["spec"]["resourceAttributes"];
                let text = |field: &str| attributes[field].as_str().unwrap_or("everywhere");
                let what = format!("{} {} {}", text("verb"), text("resource"), text("namespace"));
                let mut answer = asked.clone();
                answer["status"] = json!({"allowed": !forbidden.contains(&what.as_str())});
                (201, answer)
            }
            ("GET", path) => {
                let items = if path.ends_with("customresourcedefinitions") { definitions.clone() } else { json!([]) };
                (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}))
            }
            (method, path) => panic!("{method} {path}: nothing is to be changed"),
        });
        run(&client, "mesh").await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn rights_that_are_missing_are_named() {
        let all = told("36+", &[], json!([])).await.unwrap();
        assert!(all.starts_with("✔ No issues found"), "{all}");
        let forbidden = &["create clusterroles everywhere", "patch deployments mesh", "create services istio-system"];
        assert_eq!(
            told("36", forbidden, json!([])).await.unwrap_err(),
            "Error [IST0141] Missing permission: create clusterroles.rbac.authorization.k8s.io\n\
             Error [IST0141] Missing permission: patch deployments.apps\n\
             the cluster does not take an installation"
        );
    }

    #[tokio::test]
    async fn clusters_and_definitions_that_are_too_old_are_named() {
        let error = told("29", &[], json!([])).await.unwrap_err();
        assert!(error.starts_with("Error [IST0142] Kubernetes 1.29 is older than 1.30"), "{error}");
        let definition = |plural: &str, version: &str| {
            json!({"metadata": {"name": format!("{plural}.gateway.networking.k8s.io")}, "spec": {
                "group": "gateway.networking.k8s.io", "scope": "Namespaced", "names": {"plural": plural, "kind": "X"},
                "versions": [{"name": version, "served": true, "storage": true}]}})
        };
        let fine = json!([definition("gateways", "v1beta1"), definition("httproutes", "v1")]);
        assert!(told("36", &[], fine).await.unwrap().starts_with("✔"));
        let refused = told("36", &[], json!([definition("httproutes", "v1alpha2")])).await.unwrap_err();
        assert!(
            refused.contains("[IST0156] httproutes.gateway.networking.k8s.io serves neither v1 nor v1beta1"),
            "{refused}"
        );
    }
}
