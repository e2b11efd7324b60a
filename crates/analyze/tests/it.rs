//! Cases as data: manifests, and the messages that the analysis has to find in them, all and only those.
//!
//! A case names the analyzers that run (`only`) and each message by parts of its line, in order, with ` … ` between parts.

use carrick_analyze::{ANALYZERS, CODES, Filter, Objects, Suppression, analyze, names, read_file};
use carrick_api::timestamp::Timestamp;
use serde_json::Value;

/// In 2027.
const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|v| v.as_str().expect("a text").to_owned()).collect()
}

fn cases() -> Vec<Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let documents = carrick_api::parse::documents(&std::fs::read(path).unwrap());
        documents.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    files.iter().flat_map(read).flat_map(|document| document.as_array().cloned().expect("a list of cases")).collect()
}

#[test]
fn the_analysis_finds_what_it_should() {
    let mut failures = Vec::new();
    let mut triggered = std::collections::BTreeSet::new();
    for case in cases() {
        let name = case["name"].as_str().expect("every case has a name");
        let mut objects = Objects::new("istio-system", case["live"] == true);
        for (file, cluster) in [("objects", None), ("c1", Some("c1")), ("c2", Some("c2"))] {
            let (found, problems) = read_file("f.yaml", case[file].as_str().unwrap_or_default(), "default");
            assert_eq!(problems, Vec::new(), "{name}");
            for mut object in found {
                object.origin.cluster = cluster.map(str::to_owned);
                objects.add(object);
            }
        }
        if case["defaults"] == true {
            objects.add_defaults();
        }
        if let Some(mesh) = case.get("mesh") {
            objects.set_mesh_config(mesh.clone());
        }
        objects.complete();
        let only = texts(&case["only"]);
        assert!(only.iter().all(|name| names().iter().any(|(known, _)| known == name)), "{name}: {only:?}");
        let found = analyze(&objects, &only, NOW);
        let expected = texts(&case["messages"]);
        let fits = |(message, expected): (&carrick_analyze::Message, &String)| {
            let line = message.to_line(false);
            expected.split(" … ").all(|part| line.contains(part))
        };
        if found.len() != expected.len() || !found.iter().zip(&expected).all(fits) {
            let shown: Vec<String> = found.iter().map(|message| message.to_line(false)).collect();
            failures.push(format!("{name}: expected {expected:#?}, found {shown:#?}"));
        }
        triggered.extend(found.iter().map(|message| message.code));
    }
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
    // Codes of the installation's checks, not of the analysis, and one for our own failures.
    let elsewhere = ["IST0001", "IST0136", "IST0141", "IST0142", "IST0143", "IST0156", "IST0168", "IST0169", "IST0172"];
    let missing: Vec<_> =
        CODES.iter().map(|(code, ..)| *code).filter(|c| !triggered.contains(c) && !elsewhere.contains(c)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "codes without a case");
}

#[test]
fn messages_are_filtered() {
    let manifest = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: b\n  annotations: {galley.istio.io/analyze-suppress: IST0102}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: c}\n";
    let mut objects = Objects::new("istio-system", false);
    read_file("f.yaml", manifest, "").0.into_iter().for_each(|object| objects.add(object));
    objects.complete();
    let shown = |filter: Filter| {
        let mut messages = analyze(&objects, &[], NOW);
        filter.apply(&objects, &mut messages);
        messages.iter().map(|message| message.origin.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(shown(Filter::default()), ["a", "c"]);
    assert_eq!(shown(Filter { namespace: "c".into(), ..Filter::default() }), ["c"]);
    let suppression = Suppression { code: "IST0102".into(), resource: "Namespace *a".into() };
    assert_eq!(shown(Filter { suppressions: vec![suppression], ..Filter::default() }), ["c"]);
}

#[test]
fn analyzers_have_names_of_their_own() {
    let mut all: Vec<_> = names().into_iter().map(|(name, _)| name).collect();
    assert!(all.len() > ANALYZERS.len() + 10);
    all.dedup();
    assert_eq!(all.len(), names().len());
}

/// Objects of any shape do not make the analysis panic.
#[test]
fn odd_shapes_are_survived() {
    let junk = [
        "null",
        "{}",
        "[]",
        "x",
        "7",
        "[null, {}]",
        "{servers: [{port: x}], hosts: x, http: [x, null], rules: {a: b}}",
    ];
    let kinds = [
        ("v1", "Service"),
        ("v1", "Pod"),
        ("v1", "Namespace"),
        ("v1", "ConfigMap"),
        ("v1", "Secret"),
        ("apps/v1", "Deployment"),
        ("networking.istio.io/v1", "VirtualService"),
        ("networking.istio.io/v1", "Gateway"),
        ("networking.istio.io/v1", "DestinationRule"),
        ("networking.istio.io/v1", "ServiceEntry"),
        ("networking.istio.io/v1", "Sidecar"),
        ("networking.istio.io/v1alpha3", "EnvoyFilter"),
        ("security.istio.io/v1", "AuthorizationPolicy"),
        ("telemetry.istio.io/v1", "Telemetry"),
        ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ];
    let mut objects = Objects::new("istio-system", false);
    for (number, spec) in junk.iter().enumerate() {
        for (version, kind) in kinds {
            let text = format!(
                "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a{number}}}\nspec: {spec}\nstatus: {spec}\nwebhooks: {spec}\ndata: {spec}\n"
            );
            read_file("f.yaml", &text, "").0.into_iter().for_each(|object| objects.add(object));
        }
    }
    objects.complete();
    assert!(!analyze(&objects, &[], NOW).is_empty());
}
