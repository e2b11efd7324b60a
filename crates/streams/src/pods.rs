//! Who runs pods, as whoever serves their streams sees it.
//!
//! Invariant: dropping what is handed out ends it: a guest's process, a log's follower, a connection.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use std::time::SystemTime;
use tokio::io::{AsyncRead, AsyncWrite};

/// One container of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// Namespace.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Its uid: another pod of the same name is not meant.
    pub uid: String,
    /// Name of the container.
    pub container: String,
}

/// Which streams a caller wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    /// Something is typed in.
    pub stdin: bool,
    /// Output is shown.
    pub stdout: bool,
    /// Errors are shown; with a terminal they come with the output.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// Columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With an exit code, 128+n after signal n.
    Code(i32),
    /// Nobody knows: its end could not be seen.
    Unknown(String),
}

/// A process and its streams.
pub struct Guest {
    /// What it reads; dropped = end of file.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// What it writes.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Its errors; `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Sets the terminal's size.
    pub resize: Option<Box<dyn FnMut(Size) + Send>>,
    /// Its end. Dropped before, it kills the process.
    pub ended: BoxFuture<'static, Ended>,
}

/// Which part of a log is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogRequest {
    /// Goes on with what is written later.
    pub follow: bool,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Nothing from before.
    pub since: Option<SystemTime>,
    /// Not more than this many lines from the end.
    pub tail: Option<usize>,
    /// Not more than this many bytes.
    pub limit: Option<u64>,
}

/// A connection in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Why a pod's runner does not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodsError {
    /// No runner on this machine has that pod.
    #[error("no `carrick run` on this machine has pod {pod}")]
    NotHere {
        /// The pod.
        pod: String,
    },
    /// The request cannot be carried out as it stands.
    #[error("{0}")]
    Request(String),
    /// It was tried, and failed.
    #[error("{0}")]
    Failed(String),
}

/// A log's pieces.
pub type LogStream = BoxStream<'static, Bytes>;

/// Whoever runs pods. Implementations are asked only for pods that exist, and for containers that they have.
pub trait Pods: Send + Sync {
    /// Starts a command in a container.
    fn exec<'a>(
        &'a self,
        target: &'a Target,
        command: &'a [String],
        want: Want,
    ) -> BoxFuture<'a, Result<Guest, PodsError>>;

    /// The container's own process, from now on.
    fn attach<'a>(&'a self, target: &'a Target, want: Want) -> BoxFuture<'a, Result<Guest, PodsError>>;

    /// What a container has written.
    fn logs<'a>(&'a self, target: &'a Target, request: &'a LogRequest) -> BoxFuture<'a, Result<LogStream, PodsError>>;

    /// A connection to the pod's own loopback.
    fn dial<'a>(&'a self, target: &'a Target, port: u16) -> BoxFuture<'a, Result<Box<dyn Duplex>, PodsError>>;
}
