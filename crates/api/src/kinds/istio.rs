//! Istio's kinds, and the legacy authentication kinds; how kinds whose schemas are text are put together.
//!
//! Invariant: every version of a kind has the same fields; only the names of the roots differ.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::columns::{self, Column};
use super::{Kind, Shape, print};
use crate::schema::{Definitions, Field, ObjectType, Schema, Type, definitions_of, istio_definitions};
use crate::timestamp::Timestamp;

/// Where a kind's own names begin in OpenAPI, and the names of the definitions of spec and status.
pub(super) struct TextShape {
    pub(super) root: &'static str,
    pub(super) spec: &'static str,
    /// `None` for kinds without a status.
    pub(super) status: Option<&'static str>,
}

struct Names {
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
}

const CATEGORIES: &[&str] = &["istio-io", "networking-istio-io"];
const SECURITY_CATEGORIES: &[&str] = &["istio-io", "security-istio-io"];
const TELEMETRY_CATEGORIES: &[&str] = &["istio-io", "telemetry-istio-io"];
const EXTENSION_CATEGORIES: &[&str] = &["istio-io", "extensions-istio-io"];
const LEGACY_CATEGORIES: &[&str] = &["istio-io", "authentication-istio-io"];

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";

type Cells = fn(&Value, Timestamp) -> Vec<Value>;

pub(super) fn kinds() -> Vec<Kind> {
    let all: &[&str] = &["v1", "v1beta1", "v1alpha3"];
    let networking =
        |versions, names, spec, columns, cells| kind(NETWORKING, CATEGORIES, versions, names, spec, columns, cells);
    let security = |names, spec, columns, cells| {
        kind(SECURITY, SECURITY_CATEGORIES, &["v1", "v1beta1"], names, spec, columns, cells)
    };
    let names = |kind, plural, singular, short| Names { kind, plural, singular, short };
    let name_age: (&'static [Column], Cells) = (columns::NAME_AGE, print::name_age);
    vec![
        networking(
            all,
            names("VirtualService", "virtualservices", "virtualservice", &["vs"]),
            "VirtualService",
            columns::VIRTUAL_SERVICE,
            |o, now| print::paths(o, now, &["/spec/gateways", "/spec/hosts", print::AGE]),
        ),
        networking(
            all,
            names("DestinationRule", "destinationrules", "destinationrule", &["dr"]),
            "DestinationRule",
            columns::DESTINATION_RULE,
            |o, now| print::paths(o, now, &["/spec/host", print::AGE]),
        ),
        networking(all, names("Gateway", "gateways", "gateway", &["gw"]), "Gateway", name_age.0, name_age.1),
        networking(
            all,
            names("ServiceEntry", "serviceentries", "serviceentry", &["se"]),
            "ServiceEntry",
            columns::SERVICE_ENTRY,
            |o, now| print::paths(o, now, &["/spec/hosts", "/spec/location", "/spec/resolution", print::AGE]),
        ),
        networking(all, names("Sidecar", "sidecars", "sidecar", &[]), "Sidecar", name_age.0, name_age.1),
        networking(
            all,
            names("WorkloadEntry", "workloadentries", "workloadentry", &["we"]),
            "WorkloadEntry",
            columns::WORKLOAD_ENTRY,
            |o, now| print::paths(o, now, &[print::AGE, "/spec/address"]),
        ),
        networking(
            all,
            names("WorkloadGroup", "workloadgroups", "workloadgroup", &["wg"]),
            "WorkloadGroup",
            name_age.0,
            name_age.1,
        ),
        networking(
            &["v1alpha3"],
            names("EnvoyFilter", "envoyfilters", "envoyfilter", &[]),
            "EnvoyFilter",
            name_age.0,
            name_age.1,
        ),
        networking(
            &["v1beta1"],
            names("ProxyConfig", "proxyconfigs", "proxyconfig", &[]),
            "ProxyConfig",
            name_age.0,
            name_age.1,
        ),
        security(
            names("PeerAuthentication", "peerauthentications", "peerauthentication", &["pa"]),
            "PeerAuthentication",
            columns::PEER_AUTHENTICATION,
            |o, now| print::paths(o, now, &["/spec/mtls/mode", print::AGE]),
        ),
        security(
            names("AuthorizationPolicy", "authorizationpolicies", "authorizationpolicy", &["ap"]),
            "AuthorizationPolicy",
            columns::AUTHORIZATION_POLICY,
            |o, now| print::paths(o, now, &["/spec/action", print::AGE]),
        ),
        security(
            names("RequestAuthentication", "requestauthentications", "requestauthentication", &["ra"]),
            "RequestAuthentication",
            name_age.0,
            name_age.1,
        ),
        kind(
            "telemetry.istio.io",
            TELEMETRY_CATEGORIES,
            &["v1", "v1alpha1"],
            names("Telemetry", "telemetries", "telemetry", &["telemetry"]),
            "Telemetry",
            name_age.0,
            name_age.1,
        ),
        kind(
            "extensions.istio.io",
            EXTENSION_CATEGORIES,
            &["v1alpha1"],
            names("WasmPlugin", "wasmplugins", "wasmplugin", &[]),
            "WasmPlugin",
            name_age.0,
            name_age.1,
        ),
        kind(
            "extensions.istio.io",
            EXTENSION_CATEGORIES,
            &["v1alpha1"],
            names("TrafficExtension", "trafficextensions", "trafficextension", &[]),
            "TrafficExtension",
            name_age.0,
            name_age.1,
        ),
        kind(
            "authentication.istio.io",
            LEGACY_CATEGORIES,
            &["v1alpha1"],
            names("Policy", "policies", "policy", &[]),
            "Policy",
            name_age.0,
            name_age.1,
        ),
        Kind {
            namespaced: false,
            ..kind(
                "authentication.istio.io",
                LEGACY_CATEGORIES,
                &["v1alpha1"],
                names("MeshPolicy", "meshpolicies", "meshpolicy", &[]),
                "Policy",
                name_age.0,
                name_age.1,
            )
        },
    ]
}

fn kind(
    group: &'static str,
    categories: &'static [&'static str],
    versions: &'static [&'static str],
    names: Names,
    spec: &'static str,
    columns: &'static [Column],
    cells: Cells,
) -> Kind {
    Kind {
        group,
        versions,
        kind: names.kind,
        plural: names.plural,
        singular: names.singular,
        short_names: names.short,
        categories,
        namespaced: true,
        stored: true,
        custom: true,
        convert: None,
        subresources: &["status"],
        columns,
        shape: Shape::Text(TextShape { root: "io.istio", spec, status: Some("IstioStatus") }),
        cells,
        schemas: OnceLock::new(),
    }
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Istio's definitions and the metadata's, shared by all of Istio's kinds.
fn shared_definitions() -> &'static Definitions {
    static SHARED: OnceLock<Definitions> = OnceLock::new();
    SHARED.get_or_init(|| {
        let mut all = istio_definitions().clone();
        all.extend(definitions_of::<k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>().definitions);
        all
    })
}

pub(super) fn schemas(kind: &Kind, shape: &TextShape) -> Vec<Schema> {
    let mut definitions = shared_definitions().clone();
    let group = kind.group.split('.').next().unwrap_or(kind.group);
    let roots: Vec<String> =
        kind.versions.iter().map(|version| format!("{}.{group}.{version}.{}", shape.root, kind.kind)).collect();
    for root in &roots {
        definitions.insert(root.as_str().into(), Type::Object(root_object(shape)));
    }
    let definitions = Arc::new(definitions);
    roots.iter().map(|root| Schema::new(root, definitions.clone())).collect()
}

fn root_object(shape: &TextShape) -> ObjectType {
    let definition = |name: &str| Type::Ref(format!("{}{name}", crate::schema::ISTIO_PREFIX).into());
    let field = |name: &str, ty| (Arc::from(name), Field { description: None, ty });
    let mut fields: BTreeMap<_, _> = [
        field("apiVersion", Type::String),
        field("kind", Type::String),
        field("metadata", Type::Ref(OBJECT_META.into())),
        field("spec", definition(shape.spec)),
    ]
    .into();
    fields.extend(shape.status.map(|status| field("status", definition(status))));
    ObjectType { description: None, fields, required: Vec::new(), enforce_required: false, open: false, whole: false }
}
