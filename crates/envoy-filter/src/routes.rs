//! ROUTE_CONFIGURATION, VIRTUAL_HOST, HTTP_ROUTE.

use carrick_api::{
    EnvoyFilter,
    istio::envoy_filter::{ApplyTo, ConfigPatch, PatchOperation},
};
use envoy_types::pb::{
    envoy::config::route::v3::{Route, RouteConfiguration, VirtualHost},
    google::protobuf::Any,
};
use prost::{Message, Name};

use crate::{
    Change, Target, list,
    select::{self, Side},
    value,
};

fn concerns_routes(patch: &ConfigPatch) -> bool {
    matches!(patch.apply_to, ApplyTo::RouteConfiguration | ApplyTo::VirtualHost | ApplyTo::HttpRoute)
}

/// Tables that come by RDS: of the client's side, and of gateways.
pub(crate) fn patch(body: &Any, filter: &EnvoyFilter, target: &Target) -> Result<Change, String> {
    let mut patches = filter.spec.config_patches.iter().filter(|p| concerns_routes(p)).peekable();
    if patches.peek().is_none() {
        return Ok(Change::Nothing);
    }
    let mut table = RouteConfiguration::decode(&*body.value).map_err(|e| e.to_string())?;
    let mut touched = false;
    for patch in patches.filter(|p| select::context(p, target, Side::Outbound)) {
        touched |= self::table(&mut table, patch)?;
    }
    let value = table.encode_to_vec();
    Ok(if touched { Change::To(Any { type_url: RouteConfiguration::type_url(), value }) } else { Change::Nothing })
}

/// Applies a patch to one table.
pub(crate) fn table(table: &mut RouteConfiguration, patch: &ConfigPatch) -> Result<bool, String> {
    let wanted = patch.matches.route_configuration.as_ref();
    if !select::table(&table.name, wanted) {
        return Ok(false);
    }
    let adds = patch.patch.operation == PatchOperation::Add;
    match patch.apply_to {
        ApplyTo::RouteConfiguration if value::merges(patch.patch.operation) => {
            *table = value::merged(table, &patch.patch)?;
            Ok(true)
        }
        ApplyTo::VirtualHost => {
            let matched = |h: &VirtualHost| select::virtual_host(h, wanted);
            list::edit(&mut table.virtual_hosts, &patch.patch, (!adds).then_some(&matched as _), &|_| false)
        }
        ApplyTo::HttpRoute => {
            let mut touched = false;
            for host in table.virtual_hosts.iter_mut().filter(|h| select::virtual_host(h, wanted)) {
                let matched = |r: &Route| select::route(r, wanted);
                let inserts =
                    matches!(patch.patch.operation, PatchOperation::InsertBefore | PatchOperation::InsertAfter);
                let named = !adds && (!inserts || select::names_route(wanted));
                touched |= list::edit(&mut host.routes, &patch.patch, named.then_some(&matched as _), &|_| false)?;
            }
            Ok(touched)
        }
        _ => Ok(false),
    }
}
