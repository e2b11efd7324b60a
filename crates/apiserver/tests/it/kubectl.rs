//! The real kubectl against the server.

use crate::bench::Bench;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// `CARRICK_KUBECTL`, or `kubectl` in `PATH`.
pub fn kubectl() -> PathBuf {
    if let Some(path) = std::env::var_os("CARRICK_KUBECTL") {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|file| file.is_file()).expect(
        "kubectl was not found: set CARRICK_KUBECTL to a kubectl 1.35, or install one into PATH (`make test` does)",
    )
}

/// kubectl as one user.
struct Shell {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: tempfile::TempDir,
}

impl Shell {
    fn new(kubeconfig: &Path) -> Self {
        Self { program: kubectl(), kubeconfig: kubeconfig.to_owned(), cache: tempfile::tempdir().unwrap() }
    }

    fn run(&self, line: &str, input: &str) -> Output {
        let mut child = Command::new(&self.program)
            .args(line.split_whitespace())
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.cache.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Standard output of a command that must work.
    fn ok(&self, line: &str) -> String {
        self.feed(line, "")
    }

    fn feed(&self, line: &str, input: &str) -> String {
        let output = self.run(line, input);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {line}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of a command that must fail.
    fn fails(&self, line: &str, input: &str) -> String {
        let output = self.run(line, input);
        assert!(!output.status.success(), "kubectl {line} worked: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}

/// Words of a table, line by line.
fn words(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

async fn session(test: impl FnOnce(Shell) + Send + 'static) {
    let bench = Bench::start().await;
    let shell = Shell::new(bench.server.kubeconfig());
    let outcome = tokio::task::spawn_blocking(move || test(shell)).await;
    bench.stop().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic.into_panic());
    }
}

const POLICY: &str = "
apiVersion: security.istio.io/v1beta1
kind: PeerAuthentication
metadata: {name: strict, namespace: team}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}
";

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: team}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web, namespace: team}
data: {a: '1', b: '2'}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_served() {
    session(|kubectl| {
        assert!(kubectl.ok("version").contains("Server Version: v1.35"));
        let versions = kubectl.ok("api-versions");
        for version in
            ["v1", "networking.istio.io/v1alpha3", "security.istio.io/v1beta1", "authentication.istio.io/v1alpha1"]
        {
            assert!(versions.lines().any(|l| l == version), "{version} in {versions}");
        }
        let resources = kubectl.ok("api-resources");
        assert!(
            words(&resources).contains(&vec![
                "destinationrules",
                "dr",
                "networking.istio.io/v1",
                "true",
                "DestinationRule"
            ]),
            "{resources}"
        );
        assert!(kubectl.ok("explain peerauthentication.spec.mtls.mode").contains("FIELD: mode"));
        assert_eq!(kubectl.ok("get --raw /readyz"), "ok");
        assert!(kubectl.fails("get volumeattachments", "").contains("the server doesn't have a resource type"));
        assert!(kubectl.ok("cluster-info").contains("control plane"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_objects() {
    session(|kubectl| {
        assert_eq!(kubectl.ok("create ns team"), "namespace/team created\n");
        assert_eq!(kubectl.ok("label namespace team istio-injection=enabled"), "namespace/team labeled\n");
        assert!(kubectl.ok("get ns team --show-labels").contains("istio-injection=enabled"));
        assert!(kubectl.ok("get ns -l istio-injection=enabled -o name") == "namespace/team\n");
        assert!(
            kubectl
                .fails("apply -f -", &POLICY.replace("team", "nowhere"))
                .contains("namespaces \"nowhere\" not found")
        );

        assert_eq!(kubectl.feed("apply -f -", POLICY), "peerauthentication.security.istio.io/strict created\n");
        assert_eq!(kubectl.feed("apply -f -", POLICY), "peerauthentication.security.istio.io/strict unchanged\n");
        let table = kubectl.ok("get peerauthentication -A");
        let table = words(&table);
        assert_eq!(table[0][..3], ["NAMESPACE", "NAME", "MODE"]);
        assert_eq!(table[1][..3], ["team", "strict", "STRICT"]);
        assert!(kubectl.ok("get pa strict -n team -o yaml").contains("apiVersion: security.istio.io/v1\n"));
        assert!(
            kubectl
                .ok("get peerauthentications.v1beta1.security.istio.io strict -n team -o yaml")
                .contains("apiVersion: security.istio.io/v1beta1\n")
        );
        let patch = r#"patch pa strict -n team --type=merge -p {"spec":{"mtls":{"mode":"DISABLE"}}}"#;
        assert!(kubectl.ok(patch).contains("patched"));
        assert_eq!(
            kubectl.ok("get pa strict -n team -o jsonpath={.spec.mtls.mode}/{.metadata.generation}"),
            "DISABLE/2"
        );
        kubectl.ok("wait --for=jsonpath={.spec.mtls.mode}=DISABLE pa/strict -n team --timeout=5s");

        kubectl.feed("apply -f -", WEB);
        let changed = WEB.replace("port: 80,", "port: 90,").replace("b: '2'", "c: '3'");
        let told = kubectl.feed("apply -f -", &changed);
        assert_eq!(told, "service/web configured\nconfigmap/web configured\n");
        assert_eq!(kubectl.ok("get svc web -n team -o jsonpath={.spec.ports[*].port}"), "90");
        assert_eq!(kubectl.ok("get cm web -n team -o jsonpath={.data}"), r#"{"a":"1","c":"3"}"#);
        kubectl.ok("annotate svc web -n team note=x");
        assert_eq!(kubectl.ok("get svc web -n team -o jsonpath={.metadata.annotations.note}"), "x");
        assert!(kubectl.ok("describe svc web -n team").contains("TargetPort:"));
        let add = r#"patch svc web -n team -p {"spec":{"ports":[{"port":91,"name":"more"}]}}"#;
        kubectl.ok(add);
        assert_eq!(kubectl.ok("get svc web -n team -o jsonpath={.spec.ports[*].port}").split(' ').count(), 2);
        let json = r#"patch svc web -n team --type=json -p [{"op":"remove","path":"/metadata/annotations/note"}]"#;
        kubectl.ok(json);
        kubectl.feed("replace -f -", &changed);
        assert_eq!(kubectl.ok("get cm -n team --field-selector metadata.name=web -o name"), "configmap/web\n");
        assert!(kubectl.ok("get cm -A --chunk-size=2 -o name").lines().count() >= 1);

        kubectl.ok("create cm extra -n team --from-literal=k=v");
        kubectl.ok("create secret generic s -n team --from-literal=k=v");
        assert_eq!(kubectl.ok("get secret s -n team -o jsonpath={.data.k}"), "dg==");
        assert!(kubectl.ok("delete cm extra -n team --dry-run=server").contains("dry run"));
        kubectl.ok("get cm extra -n team");
        kubectl.ok("delete cm extra -n team");
        assert!(kubectl.fails("get cm extra -n team", "").contains("configmaps \"extra\" not found"));
        assert!(kubectl.ok("delete pa --all -A").contains("deleted"));
        assert!(kubectl.ok("delete pa strict -n team --ignore-not-found").is_empty());
        let gone = kubectl.ok("delete ns team --timeout=20s");
        assert!(gone.contains("namespace \"team\" deleted"));
        assert!(kubectl.ok("get cm,svc,secret -n team -o name").is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_fields_are_named() {
    session(|kubectl| {
        kubectl.ok("create ns team");
        let typo = POLICY.replace("mtls: {mode", "mtls: {mod");
        let told = kubectl.fails("apply -f -", &typo);
        let expected = "PeerAuthentication in version \"v1beta1\" cannot be handled as a PeerAuthentication: strict decoding error: unknown field \"spec.mtls.mod\"";
        assert!(told.starts_with("Error from server (BadRequest)") && told.contains(expected), "{told}");
        let output = kubectl.run("apply --validate=warn -f -", &typo);
        assert!(String::from_utf8_lossy(&output.stderr).contains("Warning: unknown field \"spec.mtls.mod\""));
        assert_eq!(kubectl.ok("get pa strict -n team -o jsonpath={.spec.mtls}"), "{}");
        let told = kubectl.fails("apply -f -", &typo);
        assert!(told.contains("unknown field \"spec.mtls.mod\""), "{told}");
        let told = kubectl.fails("apply -f -", &POLICY.replace("STRICT", "STRICTEST"));
        assert!(told.contains("spec.mtls.mode: Unsupported value: \"STRICTEST\""), "{told}");
        let told = kubectl.fails("apply -f -", &WEB.replace("selector", "selektor"));
        assert!(told.contains("unknown field \"spec.selektor\""), "{told}");
        let told = kubectl.fails("create -f -", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: 1}\n");
        assert!(told.contains("BadRequest"), "{told}");
        let told = kubectl.fails(r#"patch pa strict -n team --type=merge --validate=strict -p {"spec":{"mtl":{}}}"#, "");
        assert!(told.contains("unknown") , "{told}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_side_apply() {
    session(|kubectl| {
        kubectl.ok("create ns team");
        let map = |field: &str| {
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m, namespace: team}}\ndata: {{{field}}}\n")
        };
        let one = kubectl.feed("apply --server-side --field-manager=one -f -", &map("a: '1'"));
        assert_eq!(one, "configmap/m serverside-applied\n");
        kubectl.feed("apply --server-side --field-manager=two -f -", &map("b: '2'"));
        let told = kubectl.fails("apply --server-side --field-manager=two -f -", &map("a: '3'"));
        assert!(told.contains("Apply failed with 1 conflict: conflict with \"one\": .data.a"), "{told}");
        kubectl.feed("apply --server-side --field-manager=two --force-conflicts -f -", &map("a: '3'"));
        assert_eq!(kubectl.ok("get cm m -n team -o jsonpath={.data}"), r#"{"a":"3"}"#);
        kubectl.ok("label cm m -n team x=y");
        let shown = kubectl.ok("get cm m -n team -o yaml --show-managed-fields");
        assert!(shown.contains("manager: kubectl-label") && shown.contains("manager: two"), "{shown}");
        // From client-side to server-side apply, as kubectl changes over.
        kubectl.feed("apply -f -", WEB);
        let changed = kubectl.feed("apply --server-side -f -", &WEB.replace("a: '1'", "a: '9'"));
        assert!(changed.contains("configmap/web serverside-applied"), "{changed}");
        assert_eq!(kubectl.ok("get cm web -n team -o jsonpath={.data.a}"), "9");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_what() {
    session(|kubectl| {
        assert_eq!(kubectl.ok("auth can-i delete pods"), "yes\n");
        assert!(kubectl.ok("auth whoami").contains("kubernetes-admin"));
        kubectl.ok("create ns team");
        kubectl.ok("create sa robot -n team");
        let denied = kubectl.fails("get pods -n team --as=system:serviceaccount:team:robot", "");
        let expected = "pods is forbidden: User \"system:serviceaccount:team:robot\" cannot list resource \"pods\" in API group \"\" in the namespace \"team\"";
        assert!(denied.contains(expected), "{denied}");
        kubectl.ok("create role reader -n team --verb=get,list --resource=pods");
        kubectl.ok("create rolebinding reader -n team --role=reader --serviceaccount=team:robot");
        let token = kubectl.ok("create token robot -n team --duration=10m");
        assert_eq!(token.split('.').count(), 3);
        // As the service account itself, over a connection without a certificate.
        let server = kubectl.ok("config view -o jsonpath={.clusters[0].cluster.server}");
        let own = kubectl.cache.path().join("robot");
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: '{server}', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{token: '{}'}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\ncurrent-context: c\n",
            token.trim()
        );
        std::fs::write(&own, text).unwrap();
        let robot = Shell::new(&own);
        // The rules are read from a watch, which may be a moment behind.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !robot.run("get pods -n team", "").status.success() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        robot.ok("get pods -n team");
        assert!(robot.fails("get pods -n default", "").contains("Forbidden"));
        assert!(robot.fails("auth can-i create pods -n team", "").is_empty());
        assert_eq!(robot.ok("auth can-i list pods -n team"), "yes\n");
        assert!(robot.ok("auth can-i --list -n team").contains("pods"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching() {
    session(|kubectl| {
        kubectl.ok("create cm first --from-literal=a=1");
        let mut child = Command::new(&kubectl.program)
            .args(["get", "cm", "-w", "--no-headers", "-l", "seen!=no"])
            .env("KUBECONFIG", &kubectl.kubeconfig)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        let mut seen = Vec::new();
        for line in lines.map_while(Result::ok) {
            let name = line.split_whitespace().next().unwrap().to_owned();
            // The list is there: the watch is next.
            if name == "first" && !seen.contains(&name) {
                kubectl.ok("create cm second --from-literal=a=1 --from-literal=b=2");
            }
            if name == "second" && !seen.contains(&name) {
                assert_eq!(line.split_whitespace().nth(1), Some("2"), "{line}");
                kubectl.ok("delete cm second");
            }
            seen.push(name);
            if seen.iter().filter(|n| *n == "second").count() == 2 {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen.iter().filter(|n| *n == "second").count(), 2, "{seen:?}");
    })
    .await;
}

/// A request for a certificate; what is in it is its signer's affair.
const SIGNING_REQUEST: &str = "
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: web}
spec: {request: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K, signerName: shop.example/web, usages: [server auth], expirationSeconds: 3600, username: somebody}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approving_certificates() {
    session(|kubectl| {
        kubectl.feed("apply -f -", SIGNING_REQUEST);
        let pending = kubectl.ok("get csr web --no-headers");
        let row = &words(&pending)[0];
        assert_eq!((row[2], row[5]), ("shop.example/web", "Pending"), "{pending}");
        assert!(!pending.contains("somebody"), "who asks is not the asker's to say: {pending}");
        kubectl.ok("certificate approve web");
        let approved = kubectl.ok("get csr web --no-headers");
        assert_eq!(words(&approved)[0][5], "Approved", "{approved}");
        let request = kubectl.ok("get csr web -o jsonpath={.spec.request}");
        assert_eq!(request, "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K", "what was asked for stays");
    })
    .await;
}
