//! Why something of this crate failed, in words for the person at the command line.

use std::path::PathBuf;

/// Everything that can stop a run, an exec or the host's set-up.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// Not started as root.
    #[error("{what} makes network namespaces and packet rules: run it as root")]
    NotRoot {
        /// The command.
        what: &'static str,
    },
    /// The caller's request cannot be carried out as it stands.
    #[error("{0}")]
    Request(String),
    /// The API does not answer.
    #[error("the API at {server} does not answer ({source}); is `carrick up` running?")]
    Unreachable {
        /// Its address or the kubeconfig that should name it.
        server: String,
        /// What was seen.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The API refused.
    #[error("{doing}: {}", crate::api::words(source))]
    Api {
        /// What was being done.
        doing: String,
        /// The API's answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// A file or system call.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A link, address or route.
    #[error("{doing}: {reason}")]
    Network {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        reason: String,
    },
    /// Packet rules or namespaces.
    #[error(transparent)]
    Capture(#[from] carrick_capture::CaptureError),
    /// The command cannot be started.
    #[error("{program}: {source}")]
    Command {
        /// What was to be run.
        program: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A signal came before the command was started.
    #[error("stopped by {} before the command was started", signal.as_str())]
    Interrupted {
        /// Which.
        signal: nix::sys::signal::Signal,
    },
    /// The sidecar did not become ready.
    #[error("the sidecar of {pod} is not ready after {seconds} s; its last words ({}):\n{tail}", log.display())]
    Sidecar {
        /// The pod.
        pod: String,
        /// How long it had.
        seconds: u64,
        /// Where it logs.
        log: PathBuf,
        /// The end of its log.
        tail: String,
    },
}

impl PodError {
    /// What a shell would make of it: 127 for a command that is not there, 126 for one that cannot be run, 128+n for a signal, else 1.
    pub fn exit_code(&self) -> i32 {
        match self {
            PodError::Command { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 127,
            PodError::Command { .. } => 126,
            PodError::Interrupted { signal } => (*signal as i32).saturating_add(128),
            _ => 1,
        }
    }

    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> PodError {
        let doing = doing.into();
        move |source| PodError::Io { doing, source }
    }

    pub(crate) fn api(doing: impl Into<String>) -> impl FnOnce(kube::Error) -> PodError {
        let doing = doing.into();
        move |source| PodError::Api { doing, source: Box::new(source) }
    }

    pub(crate) fn sys(doing: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> PodError {
        let doing = doing.into();
        move |errno| PodError::Io { doing, source: errno.into() }
    }
}
