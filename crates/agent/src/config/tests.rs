//! What is read from where, and that all mistakes are told at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

#[derive(Default)]
struct Fake {
    env: BTreeMap<String, String>,
    files: BTreeMap<PathBuf, String>,
}

impl Surroundings for Fake {
    fn environment(&self) -> BTreeMap<String, String> {
        self.env.clone()
    }
    fn read(&self, path: &Path) -> Option<String> {
        self.files.get(path).cloned()
    }
    fn find_program(&self, name: &str) -> Option<PathBuf> {
        (name == "envoy").then(|| "/usr/bin/envoy".into())
    }
}

fn fake(env: &[(&str, &str)]) -> Fake {
    let mut all: BTreeMap<String, String> =
        [("POD_NAME", "shop-1"), ("POD_NAMESPACE", "basic"), ("INSTANCE_IP", "10.244.0.7,fd00::7")]
            .into_iter()
            .chain(env.iter().copied())
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
    all.retain(|_, v| v != "(unset)");
    Fake { env: all, ..Fake::default() }
}

fn sidecar(arguments: &[&str], fake: &Fake) -> Result<AgentConfig, Vec<String>> {
    let all: Vec<String> = ["sidecar"].iter().chain(arguments).map(|a| (*a).to_owned()).collect();
    match parse(&all, fake) {
        Ok(Command::Proxy(config)) => Ok(*config),
        Ok(other) => panic!("{other:?}"),
        Err(errors) => Err(errors.0),
    }
}

#[test]
fn a_gateway_is_a_router_that_needs_no_capture() {
    let Ok(Command::Proxy(config)) = parse(&["gateway".to_owned()], &fake(&[])) else { panic!("not read") };
    assert_eq!(crate::node::node(&config).id, "router~10.244.0.7~shop-1.basic~basic.svc.cluster.local");
    let readiness = crate::readiness::Readiness::new(config.role);
    readiness.update(|state| (state.identity, state.clusters, state.listeners) = (true, true, true));
    assert_eq!(readiness.missing(), Vec::<&str>::new());
    readiness.update(|state| state.listeners = false);
    assert_eq!(readiness.missing(), ["no listeners (LDS) received yet"]);
}

#[test]
fn defaults_are_istios() {
    let config = sidecar(&[], &fake(&[])).unwrap();
    assert_eq!(config.engine, EngineKind::Native);
    assert_eq!(config.node.service_account, "default");
    assert_eq!(config.node.ips.len(), 2);
    assert_eq!(config.control_plane.discovery_address, "istiod.istio-system.svc:15012");
    assert_eq!(config.control_plane.ca_address, config.control_plane.discovery_address);
    assert_eq!(config.identity.ttl, Duration::ZERO);
    assert_eq!((config.identity.grace_ratio, config.identity.grace_jitter), (0.5, 0.01));
    assert_eq!(
        (config.ports.admin, config.ports.status, config.ports.health, config.ports.prometheus),
        (15000, 15020, 15021, 15090)
    );
    assert_eq!((config.concurrency, config.drain.duration), (2, Duration::from_secs(5)));
}

#[test]
fn flags_beat_variables_beat_proxy_config() {
    let proxy_config = r#"{"discoveryAddress":"a:1","concurrency":4,"terminationDrainDuration":"7s","proxyMetadata":{"SECRET_TTL":"1h"}}"#;
    let surroundings = fake(&[("PROXY_CONFIG", proxy_config), ("DISCOVERY_ADDRESS", "b:2"), ("CA_ADDR", "c:3")]);
    let config = sidecar(&["--ca-address=d:4", "--status-port", "16020"], &surroundings).unwrap();
    assert_eq!(config.control_plane.discovery_address, "b:2");
    assert_eq!(config.control_plane.ca_address, "d:4");
    assert_eq!((config.concurrency, config.ports.status), (4, 16020));
    assert_eq!(config.drain.duration, Duration::from_secs(7));
    assert_eq!(config.identity.ttl, Duration::from_secs(3600));
    assert_eq!(config.node.metadata["PROXY_CONFIG"]["concurrency"], 4);
}

#[test]
fn metadata_and_labels() {
    let mut surroundings = fake(&[
        ("ISTIO_META_CLUSTER_ID", "c1"),
        ("ISTIO_METAJSON_EXTRA", r#"{"a":1}"#),
        ("POD_LABELS_FILE", "/l"),
        ("CARRICK_ENGINE", "envoy"),
    ]);
    surroundings.files.insert("/l".into(), "app=\"shop\"\nversion=\"v1\"\n".to_owned());
    let config = sidecar(&[], &surroundings).unwrap();
    assert_eq!(config.node.labels["version"], "v1");
    assert_eq!(config.node.metadata["CLUSTER_ID"], "c1");
    assert_eq!(config.node.metadata["EXTRA"]["a"], 1);
    assert_eq!(config.engine, EngineKind::Envoy { binary: "/usr/bin/envoy".into(), log_level: "warning".to_owned() });
}

#[test]
fn without_a_data_plane_a_library_is_served() {
    let surroundings =
        fake(&[("DISABLE_ENVOY", "true"), ("OUTPUT_CERTS", "/var/lib/istio/data"), ("CARRICK_ENGINE", "envoy")]);
    let library = |bootstrap: &str, certificates: Option<&str>| EngineKind::Library {
        bootstrap: bootstrap.into(),
        certificates: certificates.map(Into::into),
    };
    let config = sidecar(&[], &surroundings).unwrap();
    assert_eq!(config.engine, library("./etc/istio/proxy/grpc-bootstrap.json", Some("/var/lib/istio/data")));
    let surroundings = fake(&[("DISABLE_ENVOY", "true"), ("GRPC_XDS_BOOTSTRAP", "/x.json")]);
    assert_eq!(sidecar(&[], &surroundings).unwrap().engine, library("/x.json", None));
    assert_eq!(sidecar(&[], &fake(&[("DISABLE_ENVOY", "false")])).unwrap().engine, EngineKind::Native);
}

#[test]
fn all_mistakes_at_once() {
    let mut surroundings = fake(&[
        ("POD_NAME", "(unset)"),
        ("INSTANCE_IP", "10.244.0"),
        ("TRUST_DOMAIN", "Bad Domain"),
        ("CA_ADDR", "nowhere"),
        ("SECRET_TTL", "a day"),
        ("SECRET_GRACE_PERIOD_RATIO", "2"),
        ("ISTIO_METAJSON_X", "{"),
        ("PROXY_CONFIG", "[]"),
        ("CARRICK_ENGINE", "envoy"),
        ("CARRICK_ENVOY", "/nowhere/envoy"),
        ("ISTIO_CPU_LIMIT", "many"),
        ("CARRICK_STATE_DIR", &"/long".repeat(30)),
        ("POD_LABELS_FILE", "/l"),
    ]);
    surroundings.files.insert("/l".into(), "broken".to_owned());
    let errors = sidecar(&["--status-port", "15021", "--what", "--pod-namespace"], &surroundings).unwrap_err();
    for part in [
        "POD_NAME) is missing",
        "INSTANCE_IP: \"10.244.0\"",
        "TRUST_DOMAIN:",
        "CA_ADDR: \"nowhere\"",
        "SECRET_TTL:",
        "SECRET_GRACE_PERIOD_RATIO:",
        "ISTIO_METAJSON_X:",
        "PROXY_CONFIG: not a JSON object",
        "CARRICK_ENVOY: there is no program",
        "ISTIO_CPU_LIMIT:",
        "too long for a socket",
        "/l: line \"broken\"",
        "ports must differ",
        "unknown argument \"--what\"",
        "--pod-namespace needs a value",
    ] {
        assert!(errors.iter().any(|e| e.contains(part)), "{part:?} not in {errors:#?}");
    }
    assert_eq!(errors.len(), 15, "{errors:#?}");
}

#[test]
fn help_names_every_option() {
    let Ok(Command::Print(text)) = parse(&["sidecar".to_owned(), "--help".to_owned()], &fake(&[])) else { panic!() };
    for word in ["--pod-name", "POD_NAME", "CA_ADDR", "--engine", "SECRET_TTL", "[15021]"] {
        assert!(text.contains(word), "{word}");
    }
    assert!(parse(&[], &fake(&[])).is_err() && parse(&["run".to_owned()], &fake(&[])).is_err());
}
