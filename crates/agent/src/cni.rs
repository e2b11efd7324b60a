//! The CNI plugin: a container runtime calls it for each pod, and it sets the rules that an init container would (CNI specification
//! 1.1, `CNI_COMMAND` and one JSON text on standard input).
//!
//! Invariant: it is the last of a chain and hands on what came before it. A pod without an injected sidecar is let alone; one with a
//! sidecar gets its rules, or the pod does not start. Taking away is never refused.

mod api;
pub mod install;
pub mod node;

use std::collections::BTreeMap;
use std::path::Path;

use carrick_capture::nft::{self, Table};
use carrick_capture::sidecar::{self, Mode, SidecarCapture};
use carrick_capture::{annotations, netns};
use serde_json::{Value, json};

/// Versions of the specification that are spoken.
const VERSIONS: [&str; 5] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0", "0.3.0"];
/// Of an answer where nobody named one.
const NEWEST: &str = "1.1.0";
const TABLE: Table<'static> = Table { family: "inet", name: sidecar::TABLE };

/// The plugin's name, as its binary's name begins.
pub const NAME: &str = "carrick-cni";

/// An error as the specification wants it.
#[derive(Debug, PartialEq, Eq)]
struct Failed {
    code: u16,
    message: String,
}

fn failed(code: u16, message: impl Into<String>) -> Failed {
    Failed { code, message: message.into() }
}

/// Answers one call; gives what is printed, and whether it went well.
pub fn run(env: &BTreeMap<String, String>, input: &str) -> (String, bool) {
    let config: Value = serde_json::from_str(input).unwrap_or_default();
    let version = config.get("cniVersion").and_then(Value::as_str).unwrap_or(NEWEST).to_owned();
    match answer(env, &config, &version) {
        Ok(None) => (String::new(), true),
        Ok(Some(told)) => (told.to_string(), true),
        Err(error) => (json!({ "cniVersion": version, "code": error.code, "msg": error.message }).to_string(), false),
    }
}

fn answer(env: &BTreeMap<String, String>, config: &Value, version: &str) -> Result<Option<Value>, Failed> {
    let get = |name: &str| env.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let command = get("CNI_COMMAND").ok_or_else(|| failed(4, "CNI_COMMAND is not set"))?;
    if command == "VERSION" {
        return Ok(Some(json!({ "cniVersion": version, "supportedVersions": VERSIONS })));
    }
    if !config.is_object() {
        return Err(failed(6, "standard input is no JSON object"));
    }
    if !VERSIONS.contains(&version) {
        return Err(failed(1, format!("version {version} of the specification is not spoken here")));
    }
    match command {
        "ADD" => {
            if let Some((pod, name)) = pod(env, config)?
                && let Some(capture) = wanted(&pod).map_err(|reason| failed(100, format!("pod {name}: {reason}")))?
            {
                let namespace = get("CNI_NETNS").ok_or_else(|| failed(4, "CNI_NETNS is not set"))?;
                inside(namespace, move || sidecar::apply(&capture))?
                    .map_err(|error| failed(101, format!("pod {name}: {error}")))?;
            }
            let before = config.get("prevResult").cloned();
            Ok(Some(before.unwrap_or_else(|| json!({ "cniVersion": version }))))
        }
        "CHECK" => {
            if let Some((pod, name)) = pod(env, config)?
                && wanted(&pod).map_err(|reason| failed(100, format!("pod {name}: {reason}")))?.is_some()
            {
                let namespace = get("CNI_NETNS").ok_or_else(|| failed(4, "CNI_NETNS is not set"))?;
                let listed = inside(namespace, || nft::list(TABLE))?.map_err(|error| failed(101, error.to_string()))?;
                listed.ok_or_else(|| failed(102, format!("pod {name}: its rules are gone")))?;
            }
            Ok(None)
        }
        "DEL" => {
            // The rules go with the namespace; where it stays, they would lead to a proxy that is gone.
            if let Some(namespace) = get("CNI_NETNS")
                && Path::new(namespace).exists()
            {
                let _ = inside(namespace, || sidecar::remove(&SidecarCapture::default()));
            }
            Ok(None)
        }
        "STATUS" | "GC" => Ok(None),
        other => Err(failed(4, format!("CNI_COMMAND {other:?} is not known"))),
    }
}

fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T, Failed> {
    netns::run_in(Path::new(namespace), work).map_err(|error| failed(101, error.to_string()))
}

/// The pod that the call is about, and its name for people; `None` for what is no pod, or of a namespace that is let alone.
fn pod(env: &BTreeMap<String, String>, config: &Value) -> Result<Option<(Value, String)>, Failed> {
    let text = env.get("CNI_ARGS").map(String::as_str).unwrap_or_default();
    let arguments: BTreeMap<&str, &str> = text.split(';').filter_map(|pair| pair.split_once('=')).collect();
    let (Some(namespace), Some(name)) = (arguments.get("K8S_POD_NAMESPACE"), arguments.get("K8S_POD_NAME")) else {
        return Ok(None);
    };
    let excluded = config.pointer("/kubernetes/excludeNamespaces").and_then(Value::as_array).into_iter().flatten();
    if excluded.into_iter().any(|excluded| excluded == namespace) {
        return Ok(None);
    }
    let kubeconfig = config.pointer("/kubernetes/kubeconfig").and_then(Value::as_str);
    let kubeconfig = kubeconfig.ok_or_else(|| failed(7, "kubernetes.kubeconfig is missing"))?;
    let pod = api::pod(Path::new(kubeconfig), namespace, name).map_err(|reason| failed(11, reason))?;
    Ok(Some((pod, format!("{namespace}/{name}"))))
}

/// What of a pod's traffic is to be captured; `None` where nothing is.
///
/// # Errors
/// An annotation that cannot be obeyed.
fn wanted(pod: &Value) -> Result<Option<SidecarCapture>, String> {
    const INJECT: &str = "sidecar.istio.io/inject";
    const MODE_VARIABLE: &str = "ISTIO_META_INTERCEPTION_MODE";
    let strings = |field: &str| -> BTreeMap<String, String> {
        let map = pod.pointer(&format!("/metadata/{field}")).and_then(Value::as_object);
        map.into_iter().flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    };
    let (labels, mut annotated) = (strings("labels"), strings("annotations"));
    let list = |list: &str| {
        pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    };
    let named = |container: &&Value, name: &str| container.get("name").and_then(Value::as_str) == Some(name);
    let proxy =
        list("containers").iter().chain(list("initContainers")).find(|container| named(container, "istio-proxy"));
    let Some(proxy) = proxy.filter(|_| annotated.contains_key("sidecar.istio.io/status")) else { return Ok(None) };
    let refuses = labels.get(INJECT).or_else(|| annotated.get(INJECT)).is_some_and(|value| value == "false");
    let by_init = list("initContainers").iter().any(|container| named(&container, "istio-init"));
    let host = pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
    let is = |name: &str, value: &str| {
        let env = proxy.get("env").and_then(Value::as_array).into_iter().flatten();
        env.into_iter()
            .any(|entry| entry.get("name") == Some(&name.into()) && entry.get("value") == Some(&value.into()))
    };
    let gateway =
        proxy.get("args").and_then(Value::as_array).is_some_and(|args| args.iter().any(|arg| *arg == "router"));
    // A gateway is not captured, and a library that is its own proxy neither.
    if refuses || by_init || host || gateway || is("DISABLE_ENVOY", "true") {
        return Ok(None);
    }
    // What the mesh or a ProxyConfig says of it is in the proxy's environment alone.
    if is(MODE_VARIABLE, "TPROXY") {
        annotated.entry("sidecar.istio.io/interceptionMode".to_owned()).or_insert_with(|| "TPROXY".to_owned());
    }
    let mut capture = annotations::parse(&annotated).map_err(|error| error.to_string())?;
    if let Some(user) = proxy.pointer("/securityContext/runAsUser").and_then(Value::as_u64).filter(|user| *user != 0) {
        capture.proxy_id = u32::try_from(user).map_err(|_| format!("runAsUser {user} is no user"))?;
    }
    Ok((capture.mode != Mode::None).then_some(capture))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn injected(annotations: Value) -> Value {
        let mut all = json!({"sidecar.istio.io/status": "{}"});
        all.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
        json!({"metadata": {"annotations": all}, "spec": {"containers": [{"name": "web"}, {"name": "istio-proxy"}]}})
    }

    #[test]
    fn pods_that_are_injected_are_captured_and_others_are_not() {
        assert_eq!(wanted(&injected(json!({}))), Ok(Some(SidecarCapture::default())));
        assert_eq!(wanted(&json!({"metadata": {}, "spec": {"containers": [{"name": "web"}]}})), Ok(None));
        assert_eq!(wanted(&injected(json!({"sidecar.istio.io/inject": "false"}))), Ok(None));
        assert_eq!(wanted(&injected(json!({"sidecar.istio.io/interceptionMode": "NONE"}))), Ok(None));
        let mut by_init = injected(json!({}));
        by_init["spec"]["initContainers"] = json!([{"name": "istio-init"}]);
        assert_eq!(wanted(&by_init), Ok(None));
        let mut other_user = injected(json!({}));
        other_user["spec"]["containers"][1]["securityContext"] = json!({"runAsUser": 1500});
        assert_eq!(wanted(&other_user).unwrap().unwrap().proxy_id, 1500);
        let mut by_mesh = injected(json!({}));
        by_mesh["spec"]["containers"][1]["env"] = json!([{"name": "ISTIO_META_INTERCEPTION_MODE", "value": "TPROXY"}]);
        assert_eq!(wanted(&by_mesh).unwrap().unwrap().mode, Mode::Tproxy);
        assert!(wanted(&injected(json!({"traffic.sidecar.istio.io/excludeInboundPorts": "x"}))).is_err());
    }

    /// Answers every question of one connection each with a pod.
    fn api(pod: Value) -> std::net::SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).unwrap();
                let asked = String::from_utf8_lossy(&buffer[..read]).into_owned();
                let known =
                    asked.starts_with("GET /api/v1/namespaces/shop/pods/web-1 ") && asked.contains("Bearer secret");
                let (status, body) =
                    if known { ("200 OK", pod.to_string()) } else { ("404 Not Found", "{}".to_owned()) };
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        address
    }

    #[test]
    fn the_protocol_over_a_real_namespace() {
        let folder = std::env::temp_dir().join(format!("carrick-cni-test-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let namespace = carrick_capture::netns::NetNs::create(&format!("carrick-cni-{}", std::process::id()))
            .expect("this test needs root");
        let kubeconfig = folder.join("kubeconfig");
        let address = api(injected(json!({})));
        let text = format!(
            "{{\"current-context\": \"c\", \"contexts\": [{{\"name\": \"c\", \"context\": {{\"cluster\": \"c\", \"user\": \"u\"}}}}],\
             \"clusters\": [{{\"name\": \"c\", \"cluster\": {{\"server\": \"http://{address}\"}}}}],\
             \"users\": [{{\"name\": \"u\", \"user\": {{\"token\": \"secret\"}}}}]}}"
        );
        std::fs::write(&kubeconfig, text).unwrap();
        let call = |command: &str, pod: &str| {
            let env = BTreeMap::from([
                ("CNI_COMMAND".to_owned(), command.to_owned()),
                ("CNI_NETNS".to_owned(), namespace.path().display().to_string()),
                ("CNI_ARGS".to_owned(), format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}")),
            ]);
            let config = json!({"cniVersion": "1.0.0", "name": "k8s", "type": NAME, "kubernetes": {"kubeconfig": kubeconfig},
                "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/24"}]}});
            run(&env, &config.to_string())
        };
        let rules = || namespace.run(|| nft::list(TABLE)).unwrap().unwrap();
        let (versions, good) = call("VERSION", "");
        assert!(good && versions.contains("1.1.0"));
        let (told, good) = call("CHECK", "web-1");
        assert!(!good && told.contains("its rules are gone"), "{told}");
        let (told, good) = call("ADD", "web-1");
        assert!(good, "{told}");
        assert_eq!(
            serde_json::from_str::<Value>(&told).unwrap()["ips"][0]["address"],
            "10.0.0.1/24",
            "what came before is handed on"
        );
        assert!(rules().unwrap().contains("15006"));
        assert_eq!(call("CHECK", "web-1"), (String::new(), true));
        assert_eq!(call("DEL", "web-1"), (String::new(), true));
        assert_eq!(rules(), None);
        let (told, good) = call("ADD", "other");
        assert!(
            !good && told.contains("\"code\":11"),
            "an API that does not answer is tried again by the runtime: {told}"
        );
        let (told, good) = run(&BTreeMap::from([("CNI_COMMAND".to_owned(), "ADD".to_owned())]), "x");
        assert!(!good && told.contains("\"code\":6"));
        namespace.delete().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
