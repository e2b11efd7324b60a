//! External authorizers of the mesh's configuration (semantics §12.12).
//!
//! Invariant: one whose service is not known is left out and told of; policies that name it deny.

use std::{collections::BTreeMap, sync::Arc};

use carrick_api::{
    MeshConfig,
    istio::extension_provider::{ExtensionProvider, RequestBody},
    scalar::Duration,
};
use carrick_base::{Diagnostic, FieldPath, Hostname, ObjectRef, Severity};

use super::{is_header_name, traffic};
use crate::{
    codes,
    model::{
        Service,
        authz::{Authorizer, AuthorizerBody, AuthorizerKind, HttpAuthorizer, Text},
    },
    names,
};

/// Milliseconds an authorizer may take when nothing else is said.
const DEFAULT_TIMEOUT: u64 = 600_000;
const DEFAULT_STATUS: u16 = 403;

/// Authorizers by name.
pub type Authorizers = BTreeMap<Arc<str>, Arc<Authorizer>>;

pub(crate) fn read_all<'s>(
    config: &MeshConfig,
    service: impl Fn(&Hostname) -> Option<&'s Arc<Service>>,
    found: &mut Vec<Diagnostic>,
) -> Authorizers {
    let mut all = Authorizers::new();
    for (index, provider) in config.extension_providers.iter().enumerate() {
        match read(provider, &service) {
            Ok(Some(authorizer)) => {
                all.insert(authorizer.name.clone(), Arc::new(authorizer));
            }
            Ok(None) => {}
            Err(reason) => found.push(Diagnostic {
                code: codes::UNREADABLE,
                severity: Severity::Error,
                object: ObjectRef::new("MeshConfig", "", "mesh"),
                field: FieldPath::new("extensionProviders").index(index),
                message: format!("{reason}; policies that name {:?} deny", provider.name),
            }),
        }
    }
    all
}

fn read<'s>(
    from: &ExtensionProvider,
    service: &impl Fn(&Hostname) -> Option<&'s Arc<Service>>,
) -> Result<Option<Authorizer>, String> {
    if let Some(http) = &from.envoy_ext_authz_http {
        let target = Target::of(&http.service, http.port, service)?;
        let headers = |all: &[String]| all.iter().filter(|h| !h.is_empty()).map(|h| Text::parse(h)).collect();
        let asked = if http.include_request_headers_in_check.is_empty() {
            &http.include_headers_in_check
        } else {
            &http.include_request_headers_in_check
        };
        let more = http.include_additional_headers_in_check.iter().filter(|(name, _)| is_header_name(name));
        if !http.path_prefix.is_empty() && !http.path_prefix.starts_with('/') {
            return Err(format!("pathPrefix {:?} does not begin with a slash", http.path_prefix));
        }
        let kind = AuthorizerKind::Http(HttpAuthorizer {
            path_prefix: http.path_prefix.as_str().into(),
            request_headers: headers(asked),
            more_headers: more.map(|(n, v)| (n.as_str().into(), v.as_str().into())).collect(),
            to_upstream: headers(&http.headers_to_upstream_on_allow),
            to_downstream_on_deny: headers(&http.headers_to_downstream_on_deny),
            to_downstream_on_allow: headers(&http.headers_to_downstream_on_allow),
        });
        return Ok(Some(Authorizer {
            name: from.name.as_str().into(),
            timeout: timeout(http.timeout),
            fail_open: http.fail_open,
            clear_route_cache: http.clear_route_cache,
            status_on_error: status(&http.status_on_error)?,
            body: http.include_request_body_in_check.as_ref().map(body).transpose()?,
            kind,
            cluster: target.cluster,
            host: target.host,
            port: target.port,
        }));
    }
    let Some(grpc) = &from.envoy_ext_authz_grpc else { return Ok(None) };
    let target = Target::of(&grpc.service, grpc.port, service)?;
    Ok(Some(Authorizer {
        name: from.name.as_str().into(),
        timeout: timeout(grpc.timeout),
        fail_open: grpc.fail_open,
        clear_route_cache: grpc.clear_route_cache,
        status_on_error: status(&grpc.status_on_error)?,
        body: grpc.include_request_body_in_check.as_ref().map(body).transpose()?,
        kind: AuthorizerKind::Grpc,
        cluster: target.cluster,
        host: target.host,
        port: target.port,
    }))
}

/// A service that the mesh's configuration names.
pub(super) struct Target {
    pub cluster: Arc<str>,
    pub host: Arc<str>,
    pub port: u16,
}

impl Target {
    /// `host` or `namespace/host`, which must be a service with that port.
    pub fn of<'s>(
        written: &str,
        port: u32,
        service: &impl Fn(&Hostname) -> Option<&'s Arc<Service>>,
    ) -> Result<Self, String> {
        let (namespace, host) = match written.split_once('/') {
            Some((namespace, host)) => (Some(namespace), host),
            None => (None, written),
        };
        let port = u16::try_from(port).ok().filter(|p| *p > 0).ok_or_else(|| format!("{port} is no port"))?;
        let host = Hostname::new(host);
        let known = service(&host).filter(|s| namespace.is_none_or(|n| **s.namespace() == *n));
        let Some(known) = known else { return Err(format!("there is no service {written}")) };
        if known.port(port).is_none() {
            return Err(format!("{written} has no port {port}"));
        }
        Ok(Self { cluster: names::outbound_cluster(port, "", &host), host: host.as_str().into(), port })
    }
}

fn timeout(from: Option<Duration>) -> u64 {
    from.map(traffic::millis).filter(|ms| *ms > 0).unwrap_or(DEFAULT_TIMEOUT)
}

fn status(text: &str) -> Result<u16, String> {
    if text.is_empty() {
        return Ok(DEFAULT_STATUS);
    }
    let known = |code: &u16| (200..=511).contains(code);
    text.parse().ok().filter(known).ok_or_else(|| format!("statusOnError {text:?} is no status"))
}

fn body(from: &RequestBody) -> Result<AuthorizerBody, String> {
    if from.max_request_bytes == 0 {
        return Err("maxRequestBytes must be positive".to_owned());
    }
    Ok(AuthorizerBody {
        max_bytes: from.max_request_bytes,
        partial: from.allow_partial_message,
        as_bytes: from.pack_as_bytes,
    })
}
