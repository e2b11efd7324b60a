//! The kinds with a rule or two: namespaces, secrets, config maps, roles and bindings.
//!
//! Invariant: nobody grants what they do not have, unless the verbs `escalate` or `bind` say that they may.

use serde_json::{Value, json};

use super::{check, default, section, text};
use crate::admission::AdmitContext;
use crate::error::{ApiError, ApiResult, Cause};
use crate::rbac::{PolicyRule, Rbac};
use crate::store::name_of;

/// Namespaces that the server itself needs.
const UNDELETABLE: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Largest sum of a secret's or config map's values, in bytes.
const DATA_LIMIT: usize = 1 << 20;

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn check_delete(object: &Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let name = name_of(object);
    if context.resource == "namespaces" && UNDELETABLE.contains(&name) {
        return Err(ApiError::forbidden("namespaces", name, "this namespace may not be deleted"));
    }
    Ok(())
}

pub(super) fn namespace(object: &mut Value) {
    let name = name_of(object).to_owned();
    let deleting = object.pointer("/metadata/deletionTimestamp").is_some();
    if !name.is_empty()
        && let Some(labels) = section(object, "metadata").map(|m| m.entry("labels").or_insert_with(|| json!({})))
    {
        if labels.is_null() {
            *labels = json!({});
        }
        if let Some(labels) = labels.as_object_mut() {
            labels.insert("kubernetes.io/metadata.name".into(), name.into());
        }
    }
    if deleting {
        return;
    }
    if let Some(spec) = section(object, "spec") {
        let empty = spec.get("finalizers").and_then(Value::as_array).is_none_or(Vec::is_empty);
        if empty {
            spec.insert("finalizers".into(), json!(["kubernetes"]));
        }
    }
    if let Some(status) = section(object, "status") {
        default(status, "phase", "Active");
    }
}

/// A signing request says who made it, which is not the maker's to say, and never asks for something else.
pub(super) fn signing_request(object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let Some(map) = object.as_object_mut() else { return Ok(()) };
    match context.old {
        Some(old) => {
            map.insert("spec".to_owned(), old.get("spec").cloned().unwrap_or_default());
        }
        None => {
            if let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) {
                spec.insert("username".to_owned(), context.user.name.clone().into());
                spec.insert("groups".to_owned(), context.user.groups.clone().into());
                spec.shift_remove("extra");
                match context.user.uid.as_str() {
                    "" => drop(spec.shift_remove("uid")),
                    uid => drop(spec.insert("uid".to_owned(), uid.into())),
                }
            }
        }
    }
    let causes =
        if context.resource.ends_with(".k8s.io") && context.old.is_none() { unsigned(object) } else { Vec::new() };
    check(object, context, causes)
}

/// What nobody could sign.
fn unsigned(object: &Value) -> Vec<Cause> {
    use base64::Engine as _;
    const USAGES: [&str; 23] = [
        "any",
        "cert sign",
        "client auth",
        "code signing",
        "content commitment",
        "crl sign",
        "data encipherment",
        "decipher only",
        "digital signature",
        "email protection",
        "encipher only",
        "ipsec end system",
        "ipsec tunnel",
        "ipsec user",
        "key agreement",
        "key encipherment",
        "microsoft sgc",
        "netscape sgc",
        "ocsp signing",
        "s/mime",
        "server auth",
        "signing",
        "timestamping",
    ];
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let mut causes = Vec::new();
    let pem = base64::engine::general_purpose::STANDARD.decode(text("/spec/request")).unwrap_or_default();
    if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE REQUEST-----") {
        let why = "PEM block type must be CERTIFICATE REQUEST";
        causes.push(Cause::invalid("spec.request", &json!(text("/spec/request")), why));
    }
    let usages = object.pointer("/spec/usages").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if usages.is_empty() {
        causes.push(Cause::required("spec.usages", ""));
    }
    for (index, usage) in usages.iter().enumerate() {
        if !usage.as_str().is_some_and(|u| USAGES.contains(&u)) {
            causes.push(Cause::unsupported(format!("spec.usages[{index}]"), usage, &USAGES));
        }
    }
    let seconds = object.pointer("/spec/expirationSeconds").filter(|s| s.as_i64().is_some_and(|s| s < 600));
    if let Some(seconds) = seconds {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        causes.push(Cause::invalid("spec.expirationSeconds", seconds, why));
    }
    let signer = text("/spec/signerName");
    let good = signer.split_once('/').is_some_and(|(domain, path)| domain.contains('.') && !path.is_empty());
    if signer.is_empty() {
        causes.push(Cause::required("spec.signerName", ""));
    } else if !good {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        causes.push(Cause::invalid("spec.signerName", &json!(signer), why));
    }
    causes
}

pub(super) fn secret(object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    use base64::Engine as _;
    let Some(map) = object.as_object_mut() else { return Ok(()) };
    default(map, "type", "Opaque");
    // Plain texts are a convenience of writing: they are stored with the rest.
    if let Some(Value::Object(plain)) = map.shift_remove("stringData") {
        let data = map.entry("data").or_insert_with(|| json!({}));
        if data.is_null() {
            *data = json!({});
        }
        if let Some(data) = data.as_object_mut() {
            for (key, value) in plain {
                let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
                data.insert(key, encoded.into());
            }
        }
    }
    let mut causes = data_problems(object, &["data"]);
    if let Some(old) = context.old {
        if old.get("type") != object.get("type") {
            causes.push(Cause::invalid("type", object.get("type").unwrap_or(&Value::Null), "field is immutable"));
        }
        causes.extend(immutable_problems(object, old, &["data"]));
    }
    let basic = ["username", "password"];
    let named = |key: &str| object.get("data").and_then(|d| d.get(key)).is_some();
    if object.get("type").and_then(Value::as_str) == Some("kubernetes.io/basic-auth") && !basic.iter().any(|k| named(k))
    {
        causes.extend(basic.map(|key| Cause::required(format!("data[{key}]"), "")));
    }
    if object.get("type").and_then(Value::as_str) == Some("kubernetes.io/service-account-token") {
        const ACCOUNT: &str = "kubernetes.io/service-account.name";
        if object.pointer("/metadata/annotations").and_then(|a| a.get(ACCOUNT)).is_none() {
            causes.push(Cause::required(format!("metadata.annotations[{ACCOUNT}]"), ""));
        }
    }
    for (type_, keys) in [
        ("kubernetes.io/tls", &["tls.crt", "tls.key"][..]),
        ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"][..]),
        ("kubernetes.io/dockercfg", &[".dockercfg"][..]),
        ("kubernetes.io/ssh-auth", &["ssh-privatekey"][..]),
    ] {
        if object.get("type").and_then(Value::as_str) == Some(type_) {
            let missing = keys.iter().filter(|key| object.get("data").and_then(|d| d.get(**key)).is_none());
            causes.extend(missing.map(|key| Cause::required(format!("data[{key}]"), "")));
        }
    }
    causes.extend(unread_docker(object));
    check(object, context, causes)
}

/// What a registry's credentials are in is JSON.
fn unread_docker(object: &Value) -> Option<Cause> {
    use base64::Engine as _;
    let key = match object.get("type").and_then(Value::as_str)? {
        "kubernetes.io/dockerconfigjson" => ".dockerconfigjson",
        "kubernetes.io/dockercfg" => ".dockercfg",
        _ => return None,
    };
    let text = object.get("data")?.get(key)?.as_str()?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    let why = match serde_json::from_slice::<Value>(&bytes) {
        Ok(_) => return None,
        Err(error) if error.is_eof() => "unexpected end of JSON input".to_owned(),
        Err(_) => match bytes.first() {
            Some(first) => format!("invalid character {:?} looking for beginning of value", char::from(*first)),
            None => "unexpected end of JSON input".to_owned(),
        },
    };
    let hidden = Value::String("<secret contents redacted>".to_owned());
    Some(Cause::invalid(format!("data[{key}]"), &hidden, why))
}

pub(super) fn config_map(object: &Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let mut causes = data_problems(object, &["data", "binaryData"]);
    for key in object.get("data").and_then(Value::as_object).into_iter().flat_map(|map| map.keys()) {
        if object.get("binaryData").and_then(|b| b.get(key)).is_some() {
            let why = "duplicate of key present in binaryData";
            causes.push(Cause::invalid(format!("data[{key}]"), &json!(key), why));
        }
    }
    if let Some(old) = context.old {
        causes.extend(immutable_problems(object, old, &["data", "binaryData"]));
    }
    check(object, context, causes)
}

fn data_problems(object: &Value, fields: &[&str]) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut size = 0usize;
    for field in fields {
        for (key, value) in object.get(*field).and_then(Value::as_object).into_iter().flatten() {
            size = size.saturating_add(value.as_str().map_or(0, str::len));
            let good = !key.is_empty() && key.len() <= 253 && key != "." && !key.starts_with("..");
            if !good || !key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
                let why = match key.as_str() {
                    "." => "must not be '.'".to_owned(),
                    ".." => "must not be '..'".to_owned(),
                    _ if key.starts_with("..") => "must not start with '..'".to_owned(),
                    _ => "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".to_owned(),
                };
                causes.push(Cause::invalid(format!("{field}[{key}]"), &json!(key), why));
            }
        }
    }
    if size > DATA_LIMIT.saturating_mul(4) / 3 {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {DATA_LIMIT} bytes"),
            field: "data".into(),
        });
    }
    causes
}

fn immutable_problems(object: &Value, old: &Value, fields: &[&str]) -> Vec<Cause> {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return Vec::new();
    }
    let mut causes = Vec::new();
    if object.get("immutable") != Some(&Value::Bool(true)) {
        causes.push(Cause::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    let changed = fields.iter().filter(|f| object.get(**f) != old.get(**f));
    causes.extend(changed.map(|f| Cause::forbidden(*f, "field is immutable when `immutable` is set")));
    causes
}

/// Rules that could never be about anything.
fn useless(object: &Value, namespaced: bool) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (index, rule) in object.get("rules").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let at = |field: &str| format!("rules[{index}].{field}");
        let list = |field: &str| rule.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if list("verbs").is_empty() {
            causes.push(Cause::required(at("verbs"), "verbs must contain at least one value"));
        }
        let urls = list("nonResourceURLs");
        if !urls.is_empty() {
            let resources = ["apiGroups", "resources", "resourceNames"].iter().any(|field| !list(field).is_empty());
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                causes.push(Cause::invalid(at("nonResourceURLs"), &json!(urls), why));
            } else if resources {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                causes.push(Cause::invalid(at("nonResourceURLs"), &json!(urls), why));
            }
            continue;
        }
        if list("apiGroups").is_empty() {
            causes.push(Cause::required(at("apiGroups"), "resource rules must supply at least one api group"));
        }
        if list("resources").is_empty() {
            causes.push(Cause::required(at("resources"), "resource rules must supply at least one resource"));
        }
    }
    causes
}

pub(super) fn check_role(rbac: &Rbac, object: &Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    check(object, context, useless(object, context.resource.starts_with("roles.")))?;
    let rules = PolicyRule::list(object);
    let same =
        |old: &Value| PolicyRule::list(old) == rules && old.get("aggregationRule") == object.get("aggregationRule");
    let unchanged = context.old.is_some_and(same);
    let resource = context.resource.split('.').next().unwrap_or_default();
    if unchanged || rbac.may(context.user, "escalate", RBAC, resource, context.namespace, name_of(object)) {
        return Ok(());
    }
    let combined = |role: &Value| role.get("aggregationRule").cloned().unwrap_or(Value::Null);
    if !combined(object).is_null() && context.old.is_none_or(|old| combined(old) != combined(object)) {
        let all = PolicyRule::list(&json!({"rules": [
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["*"], "nonResourceURLs": ["*"]},
        ]}));
        if !rbac.not_covered(context.user, context.namespace, &all).is_empty() {
            let why = "must have cluster-admin privileges to use the aggregationRule";
            return Err(ApiError::forbidden(context.resource, name_of(object), why));
        }
    }
    covered(rbac, &rules, object, context)
}

pub(super) fn binding(rbac: &Rbac, object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    if let Some(reference) = section(object, "roleRef") {
        default(reference, "apiGroup", RBAC);
    }
    for subject in
        object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
    {
        if matches!(text(subject, "kind"), "User" | "Group") {
            default(subject, "apiGroup", RBAC);
        }
    }
    let mut causes = Vec::new();
    let reference =
        |name: &str| object.pointer(&format!("/roleRef/{name}")).and_then(Value::as_str).unwrap_or_default();
    if reference("apiGroup") != RBAC {
        causes.push(Cause::unsupported("roleRef.apiGroup", &json!(reference("apiGroup")), &[RBAC]));
    }
    let kinds: &[&str] =
        if context.resource.starts_with("rolebindings.") { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&reference("kind")) {
        causes.push(Cause::unsupported("roleRef.kind", &json!(reference("kind")), kinds));
    }
    if reference("name").is_empty() {
        causes.push(Cause::required("roleRef.name", ""));
    }
    for (index, subject) in object.get("subjects").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let at = |name: &str| format!("subjects[{index}].{name}");
        let field = |name: &str| subject.get(name).and_then(Value::as_str).unwrap_or_default();
        if field("name").is_empty() {
            causes.push(Cause::required(at("name"), ""));
        }
        match field("kind") {
            "ServiceAccount" => {
                let broken = super::rules::held(subject, "name", super::rules::Rule::Subdomain);
                causes.extend(broken.into_iter().map(|cause| Cause { field: at("name"), ..cause }));
                if field("namespace").is_empty() && kinds.len() == 1 {
                    causes.push(Cause::required(at("namespace"), ""));
                }
            }
            "User" | "Group" => {
                if field("apiGroup") != RBAC {
                    causes.push(Cause::unsupported(at("apiGroup"), &json!(field("apiGroup")), &[RBAC]));
                }
            }
            other => {
                let known = ["ServiceAccount", "User", "Group"];
                causes.push(Cause::unsupported(at("kind"), &json!(other), &known));
            }
        }
    }
    if let Some(old) = context.old
        && old.get("roleRef") != object.get("roleRef")
    {
        let shown = json!({
            "APIGroup": reference("apiGroup"), "Kind": reference("kind"), "Name": reference("name"),
        });
        causes.push(Cause::invalid("roleRef", &shown, "cannot change roleRef"));
    }
    check(object, context, causes)?;
    let unchanged = context.old.is_some_and(|old| old.get("subjects") == object.get("subjects"));
    let role = object.pointer("/roleRef/name").and_then(Value::as_str).unwrap_or_default();
    let cluster = object.pointer("/roleRef/kind").and_then(Value::as_str) == Some("ClusterRole");
    let resource = if cluster { "clusterroles" } else { "roles" };
    if unchanged || rbac.may(context.user, "bind", RBAC, resource, context.namespace, role) {
        return Ok(());
    }
    let found = if cluster {
        context.store.get("clusterroles.rbac.authorization.k8s.io", "", role)
    } else {
        context.store.get("roles.rbac.authorization.k8s.io", context.namespace, role)
    };
    match found {
        Some(found) => covered(rbac, &PolicyRule::list(&found), object, context),
        // What a role will say once it exists nobody can have now.
        None => Err(ApiError::not_found(
            &format!("{}.{RBAC}", context.resource.split('.').next().unwrap_or_default()),
            role,
        )),
    }
}

fn covered(rbac: &Rbac, rules: &[PolicyRule], object: &Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let missing = rbac.not_covered(context.user, context.namespace, rules);
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = context.user.groups.iter().map(|group| format!("{group:?}")).collect();
    let why = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        context.user.name,
        groups.join(" "),
        missing.join("\n")
    );
    Err(ApiError::forbidden(context.resource, name_of(object), why))
}
