//! Runs every file of `tests/cases` and compares with the text beside it.
//!
//! Invariant: a case without an expectation fails; so does an expectation without its case.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use carrick_mesh::{Snapshot, Views};
use serde::Deserialize;

use crate::{summary, world::World};

/// One file: a world, and cases that each add to it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    world: World,
    cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    add: World,
    /// Proxies whose views are shown.
    proxies: Vec<String>,
    /// Sections shown.
    show: Vec<String>,
}

fn run(text: &[u8]) -> String {
    let mut documents = carrick_api::parse::documents(text).expect("readable YAML");
    assert_eq!(documents.len(), 1, "one document a file");
    let file: File = serde_json::from_value(documents.remove(0)).expect("a case file");
    let mut out = String::new();
    for case in &file.cases {
        let world = file.world.with(&case.add);
        let (snapshot, found) = Snapshot::build(&world.input());
        let mut views = Views::new(snapshot);
        let _ = writeln!(out, "# {}", case.name);
        for diagnostic in found {
            let _ = writeln!(out, "! {diagnostic}");
        }
        for proxy in &case.proxies {
            let view = views.of(&world.proxy(proxy));
            let _ = write!(out, "{proxy}\n{}", summary::view(&view, &case.show));
        }
        out.push('\n');
    }
    out
}

#[test]
fn every_case_gives_what_lies_beside_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let (mut cases, mut expected) = (BTreeSet::new(), BTreeSet::new());
    let mut wrong = String::new();
    for entry in fs::read_dir(&folder).expect("the cases' folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_owned();
        match path.extension().and_then(|e| e.to_str()) {
            Some("yaml") => cases.insert(stem),
            Some("txt") => expected.insert(stem),
            _ => panic!("what is {}?", path.display()),
        };
    }
    for stem in &cases {
        let name = stem.to_string_lossy();
        let got = run(&fs::read(folder.join(format!("{name}.yaml"))).expect("a case"));
        let golden = folder.join(format!("{name}.txt"));
        if update {
            fs::write(&golden, &got).expect("writable");
            continue;
        }
        let want = fs::read_to_string(&golden).unwrap_or_default();
        let mut lines = got.lines().zip(want.lines().chain(std::iter::repeat("")));
        if got != want {
            let at = lines.position(|(g, w)| g != w).unwrap_or(0);
            let (g, w) = (got.lines().nth(at).unwrap_or(""), want.lines().nth(at).unwrap_or(""));
            let _ = writeln!(wrong, "{name}.txt:{}\n  got  {g}\n  want {w}", at + 1);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}set UPDATE_GOLDEN=1 to take the new output");
    assert!(update || cases == expected, "cases and expectations do not pair up");
    assert!(!cases.is_empty());
}
