//! Pods written for these tests, and what becomes of them.

use super::*;
use serde_json::json;

fn web(annotations: Value) -> Value {
    json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web"}, "annotations": annotations},
        "spec": {
            "containers": [{"name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 80}, {"containerPort": 81, "protocol": "TCP"}]}],
            "initContainers": [{"name": "prepare", "image": "p"}],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

struct With {
    settings: Settings,
    mesh: Value,
    proxy_config: Value,
    native: bool,
    variables: BTreeMap<String, String>,
}

impl Default for With {
    fn default() -> Self {
        let mesh = json!({"trustDomain": "cluster.local"});
        Self { settings: Settings::default(), mesh, proxy_config: json!({}), native: false, variables: BTreeMap::new() }
    }
}

impl With {
    fn values(values: Value) -> Self {
        Self { settings: Settings { values: Values::new(&values), ..Settings::default() }, ..Self::default() }
    }

    fn inject(&self, pod: &Value) -> Result<Value, InjectError> {
        inject(&Injection {
            pod,
            owner: &crate::of_pod(pod),
            namespace_annotations: &BTreeMap::new(),
            settings: &self.settings,
            mesh: &self.mesh,
            proxy_config: &self.proxy_config,
            revision: "default",
            native_sidecars: self.native,
            variables: &self.variables,
        })
    }
}

fn names_of(pod: &Value, list: &str) -> Vec<String> {
    names(pod.get("spec"), list)
}

fn container<'a>(pod: &'a Value, list: &str, name: &str) -> &'a Value {
    find(pod.get("spec"), list, name).unwrap_or_else(|| panic!("no {name} in {list}"))
}

fn env<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    container["env"].as_array()?.iter().find(|entry| entry["name"] == name)?["value"].as_str()
}

fn args(container: &Value) -> Vec<&str> {
    container["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

#[test]
fn a_pod_gets_rules_and_proxy_and_says_so() {
    let pod = With::default().inject(&web(json!({}))).unwrap();
    assert_eq!(names_of(&pod, "containers"), ["web", "istio-proxy"]);
    assert_eq!(names_of(&pod, "initContainers"), ["prepare", "istio-init"]);
    let volumes = names_of(&pod, "volumes");
    assert_eq!(volumes.first().map(String::as_str), Some("workload-socket"));
    assert_eq!(volumes.last().map(String::as_str), Some("data"), "what is injected comes first");
    let proxy = container(&pod, "containers", "istio-proxy");
    assert_eq!(
        env(proxy, "ISTIO_META_POD_PORTS"),
        Some("[\n    {\"name\":\"http\",\"containerPort\":80}\n    ,{\"containerPort\":81,\"protocol\":\"TCP\"}\n]")
    );
    assert_eq!(env(proxy, "PROXY_CONFIG"), Some("{}\n"));
    assert_eq!(env(proxy, "ISTIO_META_OWNER"), Some("kubernetes://apis/v1/namespaces/shop/pods/web-1"));
    assert_eq!(
        proxy["resources"],
        json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "128Mi"}})
    );
    assert_eq!(
        proxy["readinessProbe"],
        json!({"httpGet": {"path": "/healthz/ready", "port": 15021}, "periodSeconds": 15, "timeoutSeconds": 3, "failureThreshold": 4})
    );
    let init = container(&pod, "initContainers", "istio-init");
    assert_eq!(args(init)[..9], ["istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT"]);
    assert!(args(init).windows(2).any(|pair| pair == ["-d", "15090,15021,15020"]));
    let annotations = &pod["metadata"]["annotations"];
    let status: Value = serde_json::from_str(annotations["sidecar.istio.io/status"].as_str().unwrap()).unwrap();
    assert_eq!(status["initContainers"], json!(["istio-init"]));
    assert_eq!(status["containers"], json!(["istio-proxy"]));
    assert_eq!(status["volumes"].as_array().unwrap().len(), volumes.len() - 1);
    assert_eq!(annotations["prometheus.io/port"], "15020");
    assert_eq!(annotations["istio.io/rev"], "default");
    assert_eq!(pod["metadata"]["labels"]["service.istio.io/canonical-name"], "web");
    assert_eq!(pod["metadata"]["labels"]["security.istio.io/tlsMode"], "istio");
    let schema = carrick_api::kinds::registry().by_kind("", "Pod").unwrap().schema("v1");
    let mut whole = pod.clone();
    whole["apiVersion"] = "v1".into();
    whole["kind"] = "Pod".into();
    assert_eq!(schema.check(&whole), []);
}

#[test]
fn injecting_twice_is_injecting_once() {
    let given = web(json!({"prometheus.io/port": "80", "sidecar.istio.io/proxyCPU": "0.2"}));
    let mut probed = given.clone();
    probed["spec"]["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"port": "http"}});
    let with = With::default();
    for pod in [given, probed] {
        let once = with.inject(&pod).unwrap();
        let twice = with.inject(&once).unwrap();
        let operations = crate::diff(&once, &twice);
        assert_eq!(operations, Vec::<Value>::new());
    }
}

#[test]
fn native_sidecars_are_containers_of_the_start() {
    let with = With { native: true, ..With::default() };
    let pod = with.inject(&web(json!({}))).unwrap();
    assert_eq!(names_of(&pod, "initContainers"), ["istio-init", "istio-proxy", "prepare"]);
    assert_eq!(names_of(&pod, "containers"), ["web"]);
    let proxy = container(&pod, "initContainers", "istio-proxy");
    assert_eq!(proxy["restartPolicy"], "Always");
    assert_eq!(proxy["lifecycle"]["preStop"]["exec"]["command"][2], "--debug-port=15020");
    let refused = with.inject(&web(json!({"sidecar.istio.io/nativeSidecar": "false"}))).unwrap();
    assert_eq!(names_of(&refused, "containers"), ["web", "istio-proxy"]);
    let mut custom = web(json!({}));
    custom["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "istio-proxy", "image": "auto", "tty": true}));
    let pod = with.inject(&custom).unwrap();
    assert_eq!(names_of(&pod, "containers"), ["web"]);
    let proxy = container(&pod, "initContainers", "istio-proxy");
    assert_eq!((&proxy["tty"], &proxy["restartPolicy"]), (&json!(true), &json!("Always")));
    assert_ne!(proxy["image"], "auto");
}

#[test]
fn the_plugin_is_told_by_annotations_and_waited_for() {
    let with = With::values(json!({"pilot": {"cni": {"enabled": true}}}));
    let pod = with.inject(&web(json!({"traffic.sidecar.istio.io/excludeInboundPorts": "7"}))).unwrap();
    assert_eq!(names_of(&pod, "initContainers"), ["istio-validation", "prepare"]);
    let init = container(&pod, "initContainers", "istio-validation");
    assert!(args(init).ends_with(&["--run-validation", "--skip-rule-apply"]));
    assert_eq!(init["securityContext"]["runAsUser"], 1337);
    assert_eq!(init["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["traffic.sidecar.istio.io/excludeInboundPorts"], "7,15020");
    assert_eq!(annotations["sidecar.istio.io/interceptionMode"], "REDIRECT");
}

#[test]
fn what_the_author_says_of_the_proxy_is_over_the_template() {
    let mut given = web(json!({}));
    let own = json!({
        "name": "istio-proxy", "image": "auto",
        "env": [{"name": "MINE", "value": "1"}],
        "resources": {"requests": {"cpu": "1000m"}},
        "securityContext": {"runAsUser": 1500},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    });
    given["spec"]["containers"].as_array_mut().unwrap().insert(0, own);
    let pod = With::default().inject(&given).unwrap();
    let proxy = container(&pod, "containers", "istio-proxy");
    assert_eq!(names_of(&pod, "containers"), ["web", "istio-proxy"]);
    assert!(proxy["image"].as_str().unwrap().starts_with("localhost/carrick/proxyv2:"));
    assert_eq!(env(proxy, "MINE"), Some("1"));
    assert_eq!(proxy["resources"]["requests"]["cpu"], "1000m");
    assert_eq!(proxy["resources"]["requests"]["memory"], "128Mi");
    assert_eq!(proxy["securityContext"]["runAsGroup"], 1337);
    let init = container(&pod, "initContainers", "istio-init");
    assert!(args(init).windows(2).any(|pair| pair == ["-u", "1500"]));
    let overrides = pod["metadata"]["annotations"]["proxy.istio.io/overrides"].as_str().unwrap();
    assert_eq!(
        overrides,
        r#"{"containers":[{"name":"istio-proxy","env":[{"name":"MINE","value":"1"}],"resources":{"requests":{"cpu":"1"}},"volumeMounts":[{"name":"data","mountPath":"/data"}],"securityContext":{"runAsUser":1500}}]}"#
    );
    let twice = With::default().inject(&pod).unwrap();
    assert_eq!(env(container(&twice, "containers", "istio-proxy"), "MINE"), Some("1"));
}

#[test]
fn holding_the_application_puts_the_proxy_first() {
    let hold = "holdApplicationUntilProxyStarts: true";
    let with = With { proxy_config: json!({"holdApplicationUntilProxyStarts": true}), ..With::default() };
    let pod = with.inject(&web(json!({"proxy.istio.io/config": hold}))).unwrap();
    assert_eq!(names_of(&pod, "containers"), ["istio-proxy", "web"]);
    let proxy = container(&pod, "containers", "istio-proxy");
    assert_eq!(proxy["lifecycle"]["postStart"]["exec"]["command"], json!(["pilot-agent", "wait"]));
    assert_eq!(env(proxy, "PROXY_CONFIG"), Some("{\"holdApplicationUntilProxyStarts\":true}\n"));
}

#[test]
fn modes_and_user_volumes() {
    let pod = With::default().inject(&web(json!({"sidecar.istio.io/interceptionMode": "NONE"}))).unwrap();
    assert_eq!(names_of(&pod, "initContainers"), ["prepare"]);
    let pod = With::default().inject(&web(json!({"sidecar.istio.io/interceptionMode": "TPROXY"}))).unwrap();
    let security = &container(&pod, "containers", "istio-proxy")["securityContext"];
    assert_eq!((&security["runAsUser"], &security["capabilities"]["add"]), (&json!(0), &json!(["NET_ADMIN"])));
    let volumes = json!({
        "sidecar.istio.io/userVolume": r#"{"certs": {"secret": {"secretName": "s"}}}"#,
        "sidecar.istio.io/userVolumeMount": r#"{"certs": {"mountPath": "/etc/certs", "readOnly": true}}"#,
    });
    let pod = With::default().inject(&web(volumes)).unwrap();
    assert!(names_of(&pod, "volumes").contains(&"certs".to_owned()));
    let mounts = container(&pod, "containers", "istio-proxy")["volumeMounts"].as_array().unwrap();
    assert_eq!(mounts.last(), Some(&json!({"name": "certs", "mountPath": "/etc/certs", "readOnly": true})));
    let bad = web(json!({"sidecar.istio.io/userVolume": "nonsense"}));
    assert!(With::default().inject(&bad).unwrap_err().to_string().contains("userVolume"));
}

#[test]
fn templates_are_chosen_by_name() {
    let gateway = json!({
        "metadata": {"name": "edge", "namespace": "gw", "annotations": {"inject.istio.io/templates": "gateway"}},
        "spec": {"containers": [{"name": "istio-proxy", "image": "auto", "ports": [{"containerPort": 8443}]}]},
    });
    let pod = With::default().inject(&gateway).unwrap();
    assert_eq!(names_of(&pod, "initContainers"), Vec::<String>::new());
    let proxy = container(&pod, "containers", "istio-proxy");
    assert_eq!(args(proxy)[1], "router");
    assert_eq!(proxy["ports"].as_array().unwrap().len(), 2);
    assert_eq!(pod["spec"]["securityContext"]["sysctls"][0]["value"], "0");
    assert_eq!(pod["metadata"]["labels"].get("security.istio.io/tlsMode"), None);
    assert_eq!(pod["metadata"]["annotations"].get("kubectl.kubernetes.io/default-container"), None);

    let grpc = With::default().inject(&web(json!({"inject.istio.io/templates": "grpc-agent"}))).unwrap();
    let application = container(&grpc, "containers", "web");
    assert_eq!(env(application, "GRPC_XDS_BOOTSTRAP"), Some("/etc/istio/proxy/grpc-bootstrap.json"));
    assert_eq!(grpc["metadata"]["annotations"]["sidecar.istio.io/rewriteAppHTTPProbers"], "false");
    let simple = With::default().inject(&web(json!({"inject.istio.io/templates": "grpc-simple"}))).unwrap();
    assert_eq!(names_of(&simple, "containers"), ["web"]);

    let mut with = With::default();
    let extra = crate::Own::Fragment(json!({"metadata": {"labels": {"x": "y"}}}));
    with.settings.templates.insert("extra".to_owned(), extra);
    with.settings.aliases.insert("both".to_owned(), vec!["sidecar".to_owned(), "extra".to_owned()]);
    let pod = with.inject(&web(json!({"inject.istio.io/templates": "both"}))).unwrap();
    assert_eq!(pod["metadata"]["labels"]["x"], "y");
    let error = with.inject(&web(json!({"inject.istio.io/templates": "none"}))).unwrap_err();
    assert!(error.to_string().starts_with("requested template \"none\" not found; have sidecar"), "{error}");
}

#[test]
fn clusters_networks_and_users_of_the_namespace() {
    let mut with = With::default();
    with.variables.insert("ISTIO_META_CLUSTER_ID".to_owned(), "east".to_owned());
    with.variables.insert("ISTIO_META_NETWORK".to_owned(), "n1".to_owned());
    let pod = with.inject(&web(json!({}))).unwrap();
    let proxy = container(&pod, "containers", "istio-proxy");
    assert_eq!(env(proxy, "ISTIO_META_CLUSTER_ID"), Some("east"));
    assert_eq!(env(proxy, "ISTIO_META_NETWORK"), Some("n1"));
    assert_eq!(pod["metadata"]["labels"]["topology.istio.io/network"], "n1");
    let openshift = BTreeMap::from([("openshift.io/sa.scc.uid-range".to_owned(), "1000/10".to_owned())]);
    assert_eq!(openshift::ids(&openshift), (1009, 1009));
    assert_eq!(openshift::ids(&BTreeMap::new()), (1337, 1337));
}

#[test]
fn bad_annotations_refuse_the_pod() {
    let error = With::default().inject(&web(json!({"status.sidecar.istio.io/port": "x"}))).unwrap_err();
    assert!(matches!(error, InjectError::Annotations(_)), "{error}");
    let error = With::default().inject(&web(json!({"prometheus.io/port": "15090"}))).unwrap_err();
    assert!(error.to_string().contains("reserved"), "{error}");
}

/// A template as people write them for Istio's injector: loops over containers, values, functions of Istio's own.
const PROGRAM: &str = r#"
templates:
  tracer: |
    {{- $port := valueOrDefault .Values.tracer.port 9000 }}
    metadata:
      annotations:
        tracer/owner: {{ printf "%s/%s" (toLower .TypeMeta.Kind) .DeploymentMeta.Name | quote }}
        tracer/ports: "{{ applicationPorts .Spec.Containers }}"
    spec:
      dnsPolicy: {{ .Spec.DNSPolicy | default "ClusterFirst" }}
      containers:
      {{- range $at, $container := .Spec.Containers }}
      {{- if ne $container.Name "istio-proxy" }}
      - name: {{ $container.Name }}
        env:
        - name: TRACER
          value: "{{ $at }}:{{ $port }}"
        {{- if isset $.ObjectMeta.Annotations `tracer/env` }}
        {{- range $name, $value := fromJSON (index $.ObjectMeta.Annotations `tracer/env`) }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
        {{- end }}
      {{- end }}
      {{- end }}
      nodeSelector:
        {{- toYaml (strdict "drain" .ProxyConfig.DrainDuration "mode" .ProxyConfig.InterceptionMode.String) | nindent 4 }}
"#;

#[test]
fn templates_of_ones_own_may_be_programs() {
    let settings = Settings::read(PROGRAM, "tracer: {port: 9411}").unwrap();
    let with = With { settings, proxy_config: json!({"drainDuration": "9s"}), ..With::default() };
    let annotations = json!({"inject.istio.io/templates": "sidecar,tracer", "tracer/env": r#"{"B": "1", "A": "x y"}"#});
    let pod = with.inject(&web(annotations)).unwrap();
    let application = container(&pod, "containers", "web");
    assert_eq!((env(application, "TRACER"), env(application, "A")), (Some("0:9411"), Some("x y")));
    assert_eq!(names_of(&pod, "containers"), ["web", "istio-proxy"]);
    assert_eq!(pod["metadata"]["annotations"]["tracer/owner"], "pod/web-1");
    assert_eq!(pod["metadata"]["annotations"]["tracer/ports"], "80,81");
    assert_eq!(pod["spec"]["nodeSelector"], json!({"drain": "9s", "mode": "REDIRECT"}));
    assert_eq!(pod["spec"]["dnsPolicy"], "ClusterFirst");
    let error = with.inject(&web(json!({"inject.istio.io/templates": "tracer", "tracer/env": "nonsense"}))).unwrap();
    assert_eq!(env(container(&error, "containers", "web"), "TRACER"), Some("0:9411"), "what is no JSON is nothing");
    let broken = Settings::read("templates: {broken: '{{ len 1 }}'}", "").unwrap();
    let error = With { settings: broken, ..With::default() }
        .inject(&web(json!({"inject.istio.io/templates": "broken"})))
        .unwrap_err();
    assert!(error.to_string().starts_with("template \"broken\": len does not take"), "{error}");
}

#[test]
fn proxy_configs_tell_what_is_there_though_it_is_empty() {
    let config = json!({"tracing": {}, "proxyMetadata": {}, "concurrency": 0, "drainDuration": "45s", "image": null});
    let with = With { proxy_config: config, ..With::default() };
    let pod = with.inject(&web(json!({}))).unwrap();
    let proxy = container(&pod, "containers", "istio-proxy");
    assert_eq!(env(proxy, "PROXY_CONFIG"), Some("{\"concurrency\":0,\"tracing\":{}}\n"));
}

#[test]
fn an_installation_that_keeps_to_an_authoritys_rules_says_so_in_its_pods() {
    for (policy, told) in [
        ("", [None, None]),
        ("other", [Some("other"), None]),
        ("fips-140-3", [Some("fips-140-3"), Some("fips140=only")]),
    ] {
        let with = With::values(json!({"pilot": {"env": {"COMPLIANCE_POLICY": policy}}}));
        for templates in ["sidecar", "gateway"] {
            let pod = with.inject(&web(json!({"inject.istio.io/templates": templates}))).unwrap();
            let proxy = container(&pod, "containers", "istio-proxy");
            assert_eq!([env(proxy, "COMPLIANCE_POLICY"), env(proxy, "GODEBUG")], told, "{templates}");
        }
    }
}

#[test]
fn words_that_decide_nothing_are_let_alone() {
    for (value, native) in [("true", true), ("false", false), ("perhaps", true), ("", false)] {
        let pod = With::default().inject(&web(json!({"sidecar.istio.io/nativeSidecar": value}))).unwrap();
        assert_eq!(names_of(&pod, "initContainers").contains(&"istio-proxy".to_owned()), native, "{value:?}");
    }
    let mut probed = web(json!({"sidecar.istio.io/rewriteAppHTTPProbers": "perhaps"}));
    probed["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"path": "/", "port": 80}});
    let pod = With::default().inject(&probed).unwrap();
    let probe = &container(&pod, "containers", "web")["livenessProbe"]["httpGet"];
    assert_eq!(probe["path"], "/app-health/web/livez", "the installation decides");
}
