//! The kinds of the Kubernetes Gateway API v1.6.
//!
//! Invariant: names, versions, short names and columns are those of the published CRDs; all versions of a kind have the
//! same fields, and the first is the one stored. Fields that the CRDs default are stored as given, so readers fill in
//! what is absent.

use std::sync::OnceLock;

use super::columns::{self, Column};
use super::istio::TextShape;
use super::{Kind, Shape, print};
use crate::timestamp::Timestamp;
use serde_json::Value;

/// The API group.
const GROUP: &str = "gateway.networking.k8s.io";

type Printer = (&'static [Column], fn(&Value, Timestamp) -> Vec<Value>);

pub(super) fn kinds() -> Vec<Kind> {
    let age: Printer = (columns::NAME_AGE, print::name_age);
    let hosts: Printer =
        (columns::ROUTE_HOSTS, |object, now| print::paths(object, now, &["/spec/hostnames", print::AGE]));
    let stable: &[&str] = &["v1", "v1beta1"];
    let layer4: &[&str] = &["v1", "v1alpha2"];
    vec![
        Kind {
            namespaced: false,
            ..kind(stable, "GatewayClass", "gatewayclasses", &["gc"], (columns::GATEWAY_CLASS, print::gateway_class))
        },
        kind(stable, "Gateway", "gateways", &["gtw"], (columns::K8S_GATEWAY, print::k8s_gateway)),
        kind(stable, "HTTPRoute", "httproutes", &[], hosts),
        kind(&["v1"], "GRPCRoute", "grpcroutes", &[], hosts),
        kind(&["v1", "v1alpha3", "v1alpha2"], "TLSRoute", "tlsroutes", &[], age),
        kind(layer4, "TCPRoute", "tcproutes", &[], age),
        kind(layer4, "UDPRoute", "udproutes", &[], age),
        kind(&["v1", "v1alpha3"], "BackendTLSPolicy", "backendtlspolicies", &["btlspolicy"], age),
        kind(&["v1"], "ListenerSet", "listenersets", &["lset"], (columns::LISTENER_SET, print::listener_set)),
        Kind {
            subresources: &[],
            shape: shape("K8sReferenceGrant", None),
            ..kind(stable, "ReferenceGrant", "referencegrants", &["refgrant"], age)
        },
    ]
}

fn kind(
    versions: &'static [&'static str],
    name: &'static str,
    plural: &'static str,
    short_names: &'static [&'static str],
    (columns, cells): Printer,
) -> Kind {
    let (singular, spec, status) = match name {
        "GatewayClass" => ("gatewayclass", "K8sGatewayClass", "K8sGatewayClassStatus"),
        "Gateway" => ("gateway", "K8sGateway", "K8sGatewayStatus"),
        "HTTPRoute" => ("httproute", "K8sHTTPRoute", "K8sHTTPRouteStatus"),
        "GRPCRoute" => ("grpcroute", "K8sGRPCRoute", "K8sGRPCRouteStatus"),
        "TLSRoute" => ("tlsroute", "K8sTLSRoute", "K8sTLSRouteStatus"),
        "TCPRoute" => ("tcproute", "K8sTCPRoute", "K8sTCPRouteStatus"),
        "UDPRoute" => ("udproute", "K8sUDPRoute", "K8sUDPRouteStatus"),
        "BackendTLSPolicy" => ("backendtlspolicy", "K8sBackendTLSPolicy", "K8sBackendTLSPolicyStatus"),
        "ListenerSet" => ("listenerset", "K8sListenerSet", "K8sListenerSetStatus"),
        _ => ("referencegrant", "K8sReferenceGrant", "K8sGatewayStatus"),
    };
    Kind {
        group: GROUP,
        versions,
        kind: name,
        plural,
        singular,
        short_names,
        categories: &["gateway-api"],
        namespaced: true,
        stored: true,
        custom: true,
        convert: None,
        subresources: &["status"],
        columns,
        shape: shape(spec, Some(status)),
        cells,
        schemas: OnceLock::new(),
    }
}

fn shape(spec: &'static str, status: Option<&'static str>) -> Shape {
    Shape::Text(TextShape { root: "io.k8s.networking", spec, status })
}
