//! One message of the analysis.
//!
//! Invariant: a code has one level, and both are Istio's; the text of a message is the one that people search for.

use carrick_base::Severity;
use serde_json::{Map, Value, json};

use crate::objects::Origin;

/// A message about one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `IST0101`.
    pub code: &'static str,
    pub level: Severity,
    /// The object it is about.
    pub origin: Origin,
    /// The line of the field that it is about, where the object came from a file; 0 when not known.
    pub line: u64,
    pub text: String,
}

const DOCUMENTATION: &str = "https://istio.io/latest/docs/reference/config/analysis";

/// Every code with its level and its name.
pub const CODES: &[(&str, Severity, &str)] = &[
    ("IST0001", Severity::Error, "InternalError"),
    ("IST0002", Severity::Warning, "Deprecated"),
    ("IST0101", Severity::Error, "ReferencedResourceNotFound"),
    ("IST0102", Severity::Info, "NamespaceNotInjected"),
    ("IST0103", Severity::Warning, "PodMissingProxy"),
    ("IST0106", Severity::Error, "SchemaValidationError"),
    ("IST0107", Severity::Warning, "MisplacedAnnotation"),
    ("IST0108", Severity::Warning, "UnknownAnnotation"),
    ("IST0109", Severity::Error, "ConflictingMeshGatewayVirtualServiceHosts"),
    ("IST0110", Severity::Error, "ConflictingSidecarWorkloadSelectors"),
    ("IST0111", Severity::Error, "MultipleSidecarsWithoutWorkloadSelectors"),
    ("IST0112", Severity::Error, "VirtualServiceDestinationPortSelectorRequired"),
    ("IST0116", Severity::Warning, "DeploymentAssociatedToMultipleServices"),
    ("IST0118", Severity::Info, "PortNameIsNotUnderNamingConvention"),
    ("IST0123", Severity::Warning, "NamespaceMultipleInjectionLabels"),
    ("IST0125", Severity::Warning, "InvalidAnnotation"),
    ("IST0126", Severity::Error, "UnknownMeshNetworksServiceRegistry"),
    ("IST0127", Severity::Warning, "NoMatchingWorkloadsFound"),
    ("IST0128", Severity::Warning, "NoServerCertificateVerificationDestinationLevel"),
    ("IST0129", Severity::Warning, "NoServerCertificateVerificationPortLevel"),
    ("IST0130", Severity::Warning, "VirtualServiceUnreachableRule"),
    ("IST0131", Severity::Info, "VirtualServiceIneffectiveMatch"),
    ("IST0132", Severity::Warning, "VirtualServiceHostNotFoundInGateway"),
    ("IST0133", Severity::Warning, "SchemaWarning"),
    ("IST0134", Severity::Warning, "ServiceEntryAddressesRequired"),
    ("IST0135", Severity::Info, "DeprecatedAnnotation"),
    ("IST0136", Severity::Info, "AlphaAnnotation"),
    ("IST0137", Severity::Warning, "DeploymentConflictingPorts"),
    ("IST0138", Severity::Warning, "GatewayDuplicateCertificate"),
    ("IST0139", Severity::Error, "InvalidWebhook"),
    ("IST0140", Severity::Warning, "IngressRouteRulesNotAffected"),
    ("IST0141", Severity::Error, "InsufficientPermissions"),
    ("IST0142", Severity::Error, "UnsupportedKubernetesVersion"),
    ("IST0143", Severity::Error, "LocalhostListener"),
    ("IST0144", Severity::Warning, "InvalidApplicationUID"),
    ("IST0145", Severity::Error, "ConflictingGateways"),
    ("IST0146", Severity::Warning, "ImageAutoWithoutInjectionWarning"),
    ("IST0147", Severity::Error, "ImageAutoWithoutInjectionError"),
    ("IST0148", Severity::Info, "NamespaceInjectionEnabledByDefault"),
    ("IST0149", Severity::Error, "JwtClaimBasedRoutingWithoutRequestAuthN"),
    ("IST0150", Severity::Warning, "ExternalNameServiceTypeInvalidPortName"),
    ("IST0151", Severity::Warning, "EnvoyFilterUsesRelativeOperation"),
    ("IST0152", Severity::Error, "EnvoyFilterUsesReplaceOperationIncorrectly"),
    ("IST0153", Severity::Error, "EnvoyFilterUsesAddOperationIncorrectly"),
    ("IST0154", Severity::Error, "EnvoyFilterUsesRemoveOperationIncorrectly"),
    ("IST0155", Severity::Warning, "EnvoyFilterUsesRelativeOperationWithProxyVersion"),
    ("IST0156", Severity::Error, "UnsupportedGatewayAPIVersion"),
    ("IST0157", Severity::Warning, "InvalidTelemetryProvider"),
    ("IST0158", Severity::Warning, "PodsIstioProxyImageMismatchInNamespace"),
    ("IST0159", Severity::Error, "ConflictingTelemetryWorkloadSelectors"),
    ("IST0160", Severity::Error, "MultipleTelemetriesWithoutWorkloadSelectors"),
    ("IST0161", Severity::Error, "InvalidGatewayCredential"),
    ("IST0162", Severity::Warning, "GatewayPortNotDefinedOnService"),
    ("IST0163", Severity::Warning, "InvalidExternalControlPlaneConfig"),
    ("IST0164", Severity::Info, "ExternalControlPlaneAddressIsNotAHostname"),
    ("IST0165", Severity::Warning, "ReferencedInternalGateway"),
    ("IST0166", Severity::Warning, "IneffectiveSelector"),
    ("IST0167", Severity::Warning, "IneffectivePolicy"),
    ("IST0168", Severity::Warning, "UnknownUpgradeCompatibility"),
    ("IST0169", Severity::Warning, "UpdateIncompatibility"),
    ("IST0170", Severity::Warning, "MultiClusterInconsistentService"),
    ("IST0171", Severity::Warning, "NegativeConditionStatus"),
    ("IST0172", Severity::Warning, "FutureUnsupportedGatewayAPIVersion"),
    ("IST0173", Severity::Error, "DestinationRuleSubsetNotSelectPods"),
    ("IST0174", Severity::Warning, "UnknownDestinationRuleHost"),
    ("IST0175", Severity::Warning, "JwksUriFetchUnrestricted"),
    ("IST0176", Severity::Warning, "GatewayAPICRDVersionBelowMinimum"),
    ("IST0177", Severity::Warning, "ConflictingServiceEntryProtocol"),
];

/// The level of a code.
pub(crate) fn level(code: &str) -> Severity {
    CODES.iter().find(|(known, _, _)| *known == code).map_or(Severity::Error, |(_, level, _)| *level)
}

impl Message {
    /// `file:line`, where the object came from a file.
    pub fn reference(&self) -> Option<String> {
        let file = self.origin.file.as_ref()?;
        let line = if self.line == 0 { self.origin.line } else { self.line };
        Some(format!("{file}:{line}"))
    }

    /// The message as one line. `clusters`: name the cluster, since there are several.
    pub fn to_line(&self, clusters: bool) -> String {
        let cluster = match &self.origin.cluster {
            Some(cluster) if clusters => format!(" [cluster-{cluster}]"),
            _ => String::new(),
        };
        let reference = self.reference().map(|reference| format!(" {reference}")).unwrap_or_default();
        format!("{} [{}]{cluster} ({}{reference}) {}", self.level, self.code, self.origin.friendly_name(), self.text)
    }

    /// The message as an object for programs.
    pub fn to_value(&self, clusters: bool) -> Value {
        let mut map = Map::new();
        map.insert("code".into(), json!(self.code));
        map.insert(
            "documentationUrl".into(),
            json!(format!("{DOCUMENTATION}/{}/?ref=istioctl-analyze", self.code.to_lowercase())),
        );
        map.insert("level".into(), json!(self.level.to_string()));
        map.insert("message".into(), json!(self.text));
        map.insert("origin".into(), json!(self.origin.friendly_name()));
        if let Some(reference) = self.reference() {
            map.insert("reference".into(), json!(reference));
        }
        if let Some(cluster) = self.origin.cluster.as_ref().filter(|_| clusters) {
            map.insert("cluster".into(), json!(cluster));
        }
        Value::Object(map)
    }
}
