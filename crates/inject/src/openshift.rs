//! Users on OpenShift, which gives each namespace a range of them.
//!
//! Invariant: a namespace without a range is any other cluster's, and nothing here changes its pods.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use crate::{CONTAINER_NAME, lists};

/// How the annotations begin by which a namespace says what it was given.
pub const ANNOTATIONS: &str = "openshift.io/sa.scc.";
/// Where it says which users are its own.
pub(crate) const UID_RANGE: &str = "openshift.io/sa.scc.uid-range";

/// User and group of the proxy: 1337, or the last of those that OpenShift gave the namespace.
pub(crate) fn ids(namespace: &BTreeMap<String, String>) -> (i64, i64) {
    let last = |text: &str| -> Option<i64> {
        if let Some((start, size)) = text.split_once('/') {
            let (start, size): (i64, i64) = (start.trim().parse().ok()?, size.trim().parse().ok()?);
            return start.checked_add(size)?.checked_sub(1);
        }
        text.split_once('-')?.1.trim().parse().ok()
    };
    let range = namespace.get(UID_RANGE);
    let groups = namespace.get("openshift.io/sa.scc.supplemental-groups").or(range);
    let default = i64::from(crate::PROXY_UID);
    let first_group = groups.and_then(|groups| last(groups.split(',').next()?));
    (range.and_then(|range| last(range)).unwrap_or(default), first_group.unwrap_or(default))
}

/// The pod before its injection, into a namespace with these annotations.
pub(crate) fn with_own_user<'a>(pod: &'a Value, namespace: &BTreeMap<String, String>) -> Cow<'a, Value> {
    let mut pod = Cow::Borrowed(pod);
    if namespace.contains_key(UID_RANGE) {
        forget_user(pod.to_mut());
    }
    pod
}

/// Forgets the user of a container that the pod's author wrote for the proxy, if it is the application's: OpenShift gives every
/// container the same one, and the rules could not tell the two apart.
fn forget_user(pod: &mut Value) {
    let (mut of_proxy, mut of_application) = (0, 0);
    for list in ["containers", "initContainers"] {
        let containers = pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
        for container in containers.into_iter().flatten() {
            let Some(user) = container.pointer("/securityContext/runAsUser").and_then(Value::as_i64) else { continue };
            match container.get("name").and_then(Value::as_str) {
                Some(CONTAINER_NAME) => of_proxy = user,
                Some("istio-init" | "istio-validation") => {}
                _ => of_application = user,
            }
        }
    }
    if of_proxy != of_application {
        return;
    }
    if let Some(security) = pod.get_mut("spec").and_then(lists::proxy_mut).and_then(|c| c.get_mut("securityContext"))
        && let Some(security) = security.as_object_mut()
    {
        security.shift_remove("runAsUser");
        security.shift_remove("runAsGroup");
    }
}
