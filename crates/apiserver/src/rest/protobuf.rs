//! Kubernetes' protobuf request bodies → the JSON they stand for.
//!
//! kubectl's typed commands (`create namespace`, `auth can-i`, `create token`, …) send protobuf and do not fall back.
//! Invariant: only the kinds in the table are read, completely bounded by the body's length; answers are always JSON.
//! Source: the field numbers of the `generated.proto` files of Kubernetes' API.

use crate::error::{ApiError, ApiResult};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::OnceLock;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// First bytes of every such body.
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting of messages.
const DEPTH: usize = 32;

/// One message a line: `Name: number field type; …`. Types: `s` string, `i` integer, `b` boolean, `B` bytes, `T` time,
/// `J` raw JSON, `N` int-or-string, `<x>` map of strings to x, a message's name; `[]` before = repeated, `?` after =
/// kept although it is zero.
const MESSAGES: &str = "
ObjectMeta: 1 name s; 2 generateName s; 3 namespace s; 5 uid s; 6 resourceVersion s; 7 generation i; 8 creationTimestamp T; 9 deletionTimestamp T; 10 deletionGracePeriodSeconds i?; 11 labels <s>; 12 annotations <s>; 13 ownerReferences []OwnerReference; 14 finalizers []s; 17 managedFields []ManagedFields
OwnerReference: 1 kind s; 3 name s; 4 uid s; 5 apiVersion s; 6 controller b?; 7 blockOwnerDeletion b?
ManagedFields: 1 manager s; 2 operation s; 3 apiVersion s; 4 time T; 6 fieldsType s; 7 fieldsV1 J; 8 subresource s
ObjectReference: 1 kind s; 2 namespace s; 3 name s; 4 uid s; 5 apiVersion s; 6 resourceVersion s; 7 fieldPath s
LocalObjectReference: 1 name s
LabelSelector: 1 matchLabels <s>; 2 matchExpressions []LabelRequirement
LabelRequirement: 1 key s; 2 operator s; 3 values []s
Condition: 1 type s; 2 status s; 3 observedGeneration i; 4 lastTransitionTime T; 5 reason s; 6 message s
DeleteOptions: 1 gracePeriodSeconds i?; 2 preconditions Preconditions; 3 orphanDependents b?; 4 propagationPolicy s; 5 dryRun []s
Preconditions: 1 uid s; 2 resourceVersion s
Namespace: 1 metadata ObjectMeta; 2 spec NamespaceSpec; 3 status NamespaceStatus
NamespaceSpec: 1 finalizers []s
NamespaceStatus: 1 phase s
ConfigMap: 1 metadata ObjectMeta; 2 data <s>; 3 binaryData <B>; 4 immutable b?
Secret: 1 metadata ObjectMeta; 2 data <B>; 3 type s; 4 stringData <s>; 5 immutable b?
ServiceAccount: 1 metadata ObjectMeta; 2 secrets []ObjectReference; 3 imagePullSecrets []LocalObjectReference; 4 automountServiceAccountToken b?
Service: 1 metadata ObjectMeta; 2 spec ServiceSpec; 3 status ServiceStatus
ServiceSpec: 1 ports []ServicePort; 2 selector <s>; 3 clusterIP s; 4 type s; 5 externalIPs []s; 7 sessionAffinity s; 8 loadBalancerIP s; 9 loadBalancerSourceRanges []s; 10 externalName s; 11 externalTrafficPolicy s; 12 healthCheckNodePort i; 13 publishNotReadyAddresses b; 14 sessionAffinityConfig SessionAffinity; 17 ipFamilyPolicy s?; 18 clusterIPs []s; 19 ipFamilies []s; 20 allocateLoadBalancerNodePorts b?; 21 loadBalancerClass s?; 22 internalTrafficPolicy s?; 23 trafficDistribution s?
ServicePort: 1 name s; 2 protocol s; 3 port i; 4 targetPort N; 5 nodePort i; 6 appProtocol s?
SessionAffinity: 1 clientIP ClientIP
ClientIP: 1 timeoutSeconds i?
ServiceStatus: 1 loadBalancer LoadBalancer; 2 conditions []Condition
LoadBalancer: 1 ingress []Ingress
Ingress: 1 ip s; 2 hostname s; 3 ipMode s?
Event: 1 metadata ObjectMeta; 2 involvedObject ObjectReference; 3 reason s; 4 message s; 5 source EventSource; 6 firstTimestamp T; 7 lastTimestamp T; 8 count i; 9 type s; 10 eventTime T; 11 series EventSeries; 12 action s; 13 related ObjectReference; 14 reportingComponent s; 15 reportingInstance s
EventSource: 1 component s; 2 host s
EventSeries: 1 count i; 2 lastObservedTime T
Event.events.k8s.io: 1 metadata ObjectMeta; 2 eventTime T; 3 series EventSeries; 4 reportingController s; 5 reportingInstance s; 6 action s; 7 reason s; 8 regarding ObjectReference; 9 related ObjectReference; 10 note s; 11 type s; 12 deprecatedSource EventSource; 13 deprecatedFirstTimestamp T; 14 deprecatedLastTimestamp T; 15 deprecatedCount i
Lease: 1 metadata ObjectMeta; 2 spec LeaseSpec
LeaseSpec: 1 holderIdentity s?; 2 leaseDurationSeconds i?; 3 acquireTime T; 4 renewTime T; 5 leaseTransitions i?; 6 strategy s?; 7 preferredHolder s?
Role: 1 metadata ObjectMeta; 2 rules []PolicyRule
ClusterRole: 1 metadata ObjectMeta; 2 rules []PolicyRule; 3 aggregationRule AggregationRule
AggregationRule: 1 clusterRoleSelectors []LabelSelector
PolicyRule: 1 verbs []s; 2 apiGroups []s; 3 resources []s; 4 resourceNames []s; 5 nonResourceURLs []s
RoleBinding: 1 metadata ObjectMeta; 2 subjects []Subject; 3 roleRef RoleRef
ClusterRoleBinding: 1 metadata ObjectMeta; 2 subjects []Subject; 3 roleRef RoleRef
Subject: 1 kind s; 2 apiGroup s; 3 name s; 4 namespace s
RoleRef: 1 apiGroup s; 2 kind s; 3 name s
SelfSubjectReview: 1 metadata ObjectMeta
SelfSubjectRulesReview: 1 metadata ObjectMeta; 2 spec RulesReviewSpec
RulesReviewSpec: 1 namespace s
SelfSubjectAccessReview: 1 metadata ObjectMeta; 2 spec AccessReviewSpec
SubjectAccessReview: 1 metadata ObjectMeta; 2 spec AccessReviewSpec
LocalSubjectAccessReview: 1 metadata ObjectMeta; 2 spec AccessReviewSpec
AccessReviewSpec: 1 resourceAttributes ResourceAttributes; 2 nonResourceAttributes NonResourceAttributes; 3 user s; 4 groups []s; 5 extra <ExtraValue>; 6 uid s
ResourceAttributes: 1 namespace s; 2 verb s; 3 group s; 4 version s; 5 resource s; 6 subresource s; 7 name s
NonResourceAttributes: 1 path s; 2 verb s
ExtraValue: 1 items []s
TokenReview: 1 metadata ObjectMeta; 2 spec TokenReviewSpec
TokenReviewSpec: 1 token s; 2 audiences []s
TokenRequest: 1 metadata ObjectMeta; 2 spec TokenRequestSpec
TokenRequestSpec: 1 audiences []s; 3 boundObjectRef BoundObject; 4 expirationSeconds i?
BoundObject: 1 kind s; 2 apiVersion s; 3 name s; 4 uid s
CertificateSigningRequest: 1 metadata ObjectMeta; 2 spec SigningSpec; 3 status SigningStatus
SigningSpec: 1 request B; 2 username s; 3 uid s; 4 groups []s; 5 usages []s; 6 extra <ExtraValue>; 7 signerName s; 8 expirationSeconds i?
SigningStatus: 1 conditions []SigningCondition; 2 certificate B
Deployment: 1 metadata ObjectMeta; 2 spec DeploymentSpec; 3 status DeploymentStatus
DeploymentSpec: 1 replicas i?; 2 selector LabelSelector; 3 template PodTemplate; 4 strategy DeploymentStrategy; 5 minReadySeconds i; 6 revisionHistoryLimit i?; 7 paused b; 9 progressDeadlineSeconds i?
DeploymentStrategy: 1 type s; 2 rollingUpdate RollingUpdate
RollingUpdate: 1 maxUnavailable N; 2 maxSurge N
DeploymentStatus: 1 observedGeneration i; 2 replicas i; 3 updatedReplicas i; 4 availableReplicas i; 5 unavailableReplicas i; 7 readyReplicas i; 8 collisionCount i?; 9 terminatingReplicas i?
Job: 1 metadata ObjectMeta; 2 spec JobSpec; 3 status JobStatus
JobSpec: 1 parallelism i?; 2 completions i?; 3 activeDeadlineSeconds i?; 4 selector LabelSelector; 5 manualSelector b?; 6 template PodTemplate; 7 backoffLimit i?; 8 ttlSecondsAfterFinished i?; 9 completionMode s?; 10 suspend b?; 12 backoffLimitPerIndex i?; 13 maxFailedIndexes i?; 14 podReplacementPolicy s?; 15 managedBy s?
JobStatus: 4 active i; 5 succeeded i; 6 failed i; 7 completedIndexes s
CronJob: 1 metadata ObjectMeta; 2 spec CronJobSpec; 3 status Nothing
CronJobSpec: 1 schedule s; 2 startingDeadlineSeconds i?; 3 concurrencyPolicy s; 4 suspend b?; 5 jobTemplate JobTemplate; 6 successfulJobsHistoryLimit i?; 7 failedJobsHistoryLimit i?; 8 timeZone s?
JobTemplate: 1 metadata ObjectMeta; 2 spec JobSpec
HorizontalPodAutoscaler: 1 metadata ObjectMeta; 2 spec AutoscalerSpec; 3 status AutoscalerStatus
AutoscalerSpec: 1 scaleTargetRef ScaleTarget; 2 minReplicas i?; 3 maxReplicas i; 4 metrics []Metric
ScaleTarget: 1 kind s; 2 name s; 3 apiVersion s
Metric: 1 type s; 4 resource ResourceMetric
ResourceMetric: 1 name s; 2 target MetricTarget
MetricTarget: 1 type s; 4 averageUtilization i?
AutoscalerStatus: 1 observedGeneration i?; 3 currentReplicas i; 4 desiredReplicas i
PodDisruptionBudget: 1 metadata ObjectMeta; 2 spec BudgetSpec; 3 status BudgetStatus
BudgetSpec: 1 minAvailable N; 2 selector LabelSelector; 3 maxUnavailable N; 4 unhealthyPodEvictionPolicy s?
BudgetStatus: 1 observedGeneration i; 3 disruptionsAllowed i; 4 currentHealthy i; 5 desiredHealthy i; 6 expectedPods i
PodTemplate: 1 metadata ObjectMeta; 2 spec PodSpec
PodSpec: 2 containers []Container; 3 restartPolicy s; 4 terminationGracePeriodSeconds i?; 6 dnsPolicy s; 7 nodeSelector <s>; 8 serviceAccountName s; 9 serviceAccount s; 10 nodeName s; 11 hostNetwork b; 12 hostPID b; 13 hostIPC b; 14 securityContext Nothing; 16 hostname s; 17 subdomain s; 19 schedulerName s; 24 priorityClassName s
Container: 1 name s; 2 image s; 3 command []s; 4 args []s; 5 workingDir s; 6 ports []ContainerPort; 7 env []Variable; 8 resources Nothing; 13 terminationMessagePath s; 14 imagePullPolicy s; 16 stdin b; 17 stdinOnce b; 18 tty b; 20 terminationMessagePolicy s
ContainerPort: 1 name s; 2 hostPort i; 3 containerPort i; 4 protocol s; 5 hostIP s
Variable: 1 name s; 2 value s
Nothing: 536870911 nothing s
SigningCondition: 1 type s; 2 reason s; 3 message s; 4 lastUpdateTime T; 5 lastTransitionTime T; 6 status s
";

/// Kinds that may be a whole body; the other messages are parts.
const KINDS: &[&str] = &[
    "DeleteOptions",
    "Namespace",
    "ConfigMap",
    "Secret",
    "ServiceAccount",
    "Service",
    "Event",
    "Lease",
    "Role",
    "ClusterRole",
    "RoleBinding",
    "ClusterRoleBinding",
    "SelfSubjectReview",
    "SelfSubjectRulesReview",
    "SelfSubjectAccessReview",
    "SubjectAccessReview",
    "LocalSubjectAccessReview",
    "TokenReview",
    "TokenRequest",
    "CertificateSigningRequest",
    "Deployment",
    "Job",
    "CronJob",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
];

/// Messages that are not here as a whole: one with more in it must come as JSON, so that nothing is lost.
const PARTIAL: [&str; 23] = [
    "Job",
    "JobSpec",
    "JobStatus",
    "CronJob",
    "CronJobSpec",
    "JobTemplate",
    "HorizontalPodAutoscaler",
    "AutoscalerSpec",
    "Metric",
    "ResourceMetric",
    "MetricTarget",
    "AutoscalerStatus",
    "PodDisruptionBudget",
    "BudgetSpec",
    "BudgetStatus",
    "Deployment",
    "DeploymentSpec",
    "DeploymentStrategy",
    "PodTemplate",
    "PodSpec",
    "Container",
    "Variable",
    "Nothing",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scalar {
    Text,
    Integer,
    Boolean,
    Bytes,
    Time,
    Raw,
    IntOrString,
    Message(&'static str),
}

#[derive(Debug, Clone, Copy)]
struct Field {
    name: &'static str,
    scalar: Scalar,
    repeated: bool,
    map: bool,
    /// Set to zero is not the same as not set.
    keep: bool,
}

type Messages = HashMap<&'static str, HashMap<u64, Field>>;

fn messages() -> &'static Messages {
    static PARSED: OnceLock<Messages> = OnceLock::new();
    PARSED.get_or_init(|| {
        let lines = MESSAGES.lines().filter_map(|line| line.split_once(": "));
        lines.map(|(name, fields)| (name, fields.split("; ").filter_map(field).collect())).collect()
    })
}

fn field(text: &'static str) -> Option<(u64, Field)> {
    let mut words = text.split(' ');
    let (number, name, kind) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    let (keep, kind) = kind.strip_suffix('?').map_or((false, kind), |k| (true, k));
    let (repeated, kind) = kind.strip_prefix("[]").map_or((false, kind), |k| (true, k));
    let inner = kind.strip_prefix('<').and_then(|k| k.strip_suffix('>'));
    let scalar = match inner.unwrap_or(kind) {
        "s" => Scalar::Text,
        "i" => Scalar::Integer,
        "b" => Scalar::Boolean,
        "B" => Scalar::Bytes,
        "T" => Scalar::Time,
        "J" => Scalar::Raw,
        "N" => Scalar::IntOrString,
        message => Scalar::Message(message),
    };
    Some((number, Field { name, scalar, repeated, map: inner.is_some(), keep }))
}

/// Decodes a whole body.
///
/// # Errors
/// `UnsupportedMediaType` for kinds that must come as JSON, `BadRequest` for bytes that are no such message.
pub fn decode(body: &[u8]) -> ApiResult<Value> {
    let bad = || ApiError::BadRequest("the body is not a Kubernetes protobuf message".into());
    let unknown = body.strip_prefix(MAGIC).ok_or_else(bad)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for part in parts(unknown) {
        match part.ok_or_else(bad)? {
            (1, Wire::Bytes(meta)) => {
                for part in parts(meta) {
                    match part.ok_or_else(bad)? {
                        (1, Wire::Bytes(text)) => api_version = String::from_utf8_lossy(text).into_owned(),
                        (2, Wire::Bytes(text)) => kind = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let full = format!("{kind}.{}", api_version.split_once('/').map_or("", |(group, _)| group));
    let (name, _) = messages()
        .get_key_value(full.as_str())
        .or_else(|| messages().get_key_value(kind.as_str()))
        .filter(|_| KINDS.contains(&kind.as_str()))
        .ok_or_else(|| ApiError::UnsupportedMediaType("application/json, application/yaml".into()))?;
    let mut map = message(name, raw, 0).ok_or_else(|| match PARTIAL.contains(name) {
        true => ApiError::UnsupportedMediaType("application/json, application/yaml".into()),
        false => bad(),
    })?;
    map.shift_insert(0, "kind".into(), json!(kind));
    map.shift_insert(1, "apiVersion".into(), json!(api_version));
    Ok(Value::Object(map))
}

enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Skipped,
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Fields in the order they come; `None` once where the bytes are damaged.
fn parts(mut bytes: &[u8]) -> impl Iterator<Item = Option<(u64, Wire<'_>)>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let part = part(&mut bytes);
        if part.is_none() {
            bytes = &[];
        }
        Some(part)
    })
}

fn part<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Wire<'a>)> {
    let tag = varint(bytes)?;
    let wire = match tag & 7 {
        0 => Wire::Number(varint(bytes)?),
        1 => take(bytes, 8).map(|_| Wire::Skipped)?,
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => take(bytes, 4).map(|_| Wire::Skipped)?,
        _ => return None,
    };
    Some((tag >> 3, wire))
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Option<Map<String, Value>> {
    if depth > DEPTH {
        return None;
    }
    let fields = messages().get(name)?;
    let mut map = Map::new();
    for part in parts(bytes) {
        let (number, wire) = part?;
        let Some(field) = fields.get(&number) else {
            if PARTIAL.contains(&name) {
                return None;
            }
            continue;
        };
        if field.map {
            let Wire::Bytes(entry) = wire else { return None };
            let (key, value) = entry_of(field.scalar, entry, depth)?;
            let target = map.entry(field.name).or_insert_with(|| json!({}));
            target.as_object_mut()?.insert(key, value);
            continue;
        }
        let value = scalar(field.scalar, wire, depth)?;
        if field.repeated {
            map.entry(field.name).or_insert_with(|| json!([])).as_array_mut()?.push(value);
        } else if field.keep || !is_zero(&value) {
            map.insert(field.name.into(), value);
        }
    }
    Some(map)
}

/// What Go leaves out of JSON.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(_) => false,
    }
}

fn entry_of(kind: Scalar, bytes: &[u8], depth: usize) -> Option<(String, Value)> {
    let (mut key, mut value) = (String::new(), Value::Null);
    for part in parts(bytes) {
        match part? {
            (1, Wire::Bytes(text)) => key = std::str::from_utf8(text).ok()?.to_owned(),
            (2, wire) => value = scalar(kind, wire, depth)?,
            _ => {}
        }
    }
    // An empty value may be left out on the wire.
    Some((key, if value.is_null() { json!("") } else { value }))
}

fn scalar(kind: Scalar, wire: Wire<'_>, depth: usize) -> Option<Value> {
    Some(match (kind, wire) {
        (Scalar::Text, Wire::Bytes(text)) => json!(std::str::from_utf8(text).ok()?),
        // Negative numbers come as two's complement.
        (Scalar::Integer, Wire::Number(number)) => json!(number.cast_signed()),
        (Scalar::Boolean, Wire::Number(number)) => json!(number != 0),
        (Scalar::Bytes, Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        (Scalar::Time, Wire::Bytes(bytes)) => time(bytes)?,
        (Scalar::Raw, Wire::Bytes(bytes)) => {
            let raw = parts(bytes).find_map(|p| match p {
                Some((1, Wire::Bytes(raw))) => Some(raw),
                _ => None,
            });
            serde_json::from_slice(raw?).ok()?
        }
        (Scalar::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Scalar::Message("ExtraValue"), Wire::Bytes(bytes)) => {
            message("ExtraValue", bytes, depth.saturating_add(1))?.shift_remove("items").unwrap_or_else(|| json!([]))
        }
        (Scalar::Message(name), Wire::Bytes(bytes)) => Value::Object(message(name, bytes, depth.saturating_add(1))?),
        _ => return None,
    })
}

fn time(bytes: &[u8]) -> Option<Value> {
    let (mut seconds, mut nanos) = (0_i64, 0_i64);
    for part in parts(bytes) {
        match part? {
            (1, Wire::Number(number)) => seconds = number.cast_signed(),
            (2, Wire::Number(number)) => nanos = number.cast_signed(),
            _ => {}
        }
    }
    // The zero time of Go is written as nothing.
    if bytes.is_empty() {
        return Some(Value::Null);
    }
    let total = i128::from(seconds).checked_mul(1_000_000_000)?.checked_add(i128::from(nanos))?;
    let time = OffsetDateTime::from_unix_timestamp_nanos(total).ok()?;
    Some(json!(time.format(&Rfc3339).ok()?))
}

fn int_or_string(bytes: &[u8]) -> Option<Value> {
    let (mut is_text, mut number, mut text) = (false, 0_i64, String::new());
    for part in parts(bytes) {
        match part? {
            (1, Wire::Number(kind)) => is_text = kind == 1,
            (2, Wire::Number(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(value)) => text = std::str::from_utf8(value).ok()?.to_owned(),
            _ => {}
        }
    }
    Some(if is_text { json!(text) } else { json!(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &meta), bytes(2, raw)].concat()
    }

    #[test]
    fn the_table_is_complete() {
        for (name, fields) in messages() {
            assert!(!fields.is_empty(), "{name}");
            for field in fields.values() {
                if let Scalar::Message(part) = field.scalar {
                    assert!(messages().contains_key(part), "{name}.{} is a {part}", field.name);
                }
            }
        }
        assert_eq!(
            messages().values().map(HashMap::len).sum::<usize>(),
            MESSAGES.matches("; ").count() + messages().len()
        );
        for kind in KINDS {
            assert!(messages().contains_key(kind), "{kind}");
        }
    }

    #[test]
    fn a_config_map() {
        let labels = [bytes(1, b"app"), bytes(2, b"x")].concat();
        let meta = [bytes(1, b"cm"), bytes(2, b""), bytes(8, b""), bytes(11, &labels)].concat();
        let data = [bytes(1, b"k"), bytes(2, b"v")].concat();
        let binary = [bytes(1, b"b"), bytes(2, &[0, 255])].concat();
        let raw = [bytes(1, &meta), bytes(2, &data), bytes(3, &binary), vec![4 << 3, 0]].concat();
        let sent = body("v1", "ConfigMap", &raw);
        let value = decode(&sent).unwrap();
        assert_eq!(
            value,
            json!({
                "kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "cm", "labels": {"app": "x"}},
                "data": {"k": "v"}, "binaryData": {"b": "AP8="}, "immutable": false,
            })
        );
        for cut in 0..sent.len() {
            let _never_panics = decode(&sent[..cut]);
        }
        for position in 0..sent.len() {
            let mut damaged = sent.clone();
            damaged[position] ^= 0xff;
            let _never_panics = decode(&damaged);
        }
    }

    #[test]
    fn other_kinds_must_be_json() {
        assert_eq!(decode(&body("v1", "Pod", b"")).unwrap_err().code(), 415);
        assert_eq!(decode(&body("v1", "ObjectMeta", b"")).unwrap_err().code(), 415);
        assert_eq!(decode(b"{}").unwrap_err().code(), 400);
    }
}
