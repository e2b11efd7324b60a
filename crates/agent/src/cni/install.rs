//! Puts the plugin on a node: its binary, a kubeconfig, and its place at the end of the node's chain.
//!
//! Invariant: files are replaced as a whole; what the plugin is not part of any more is as it was before. It runs as a DaemonSet's pod
//! with the node's folders mounted, and looks again, since others write the same folders.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::NAME;

/// Where things are on the node, as mounted here, and as the runtime sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Folder of plugins, `/opt/cni/bin`.
    pub binaries: PathBuf,
    /// Folder of configurations, `/etc/cni/net.d`.
    pub configurations: PathBuf,
    /// The same as the runtime sees it.
    pub configurations_on_node: PathBuf,
    /// The service account's token and authority.
    pub account: PathBuf,
    /// URL of the API server as nodes reach it.
    pub server: String,
    /// Namespaces that are let alone.
    pub excluded: Vec<String>,
}

/// Name of the kubeconfig; not one that a runtime takes for a configuration.
const KUBECONFIG: &str = "ZZZ-carrick-cni-kubeconfig";

impl Places {
    /// By what the plugin asks the API server.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.configurations.join(KUBECONFIG)
    }
}

/// Installs what is not as it should be. Gives what was changed.
///
/// # Errors
/// A file that cannot be read or written, or a node that has no network configuration yet.
pub fn install(places: &Places, own: &Path) -> Result<Vec<String>, String> {
    let words = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut changed = Vec::new();
    let mut put = |path: PathBuf, content: Vec<u8>, mode: u32| {
        if fs::read(&path).is_ok_and(|there| there == content) {
            return Ok(());
        }
        replace(&path, &content, mode).map_err(|error| words(&path, &error))?;
        changed.push(path.display().to_string());
        Ok::<(), String>(())
    };
    let binary = fs::read(own).map_err(|error| words(own, &error))?;
    put(places.binaries.join(NAME), binary, 0o755)?;
    let read = |name: &str| {
        let path = places.account.join(name);
        fs::read_to_string(&path).map_err(|error| words(&path, &error))
    };
    let kubeconfig = kubeconfig(&places.server, &read("ca.crt")?, read("token")?.trim());
    put(places.kubeconfig(), kubeconfig.to_string().into_bytes(), 0o600)?;
    let path = first(&places.configurations).map_err(|error| words(&places.configurations, &error))?;
    let path =
        path.ok_or_else(|| format!("{}: there is no network configuration yet", places.configurations.display()))?;
    let text = fs::read_to_string(&path).map_err(|error| words(&path, &error))?;
    let before: Value = serde_json::from_str(&text).map_err(|error| words(&path, &error))?;
    let plugin = json!({
        "name": NAME, "type": NAME,
        "kubernetes": {
            "kubeconfig": places.configurations_on_node.join(KUBECONFIG), "excludeNamespaces": places.excluded,
        },
    });
    let after = with(&before, &plugin);
    if after != before {
        let list = path.with_extension("conflist");
        replace(&list, format!("{after:#}\n").as_bytes(), 0o644).map_err(|error| words(&list, &error))?;
        if list != path {
            // A runtime takes the first file; the chain would be behind the plugin that it begins with.
            fs::remove_file(&path).map_err(|error| words(&path, &error))?;
        }
        changed.push(list.display().to_string());
    }
    Ok(changed)
}

/// Takes the plugin out of the chain, then away.
///
/// # Errors
/// A file that cannot be written.
pub fn uninstall(places: &Places) -> Result<(), String> {
    let words = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    if let Ok(Some(path)) = first(&places.configurations)
        && let Ok(text) = fs::read_to_string(&path)
        && let Ok(before) = serde_json::from_str::<Value>(&text)
    {
        let after = without(&before);
        if after != before {
            replace(&path, format!("{after:#}\n").as_bytes(), 0o644).map_err(|error| words(&path, &error))?;
        }
    }
    for path in [places.kubeconfig(), places.binaries.join(NAME)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(words(&path, &error)),
            _ => {}
        }
    }
    Ok(())
}

/// The configuration that a runtime takes: the first by name.
fn first(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json"));
    found.sort();
    Ok(found.into_iter().next())
}

/// A chain with the plugin at its end; a single plugin becomes a chain.
fn with(before: &Value, plugin: &Value) -> Value {
    let mut chain = if before.get("plugins").is_some_and(Value::is_array) {
        without(before)
    } else {
        let version = before.get("cniVersion").cloned().unwrap_or_else(|| "0.3.1".into());
        let name = before.get("name").cloned().unwrap_or_else(|| "k8s-pod-network".into());
        let mut only = before.clone();
        if let Some(only) = only.as_object_mut() {
            only.shift_remove("cniVersion");
        }
        json!({ "cniVersion": version, "name": name, "plugins": [only] })
    };
    if let Some(plugins) = chain.get_mut("plugins").and_then(Value::as_array_mut) {
        plugins.push(plugin.clone());
    }
    chain
}

fn without(before: &Value) -> Value {
    let mut chain = before.clone();
    if let Some(plugins) = chain.get_mut("plugins").and_then(Value::as_array_mut) {
        plugins.retain(|plugin| plugin.get("type").and_then(Value::as_str) != Some(NAME));
    }
    chain
}

fn kubeconfig(server: &str, authority: &str, token: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": NAME,
        "contexts": [{ "name": NAME, "context": { "cluster": "local", "user": NAME } }],
        "clusters": [{ "name": "local", "cluster": { "server": server, "certificate-authority-data": base64(authority.as_bytes()) } }],
        "users": [{ "name": NAME, "user": { "token": token } }],
    })
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, at| (bits << 8) | u32::from(chunk.get(at).copied().unwrap_or_default()));
        for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let index = usize::try_from((bits >> shift) & 63).unwrap_or_default();
            let letter = ALPHABET.get(index).copied().unwrap_or(b'=');
            out.push(char::from(if place <= chunk.len() { letter } else { b'=' }));
        }
    }
    out
}

/// Writes beside and renames, so that a runtime never sees half.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let beside = path.with_extension("carrick-tmp");
    fs::write(&beside, content)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(mode))?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_the_plugin_and_gets_rid_of_it() {
        let root = std::env::temp_dir().join(format!("carrick-cni-install-{}", std::process::id()));
        let folder = |name: &str| {
            let path = root.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let places = Places {
            binaries: folder("bin"),
            configurations: folder("net.d"),
            configurations_on_node: "/etc/cni/net.d".into(),
            account: folder("account"),
            server: "https://10.0.0.1:443".to_owned(),
            excluded: vec!["kube-system".to_owned()],
        };
        fs::write(places.account.join("ca.crt"), "PEM").unwrap();
        fs::write(places.account.join("token"), "t\n").unwrap();
        let own = root.join("own");
        fs::write(&own, "program").unwrap();
        assert!(install(&places, &own).unwrap_err().contains("no network configuration yet"));
        let single = json!({"cniVersion": "0.4.0", "name": "net", "type": "bridge"});
        fs::write(places.configurations.join("10-net.conf"), single.to_string()).unwrap();
        assert_eq!(install(&places, &own).unwrap().len(), 1, "binary and kubeconfig were there");
        let list = places.configurations.join("10-net.conflist");
        let chain: Value = serde_json::from_str(&fs::read_to_string(&list).unwrap()).unwrap();
        assert_eq!(chain["plugins"][0]["type"], "bridge");
        assert_eq!(chain["plugins"][1]["type"], NAME);
        assert_eq!(chain["plugins"][1]["kubernetes"]["kubeconfig"], format!("/etc/cni/net.d/{KUBECONFIG}"));
        assert!(!places.configurations.join("10-net.conf").exists());
        assert_eq!(install(&places, &own).unwrap(), Vec::<String>::new(), "a second time changes nothing");
        fs::write(places.account.join("token"), "new").unwrap();
        assert_eq!(install(&places, &own).unwrap().len(), 1, "a new token is taken over");
        assert_eq!(fs::metadata(places.configurations.join(KUBECONFIG)).unwrap().permissions().mode() & 0o777, 0o600);
        uninstall(&places).unwrap();
        let chain: Value = serde_json::from_str(&fs::read_to_string(&list).unwrap()).unwrap();
        assert_eq!(chain["plugins"].as_array().unwrap().len(), 1);
        assert!(!places.binaries.join(NAME).exists());
        fs::remove_dir_all(&root).unwrap();
    }
}
