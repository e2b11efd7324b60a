//! What the server says it is.
//!
//! Invariant: the Kubernetes version is the one whose API shapes are served, so that clients' skew checks are right.

use serde_json::{Value, json};

/// Kubernetes version whose API this follows, with our own mark.
pub const GIT_VERSION: &str = concat!("v1.35.0+carrick-", env!("CARGO_PKG_VERSION"));

/// `/version`.
pub fn value() -> Value {
    json!({
        "major": "1", "minor": "35", "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": format!("linux/{}", match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other }),
    })
}
