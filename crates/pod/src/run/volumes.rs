//! Volumes that annotations give the sidecar: `sidecar.istio.io/userVolume` and `sidecar.istio.io/userVolumeMount`.
//!
//! Invariant: files are the sidecar user's alone; a volume that cannot be had fails the start, since the proxy would else
//! run without its certificates. Secrets and ConfigMaps are read once, at the start. The pod has one view of files, so
//! a process of root in it sees them too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};
use serde_json::Value;

use super::files::PodFiles;
use crate::PodError;
use crate::sandbox::View;

const VOLUME: &str = "sidecar.istio.io/userVolume";
const MOUNT: &str = "sidecar.istio.io/userVolumeMount";

/// Where a volume's files come from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Secret(String),
    ConfigMap(String),
    Host(PathBuf),
}

/// Puts the volumes in place and into the view.
pub(crate) async fn mount(
    client: &Client,
    namespace: &str,
    annotations: &BTreeMap<String, String>,
    files: &PodFiles,
    view: &mut View,
) -> Result<(), PodError> {
    for (name, source, place) in wanted(annotations)? {
        let folder = match source {
            Source::Host(path) => path,
            Source::Secret(secret) => {
                let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
                let found =
                    api.get(&secret).await.map_err(PodError::api(format!("volume {name}: get secret {secret}")))?;
                let data = found.data.unwrap_or_default().into_iter().map(|(file, bytes)| (file, bytes.0));
                files.volume(&name, data.collect())?
            }
            Source::ConfigMap(map) => {
                let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
                let found =
                    api.get(&map).await.map_err(PodError::api(format!("volume {name}: get config map {map}")))?;
                let data = found.data.unwrap_or_default().into_iter().map(|(file, text)| (file, text.into_bytes()));
                files.volume(&name, data.collect())?
            }
        };
        view.binds.push((folder, place));
    }
    Ok(())
}

/// Name, source and place of every volume that is mounted.
fn wanted(annotations: &BTreeMap<String, String>) -> Result<Vec<(String, Source, PathBuf)>, PodError> {
    let mut volumes = named(annotations, VOLUME)?;
    let mut found = Vec::new();
    for (name, mount) in named(annotations, MOUNT)? {
        let refused = |what: &str| PodError::Request(format!("volume {name}: {what}"));
        let place = mount.get("mountPath").and_then(Value::as_str).ok_or_else(|| refused("no mountPath"))?;
        let place = Path::new(place);
        if !place.is_absolute() || place.components().any(|part| part.as_os_str() == "..") {
            return Err(refused("mountPath is no absolute path"));
        }
        let volume = volumes.remove(&name).ok_or_else(|| refused("mounted, but not among the volumes"))?;
        let text = |pointer: &str| volume.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let source = text("/secret/secretName")
            .map(Source::Secret)
            .or_else(|| text("/configMap/name").map(Source::ConfigMap))
            .or_else(|| text("/hostPath/path").map(|path| Source::Host(path.into())))
            .ok_or_else(|| refused("neither secret, configMap nor hostPath"))?;
        found.push((name, source, place.to_owned()));
    }
    Ok(found)
}

/// The entries of an annotation, which is JSON or YAML: a map by name, or a list of things with a name.
fn named(annotations: &BTreeMap<String, String>, key: &str) -> Result<BTreeMap<String, Value>, PodError> {
    let Some(text) = annotations.get(key) else { return Ok(BTreeMap::new()) };
    let refused = |what: String| PodError::Request(format!("annotation {key}: {what}"));
    match serde_saphyr::from_str::<Value>(text).map_err(|error| refused(error.to_string()))? {
        Value::Object(map) => Ok(map.into_iter().collect()),
        Value::Array(list) => list
            .into_iter()
            .map(|one| {
                let name = one.get("name").and_then(Value::as_str).map(str::to_owned);
                name.map(|name| (name, one)).ok_or_else(|| refused("an entry has no name".into()))
            })
            .collect(),
        _ => Err(refused("neither a map nor a list".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(volume: &str, mount: &str) -> Result<Vec<(String, Source, PathBuf)>, PodError> {
        wanted(&BTreeMap::from([(VOLUME.to_owned(), volume.to_owned()), (MOUNT.to_owned(), mount.to_owned())]))
    }

    #[test]
    fn maps_and_lists_are_read() {
        let want = vec![("certs".to_owned(), Source::Secret("partner".into()), PathBuf::from("/etc/certs"))];
        let map = of(
            r#"{"certs":{"secret":{"secretName":"partner"}}}"#,
            r#"{"certs":{"mountPath":"/etc/certs","readonly":true}}"#,
        );
        assert_eq!(map.unwrap(), want);
        let list = of(
            r#"[{"name":"certs","secret":{"secretName":"partner"}}]"#,
            r#"[{"name":"certs","mountPath":"/etc/certs"}]"#,
        );
        assert_eq!(list.unwrap(), want);
        assert!(wanted(&BTreeMap::new()).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let secret = r#"{"certs":{"secret":{"secretName":"partner"}}}"#;
        assert!(of(secret, r#"{"other":{"mountPath":"/etc/certs"}}"#).is_err());
        assert!(of(secret, r#"{"certs":{"mountPath":"etc"}}"#).is_err());
        assert!(of(secret, r#"{"certs":{"mountPath":"/etc/../root"}}"#).is_err());
        assert!(of(r#"{"certs":{"emptyDir":{}}}"#, r#"{"certs":{"mountPath":"/etc/certs"}}"#).is_err());
        assert!(of("{", "{}").is_err());
    }
}
