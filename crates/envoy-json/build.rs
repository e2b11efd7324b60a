//! Compiles the descriptors of Envoy's v3 messages from the `.proto` files that the `envoy-types` crate ships,
//! so that resources can be shown as JSON. Nothing of those files is kept in this repository.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use prost::Message;
use protox::{Compiler, file::GoogleFileResolver};

/// Directories (below Envoy's own proto root) whose files may appear in what the mesh configures or shows.
const ROOTS: &[&str] = &[
    "envoy/admin/v3",
    "envoy/config/accesslog/v3",
    "envoy/config/bootstrap/v3",
    "envoy/config/cluster/v3",
    "envoy/config/core/v3",
    "envoy/config/endpoint/v3",
    "envoy/config/listener/v3",
    "envoy/config/metrics/v3",
    "envoy/config/rbac/v3",
    "envoy/config/route/v3",
    "envoy/config/trace/v3",
    "envoy/extensions/access_loggers/file/v3",
    "envoy/extensions/access_loggers/filters/cel/v3",
    "envoy/extensions/access_loggers/grpc/v3",
    "envoy/extensions/access_loggers/stream/v3",
    "envoy/extensions/access_loggers/open_telemetry/v3",
    "envoy/extensions/filters/common/set_filter_state/v3",
    "envoy/extensions/filters/http",
    "envoy/extensions/filters/listener",
    "envoy/extensions/filters/network",
    "envoy/extensions/compression",
    "envoy/extensions/retry/host/previous_hosts/v3",
    "envoy/extensions/load_balancing_policies",
    "envoy/extensions/path",
    "envoy/extensions/transport_sockets",
    "envoy/extensions/upstreams/http/v3",
    "envoy/service/auth/v3",
    "envoy/service/discovery/v3",
    "envoy/type",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let protos = envoy_types_dir().join("proto");
    let includes: Vec<PathBuf> = [
        "data-plane-api",
        "xds",
        "googleapis",
        "protoc-gen-validate",
        "opentelemetry-proto",
        "client_model",
        "cel-spec",
    ]
    .iter()
    .flat_map(|dir| [protos.join(dir), protos.join(dir).join("proto")])
    .filter(|dir| dir.is_dir())
    .collect();

    let base = protos.join("data-plane-api");
    let mut roots = Vec::new();
    for dir in ROOTS {
        collect(&base.join(dir), &mut roots);
    }
    roots.sort();

    // One compiler per root: a pool shared by the whole tree resolves relative names against packages that the
    // file does not import, and then refuses it.
    let mut seen = BTreeMap::new();
    let mut files = Vec::new();
    for root in roots {
        let mut resolver = protox::file::ChainFileResolver::new();
        for dir in &includes {
            resolver.add(protox::file::IncludeFileResolver::new(dir.clone()));
        }
        resolver.add(GoogleFileResolver::new());
        let mut compiler = Compiler::with_file_resolver(resolver);
        compiler.include_imports(true).include_source_info(false);
        if let Err(error) = compiler.open_file(&root) {
            println!("cargo:warning=left out of the JSON descriptors: {}: {error}", root.display());
            continue;
        }
        for file in compiler.file_descriptor_set().file {
            if seen.insert(file.name().to_owned(), ()).is_none() {
                files.push(file);
            }
        }
    }
    let set = prost_types::FileDescriptorSet { file: files };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("envoy.fds");
    fs::write(out, set.encode_to_vec()).expect("write descriptors");
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|e| e == "proto") && !path.components().any(|c| c.as_os_str() == "v2") {
            into.push(path);
        }
    }
}

/// Where cargo has unpacked the `envoy-types` crate of this workspace.
fn envoy_types_dir() -> PathBuf {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--manifest-path"])
        .arg(manifest.join("Cargo.toml"))
        // Without a platform, cargo would want the sources of every other platform's dependencies too.
        .arg("--filter-platform")
        .arg(env::var("TARGET").expect("cargo sets TARGET"))
        .output()
        .expect("run cargo metadata");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .expect("envoy-types is a dependency of the workspace");
    Path::new(manifest).parent().expect("a manifest lies in a directory").to_owned()
}
