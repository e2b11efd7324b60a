//! The charts beside what they are made of and beside Helm: the kinds in them are those of `carrick-api`, our rendering is Helm's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

mod refusals;

use carrick_api::crd;
use carrick_chart::{Chart, Release, installation};
use serde_json::{Value, json};

const CHARTS: [&str; 4] = ["base", "istiod", "gateway", "cni"];

fn charts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts")
}

/// Helm, as `tools/install` puts it there.
fn helm(arguments: &[&str]) -> String {
    let program = std::env::var("CARRICK_HELM").unwrap_or_else(|_| "helm".to_owned());
    let output = Command::new(&program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} (CARRICK_HELM, or `tools/install test`): {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_kinds_are_those_of_the_program() {
    for (file, groups) in [("crd-all", &crd::GROUPS[..]), ("crd-legacy", &[crd::LEGACY_GROUP])] {
        let documents: Vec<String> =
            crd::definitions(groups).iter().map(|object| serde_saphyr::to_string(object).unwrap()).collect();
        let head = "# Written by `CARRICK_WRITE=1 cargo test -p carrick-chart the_kinds`.\n";
        let text =
            format!("{head}{}", documents.iter().map(|d| d.trim_end()).collect::<Vec<_>>().join("\n---\n") + "\n");
        let path = charts().join("base/files").join(format!("{file}.gen.yaml"));
        if std::env::var_os("CARRICK_WRITE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert!(std::fs::read_to_string(&path).unwrap() == text, "{} is not what the program has", path.display());
    }
}

#[test]
fn every_file_is_in_the_program() {
    for name in CHARTS {
        let (root, mut found) = (charts().join(name), Vec::new());
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(path.strip_prefix(&root).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        let chart = Chart::named(name).unwrap();
        assert_eq!(chart.paths().collect::<Vec<_>>(), found, "{name}");
    }
}

/// Objects by kind and name; texts that hold YAML or JSON are compared by what they say.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let named = objects.into_iter().map(|mut object| {
        for (_, text) in object.get_mut("data").and_then(Value::as_object_mut).into_iter().flatten() {
            if let Ok(read) = serde_saphyr::from_str::<Value>(text.as_str().unwrap_or_default()) {
                *text = read;
            }
        }
        (format!("{} {}", object["kind"], object["metadata"]["name"]), object)
    });
    named.collect()
}

#[test]
fn what_is_rendered_is_what_helm_renders() {
    let scratch = std::env::temp_dir().join(format!("carrick-chart-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    let file = scratch.join("values.json");
    for (chart, namespace, values) in [
        ("base", "istio-system", json!({})),
        (
            "base",
            "mesh",
            json!({"global": {"istioNamespace": "mesh"}, "defaultRevision": "canary", "base": {"enableCRDTemplates": false}}),
        ),
        ("istiod", "istio-system", json!({})),
        (
            "istiod",
            "mesh",
            json!({
                "revision": "canary", "revisionTags": ["prod", "test"], "autoscaleEnabled": false, "env": {"B": 1, "A": "x y"},
                "global": {"istioNamespace": "mesh", "imagePullSecrets": ["one"], "priorityClassName": "high", "hub": "a.b/c", "tag": "9"},
                "meshConfig": {"trustDomain": "td", "defaultConfig": {"holdApplicationUntilProxyStarts": true}, "accessLogFile": "/dev/stdout"},
                "sidecarInjectorWebhook": {"neverInjectSelector": [{"matchLabels": {"a": "<b>"}}], "enableNamespacesByDefault": true},
                "istiodRemote": {"injectionURL": "https://127.0.0.1:1/inject"}, "base": {"validationURL": "https://127.0.0.1:1/validate"},
                "tolerations": [{"key": "k", "operator": "Exists"}], "affinity": {"nodeAffinity": {}}, "podLabels": {"x": "1"},
                "extraContainerArgs": ["--a=b c"], "deploymentLabels": {"y": "true"}, "nodeSelector": {"kubernetes.io/os": "linux"},
                "plainXds": {"enabled": true}, "cni": {"enabled": true}, "pilot": {"cni": {"provider": "multus"}}, "gateways": {"securityContext": {"runAsUser": 7}},
                "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
            }),
        ),
        (
            "istiod",
            "istio-system",
            json!({"sidecarInjectorWebhook": {"enableNamespacesByDefault": true}, "configMap": false, "global": {
                "configValidation": false, "networkPolicy": {"enabled": false}, "defaultPodDisruptionBudget": {"enabled": false}}}),
        ),
        ("gateway", "istio-system", json!({})),
        (
            "gateway",
            "edge",
            json!({
                "name": "istio-eastwest", "networkGateway": "n1", "labels": {"team": "a"}, "revision": "canary", "env": {"A": "b"},
                "autoscaling": {"enabled": false}, "replicaCount": 3, "podDisruptionBudget": {"minAvailable": 1},
                "service": {"type": "NodePort", "annotations": {"a": "b"}, "externalIPs": ["192.0.2.1"]},
            }),
        ),
        ("cni", "kube-system", json!({})),
        (
            "cni",
            "istio-system",
            json!({
                "revision": "canary", "excludeNamespaces": ["kube-system", "istio-system"], "repair": {"enabled": false},
                "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}, "affinity": {"nodeAffinity": {}}, "tolerations": [], "env": {"A": 1},
                "seLinuxOptions": {"type": "spc_t"}, "cniBinDir": "/home/kubernetes/bin", "hub": "a.b/c", "tag": "9",
                "global": {"imagePullSecrets": ["one"], "imagePullPolicy": "Always", "resourceQuotas": {"enabled": true}},
            }),
        ),
        ("gateway", "edge", json!({"kind": "DaemonSet", "service": {"type": "None"}, "rbac": {"enabled": false}})),
    ] {
        std::fs::write(&file, values.to_string()).unwrap();
        let folder = charts().join(chart).display().to_string();
        let values_file = file.display().to_string();
        let arguments = ["template", "istio-x", folder.as_str(), "-n", namespace, "-f", values_file.as_str()];
        let theirs = carrick_api::parse::objects(helm(&arguments).as_bytes()).unwrap();
        let ours = Chart::named(chart).unwrap().render(&Release { name: "istio-x", namespace }, &values).unwrap();
        let (theirs, ours) = (by_name(theirs), by_name(ours));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{chart} {values}");
        for (name, theirs) in &theirs {
            assert_eq!(&ours[name], theirs, "{chart} {name} {values}");
        }
    }
    std::fs::remove_dir_all(&scratch).unwrap();
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    for chart in CHARTS {
        let folder = charts().join(chart).display().to_string();
        let said = helm(&["lint", "--strict", &folder]);
        assert!(said.contains("0 chart(s) failed"), "{said}");
    }
}

#[test]
fn objects_have_the_shapes_of_their_kinds() {
    let spec =
        json!({"profile": "demo", "values": {"revisionTags": ["prod"]}, "components": {"cni": {"enabled": true}}});
    for piece in installation(&spec).unwrap().pieces {
        for object in piece.objects().unwrap() {
            let kind = carrick_api::kinds::registry().of_object(&object).unwrap_or_else(|| panic!("{object}"));
            let (_, version) = carrick_api::kinds::split_api_version(object["apiVersion"].as_str().unwrap());
            assert_eq!(kind.schema(version).check(&object), [], "{} {}", object["kind"], object["metadata"]["name"]);
        }
    }
}
