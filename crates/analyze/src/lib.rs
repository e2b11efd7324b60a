//! What is wrong with many objects together: Istio's analysis, with its codes and its words.
//!
//! Invariant: a function of the objects given; nothing is fetched and nothing is changed. Each analyzer looks at all objects
//! and reports messages on single ones; which are shown is decided afterwards, so that what another namespace does to this
//! one is seen.
//!
//! What is wrong with one object alone belongs to `api`; reading files and clusters belongs to the command line.

mod annotations;
mod authorization;
mod conditions;
mod deployments;
mod deprecation;
mod destination_rules;
mod envoy_filters;
mod external_control_plane;
mod files;
mod filter;
mod gateway_api;
mod gateways;
mod hosts;
mod injection;
mod lines;
mod mesh_networks;
mod message;
mod objects;
mod report;
mod schema;
mod service_entries;
mod services;
mod sidecars;
mod telemetry;
mod virtual_services;
mod webhooks;

pub use self::files::{FileProblem, read_file};
pub use self::filter::{Filter, Suppression};
pub use self::message::{CODES, Message};
pub use self::objects::{Object, Objects, Origin};

use self::report::Report;
use carrick_api::timestamp::Timestamp;

/// One analyzer: its name as `--analyzer` takes it, what it does, and the doing.
pub struct Analyzer {
    pub name: &'static str,
    pub description: &'static str,
    run: fn(&mut Report<'_>),
}

const fn analyzer(name: &'static str, description: &'static str, run: fn(&mut Report<'_>)) -> Analyzer {
    Analyzer { name, description, run }
}

/// All analyzers, without those that judge single objects.
pub const ANALYZERS: &[Analyzer] = &[
    analyzer(
        "annotations.K8sAnalyzer",
        "Checks for misplaced and invalid Istio annotations in Kubernetes resources",
        annotations::check,
    ),
    analyzer("applicationUID.Analyzer", "Checks invalid application UID", deployments::user_ids),
    analyzer(
        "auth.AuthorizationPoliciesAnalyzer",
        "Checks the validity of authorization policies",
        authorization::check,
    ),
    analyzer(
        "authn.BlockedCIDRsAnalyzer",
        "Checks that BLOCKED_CIDRS_IN_JWKS_URIS is configured on istiod when RequestAuthentication resources exist",
        authorization::key_fetches,
    ),
    analyzer("conditions.ConditionAnalyzer", "Checks for negative status conditions on resources", conditions::check),
    analyzer("deployment.MultiServiceAnalyzer", "Checks association between services and pods", deployments::services),
    analyzer("deprecation.DeprecationAnalyzer", "Checks for deprecated Istio types and fields", deprecation::check),
    analyzer(
        "destinationrule.CaCertificateAnalyzer",
        "Checks if caCertificates is set when TLS mode is SIMPLE/MUTUAL",
        destination_rules::certificates,
    ),
    analyzer(
        "destinationrule.SubsetSelectPodAnalyzer",
        "Checks if pods are selected by subsets in destination rules.",
        destination_rules::subsets,
    ),
    analyzer("envoyfilter.EnvoyPatchAnalyzer", "Checks the operations of EnvoyFilters", envoy_filters::check),
    analyzer(
        "externalcontrolplane.ExternalControlPlaneAnalyzer",
        "Checks the addresses of an external control plane",
        external_control_plane::check,
    ),
    analyzer("gateway.CertificateAnalyzer", "Checks a gateway certificate", gateways::certificates),
    analyzer(
        "gateway.ConflictingGatewayAnalyzer",
        "Checks a gateway's selector, port number and hosts",
        gateways::conflicts,
    ),
    analyzer(
        "gateway.IngressGatewayPortAnalyzer",
        "Checks a gateway's ports against the gateway's Kubernetes service ports",
        gateways::ports,
    ),
    analyzer("gateway.SecretAnalyzer", "Checks a gateway's referenced secrets for correctness", gateways::secrets),
    analyzer("injection.Analyzer", "Checks conditions related to Istio sidecar injection", injection::check),
    analyzer(
        "injection.ImageAnalyzer",
        "Checks the image of auto-injection configured with the running proxies on pods",
        injection::images,
    ),
    analyzer(
        "injection.ImageAutoAnalyzer",
        "Makes sure that Pods and Deployments with `image: auto` are going to be injected",
        injection::automatic_images,
    ),
    analyzer(
        "k8sgateway.CRDVersionAnalyzer",
        "Checks that the Gateway API's kinds are new enough",
        gateway_api::versions,
    ),
    analyzer(
        "k8sgateway.SelectorAnalyzer",
        "Check that selectors are effective for Kubernetes gateway",
        gateway_api::selectors,
    ),
    analyzer(
        "meshnetworks.MeshNetworksAnalyzer",
        "Check the validity of MeshNetworks in the cluster",
        mesh_networks::check,
    ),
    analyzer("service.PortNameAnalyzer", "Checks the port names associated with each service", services::port_names),
    analyzer("serviceentry.Analyzer", "Checks the validity of ServiceEntry", service_entries::addresses),
    analyzer(
        "serviceentry.ConflictingServiceEntryProtocolAnalyzer",
        "Checks if multiple ServiceEntries define the same host and port with different protocols",
        service_entries::protocols,
    ),
    analyzer(
        "services.MultiClusterServiceAnalyzer",
        "Check the validity of services in the multi-cluster environment",
        services::clusters,
    ),
    analyzer(
        "sidecar.SelectorAnalyzer",
        "Validates that sidecars that define a workload selector match at least one pod, and that there aren't multiple sidecar resources that select overlapping pods",
        sidecars::check,
    ),
    analyzer(
        "telemetry.DefaultSelectorAnalyzer",
        "Validates that there aren't multiple telemetry resources that have no selector",
        telemetry::defaults,
    ),
    analyzer("telemetry.LightstepAnalyzer", "Validates that lightstep provider is still used", telemetry::lightstep),
    analyzer(
        "telemetry.ProviderAnalyzer",
        "Validates that providers in telemetry resource is valid",
        telemetry::providers,
    ),
    analyzer(
        "telemetry.SelectorAnalyzer",
        "Validates that telemetries that define a selector match at least one pod, and that there aren't multiple telemetry resources that select overlapping pods",
        telemetry::selectors,
    ),
    analyzer(
        "virtualservice.ConflictingMeshGatewayHostsAnalyzer",
        "Checks if multiple virtual services associated with the mesh gateway have conflicting hosts",
        virtual_services::conflicts,
    ),
    analyzer(
        "virtualservice.DestinationHostAnalyzer",
        "Checks the destination hosts associated with each virtual service",
        virtual_services::hosts,
    ),
    analyzer(
        "virtualservice.DestinationRuleAnalyzer",
        "Checks the destination rules associated with each virtual service",
        virtual_services::subsets,
    ),
    analyzer(
        "virtualservice.GatewayAnalyzer",
        "Checks the gateways associated with each virtual service",
        virtual_services::gateways,
    ),
    analyzer(
        "virtualservice.JWTClaimRouteAnalyzer",
        "Checks the VirtualService using JWT claim based routing has corresponding RequestAuthentication",
        virtual_services::claims,
    ),
    analyzer("webhook.Analyzer", "Checks the validity of Istio webhooks", webhooks::check),
];

/// Names of all analyzers with what they do, also of those that judge the objects of one kind each.
pub fn names() -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> =
        ANALYZERS.iter().map(|a| (a.name.to_owned(), a.description.to_owned())).collect();
    all.extend(
        schema::KINDS
            .iter()
            .map(|kind| (schema::name(kind), format!("Runs schema validation as an analyzer on '{kind}' resources"))),
    );
    all.sort();
    all
}

/// Runs the analyzers named (all of them when none is), and returns what they found: worst first, nothing twice.
/// `now` is for the certificates in secrets.
pub fn analyze(objects: &Objects, only: &[String], now: Timestamp) -> Vec<Message> {
    let known = names();
    let wanted: Vec<&str> =
        only.iter().map(String::as_str).filter(|name| known.iter().any(|(known, _)| known == name)).collect();
    let runs = |name: &str| wanted.is_empty() || wanted.contains(&name);
    let mut report = Report::new(objects, now);
    for analyzer in ANALYZERS.iter().filter(|analyzer| runs(analyzer.name)) {
        (analyzer.run)(&mut report);
    }
    for kind in schema::KINDS.iter().filter(|kind| runs(&schema::name(kind))) {
        schema::check(kind, &mut report);
    }
    report.finish()
}
