//! The layers between crates: a crate imports only from the layers below its own, and pure crates stay pure.
//!
//! Invariant: the table here is the picture in ARCHITECTURE.md; a crate that is in neither place is a finding.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};

/// Crates (by folder) and their layer; an import must point to a lower layer.
const LAYERS: &[(&str, u8)] = &[
    ("base", 0),
    ("runtime", 1),
    ("dns", 1),
    ("api", 1),
    ("gotemplate", 1),
    ("mesh", 2),
    ("analyze", 2),
    ("certs", 2),
    ("chart", 2),
    ("proxy-core", 2),
    ("inject", 2),
    ("envoy-json", 2),
    ("pki", 2),
    ("streams", 2),
    ("render", 3),
    ("xds", 3),
    ("token", 3),
    ("capture", 3),
    ("ledger", 3),
    ("envoy-filter", 4),
    ("explain", 4),
    ("apiserver", 4),
    ("proxy", 4),
    ("pod", 4),
    ("agent", 5),
    ("control", 5),
    ("issuing", 5),
    ("ctl", 6),
];

/// Crates that decide and never do.
const PURE: &[&str] = &[
    "base",
    "api",
    "gotemplate",
    "mesh",
    "proxy-core",
    "render",
    "inject",
    "analyze",
    "certs",
    "chart",
    "envoy-filter",
    "explain",
];

/// What a pure crate may not depend on.
const IMPURE: &[&str] =
    &["tokio", "hyper", "hyper-util", "tonic", "kube", "nix", "libc", "socket2", "rustls", "tracing"];

/// Crates that run beside workloads must never link the control plane, nor the other way round.
const DATA: &[&str] = &["proxy-core", "proxy", "agent"];
const CONTROL: &[&str] = &[
    "mesh",
    "render",
    "api",
    "analyze",
    "certs",
    "chart",
    "explain",
    "apiserver",
    "control",
    "issuing",
    "ledger",
    "ctl",
];

/// Findings about every crate's dependencies.
///
/// # Errors
/// When a manifest cannot be read.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let layers: BTreeMap<&str, u8> = LAYERS.iter().copied().collect();
    let mut findings = Vec::new();
    for entry in std::fs::read_dir(root.join("crates")).context("crates")? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let manifest = path.join("Cargo.toml");
        if !manifest.exists() {
            continue;
        }
        let text = std::fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
        let Some(own) = layers.get(name) else {
            findings.push(format!("crates/{name}: not in the table of layers (xtask/src/layers.rs)"));
            continue;
        };
        for dependency in dependencies(&text) {
            if PURE.contains(&name) && IMPURE.contains(&dependency.as_str()) {
                findings.push(format!("crates/{name}: a pure crate depends on {dependency}"));
            }
            let Some(other) = dependency.strip_prefix("carrick-") else { continue };
            match layers.get(other) {
                Some(layer) if layer >= own => {
                    findings.push(format!("crates/{name} (layer {own}) imports {other} (layer {layer})"));
                }
                Some(_) => {}
                None => findings.push(format!("crates/{name} imports {other}, which has no layer")),
            }
            if DATA.contains(&name) && CONTROL.contains(&other) {
                findings.push(format!("crates/{name} is of the data plane and imports {other} of the control plane"));
            }
            // What the proxy decides may be asked by anybody; what it does may not.
            if CONTROL.contains(&name) && DATA.contains(&other) && !PURE.contains(&other) {
                findings.push(format!("crates/{name} is of the control plane and imports {other} of the data plane"));
            }
        }
    }
    findings.sort();
    Ok(findings)
}

/// Names in `[dependencies]` (not those for tests and builds).
fn dependencies(manifest: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[dependencies]" || (line.starts_with("[target.") && line.ends_with(".dependencies]"));
            continue;
        }
        let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
        if inside && !name.is_empty() && !name.starts_with('#') {
            found.push(name.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_dependencies_count() {
        let manifest = "[package]\nname = \"x\"\n[dependencies]\ntokio.workspace = true\nserde = \"1\"\n# no\n[dev-dependencies]\nkube = \"1\"\n";
        assert_eq!(dependencies(manifest), ["tokio", "serde"]);
    }

    #[test]
    fn this_project_keeps_its_layers() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert_eq!(check(root).unwrap(), Vec::<String>::new());
    }
}
