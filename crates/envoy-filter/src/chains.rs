//! FILTER_CHAIN, NETWORK_FILTER, HTTP_FILTER, and routes that stand inside of a connection manager.

use carrick_api::istio::envoy_filter::{ApplyTo, ConfigPatch, PatchOperation};
use envoy_types::pb::{
    envoy::{
        config::listener::v3::{Filter, FilterChain, Listener, filter},
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, HttpFilter, http_connection_manager::RouteSpecifier,
        },
    },
    google::protobuf::Any,
};
use prost::{Message, Name};

use crate::{list, routes, select};

const MANAGER: &str = "envoy.filters.network.http_connection_manager";
const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";
const ROUTER: &str = "envoy.filters.http.router";

/// Applies a patch to the chains of a listener; `port` narrows it to chains of one destination port.
pub(crate) fn patch(listener: &mut Listener, patch: &ConfigPatch, port: u32) -> Result<bool, String> {
    let wanted = patch.matches.listener.as_ref().and_then(|l| l.filter_chain.as_ref());
    if patch.apply_to == ApplyTo::FilterChain {
        let matched = |c: &FilterChain| select::chain(c, wanted, port);
        // A chain is added to the listener, whatever its other chains are.
        let adds = patch.patch.operation == PatchOperation::Add;
        return list::edit(&mut listener.filter_chains, &patch.patch, (!adds).then_some(&matched as _), &|_| false);
    }
    let mut touched = false;
    for chain in listener.filter_chains.iter_mut().chain(&mut listener.default_filter_chain) {
        if !select::chain(chain, wanted, port) {
            continue;
        }
        touched |= match patch.apply_to {
            ApplyTo::NetworkFilter => {
                let named = wanted.and_then(|w| w.filter.as_ref()).map(|f| f.name.as_str()).filter(|n| !n.is_empty());
                let matched = |f: &Filter| named.is_some_and(|n| select::same_filter(n, &f.name));
                let terminal = |f: &Filter| f.name == MANAGER || f.name == TCP_PROXY;
                list::edit(&mut chain.filters, &patch.patch, named.map(|_| &matched as _), &terminal)?
            }
            _ => managers(chain, patch)?,
        };
    }
    Ok(touched)
}

/// What is inside of connection managers: HTTP filters, and routes that do not come by RDS.
fn managers(chain: &mut FilterChain, patch: &ConfigPatch) -> Result<bool, String> {
    let wanted = patch.matches.listener.as_ref().and_then(|l| l.filter_chain.as_ref()).and_then(|c| c.filter.as_ref());
    if wanted.is_some_and(|w| !w.name.is_empty() && !select::same_filter(&w.name, MANAGER)) {
        return Ok(false);
    }
    let mut touched = false;
    for filter in chain.filters.iter_mut().filter(|f| f.name == MANAGER) {
        let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
        let mut manager = HttpConnectionManager::decode(&*any.value).map_err(|e| e.to_string())?;
        let changed = if patch.apply_to == ApplyTo::HttpFilter {
            let sub = wanted.and_then(|w| w.sub_filter.as_ref()).map(|s| s.name.as_str()).filter(|n| !n.is_empty());
            let matched = |f: &HttpFilter| sub.is_some_and(|n| select::same_filter(n, &f.name));
            list::edit(&mut manager.http_filters, &patch.patch, sub.map(|_| &matched as _), &|f| f.name == ROUTER)?
        } else if let Some(RouteSpecifier::RouteConfig(table)) = &mut manager.route_specifier {
            routes::table(table, patch)?
        } else {
            false
        };
        if changed {
            let any = Any { type_url: HttpConnectionManager::type_url(), value: manager.encode_to_vec() };
            filter.config_type = Some(filter::ConfigType::TypedConfig(any));
            touched = true;
        }
    }
    Ok(touched)
}
