//! `carrick-proxy istio-iptables`: what an injected pod's init container runs, in the pod's own network namespace.
//!
//! Invariant: it succeeds only when the pod's traffic is captured as asked; the application does not start otherwise.

use std::time::Duration;

use carrick_capture::arguments::parse;
use carrick_capture::nft::{self, Table};
use carrick_capture::{check, sidecar};

/// How long a plugin may take to put the rules in place.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does what the arguments ask for; gives what is printed.
///
/// # Errors
/// An argument that cannot be obeyed, or rules that are not in place.
pub fn run(arguments: &[String]) -> Result<String, String> {
    let plan = parse(arguments).map_err(|error| error.to_string())?;
    let rules = sidecar::ruleset(&plan.capture);
    if plan.dry_run {
        return Ok(rules);
    }
    let mut told = "nothing to do";
    if plan.apply {
        let table = Table { family: "inet", name: &plan.capture.table };
        nft::apply(table, &rules).map_err(|error| error.to_string())?;
        told = "the rules are in place";
    }
    if plan.validate {
        check::in_place(&plan.capture, PATIENCE).map_err(|error| {
            format!("{error}: connections do not reach the proxy; on the node, is the CNI plugin installed and did it run for this pod?")
        })?;
        told = "the rules are in place and turn connections";
    }
    Ok(told.to_owned())
}
