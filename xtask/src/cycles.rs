//! Import cycles between the top-level modules of a crate, found from `crate::module` paths.
//!
//! Invariant: a cycle that shows here is one; `super::` paths across top-level modules are not seen, so there may
//! be more. What lies in `lib.rs` itself belongs to no module; tests, inline or in files of their own (`tests.rs`,
//! `tests/`), may use any module.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result};

type Graph = BTreeMap<String, BTreeSet<String>>;

/// Findings: one for each group of modules that import each other.
///
/// # Errors
/// When a source file cannot be read.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for entry in std::fs::read_dir(root.join("crates")).context("crates")? {
        let source = entry?.path().join("src");
        if !source.is_dir() {
            continue;
        }
        let graph = graph(&source)?;
        for group in groups(&graph) {
            let name = source.parent().and_then(|p| p.file_name()).unwrap_or_default().to_string_lossy().into_owned();
            findings.push(format!("crates/{name}: modules import each other: {}", group.join(" ↔ ")));
        }
    }
    findings.sort();
    Ok(findings)
}

fn graph(source: &Path) -> Result<Graph> {
    let mut files = Vec::new();
    let mut pending = vec![source.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && !is_test(&path, source) {
                files.push(path);
            }
        }
    }
    let module_of = |path: &Path| -> Option<String> {
        let first = path.strip_prefix(source).ok()?.components().next()?.as_os_str().to_str()?.to_owned();
        let name = first.strip_suffix(".rs").unwrap_or(&first).to_owned();
        (name != "lib" && name != "main").then_some(name)
    };
    let modules: BTreeSet<String> = files.iter().filter_map(|f| module_of(f)).collect();
    let mut graph: Graph = modules.iter().map(|m| (m.clone(), BTreeSet::new())).collect();
    for file in &files {
        let Some(own) = module_of(file) else { continue };
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for target in imports(code) {
            if target != own && modules.contains(&target) {
                graph.entry(own.clone()).or_default().insert(target);
            }
        }
    }
    Ok(graph)
}

/// Whether a file holds a module's tests.
fn is_test(path: &Path, source: &Path) -> bool {
    let inside = path.strip_prefix(source).unwrap_or(path);
    inside.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")))
}

/// The first path segments after `crate::` in code, braces (`crate::{a::X, b}`) included.
fn imports(code: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String { text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect() };
    let mut found = BTreeSet::new();
    let lines: Vec<&str> = code.lines().filter(|l| !l.trim_start().starts_with("//")).collect();
    let code = lines.join("\n");
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => {
                found.insert(word(after));
            }
            Some(inside) => {
                let mut depth = 0_i32;
                let mut fresh = true;
                for (at, c) in inside.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => fresh = true,
                        c if fresh && !c.is_whitespace() => {
                            fresh = false;
                            found.insert(word(&inside[at..]));
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found.remove("");
    found
}

/// Groups of two or more modules that can reach each other.
fn groups(graph: &Graph) -> Vec<Vec<String>> {
    let reach = |from: &str| -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut pending: Vec<&String> = graph.get(from).into_iter().flatten().collect();
        while let Some(next) = pending.pop() {
            if seen.insert(next.clone()) {
                pending.extend(graph.get(next).into_iter().flatten());
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = graph.keys().map(|m| (m, reach(m))).collect();
    let mut found = BTreeSet::new();
    for (module, targets) in &reached {
        if targets.contains(*module) {
            let group: Vec<String> = targets
                .iter()
                .filter(|other| reached.get(other).is_some_and(|back| back.contains(*module)))
                .cloned()
                .collect();
            found.insert(group);
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_read_from_both_forms() {
        let found = imports("use crate::a::X;\nuse crate::{b::{Y, Z}, c};\n// crate::d\nlet e = crate::e::f();");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "b", "c", "e"]);
    }

    #[test]
    fn files_of_tests_are_left_out() {
        let source = Path::new("crates/x/src");
        for (file, expected) in
            [("a/tests.rs", true), ("a/tests/b.rs", true), ("a.rs", false), ("a/contests.rs", false)]
        {
            assert_eq!(is_test(&source.join(file), source), expected, "{file}");
        }
    }

    #[test]
    fn a_cycle_is_one_group() {
        let edge = |to: &[&str]| to.iter().map(|t| (*t).to_owned()).collect::<BTreeSet<_>>();
        let graph: Graph = [
            ("a".into(), edge(&["b"])),
            ("b".into(), edge(&["c"])),
            ("c".into(), edge(&["a"])),
            ("d".into(), edge(&["a"])),
        ]
        .into();
        assert_eq!(groups(&graph), [["a", "b", "c"]]);
    }
}
