//! Rules for `docs/features.md`: its rows are numbered without a gap, its counts are those of the rows, and what a row
//! names as its proof is there.
//!
//! Invariant: a row that says done names at least one test or case file. That the proof proves it is for the reader.

use std::path::Path;

use anyhow::{Context, Result};

/// The page, from the root.
const PAGE: &str = "docs/features.md";
const STATUSES: [&str; 3] = ["done", "partly", "not"];

/// What is wrong with the page.
///
/// # Errors
/// When the page or a crate's sources cannot be read.
pub fn check(root: &Path, files: &[std::path::PathBuf]) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(root.join(PAGE)).context(PAGE)?;
    let mut tests = Vec::new();
    for file in files {
        let Ok(inside) = file.strip_prefix(root.join("crates")) else { continue };
        let source = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let names = test_names(&source);
        if !names.is_empty() {
            let place: Vec<String> =
                inside.with_extension("").iter().map(|part| part.to_string_lossy().replace('-', "_")).collect();
            tests.push((place, names));
        }
    }
    Ok(judge(&text, &|proof| match is_file(proof) {
        true => root.join(proof).is_file(),
        false => is_test(proof, &tests),
    }))
}

/// Findings of a page, given which proofs exist.
fn judge(page: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    let mut counts = [0_usize; 3];
    let mut number = 0_usize;
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", row, _, status, proof, ""] = cells.as_slice() else { continue };
        let Ok(row) = row.parse::<usize>() else { continue };
        number += 1;
        if row != number {
            findings.push(format!("{PAGE}: row {row} stands where {number} should"));
            number = row;
        }
        let status = status.trim_matches('*');
        let Some(count) = STATUSES.iter().position(|s| *s == status).and_then(|at| counts.get_mut(at)) else {
            findings.push(format!("{PAGE}: row {row}: {status:?} is none of done, partly, not"));
            continue;
        };
        *count += 1;
        let proofs = proofs(proof);
        if status == "done" && proofs.is_empty() {
            findings.push(format!("{PAGE}: row {row} is done and names no test"));
        }
        let missing = proofs.iter().filter(|proof| !exists(proof));
        findings.extend(missing.map(|proof| format!("{PAGE}: row {row}: there is no {proof}")));
    }
    let [done, partly, not] = counts;
    let total = format!("{number} rows: {done} done, {partly} partly, {not} not");
    if !page.contains(&total) {
        findings.push(format!("{PAGE}: the counts should read \"{total}\""));
    }
    findings
}

/// Whether a proof is a file, of cases or of a run: not a function in a crate.
fn is_file(proof: &str) -> bool {
    proof.ends_with(".yaml") || (proof.starts_with("e2e/") && proof.ends_with(".py"))
}

/// The tests and files in a cell: what stands in backticks and is a path with `::`, or a file of cases or of an end-to-end run.
fn proofs(cell: &str) -> Vec<&str> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted.filter(|text| !text.contains(' ') && (text.contains("::") || is_file(text))).collect()
}

/// Whether `crate::file::name` is a test in a file of that crate; parts between are looked for in the file's path.
fn is_test(proof: &str, tests: &[(Vec<String>, Vec<String>)]) -> bool {
    let parts: Vec<&str> = proof.split("::").collect();
    let Some((name, place)) = parts.split_last() else { return false };
    tests.iter().any(|(path, names)| {
        path.first().map(String::as_str) == place.first().copied()
            && place.iter().all(|part| path.iter().any(|p| p == part))
            && names.iter().any(|n| n == name)
    })
}

/// The functions of a source that carry a `test` attribute.
fn test_names(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if marked && let Some((_, rest)) = line.split_once("fn ") {
            names.push(rest.split(['(', '<']).next().unwrap_or_default().to_owned());
            marked = false;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_says_done_needs_a_proof_that_exists() {
        let exists = |proof: &str| proof == "cases/a/b.yaml" || proof == "mesh::it::works";
        let page = |rows: &str, counts: &str| {
            format!("{counts}\n\n| # | feature | status | proof |\n|---|---|---|---|\n{rows}")
        };
        let good = "| 1 | a | **done** | `cases/a/b.yaml`, `--flag` |\n| 2 | b | not | later |\n| 3 | c | partly | `mesh::it::works` |\n";
        assert_eq!(judge(&page(good, "3 rows: 1 done, 1 partly, 1 not."), &exists), Vec::<String>::new());
        for (rows, counts, finding) in [
            ("| 1 | a | done | it works |\n", "1 rows: 1 done, 0 partly, 0 not", "row 1 is done and names no test"),
            (
                "| 1 | a | done | `cases/gone.yaml` |\n",
                "1 rows: 1 done, 0 partly, 0 not",
                "row 1: there is no cases/gone.yaml",
            ),
            (
                "| 1 | a | not | `mesh::it::gone` |\n",
                "1 rows: 0 done, 0 partly, 1 not",
                "row 1: there is no mesh::it::gone",
            ),
            ("| 2 | a | not | |\n", "2 rows: 0 done, 0 partly, 1 not", "row 2 stands where 1 should"),
            ("| 1 | a | nearly | |\n", "1 rows: 0 done, 0 partly, 0 not", "row 1: \"nearly\" is none of"),
            ("| 1 | a | not | |\n", "1 rows: 1 done, 0 partly, 0 not", "the counts should read"),
        ] {
            let found = judge(&page(rows, counts), &exists);
            assert_eq!(found.len(), 1, "{rows}: {found:?}");
            assert!(found.iter().all(|f| f.contains(finding)), "{found:?}");
        }
    }

    #[test]
    fn tests_are_found_by_crate_file_and_name() {
        let source =
            "#[test]\nfn one() {}\nfn helper() {}\n#[tokio::test(flavor = \"x\")]\n#[ignore]\nasync fn two() {}\n";
        assert_eq!(test_names(source), ["one", "two"]);
        let path = ["proxy", "tests", "it", "mtls"].map(str::to_owned).to_vec();
        let tests = [(path, test_names(source))];
        assert!(is_test("proxy::it::mtls::one", &tests));
        assert!(is_test("proxy::two", &tests));
        assert!(!is_test("proxy::it::plain::one", &tests));
        assert!(!is_test("pod::one", &tests));
        assert!(!is_test("proxy::helper", &tests));
    }
}
