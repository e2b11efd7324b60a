//! One call from workload to workload, in memory: objects → view → resources → both proxies' decisions → an answer a person can read.
//!
//! Invariant: pure, and nothing of its own is decided here: the view is `mesh`'s, the resources are `render`'s, what becomes of a
//! connection is `proxy-core`'s. An answer names, for each step, the object that decided it, or says that none did.
//! Where the objects come from, and how an answer is printed, is the command line's.

mod answer;
mod journey;
mod place;
mod proxy;

pub use answer::{Answer, Side, Step};
pub use journey::{why, why_of};
pub use place::{Caller, Target};
pub use proxy::Proxies;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Who calls.
    pub from: Caller,
    /// Whom.
    pub to: Target,
    /// What it says.
    pub call: Call,
    /// When, as Unix time in seconds: tokens expire.
    pub now: u64,
}

/// What a caller says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What is spoken.
    pub speaks: Speaks,
    /// The request's method.
    pub method: String,
    /// Its path, with the query.
    pub path: String,
    /// Its headers; `host` replaces the host that was called.
    pub headers: Vec<(String, String)>,
}

impl Default for Call {
    fn default() -> Self {
        Self { speaks: Speaks::Http1, method: "GET".to_owned(), path: "/".to_owned(), headers: Vec::new() }
    }
}

/// The first bytes of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// An HTTP/1.1 request.
    Http1,
    /// HTTP/2 from the first byte, as gRPC does.
    Http2,
    /// Its own TLS, naming the host it called.
    Tls,
    /// Bytes of another protocol.
    Bytes,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// The caller is nobody the API knows.
    #[error("no pod {0} is known; name one as POD, POD.NAMESPACE, or by its address")]
    NoCaller(String),
    /// The host names nothing.
    #[error("host {0} names no service known to the mesh, and is no address")]
    NoHost(String),
    /// A service has no such port.
    #[error("{host} has no port {port}; it has {has}")]
    NoPort {
        /// The service.
        host: String,
        /// The port that was asked for.
        port: u16,
        /// Those there are.
        has: String,
    },
    /// A header cannot be one.
    #[error("header {0:?} cannot be sent")]
    Header(String),
    /// What was rendered is refused by the proxy's own reader.
    #[error("the configuration of {proxy} would be refused: {reason}")]
    Refused {
        /// Which proxy.
        proxy: String,
        /// Its words.
        reason: String,
    },
}
