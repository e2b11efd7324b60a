//! The plugin's life on one node: kept in place until its pod ends, taken away when its set of pods is, and pods that came before it
//! made anew.
//!
//! Invariant: while another pod of the set will come, the plugin stays in the chain. What it is asked meanwhile fails, since its token
//! ended with its pod, and the runtime asks again: no pod starts without its rules.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::api::{Access, is_name};
use super::install::{self, Places};
use crate::rules::NO_RULES;

/// How often is looked.
const PAUSE: Duration = Duration::from_secs(10);
/// Who has seen everything in its place this long ago is ready.
const FRESH: Duration = Duration::from_secs(30);
const VALIDATION: &str = "istio-validation";

/// How it lives there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    pub places: Places,
    /// Namespace and name of its set of pods; `None` takes the plugin away whenever the process ends.
    pub set: Option<(String, String)>,
    /// Written whenever everything was found in its place.
    pub ready_file: Option<PathBuf>,
    /// The node whose pods are made anew when they came before the plugin.
    pub repair: Option<String>,
}

impl Life {
    /// Reads flags; `host` and `port` are the API server's, as pods are told.
    ///
    /// # Errors
    /// A flag that is not known, or a value that cannot be one.
    pub fn parse(flags: &[String], host: &str, port: &str) -> Result<Self, String> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let mut life = Self {
            places: Places {
                binaries: "/host/opt/cni/bin".into(),
                configurations: "/host/etc/cni/net.d".into(),
                configurations_on_node: "/etc/cni/net.d".into(),
                account: "/var/run/secrets/kubernetes.io/serviceaccount".into(),
                server: format!("https://{host}:{port}"),
                excluded: vec!["kube-system".to_owned()],
            },
            set: None,
            ready_file: None,
            repair: None,
        };
        for flag in flags {
            let (name, value) = flag.split_once('=').ok_or_else(|| format!("{flag}: --NAME=VALUE expected"))?;
            let value = || value.to_owned();
            match name {
                "--bin-dir" => life.places.binaries = value().into(),
                "--conf-dir" => life.places.configurations = value().into(),
                "--node-conf-dir" => life.places.configurations_on_node = value().into(),
                "--service-account" => life.places.account = value().into(),
                "--server" => life.places.server = value(),
                "--exclude-namespaces" => {
                    life.places.excluded = value().split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect();
                }
                "--daemonset" => {
                    let (namespace, name) =
                        flag.rsplit_once('=').and_then(|(_, v)| v.split_once('/')).unwrap_or(("", ""));
                    if !is_name(namespace) || !is_name(name) {
                        return Err(format!("{flag}: NAMESPACE/NAME expected"));
                    }
                    life.set = Some((namespace.to_owned(), name.to_owned()));
                }
                "--ready-file" => life.ready_file = Some(value().into()),
                "--repair" if !is_name(&value()) => return Err(format!("{flag}: a node's name expected")),
                "--repair" => life.repair = Some(value()),
                _ => return Err(format!("{name} is not known")),
            }
        }
        Ok(life)
    }

    /// Keeps the plugin in its place until `stop`, then takes it away if nobody comes after.
    ///
    /// # Errors
    /// When it cannot be taken away.
    pub async fn run(&self, own: &std::path::Path, stop: impl Future<Output = ()>) -> Result<(), String> {
        tokio::pin!(stop);
        loop {
            match install::install(&self.places, own) {
                Ok(changed) => {
                    changed.iter().for_each(|file| println!("written: {file}"));
                    self.is_ready();
                    self.repair().await;
                }
                Err(error) => eprintln!("carrick-proxy: {error}"),
            }
            tokio::select! {
                () = &mut stop => break,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
        if self.goes_on().await {
            println!("the plugin stays: another pod of its set will keep it");
            return Ok(());
        }
        install::uninstall(&self.places)
    }

    fn is_ready(&self) {
        let Some(file) = &self.ready_file else { return };
        if let Err(error) = std::fs::write(file, "") {
            eprintln!("carrick-proxy: {}: {error}", file.display());
        }
    }

    /// Whether its set of pods is there and is to stay. Who cannot tell takes the plugin away only when the set is known to be gone.
    async fn goes_on(&self) -> bool {
        let Some((namespace, name)) = &self.set else { return false };
        let path = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}");
        let answer = match Access::read(&self.places.kubeconfig()) {
            Ok(access) => access.ask(Method::GET, &path, None).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok((StatusCode::NOT_FOUND, _)) => false,
            Ok((status, set)) if status.is_success() => set.pointer("/metadata/deletionTimestamp").is_none(),
            // The set's role goes with the set.
            Ok((StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED, _)) => false,
            Ok((status, _)) => {
                eprintln!("carrick-proxy: {path}: {status}");
                true
            }
            Err(error) => {
                eprintln!("carrick-proxy: {error}");
                true
            }
        }
    }

    /// Deletes the node's pods whose rules will never come.
    async fn repair(&self) {
        let Some(node) = &self.repair else { return };
        let done = async {
            let access = Access::read(&self.places.kubeconfig())?;
            let path =
                format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}&labelSelector=security.istio.io%2FtlsMode");
            let (status, pods) = access.ask(Method::GET, &path, None).await?;
            if !status.is_success() {
                return Err(format!("{path}: {status}"));
            }
            for pod in pods.get("items").and_then(Value::as_array).into_iter().flatten() {
                let Some((namespace, name, uid)) = stranded(pod) else { continue };
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
                let only = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}});
                let (status, _) = access.ask(Method::DELETE, &path, Some(&only)).await?;
                println!("{namespace}/{name} came before the plugin and has no rules; deleted: {status}");
            }
            Ok(())
        };
        if let Err(error) = done.await {
            eprintln!("carrick-proxy: {error}");
        }
    }
}

/// Namespace, name and uid of a pod that waits for rules in vain, and that a controller makes anew.
fn stranded(pod: &Value) -> Option<(&str, &str, &str)> {
    let metadata = pod.get("metadata")?;
    let text = |name: &str| metadata.get(name).and_then(Value::as_str);
    let mut owners = metadata.get("ownerReferences")?.as_array()?.iter();
    let owned = owners.any(|owner| owner.get("controller") == Some(&Value::Bool(true)));
    let statuses = pod.pointer("/status/initContainerStatuses")?.as_array()?;
    let waiting = statuses.iter().find(|status| status.get("name").and_then(Value::as_str) == Some(VALIDATION))?;
    let ended = ["/state/terminated/exitCode", "/lastState/terminated/exitCode"]
        .iter()
        .any(|code| waiting.pointer(code).and_then(Value::as_u64) == Some(u64::from(NO_RULES)));
    if !owned || !ended || text("deletionTimestamp").is_some() {
        return None;
    }
    let (namespace, name, uid) = (text("namespace")?, text("name")?, text("uid")?);
    (is_name(namespace) && is_name(name)).then_some((namespace, name, uid))
}

/// Whether the installer saw everything in its place a moment ago.
///
/// # Errors
/// When it did not, in words.
pub fn ready(file: &std::path::Path, now: SystemTime) -> Result<(), String> {
    let written = std::fs::metadata(file).and_then(|file| file.modified());
    let written = written.map_err(|error| format!("{}: {error}", file.display()))?;
    let age = now.duration_since(written).unwrap_or_default();
    if age > FRESH { Err(format!("in place {} s ago, not since", age.as_secs())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(flags: &[&str]) -> Result<Life, String> {
        Life::parse(&flags.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>(), "fd00::1", "443")
    }

    #[test]
    fn flags() {
        let all = life(&["--bin-dir=/b", "--exclude-namespaces=a,b", "--daemonset=kube-system/set", "--repair=node-1"])
            .unwrap();
        assert_eq!(all.places.server, "https://[fd00::1]:443");
        assert_eq!((all.places.binaries, all.places.excluded), ("/b".into(), vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(all.set, Some(("kube-system".to_owned(), "set".to_owned())));
        assert_eq!(all.repair.as_deref(), Some("node-1"));
        for wrong in ["--bin-dir", "--nothing=1", "--daemonset=set", "--daemonset=a/b/c", "--repair=../x", "--repair="]
        {
            assert!(life(&[wrong]).unwrap_err().contains(wrong.split('=').next().unwrap()), "{wrong}");
        }
    }

    #[test]
    fn pods_that_wait_in_vain_and_will_be_made_anew_are_deleted() {
        let stuck = json!({
            "metadata": {"namespace": "shop", "name": "web-1", "uid": "u", "ownerReferences": [{"controller": true}]},
            "status": {"initContainerStatuses": [
                {"name": "istio-validation", "state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": 126}}}]},
        });
        assert_eq!(stranded(&stuck), Some(("shop", "web-1", "u")));
        for (path, value) in [
            ("/metadata/ownerReferences", json!([])),
            ("/metadata/deletionTimestamp", json!("now")),
            ("/status/initContainerStatuses/0/lastState/terminated/exitCode", json!(1)),
            ("/status/initContainerStatuses/0/name", json!("istio-init")),
        ] {
            let mut other = stuck.clone();
            match other.pointer_mut(path) {
                Some(slot) => *slot = value,
                None => other["metadata"]["deletionTimestamp"] = value,
            }
            assert_eq!(stranded(&other), None, "{path}");
        }
    }

    #[test]
    fn who_was_in_place_a_moment_ago_is_ready() {
        let file = std::env::temp_dir().join(format!("carrick-cni-ready-{}", std::process::id()));
        assert!(ready(&file, SystemTime::now()).is_err());
        std::fs::write(&file, "").unwrap();
        assert_eq!(ready(&file, SystemTime::now()), Ok(()));
        assert!(ready(&file, SystemTime::now() + FRESH * 2).unwrap_err().contains("not since"));
        std::fs::remove_file(&file).unwrap();
    }
}
