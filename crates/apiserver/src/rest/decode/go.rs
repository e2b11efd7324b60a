//! What Kubernetes' reader says of a value of a wrong type: Go's words, with Go's names of types and fields.
//!
//! Invariant: whatever the path, there is an answer; a path that leads nowhere is told as the schema told it.

use super::go_name;
use crate::error::Cause;
use carrick_api::schema::{Schema, Type};
use serde_json::Value;

/// The sentence for a finding of the schema about `object`.
pub fn unread(schema: &Schema, object: &Value, cause: &Cause) -> String {
    told(schema, object, &cause.field).unwrap_or_else(|| format!("{}: {}", cause.field, cause.message))
}

fn told(schema: &Schema, object: &Value, path: &str) -> Option<String> {
    let definitions = schema.definitions();
    let (mut owner, mut ty) = (last(schema.root_name()), definitions.get(schema.root_name())?);
    let (mut value, mut fields, mut rest) = (object, Vec::new(), path);
    while !rest.is_empty() {
        while let Type::Ref(name) = ty {
            (owner, ty) = (last(name), definitions.get(name)?);
        }
        match ty {
            Type::Object(shape) => {
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                let (name, left) = rest.split_at(end);
                (ty, value) = (&shape.fields.get(name)?.ty, value.get(name)?);
                fields.push(name);
                rest = left.strip_prefix('.').unwrap_or(left);
            }
            Type::List { items, .. } => {
                let (index, left) = rest.strip_prefix('[')?.split_once(']')?;
                (ty, value) = (items, value.get(index.parse::<usize>().ok()?)?);
                rest = left.strip_prefix('.').unwrap_or(left);
            }
            // A key may hold anything; what follows it is found by trying.
            Type::Map { values, .. } => {
                let map = value.as_object()?;
                let (key, found) =
                    map.iter().filter(|(key, _)| rest.starts_with(key.as_str())).max_by_key(|(k, _)| k.len())?;
                (ty, value) = (values, found);
                rest = rest.get(key.len()..)?.trim_start_matches('.');
            }
            _ => return None,
        }
    }
    // The types that read themselves have words of their own.
    let plain = match ty {
        Type::Ref(name) => definitions.get(name).unwrap_or(ty),
        other => other,
    };
    match (plain, value) {
        (Type::Quantity, Value::String(_)) => {
            return Some(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".into(),
            );
        }
        (Type::Bytes, Value::String(text)) => {
            let wrong =
                text.bytes().position(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'\n')));
            return Some(format!("illegal base64 data at input byte {}", wrong.unwrap_or(text.len() / 4 * 4)));
        }
        (Type::Time, Value::String(text)) => {
            let layout = "2006-01-02T15:04:05Z07:00";
            return Some(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""));
        }
        (Type::IntOrString | Type::Quantity | Type::Time, _) => return None,
        _ => {}
    }
    let found = match value {
        Value::Number(number) if number.is_f64() && matches!(plain, Type::Int(_)) => format!("number {number}"),
        other => go_name(other).to_owned(),
    };
    let wanted = type_name(ty)?;
    Some(format!("json: cannot unmarshal {found} into Go struct field {owner}.{} of type {wanted}", fields.join(".")))
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// What Go calls a type.
fn type_name(ty: &Type) -> Option<String> {
    Some(match ty {
        Type::String | Type::Enum(_) => "string".into(),
        Type::Bool => "bool".into(),
        Type::Int(range) => if range.format == "int64" { "int64" } else { "int32" }.into(),
        Type::Number => "float64".into(),
        Type::Bytes => "[]uint8".into(),
        Type::List { items, .. } => format!("[]{}", type_name(items)?),
        Type::Map { values, .. } => format!("map[string]{}", type_name(values)?),
        Type::Ref(name) => {
            let mut parts = name.rsplit('.');
            let (kind, version) = (parts.next()?, parts.next()?);
            match kind {
                "Quantity" => "resource.Quantity".into(),
                "IntOrString" => "intstr.IntOrString".into(),
                _ => format!("{version}.{kind}"),
            }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use serde_json::json;

    #[test]
    fn as_go_tells_it() {
        let catalog = Catalog::of(carrick_api::kinds::registry());
        for (resource, object, told) in [
            (
                "configmaps",
                json!({"data": {"a": 1}}),
                "json: cannot unmarshal number into Go struct field ConfigMap.data of type string",
            ),
            (
                "configmaps",
                json!({"data": []}),
                "json: cannot unmarshal array into Go struct field ConfigMap.data of type map[string]string",
            ),
            (
                "configmaps",
                json!({"metadata": {"name": 1}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string",
            ),
            (
                "configmaps",
                json!({"metadata": "x"}),
                "json: cannot unmarshal string into Go struct field ConfigMap.metadata of type v1.ObjectMeta",
            ),
            (
                "deployments.apps",
                json!({"spec": {"replicas": "3"}}),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                "deployments.apps",
                json!({"spec": {"template": {"spec": {"containers": [{"ports": [{"containerPort": "80"}]}]}}}}),
                "json: cannot unmarshal string into Go struct field ContainerPort.spec.template.spec.containers.ports.containerPort of type int32",
            ),
            (
                "pods",
                json!({"spec": {"containers": {}}}),
                "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
        ] {
            let resource = catalog.get(resource).unwrap();
            let mut object = object;
            let wrong = super::super::inspect(&resource, "v1", &mut object, &[]).wrong;
            assert_eq!(unread(resource.schema("v1"), &object, wrong.first().unwrap()), told);
        }
    }
}
