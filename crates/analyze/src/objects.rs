//! The objects of one analysis.
//!
//! Invariant: kept by group and kind in the order given; of two with one name the first counts (files come before the
//! cluster). Workloads given as templates count as one pod each where no pods are known.

use std::collections::{BTreeMap, BTreeSet};

use carrick_api::kinds::split_api_version;
use carrick_api::parse;
use serde_json::{Value, json};

/// Where an object came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Origin {
    pub kind: String,
    /// Empty for cluster scope.
    pub namespace: String,
    pub name: String,
    /// The file, when it is not from a cluster.
    pub file: Option<String>,
    /// Its first line there, counted from 1.
    pub line: u64,
    /// The cluster, when there are several.
    pub cluster: Option<String>,
}

impl Origin {
    /// `namespace/name`, or the name alone.
    pub fn full_name(&self) -> String {
        if self.namespace.is_empty() { self.name.clone() } else { format!("{}/{}", self.namespace, self.name) }
    }

    /// The kind and the name.
    pub fn friendly_name(&self) -> String {
        format!("{} {}", self.kind, self.full_name())
    }
}

/// An object with its origin.
#[derive(Debug, Clone)]
pub struct Object {
    pub value: Value,
    pub origin: Origin,
    /// Whether its text names the namespace; else it was placed in the one that is meant.
    pub namespace_given: bool,
    /// The text it was read from, to find the lines of its fields.
    pub(crate) text: Option<String>,
    /// Stands for the pods that a template would make; nothing is reported on it.
    pub(crate) stand_in: bool,
}

/// A value that is not there.
pub(crate) static NOTHING: Value = Value::Null;

impl Object {
    /// An object of a cluster.
    pub fn new(value: Value, cluster: Option<String>) -> Self {
        let origin = Origin { cluster, ..origin_of(&value) };
        Self { value, origin, namespace_given: true, text: None, stand_in: false }
    }

    pub(crate) fn at(&self, pointer: &str) -> &Value {
        self.value.pointer(pointer).unwrap_or(&NOTHING)
    }

    pub(crate) fn text_at(&self, pointer: &str) -> &str {
        self.at(pointer).as_str().unwrap_or_default()
    }

    pub(crate) fn spec(&self) -> &Value {
        self.at("/spec")
    }

    pub(crate) fn name(&self) -> &str {
        &self.origin.name
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.origin.namespace
    }

    pub(crate) fn full_name(&self) -> String {
        self.origin.full_name()
    }

    pub(crate) fn labels(&self) -> Labels<'_> {
        labels(self.at("/metadata/labels"))
    }

    pub(crate) fn annotations(&self) -> Labels<'_> {
        labels(self.at("/metadata/annotations"))
    }
}

/// Labels, or anything of that shape.
pub(crate) type Labels<'a> = BTreeMap<&'a str, &'a str>;

/// A map of texts; what is no text is left out.
pub(crate) fn labels(value: &Value) -> Labels<'_> {
    let map = value.as_object().into_iter().flatten();
    map.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect()
}

/// Whether labels have all that a selector wants; an empty selector takes everything.
pub(crate) fn selects(selector: &Labels<'_>, labels: &Labels<'_>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A selector as text: `a=b,c=d`.
pub(crate) fn selector_text(selector: &Labels<'_>) -> String {
    selector.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Items of a list.
pub(crate) fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The text in a field.
pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The texts of a list.
pub(crate) fn texts<'a>(value: &'a Value, field: &str) -> Vec<&'a str> {
    items(value, field).iter().filter_map(Value::as_str).collect()
}

/// The number in a field, also written as text.
pub(crate) fn number(value: &Value, field: &str) -> i64 {
    match value.get(field) {
        Some(Value::Number(number)) => number.as_i64().unwrap_or_default(),
        Some(Value::String(text)) => text.parse().unwrap_or_default(),
        _ => 0,
    }
}

fn origin_of(value: &Value) -> Origin {
    let meta = |field: &str| value.get("metadata").map(|m| text(m, field)).unwrap_or_default().to_owned();
    Origin {
        kind: text(value, "kind").to_owned(),
        namespace: meta("namespace"),
        name: meta("name"),
        ..Origin::default()
    }
}

/// Namespaces of the cluster itself, which nobody asked about.
const IGNORED: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// All objects.
#[derive(Debug, Default)]
pub struct Objects {
    by_kind: BTreeMap<(String, String), Vec<Object>>,
    mesh: Value,
    /// Whether the objects are all there are: only then is an unknown namespace one that does not exist.
    live: bool,
    root: String,
}

impl Objects {
    /// No objects. `root`: the namespace of the control plane; `live`: what a cluster has will be added.
    pub fn new(root: &str, live: bool) -> Self {
        Self { by_kind: BTreeMap::new(), mesh: Value::Null, live, root: root.to_owned() }
    }

    /// Adds an object, unless one of that name is there.
    pub fn add(&mut self, object: Object) {
        let (group, _) = split_api_version(text(&object.value, "apiVersion"));
        let namespace = if object.origin.kind == "Namespace" { object.name() } else { object.namespace() };
        if IGNORED.contains(&namespace) {
            return;
        }
        let list = self.by_kind.entry((group.to_owned(), object.origin.kind.clone())).or_default();
        let same = |other: &Object| {
            other.origin.namespace == object.origin.namespace
                && other.origin.name == object.origin.name
                && other.origin.cluster == object.origin.cluster
        };
        if object.origin.name.is_empty() || !list.iter().any(same) {
            list.push(object);
        }
    }

    /// Sets the mesh's configuration; else it is taken from the ConfigMap `istio`.
    pub fn set_mesh_config(&mut self, config: Value) {
        self.mesh = config;
    }

    /// Adds what an installation has: an ingress gateway with its service.
    pub fn add_defaults(&mut self) {
        let port =
            |name: &str, number: u32| json!({"name": name, "port": number, "protocol": "TCP", "targetPort": number});
        let meta = |name: &str| json!({"name": name, "namespace": self.root, "labels": {"istio": "ingressgateway"}});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta("istio-ingressgateway-dummypod"),
            "spec": {"containers": [{"name": "istio-proxy", "args": []}]},
        });
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta("istio-ingressgateway"),
            "spec": {
                "selector": {"istio": "ingressgateway"},
                "ports": [port("http2", 80), port("https", 443), port("tcp", 31400), port("tls", 15443)],
            },
        });
        for value in [pod, service] {
            self.add(Object { stand_in: true, ..Object::new(value, None) });
        }
    }

    /// To be called when all are there: makes stand-ins for the pods of templates.
    pub fn complete(&mut self) {
        if self.mesh.is_null() {
            self.mesh = self.mesh_of_config_map();
        }
        let mut pods = Vec::new();
        for kind in ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"] {
            pods.extend(self.of("apps", kind).iter().map(|workload| stand_in(workload, "/spec/template")));
        }
        pods.extend(self.of("batch", "Job").iter().map(|job| stand_in(job, "/spec/template")));
        if !self.live {
            for pod in pods {
                self.add(pod);
            }
        }
    }

    fn mesh_of_config_map(&self) -> Value {
        let map = self.find("", "ConfigMap", &self.root, "istio");
        let read = |map: &Object| parse::documents(map.text_at("/data/mesh").as_bytes()).ok()?.into_iter().next();
        map.and_then(read).unwrap_or_default()
    }

    /// The objects of a kind.
    pub(crate) fn of(&self, group: &str, kind: &str) -> &[Object] {
        self.by_kind.get(&(group.to_owned(), kind.to_owned())).map(Vec::as_slice).unwrap_or_default()
    }

    /// The objects of a kind of Istio's `networking` group.
    pub(crate) fn networking(&self, kind: &str) -> &[Object] {
        self.of("networking.istio.io", kind)
    }

    pub(crate) fn pods(&self) -> &[Object] {
        self.of("", "Pod")
    }

    pub(crate) fn find(&self, group: &str, kind: &str, namespace: &str, name: &str) -> Option<&Object> {
        self.of(group, kind).iter().find(|object| object.namespace() == namespace && object.name() == name)
    }

    /// A namespace's labels; `None` when it is not known.
    pub(crate) fn namespace_labels(&self, namespace: &str) -> Option<Labels<'_>> {
        self.of("", "Namespace").iter().find(|n| n.name() == namespace).map(Object::labels)
    }

    /// The namespaces that exist, as far as can be told.
    pub(crate) fn namespaces(&self) -> BTreeSet<&str> {
        let named = self.of("", "Namespace").iter().map(Object::name);
        let used = self.by_kind.values().flatten().map(Object::namespace).filter(|n| !self.live && !n.is_empty());
        named.chain(used).collect()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&(String, String), &Vec<Object>)> {
        self.by_kind.iter()
    }

    pub(crate) fn mesh(&self) -> &Value {
        &self.mesh
    }

    /// The namespace of the control plane, and of what is meant for the whole mesh.
    pub(crate) fn root(&self) -> &str {
        let configured = text(&self.mesh, "rootNamespace");
        if configured.is_empty() { &self.root } else { configured }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_kind.values().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn stand_in(workload: &Object, template: &str) -> Object {
    let template = workload.at(template);
    let mut metadata = template.get("metadata").cloned().unwrap_or_else(|| json!({}));
    if let Some(map) = metadata.as_object_mut() {
        map.insert("name".into(), json!(workload.name()));
        map.insert("namespace".into(), json!(workload.namespace()));
    }
    let spec = template.get("spec").cloned().unwrap_or_default();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    Object { stand_in: true, ..Object::new(pod, workload.origin.cluster.clone()) }
}
