//! `matchConditions` of webhooks, in CEL.
//!
//! Invariant: a hook is asked only when all its conditions hold; one that is false decides before one that fails.
//! What it leaves to others: what a failure means (`failurePolicy`).

use super::{Chosen, Request, review};
use kube_cel::KubeCelExt;
use kube_cel::cel::{Context, Program, Value as CelValue};
use serde_json::Value;

/// Whether all conditions hold.
///
/// # Errors
/// The first failure, when no condition was false.
pub fn hold(
    request: &Request<'_>,
    chosen: &Chosen,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<bool, String> {
    let list =
        chosen.hook.entry.get("matchConditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        return Ok(true);
    }
    let (_, asked) = review::request(request, chosen, object, old);
    let mut asked = asked.get("request").cloned().unwrap_or_default();
    let mut context = Context::default().with_all();
    for name in ["object", "oldObject"] {
        let value = asked.as_object_mut().and_then(|map| map.shift_remove(name)).unwrap_or_default();
        context.add_variable(name, value).map_err(|e| e.to_string())?;
    }
    context.add_variable("request", asked).map_err(|e| e.to_string())?;
    let mut failed = None;
    for condition in list {
        let text = |field: &str| condition.get(field).and_then(Value::as_str).unwrap_or_default();
        let outcome = Program::compile(text("expression")).map_err(|e| e.to_string());
        match outcome.and_then(|program| program.execute(&context).map_err(|e| e.to_string())) {
            Ok(CelValue::Bool(true)) => {}
            Ok(CelValue::Bool(false)) => return Ok(false),
            Ok(_) => drop(failed.get_or_insert(format!("match condition {:?} gives no truth value", text("name")))),
            Err(why) => drop(failed.get_or_insert(format!("match condition {:?} failed: {why}", text("name")))),
        }
    }
    failed.map_or(Ok(true), Err)
}
