//! Cases made smaller while they differ in the same way.
//!
//! Invariant: a step only takes something away: an object, a field, an element, a request, a header. All steps that are possible are tried as
//! one batch; the first that still differs is taken, until none does.

use std::sync::Arc;

use anyhow::Result;
use serde_json::Value;

use super::batch::{self, LARGEST};
use super::case::{Case, Says};
use super::compare::differences;
use super::keys::Keys;

/// Steps at most.
const STEPS: usize = 60;

/// Makes a case smaller.
///
/// # Errors
/// When an engine does not start.
pub async fn shrink(case: Case, kind: &str, round: &mut usize, keys: &Arc<Keys>) -> Result<Case> {
    let mut best = case;
    for _ in 0..STEPS {
        let mut next = None;
        for candidates in smaller(&best).chunks(LARGEST.min(60)) {
            *round += 1;
            let ran = batch::run(candidates, *round, keys).await?;
            let still = ran.iter().position(|r| differences(r).iter().any(|d| d.kind == kind));
            next = still.and_then(|i| candidates.get(i).cloned());
            if next.is_some() {
                break;
            }
        }
        match next {
            Some(smaller) => best = smaller,
            None => break,
        }
    }
    Ok(best)
}

/// Every case that has one thing less, the greatest steps first.
fn smaller(case: &Case) -> Vec<Case> {
    let mut all = Vec::new();
    if case.asks.len() > 1 {
        all.extend(case.asks.iter().map(|ask| Case { asks: vec![ask.clone()], ..case.clone() }));
    }
    for i in 0..case.objects.len() {
        let mut less = case.clone();
        less.objects.remove(i);
        all.push(less);
    }
    if case.mesh.as_object().is_some_and(|m| !m.is_empty()) {
        all.push(Case { mesh: serde_json::json!({}), ..case.clone() });
    }
    for (i, object) in case.objects.iter().enumerate() {
        let Some(spec) = object.get("spec") else { continue };
        for spec in without(spec) {
            let mut less = case.clone();
            if let Some(object) = less.objects.get_mut(i) {
                object["spec"] = spec;
            }
            all.push(less);
        }
    }
    for (i, ask) in case.asks.iter().enumerate() {
        let Says::Http(request) = &ask.says else { continue };
        let mut change = |change: &dyn Fn(&mut super::case::Request)| {
            let mut less = case.clone();
            if let Some(Says::Http(request)) = less.asks.get_mut(i).map(|a| &mut a.says) {
                change(request);
            }
            all.push(less);
        };
        for header in 0..request.headers.len() {
            change(&|r| drop(r.headers.remove(header)));
        }
        if !request.body.is_empty() {
            change(&|r| r.body.clear());
        }
        if request.method != "GET" {
            change(&|r| "GET".clone_into(&mut r.method));
        }
        if request.target != "/" {
            change(&|r| "/".clone_into(&mut r.target));
        }
    }
    all
}

/// A value with one field or element less, at any depth, outermost first.
fn without(value: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    match value {
        Value::Object(fields) => {
            for name in fields.keys() {
                let mut less = fields.clone();
                less.shift_remove(name);
                all.push(Value::Object(less));
            }
            for (name, inner) in fields {
                all.extend(without(inner).into_iter().map(|inner| {
                    let mut changed = fields.clone();
                    changed.insert(name.clone(), inner);
                    Value::Object(changed)
                }));
            }
        }
        Value::Array(items) => {
            for i in 0..items.len() {
                let mut less = items.clone();
                less.remove(i);
                all.push(Value::Array(less));
            }
            for (i, item) in items.iter().enumerate() {
                all.extend(without(item).into_iter().map(|inner| {
                    let mut changed = items.clone();
                    if let Some(place) = changed.get_mut(i) {
                        *place = inner;
                    }
                    Value::Array(changed)
                }));
            }
        }
        _ => {}
    }
    all
}
