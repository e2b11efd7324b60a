//! A chart: its files, its defaults, and the objects that come out for a release.
//!
//! Invariant: the charts of this repository are part of the program; a test compares the list here with the folder.

use std::collections::BTreeMap;

use carrick_gotemplate::{Definitions, HELM, Template};
use serde_json::{Value, json};

use crate::{ChartError, merge};

macro_rules! files {
    ($chart:literal: $($path:literal),+ $(,)?) => {
        &[$(($path, include_str!(concat!("../../../charts/", $chart, "/", $path)))),+]
    };
}

const BASE: &[(&str, &str)] = files!("base":
    "Chart.yaml",
    "files/crd-all.gen.yaml",
    "files/crd-legacy.gen.yaml",
    "templates/crds.yaml",
    "templates/defaultrevision-validatingwebhookconfiguration.yaml",
    "templates/reader-serviceaccount.yaml",
    "values.yaml",
);
const ISTIOD: &[(&str, &str)] = files!("istiod":
    "Chart.yaml",
    "templates/_helpers.tpl",
    "templates/autoscale.yaml",
    "templates/clusterrole.yaml",
    "templates/configmap-values.yaml",
    "templates/configmap.yaml",
    "templates/deployment.yaml",
    "templates/istiod-injector-configmap.yaml",
    "templates/mutatingwebhook.yaml",
    "templates/networkpolicy.yaml",
    "templates/poddisruptionbudget.yaml",
    "templates/reader-clusterrole.yaml",
    "templates/revision-tags.yaml",
    "templates/role.yaml",
    "templates/service.yaml",
    "templates/serviceaccount.yaml",
    "templates/validatingwebhookconfiguration.yaml",
    "values.yaml",
);
const GATEWAY: &[(&str, &str)] = files!("gateway":
    "Chart.yaml",
    "templates/_helpers.tpl",
    "templates/deployment.yaml",
    "templates/hpa.yaml",
    "templates/poddisruptionbudget.yaml",
    "templates/role.yaml",
    "templates/service.yaml",
    "templates/serviceaccount.yaml",
    "values.yaml",
);
const CNI: &[(&str, &str)] = files!("cni":
    "Chart.yaml",
    "templates/_helpers.tpl",
    "templates/clusterrole.yaml",
    "templates/configmap.yaml",
    "templates/daemonset.yaml",
    "templates/resourcequota.yaml",
    "templates/role.yaml",
    "templates/serviceaccount.yaml",
    "values.yaml",
);

/// A chart's files by their path in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chart {
    files: BTreeMap<String, String>,
}

/// Whom a chart is rendered for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release<'a> {
    pub name: &'a str,
    pub namespace: &'a str,
}

impl Chart {
    /// One of `base`, `istiod`, `cni` and `gateway`.
    pub fn named(name: &str) -> Option<Self> {
        let files = match name {
            "base" => BASE,
            "istiod" => ISTIOD,
            "gateway" => GATEWAY,
            "cni" => CNI,
            _ => return None,
        };
        Some(Self::of(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()))
    }

    /// A chart of these files, by their path in it.
    pub fn of(files: BTreeMap<String, String>) -> Self {
        Self { files }
    }

    /// The paths of its files.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// What it is rendered with when nobody says otherwise.
    ///
    /// # Errors
    /// When its `values.yaml` is not YAML.
    pub fn values(&self) -> Result<Value, ChartError> {
        self.yaml("values.yaml")
    }

    fn yaml(&self, file: &str) -> Result<Value, ChartError> {
        let text = self.files.get(file).map(String::as_str).unwrap_or_default();
        serde_saphyr::from_str(text)
            .map_err(|error| ChartError::Template { file: file.to_owned(), reason: error.to_string() })
    }

    /// The objects for a release, in the order of the files.
    ///
    /// # Errors
    /// When a template uses what is not understood, or gives no YAML.
    pub fn render(&self, release: &Release<'_>, values: &Value) -> Result<Vec<Value>, ChartError> {
        let mut merged = self.values()?;
        merge(&mut merged, values);
        let about = self.yaml("Chart.yaml")?;
        let field = |name: &str| about.get(name).cloned().unwrap_or(Value::Null);
        let dot = json!({
            "Values": merged,
            "Release": {"Name": release.name, "Namespace": release.namespace, "Service": "Helm"},
            "Chart": {"Name": field("name"), "Version": field("version"), "AppVersion": field("appVersion")},
        });
        let (mut defined, mut roots) = (Definitions::default(), Vec::new());
        for (path, text) in self.files.iter().filter(|(path, _)| path.starts_with("templates/")) {
            let template =
                Template::read(text).map_err(|reason| ChartError::Template { file: path.clone(), reason })?;
            defined.add(&template);
            if !path.ends_with(".tpl") {
                roots.push((path, template));
            }
        }
        let mut objects = Vec::new();
        for (path, template) in roots {
            let wrong = |reason: String| ChartError::Template { file: path.clone(), reason };
            let text = template.render_among(&dot, &defined, &self.files, HELM).map_err(wrong)?;
            for document in documents(&text) {
                let object: Value = serde_saphyr::from_str(&document).map_err(|error| wrong(error.to_string()))?;
                if !object.is_null() {
                    objects.push(object);
                }
            }
        }
        Ok(objects)
    }
}

/// The documents of a text that hold more than comments.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let says_something = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    documents.retain(|document| document.lines().any(says_something));
    documents
}
