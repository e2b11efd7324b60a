//! External authorizers (semantics §12.12).
//!
//! Invariant: asked only for what a rule of a CUSTOM policy matched, which the RBAC filter before it left behind.

use carrick_mesh::model::authz::{Authorizer, AuthorizerKind, HttpAuthorizer, Text};
use envoy_types::pb::envoy::{
    config::{
        core::v3::{ApiVersion, GrpcService, HeaderValue, HttpUri, grpc_service, http_uri::HttpUpstreamType},
        listener::v3::Filter,
    },
    extensions::filters::{
        http::ext_authz::v3::{
            AuthorizationRequest, AuthorizationResponse, BufferSettings, ExtAuthz, HttpService, ext_authz::Services,
        },
        network::{ext_authz::v3::ExtAuthz as NetworkExtAuthz, http_connection_manager::v3::HttpFilter},
    },
    r#type::{
        matcher::v3::MetadataMatcher,
        v3::{HttpStatus, StatusCode},
    },
};

use super::text;
use crate::wire;

/// How ids of rules of CUSTOM policies begin.
pub const RULE_PREFIX: &str = "istio-ext-authz";
/// Where the RBAC filter leaves the id of the rule that matched.
const MATCHED: &str = "istio_ext_authz_shadow_effective_policy_id";

/// The HTTP filter.
pub fn http(authorizer: &Authorizer) -> HttpFilter {
    let (services, allowed_headers) = match &authorizer.kind {
        AuthorizerKind::Grpc => (Services::GrpcService(grpc(authorizer)), None),
        AuthorizerKind::Http(http) => {
            (Services::HttpService(http_service(authorizer, http)), text::header_names(&http.request_headers))
        }
    };
    let filter = ExtAuthz {
        transport_api_version: ApiVersion::V3.into(),
        services: Some(services),
        failure_mode_allow: authorizer.fail_open,
        with_request_body: authorizer.body.map(|body| BufferSettings {
            max_request_bytes: body.max_bytes,
            allow_partial_message: body.partial,
            pack_as_bytes: body.as_bytes,
        }),
        clear_route_cache: authorizer.clear_route_cache,
        status_on_error: Some(HttpStatus { code: status(authorizer.status_on_error).into() }),
        filter_enabled_metadata: Some(matched(super::HTTP_RBAC)),
        allowed_headers,
        ..ExtAuthz::default()
    };
    wire::http_filter("envoy.filters.http.ext_authz", wire::any(&filter))
}

/// The network filter of an authorizer that is asked by gRPC.
pub fn network(authorizer: &Authorizer) -> Filter {
    let filter = NetworkExtAuthz {
        stat_prefix: super::TCP_STATS.to_owned(),
        grpc_service: Some(grpc(authorizer)),
        failure_mode_allow: authorizer.fail_open,
        transport_api_version: ApiVersion::V3.into(),
        filter_enabled_metadata: Some(matched(super::NETWORK_RBAC)),
        ..NetworkExtAuthz::default()
    };
    wire::network_filter("envoy.filters.network.ext_authz", wire::any(&filter))
}

fn matched(filter: &str) -> MetadataMatcher {
    text::metadata(filter, MATCHED, &Text::Prefix(RULE_PREFIX.into()), false)
}

fn grpc(authorizer: &Authorizer) -> GrpcService {
    let target = grpc_service::EnvoyGrpc {
        cluster_name: authorizer.cluster.to_string(),
        authority: authorizer.host.to_string(),
        ..grpc_service::EnvoyGrpc::default()
    };
    GrpcService {
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)),
        timeout: wire::millis(authorizer.timeout),
        ..GrpcService::default()
    }
}

fn http_service(authorizer: &Authorizer, http: &HttpAuthorizer) -> HttpService {
    let more = http.more_headers.iter().map(|(key, value)| HeaderValue {
        key: key.to_string(),
        value: value.to_string(),
        ..HeaderValue::default()
    });
    let more: Vec<_> = more.collect();
    HttpService {
        server_uri: Some(HttpUri {
            uri: format!("http://{}:{}", authorizer.host, authorizer.port),
            timeout: wire::millis(authorizer.timeout),
            http_upstream_type: Some(HttpUpstreamType::Cluster(authorizer.cluster.to_string())),
        }),
        path_prefix: http.path_prefix.to_string(),
        authorization_request: (!more.is_empty())
            .then(|| AuthorizationRequest { headers_to_add: more, ..AuthorizationRequest::default() }),
        authorization_response: Some(AuthorizationResponse {
            allowed_upstream_headers: text::header_names(&http.to_upstream),
            allowed_client_headers: text::header_names(&http.to_downstream_on_deny),
            allowed_client_headers_on_success: text::header_names(&http.to_downstream_on_allow),
            ..AuthorizationResponse::default()
        }),
        ..HttpService::default()
    }
}

/// A status that Envoy knows.
fn status(code: u16) -> StatusCode {
    StatusCode::try_from(i32::from(code)).unwrap_or(StatusCode::Forbidden)
}
