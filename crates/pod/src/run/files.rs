//! The files a pod sees in place of the host's, and who may read them.
//!
//! Invariant: a token is readable by its one user, replaced as a whole, and gone with the pod's folder.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, chown};

use super::SidecarPlan;
use crate::PodError;
use crate::options::{CLUSTER_DOMAIN, DNS_ADDRESS, PROXY_ID};
use crate::sandbox::View;
use crate::state::{PodFolder, write_atomic};
use crate::template::Template;

/// Where the pod finds its secrets; a link to it is `/var/run/secrets`.
const SECRETS: &str = "/run/secrets";
/// Where the sidecar finds its programs and keeps its files.
const SIDECAR: &str = "/run/carrick";

/// Paths of one pod, on the host's side.
#[derive(Clone, Debug)]
pub(crate) struct PodFiles {
    root: PathBuf,
}

/// Paths of the sidecar, as it sees them.
#[derive(Clone, Debug)]
pub(crate) struct SidecarPaths {
    pub(crate) token: PathBuf,
    pub(crate) root_cert: PathBuf,
    pub(crate) labels: PathBuf,
    pub(crate) annotations: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) envoy: Option<PathBuf>,
}

impl PodFiles {
    /// Lays out the folder of a pod.
    pub(crate) fn create(folder: &PodFolder) -> Result<PodFiles, PodError> {
        let files = PodFiles { root: folder.path().to_owned() };
        for (path, mode, owner) in [
            ("etc", 0o755, 0),
            ("secrets/kubernetes.io/serviceaccount", 0o755, 0),
            ("secrets/tokens", 0o700, PROXY_ID),
            ("secrets/istio", 0o755, 0),
            ("secrets/workload-spiffe-uds", 0o755, PROXY_ID),
            ("secrets/workload-spiffe-credentials", 0o755, PROXY_ID),
            ("sidecar/bin", 0o755, 0),
            ("sidecar/proxy", 0o700, PROXY_ID),
        ] {
            files.folder(path, mode, owner)?;
        }
        Ok(files)
    }

    fn folder(&self, path: &str, mode: u32, owner: u32) -> Result<(), PodError> {
        let path = self.root.join(path);
        let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(&path).and_then(|()| {
            // The mode above is cut by the process's mask.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
            Ok(chown(&path, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?)
        });
        made.map_err(PodError::io(format!("create {}", path.display())))
    }

    /// Writes names, resolver configuration and the like, and says what goes where.
    pub(crate) fn view(&self, namespace: &str, host_name: &str, ip: &str) -> Result<View, PodError> {
        let resolv = format!(
            "search {namespace}.svc.{CLUSTER_DOMAIN} svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}\nnameserver {DNS_ADDRESS}\noptions ndots:5\n"
        );
        let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{ip}\t{host_name}\n");
        for (name, content) in [("resolv.conf", resolv), ("hosts", hosts), ("hostname", format!("{host_name}\n"))] {
            self.write(&format!("etc/{name}"), content.as_bytes(), 0o644, 0)?;
        }
        let mut binds: Vec<(PathBuf, PathBuf)> = ["resolv.conf", "hosts", "hostname"]
            .iter()
            .map(|name| (self.root.join("etc").join(name), real(Path::new("/etc").join(name))))
            .collect();
        binds.push((self.root.join("secrets"), SECRETS.into()));
        binds.push((self.root.join("sidecar"), SIDECAR.into()));
        Ok(View { host_name: host_name.to_owned(), binds })
    }

    /// Puts the sidecar's programs where user 1337 can reach them, whatever folder they are in on the host.
    pub(crate) fn sidecar(
        &self,
        view: &mut View,
        template: &Template,
        plan: &SidecarPlan,
    ) -> Result<SidecarPaths, PodError> {
        self.write("sidecar/labels", downward(&template.labels).as_bytes(), 0o644, 0)?;
        self.write("sidecar/annotations", downward(&template.annotations).as_bytes(), 0o644, 0)?;
        let mut place = |name: &str, source: &Path| {
            let host = self.root.join("sidecar/bin").join(name);
            std::fs::write(&host, []).map_err(PodError::io(format!("create {}", host.display())))?;
            let inside = Path::new(SIDECAR).join("bin").join(name);
            view.binds.push((source.to_owned(), inside.clone()));
            Ok::<_, PodError>(inside)
        };
        Ok(SidecarPaths {
            token: Path::new(SECRETS).join("tokens/istio-token"),
            root_cert: Path::new(SECRETS).join("istio/root-cert.pem"),
            labels: Path::new(SIDECAR).join("labels"),
            annotations: Path::new(SIDECAR).join("annotations"),
            folder: Path::new(SIDECAR).join("proxy"),
            program: place("carrick-proxy", &plan.program)?,
            envoy: plan.envoy.as_deref().map(|envoy| place("envoy", envoy)).transpose()?,
        })
    }

    /// A folder of files that only the sidecar's user may read.
    pub(crate) fn volume(&self, name: &str, data: Vec<(String, Vec<u8>)>) -> Result<PathBuf, PodError> {
        if !is_file_name(name) {
            return Err(PodError::Request(format!("volume {name:?} is no name")));
        }
        let folder = format!("volumes/{name}");
        self.folder("volumes", 0o755, 0)?;
        self.folder(&folder, 0o700, PROXY_ID)?;
        for (file, bytes) in data {
            if !is_file_name(&file) {
                return Err(PodError::Request(format!("volume {name}: {file:?} is no file name")));
            }
            self.write(&format!("{folder}/{file}"), &bytes, 0o400, PROXY_ID)?;
        }
        Ok(self.root.join(folder))
    }

    /// Replaces one file under the pod's folder.
    pub(crate) fn write(&self, name: &str, content: &[u8], mode: u32, owner: u32) -> Result<(), PodError> {
        let path = self.root.join(name);
        let written = write_owned(&path, content, mode, owner);
        written.map_err(PodError::io(format!("write {}", path.display())))
    }
}

/// Whether a text names a file right in a folder.
fn is_file_name(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && !text.contains('/') && !text.contains('\0')
}

/// Labels or annotations as the downward API writes them.
pub(crate) fn downward(map: &std::collections::BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={}\n", serde_json::Value::from(value.as_str()))).collect()
}

/// As [`write_atomic`], but the file belongs to `owner` from the moment that it can be seen under its name.
pub(crate) fn write_owned(path: &Path, content: &[u8], mode: u32, owner: u32) -> io::Result<()> {
    if owner == 0 {
        return write_atomic(path, content, mode);
    }
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let staged = PathBuf::from(staged);
    write_atomic(&staged, content, mode)?;
    chown(&staged, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
    std::fs::rename(&staged, path)
}

/// `/etc/resolv.conf` is often a link; what is mounted over must be what it leads to.
fn real(path: PathBuf) -> PathBuf {
    std::fs::canonicalize(&path).unwrap_or(path)
}
