//! Services: defaults, rules, cluster IPs and node ports.
//!
//! Invariant: an address is claimed only after everything else about the service is right, and never changes while the
//! service has one.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Map, Value, json};

use super::{DNS_LABEL, PORT_RANGE, check, default, invalid, is_dns_label, is_port_name, rules, section, text};
use crate::admission::{AdmitContext, Operation};
use crate::controllers::addresses::{Addresses, Claim, ClaimError};
use crate::error::{ApiResult, Cause};
use crate::store::{name_of, namespace_of};

pub(super) fn admit(
    addresses: &Addresses,
    object: &mut Value,
    operation: Operation,
    context: &AdmitContext<'_>,
) -> ApiResult<()> {
    let old = context.old.filter(|_| operation == Operation::Update);
    fill_in(object, old);
    check(object, context, problems(object, old))?;
    claim(addresses, object, context)
}

fn fill_in(object: &mut Value, old: Option<&Value>) {
    let Some(spec) = section(object, "spec") else { return };
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    let type_ = text(spec, "type").to_owned();
    drop_fields_of_other_types(spec, &type_, old);
    if let Some(Value::Array(ports)) = spec.get_mut("ports") {
        ports.iter_mut().filter_map(Value::as_object_mut).for_each(fill_in_port);
    }
    if type_ != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
        keep_addresses(spec, old);
        mirror_addresses(spec, old);
        default(spec, "ipFamilies", json!(["IPv4"]));
        default(spec, "ipFamilyPolicy", "SingleStack");
    }
    if matches!(type_.as_str(), "NodePort" | "LoadBalancer") {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if type_ == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    if text(spec, "sessionAffinity") == "ClientIP" {
        default(spec, "sessionAffinityConfig", json!({ "clientIP": { "timeoutSeconds": 10800 } }));
    }
    if let Some(status) = section(object, "status") {
        default(status, "loadBalancer", json!({}));
    }
}

fn fill_in_port(port: &mut Map<String, Value>) {
    default(port, "protocol", "TCP");
    let unset = match port.get("targetPort") {
        None | Some(Value::Null) => true,
        Some(value) => value.as_i64() == Some(0) || value.as_str() == Some(""),
    };
    if unset && let Some(number) = port.get("port").cloned() {
        port.insert("targetPort".into(), number);
    }
}

/// A change of the type takes along what only the old type had, unless the client set it anew.
fn drop_fields_of_other_types(spec: &mut Map<String, Value>, type_: &str, old: Option<&Value>) {
    let Some(old) = old.and_then(|o| o.get("spec")) else { return };
    let mut unless_new = |fields: &[&str]| {
        for field in fields {
            if spec.get(*field).is_some() && spec.get(*field) == old.get(*field) {
                spec.shift_remove(*field);
            }
        }
    };
    if type_ == "ExternalName" {
        unless_new(&["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
    }
    if matches!(type_, "ExternalName" | "ClusterIP") {
        unless_new(&["externalTrafficPolicy", "allocateLoadBalancerNodePorts"]);
    }
}

/// A client that leaves an address out of an update means the one the service has.
fn keep_addresses(spec: &mut Map<String, Value>, old: Option<&Value>) {
    let Some(old) = old.and_then(|o| o.get("spec")).and_then(Value::as_object) else { return };
    if text(old, "type") == "ExternalName" {
        return;
    }
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let empty = match spec.get(field) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(_) => false,
        };
        if empty && let Some(value) = old.get(field) {
            spec.insert(field.into(), value.clone());
        }
    }
    keep_node_ports(spec, old);
}

fn keep_node_ports(spec: &mut Map<String, Value>, old: &Map<String, Value>) {
    if !matches!(text(spec, "type"), "NodePort" | "LoadBalancer") {
        return;
    }
    let old_ports = old.get("ports").and_then(Value::as_array).cloned().unwrap_or_default();
    for port in
        spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
    {
        let same = |o: &&Value| o.get("port") == port.get("port") && o.get("protocol") == port.get("protocol");
        let known = old_ports.iter().find(same).and_then(|o| o.get("nodePort")).cloned();
        if let Some(known) = known {
            default(port, "nodePort", known);
        }
    }
}

/// `clusterIP` and `clusterIPs` say the same thing; whichever is given fills in the other.
fn mirror_addresses(spec: &mut Map<String, Value>, old: Option<&Value>) {
    // Whoever changes the one alone means both.
    let had = |field: &str| old.and_then(|old| old.pointer(&format!("/spec/{field}")));
    if had("clusterIPs").is_some()
        && had("clusterIPs") == spec.get("clusterIPs")
        && had("clusterIP") != spec.get("clusterIP")
    {
        let one = text(spec, "clusterIP").to_owned();
        spec.insert("clusterIPs".into(), if one.is_empty() { json!([]) } else { json!([one]) });
    }
    let list: Vec<Value> = spec.get("clusterIPs").and_then(Value::as_array).cloned().unwrap_or_default();
    let one = text(spec, "clusterIP").to_owned();
    if one.is_empty() {
        if let Some(first) = list.first().and_then(Value::as_str).filter(|ip| !ip.is_empty()) {
            spec.insert("clusterIP".into(), first.into());
        }
    } else if list.is_empty() {
        spec.insert("clusterIPs".into(), json!([one]));
    }
}

fn problems(object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let empty = Map::new();
    let spec = object.get("spec").and_then(Value::as_object).unwrap_or(&empty);
    let type_ = text(spec, "type");
    if !matches!(type_, "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        causes.push(Cause {
            reason: "FieldValueNotSupported",
            message: format!("Unsupported value: {type_:?}: supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""),
            field: "spec.type".into(),
        });
    }
    let cluster_ip = text(spec, "clusterIP");
    if type_ == "ExternalName" {
        if text(spec, "externalName").is_empty() {
            causes.push(Cause::required("spec.externalName", ""));
        }
        // A dot at the end is a name's root.
        let bare = json!({"name": text(spec, "externalName").trim_end_matches('.')});
        causes.extend(
            rules::held(&bare, "name", rules::Rule::Subdomain)
                .into_iter()
                .map(|cause| Cause { field: "spec.externalName".into(), ..cause }),
        );
        if !cluster_ip.is_empty() {
            causes.push(Cause::forbidden("spec.clusterIPs", "may not be set for ExternalName services"));
        }
    }
    check_address(spec, old, &mut causes);
    if type_ != "ExternalName" && cluster_ip == "None" && type_ != "ClusterIP" {
        causes.push(Cause::invalid(
            "spec.clusterIPs[0]",
            &json!("None"),
            format!("may not be set to 'None' for {type_} services"),
        ));
    }
    let ports = spec.get("ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && type_ != "ExternalName" && cluster_ip != "None" {
        causes.push(Cause::required("spec.ports", ""));
    }
    check_ports(ports, &mut causes);
    causes.extend(rules::broken("services", object));
    causes
}

fn check_address(spec: &Map<String, Value>, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let cluster_ip = text(spec, "clusterIP");
    let list = spec.get("clusterIPs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if !cluster_ip.is_empty() && cluster_ip != "None" {
        match cluster_ip.parse() {
            Ok(IpAddr::V4(_)) => {}
            Ok(IpAddr::V6(_)) => {
                causes.push(Cause::invalid(
                    "spec.clusterIPs[0]",
                    &json!(cluster_ip),
                    "IPv6 is not configured on this cluster",
                ));
            }
            Err(_) => causes.push(Cause::invalid(
                "spec.clusterIPs[0]",
                &json!(cluster_ip),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            )),
        }
    }
    if let Some(first) = list.first()
        && first.as_str() != Some(cluster_ip)
    {
        causes.push(Cause::invalid("spec.clusterIPs", &Value::from(list), "first value must match `clusterIP`"));
    }
    if list.len() > 1 {
        causes.push(Cause::invalid("spec.clusterIPs", &Value::from(list), "may only hold one address on this cluster"));
    }
    let old_ip = old.and_then(|o| o.pointer("/spec/clusterIP")).and_then(Value::as_str).unwrap_or_default();
    let old_type = old.and_then(|o| o.pointer("/spec/type")).and_then(Value::as_str).unwrap_or_default();
    let stays = old_type != "ExternalName" && text(spec, "type") != "ExternalName";
    if stays && !old_ip.is_empty() && cluster_ip != old_ip {
        causes.push(Cause::invalid("spec.clusterIPs[0]", &json!([cluster_ip]), "may not change once set"));
    }
}

fn check_ports(ports: &[Value], causes: &mut Vec<Cause>) {
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{index}].{field}");
        let field = |name: &str| port.get(name).cloned().unwrap_or(Value::Null);
        let name = port.get("name").and_then(Value::as_str).unwrap_or_default();
        if name.is_empty() {
            if ports.len() > 1 {
                causes.push(Cause::required(at("name"), ""));
            }
        } else if !is_dns_label(name) {
            causes.push(Cause::invalid(at("name"), &json!(name), DNS_LABEL));
        } else if !names.insert(name) {
            causes.push(duplicate(at("name"), &json!(name)));
        }
        let number = port.get("port").and_then(Value::as_u64).unwrap_or(0);
        if !(1..=65535).contains(&number) {
            causes.push(Cause::invalid(at("port"), &field("port"), PORT_RANGE));
        }
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or_default();
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            causes.push(Cause {
                reason: "FieldValueNotSupported",
                message: format!("Unsupported value: {protocol:?}: supported values: \"SCTP\", \"TCP\", \"UDP\""),
                field: at("protocol"),
            });
        }
        if !numbers.insert((number, protocol)) {
            let shown = json!({
                "Name": name, "Protocol": protocol, "AppProtocol": field("appProtocol"), "Port": number,
                "TargetPort": 0, "NodePort": 0,
            });
            causes.push(duplicate(format!("spec.ports[{index}]"), &shown));
        }
        match port.get("targetPort") {
            Some(Value::Number(n)) if !n.as_u64().is_some_and(|n| (1..=65535).contains(&n)) => {
                causes.push(Cause::invalid(at("targetPort"), &field("targetPort"), PORT_RANGE));
            }
            Some(Value::String(name)) if !is_port_name(name) => {
                let why = "must be no more than 15 characters, contain only alpha-numeric characters (a-z, 0-9), and hyphens ('-'), and at least one letter";
                causes.push(Cause::invalid(at("targetPort"), &field("targetPort"), why));
            }
            _ => {}
        }
        let node_port = port.get("nodePort").and_then(Value::as_u64).unwrap_or(0);
        if node_port != 0 && !node_ports.insert((node_port, protocol)) {
            causes.push(duplicate(at("nodePort"), &field("nodePort")));
        }
    }
}

fn duplicate(field: String, value: &Value) -> Cause {
    Cause { reason: "FieldValueDuplicate", message: format!("Duplicate value: {value}"), field }
}

/// Takes the addresses that the service asks for, and finds those that it needs.
fn claim(addresses: &Addresses, object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let namespace = namespace_of(object).to_owned();
    let name = match name_of(object) {
        "" => addresses.nameless(),
        name => name.to_owned(),
    };
    let namespace = if namespace.is_empty() { context.namespace.to_owned() } else { namespace };
    let promise = !context.dry_run;
    let Some(spec) = object.get("spec").and_then(Value::as_object).cloned() else { return Ok(()) };
    let type_ = text(&spec, "type");
    if type_ == "ExternalName" {
        return Ok(());
    }
    let cluster_ip = text(&spec, "clusterIP");
    if cluster_ip.is_empty() {
        let ip = addresses
            .find_ip(&namespace, &name, promise)?
            .map_err(|error| refused(object, context, "spec.clusterIPs[0]", &Value::Null, &error))?;
        if let Some(spec) = section(object, "spec") {
            spec.insert("clusterIP".into(), ip.to_string().into());
            spec.insert("clusterIPs".into(), json!([ip.to_string()]));
        }
    } else if let Ok(ip) = cluster_ip.parse::<Ipv4Addr>() {
        let taken = addresses.take(Claim::Ip(ip), &namespace, &name, promise)?;
        taken.map_err(|error| refused(object, context, "spec.clusterIPs", &json!([cluster_ip]), &error))?;
    }
    if matches!(type_, "NodePort" | "LoadBalancer") {
        claim_node_ports(addresses, object, context, (&namespace, &name), promise)?;
    } else if let Some(Value::Array(ports)) = section(object, "spec").and_then(|spec| spec.get_mut("ports")) {
        // A cluster IP service gives its node ports back.
        ports.iter_mut().filter_map(Value::as_object_mut).for_each(|port| _ = port.shift_remove("nodePort"));
    }
    Ok(())
}

fn claim_node_ports(
    addresses: &Addresses,
    object: &mut Value,
    context: &AdmitContext<'_>,
    (namespace, name): (&str, &str),
    promise: bool,
) -> ApiResult<()> {
    let mut ports = object.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut used: Vec<u16> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let Some(number) = port.get("nodePort").and_then(Value::as_u64).filter(|n| *n != 0) else { continue };
        let field = format!("spec.ports[{index}].nodePort");
        let claim = u16::try_from(number)
            .map_err(|_| refused(object, context, &field, &json!(number), &ClaimError::OutsidePorts))?;
        let taken = match addresses.take(Claim::NodePort(claim), namespace, name, promise)? {
            // A dry run asks only whether somebody has it.
            Err(ClaimError::OutsidePorts) if !promise => Ok(()),
            taken => taken,
        };
        taken.map_err(|error| refused(object, context, &field, &json!(number), &error))?;
        used.push(claim);
    }
    for (index, port) in ports.iter_mut().enumerate() {
        let Some(port) = port.as_object_mut() else { continue };
        if port.get("nodePort").and_then(Value::as_u64).unwrap_or(0) != 0 {
            continue;
        }
        let field = format!("spec.ports[{index}].nodePort");
        let found = addresses.find_node_port(namespace, name, &used, promise)?;
        let found = found.map_err(|error| refused(object, context, &field, &Value::Null, &error))?;
        used.push(found);
        port.insert("nodePort".into(), found.into());
    }
    if let Some(spec) = section(object, "spec") {
        spec.insert("ports".into(), Value::Array(ports));
    }
    Ok(())
}

fn refused(
    object: &Value,
    context: &AdmitContext<'_>,
    field: &str,
    value: &Value,
    error: &ClaimError,
) -> crate::error::ApiError {
    let ip = value.pointer("/0").and_then(Value::as_str).unwrap_or_default();
    let why = match error {
        // The first and the last address of the range are nobody's.
        ClaimError::OutsideNetwork if context.dry_run || ip.starts_with("10.96.") => {
            format!(
                "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is 10.96.0.0/16"
            )
        }
        ClaimError::OutsideNetwork => {
            format!("failed to allocate IP {ip}: the provided network does not match the current range")
        }
        ClaimError::IpTaken => format!("failed to allocate IP {ip}: {error}"),
        _ => error.to_string(),
    };
    invalid(object, context, vec![Cause::invalid(field, value, why)])
}
