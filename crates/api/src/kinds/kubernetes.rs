//! Kubernetes' own kinds that are served.
//!
//! Invariant: schemas are the full ones of k8s-openapi; the review kinds are served but never stored.

mod autoscaling;
mod kept;

use std::sync::OnceLock;

use k8s_openapi::api::admissionregistration::v1 as admission;
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::authorization::v1 as authorization;
use k8s_openapi::api::autoscaling::v1 as hpa_v1;
use k8s_openapi::api::autoscaling::v2 as hpa;
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::certificates::v1 as certificates;
use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::api::policy::v1 as policy;
use k8s_openapi::api::rbac::v1 as rbac;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as extensions;
use serde_json::Value;

use super::columns::{self, Column};
use super::{Kind, Shape, print};
use crate::schema::{Converted, definitions_of};
use crate::timestamp::Timestamp;

const ADMISSION: &str = "admissionregistration.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";

type Convert = fn() -> Converted;
type Printer = (&'static [Column], fn(&Value, Timestamp) -> Vec<Value>);

pub(super) fn kinds() -> Vec<Kind> {
    let created: Printer = (columns::NAME_CREATED, print::name_created);
    let binding: Printer = (columns::ROLE_BINDING, print::role_binding);
    let all: &[&str] = &["all"];
    let extensions: &[&str] = &["api-extensions"];
    let mut kinds = vec![
        Kind {
            short_names: &["cm"],
            ..kind(
                "",
                "ConfigMap",
                "configmaps",
                definitions_of::<core::ConfigMap>,
                (columns::CONFIG_MAP, print::config_map),
            )
        },
        Kind {
            short_names: &["ep"],
            singular: "endpoints",
            ..kind(
                "",
                "Endpoints",
                "endpoints",
                definitions_of::<core::Endpoints>,
                (columns::ENDPOINTS, print::endpoints),
            )
        },
        Kind {
            short_names: &["ev"],
            ..kind("", "Event", "events", definitions_of::<core::Event>, (columns::EVENT, print::event))
        },
        Kind {
            short_names: &["ns"],
            namespaced: false,
            subresources: &["status", "finalize"],
            ..kind(
                "",
                "Namespace",
                "namespaces",
                definitions_of::<core::Namespace>,
                (columns::NAMESPACE, print::namespace),
            )
        },
        Kind {
            short_names: &["no"],
            namespaced: false,
            subresources: &["status"],
            ..kind("", "Node", "nodes", definitions_of::<core::Node>, (columns::NODE, print::node))
        },
        Kind {
            short_names: &["po"],
            categories: all,
            subresources: &["attach", "eviction", "exec", "log", "portforward", "status"],
            ..kind("", "Pod", "pods", definitions_of::<core::Pod>, (columns::POD, print::pod))
        },
        Kind {
            short_names: &["rc"],
            categories: all,
            subresources: &["scale", "status"],
            ..kind(
                "",
                "ReplicationController",
                "replicationcontrollers",
                definitions_of::<core::ReplicationController>,
                (columns::REPLICA_SET, print::replication_controller),
            )
        },
        kind("", "Secret", "secrets", definitions_of::<core::Secret>, (columns::SECRET, print::secret)),
        Kind {
            short_names: &["sa"],
            subresources: &["token"],
            ..kind(
                "",
                "ServiceAccount",
                "serviceaccounts",
                definitions_of::<core::ServiceAccount>,
                (columns::NAME_AGE, print::name_age),
            )
        },
        Kind {
            short_names: &["svc"],
            categories: all,
            subresources: &["status"],
            ..kind("", "Service", "services", definitions_of::<core::Service>, (columns::SERVICE, print::service))
        },
        // What an installation is made of, besides the core's kinds. Nothing here runs a Deployment's containers.
        Kind {
            categories: extensions,
            namespaced: false,
            ..kind(
                ADMISSION,
                "MutatingWebhookConfiguration",
                "mutatingwebhookconfigurations",
                definitions_of::<admission::MutatingWebhookConfiguration>,
                (columns::WEBHOOKS, print::webhooks),
            )
        },
        Kind {
            categories: extensions,
            namespaced: false,
            ..kind(
                ADMISSION,
                "ValidatingWebhookConfiguration",
                "validatingwebhookconfigurations",
                definitions_of::<admission::ValidatingWebhookConfiguration>,
                (columns::WEBHOOKS, print::webhooks),
            )
        },
        Kind {
            categories: extensions,
            namespaced: false,
            singular: "validatingadmissionpolicy",
            subresources: &["status"],
            ..kind(
                ADMISSION,
                "ValidatingAdmissionPolicy",
                "validatingadmissionpolicies",
                definitions_of::<admission::ValidatingAdmissionPolicy>,
                (columns::POLICY, print::policy),
            )
        },
        Kind {
            categories: extensions,
            namespaced: false,
            ..kind(
                ADMISSION,
                "ValidatingAdmissionPolicyBinding",
                "validatingadmissionpolicybindings",
                definitions_of::<admission::ValidatingAdmissionPolicyBinding>,
                (columns::POLICY_BINDING, print::policy_binding),
            )
        },
        Kind {
            categories: extensions,
            short_names: &["crd", "crds"],
            namespaced: false,
            subresources: &["status"],
            ..kind(
                "apiextensions.k8s.io",
                "CustomResourceDefinition",
                "customresourcedefinitions",
                definitions_of::<extensions::CustomResourceDefinition>,
                created,
            )
        },
        Kind {
            short_names: &["deploy"],
            categories: all,
            subresources: &["scale", "status"],
            ..kind(
                "apps",
                "Deployment",
                "deployments",
                definitions_of::<apps::Deployment>,
                (columns::DEPLOYMENT, print::deployment),
            )
        },
        Kind {
            short_names: &["rs"],
            categories: all,
            subresources: &["scale", "status"],
            ..kind(
                "apps",
                "ReplicaSet",
                "replicasets",
                definitions_of::<apps::ReplicaSet>,
                (columns::REPLICA_SET, print::replica_set),
            )
        },
        Kind {
            short_names: &["sts"],
            categories: all,
            subresources: &["scale", "status"],
            ..kind(
                "apps",
                "StatefulSet",
                "statefulsets",
                definitions_of::<apps::StatefulSet>,
                (columns::STATEFUL_SET, print::stateful_set),
            )
        },
        Kind {
            categories: all,
            subresources: &["status"],
            ..kind("batch", "Job", "jobs", definitions_of::<batch::Job>, (columns::JOB, print::job))
        },
        Kind {
            short_names: &["cj"],
            categories: all,
            subresources: &["status"],
            ..kind(
                "batch",
                "CronJob",
                "cronjobs",
                definitions_of::<batch::CronJob>,
                (columns::CRON_JOB, print::cron_job),
            )
        },
        Kind {
            short_names: &["ds"],
            categories: all,
            subresources: &["status"],
            ..kind(
                "apps",
                "DaemonSet",
                "daemonsets",
                definitions_of::<apps::DaemonSet>,
                (columns::DAEMON_SET, print::daemon_set),
            )
        },
        Kind {
            versions: &["v2", "v1"],
            convert: Some(autoscaling::convert),
            shape: Shape::Versions(&[
                definitions_of::<hpa::HorizontalPodAutoscaler>,
                definitions_of::<hpa_v1::HorizontalPodAutoscaler>,
            ]),
            short_names: &["hpa"],
            categories: all,
            subresources: &["status"],
            ..kind(
                "autoscaling",
                "HorizontalPodAutoscaler",
                "horizontalpodautoscalers",
                definitions_of::<hpa::HorizontalPodAutoscaler>,
                (columns::AUTOSCALER, print::autoscaler),
            )
        },
        Kind {
            short_names: &["netpol"],
            singular: "networkpolicy",
            ..kind(
                "networking.k8s.io",
                "NetworkPolicy",
                "networkpolicies",
                definitions_of::<networking::NetworkPolicy>,
                (columns::NETWORK_POLICY, print::network_policy),
            )
        },
        Kind {
            short_names: &["pdb"],
            subresources: &["status"],
            ..kind(
                "policy",
                "PodDisruptionBudget",
                "poddisruptionbudgets",
                definitions_of::<policy::PodDisruptionBudget>,
                (columns::DISRUPTION_BUDGET, print::disruption_budget),
            )
        },
        review(
            AUTHENTICATION,
            "SelfSubjectReview",
            "selfsubjectreviews",
            definitions_of::<authentication::SelfSubjectReview>,
            created,
        ),
        review(AUTHENTICATION, "TokenReview", "tokenreviews", definitions_of::<authentication::TokenReview>, created),
        Kind {
            namespaced: true,
            ..review(
                AUTHORIZATION,
                "LocalSubjectAccessReview",
                "localsubjectaccessreviews",
                definitions_of::<authorization::LocalSubjectAccessReview>,
                created,
            )
        },
        review(
            AUTHORIZATION,
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            definitions_of::<authorization::SelfSubjectAccessReview>,
            created,
        ),
        review(
            AUTHORIZATION,
            "SelfSubjectRulesReview",
            "selfsubjectrulesreviews",
            definitions_of::<authorization::SelfSubjectRulesReview>,
            created,
        ),
        review(
            AUTHORIZATION,
            "SubjectAccessReview",
            "subjectaccessreviews",
            definitions_of::<authorization::SubjectAccessReview>,
            created,
        ),
        Kind {
            short_names: &["csr"],
            namespaced: false,
            subresources: &["approval", "status"],
            ..kind(
                "certificates.k8s.io",
                "CertificateSigningRequest",
                "certificatesigningrequests",
                definitions_of::<certificates::CertificateSigningRequest>,
                (columns::SIGNING_REQUEST, print::signing_request),
            )
        },
        kind(
            "coordination.k8s.io",
            "Lease",
            "leases",
            definitions_of::<coordination::Lease>,
            (columns::LEASE, print::lease),
        ),
        kind(
            "discovery.k8s.io",
            "EndpointSlice",
            "endpointslices",
            definitions_of::<discovery::EndpointSlice>,
            (columns::ENDPOINT_SLICE, print::endpoint_slice),
        ),
        Kind {
            short_names: &["ev"],
            ..kind("events.k8s.io", "Event", "events", definitions_of::<events::Event>, (columns::EVENT, print::event))
        },
        Kind {
            namespaced: false,
            ..kind(
                RBAC,
                "ClusterRoleBinding",
                "clusterrolebindings",
                definitions_of::<rbac::ClusterRoleBinding>,
                binding,
            )
        },
        Kind {
            namespaced: false,
            ..kind(RBAC, "ClusterRole", "clusterroles", definitions_of::<rbac::ClusterRole>, created)
        },
        kind(RBAC, "RoleBinding", "rolebindings", definitions_of::<rbac::RoleBinding>, binding),
        kind(RBAC, "Role", "roles", definitions_of::<rbac::Role>, created),
    ];
    kinds.extend(kept::kinds());
    kinds
}

fn kind(group: &'static str, kind: &'static str, plural: &'static str, convert: Convert, printer: Printer) -> Kind {
    Kind {
        group,
        versions: &["v1"],
        kind,
        plural,
        singular: plural.strip_suffix('s').unwrap_or(plural),
        short_names: &[],
        categories: &[],
        namespaced: true,
        stored: true,
        custom: false,
        convert: None,
        subresources: &[],
        columns: printer.0,
        shape: Shape::Kubernetes(convert),
        cells: printer.1,
        schemas: OnceLock::new(),
    }
}

fn review(group: &'static str, name: &'static str, plural: &'static str, convert: Convert, printer: Printer) -> Kind {
    Kind { namespaced: false, stored: false, ..kind(group, name, plural, convert, printer) }
}
