//! ValidatingAdmissionPolicies: rules in CEL that writes must pass, without anybody being asked.
//!
//! Invariant: a policy without a binding says nothing; one that cannot be evaluated refuses the write unless its `failurePolicy` is `Ignore`.
//! A variable that fails is one that is not there, so that only who uses it fails. What it leaves to others: the policies' own rules
//! (`controllers::admission`). The variable `authorizer` is not there.

use super::{Chosen, GROUP, Hook, Request, matching, review};
use crate::error::{ApiError, ApiResult};
use crate::store::name_of;
use kube_cel::KubeCelExt;
use kube_cel::cel::{Context, Program, Value as CelValue};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Policies.
pub const POLICIES: &str = "validatingadmissionpolicies.admissionregistration.k8s.io";
/// What puts them in force.
pub const BINDINGS: &str = "validatingadmissionpolicybindings.admissionregistration.k8s.io";

/// What a rule says of a write that does not pass it.
struct Refusal {
    message: String,
    reason: String,
}

impl Refusal {
    fn plain(message: String) -> Self {
        Self { message, reason: String::new() }
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// Asks every policy that is in force.
///
/// # Errors
/// What the first refusing policy says.
pub fn validate(
    request: &Request<'_>,
    object: Option<&Value>,
    old: Option<&Value>,
    warnings: &mut Vec<String>,
) -> ApiResult<()> {
    if request.resource.group == GROUP || request.store.engine().count(BINDINGS) == 0 {
        return Ok(());
    }
    let bindings = request.store.list(BINDINGS, None).items;
    let mut refused: Option<(String, Refusal)> = None;
    for policy in request.store.list(POLICIES, None).items {
        let name = name_of(&policy);
        let own = bindings.iter().filter(|b| text(b, "/spec/policyName") == name);
        for binding in own {
            let Some(version) = concerns(request, policy.pointer("/spec/matchConstraints"), object, old)? else {
                continue;
            };
            let narrowed = binding.pointer("/spec/matchResources");
            if narrowed.is_some() && concerns(request, narrowed, object, old)?.is_none() {
                continue;
            }
            let refusals = match parameters(request, &policy, binding) {
                Ok(all) => {
                    let judge = Judge { request, policy: &policy, version: &version };
                    all.iter().flat_map(|parameters| judge.refusals(object, old, parameters)).collect()
                }
                Err(_) if text(&policy, "/spec/failurePolicy") == "Ignore" => Vec::new(),
                Err(why) => vec![Refusal::plain(format!("failed to configure binding: {why}"))],
            };
            let actions = list(binding, "/spec/validationActions");
            for refusal in refusals {
                let by = format!("'{name}' with binding '{}'", name_of(binding));
                if actions.iter().any(|a| a == "Warn") {
                    warnings.push(format!("Validation failed for ValidatingAdmissionPolicy {by}: {}", refusal.message));
                }
                if actions.iter().any(|a| a == "Audit") {
                    tracing::info!(policy = name, why = %refusal.message, "a policy's audit finding");
                }
                if actions.iter().any(|a| a == "Deny") && refused.is_none() {
                    let message = format!("ValidatingAdmissionPolicy {by} denied request: {}", refusal.message);
                    refused = Some((message, refusal));
                }
            }
        }
    }
    let Some((message, refusal)) = refused else { return Ok(()) };
    Err(denied(request, object.or(old), &message, &refusal.reason))
}

fn denied(request: &Request<'_>, object: Option<&Value>, message: &str, reason: &str) -> ApiError {
    let (reason, code) = match reason {
        "Forbidden" => ("Forbidden", 403),
        "Unauthorized" => ("Unauthorized", 401),
        "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
        _ => ("Invalid", 422),
    };
    let name = if request.name.is_empty() { object.map_or("", name_of) } else { request.name };
    let refused = ApiError::forbidden(&request.resource.id, name, message);
    let mut status = refused.to_status();
    for (pointer, value) in [("/reason", json!(reason)), ("/code", json!(code))] {
        if let Some(place) = status.pointer_mut(pointer) {
            *place = value;
        }
    }
    if let Some(details) = status.get_mut("details").and_then(Value::as_object_mut) {
        details.insert("causes".into(), json!([{"message": message}]));
    }
    ApiError::Told { code, message: refused.to_string(), status: Box::new(status) }
}

/// The version in which a write is looked at, when it is one of those that `constraints` are about.
fn concerns(
    request: &Request<'_>,
    constraints: Option<&Value>,
    object: Option<&Value>,
    old: Option<&Value>,
) -> ApiResult<Option<String>> {
    let Some(constraints) = constraints else { return Ok(None) };
    let name = if request.name.is_empty() { object.or(old).map_or("", name_of) } else { request.name };
    let rules = |field: &str| -> Vec<Value> {
        let named = |rule: &&Value| {
            let names = list(rule, "/resourceNames");
            names.is_empty() || names.iter().any(|n| n == name)
        };
        list(constraints, field).iter().filter(named).cloned().collect()
    };
    let mut hook = constraints.clone();
    let Some(map) = hook.as_object_mut() else { return Ok(None) };
    map.insert("rules".into(), json!(rules("/excludeResourceRules")));
    if matching::version(request, &hook).is_some() {
        return Ok(None);
    }
    if let Some(map) = hook.as_object_mut() {
        map.insert("rules".into(), json!(rules("/resourceRules")));
    }
    // A binding may leave the choice of resources to its policy.
    let all = list(constraints, "/resourceRules").is_empty();
    let version = if all { Some(request.version.to_owned()) } else { matching::version(request, &hook) };
    let Some(version) = version else { return Ok(None) };
    Ok(matching::selected(request, &hook, object, old)?.then_some(version))
}

/// The objects that a policy is evaluated with, one after the other; `null` for a policy that has none.
fn parameters(request: &Request<'_>, policy: &Value, binding: &Value) -> Result<Vec<Value>, String> {
    let Some(kind) = policy.pointer("/spec/paramKind").filter(|k| k.is_object()) else { return Ok(vec![Value::Null]) };
    let Some(reference) = binding.pointer("/spec/paramRef").filter(|r| r.is_object()) else {
        return Ok(vec![Value::Null]);
    };
    let (version, name) = (text(kind, "/apiVersion"), text(kind, "/kind"));
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let mut resources = request.store.catalog().iter();
    let found = resources.find(|r| r.group == group && r.kind == name && r.versions.iter().any(|v| v == version));
    let Some(resource) = found else {
        return Err(format!("failed to find resource referenced by paramKind: '{group}/{version}, Kind={name}'"));
    };
    let namespace = match text(reference, "/namespace") {
        _ if !resource.namespaced => "",
        "" => request.namespace,
        namespace => namespace,
    };
    if resource.namespaced && namespace.is_empty() {
        return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
    }
    let all = match (text(reference, "/name"), reference.get("selector")) {
        ("", selector) => {
            let within = resource.namespaced.then_some(namespace);
            let all = request.store.list(&resource.id, within).items;
            all.into_iter().filter(|o| matching::selects(selector, matching::labels(o))).collect()
        }
        (name, _) => request.store.get(&resource.id, namespace, name).into_iter().collect::<Vec<_>>(),
    };
    if all.is_empty() && text(reference, "/parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(all.into_iter().map(|o| review::versioned(&resource, version, o)).collect())
}

struct Judge<'a> {
    request: &'a Request<'a>,
    policy: &'a Value,
    version: &'a str,
}

impl Judge<'_> {
    fn context(
        &self,
        object: Option<&Value>,
        old: Option<&Value>,
        parameters: &Value,
    ) -> Result<Context<'static>, String> {
        let chosen = Chosen { hook: Hook { entry: json!({}), mutating: false }, version: self.version.to_owned() };
        let (_, asked) = review::request(self.request, &chosen, object, old);
        let mut asked = asked.get("request").cloned().unwrap_or_default();
        let mut context = Context::default().with_all();
        let mut add = |name: &str, value: Value| context.add_variable(name, value).map_err(|e| e.to_string());
        for name in ["object", "oldObject"] {
            add(name, asked.as_object_mut().and_then(|map| map.shift_remove(name)).unwrap_or_default())?;
        }
        add("request", asked)?;
        add("params", parameters.clone())?;
        let own = self.request.resource.id.as_ref() == "namespaces";
        let namespace = self.request.store.get("namespaces", "", self.request.namespace).filter(|_| !own);
        add("namespaceObject", namespace.unwrap_or_default())?;
        let mut variables: HashMap<String, CelValue> = HashMap::new();
        for variable in list(self.policy, "/spec/variables") {
            context.add_variable_from_value("variables", CelValue::Map(variables.clone().into()));
            if let Ok(value) = run(text(variable, "/expression"), &context) {
                variables.insert(text(variable, "/name").to_owned(), value);
            }
        }
        context.add_variable_from_value("variables", CelValue::Map(variables.into()));
        Ok(context)
    }

    /// What of a policy a write does not pass.
    fn refusals(&self, object: Option<&Value>, old: Option<&Value>, parameters: &Value) -> Vec<Refusal> {
        let lenient = text(self.policy, "/spec/failurePolicy") == "Ignore";
        let failed = |why: String| if lenient { Vec::new() } else { vec![Refusal::plain(why)] };
        let context = match self.context(object, old, parameters) {
            Ok(context) => context,
            Err(why) => return failed(why),
        };
        let mut broken = None;
        for condition in list(self.policy, "/spec/matchConditions") {
            match run(text(condition, "/expression"), &context) {
                Ok(CelValue::Bool(true)) => {}
                Ok(_) => return Vec::new(),
                Err(why) => {
                    let expression = text(condition, "/expression");
                    broken.get_or_insert(format!("expression '{expression}' resulted in error: {why}"));
                }
            }
        }
        if let Some(why) = broken {
            return failed(why);
        }
        let mut refusals = Vec::new();
        for rule in list(self.policy, "/spec/validations") {
            let expression = text(rule, "/expression").trim();
            match run(expression, &context) {
                Ok(CelValue::Bool(true)) => {}
                Ok(_) => refusals
                    .push(Refusal { message: message(rule, &context), reason: text(rule, "/reason").to_owned() }),
                Err(why) => refusals.extend(failed(format!("expression '{expression}' resulted in error: {why}"))),
            }
        }
        refusals
    }
}

fn message(rule: &Value, context: &Context<'_>) -> String {
    let told = match text(rule, "/messageExpression") {
        "" => None,
        expression => run(expression, context).ok(),
    };
    match told {
        Some(CelValue::String(told)) if !told.trim().is_empty() && !told.contains('\n') => told.trim().to_owned(),
        _ if !text(rule, "/message").trim().is_empty() => text(rule, "/message").trim().to_owned(),
        _ => format!("failed expression: {}", text(rule, "/expression").trim()),
    }
}

fn run(expression: &str, context: &Context<'_>) -> Result<CelValue, String> {
    let program = Program::compile(expression).map_err(|e| e.to_string())?;
    program.execute(context).map_err(|e| e.to_string())
}
