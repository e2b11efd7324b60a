//! `carrick x precheck`: what an installation or an upgrade would stumble over.
//!
//! Invariant: nothing is changed; every finding has Istio's code. What the objects of the mesh come to is `analyze`'s business.

use anyhow::{Context, Result};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::output::{self, Format};

/// The oldest Kubernetes 1.N that is supported.
const OLDEST: u32 = 30;

/// What an installation creates: group, resource.
const CREATED: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("", "configmaps"),
    ("", "secrets"),
    ("apps", "deployments"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
    ("autoscaling", "horizontalpodautoscalers"),
    ("policy", "poddisruptionbudgets"),
];

/// One thing found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    level: &'static str,
    code: &'static str,
    message: String,
}

/// Looks at the cluster; gives the exit code, 1 when there is an error.
///
/// # Errors
/// When the cluster cannot be asked.
pub async fn run(client: &Client, namespace: &str, skip_control_plane: bool, format: Format) -> Result<u8> {
    let version = client.apiserver_version().await.context("the cluster's version")?;
    let mut findings: Vec<Finding> = of_version(&version.major, &version.minor).into_iter().collect();
    if !skip_control_plane {
        let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
        for (group, resource) in CREATED {
            let attributes = ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                verb: Some("create".to_owned()),
                group: Some((*group).to_owned()),
                resource: Some((*resource).to_owned()),
                ..ResourceAttributes::default()
            };
            let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..Default::default() };
            let answer = reviews.create(&PostParams::default(), &review).await.context("what may be created")?;
            if !answer.status.is_some_and(|status| status.allowed) {
                let message = format!("Missing required permission to create resource {resource}.{group}");
                findings.push(Finding { level: "Error", code: "IST0141", message });
            }
        }
    }
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in definitions.list(&Default::default()).await.context("the cluster's definitions")? {
        let name = definition.metadata.name.clone().unwrap_or_default();
        if name == "gateways.gateway.networking.k8s.io" {
            let served =
                definition.spec.versions.iter().filter(|v| v.served).map(|v| v.name.as_str()).collect::<Vec<_>>();
            findings.extend(of_gateway_api(&name, &served));
        }
    }
    let failed = findings.iter().any(|finding| finding.level == "Error");
    let all = findings.iter().map(|f| json!({ "level": f.level, "code": f.code, "message": f.message })).collect();
    match output::machine(&Value::Array(all), format)? {
        Some(text) => print!("{text}"),
        None if findings.is_empty() => {
            eprintln!("✔ No issues found when checking the cluster. It is safe to install or upgrade.");
        }
        None => findings.iter().for_each(|f| println!("{} [{}] {}", f.level, f.code, f.message)),
    }
    Ok(u8::from(failed))
}

fn of_version(major: &str, minor: &str) -> Option<Finding> {
    // Some clusters say `31+`.
    let minor: u32 = minor.trim_end_matches('+').parse().ok()?;
    let message = format!("The Kubernetes version 1.{minor} is lower than the minimum version 1.{OLDEST}");
    (major == "1" && minor < OLDEST).then_some(Finding { level: "Error", code: "IST0142", message })
}

fn of_gateway_api(name: &str, served: &[&str]) -> Option<Finding> {
    let finding = |level, code, least: &str| {
        Some(Finding {
            level,
            code,
            message: format!("The Gateway API CRD {name} serves {}, older than {least}", served.join(", ")),
        })
    };
    match served {
        served if served.contains(&"v1") => None,
        served if served.contains(&"v1beta1") => finding("Warning", "IST0172", "v1"),
        _ => finding("Error", "IST0156", "v1beta1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_judged() {
        let code = |found: Option<Finding>| found.map(|f| f.code);
        assert_eq!(code(of_version("1", "36")), None);
        assert_eq!(code(of_version("1", "30+")), None);
        assert_eq!(code(of_version("1", "29")), Some("IST0142"));
        assert_eq!(code(of_gateway_api("g", &["v1", "v1beta1"])), None);
        assert_eq!(code(of_gateway_api("g", &["v1beta1"])), Some("IST0172"));
        assert_eq!(code(of_gateway_api("g", &["v1alpha2"])), Some("IST0156"));
    }
}
