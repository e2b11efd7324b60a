//! The real Helm against the server: a chart with a kind of its own is installed, upgraded, rolled back and removed.

use crate::bench::Bench;
use std::path::{Path, PathBuf};
use std::process::Command;

const KIND: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.shop.example.com}
spec:
  group: shop.example.com
  scope: Namespaced
  names: {plural: things, kind: Thing}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties: {spec: {type: object, properties: {size: {type: integer, maximum: 5}}}}
";

const OBJECTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: '{{ .Release.Name }}'}
data: {greeting: '{{ .Values.greeting }}'}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: '{{ .Release.Name }}'}
spec: {mtls: {mode: STRICT}}
---
apiVersion: shop.example.com/v1
kind: Thing
metadata: {name: '{{ .Release.Name }}'}
spec: {size: {{ .Values.size }}}
";

fn chart(folder: &Path) {
    for (name, content) in [
        ("Chart.yaml", "apiVersion: v2\nname: shop\nversion: 0.1.0\n"),
        ("values.yaml", "greeting: one\nsize: 1\n"),
        ("crds/things.yaml", KIND),
        ("templates/all.yaml", OBJECTS),
    ] {
        let file = folder.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }
}

fn program(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| name.into(), PathBuf::from)
}

fn run(kubeconfig: &Path) {
    let folder = tempfile::tempdir().unwrap();
    chart(&folder.path().join("chart"));
    let call = |variable: &str, name: &str, line: &str| {
        let output = Command::new(program(variable, name))
            .args(line.split_whitespace())
            .current_dir(folder.path())
            .env("KUBECONFIG", kubeconfig)
            .env("HOME", folder.path())
            .output()
            .expect("Helm and kubectl are needed: `make test` installs them");
        let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), told)
    };
    let helm = |line: &str, works: bool| {
        let (good, told) = call("CARRICK_HELM", "helm", line);
        assert_eq!(good, works, "helm {line}: {told}");
        told
    };
    let greeting = || {
        let line = "get configmap demo -o jsonpath={.data.greeting}/{.metadata.managedFields[0].manager}";
        call("CARRICK_KUBECTL", "kubectl", line).1
    };
    helm("install demo chart --wait --timeout 60s", true);
    assert_eq!(greeting(), "one/helm");
    helm("upgrade demo chart --set greeting=two --wait --timeout 60s", true);
    assert_eq!(greeting(), "two/helm");
    let refused = helm("upgrade demo chart --set size=6", false);
    assert!(refused.contains("spec.size in body should be less than or equal to 5"), "{refused}");
    helm("rollback demo 1 --wait --timeout 60s", true);
    assert_eq!(greeting(), "one/helm");
    helm("uninstall demo --wait", true);
    let (_, left) = call("CARRICK_KUBECTL", "kubectl", "get things,configmaps,peerauthentications -o name");
    assert!(!left.contains("demo"), "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chart_is_installed_upgraded_and_rolled_back() {
    let bench = Bench::start().await;
    let kubeconfig = bench.server.kubeconfig().to_owned();
    let outcome = tokio::task::spawn_blocking(move || run(&kubeconfig)).await;
    bench.stop().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic.into_panic());
    }
}
